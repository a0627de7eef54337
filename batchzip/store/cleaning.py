"""Cleaning: what still lives in sparse zones of the backing file is written anew, so that they go back.

    sparse zones, the emptiest first ─▶ entries of all groups that lie there ─▶ read, checked, written
    elsewhere ─▶ exchanged where they are still the same ─▶ zones empty ─▶ given back, the end cut off

Pages leave a file here and there, and a zone goes back only as a whole (zones.py). Left alone, a file of
which a tenth lives may be as long as it ever was. Kernel counterpart: none in zswap; the segment cleaning
of log-structured file systems.

There is no map from place to entry: the tables are read through once a round, which costs 16 bytes a page
where a map would cost 8 of memory for each page at all times.

One cleans at a time; who comes second leaves it to the first, or waits for it where it needs the room. A page that is damaged stays where it is.

Lock order: `cleaning`, then the store's, to choose and to exchange.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from batchzip.store.page_table import BACKED

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.store.backing_file import BackingFile
    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger

_ROUND_ZONES = 64
"""Zones cleaned for one look at the tables: 64 MiB, of which less than half is written anew."""


def clean(home: Home, *, wait: bool = False) -> int:
    """Clean all zones that are sparse now; bytes of the file given back. Raises OSError.

    If another thread does so, 0 is returned; with `wait`, once it is done and what it left is clean.
    """
    backing = home.objects.backing
    if backing is None or not home.cleaning.acquire(blocking=wait):
        return 0
    try:
        held = backing.held_bytes
        tried: set[int] = set()
        while True:
            zones = [zone for zone in backing.sparse_zones().tolist() if zone not in tried]
            if not zones:
                return max(0, held - backing.held_bytes)
            tried.update(zones[:_ROUND_ZONES])
            _clean_zones(home, backing, np.array(zones[:_ROUND_ZONES]))
    finally:
        home.cleaning.release()


def _clean_zones(home: Home, backing: BackingFile, zones: npt.NDArray[np.int64]) -> None:
    for ledger in list(home.objects.ledgers):
        with home.lock:
            entries = ledger.table.entries
            rows = np.flatnonzero(entries["kind"] == BACKED)
            there = np.isin(backing.zone_of(entries["value"][rows]), zones)
            indices = ledger.table.indices(rows[there])
        for start in range(0, len(indices), home.max_batch):
            part = indices[start : start + home.max_batch]
            move = partial(_move, home, backing, ledger, part)
            home.change(ledger, 0, 0, move, harmless=(OSError,))


def _move(home: Home, backing: BackingFile, ledger: Ledger, indices: npt.NDArray[np.int64]) -> None:
    with home.lock:
        entries = ledger.table.get_many(indices)
    backed = entries["kind"] == BACKED
    indices, entries = indices[backed], entries[backed]
    stored = backing.read(entries["value"])
    intact = home.intact(entries, stored)
    indices, entries = indices[intact], entries[intact]
    moved = entries.copy()
    moved["value"] = backing.write(
        [data for data, good in zip(stored, intact, strict=True) if good]
    ).keep()
    with home.lock:
        ledger.exchange(indices, entries, moved, 0)
