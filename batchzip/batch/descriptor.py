"""Batch: what both descriptors have, and how a backend does a share of one.

A descriptor owns no memory but what it allocated itself, and is used by one request at a time.
A *share* is some of the batch's indices: a slice of `order()`. A backend does a share in the calling thread with
`run_share(context, share)`, or has `inputs(share)` done elsewhere and takes the outputs with
`accept_packed`; with `accept_placed` what lies in an arena and was done there. One thread at a time
does or accepts shares of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from batchzip import buffers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from batchzip.arena import Arena
    from batchzip.buffers import Flat
    from batchzip.codecs.context import Context

    Results = npt.NDArray[np.int32]


Placement: TypeAlias = tuple[int, int, int, int]
"""Where in an arena a batch's inputs begin and how far apart they are, and its outputs, in bytes; with
a pitch of 0 they do not lie there."""

NOWHERE: Placement = (0, 0, 0, 0)
"""Nothing of the batch lies in the arena."""


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
        "has_errors",
        "page_size",
    )

    operation: ClassVar[int]
    capacity: int
    """Most bytes an output may have."""
    _inputs: list[Flat]
    dlens: npt.NDArray[np.uint32]
    errors: npt.NDArray[np.int32]
    has_errors: bool
    """Whether any page failed; one look instead of n."""

    def __init__(self, count: int, page_size: int) -> None:
        self.page_size = buffers.check_page_size(page_size)
        self._count = count
        self.has_errors = False
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
        if self.has_errors:
            self.has_errors = False
            self.errors.fill(0)

    def order(self) -> Sequence[int]:
        """Give the indices in the order in which they are handed out; slices of it are shares."""
        return range(self._count)

    def locate(self, arena: Arena) -> Placement:
        """Find what of this batch lies in `arena`, so that workers use it where it is."""
        raise NotImplementedError

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Give the inputs of the pages of `share`, in its order."""
        if isinstance(share, range):
            return self._inputs[share.start : share.stop : share.step]
        return [self._inputs[index] for index in share]

    def run_share(self, context: Context, share: Sequence[int]) -> None:
        """Do a share in the calling thread, whose context this is."""
        raise NotImplementedError

    def accept_packed(
        self, share: Sequence[int], memory: memoryview, results: Results, failed: int, total: int
    ) -> None:
        """Take a share's outputs from `memory`, where they lie one behind the other.

        Compressed outputs are packed, `total` bytes; restored pages each have a page's room, failed
        ones too. `results` has what `accept_placed` says.
        """
        raise NotImplementedError

    def accept_placed(self, share: Sequence[int], results: Results, failed: int) -> None:
        """Take a share whose outputs were written where they belong.

        `results`, int32, has the bytes of each page, or its negative errno if `failed` pages are
        more than none; of a decompressed share it counts only then.
        """
        raise NotImplementedError

    def fail(self, indices: Iterable[int], code: int) -> None:
        """Give these pages the negative errno `code` and no output."""
        self.has_errors = True
        for index in indices:
            self.dlens[index] = 0
            self.errors[index] = code

    def _accept_failed(self, share: Sequence[int], results: Results) -> None:
        self._accept_errors(
            share, {share[int(i)]: int(results[i]) for i in np.flatnonzero(results < 0)}
        )

    def _accept_errors(self, share: Sequence[int], errors: Mapping[int, int]) -> None:
        for index, code in errors.items():
            self.fail([index], code)
        for index, code in self._unfit.items():
            if index in share:
                self.fail([index], code)
