"""Batch: the common part of both descriptors.

A descriptor owns only the memory that it allocated itself. One request at a time uses it. The core
processes its pages, by the addresses in `pointers` (core/batch.pyx).

A backend passes `pointers` to the core. A backend that works elsewhere sends `inputs(share)`, where
a share is some of the indices of `order()`, and takes the results with `accept`.
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
    """The common part of both descriptors: `dlens`, `errors`, and all addresses for the core."""

    __slots__ = ("_count", "capacity", "dlens", "errors", "has_errors", "page_size", "pointers")

    operation: ClassVar[int]
    capacity: int
    """Largest length of an output in bytes."""
    dlens: npt.NDArray[np.uint32]
    errors: npt.NDArray[np.int32]
    has_errors: bool
    """Whether any page failed."""
    pointers: Pointers

    def __init__(self, count: int, page_size: int) -> None:
        self.page_size = self.capacity = buffers.check_page_size(page_size)
        self._count = count
        self.has_errors = False
        self.dlens = np.zeros(count, np.uint32)
        self.errors = np.zeros(count, np.int32)
        self.pointers = Pointers(self.operation, self.page_size)
        self.pointers.set_results(self.dlens, self.errors, count)

    def __len__(self) -> int:
        return self._count

    def reset(self) -> None:
        """Clear the results of an earlier run."""
        self.has_errors = False
        self.pointers.reset()

    def order(self) -> Sequence[int]:
        """Return the indices in the best order for dividing them into shares."""
        return range(self._count)

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return the inputs of the pages of `share`, in its order."""
        raise NotImplementedError

    def accept(self, share: Sequence[int], memory: Flat, results: npt.NDArray[np.int32]) -> bool:
        """Take the results of pages that were done elsewhere.

        `memory` has their outputs back to back. Restored pages take one page each, even failed
        ones. `results` has the length of each output, or its negative errno. Return False if these
        cannot be right. The pages must then be done again.
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
