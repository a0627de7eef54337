"""Writeback: moves pages from the pool to the backing file, one batch at a time.

Kernel counterpart: zswap_writeback_entry. zswap decompresses a page and writes it. batchzip writes
its compressed bytes, like zram's compressed writeback, and keeps their checksum and codec number.

    gather     take entries and copies of their bytes, at one moment
    write      write the intact ones with one call, and sync
    to_file    make entries that are still the same refer to the file; free their memory in the pool

Memory is freed only after the write succeeded. A page that was meanwhile stored again, loaded
exclusively or invalidated is left alone, and its space in the file is freed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.gather import gather
from batchzip.core.table import IN_POOL
from batchzip.store.reclaim.cleaning import write

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.core.entries import Entries
    from batchzip.store.resources import Resources


def write_back(resources: Resources, entries: Entries, indices: npt.NDArray[np.int64]) -> int:
    """Move pages to the backing file. Return the number of pages moved.

    `indices` has no index twice. Pages that are damaged or not in the pool are skipped. Raise
    OSError if the file fails; every page then stays where it was.
    """
    backing = resources.backing
    assert backing is not None  # noqa: S101 - the callers' check
    gathered = gather(entries, np.ascontiguousarray(indices))
    damaged = set(gathered.damaged())
    held = gathered.rows_of(*IN_POOL)
    rows = [row for row in held if row not in damaged]
    if len(rows) < len(held):
        entries.count_event("decompress_fail", len(held) - len(rows))
        entries.count_event("reject_reclaim_fail", len(held) - len(rows))
    if not rows:
        return 0
    try:
        where = write(resources, [gathered.stored(row) for row in rows])
    except OSError:
        entries.count_event("reject_reclaim_fail", len(rows))
        raise
    moved = gathered.to_file(rows, where)
    entries.count_event("written_back_pages", moved)
    backing.settle()
    return moved
