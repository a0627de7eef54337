"""Cleaning: rewrites the live objects of sparse zones elsewhere, so that whole zones become free.

    sparse zones, the emptiest first ─▶ entries of all groups in them ─▶ read, verified, written
    to other zones ─▶ update entries that are still the same ─▶ zones empty ─▶ back to the system

Pages are freed all over the file, but only whole zones return to the system (core/zones.pyx).
Without cleaning, a file that is one tenth live may stay as long as it ever was. Kernel counterpart:
none in zswap; the segment cleaning of log-structured file systems.

There is no map from positions to entries. Instead, each round scans the tables, at 16 bytes per
page. A map would take 8 bytes of memory per page at all times.

Only one thread cleans at a time. A second one returns, or waits if it needs the space. Damaged
pages stay where they are. Space below the file's limit is reserved for cleaning (core/zones.pyx).
Without it, a full file could stay full for ever, even if half of it were dead.

Locks: none; see `_has_turn`.
"""

from __future__ import annotations

import contextlib
import errno
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.gather import gather
from batchzip.core.table import IN_FILE
from batchzip.store.resources import CleaningTurn, unless_dropped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.core.entries import Entries
    from batchzip.core.zones import ZoneReservation
    from batchzip.store.backing.backing_file import BackingFile
    from batchzip.store.resources import Resources

_PAUSE_S = 0.001
"""Seconds between two checks whether it is this thread's turn."""

_TRIES = 3
"""Attempts to clean the file for one write. Other threads may take the freed space in between."""

_ROUND_ZONES = 64
"""Zones cleaned per scan of the tables: 64 MiB, less than half of which is rewritten."""

_FULL_ZONES = 8
"""The same for a file at its limit, where only as much is cleaned as is needed."""

_FULL_EIGHTHS = 7
"""Live eighths allowed in these zones. Rewriting 7 bytes to free one is better than no space."""


def clean(resources: Resources) -> int:
    """Clean all sparse zones. Return the bytes given back, 0 if another thread is cleaning.

    Raise OSError if the file fails.
    """
    backing = resources.backing
    if backing is None:
        return 0
    turn = CleaningTurn()
    try:
        if not _has_turn(resources, turn, wait=False):
            return 0
        held = backing.held_bytes
        _clean(resources, backing)
        return max(0, held - backing.held_bytes)
    finally:
        turn.over = True


def write(resources: Resources, objects: Sequence[Flat]) -> ZoneReservation:
    """Write objects to the backing file, cleaning it first if it is full. Raise OSError."""
    backing = resources.backing
    assert backing is not None  # noqa: S101 - the callers' check
    held, room = backing.held_bytes, sum(map(len, objects))
    try:
        return backing.write(objects)
    except OSError as error:
        cause = error
    turn = CleaningTurn()
    try:
        # Other threads may wait for a call of the file that this handler or finalizer interrupted.
        if not _has_turn(resources, turn, wait=not backing.is_locked_here):
            raise cause
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                _clean(resources, backing, room)
            can_be = cause.errno == errno.ENOSPC and backing.room_for(room)[1]
            if backing.held_bytes >= held and not can_be:
                break
            try:
                return backing.write(objects)
            except OSError as error:
                cause = error
        raise cause
    finally:
        turn.over = True
        del cause  # its traceback refers to this frame


def _clean(resources: Resources, backing: BackingFile, room: int = 0) -> None:
    """Clean all sparse zones, then fuller ones until `room` bytes are free below the limit."""
    tried: set[int] = set()
    while zones := backing.zones.sparse(tried, most=_ROUND_ZONES):
        tried.update(zones)
        _clean_zones(resources, backing, zones)
    while room and backing.room_for(room) == (False, True):
        zones = backing.zones.sparse(tried, _FULL_EIGHTHS, most=_FULL_ZONES)
        if not zones:
            break
        tried.update(zones)
        _clean_zones(resources, backing, zones)


def _has_turn(resources: Resources, turn: CleaningTurn, *, wait: bool) -> bool:
    """Queue a turn. Return whether it has come; with `wait`, wait for the turns before it.

    There is no lock: an interrupt between `acquire` and the `try` after it would leave it locked. A
    handler or finalizer that interrupted its own thread's turn may clean at once, too.
    """
    resources.turns.append(weakref.ref(turn))
    while (other := resources.current_turn()) is not turn:
        if other is not None and other.thread == turn.thread:
            break
        if not wait:
            return False
        time.sleep(_PAUSE_S)
    return True


def _clean_zones(resources: Resources, backing: BackingFile, zones: dict[int, int]) -> None:
    for entries in list(resources.all_entries.values()):
        with unless_dropped(entries):
            _rewrite(resources, entries, backing, zones)
    backing.settle()


def _rewrite(
    resources: Resources, entries: Entries, backing: BackingFile, zones: dict[int, int]
) -> None:
    """Write the objects that a group has in these zones to other zones."""
    marks = np.zeros(max(zones) + 1, np.uint8)
    marks[list(zones)] = 1
    indices = np.frombuffer(entries.choose(IN_FILE, zones=marks.tobytes()), np.int64)
    for start in range(0, len(indices), resources.max_batch):
        gathered = gather(entries, indices[start : start + resources.max_batch])
        rows = gathered.rows_of(*IN_FILE)
        positions = np.array([gathered.value(row) for row in rows], np.uint64)
        # Pages that were stored again, and zones that were reused, have nothing here any more.
        same = [zone for zone, uses in zones.items() if backing.zones.uses(zone) == uses]
        here = np.isin(backing.zone_of(positions), same)
        rows = [row for row, stays in zip(rows, here.tolist(), strict=True) if stays]
        for row, data in zip(rows, backing.read(positions[here]), strict=True):
            gathered.supply(row, data)
        damaged = set(gathered.damaged())
        rows = [row for row in rows if row not in damaged]
        if rows:
            where = backing.write([gathered.stored(row) for row in rows], cleaning=True)
            gathered.to_file(rows, where)
