"""CompressBatch: pages to compress, and their destinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments import buffers
from batchzip.arguments.checks import as_index, as_integer
from batchzip.batch.descriptor import Batch
from batchzip.errors import BadBatch, PageError
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Buffer, Flat

_MOST_CAPACITY = (1 << 32) - 1
"""Largest capacity in bytes: lengths have 32 bits."""

_CACHE_LINE = 64
"""Extra bytes per row of new destinations. Rows a power of two apart would all start in the same
set of the cache."""


class CompressBatch(Batch):
    """Pages to compress, and their destinations.

    `pages`     (n, page_size) uint8 array, a sequence of n buffers of one page each, or, with
                `page_size=`, one flat buffer. Read only while a request runs.
    `dsts`      (n, capacity) uint8, contiguous and writable. Without it, outputs are packed. The
                first use of the attribute `dsts` then creates the array, and later runs fill it.
    `capacity`  bytes of room per page, default 2 × page_size, as in zswap.

    A descriptor can be reused: `refill(pages)` keeps its destinations.

    Results: `dlens` (n,) uint32 has the bytes produced per page, 0 if the page failed. `errors`
    (n,) int32 has 0 or a negative errno per page: -ENOSPC if the output does not fit, -EINVAL if
    the page has another size, -EIO if the codec failed, or -ENOMEM. Bytes of `dsts` beyond a page's
    length are undefined.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine:
        ...     batch = batchzip.CompressBatch([bytes(4096), b"x" * 4096, b"too short"])
        ...     engine.compress(batch)
        >>> batch.errors.tolist()
        [0, 0, -22]
        >>> len(batch.output(1)) < 100
        True
    """

    __slots__ = ("_flat", "_full", "_offsets", "_pages", "_rows", "_run", "_views")

    operation = 0

    def __init__(
        self,
        pages: Buffer | Sequence[Buffer],
        *,
        dsts: Buffer | None = None,
        capacity: int | None = None,
        page_size: int | None = None,
    ) -> None:
        if page_size is not None:
            page_size = buffers.check_page_size(page_size)
        self._pages: buffers.Bytes | list[Flat]
        if buffers.is_sequence(pages):
            self._pages = inputs = buffers.as_inputs(pages, "pages")
            super().__init__(len(inputs), len(inputs[0]) if page_size is None else page_size)
            self.pointers.set_input_list(inputs, np.empty(len(inputs), np.uint32))
        else:
            self._pages = matrix = buffers.as_matrix(pages, "pages", rows=None, width=page_size)
            super().__init__(*matrix.shape)
            self.pointers.set_inputs(matrix, self.page_size)
        self._full = self.dlens, self.errors
        self._views: list[memoryview] | None = None
        self._run = 0
        """The number of the run to which the views belong."""
        self._set_destinations(dsts, capacity)

    def _set_destinations(self, dsts: Buffer | None, capacity: int | None) -> None:
        count = len(self)
        if capacity is not None:
            capacity = as_integer(capacity, "capacity", 1, _MOST_CAPACITY)
        self._rows: buffers.Bytes | None = None
        """Destinations (n, pitch): each output begins a row. None: packed outputs."""
        if dsts is not None:
            rows = buffers.as_matrix(dsts, "dsts", rows=count, width=capacity, writable=True)
            self._use_rows(rows, rows.shape[1])
            self._refuse_overlap()
            return
        self.capacity = 2 * self.page_size if capacity is None else capacity
        self._offsets = np.zeros(count, np.uint64)
        packed = np.empty(count * self.capacity, np.uint8)
        self._flat = buffers.flat(packed)
        self.pointers.set_packed_outputs(packed, self._offsets, self.capacity)

    def _use_rows(self, rows: buffers.Bytes, capacity: int) -> None:
        self._rows, self.capacity = rows, capacity
        self._offsets = np.arange(0, rows.size, rows.shape[1], dtype=np.uint64)
        self._flat = buffers.flat(rows)
        self.pointers.set_outputs(rows, rows.shape[1], capacity)

    def _refuse_overlap(self) -> None:
        if self._rows is not None:
            pages = self._pages
            sources = pages if isinstance(pages, list) else [buffers.flat(pages)]
            buffers.refuse_overlap([self._flat], sources, "dsts", "pages")

    @property
    def dsts(self) -> buffers.Bytes:
        """Compressed pages, (n, capacity) uint8. Page i is the first `dlens[i]` bytes of row i."""
        if self._rows is None:
            outputs = self.outputs()
            self._views = None
            room = np.empty((len(self._full[0]), self.capacity + _CACHE_LINE), np.uint8)
            self._use_rows(room, self.capacity)
            for row, output in zip(room, outputs, strict=False):
                row[: len(output)] = output
            return room[: len(self), : self.capacity]
        return self._rows[: len(self), : self.capacity]

    def refill(self, pages: buffers.Bytes) -> None:
        """Take other pages: an (n, page_size) array with n up to the original number of pages.

        Destinations, lengths and errors are reused, cut to n. So views of earlier results change
        with the next run. This saves the allocation and the page faults of a new descriptor.
        """
        most = len(self._full[0])
        count = self.pointers.refill(pages, most)
        if count < 0:
            pages = buffers.as_matrix(pages, "pages", rows=None, width=self.page_size)
            if len(pages) > most:
                raise BadBatch(f"this descriptor holds up to {most} pages, not {len(pages)}")
            if self._rows is not None:
                buffers.refuse_overlap([self._flat], [buffers.flat(pages)], "dsts", "pages")
            count = self.pointers.refill(pages, most)
        if count != self._count:
            self._count = count
            self.dlens, self.errors = self._full[0][:count], self._full[1][:count]
        self._pages = pages
        self._views = None

    def forget_pages(self) -> None:
        """Drop the reference to the pages. The next `refill` sets new ones."""
        self._pages = []
        self.pointers.drop_inputs()

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return views of the pages of `share`. A page of a wrong size fails: its view is empty."""
        pages, size = self._pages, self.page_size
        if isinstance(pages, list):
            sources = (pages[index] for index in share)
            return [source if len(source) == size else source[:0] for source in sources]
        flat = buffers.flat(pages)
        return [flat[index * size : (index + 1) * size] for index in share]

    def outputs(self) -> list[memoryview]:
        """Return views of the compressed bytes of every page; empty if the page failed."""
        if self._views is None or self._run != self.pointers.runs:
            flat = self._flat
            self._run = self.pointers.runs
            self._views = [
                flat[start : start + length]
                for start, length in zip(
                    self._offsets[: len(self)].tolist(), self.dlens.tolist(), strict=True
                )
            ]
        return self._views

    def output(self, index: int) -> memoryview:
        """Return a view of the compressed bytes of one page. Raise PageError if the page failed."""
        index = as_index(index, "a page's number")
        if not -len(self) <= index < len(self):
            raise IndexError(f"the batch has {len(self)} pages, and no page {shown(index)}")
        code = int(self.errors[index])
        if code:
            raise PageError(index, code)
        start = int(self._offsets[: len(self)][index])
        return self._flat[start : start + int(self.dlens[index])]
