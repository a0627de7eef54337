"""FolioWriter: a folio's pages into the pool or the backing file, as entries that nobody sees yet.

Kernel counterpart: zswap_store_pages with the batched zswap_compress.

    pages ─▶ same-filled? ─▶ entry with the word
                └─▶ batches of at most `max_batch` ─▶ engine ─▶ pool ─▶ entry with handle, checksum
                                                             └▶ file ─▶ entry with position, checksum

Descriptors are used again, as the kernel's per-CPU buffers are: their destinations are touched
once, and stay in the cache from batch to batch. Each thread that stores takes one from a free list.

What is put in the pool is checksummed from the same bytes that are copied there: the destination
buffer, or a private copy of a raw page. A page that its owner changes meanwhile is stored as some
version of it, never as an entry that cannot be read.

If anything goes wrong, every object made so far is freed before the exception leaves; what an
interrupt makes it miss, the ledger finds.

A single page, as caches have them, goes without a descriptor, and in its thread.

A writer is of one engine; a store that is given another makes another writer.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest

from batchzip.batch import CompressBatch
from batchzip.errors import PageError, PoolFull, StoreRejected
from batchzip.store.codec_table import NO_CODEC
from batchzip.store.page_table import BACKED, COMPRESSED, ENTRY, RAW, SAME_FILLED
from batchzip.store.same_filled import WORD_BYTES, check_words, find_same_filled

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.buffers import Bytes, Flat
    from batchzip.engine import Engine
    from batchzip.store.ledger import Objects

_CACHE_LINE = 64
"""Keeps rows from starting a power of two apart, where all would fall in the same set of the cache."""

CHECKSUM_MASK = 0xFFFFFFFF
"""The low half of xxh3_64 is kept: four bytes a page, and one damage in 2³² goes unnoticed."""


class FolioWriter:
    """Compresses folios with one engine, whose codec has `number`, and keeps them. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        number: int,
        objects: Objects,
        *,
        max_batch: int,
        keep_incompressible: bool,
    ) -> None:
        self.engine = engine
        self.number = number
        self._objects = objects
        self._max_batch = max_batch
        self._keep_incompressible = keep_incompressible
        self._descriptors: list[tuple[CompressBatch, Bytes]] = []

    def write(self, pages: Bytes, *, to_file: bool = False) -> tuple[np.ndarray, int]:
        """Keep `pages` (n, page_size), all or none; their n entries, and bytes in the pool.

        Raises StoreRejected; its `errors` has n codes where compression failed. What goes `to_file`
        is not rejected for that: a page that cannot be compressed is kept as it is.
        """
        if len(pages) == 1 and not to_file and (one := self._write_one(pages)):
            return one
        filled, words = find_same_filled(pages)
        if not len(filled) and len(pages) <= self._max_batch:  # the usual folio, without a copy
            return self._write_batch(pages, np.arange(len(pages)), to_file=to_file)
        entries = np.zeros(len(pages), ENTRY)
        if len(filled):
            entries["value"][filled] = words
            entries["kind"][filled] = SAME_FILLED
            entries["checksum"][filled] = check_words(words)
            if len(filled) == len(pages):
                return entries, 0
            others = np.flatnonzero(entries["kind"] != SAME_FILLED)
        else:
            others = np.arange(len(pages))
        done = kept = 0
        try:
            for start in range(0, len(others), self._max_batch):
                rows = others[start : start + self._max_batch]
                entries[rows], length = self._write_batch(pages, rows, to_file=to_file)
                done += len(rows)
                kept += length
        except BaseException:
            self._objects.free(entries[others[:done]])
            raise
        return entries, kept

    def _write_one(self, pages: Bytes) -> tuple[np.ndarray, int] | None:
        """Keep one page without a batch, in a third of the time; None where it is not that simple.

        It may be same-filled, or not be had smaller, or find no room: `write` finds out, and says so.
        """
        page = pages.tobytes()  # a version that nobody changes
        if page[:WORD_BYTES] == page[-WORD_BYTES:]:
            return None
        try:
            output = self.engine.compress_page(page)
            if len(output) >= len(page):
                return None
            handle = self._objects.pool.put(output)
        except (PageError, PoolFull):
            return None
        rest = checksum(output, self.number) | COMPRESSED << 32 | self.number << 40
        return np.array([handle, rest], np.uint64).view(ENTRY), len(output)

    def _write_batch(
        self, pages: Bytes, rows: npt.NDArray[np.intp], *, to_file: bool
    ) -> tuple[np.ndarray, int]:
        batch, room = descriptor = self._take_descriptor()
        try:
            # Rows that follow one another are compressed where they are, others are gathered.
            if rows[-1] - rows[0] == len(rows) - 1:
                taken = pages[rows[0] : rows[-1] + 1]
            else:
                taken = room[: len(rows)]
                np.take(
                    pages, rows, axis=0, out=taken, mode="clip"
                )  # unlike "raise", without a copy
            batch.refill(taken)
            self.engine.compress(batch)
            outputs: list[Flat] = list(batch.outputs())
            entries = np.zeros(len(taken), ENTRY)
            entries["kind"] = COMPRESSED
            entries["codec"] = self.number
            if batch.has_errors or batch.dlens.max() >= batch.page_size:
                raw = self._keep_raw(batch, rows, len(pages), to_file=to_file)
                entries["kind"][raw] = RAW
                entries["codec"][raw] = NO_CODEC
                for row in raw.tolist():
                    outputs[row] = taken[row].tobytes()
            entries["checksum"] = [xxh3_64_intdigest(o) & CHECKSUM_MASK for o in outputs]
            entries["checksum"] ^= entries["codec"]
            if to_file:
                entries["kind"] = BACKED
                entries["value"] = self._put_in_file(outputs)
                return entries, 0
            entries["value"] = self._put_in_pool(outputs)
            return entries, sum(map(len, outputs))
        finally:
            batch.forget_pages()
            self._descriptors.append(descriptor)

    def _put_in_pool(self, outputs: list[Flat]) -> npt.NDArray[np.uint64]:
        try:
            return self._objects.pool.put_many(outputs)
        except PoolFull as error:
            reason = "pool_limit_hit" if error.at_limit else "reject_alloc_fail"
            raise StoreRejected(reason, f"the folio does not fit the pool: {error}") from None

    def _put_in_file(self, outputs: list[Flat]) -> npt.NDArray[np.uint64]:
        if self._objects.backing is None:
            raise StoreRejected("reject_reclaim_fail", "the store has no backing file")
        try:
            return self._objects.backing.write(outputs).keep()
        except OSError as error:
            raise StoreRejected("reject_reclaim_fail", f"the backing file: {error}") from error

    def _keep_raw(
        self, batch: CompressBatch, rows: npt.NDArray[np.intp], folio_pages: int, *, to_file: bool
    ) -> npt.NDArray[np.intp]:
        """Find the pages to keep raw; raises StoreRejected for those that cannot be kept."""
        errors = batch.errors.copy()
        poor = (batch.dlens >= batch.page_size) | (errors == -errno.ENOSPC)
        if to_file:
            return np.flatnonzero(poor | (errors != 0))
        errors[poor] = 0 if self._keep_incompressible else -errno.ENOSPC
        if errors.any():
            raise _rejected(errors, rows, folio_pages)
        return np.flatnonzero(poor)

    def _take_descriptor(self) -> tuple[CompressBatch, Bytes]:
        """Take a descriptor, and room for pages that are gathered."""
        with contextlib.suppress(IndexError):
            return self._descriptors.pop()
        # Both in the arena, so that workers have them where they are; not where outputs are verified,
        # as no worker may change them afterwards. An output longer than a page is of no use: the page
        # is kept raw.
        size = self.engine.page_size
        verifies = self.engine.codec.plan().verify
        make = _private_array if verifies else self.engine.arena
        try:
            room = make(self._max_batch, size)
            dsts = make(self._max_batch, size + _CACHE_LINE)
        except OSError as error:
            raise StoreRejected("reject_alloc_fail", f"no memory to compress to: {error}") from None
        return CompressBatch(room, dsts=dsts), room


def _private_array(rows: int, width: int) -> Bytes:
    try:
        return np.empty((rows, width), np.uint8)
    except MemoryError as error:
        raise OSError(errno.ENOMEM, str(error)) from None


def checksum(stored: Flat, codec: int) -> int:
    """Checksum of an entry's stored bytes and of its codec's number: neither passes with another's."""
    return (xxh3_64_intdigest(stored) ^ codec) & CHECKSUM_MASK


def _rejected(
    batch_errors: npt.NDArray[np.int32], rows: npt.NDArray[np.intp], folio_pages: int
) -> StoreRejected:
    errors = np.zeros(folio_pages, np.int32)
    errors[rows] = batch_errors
    failed = np.flatnonzero(errors)
    poor = (errors[failed] == -errno.ENOSPC).all()
    return StoreRejected(
        "reject_compress_poor" if poor else "reject_compress_fail",
        f"{len(failed)} of {folio_pages} pages cannot be compressed, page {failed[0]} of the folio first",
        errors,
    )
