"""Cleaning: what still lives in sparse zones of the backing file is written anew, so that they go back.

    sparse zones, the emptiest first ─▶ entries of all groups that lie there ─▶ read, checked, written
    elsewhere ─▶ exchanged where they are still the same ─▶ zones empty ─▶ given back, the end cut off

Pages leave a file here and there, and a zone goes back only as a whole (core/zones.pyx). Left alone, a file of
which a tenth lives may be as long as it ever was. Kernel counterpart: none in zswap; the segment cleaning
of log-structured file systems.

There is no map from place to entry: the tables are read through once a round, which costs 16 bytes a page
where a map would cost 8 of memory for each page at all times.

One thread cleans at a time. A second one leaves it to the first, or waits if it needs the room. A
page that is damaged stays where it is. At the file's limit, cleaning has room that nobody else may
take (core/zones.pyx); without it a file could be full for good, though half of it were dead.

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

_TRIES = 3
"""Times a file is cleaned for one write: others may take the room that was made meanwhile."""

_ROUND_ZONES = 64
"""Zones cleaned for one look at the tables: 64 MiB, of which less than half is written anew."""

_FULL_ZONES = 8
"""The same in a file that is at its limit, where no more are cleaned than is needed."""

_FULL_EIGHTHS = 7
"""How much may live in those: writing 7 bytes anew for one of room is better than no room."""


def clean(resources: Resources) -> int:
    """Clean all zones that are sparse now. Return the bytes of the file given back. Raise OSError.

    Return 0 if another thread does so.
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
    """Write objects to the backing file, after cleaning it where it has no room. Raise OSError."""
    backing = resources.backing
    assert backing is not None  # noqa: S101 - the callers' check
    held, room = backing.held_bytes, sum(map(len, objects))
    try:
        return backing.write(objects)
    except OSError as error:
        cause = error
    turn = CleaningTurn()
    try:
        # A handler or finalizer in the middle of a call of the file may be what others wait for.
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
        del cause  # its traceback leads to this frame


def _clean(resources: Resources, backing: BackingFile, room: int = 0) -> None:
    """Clean all sparse zones, and fuller ones until `room` bytes are free below the limit."""
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
    """Queue, and return whether it is this turn; with `wait`, once those who came before are done.

    No lock: an interrupt between taking one and the `try` after it would leave it taken. A handler
    or finalizer in the middle of its own thread's turn has it, too.
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
            _write_anew(resources, entries, backing, zones)
    backing.settle()


def _write_anew(
    resources: Resources, entries: Entries, backing: BackingFile, zones: dict[int, int]
) -> None:
    """Write what a group has in these zones to others."""
    marks = np.zeros(max(zones) + 1, np.uint8)
    marks[list(zones)] = 1
    indices = np.frombuffer(entries.choose(IN_FILE, zones=marks.tobytes()), np.int64)
    for start in range(0, len(indices), resources.max_batch):
        gathered = gather(entries, indices[start : start + resources.max_batch])
        rows = gathered.rows_of(*IN_FILE)
        positions = np.array([gathered.value(row) for row in rows], np.uint64)
        # What was stored anew since lies elsewhere; and so does all of a zone that was used again.
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
