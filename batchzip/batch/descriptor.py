"""Batch: what both descriptors have, and how a backend does a share of one.

A descriptor owns no memory but what it allocated itself, and is used by one request at a time.
A *share* is a range of the batch's indices. A backend does a share in the calling thread with
`run_share(context, share)`, or has `inputs(share)` done elsewhere and takes the outputs with
`accept(share, outputs, errors)`. Shares of one batch may be done in several threads at once, as
they touch different elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchzip import buffers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from batchzip.buffers import Flat
    from batchzip.codecs.context import Context


class Batch:
    """What both descriptors have: `dlens` and `errors`, and a share's way in and out."""

    __slots__ = (
        "_count",
        "_dlens",
        "_inputs",
        "_unfit",
        "capacity",
        "dlens",
        "errors",
        "page_size",
    )

    operation: ClassVar[int]
    capacity: int
    """Most bytes an output may have."""
    _inputs: list[Flat]
    dlens: npt.NDArray[np.uint32]
    errors: npt.NDArray[np.int32]

    def __init__(self, count: int, page_size: int) -> None:
        self.page_size = buffers.check_page_size(page_size)
        self._count = count
        self.dlens = np.zeros(count, np.uint32)
        self.errors = np.zeros(count, np.int32)
        # A memoryview sets single elements in a third of the time that NumPy takes.
        self._dlens = buffers.flat(self.dlens.view(np.uint8)).cast("I")
        self._unfit: dict[int, int] = {}
        """Inputs no codec shall see, and their errors."""

    def __len__(self) -> int:
        return self._count

    def reset(self) -> None:
        """Forget the results of an earlier run."""
        self.dlens.fill(0)
        self.errors.fill(0)

    def inputs(self, share: range) -> Sequence[Flat]:
        """Give the inputs of the pages of `share`, in its order."""
        return self._inputs[share.start : share.stop : share.step]

    def run_share(self, context: Context, share: range) -> None:
        """Do a share in the calling thread, whose context this is."""
        raise NotImplementedError

    def accept(self, share: range, outputs: Sequence[Flat], errors: Mapping[int, int]) -> None:
        """Take a share's outputs, in its order; `errors` has codes by index of the batch."""
        raise NotImplementedError

    def accept_packed(
        self, share: range, memory: memoryview, hop: int, results: Sequence[int]
    ) -> None:
        """Take a share's outputs from `memory`: its n-th at n × `hop`, or, with `hop` 0, packed.

        `results` has the bytes of each, or its negative errno. The same as `accept`, without a
        view and a list item for each page on the way.
        """
        raise NotImplementedError

    def fail(self, indices: Iterable[int], code: int) -> None:
        """Give these pages the negative errno `code` and no output."""
        for index in indices:
            self.dlens[index] = 0
            self.errors[index] = code

    def _accept_errors(self, share: range, errors: Mapping[int, int]) -> None:
        for index, code in errors.items():
            self.fail([index], code)
        for index, code in self._unfit.items():
            if index in share:
                self.fail([index], code)
