"""DecompressBatch: compressed sources, and the pages to restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from batchzip.arguments import buffers
from batchzip.batch.descriptor import Batch
from batchzip.errors import BadBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from batchzip.arguments.buffers import Buffer, Flat

    Lengths: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]

_LONGEST = (1 << 32) - 1
"""Largest length of 32 bits, in bytes. No page is as long."""

_PAGE_SIZE = 4096
"""Default page size in bytes, that of most machines."""


class DecompressBatch(Batch):
    """Compressed sources, and the pages to restore.

    `srcs`   sequence of n buffers, or `(dsts, slens)`: an array (n, capacity) and n lengths.
    `pages`  (n, page_size) uint8, one flat buffer, or a sequence of n buffers of one page each.
    They
             must be writable and contiguous, and must not overlap. Default: a new array.

    Results: `dlens` is page_size for each restored page, and 0 for the others. `errors` is as in
    CompressBatch, or -EBADMSG if the source cannot be decoded to exactly one page. A page that
    failed keeps its content if the caller gave `pages`, and is undefined otherwise. `pages` is an
    (n, page_size) array, or the given sequence.

    Examples:
        >>> import numpy as np
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine:
        ...     batch = batchzip.CompressBatch([b"a" * 4096, b"b" * 4096])
        ...     engine.compress(batch)
        ...     pages = np.empty((2, 4096), np.uint8)
        ...     engine.decompress(batchzip.DecompressBatch((batch.dsts, batch.dlens), pages))
        >>> bytes(pages[1, :3])
        b'bbb'
    """

    __slots__ = ("_matrix", "_sources", "pages", "slens")

    operation = 1

    def __init__(
        self,
        srcs: Sequence[Buffer] | tuple[Buffer, Lengths],
        pages: Buffer | Sequence[Buffer] | None = None,
        *,
        page_size: int | None = None,
    ) -> None:
        if page_size is not None:
            page_size = buffers.check_page_size(page_size)
        self._sources: list[Flat] | buffers.Bytes
        if isinstance(srcs, tuple) and len(srcs) == 2 and getattr(srcs[0], "ndim", 0) == 2:
            self._sources, self.slens = _matrix_sources(*srcs)
        elif buffers.is_sequence(srcs):
            self._sources = buffers.as_inputs(srcs, "srcs")
            self.slens = np.empty(len(self._sources), np.uint32)
        else:
            raise BadBatch(
                f"srcs must be a list of buffers or (dsts, slens), not {type(srcs).__name__}"
            )
        count = len(self._sources)
        self.pages: buffers.Bytes
        self._matrix: buffers.Bytes | None = None
        """The pages as an array; None if they are separate buffers."""
        if buffers.is_sequence(pages):
            self.pages = pages  # type: ignore[assignment] # a caller that passes a list gets it
            rows, page_size = _rows(pages, count, page_size)
            buffers.refuse_overlap(rows, self._source_buffers(), "pages", "srcs")
            super().__init__(count, page_size)
            self.pointers.set_output_list(rows)
        else:
            self._set_matrix(pages, count, page_size)  # type: ignore[arg-type] # no sequence
        if isinstance(self._sources, list):
            self.pointers.set_input_list(self._sources, self.slens)
        else:
            self.pointers.set_inputs(self._sources, self._sources.shape[1], self.slens)
        self.slens.flags.writeable = False  # the core relies on it

    def _set_matrix(self, pages: Buffer | None, count: int, page_size: int | None) -> None:
        if pages is None:
            page_size = buffers.check_page_size(_PAGE_SIZE if page_size is None else page_size)
            matrix = np.empty((count, page_size), np.uint8)
        else:
            if page_size is None and getattr(pages, "ndim", 1) == 1:
                page_size = _PAGE_SIZE
            matrix = buffers.as_matrix(pages, "pages", rows=count, width=page_size, writable=True)
            buffers.refuse_overlap([buffers.flat(matrix)], self._source_buffers(), "pages", "srcs")
        self.pages = self._matrix = matrix
        super().__init__(*matrix.shape)
        self.pointers.set_outputs(matrix, self.page_size, self.page_size, may_spoil=pages is None)

    def _source_buffers(self) -> list[Flat]:
        sources = self._sources
        return sources if isinstance(sources, list) else [buffers.flat(sources)]

    def order(self) -> Sequence[int]:
        """Return the indices with the largest sources first, because these take longest."""
        order: list[int] = np.argsort(-self.slens.astype(np.int64), kind="stable").tolist()
        return order

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return the sources of `share`. One that is longer than two pages is replaced by b""."""
        limit = 2 * self.page_size
        lengths = [int(self.slens[index]) for index in share]
        if isinstance(self._sources, list):
            given: list[Flat] = [self._sources[index] for index in share]
        else:
            given = [buffers.flat(self._sources[index]) for index in share]
        return [
            source[:length] if length <= limit else b""
            for source, length in zip(given, lengths, strict=True)
        ]


def _matrix_sources(
    dsts: Buffer, lengths: Lengths
) -> tuple[buffers.Bytes | list[Flat], npt.NDArray[np.uint32]]:
    """Return sources in the rows of an array, and their lengths, after checking them."""
    sources = np.asarray(dsts)
    try:
        slens = np.asarray(lengths)
    except ValueError:
        raise BadBatch("(dsts, slens): slens must be n integers, not nested lists") from None
    if (
        sources.dtype != np.uint8
        or slens.dtype.kind not in "iu"
        or slens.shape != sources.shape[:1]
    ):
        raise BadBatch(
            "(dsts, slens) must be (n, capacity) uint8 and n integers, not "
            f"{sources.shape} {sources.dtype} and {slens.shape} {slens.dtype}"
        )
    if not len(slens):
        raise BadBatch("srcs is empty: at least one page is needed")
    if slens.min() < 0 or slens.max() > sources.shape[1]:
        raise BadBatch(f"slens must be from 0 to {sources.shape[1]}, the capacity of dsts")
    slens = np.minimum(slens.astype(np.uint64), _LONGEST).astype(np.uint32)
    if sources.flags.c_contiguous:
        return sources, slens
    rows = [row[:length] for row, length in zip(sources, slens.tolist(), strict=True)]
    return buffers.as_inputs(rows, "srcs"), slens


def _rows(
    pages: Sequence[Buffer], count: int, page_size: int | None
) -> tuple[list[memoryview], int]:
    """Return views of separate destinations, and their common size."""
    if len(pages) != count:
        raise BadBatch(f"{count} sources need as many pages, not {len(pages)}")
    rows = [
        buffers.as_view(page, f"pages[{index}]", writable=True) for index, page in enumerate(pages)
    ]
    size = len(rows[0]) if page_size is None else page_size
    for index, row in enumerate(rows):
        if len(row) != size:
            raise BadBatch(f"pages[{index}] must have {size} bytes, not {len(row)}")
    return rows, size
