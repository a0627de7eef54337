"""Recompression: pages that lie in the pool for long, or take much of it, with a stronger algorithm.

Kernel counterpart: zram's recompress, with its states idle and huge and its threshold.

    table ─▶ chosen entries ─▶ a batch: copies of their bytes ─▶ pages ─▶ engine ─▶ outputs
          ─▶ those of a smaller size class ─▶ pool ─▶ in the place of entries that are still the same

An output that does not shrink the size class is dropped: it would save nothing, and cost more to
load. Pages that the algorithm made already are not tried again. Ages do not change: recompression
is no use of a page.

Locks: the store's, to copy and to exchange a batch; not while the engine works.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import CompressBatch
from batchzip.errors import PageError, PoolFull
from batchzip.store.folio import checksum
from batchzip.store.page_table import COMPRESSED, ENTRY, RAW

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.store.folio import FolioWriter
    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Recompression:
    """What a call of `recompress` did."""

    pages: int
    """Pages that were tried."""
    recompressed: int
    """Pages whose new form was kept."""
    saved_bytes: int
    """Bytes by which the lengths of these became less."""


class Recompressor:
    """Recompresses the pages of a group with one engine."""

    def __init__(
        self, home: Home, ledger: Ledger, events: dict[str, int], writer: FolioWriter
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._events = events
        self._writer = writer

    def choose(self, idle_for_s: float, min_length: int) -> npt.NDArray[np.int64]:
        """Give the indices of pages in the pool, idle for so long, of so many bytes at least."""
        ledger, pool = self._ledger, self._home.objects.pool
        found = [np.zeros(0, np.int64)]
        with self._home.lock:
            for first, entries in ledger.table.blocks():
                kinds = entries["kind"]
                rows = np.flatnonzero(
                    ((kinds == COMPRESSED) | (kinds == RAW))
                    & (entries["codec"] != self._writer.number)
                    & ledger.lru.idle(entries, idle_for_s)
                )
                if min_length > 1 and len(rows):
                    rows = rows[pool.lengths(entries["value"][rows]) >= min_length]
                found.append(first + rows)
        return np.concatenate(found)

    def run(self, indices: npt.NDArray[np.int64]) -> Recompression:
        """Recompress these, batch by batch. An interrupt leaves each page in one form or the other."""
        tried = kept = saved = 0
        for start in range(0, len(indices), self._home.max_batch):
            batch = indices[start : start + self._home.max_batch]
            done = self._home.change(self._ledger, 0, 0, partial(self._run_batch, batch))
            tried, kept, saved = tried + done[0], kept + done[1], saved + done[2]
        return Recompression(tried, kept, saved)

    def _run_batch(self, indices: npt.NDArray[np.int64]) -> tuple[int, int, int]:
        home, ledger, pool = self._home, self._ledger, self._home.objects.pool
        with home.lock:
            entries = ledger.table.get_many(indices)
            held = (entries["kind"] == COMPRESSED) | (entries["kind"] == RAW)
            indices, entries = indices[held], entries[held]
            stored = home.pooled(entries)
        pages = np.empty((len(stored), home.page_size), np.uint8)
        told = zip(stored, entries["checksum"].tolist(), entries["codec"].tolist(), strict=True)
        good = [row for row, one in enumerate(told) if self._restore(pages[row], *one)]
        if not good:
            return len(stored), 0, 0
        batch = CompressBatch(pages[good], capacity=home.page_size)
        self._writer.engine.compress(batch)
        rows: list[int] = []
        outputs: list[bytes] = []
        for row, output in zip(good, batch.outputs(), strict=True):  # empty where it failed
            if 0 < len(output) < home.page_size:
                before = pool.class_size(len(stored[row]))
                if pool.class_size(len(output)) < before:
                    rows.append(row)
                    outputs.append(bytes(output))
        if not rows:
            return len(stored), 0, 0
        better = np.zeros(len(rows), ENTRY)
        better["kind"] = COMPRESSED
        better["codec"] = self._writer.number
        better["checksum"] = [checksum(output, self._writer.number) for output in outputs]
        try:
            better["value"] = pool.put_many(outputs)
        except PoolFull:
            return len(stored), 0, 0  # nothing is lost: the page stays as it is
        with home.lock:
            same = ledger.exchange(indices[rows], entries[rows], better, sum(map(len, outputs)))
        saved = sum(
            len(stored[row]) - len(output)
            for row, output, put in zip(rows, outputs, same.tolist(), strict=True)
            if put
        )
        return len(stored), int(np.count_nonzero(same)), saved

    def _restore(self, page: npt.NDArray[np.uint8], data: bytes, check: int, number: int) -> bool:
        try:
            page[:] = np.frombuffer(self._home.restorer.one(0, data, check, number), np.uint8)
        except PageError:
            with self._home.lock:
                self._events["decompress_fail"] += 1
            return False
        return True
