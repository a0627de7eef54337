"""IndexSpace: which indices of a group are taken, for one that gives them out itself.

    reserve(5) ─▶ Reservation 0…4        taken as long as anybody holds the object
    reserve(3) ─▶ Reservation 5…7
    the first is dropped ─▶ 0…4 wait, with their pages ─▶ gone() gives them out once more, as a Reservation
                         ─▶ whoever has it forgets the pages and calls free() ─▶ 0…4 can be reserved again

Who holds a Reservation holds its indices: the writer that fills them, the mapping that names them, the
reader that is just loading them. So nobody reads indices that were given to somebody else meanwhile, and what
an interrupt cuts short is not lost, wherever it comes: the frame goes, and with it the object. That holds for
who clears up, too: a Reservation that was not freed waits again.

Rejected: a count of readers for each range (what an interrupt cuts short stays counted for ever); Python
code with a lock (a finalizer that runs under it, in the same thread, waits for itself).

Taken indices are bits of a map, so neighbours that are free are one range without being joined. The first
range that is large enough is given out; for each length the search goes on where nothing can lie before.

Locks: none. Every call keeps the GIL, runs no Python code and makes no object that the collector counts, so
it is one step, for other threads and for finalizers of the same one. (The objects here take no part in cycles.)

Invariants
* A bit is set for each index of a Reservation, living or waiting, and for no other; `end` is behind the last.
* There is room in `waiting` for every Reservation that lives.
* No n indices that follow one another and are free begin before `hint[n]`.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

cimport cython

from batchzip.core.memory cimport bz_realloc

cdef extern from *:
    int __builtin_clzll(unsigned long long) noexcept nogil
    int __builtin_ctzll(unsigned long long) noexcept nogil
    int __builtin_popcountll(unsigned long long) noexcept nogil

cdef enum:
    MOST = 64  # lengths that have a hint of their own; longer ranges share the last one
    LEAST_WORDS = 16  # of the map, and ranges of the list, that are made first

cdef uint64_t ALL = ~<uint64_t>0

cdef struct Range:
    int64_t first
    int64_t count


@cython.final
@cython.no_gc
cdef class _Map:
    """The bits, and what waits: what a Reservation refers to when it ends."""

    cdef uint64_t *bits
    cdef int64_t words
    cdef int64_t end
    cdef int64_t hint[MOST + 1]
    cdef Range *waiting
    cdef int64_t waits
    cdef int64_t room
    cdef int64_t living

    def __cinit__(self):
        memset(self.hint, 0, sizeof(self.hint))

    def __dealloc__(self):
        free(self.bits)
        free(self.waiting)

    cdef int ensure(self, int64_t end) except -1:
        """Have bits up to `end`, and room for one more range."""
        cdef int64_t words = self.words, room = self.room
        cdef void *grown
        if end > words * 64:
            words = max(LEAST_WORDS, (end + 63) // 64, words + words // 2)
            grown = bz_realloc(self.bits, words * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError("no memory for the map of a mapping's indices")
            self.bits = <uint64_t *>grown
            memset(self.bits + self.words, 0, (words - self.words) * sizeof(uint64_t))
            self.words = words
        if self.living + self.waits >= room:
            room = max(LEAST_WORDS, room + room // 2)
            grown = bz_realloc(self.waiting, room * sizeof(Range))
            if grown == NULL:
                raise MemoryError("no memory for the list of a mapping's indices")
            self.waiting = <Range *>grown
            self.room = room
        return 0

    cdef int64_t next_free(self, int64_t at) noexcept:
        """Return the first free index from `at` on."""
        cdef int64_t word = at // 64
        cdef uint64_t unset
        if at >= self.end:
            return at
        unset = ~self.bits[word] & (ALL << (at % 64))
        while not unset:
            word += 1
            if word * 64 >= self.end:
                return self.end
            unset = ~self.bits[word]
        return min(self.end, word * 64 + __builtin_ctzll(unset))

    cdef int64_t next_taken(self, int64_t at, int64_t limit) noexcept:
        """Return the first taken index from `at` on, or a number from `limit` on."""
        cdef int64_t word = at // 64
        cdef uint64_t taken
        if at >= self.end:
            return limit
        taken = self.bits[word] & (ALL << (at % 64))
        while not taken:
            word += 1
            if word * 64 >= self.end or word * 64 >= limit:
                return limit
            taken = self.bits[word]
        return word * 64 + __builtin_ctzll(taken)

    cdef int64_t find(self, int64_t count) noexcept:
        """Return where the first free range of so many begins; it may reach beyond the end."""
        cdef int64_t first, behind
        cdef int64_t at = self.hint[min(count, MOST)]
        while True:
            first = self.next_free(at)
            behind = self.next_taken(first, first + count)
            if behind >= first + count:
                return first
            at = behind

    cdef void mark(self, int64_t first, int64_t count, bint taken) noexcept:
        cdef int64_t at = first, number
        cdef int64_t behind = first + count
        cdef uint64_t mask
        while at < behind:
            number = min(64 - at % 64, behind - at)
            mask = (ALL >> (64 - number)) << (at % 64)
            if taken:
                self.bits[at // 64] |= mask
            else:
                self.bits[at // 64] &= ~mask
            at += number

    cdef int64_t take(self, int64_t count) except -1:
        cdef int64_t first = self.find(count)
        self.ensure(first + count)
        self.mark(first, count, True)
        self.end = max(self.end, first + count)
        if count <= MOST:  # before a longer range, one of MOST may have been passed over
            self.hint[count] = first + count
        return first

    cdef void give_back(self, int64_t first, int64_t count) noexcept:
        cdef int64_t length, word
        self.mark(first, count, False)
        for length in range(1, MOST + 1):
            # Where it was too short before, a range that has these begins so far before them at the most.
            self.hint[length] = min(self.hint[length], max(0, first - length + 1))
        while self.end:
            word = (self.end - 1) // 64
            if self.bits[word]:
                self.end = word * 64 + 64 - __builtin_clzll(self.bits[word])
                break
            self.end = word * 64


@cython.final
@cython.no_gc
cdef class Reservation:
    """A range of indices, `first` and `count`, for as long as this object is held."""

    cdef _Map map
    cdef readonly int64_t first
    cdef readonly int64_t count
    cdef bint is_free

    def free(self) -> None:
        """Say that these indices have no pages: they can be reserved again once this is dropped."""
        self.is_free = True

    def __dealloc__(self):
        cdef _Map map = self.map
        if map is None or not self.count:
            return
        map.living -= 1
        if self.is_free:
            map.give_back(self.first, self.count)
        else:
            map.waiting[map.waits] = Range(self.first, self.count)
            map.waits += 1


@cython.final
cdef class IndexSpace:
    """Gives out ranges of indices from 0 on, and takes them back when nobody holds them. Thread-safe."""

    cdef _Map map

    def __cinit__(self):
        self.map = _Map()

    def reserve(self, int64_t count) -> Reservation:
        """Give out `count` consecutive indices, at least 1."""
        cdef Reservation made = Reservation.__new__(Reservation)
        made.map = self.map
        made.first = self.map.take(count)
        made.count = count
        self.map.living += 1
        return made

    def gone(self):
        """Give a range that nobody holds any more, whose pages are to be forgotten; None if there is none."""
        cdef Reservation made
        cdef Range *last
        if not self.map.waits:
            return None
        made = Reservation.__new__(Reservation)
        self.map.waits -= 1
        last = &self.map.waiting[self.map.waits]
        made.map = self.map
        made.first, made.count = last.first, last.count
        self.map.living += 1
        return made

    @property
    def end(self) -> int:
        """The indices given out so far lie below this one."""
        return self.map.end

    def taken(self) -> int:
        """Count the indices that are taken."""
        cdef int64_t word
        total = 0
        for word in range((self.map.end + 63) // 64):
            total += __builtin_popcountll(self.map.bits[word])
        return total
