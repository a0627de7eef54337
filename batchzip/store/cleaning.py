"""Cleaning: what still lives in sparse zones of the backing file is written anew, so that they go back.

    sparse zones, the emptiest first ─▶ entries of all groups that lie there ─▶ read, checked, written
    elsewhere ─▶ exchanged where they are still the same ─▶ zones empty ─▶ given back, the end cut off

Pages leave a file here and there, and a zone goes back only as a whole (core/zones.pyx). Left alone, a file of
which a tenth lives may be as long as it ever was. Kernel counterpart: none in zswap; the segment cleaning
of log-structured file systems.

There is no map from place to entry: the tables are read through once a round, which costs 16 bytes a page
where a map would cost 8 of memory for each page at all times.

One thread cleans at a time. A second one leaves it to the first, or waits if it needs the room. A
page that is damaged stays where it is.

Locks: none; see `_take_turn`.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.gather import gather
from batchzip.core.table import Kind
from batchzip.store.home import unless_dropped

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.core.ledger import Ledger
    from batchzip.store.backing_file import BackingFile
    from batchzip.store.home import Home

_PAUSE_S = 0.001

_ROUND_ZONES = 64
"""Zones cleaned for one look at the tables: 64 MiB, of which less than half is written anew."""


def clean(home: Home, *, wait: bool = False) -> int:
    """Clean all zones that are sparse now. Return the bytes of the file given back. Raise OSError.

    If another thread does so, return 0; with `wait`, go on once it is done, unless it may be waiting
    for this very thread, which is a handler or a finalizer in the middle of a call of the file.
    """
    backing = home.backing
    if backing is None:
        return 0
    turn = _take_turn(home, wait=wait and not backing.is_locked_here)
    if turn is None:
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
        turn.over = True


class _Turn:
    """The turn of the thread that cleans: over when it says so, or when its call is gone."""

    def __init__(self) -> None:
        self.over = False
        self.thread = threading.get_ident()


def _take_turn(home: Home, *, wait: bool) -> _Turn | None:
    """Take the turn, or return None while another thread has it.

    No lock: an interrupt between taking one and the `try` after it would leave it taken. Two that clean at
    once, as a handler does in the middle of its own thread's call, do each other no harm.
    """
    turn = _Turn()
    mine = weakref.ref(turn)
    while True:
        other = home.cleaning.setdefault("turn", mine)()
        if other is turn or (other is not None and other.thread == turn.thread):
            return turn
        if other is None or other.over:
            home.cleaning.pop("turn", None)
        elif not wait:
            return None
        else:
            time.sleep(_PAUSE_S)


def _clean_zones(home: Home, backing: BackingFile, zones: npt.NDArray[np.int64]) -> None:
    marks = np.zeros(int(zones.max()) + 1, np.uint8)
    marks[zones] = 1
    for ledger in list(home.ledgers.values()):
        with unless_dropped(ledger):
            _write_anew(home, ledger, backing, marks.tobytes())
    backing.settle()


def _write_anew(home: Home, ledger: Ledger, backing: BackingFile, zones: bytes) -> None:
    """Write what a group has in these zones to others."""
    indices = np.frombuffer(ledger.choose((Kind.BACKED, Kind.BACKED_RECORD), zones=zones), np.int64)
    for start in range(0, len(indices), home.max_batch):
        gathered = gather(ledger, indices[start : start + home.max_batch])
        rows = gathered.rows_of(Kind.BACKED, Kind.BACKED_RECORD)
        positions = np.array([gathered.value(row) for row in rows], np.uint64)
        for row, data in zip(rows, backing.read(positions), strict=True):
            gathered.supply(row, data)
        damaged = set(gathered.damaged())
        rows = [row for row in rows if row not in damaged]
        if rows:
            where = backing.write([gathered.stored(row) for row in rows])
            gathered.to_file(rows, where)
