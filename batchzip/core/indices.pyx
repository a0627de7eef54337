"""IndexSpace: the allocator of a group's indices, for groups whose users do not choose them.

    reserve(5) ─▶ IndexReservation 0…4        reserved while anybody refers to the object
    reserve(3) ─▶ IndexReservation 5…7
    the first is dropped ─▶ its pages are erased ─▶ 0…4 can be reserved again

A reference to an IndexReservation keeps its indices reserved. The writer that fills them, the
mapping that names them and a reader that loads them each hold one. Nobody can therefore read
indices that were given to somebody else in the meantime. An interrupt leaks no indices either: the
interrupted frame drops its reference.

Rejected: a count of readers per range, because an interrupted reader would stay counted for ever. A
lock and a queue of freed ranges, because a finalizer or signal handler that runs while its own
thread has the lock would deadlock. Here each call is one step: no Python code runs between reading
the ranges and changing them, and an IndexReservation ends in one call of the core.

Free ranges are kept by length. `reserve` takes a range of the same length, otherwise the beginning
of the shortest longer one, otherwise new indices. When more ranges have been freed since the last
join than are reserved, free neighbours are joined. A join is O(n log n), once in n calls.

Invariants
* Every index below `end` is reserved or lies in exactly one range of `free`.
* A range in `free` has no pages.

Locks: the GIL. Lists and dicts are created before the ranges are read. Creating one may run the
garbage collector, whose finalizers may call this module.
"""

cimport cython
from libc.stdint cimport uint64_t

from batchzip.core.entries cimport Entries

cdef enum:
    JOIN_LEAST = 64  # freed ranges before neighbours are joined; fewer are not worth a sort


@cython.no_gc  # it cannot be in a cycle, and __dealloc__ needs `space`
@cython.final
cdef class IndexReservation:
    """A reserved range of indices, `first` and `count`, until the last reference is dropped."""

    cdef IndexSpace space
    cdef readonly uint64_t first
    cdef readonly uint64_t count

    def __dealloc__(self):
        if self.space is not None and self.count:
            self.space.take_back(self.first, self.count)


@cython.final
cdef class IndexSpace:
    """An allocator of ranges of a group's indices, from 0 on.

    A range becomes free when the last reference to its IndexReservation is dropped. Its pages are
    erased then. Thread-safe; may be used in signal handlers and finalizers.
    """

    cdef Entries entries
    cdef dict free  # lists of first indices by count
    cdef uint64_t free_indices
    cdef uint64_t ranges  # number of reserved ranges
    cdef uint64_t came_back  # ranges freed since neighbours were last joined
    cdef readonly uint64_t end
    cdef readonly uint64_t taken

    def __cinit__(self, Entries entries not None):
        self.entries = entries
        self.free = {}

    def reserve(self, uint64_t count) -> IndexReservation:
        """Reserve `count` consecutive indices, at least 1."""
        cdef IndexReservation reservation = IndexReservation.__new__(IndexReservation)
        cdef list spare = [], firsts
        cdef uint64_t longer = 0, length
        if self.came_back > max(<uint64_t>JOIN_LEAST, self.ranges):
            self._join()
        firsts = <list>self.free.get(count)
        if firsts:
            reservation.first = firsts.pop()
            self.free_indices -= count
        else:
            for length, firsts in self.free.items():
                if length > count and firsts and (not longer or length < longer):
                    longer = length
            if longer:
                reservation.first = (<list>self.free[longer]).pop()
                (<list>self.free.setdefault(longer - count, spare)).append(
                    reservation.first + count
                )
                self.free_indices -= count
            else:
                reservation.first = self.end
                self.end += count
        reservation.count = count
        reservation.space = self
        self.ranges += 1
        self.taken += count
        return reservation

    cdef void take_back(self, uint64_t first, uint64_t count) noexcept:
        """Free a range, and erase its pages. If there is no memory, its indices are lost."""
        cdef list spare
        self.entries.drop_pages(first, count)
        self.ranges -= 1
        self.taken -= count
        spare = []
        (<list>self.free.setdefault(count, spare)).append(first)
        self.free_indices += count
        self.came_back += 1

    cdef int _join(self) except -1:
        """Join free neighbours. During the join, other callers find no free ranges."""
        cdef dict free = {}, spare = {}
        cdef list joined = []
        cdef uint64_t first, count, start = 0, stop = 0
        free, self.free = self.free, free
        self.came_back = 0
        for first, count in sorted(
            [(first, count) for count, found in free.items() for first in found]
        ):
            if first != stop or start == stop:
                if stop > start:
                    joined.append((start, stop))
                start = first
            stop = first + count
        if stop > start:
            joined.append((start, stop))
        for start, stop in joined:
            found = []
            if stop == self.end:
                self.end = start
                self.free_indices -= stop - start
            else:
                (<list>self.free.setdefault(stop - start, found)).append(start)
        return 0

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant is violated. The caller stops all other use."""
        cdef uint64_t at = 0, total = 0
        for first, count in sorted(
            (first, count) for count, found in self.free.items() for first in found
        ):
            if first < at or count < 1:
                raise AssertionError(f"free range {first}+{count} begins before index {at}")
            at = first + count
            total += count
        if at > self.end or total != self.free_indices or total + self.taken != self.end:
            raise AssertionError(
                f"{total} indices are free and {self.taken} are reserved, but there are "
                f"{self.end}; the last free range ends at {at}"
            )
