"""IndexSpace: which indices of a group are taken, for one that gives them out itself.

    reserve(5) ─▶ IndexReservation 0…4        taken as long as anybody holds the object
    reserve(3) ─▶ IndexReservation 5…7
    the first is dropped ─▶ its pages are erased ─▶ 0…4 can be given out again

Who holds an IndexReservation holds its indices: the writer that fills them, the mapping that names them, the
reader that is just loading them. So nobody reads indices that were given to somebody else meanwhile, and what
an interrupt cuts short is not lost, wherever it comes: the frame goes, with it the object.

Rejected: a count of readers for each range (what an interrupt cuts short stays counted for ever); a lock
and a queue of ranges that are gone (a finalizer or signal handler that comes while its own thread has the
lock waits for itself). Here a call is one step: no Python code runs between the look at the ranges and
their change, and an IndexReservation ends with a call of the core.

Free ranges are kept by length: one of the same length, else the rest of a longer one, else new indices. When
more ranges came back than there are taken, neighbours are joined, which is O(n log n) once in n times.

Invariants
* Every index below `end` is taken, or in one range of `free`; none is in two.
* A range in `free` has no pages.

Locks: the GIL. Lists and dicts are made before the ranges are looked at: making one may run finalizers,
which may come here.
"""

cimport cython
from libc.stdint cimport uint64_t

from batchzip.core.entries cimport Entries

cdef enum:
    JOIN_LEAST = 64  # ranges that come back before joining is thought of: less is not worth a sort


@cython.no_gc  # it can be in no cycle, and what it refers to must be there in __dealloc__
@cython.final
cdef class IndexReservation:
    """A range of indices, `first` and `count`, for as long as this object is held."""

    cdef IndexSpace space
    cdef readonly uint64_t first
    cdef readonly uint64_t count

    def __dealloc__(self):
        if self.space is not None and self.count:
            self.space.take_back(self.first, self.count)


@cython.final
cdef class IndexSpace:
    """Gives out ranges of a group's indices from 0 on, and takes them back when nobody holds them.

    Thread-safe; may be used in signal handlers and finalizers. When a range comes back, its pages are erased.
    """

    cdef Entries entries
    cdef dict free  # lists of first indices by count
    cdef uint64_t free_indices
    cdef uint64_t ranges  # that are taken
    cdef uint64_t came_back  # since neighbours were joined
    cdef readonly uint64_t end
    cdef readonly uint64_t taken

    def __cinit__(self, Entries entries not None):
        self.entries = entries
        self.free = {}

    def reserve(self, uint64_t count) -> IndexReservation:
        """Give out `count` consecutive indices, at least 1."""
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
                (<list>self.free.setdefault(longer - count, spare)).append(reservation.first + count)
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
        """Take a range back for good, with its pages. Where memory is out, its indices are lost."""
        cdef list spare
        self.entries.drop_pages(first, count)
        self.ranges -= 1
        self.taken -= count
        spare = []
        (<list>self.free.setdefault(count, spare)).append(first)
        self.free_indices += count
        self.came_back += 1

    cdef int _join(self) except -1:
        """Join free neighbours. Meanwhile there are none for others."""
        cdef dict free = {}, spare = {}
        cdef list joined = []
        cdef uint64_t first, count, start = 0, stop = 0
        free, self.free = self.free, free
        self.came_back = 0
        for first, count in sorted([(first, count) for count, found in free.items() for first in found]):
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
        """Raise AssertionError where an invariant does not hold; nobody may be changing anything."""
        cdef uint64_t at = 0, total = 0
        for first, count in sorted((first, count) for count, found in self.free.items() for first in found):
            if first < at or count < 1:
                raise AssertionError(f"free range {first}+{count} begins before index {at}")
            at = first + count
            total += count
        if at > self.end or total != self.free_indices or total + self.taken != self.end:
            raise AssertionError(
                f"{total} indices are free and {self.taken} taken, of {self.end}; the last free one is {at}"
            )
