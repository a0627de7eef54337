"""DecompressBatch: compressed sources, and the pages to restore."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from batchzip import buffers
from batchzip.batch.descriptor import NOWHERE, Batch
from batchzip.codecs.context import DECOMPRESS
from batchzip.errors import BadBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from batchzip.arena import Arena
    from batchzip.batch.descriptor import Placement, Results
    from batchzip.buffers import Buffer, Flat
    from batchzip.codecs.context import Context

    Lengths: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]

_NONE: buffers.Bytes = np.empty((0, 0), np.uint8)

_FEW = 32
"""Pages up to which a loop is faster than NumPy."""

_PAGE_SIZE = 4096
"""Bytes of a page where nothing says otherwise, as on most machines."""


class DecompressBatch(Batch):
    """Compressed sources, and the pages to restore.

    `srcs`   sequence of n buffers, or `(dsts, slens)`: an array (n, capacity) and n lengths.
    `pages`  (n, page_size) uint8, one flat buffer, or a sequence of n buffers of one page each:
             writable, contiguous, overlapping nothing; made where none is given.

    Afterwards `dlens` is page_size for each page restored, else 0, and `errors` as in
    CompressBatch; -EBADMSG the source cannot be decoded to exactly a page. A page that failed
    is left as it was. `pages` is an (n, page_size) array, or the sequence that was given.
    """

    __slots__ = ("_flat", "_matrix", "_rows", "pages", "slens")

    operation = DECOMPRESS

    def __init__(
        self,
        srcs: Sequence[Buffer] | tuple[Buffer, Lengths],
        pages: Buffer | Sequence[Buffer] | None = None,
        *,
        page_size: int | None = None,
    ) -> None:
        self._inputs = sources = _sources(srcs)
        count = len(sources)
        self.pages: buffers.Bytes
        self._rows: list[memoryview] = []
        """Destinations where they were given one by one; else they are `_flat`."""
        self._flat = memoryview(b"")
        self._matrix = _NONE
        if pages is None:
            page_size = buffers.check_page_size(_PAGE_SIZE if page_size is None else page_size)
            self.pages = self._matrix = np.empty((count, page_size), np.uint8)
            self._flat = buffers.flat(self.pages)
        elif buffers.is_sequence(pages):
            self.pages = pages  # type: ignore[assignment] # who passes a list knows what it is
            self._rows, page_size = _rows(pages, count, page_size)
            buffers.refuse_overlap(self._rows, sources, "pages", "srcs")
        else:
            if page_size is None and getattr(pages, "ndim", 1) == 1:
                page_size = _PAGE_SIZE
            self.pages = self._matrix = matrix = buffers.as_matrix(
                pages, "pages", rows=count, width=page_size, writable=True
            )
            page_size = matrix.shape[1]
            self._flat = buffers.flat(matrix)
            buffers.refuse_overlap([self._flat], sources, "pages", "srcs")
        super().__init__(count, page_size)
        self.capacity = self.page_size
        self.slens = np.fromiter(map(len, sources), np.uint32, count)
        # No page compresses to more than this; what is longer need not reach a codec.
        for index in np.flatnonzero(self.slens > 2 * page_size):
            self._unfit[int(index)] = -errno.EBADMSG
            sources[index] = b""

    def order(self) -> Sequence[int]:
        """Give the largest sources first: they take longest, and nobody waits for one at the end."""
        count = len(self)
        if count <= _FEW:
            return sorted(range(count), key=self.slens.tolist().__getitem__, reverse=True)
        order: list[int] = np.argsort(self.slens, kind="stable")[::-1].tolist()
        return order

    def locate(self, arena: Arena) -> Placement:
        """Find the pages in `arena`; sources are short and always handed over as a copy."""
        pages = -1 if self._rows else arena.locate(self._matrix)
        return NOWHERE if pages < 0 else (0, 0, pages, self.page_size)

    def run_share(self, context: Context, share: Sequence[int]) -> None:
        """Decompress a share straight into its pages."""
        if self._rows:
            errors: dict[int, int] = {}
            for index in share:
                one = context.decompress_into([self._inputs[index]], self._rows[index], 0, [index])
                errors.update(one)
        else:
            errors = context.decompress_into(self.inputs(share), self._flat, self.page_size, share)
        self._accept(share, errors)

    def _accept(self, share: Sequence[int], errors: Mapping[int, int]) -> None:
        if isinstance(share, range):
            self.dlens[share.start : share.stop : share.step] = self.page_size
        elif len(share) > _FEW:
            self.dlens[share] = self.page_size
        else:
            dlens, size = self._dlens, self.page_size
            for index in share:
                dlens[index] = size
        if errors or self._unfit:
            self._accept_errors(share, errors)

    def accept_packed(
        self, share: Sequence[int], memory: memoryview, results: Results, failed: int, total: int
    ) -> None:
        """Copy a share's pages from `memory` to where they go; failed ones stay as they were."""
        del total  # pages are all of one size
        size, positions = self.page_size, range(len(share))
        if failed:
            positions = [i for i in positions if results[i] >= 0]  # type: ignore[assignment]
        if self._rows:
            for i in positions:
                self._rows[share[i]][:] = memory[i * size : (i + 1) * size]
        elif len(share) <= _FEW:
            flat = self._flat
            for i in positions:
                at = share[i] * size
                flat[at : at + size] = memory[i * size : (i + 1) * size]
        else:
            pages = np.frombuffer(memory, np.uint8, len(share) * size).reshape(-1, size)
            if failed:
                self._matrix[[share[i] for i in positions]] = pages[positions]
            elif isinstance(share, range):
                self._matrix[share.start : share.stop : share.step] = pages
            else:
                self._matrix[share] = pages
        self.accept_placed(share, results, failed)

    def accept_placed(self, share: Sequence[int], results: Results, failed: int) -> None:
        """Take a share whose pages are where they go."""
        errors = {}
        if failed:
            errors = {share[int(i)]: int(results[i]) for i in np.flatnonzero(results < 0)}
        self._accept(share, errors)


def _sources(srcs: Sequence[Buffer] | tuple[Buffer, Lengths]) -> list[Flat]:
    """Make flat buffers of a batch's compressed sources."""
    if isinstance(srcs, tuple) and len(srcs) == 2 and getattr(srcs[0], "ndim", 0) == 2:
        dsts = np.asarray(srcs[0])
        try:
            slens = np.asarray(srcs[1])
        except ValueError:
            raise BadBatch(
                "(dsts, slens): slens must be n integers, not of several shapes"
            ) from None
        if dsts.dtype != np.uint8 or slens.dtype.kind not in "iu" or slens.shape != dsts.shape[:1]:
            raise BadBatch(
                f"(dsts, slens) must be (n, capacity) uint8 and n integers, not {dsts.shape} {dsts.dtype} and {slens.shape} {slens.dtype}"
            )
        if len(slens) and (slens.min() < 0 or slens.max() > dsts.shape[1]):
            raise BadBatch(f"slens must lie in 0…{dsts.shape[1]}, the capacity of dsts")
        rows = [row[:length] for row, length in zip(dsts, slens.tolist(), strict=True)]
        return buffers.as_inputs(rows, "srcs")
    if not buffers.is_sequence(srcs):
        raise BadBatch(
            f"srcs must be a list of buffers or (dsts, slens), not {type(srcs).__name__}"
        )
    return buffers.as_inputs(srcs, "srcs")


def _rows(
    pages: Sequence[Buffer], count: int, page_size: int | None
) -> tuple[list[memoryview], int]:
    """View the destinations given one by one; also their common size."""
    if len(pages) != count:
        raise BadBatch(f"there are {count} sources and {len(pages)} pages")
    rows = [
        buffers.as_view(page, f"pages[{index}]", writable=True) for index, page in enumerate(pages)
    ]
    size = len(rows[0]) if page_size is None else page_size
    for index, row in enumerate(rows):
        if len(row) != size:
            raise BadBatch(f"pages[{index}] has {len(row)} bytes, not {size}")
    return rows, size
