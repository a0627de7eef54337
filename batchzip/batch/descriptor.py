"""Batch: what both descriptors have.

A descriptor owns no memory but what it allocated itself, and is used by one request at a time. What is
done with its pages is done by the core, which has their addresses: `pointers` (core/batch.pyx).

A backend hands `pointers` to the core. One that has pages done elsewhere sends `inputs(share)`, a share
being some of `order()`, and takes the results with `accept`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchzip.arguments import buffers
from batchzip.core.batch import Pointers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from batchzip.arguments.buffers import Flat


class Batch:
    """What both descriptors have: `dlens` and `errors`, and their addresses for the core."""

    __slots__ = ("_count", "capacity", "dlens", "errors", "has_errors", "page_size", "pointers")

    operation: ClassVar[int]
    capacity: int
    """Most bytes that an output may have."""
    dlens: npt.NDArray[np.uint32]
    errors: npt.NDArray[np.int32]
    has_errors: bool
    """Whether any page failed: one look instead of n."""
    pointers: Pointers

    def __init__(self, count: int, page_size: int) -> None:
        self.page_size = buffers.check_page_size(page_size)
        self._count = count
        self.has_errors = False
        self.dlens = np.zeros(count, np.uint32)
        self.errors = np.zeros(count, np.int32)
        self.pointers = Pointers(self.operation, self.page_size)
        self.pointers.set_results(self.dlens, self.errors, count)

    def __len__(self) -> int:
        return self._count

    def reset(self) -> None:
        """Forget the results of an earlier run."""
        self.has_errors = False
        self.pointers.reset()

    def order(self) -> Sequence[int]:
        """Return the indices in the order in which they are best handed out."""
        return range(self._count)

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return the inputs of the pages of `share`, in its order."""
        raise NotImplementedError

    def accept(self, share: Sequence[int], memory: Flat, results: npt.NDArray[np.int32]) -> bool:
        """Take the results of pages that were done elsewhere.

        `memory` has their outputs one behind the other; restored pages have a page's room each, failed
        ones too. `results` has the bytes of each output, or its negative errno. Return False where
        that cannot be right: the pages are to be done again.
        """
        accepted = self.pointers.accept(np.fromiter(share, np.uint32, len(share)), memory, results)
        self.has_errors |= bool((results < 0).any())
        return accepted

    def fail(self, indices: Iterable[int], code: int) -> None:
        """Give these pages the negative errno `code` and no output."""
        self.has_errors = True
        for index in indices:
            self.dlens[index] = 0
            self.errors[index] = code
