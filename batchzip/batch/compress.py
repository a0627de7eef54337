"""CompressBatch: pages to compress, and where to."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip import buffers
from batchzip.batch.descriptor import NOWHERE, Batch
from batchzip.codecs.context import COMPRESS
from batchzip.errors import BadBatch, PageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arena import Arena
    from batchzip.batch.descriptor import Placement, Results
    from batchzip.buffers import Buffer, Flat
    from batchzip.codecs.context import Context

_CACHE_LINE = 64


class CompressBatch(Batch):
    """Pages to compress, and where to.

    `pages`     (n, page_size) uint8 array, a sequence of n buffers of one page each, or, with
                `page_size=`, one flat buffer. Read only while a request runs; never copied here.
    `dsts`      (n, capacity) uint8, contiguous and writable; made where none is given.
    `capacity`  bytes of room per page, default 2 × page_size, as in zswap.

    A descriptor can be used again: `refill(pages)` keeps its destinations.

    Afterwards `dlens` (n,) uint32 has the bytes produced, 0 where it failed, and `errors` (n,)
    int32 has 0 or a negative errno: -ENOSPC the output does not fit, -EINVAL the page has another
    size, -EIO the codec failed, -ENOMEM. What `dsts` holds beyond a page's length is undefined.
    """

    __slots__ = ("_dsts", "_dsts_are_ours", "_flat", "_full", "_matrix", "_pitch", "dsts")

    operation = COMPRESS

    def __init__(
        self,
        pages: Buffer | Sequence[Buffer],
        *,
        dsts: Buffer | None = None,
        capacity: int | None = None,
        page_size: int | None = None,
    ) -> None:
        self._matrix: buffers.Bytes | None = None
        self._flat = memoryview(b"")
        self._inputs = []
        if buffers.is_sequence(pages):
            self._inputs = inputs = buffers.as_inputs(pages, "pages")
            page_size = len(inputs[0]) if page_size is None else page_size
            super().__init__(len(inputs), page_size)
            for index, page in enumerate(inputs):
                if len(page) != page_size:
                    self._unfit[index] = -errno.EINVAL
                    inputs[index] = bytes(page_size)
        else:
            self._matrix = buffers.as_matrix(pages, "pages", rows=None, width=page_size)
            self._flat = buffers.flat(self._matrix)
            super().__init__(*self._matrix.shape)
        self._set_destinations(dsts, capacity)

    def _set_destinations(self, dsts: Buffer | None, capacity: int | None) -> None:
        count = len(self)
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise BadBatch(f"capacity must be an integer of at least one byte, not {capacity!r}")
        if dsts is None:
            self.capacity = 2 * self.page_size if capacity is None else capacity
            # Rows a power of two apart would all start in the same set of the cache.
            self._pitch = self.capacity + _CACHE_LINE
            rows = np.empty((count, self._pitch), np.uint8)
            self.dsts = rows[:, : self.capacity]
        else:
            rows = buffers.as_matrix(dsts, "dsts", rows=count, width=capacity, writable=True)
            self.capacity = self._pitch = rows.shape[1]
            self.dsts = rows
        self._dsts = buffers.flat(rows)
        self._dsts_are_ours = dsts is None
        self._refuse_overlap()
        self._full = (self.dsts, self.dlens, self.errors)

    def _refuse_overlap(self) -> None:
        if not self._dsts_are_ours:
            sources = self._inputs if self._matrix is None else [self._flat]
            buffers.refuse_overlap([self._dsts], sources, "dsts", "pages")

    def refill(self, pages: buffers.Bytes) -> None:
        """Take other pages, an (n, page_size) array with n up to what the descriptor was made for.

        Destinations, lengths and errors are those it has, cut to n: views of earlier results
        change with the next run. Saves making and first touching them for each batch.
        """
        matrix = buffers.as_matrix(pages, "pages", rows=None, width=self.page_size)
        dsts, dlens, errors = self._full
        count = len(matrix)
        if count > len(dlens):
            raise BadBatch(f"this descriptor was made for {len(dlens)} pages, not {count}")
        self._matrix, self._flat = matrix, buffers.flat(matrix)
        self._refuse_overlap()
        self._unfit = {}
        self._count = count
        self.dsts, self.dlens, self.errors = dsts[:count], dlens[:count], errors[:count]

    def forget_pages(self) -> None:
        """Let go of the pages: until the next `refill` the descriptor keeps nothing of them."""
        self._matrix, self._flat, self._inputs = None, memoryview(b""), []

    def locate(self, arena: Arena) -> Placement:
        """Find pages and destinations in `arena`."""
        pages = -1 if self._matrix is None else arena.locate(self._matrix)
        dsts = -1 if self._dsts_are_ours else arena.locate(self.dsts)
        if pages < 0 and dsts < 0:
            return NOWHERE
        return (
            *((0, 0) if pages < 0 else (pages, self.page_size)),
            *((0, 0) if dsts < 0 else (dsts, self._pitch)),
        )

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Pages of `share`: views of the caller's memory."""
        if self._matrix is None or not isinstance(share, range):
            return super().inputs(share)
        size = self.page_size
        flat = self._flat
        return [
            flat[at : at + size]
            for at in range(share.start * size, share.stop * size, share.step * size)
        ]

    def matrix(self, share: range) -> buffers.Bytes | None:
        """Pages of `share` as one strided array, where the caller gave them as one."""
        if self._matrix is None:
            return None
        return self._matrix[share.start : share.stop : share.step]

    def run_share(self, context: Context, share: Sequence[int]) -> None:
        """Compress a share straight from the caller's memory."""
        assert isinstance(share, range)  # noqa: S101 - slices of order()
        errors = context.compress_into(
            self.inputs(share), self._dsts, self._pitch, self._dlens, share, self.capacity
        )
        if errors or self._unfit:
            self._accept_errors(share, errors)

    def outputs(self) -> list[memoryview]:
        """View the compressed bytes of every page, in `dsts`; empty where it failed."""
        dsts, pitch = self._dsts, self._pitch
        return [
            dsts[at : at + length]
            for at, length in zip(
                range(0, self._count * pitch, pitch), self.dlens.tolist(), strict=True
            )
        ]

    def accept_packed(
        self, share: Sequence[int], memory: memoryview, results: Results, failed: int
    ) -> None:
        """Copy a share's outputs from `memory` to their destinations."""
        assert isinstance(share, range)  # noqa: S101 - slices of order()
        dsts = self._dsts
        source = 0
        at, leap = share.start * self._pitch, share.step * self._pitch
        for length in results.tolist():
            if length > 0:
                end = source + length
                dsts[at : at + length] = memory[source:end]
                source = end
            at += leap
        self.accept_placed(share, results, failed)

    def accept_placed(self, share: Sequence[int], results: Results, failed: int) -> None:
        """Take the lengths of a share whose outputs are in their destinations."""
        assert isinstance(share, range)  # noqa: S101 - slices of order()
        self.dlens[share.start : share.stop : share.step] = results
        if failed or self._unfit:
            self._accept_failed(share, results)

    def output(self, index: int) -> memoryview:
        """View the compressed bytes of one page, in `dsts`; raise PageError if it failed."""
        code = int(self.errors[index])
        if code:
            raise PageError(index, code)
        index = range(len(self))[index]
        return self._dsts[index * self._pitch : index * self._pitch + self._dlens[index]]
