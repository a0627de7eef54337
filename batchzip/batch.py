"""The batch descriptors: pages, destination buffers, lengths and errors handed over in one go.

Kernel counterparts: `struct swap_batch_comp_data` and `struct swap_batch_decomp_data`.
What differs: the capacity of a destination and the bytes produced in it are two things here
(`capacity`, `dlens`), never one field that means the one before and the other after.

A descriptor owns no memory but what it allocated itself, and is used by one request at a time.
A *share* is a range of the batch's indices. A backend does a share in the calling thread with
`run_share(context, share)`, or has `inputs(share)` done elsewhere and takes the outputs with
`accept(share, outputs, errors)`. Shares of one batch may be done in several threads at once, as
they touch different elements.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from batchzip import buffers
from batchzip.codecs.context import COMPRESS, DECOMPRESS
from batchzip.errors import BadBatch, PageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from batchzip.buffers import Buffer, Flat
    from batchzip.codecs.context import Context

    Lengths: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]

_CACHE_LINE = 64

_PAGE_SIZE = 4096
"""Bytes of a page where nothing says otherwise, as on most machines."""


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

    def inputs(self, share: range) -> Sequence[Flat]:
        """Pages of `share`: views of the caller's memory."""
        if self._matrix is None:
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

    def run_share(self, context: Context, share: range) -> None:
        """Compress a share straight from the caller's memory."""
        errors = context.compress_into(
            self.inputs(share), self._dsts, self._pitch, self._dlens, share, self.capacity
        )
        if errors or self._unfit:
            self._accept_errors(share, errors)

    def accept(self, share: range, outputs: Sequence[Flat], errors: Mapping[int, int]) -> None:
        """Copy a share's outputs to their destinations."""
        dsts, dlens = self._dsts, self._dlens
        at, hop = share.start * self._pitch, share.step * self._pitch
        for index, output in zip(share, outputs, strict=True):
            length = len(output)
            dsts[at : at + length] = output
            dlens[index] = length
            at += hop
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
        self, share: range, memory: memoryview, hop: int, results: Sequence[int]
    ) -> None:
        """Copy a share's outputs from `memory` to their destinations."""
        dsts, dlens = self._dsts, self._dlens
        source = 0
        errors: dict[int, int] = {}
        at, leap = share.start * self._pitch, share.step * self._pitch
        for index, length in zip(share, results, strict=True):
            if length > 0:
                dsts[at : at + length] = memory[source : source + length]
                dlens[index] = length
                source += hop or length
            else:
                errors[index] = length
                source += hop
            at += leap
        if errors or self._unfit:
            self._accept_errors(share, errors)

    def output(self, index: int) -> memoryview:
        """View the compressed bytes of one page, in `dsts`; raise PageError if it failed."""
        code = int(self.errors[index])
        if code:
            raise PageError(index, code)
        index = range(len(self))[index]
        return self._dsts[index * self._pitch : index * self._pitch + self._dlens[index]]


class DecompressBatch(Batch):
    """Compressed sources, and the pages to restore.

    `srcs`   sequence of n buffers, or `(dsts, slens)`: an array (n, capacity) and n lengths.
    `pages`  (n, page_size) uint8, one flat buffer, or a sequence of n buffers of one page each:
             writable, contiguous, overlapping nothing; made where none is given.

    Afterwards `dlens` is page_size for each page restored, else 0, and `errors` as in
    CompressBatch; -EBADMSG the source cannot be decoded to exactly a page. A page that failed
    is left as it was. `pages` is an (n, page_size) array, or the sequence that was given.
    """

    __slots__ = ("_flat", "_rows", "pages", "slens")

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
        if pages is None:
            page_size = buffers.check_page_size(_PAGE_SIZE if page_size is None else page_size)
            self.pages = np.empty((count, page_size), np.uint8)
            self._flat = buffers.flat(self.pages)
        elif buffers.is_sequence(pages):
            self.pages = pages  # type: ignore[assignment] # who passes a list knows what it is
            self._rows, page_size = _rows(pages, count, page_size)
            buffers.refuse_overlap(self._rows, sources, "pages", "srcs")
        else:
            if page_size is None and getattr(pages, "ndim", 1) == 1:
                page_size = _PAGE_SIZE
            self.pages = matrix = buffers.as_matrix(
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

    def run_share(self, context: Context, share: range) -> None:
        """Decompress a share straight into its pages."""
        rows = self._rows
        if rows:
            errors: dict[int, int] = {}
            length = memoryview(bytearray(4)).cast("I")
            for index in share:
                one = context.decompress_into(
                    [self._inputs[index]], rows[index], 0, length, range(1)
                )
                self._dlens[index] = length[0]
                errors.update((index, code) for code in one.values())
        else:
            errors = context.decompress_into(
                self.inputs(share), self._flat, self.page_size, self._dlens, share
            )
        if errors or self._unfit:
            self._accept_errors(share, errors)

    def accept(self, share: range, outputs: Sequence[Flat], errors: Mapping[int, int]) -> None:
        """Copy a share's pages to where they go."""
        size, rows, flat = self.page_size, self._rows, self._flat
        if rows:
            for index, output in zip(share, outputs, strict=True):
                rows[index][: len(output)] = output
        else:
            at, hop = share.start * size, share.step * size
            for output in outputs:
                flat[at : at + len(output)] = output
                at += hop
        self.dlens[share.start : share.stop : share.step] = size
        if errors or self._unfit:
            self._accept_errors(share, errors)

    def accept_packed(
        self, share: range, memory: memoryview, hop: int, results: Sequence[int]
    ) -> None:
        """Copy a share's pages from `memory` to where they go."""
        outputs: list[memoryview] = []
        errors: dict[int, int] = {}
        at = 0
        for index, length in zip(share, results, strict=True):
            if length < 0:
                errors[index] = length
                length = 0  # noqa: PLW2901 - nothing of it is there
            outputs.append(memory[at : at + length])
            at += hop or length
        self.accept(share, outputs, errors)


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
