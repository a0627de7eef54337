"""Restorer: entries and their stored bytes back to pages.

Kernel counterpart: zswap_decompress. It works on copies of the stored bytes and outside every lock, so
that what was checked is what is decompressed, and nobody waits for a codec.

The checksum comes first. Codecs do not notice damage: of 20,000 single-bit flips, lz4 decoded 80.6 %
and zstd 70.7 % to wrong data of the right length.

A batch goes to the engine as far as its codec made it; pages of other codecs, which an earlier engine
left, are restored one by one here. Their engine may be closed by now.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import DecompressBatch
from batchzip.errors import ClosedError, PageError
from batchzip.store.codec_table import NO_CODEC, CodecTable
from batchzip.store.folio import checksum
from batchzip.store.page_table import SAME_FILLED

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.buffers import Bytes
    from batchzip.store.folio import FolioWriter


class Restorer:
    """Restores batches of pages. Thread-safe."""

    def __init__(self, codecs: CodecTable) -> None:
        self._codecs = codecs

    def pages(
        self, entries: np.ndarray, stored: list[bytes], pages: Bytes, writer: FolioWriter
    ) -> None:
        """Restore n entries to `pages` (n, page_size), those of the writer's codec as one batch.

        `stored` has the bytes of those that are not same-filled, in order. Raises PageError with
        the row of the first that failed: -EBADMSG where it is damaged, or the engine's code.
        """
        kinds = entries["kind"]
        filled = np.flatnonzero(kinds == SAME_FILLED)
        pages.view(np.uint64)[filled] = entries["value"][filled, None]
        held = np.flatnonzero(kinds != SAME_FILLED)
        rows: list[int] = []
        sources: list[bytes] = []
        checks = entries["checksum"][held].tolist()
        numbers = entries["codec"][held].tolist()
        for row, data, check, number in zip(held.tolist(), stored, checks, numbers, strict=True):
            if number != writer.number:
                pages[row] = np.frombuffer(self.one(row, data, check, number), np.uint8)
            elif checksum(data, number) != check:
                raise PageError(row, -errno.EBADMSG)
            else:
                rows.append(row)
                sources.append(data)
        if sources:
            self._together(sources, np.array(rows), pages, writer)

    def one(self, row: int, data: bytes, check: int, number: int) -> bytes:
        """Restore one entry that is not same-filled, from its stored bytes. Raises PageError, with `row`."""
        if checksum(data, number) != check:
            raise PageError(row, -errno.EBADMSG)
        return self._alone(number, data, row)

    def _alone(self, number: int, data: bytes, row: int) -> bytes:
        if number == NO_CODEC:
            return data
        try:
            return self._codecs.decompress(number, data)
        except PageError as error:
            raise PageError(row, error.errno) from None

    def _together(
        self,
        sources: list[bytes],
        rows: npt.NDArray[np.intp],
        pages: Bytes,
        writer: FolioWriter,
    ) -> None:
        # Where others lie between the compressed ones, a copy of a page is the price of a batch.
        straight = len(rows) == len(pages)
        target = pages if straight else np.empty((len(rows), pages.shape[1]), np.uint8)
        batch = DecompressBatch(sources, target)
        try:
            writer.engine.decompress(batch)
        except ClosedError:
            for row, data in zip(rows.tolist(), sources, strict=True):
                pages[row] = np.frombuffer(self._alone(writer.number, data, row), np.uint8)
            return
        if batch.errors.any():
            first = np.flatnonzero(batch.errors)[0]
            raise PageError(int(rows[first]), int(batch.errors[first]))
        if not straight:
            pages[rows] = target
