"""Zones: which bytes of a backing file are in use, and where the next go. No I/O, no lock.

    zone 0            zone 1            zone 2            zone 3
    [obj obj obj obj ][obj  ·   ·  obj ][                ][obj obj ─▶      ]
     full              sparse            free              open: filled by appending

Rejected: an allocator of exact sizes (random writes, and free lists that a fault can damage); one log
around the file (it must clean in order, live or not). A zone is given back as a whole, when nothing in it
lives any more; the lowest free one is taken first, so that the file's end can be cut off.

    position (uint64) = offset << 21 | (length - 1)      offset 43 bits: 8 TiB; length up to 2 MiB

Invariants
* live, objects: sums over the positions reserved in the zone and not freed since. A batch that is being written
  counts, so its zone can be neither given back nor used again.
* taken ⇔ objects > 0, or poisoned, or on its way out (between `free` and `put_back`).
* No object straddles two zones; filled ≤ zone_size is the end of the last one, and 0 where not taken.
* held = Σ filled. No taken zone lies at or above `end`; no free one below `hint`.

Locks: none. The backing file's is held around every call.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from batchzip.errors import BadArgument

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions: TypeAlias = npt.NDArray[np.uint64]
    Numbers: TypeAlias = npt.NDArray[np.int64]

LENGTH_BITS = 21
"""Bits of a position that hold length - 1: the largest page is 2 MiB."""

MAX_OFFSET = 1 << (64 - LENGTH_BITS)
"""Bytes a backing file may have at most: 8 TiB, what is left of 64 bits."""

MIN_ZONE_BYTES = 1 << 20
"""1 MiB: a few of the batches of 256 pages that are written at once, and small beside any file worth having."""

ZONE_PAGES = 64
"""Pages a zone holds at least: what is lost at its end, less than a page, is then under 1/64 of it."""

_ZONE = np.dtype(
    [("filled", "i8"), ("live", "i8"), ("objects", "i8"), ("taken", "?"), ("poisoned", "?")]
)
"""One array for all columns, so that it grows in one assignment, which no interrupt can cut in two."""


class Piece(NamedTuple):
    """A run of a batch's objects that lie side by side in one zone."""

    first: int
    last: int
    """Objects [first, last) of the batch."""
    zone: int
    offset: int
    length: int


class Reservation(NamedTuple):
    """Where the objects of one batch go."""

    positions: Positions
    pieces: list[Piece]


def offsets_of(positions: Positions) -> Numbers:
    """First byte of each object."""
    return (positions >> np.uint64(LENGTH_BITS)).astype(np.int64)


def lengths_of(positions: Positions) -> Numbers:
    """Bytes of each object."""
    return (positions & np.uint64((1 << LENGTH_BITS) - 1)).astype(np.int64) + 1


class Zones:
    """Bookkeeping of a file whose zones begin at byte `base`."""

    def __init__(self, page_size: int, base: int, max_bytes: int | None) -> None:
        self.zone_size = max(MIN_ZONE_BYTES, ZONE_PAGES * page_size)
        self.base = base
        self.max_bytes = max_bytes
        self.held = 0
        self._table = np.zeros(64, _ZONE)
        self._open = -1
        self._hint = 0
        self._end = 0

    @property
    def live(self) -> int:
        """Bytes of the objects that are reserved and not freed."""
        return int(self._table["live"].sum())

    @property
    def objects(self) -> int:
        """Number of objects that are reserved and not freed."""
        return int(self._table["objects"].sum())

    def zone_of(self, positions: Positions) -> Numbers:
        """Tell in which zone each object lies, by number."""
        return (offsets_of(positions) - self.base) // self.zone_size

    def start_of(self, zone: int) -> int:
        """First byte of a zone in the file."""
        return self.base + zone * self.zone_size

    def reserve(self, lengths: Numbers) -> Reservation:
        """Find room for a batch. Raises OSError(ENOSPC), and has reserved nothing, beyond a limit."""
        ends = np.cumsum(lengths)
        if self.max_bytes is not None and self.held + int(ends[-1]) > self.max_bytes:
            raise OSError(
                errno.ENOSPC, f"the backing file is at its limit of {self.max_bytes} bytes"
            )
        offsets = np.zeros_like(lengths)
        pieces: list[Piece] = []
        first = before = 0
        try:
            while first < len(lengths):
                zone = self._open if self._open >= 0 else self._take()
                row = self._table[zone]
                filled = int(row["filled"])
                room = self.zone_size - filled
                last = int(np.searchsorted(ends, before + room, "right"))
                if last > first:
                    offset, length = self.start_of(zone) + filled, int(ends[last - 1]) - before
                    here = slice(first, last)
                    offsets[here] = offset + ends[here] - lengths[here] - before
                    row["filled"] += length
                    row["live"] += length
                    row["objects"] += last - first
                    self.held += length
                    pieces.append(Piece(first, last, zone, offset, length))
                    first, before = last, before + length
                if first < len(lengths):
                    self._open = -1
        except OSError:
            part = _positions(offsets[:first], lengths[:first])
            self.put_back(self.undo(Reservation(part, pieces)))
            raise
        return Reservation(_positions(offsets, lengths), pieces)

    def _take(self) -> int:
        """Open the lowest free zone."""
        if self._hint >= len(self._table) or self._table["taken"][self._hint :].all():
            self._hint = len(self._table)
            grown = np.zeros(2 * len(self._table), _ZONE)
            grown[: len(self._table)] = self._table
            self._table = grown
        zone = self._hint + int(self._table["taken"][self._hint :].argmin())
        if self.start_of(zone + 1) > MAX_OFFSET:
            raise OSError(errno.ENOSPC, f"a backing file has at most {MAX_OFFSET} bytes")
        self._end = max(self._end, zone + 1)
        self._table["taken"][zone] = True
        self._hint = zone + 1
        self._open = zone
        return zone

    def free(self, positions: Positions) -> Numbers:
        """Give up objects; the zones that nothing lives in any more, to be discarded and `put_back`."""
        if not len(positions):
            return np.zeros(0, np.int64)
        zones, inverse = np.unique(self.zone_of(positions), return_inverse=True)
        lengths = np.bincount(inverse, lengths_of(positions))
        self._table["live"][zones] -= lengths.astype(np.int64)
        self._table["objects"][zones] -= np.bincount(inverse)
        return self._leave(zones[self._table["objects"][zones] == 0])

    def _leave(self, zones: Numbers) -> Numbers:
        if self._open in zones:
            self._open = -1
        self.held -= int(self._table["filled"][zones].sum())
        self._table["filled"][zones] = 0
        return zones

    def undo(self, reservation: Reservation) -> Numbers:
        """Give up a whole batch, and its room where nothing was put behind it; as `free`."""
        reopened = -1
        for piece in reversed(reservation.pieces):
            row = self._table[piece.zone]
            if self.start_of(piece.zone) + row["filled"] == piece.offset + piece.length:
                row["filled"] -= piece.length
                self.held -= piece.length
                reopened = -1 if row["poisoned"] else piece.zone
        emptied = self.free(reservation.positions)
        if self._open < 0 and reopened not in emptied:
            self._open = reopened
        return emptied

    def put_back(self, zones: Numbers) -> int | None:
        """Make discarded zones free again; the size to cut the file to, if its end is free."""
        if not len(zones):
            return None
        self._table["taken"][zones] = self._table["poisoned"][zones]
        self._hint = min(self._hint, int(zones.min()))
        taken = np.flatnonzero(self._table["taken"][: self._end])
        end = int(taken[-1]) + 1 if len(taken) else 0
        if end == self._end:
            return None
        self._end = end
        return self.start_of(end)

    def poison(self, reservation: Reservation) -> None:
        """Never write again to the zones of this batch."""
        for piece in reservation.pieces:
            self._table["poisoned"][piece.zone] = True
            if self._open == piece.zone:
                self._open = -1

    def recount(self, live: Positions) -> Numbers:
        """Make everything anew from the positions that live; as `free`."""
        before = self._table
        table = np.zeros(len(before), _ZONE)
        zones = self.zone_of(live)
        if len(live) and zones.max() >= len(table):
            raise BadArgument("a position lies beyond the zones there are")
        table["poisoned"] = before["poisoned"]
        table["live"] = np.bincount(zones, lengths_of(live), len(table)).astype(np.int64)
        table["objects"] = np.bincount(zones, minlength=len(table))
        ends = offsets_of(live) + lengths_of(live) - self.base - zones * self.zone_size
        np.maximum.at(table["filled"], zones, ends)
        # What was cut short may have taken a zone, and not yet have said so.
        table["taken"] = before["taken"] | (before["filled"] > 0) | (table["objects"] > 0)
        emptied = np.flatnonzero(table["taken"] & (table["objects"] == 0))
        self._open = -1
        self._table = table
        self._hint = 0
        self._end = int(np.flatnonzero(table["taken"]).max(initial=self._end - 1)) + 1
        self.held = int(table["filled"].sum())
        return emptied

    def sparse(self) -> Numbers:
        """Full zones less than half of which lives, the emptiest first."""
        filled, live = self._table["filled"], self._table["live"]
        worth = (live > 0) & (2 * live < filled)
        if self._open >= 0:
            worth[self._open] = False
        zones = np.flatnonzero(worth)
        return zones[np.argsort(live[zones] / filled[zones], kind="stable")]

    def check(self, live: Positions) -> None:
        """Raise AssertionError where an invariant does not hold for the positions that live."""
        table, zones = self._table, self.zone_of(live)
        offsets, lengths = offsets_of(live), lengths_of(live)
        order = np.argsort(offsets)
        ends = (offsets + lengths)[order]
        filled = np.zeros(len(table), np.int64)
        np.maximum.at(filled, zones, offsets + lengths - self.base - zones * self.zone_size)
        claims = {
            "bytes": np.bincount(zones, lengths, len(table)) == table["live"],
            "objects": np.bincount(zones, minlength=len(table)) == table["objects"],
            "objects that share no byte": ends[:-1] <= offsets[order][1:],
            "objects within their zone": (offsets + lengths - 1 - self.base) // self.zone_size
            == zones,
            "ends": (filled <= table["filled"]) & (table["filled"] <= self.zone_size),
            "zones taken": table["taken"] == ((table["objects"] > 0) | table["poisoned"]),
            "room of free zones": (table["filled"] == 0) | (table["objects"] > 0),
            "held": table["filled"].sum() == self.held,
            "end": ~table["taken"][self._end :],
            "hint": table["taken"][: self._hint],
            "open": self._open < 0
            or bool(table["taken"][self._open] and not table["poisoned"][self._open]),
        }
        wrong = [claim for claim, holds in claims.items() if not np.all(holds)]
        if wrong:
            raise AssertionError(f"the zones of the backing file are wrong in: {', '.join(wrong)}")


def _positions(offsets: Numbers, lengths: Numbers) -> Positions:
    return (offsets << LENGTH_BITS | (lengths - 1)).astype(np.uint64)
