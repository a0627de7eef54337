"""LRU: which pages were used longest ago, from two bytes in each entry.

Kernel counterpart: zswap's list_lru with its second chance, and the generations of the multi-gen LRU.
Rejected: a linked list, at 16 bytes per page and two writes elsewhere in memory per load; a bit and a
hand that goes round, which calls a page cold for where it stands, not for when it was used.

    epoch    0 ────▶ 1 ────▶ 2 ────▶ …        a group's; the next one begins when 1/256 of the pages
                                              were used, or a page is after a second
    entry    its lowest 16 bits, written when the page is stored or loaded

    coldest(n)  ─▶ a histogram of all ages ─▶ the oldest 1/64 of the entries, in order, kept as
                   candidates ─▶ given out n at a time until they are used up

A choice reads every entry, once for each 1/64 of them that is given out: an entry costs the same
however many there are. A group of fewer than 256 pages has an epoch for each call: its order is exact.

Second chance: a candidate that was used since it was chosen is passed over, as its epoch tells.

Idle for s seconds: `moments` knows when epochs began, and no page is used in an epoch that is a second
old. So a page may be called busy for a second too long, and none is called idle that is not.

Invariant: no entry is older than OLDEST + SWEEP epochs, so that 16 bits tell its age: every SWEEP epochs
those that are older than OLDEST are made that old.

Locks: the caller's, the pool's mutex, around every call.
"""

from libc.stdlib cimport free
from libc.string cimport memmove

from batchzip.core.memory cimport bz_calloc, bz_realloc
from batchzip.core.table cimport BLOCK_BITS, LARGE, SLICED, Entry, is_in_pool, table_index

cdef extern from "native.h" nogil:
    int64_t bz_coarse_ns()

cdef enum:
    OLDEST = 1 << 15  # epochs; older entries count as this old
    SWEEP = 1 << 14  # epochs between two looks at all entries that see to it
    SHARE_BITS = 8  # an epoch ends when 1/2⁸ of the pages were used
    CANDIDATE_BITS = 6  # a choice is of 1/2⁶ of the entries
    LEAST = 1024  # candidates of a choice at the least
    AGES = 1 << 16

cdef int64_t _shift_ns = 0

cdef int64_t SECOND_NS = 1_000_000_000  # of an epoch at the most: the grain of what is idle
cdef int64_t MOMENT_NS = 62_500_000  # between two epochs whose beginnings are noted


def shift_clock(double seconds) -> None:
    """Move the clock of all groups forward by `seconds`: for tests."""
    global _shift_ns
    _shift_ns += <int64_t>(seconds * 1e9)


cdef inline int64_t _now() noexcept nogil:
    return bz_coarse_ns() + _shift_ns


cdef inline bint can_go(const Entry *entry) noexcept nogil:
    """Return whether memory is saved when an entry goes."""
    return is_in_pool(entry) or entry.kind == LARGE or entry.kind == SLICED


cdef void lru_open(LruState *lru) noexcept nogil:
    """Begin with epoch 0, in zeroed memory."""
    lru.until_ns = _now() + SECOND_NS
    _note_moment(lru, lru.until_ns - SECOND_NS)


cdef void lru_close(LruState *lru) noexcept nogil:
    free(lru.moments)
    free(lru.candidates)
    lru.moments = NULL
    lru.candidates = NULL
    lru.moment_count = lru.moment_room = 0
    lru.candidate_next = lru.candidate_count = 0


cdef uint16_t lru_use(LruState *lru, TableState *table, uint64_t count, uint64_t pages) noexcept nogil:
    """Note that `count` of `pages` pages are used. Return what their entries get as epoch."""
    cdef int64_t now = _now()
    lru.used += count
    if lru.used > lru.quota or now >= lru.until_ns:
        lru.epoch += 1
        lru.used = 0
        lru.quota = pages >> SHARE_BITS
        lru.until_ns = now + SECOND_NS
        if not lru.moment_count or now - lru.moments[lru.moment_count - 1].at_ns >= MOMENT_NS:
            _note_moment(lru, now)
        if lru.epoch % SWEEP == 0:
            _sweep(lru, table)
    return <uint16_t>lru.epoch


cdef void _note_moment(LruState *lru, int64_t now) noexcept nogil:
    """Note when an epoch began. If there is no memory for it, pages count as busy for longer."""
    cdef uint32_t half = lru.moment_count // 2
    cdef void *grown
    if lru.moment_count == lru.moment_room:
        grown = NULL
        if lru.moment_room < OLDEST:
            grown = bz_realloc(lru.moments, (2 * lru.moment_room + 8) * sizeof(Moment))
        if grown is not NULL:
            lru.moments = <Moment *>grown
            lru.moment_room = 2 * lru.moment_room + 8
        elif half:
            memmove(lru.moments, &lru.moments[half], (lru.moment_count - half) * sizeof(Moment))
            lru.moment_count -= half
        else:
            return
    lru.moments[lru.moment_count].epoch = lru.epoch
    lru.moments[lru.moment_count].at_ns = now
    lru.moment_count += 1


cdef void _sweep(LruState *lru, TableState *table) noexcept nogil:
    """Keep the oldest entries from becoming young again."""
    cdef uint64_t number
    cdef Entry *entry
    for number in range(<uint64_t>table.room << BLOCK_BITS):
        entry = &table.entries[number]
        if entry.kind and lru_age(lru, entry.epoch) > OLDEST:
            entry.epoch = <uint16_t>(lru.epoch - OLDEST)


cdef int64_t lru_coldest(
    LruState *lru, const TableState *table, uint64_t count, uint64_t *indices
) noexcept nogil:
    """Find up to `count` pages in the pool, the longest unused one first. Return how many, or −1: no memory.

    Each is given out once, until a new choice has to be made. 0 means that there are none.
    """
    cdef uint64_t found = 0
    cdef int turn
    cdef const Candidate *one
    cdef const Entry *entry
    for turn in range(2):
        while lru.candidate_next < lru.candidate_count and found < count:
            one = &lru.candidates[lru.candidate_next]
            lru.candidate_next += 1
            if one.number >= <uint64_t>table.room << BLOCK_BITS:
                continue
            entry = &table.entries[one.number]
            if can_go(entry) and entry.epoch == one.stamp:
                indices[found] = table_index(table, one.number)
                found += 1
        if found or turn:
            break
        if _choose(lru, table, count) < 0:
            return -1
    return found


cdef int _choose(LruState *lru, const TableState *table, uint64_t least) noexcept nogil:
    """Make new candidates: the oldest entries, those of one epoch in the order of their numbers."""
    cdef uint64_t numbers = <uint64_t>table.room << BLOCK_BITS, number, held = 0, want, sum = 0
    cdef uint64_t *starts = <uint64_t *>bz_calloc(AGES, sizeof(uint64_t))
    cdef Candidate *chosen
    cdef const Entry *entry
    cdef uint32_t age, threshold = 0
    cdef uint64_t at
    if starts is NULL:
        return -1
    for number in range(numbers):
        entry = &table.entries[number]
        if can_go(entry):
            starts[lru_age(lru, entry.epoch)] += 1
            held += 1
    want = min(held, max(least, max(<uint64_t>LEAST, held >> CANDIDATE_BITS)))
    lru.candidate_next = lru.candidate_count = 0
    if not want:
        free(starts)
        return 0
    for age in range(AGES, 0, -1):  # from the oldest on: counts become places
        at = starts[age - 1]
        starts[age - 1] = sum
        sum += at
        threshold = age - 1
        if sum >= want:
            break
    chosen = <Candidate *>bz_realloc(lru.candidates, want * sizeof(Candidate))
    if chosen is NULL:
        free(starts)
        return -1
    lru.candidates = chosen
    for number in range(numbers):
        entry = &table.entries[number]
        if not can_go(entry):
            continue
        age = lru_age(lru, entry.epoch)
        if age < threshold or starts[age] >= want:
            continue
        at = starts[age]
        starts[age] += 1
        chosen[at].number = number
        chosen[at].stamp = entry.epoch
    lru.candidate_count = want
    free(starts)
    return 0


cdef uint32_t lru_idle_age(const LruState *lru, int64_t idle_ns) noexcept nogil:
    """Return the least age, in epochs, of pages that were not used for so long; AGES: there are none."""
    cdef int64_t latest
    cdef uint32_t low = 0, high = lru.moment_count, middle
    cdef uint64_t after
    if idle_ns <= 0:
        return 0
    latest = _now() - idle_ns - SECOND_NS - MOMENT_NS
    while low < high:  # the first moment that is later
        middle = (low + high) // 2
        if lru.moments[middle].at_ns <= latest:
            low = middle + 1
        else:
            high = middle
    if not low:
        return AGES
    # All epochs before the one noted next began within MOMENT_NS of the one found.
    after = lru.moments[low].epoch if low < lru.moment_count else lru.epoch + 1
    return <uint32_t>min(lru.epoch + 1 - after, <uint64_t>OLDEST)
