"""IndexSpace: which indices of a group are taken, for one that gives them out itself.

    reserve(5) ─▶ Reservation 0…4        taken as long as anybody holds the object
    reserve(3) ─▶ Reservation 5…7
    the first is dropped ─▶ its weak reference goes to `_gone` ─▶ reclaim(): its pages are invalidated,
                                                                  0…4 can be given out again

Who holds a Reservation holds its indices: the writer that fills them, the mapping that names them, the
reader that is just loading them. So nobody reads indices that were given to somebody else meanwhile, and what
an interrupt cuts short is not lost, wherever it comes: the frame goes, with it the object.

Rejected: a count of readers for each range (what an interrupt cuts short stays counted for ever);
`__del__` (Python code that swallows an interrupt and may come at any moment, locks held or not). What is
called when a Reservation ends is one append, in C.

Free ranges are kept by length: one of the same length, else the rest of a longer one, else new indices. When
more ranges came back than there are taken, neighbours are joined, which is O(n log n) once in n times.

Invariants, under the lock while not `_unsure`
* Every index below `_end` is in one range of `_taken` or one of `_free`, and none is in two.
* A range in `_free` has no pages.
`_taken` alone is right at any time: the rest is made from it again after an interrupt.

Lock order: this lock, then the store's.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_JOIN_LEAST = 64
"""Ranges that come back before joining is thought of: less is not worth a sort."""


class Reservation:
    """A range of indices, `first` and `count`, for as long as this object is held."""

    __slots__ = ("__weakref__", "count", "first")

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count


class IndexSpace:
    """Gives out ranges of indices from 0 on, and takes them back when nobody holds them. Thread-safe.

    `invalidate(first, count)` is called when a range comes back, before it is given out again.
    """

    def __init__(self, invalidate: Callable[[int, int], object]) -> None:
        self._invalidate = invalidate
        self._lock = threading.Lock()
        self._gone: deque[weakref.ref[Reservation]] = deque()
        self._taken: dict[int, tuple[int, int, weakref.ref[Reservation]]] = {}
        """First index and count of each range, by the id of its weak reference."""
        self._free: dict[int, list[int]] = {}
        self._end = 0
        self._came_back = 0
        self._unsure = False

    def reserve(self, count: int) -> Reservation:
        """Give out `count` consecutive indices, at least 1."""
        with self._lock:
            self._reclaim()
            self._unsure = True
            reservation = Reservation(self._take(count), count)
            watch = weakref.ref(reservation, self._gone.append)
            self._taken[id(watch)] = reservation.first, count, watch
            self._unsure = False
            return reservation

    def reclaim(self) -> None:
        """Take back what nobody holds any more; cheap where there is nothing."""
        if self._gone or self._unsure:
            with self._lock:
                self._reclaim()

    @property
    def end(self) -> int:
        """The indices given out so far lie below this one."""
        return self._end

    def _reclaim(self) -> None:
        if self._unsure:
            self._rebuild()
        while self._gone:
            # Taken off last: every step before it can be done twice.
            number = id(self._gone[0])
            if number in self._taken:
                first, count, _ = self._taken[number]
                self._invalidate(first, count)
                self._unsure = True
                del self._taken[number]
                self._free.setdefault(count, []).append(first)
                self._came_back += 1
            self._gone.popleft()
            self._unsure = False
        if self._came_back > max(_JOIN_LEAST, len(self._taken)):
            self._rebuild()

    def _take(self, count: int) -> int:
        same = self._free.get(count)
        if same:
            return same.pop()
        longer = min((n for n, ranges in self._free.items() if n > count and ranges), default=0)
        if longer:
            first = self._free[longer].pop()
            self._free.setdefault(longer - count, []).append(first + count)
            return first
        first = self._end
        self._end += count
        return first

    def _rebuild(self) -> None:
        """Make `_free` and `_end` from `_taken`."""
        self._unsure = True
        self._free = {}
        at = 0
        for first, count in sorted(taken[:2] for taken in self._taken.values()):
            if first > at:
                self._free.setdefault(first - at, []).append(at)
            at = first + count
        self._end = at
        self._came_back = 0
        self._unsure = False

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        with self._lock:
            self._reclaim()
            ranges = [taken[:2] for taken in self._taken.values()]
            ranges += [(first, count) for count, firsts in self._free.items() for first in firsts]
            at = 0
            for first, count in sorted(ranges):
                if first != at or count < 1:
                    raise AssertionError(f"range {first}+{count} does not follow index {at}")
                at = first + count
            if at != self._end:
                raise AssertionError(f"the ranges end at {at}, not at {self._end}")
