"""Recompression: compresses idle or large pages in the pool again with a stronger algorithm.

Kernel counterpart: zram's recompress, with its states idle and huge and its threshold.

    table ─▶ chosen entries ─▶ a batch: copies of their bytes ─▶ pages ─▶ engine ─▶ outputs
          ─▶ those of a smaller size class ─▶ pool ─▶ replace entries that are still the same

An output that does not fit a smaller size class is dropped: it would save nothing and cost more to
load. Pages that were compressed with this algorithm already are not tried again. Recompressing a
page does not refresh it in the LRU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import CompressBatch
from batchzip.core.gather import gather
from batchzip.core.table import Kind
from batchzip.store.loader import restore

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.core.entries import Entries
    from batchzip.store.resources import Resources
    from batchzip.store.writer import Writer


@dataclass(frozen=True, slots=True)
class Recompression:
    """The result of a call of `recompress`.

    Examples:
        >>> import batchzip
        >>> rows = [f'{{"id": {n}, "mail": "{n * n}@example.org"}}' for n in range(10000)]
        >>> pages = ["".join(rows[n : n + 200]).encode()[:4096] for n in range(0, 10000, 200)]
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, pages)
        ...     done = store.recompress("zstd", level=9)  # of pages that were idle for 0 s or more
        >>> done.pages, done.recompressed, done.saved_bytes > 10_000
        (50, 50, True)
    """

    pages: int
    """Number of pages tried."""
    recompressed: int
    """Number of pages whose new output was kept."""
    saved_bytes: int
    """Bytes by which the compressed lengths of these pages shrank."""


class Recompressor:
    """Recompresses the pages of a group with one engine."""

    def __init__(self, resources: Resources, entries: Entries, writer: Writer) -> None:
        self._resources = resources
        self._entries = entries
        self._writer = writer

    def choose(self, idle_for_s: float, min_length: int) -> npt.NDArray[np.int64]:
        """Return the indices of idle pages in the pool that have at least `min_length` bytes."""
        found = self._entries.choose(
            (Kind.COMPRESSED, Kind.RAW),
            idle_s=idle_for_s,
            not_codec=self._writer.number,
            min_length=min_length,
        )
        return np.frombuffer(found, np.int64)

    def run(self, indices: npt.NDArray[np.int64]) -> Recompression:
        """Recompress pages by batches. An interrupt leaves each page in its old or new form."""
        tried = kept = saved = 0
        for start in range(0, len(indices), self._resources.max_batch):
            done = self._run_batch(indices[start : start + self._resources.max_batch])
            tried, kept, saved = tried + done[0], kept + done[1], saved + done[2]
        return Recompression(tried, kept, saved)

    def _run_batch(self, indices: npt.NDArray[np.int64]) -> tuple[int, int, int]:
        resources, pool = self._resources, self._resources.pool
        gathered = gather(self._entries, indices)
        held = gathered.rows_of(Kind.COMPRESSED, Kind.RAW)
        pages = np.empty((len(gathered), resources.page_size), np.uint8)
        restore(resources, gathered, pages)
        good = [row for row in held if not gathered.outcome(row)]
        if len(good) < len(held):
            self._entries.count_event("decompress_fail", len(held) - len(good))
        if not good or not gathered.is_current:
            return len(held), 0, 0
        batch = CompressBatch(pages[good], capacity=resources.page_size)
        self._writer.engine.compress(batch)
        rows: list[int] = []
        outputs: list[bytes] = []
        for row, output in zip(good, batch.outputs(), strict=True):  # empty where it failed
            if 0 < len(output) < resources.page_size:
                before = pool.class_size(gathered.length(row))
                if pool.class_size(len(output)) < before:
                    rows.append(row)
                    outputs.append(bytes(output))
        kept, saved = gathered.to_pool(rows, outputs, self._writer.number)
        return len(held), kept, saved
