"""CompressBatch: pages to compress, and where to."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip import buffers
from batchzip.batch.descriptor import NOWHERE, Batch
from batchzip.batch.outputs import Packed, Rows
from batchzip.codecs.context import COMPRESS
from batchzip.errors import BadBatch, PageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arena import Arena
    from batchzip.batch.descriptor import Placement, Results
    from batchzip.buffers import Buffer, Flat
    from batchzip.codecs.context import Context


class CompressBatch(Batch):
    """Pages to compress, and where to.

    `pages`     (n, page_size) uint8 array, a sequence of n buffers of one page each, or, with
                `page_size=`, one flat buffer. Read only while a request runs.
    `dsts`      (n, capacity) uint8, contiguous and writable. Where none is given outputs are packed,
                and `dsts` is made of them when it is asked for; from then on it is filled.
    `capacity`  bytes of room per page, default 2 × page_size, as in zswap.

    A descriptor can be used again: `refill(pages)` keeps its destinations.

    Afterwards `dlens` (n,) uint32 has the bytes produced, 0 where it failed, and `errors` (n,)
    int32 has 0 or a negative errno: -ENOSPC the output does not fit, -EINVAL the page has another
    size, -EIO the codec failed, -ENOMEM. What `dsts` holds beyond a page's length is undefined.
    """

    __slots__ = ("_dsts_are_ours", "_flat", "_full", "_matrix", "_outputs")

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
        self._outputs: Rows | Packed
        if dsts is None:
            self.capacity = 2 * self.page_size if capacity is None else capacity
            packed = Packed(count, self.capacity)
            # A page of another size has an output where it is packed that must not be seen.
            self._outputs = packed.as_rows(count, [0] * count) if self._unfit else packed
        else:
            rows = buffers.as_matrix(dsts, "dsts", rows=count, width=capacity, writable=True)
            self.capacity = rows.shape[1]
            self._outputs = Rows(rows, self.capacity)
        self._dsts_are_ours = dsts is None
        self._refuse_overlap()
        self._full = (self.dlens, self.errors)

    def _refuse_overlap(self) -> None:
        if not self._dsts_are_ours:
            sources = self._inputs if self._matrix is None else [self._flat]
            buffers.refuse_overlap([self._outputs.flat], sources, "dsts", "pages")

    @property
    def dsts(self) -> buffers.Bytes:
        """Compressed pages, (n, capacity) uint8: page i's are the first `dlens[i]` bytes of row i."""
        outputs = self._outputs
        if isinstance(outputs, Packed):
            self._outputs = outputs = outputs.as_rows(len(self._full[0]), self.dlens.tolist())
        return outputs.array[: len(self), : self.capacity]

    def reset(self) -> None:
        """Forget the results of an earlier run."""
        super().reset()
        self._outputs.reset()

    def refill(self, pages: buffers.Bytes) -> None:
        """Take other pages, an (n, page_size) array with n up to what the descriptor was made for.

        Destinations, lengths and errors are those it has, cut to n: views of earlier results
        change with the next run. Saves making and first touching them for each batch.
        """
        matrix = buffers.as_matrix(pages, "pages", rows=None, width=self.page_size)
        dlens, errors = self._full
        count = len(matrix)
        if count > len(dlens):
            raise BadBatch(f"this descriptor was made for {len(dlens)} pages, not {count}")
        self._matrix, self._flat = matrix, buffers.flat(matrix)
        self._refuse_overlap()
        self._unfit = {}
        self._count = count
        self.dlens, self.errors = dlens[:count], errors[:count]

    def forget_pages(self) -> None:
        """Let go of the pages: until the next `refill` the descriptor keeps nothing of them."""
        self._matrix, self._flat, self._inputs = None, memoryview(b""), []

    def locate(self, arena: Arena) -> Placement:
        """Find pages and destinations in `arena`."""
        pages = -1 if self._matrix is None else arena.locate(self._matrix)
        outputs = self._outputs
        dsts = -1 if isinstance(outputs, Packed) else arena.locate(outputs.array)
        if pages < 0 and dsts < 0:
            return NOWHERE
        return (
            *((0, 0) if pages < 0 else (pages, self.page_size)),
            *((0, 0) if isinstance(outputs, Packed) or dsts < 0 else (dsts, outputs.pitch)),
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
        """Compress a share: copies of its pages, which nobody changes meanwhile."""
        assert isinstance(share, range)  # noqa: S101 - slices of order()
        matrix = self._matrix
        if matrix is None:
            pages = [_constant(page) for page in self.inputs(share)]
            errors = self._outputs.compress(context, pages, self._dlens, share)
            if errors or self._unfit:
                self._accept_errors(share, errors)
            return
        snapshot = context.snapshot
        if snapshot.array is None:
            snapshot.array = np.frombuffer(snapshot.memory, np.uint8).reshape(-1, self.page_size)
        room: buffers.Bytes = snapshot.array  # type: ignore[assignment]
        for start in range(0, len(share), len(room)):
            part = share[start : start + len(room)]
            room[: len(part)] = matrix[part.start : part.stop : part.step]
            errors = self._outputs.compress(context, snapshot.pages[: len(part)], self._dlens, part)
            if errors:
                self._accept_errors(part, errors)

    def accept_packed(
        self, share: Sequence[int], memory: memoryview, results: Results, failed: int, total: int
    ) -> None:
        """Copy a share's outputs from `memory`."""
        assert isinstance(share, range)  # noqa: S101 - slices of order()
        self._outputs.take(share, memory, results.tolist(), total)
        self.accept_placed(share, results, failed)

    def accept_placed(self, share: Sequence[int], results: Results, failed: int) -> None:
        """Take the lengths of a share whose outputs are in their destinations."""
        assert isinstance(share, range)  # noqa: S101 - slices of order()
        self.dlens[share.start : share.stop : share.step] = results
        if failed or self._unfit:
            self._accept_failed(share, results)

    def outputs(self) -> list[memoryview]:
        """View the compressed bytes of every page; empty where it failed."""
        return self._outputs.views(self.dlens.tolist())

    def output(self, index: int) -> memoryview:
        """View the compressed bytes of one page; raise PageError if it failed."""
        code = int(self.errors[index])
        if code:
            raise PageError(index, code)
        return self.outputs()[index]


def _constant(page: Flat) -> Flat:
    """Give the page itself if nobody can change it, else a copy."""
    return page if isinstance(page, bytes) or isinstance(page.obj, bytes) else bytes(page)
