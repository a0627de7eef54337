"""Writeback: pages from the pool to the backing file, a batch at a time.

Kernel counterpart: zswap_writeback_entry. There a page is decompressed and written; here its compressed
bytes are, with the checksum and the codec's number they have (zram's compressed writeback).

    under the lock   entries and copies of their bytes
    outside          checksums ─▶ one write, synced
    under the lock   entries that are still the same ─▶ in the file; what they had in the pool is freed

Memory is freed only after the write succeeded. A page that was stored anew, loaded exclusively or invalidated
meanwhile keeps what it has, and its copy in the file is freed.

Locks: the store's, twice a batch, as above.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from batchzip.store.page_table import BACKED, COMPRESSED, RAW

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.store.backing_file import BackingFile
    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger


def write_back(
    home: Home, ledger: Ledger, events: dict[str, int], indices: npt.NDArray[np.int64]
) -> int:
    """Move pages, no index twice, to the backing file; how many were. Others are passed over.

    Raises OSError where the file fails; every page is where it was then.
    """
    backing = home.objects.backing
    assert backing is not None  # noqa: S101 - the callers' check
    move = partial(_move, home, backing, ledger, events, indices)
    return home.change(ledger, 0, 0, move, harmless=(OSError,))


def _move(
    home: Home,
    backing: BackingFile,
    ledger: Ledger,
    events: dict[str, int],
    indices: npt.NDArray[np.int64],
) -> int:
    with home.lock:
        entries = ledger.table.get_many(indices)
        held = (entries["kind"] == COMPRESSED) | (entries["kind"] == RAW)
        indices, entries = indices[held], entries[held]
        stored = home.pooled(entries)
    intact = home.intact(entries, stored)
    if not intact.all():
        with home.lock:
            damaged = int(np.count_nonzero(~intact))
            events["decompress_fail"] += damaged
            events["reject_reclaim_fail"] += damaged
        stored = [data for data, good in zip(stored, intact, strict=True) if good]
        indices, entries = indices[intact], entries[intact]
    if not stored:
        return 0
    moved = entries.copy()
    moved["kind"] = BACKED
    try:
        moved["value"] = backing.write(stored).keep()
    except OSError:
        with home.lock:
            events["reject_reclaim_fail"] += len(stored)
        raise
    with home.lock:
        count = int(np.count_nonzero(ledger.exchange(indices, entries, moved, 0)))
        events["written_back_pages"] += count
    return count
