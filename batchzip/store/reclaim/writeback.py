"""Writeback: pages from the pool to the backing file, a batch at a time.

Kernel counterpart: zswap_writeback_entry. There a page is decompressed and written; here its compressed
bytes are, with the checksum and the codec's number they have (zram's compressed writeback).

    gather     entries and copies of their bytes, of one moment
    write      those that are intact, in one piece, synced
    to_file    entries that are still the same ─▶ in the file; what they had in the pool is freed

Memory is freed only after the write succeeded. A page that was stored anew, loaded exclusively or
invalidated meanwhile keeps what it has, and its room in the file is given up.
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
    """Move pages, no index twice, to the backing file. Return how many were; others are passed over.

    Raise OSError if the file fails; every page is where it was then.
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
