"""LRU: find the pages that were used longest ago, with two bytes per entry.

Kernel counterpart: zswap's list_lru with its second chance, and the generations of the multi-gen
LRU.

Rejected:

* A linked list. It takes 16 bytes per page, and each load writes to two other places in memory.
* A reference bit and a clock hand. Which page is cold then depends on the hand's position, not on
  the time of the page's last use.

    epoch    0 ────▶ 1 ────▶ 2 ────▶ …        one per group; the next epoch begins when 1/256 of the
                                              pages were used, or when a page is used after a second
    entry    the lowest 16 bits of the epoch, written when the page is stored or loaded

    coldest(n)  ─▶ a histogram of all ages ─▶ the oldest 1/64 of the entries, in order, kept as
                   candidates ─▶ given out n at a time until they are used up

Choosing candidates reads every entry once and yields 1/64 of them, so the cost per candidate does
not depend on the number of entries. A group with fewer than 256 pages begins an epoch with each
call, so its order is exact.

A cache evicts values, of which each may have thousands of slices or pages, and writeback moves
objects. Each has candidates of its own. With common candidates, a caller could get the same entries
again and again, none of which it can use.

Second chance: a candidate is skipped if its epoch has changed, that is, if the page was used since
it was chosen.

Idle for s seconds: `moments` records when epochs began. An epoch lasts at most a second. A page may
therefore count as busy for up to a second too long, but a busy page never counts as idle.

Invariant: no entry is older than OLDEST + SWEEP epochs, so that 16 bits suffice for its age. Every
SWEEP epochs, a sweep reduces the age of entries older than OLDEST to OLDEST.

Locks: the caller holds the pool's mutex in every call.
"""

from libc.stdlib cimport free
from libc.string cimport memmove

from batchzip.core.memory cimport bz_calloc, bz_realloc
from batchzip.core.table cimport (
    BLOCK_BITS, LARGE, RECORD, SLICED, Entry, is_in_pool, table_index,
)

cdef extern from "native.h" nogil:
    int64_t bz_coarse_ns()

cdef enum:
    OLDEST = 1 << 15  # epochs; older entries count as this old
    SWEEP = 1 << 14  # epochs between two sweeps
    SHARE_BITS = 8  # an epoch ends when 1/2⁸ of the pages were used
    CANDIDATE_BITS = 6  # one choice takes 1/2⁶ of the entries
    LEAST = 1024  # minimum number of candidates per choice
    AGES = 1 << 16

cdef int64_t _shift_ns = 0

cdef int64_t SECOND_NS = 1_000_000_000  # maximum length of an epoch: the resolution of idle times
cdef int64_t MOMENT_NS = 62_500_000  # minimum time between two recorded beginnings of epochs


def shift_clock(double seconds) -> None:
    """Move the clock of all groups forward by `seconds`. Only tests use it."""
    global _shift_ns
    _shift_ns += <int64_t>(seconds * 1e9)


cdef inline int64_t _now() noexcept nogil:
    return bz_coarse_ns() + _shift_ns


cdef inline bint _can_go(const Entry *entry, Kinds kinds) noexcept nogil:
    """Return whether removing an entry may save memory."""
    if kinds == OBJECTS:
        return is_in_pool(entry)
    return entry.kind == RECORD or entry.kind == LARGE or entry.kind == SLICED


cdef void lru_open(LruState *lru) noexcept nogil:
    """Initialise `lru`, which is zeroed memory, with epoch 0."""
    lru.until_ns = _now() + SECOND_NS
    _note_moment(lru, lru.until_ns - SECOND_NS)


cdef void lru_close(LruState *lru) noexcept nogil:
    cdef int kinds
    free(lru.moments)
    lru.moments = NULL
    lru.moment_count = lru.moment_room = 0
    for kinds in range(2):
        free(lru.choices[kinds].candidates)
        lru.choices[kinds].candidates = NULL
        lru.choices[kinds].next = lru.choices[kinds].count = 0


cdef uint16_t lru_use(
    LruState *lru, TableState *table, uint64_t count, uint64_t pages
) noexcept nogil:
    """Record the use of `count` of `pages` pages. Return the epoch for their entries."""
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
    """Record when an epoch began. Without memory for it, pages count as busy for longer."""
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
    """Limit the age of all entries to OLDEST, so that 16 bits do not wrap around."""
    cdef uint64_t number
    cdef Entry *entry
    for number in range(<uint64_t>table.room << BLOCK_BITS):
        entry = &table.entries[number]
        if entry.kind and lru_age(lru, entry.epoch) > OLDEST:
            entry.epoch = <uint16_t>(lru.epoch - OLDEST)


cdef int64_t lru_coldest(
    LruState *lru, const TableState *table, Kinds kinds, uint64_t count, uint64_t *indices
) noexcept nogil:
    """Find up to `count` entries of some kinds, the coldest first.

    Return their number (0 if there are none), or −1 if memory is short. Each entry is returned once
    until new candidates are chosen.
    """
    cdef Choice *choice = &lru.choices[<int>kinds]
    cdef uint64_t found = 0
    cdef int turn
    cdef const Candidate *one
    cdef const Entry *entry
    for turn in range(2):
        while choice.next < choice.count and found < count:
            one = &choice.candidates[choice.next]
            choice.next += 1
            if one.number >= <uint64_t>table.room << BLOCK_BITS:
                continue
            entry = &table.entries[one.number]
            if _can_go(entry, kinds) and entry.epoch == one.stamp:
                indices[found] = table_index(table, one.number)
                found += 1
        if found or turn:
            break
        if _choose(lru, table, kinds, count) < 0:
            return -1
    return found


cdef int _choose(
    LruState *lru, const TableState *table, Kinds kinds, uint64_t least
) noexcept nogil:
    """Choose the oldest entries as candidates. Return 0, or −1 if memory is short.

    Entries of one epoch are ordered by number.
    """
    cdef uint64_t numbers = <uint64_t>table.room << BLOCK_BITS, number, held = 0, want, sum = 0
    cdef uint64_t *starts = <uint64_t *>bz_calloc(AGES, sizeof(uint64_t))
    cdef Choice *choice = &lru.choices[<int>kinds]
    cdef Candidate *chosen
    cdef const Entry *entry
    cdef uint32_t age, threshold = 0
    cdef uint64_t at
    if starts is NULL:
        return -1
    for number in range(numbers):
        entry = &table.entries[number]
        if _can_go(entry, kinds):
            starts[lru_age(lru, entry.epoch)] += 1
            held += 1
    want = min(held, max(least, max(<uint64_t>LEAST, held >> CANDIDATE_BITS)))
    choice.next = choice.count = 0
    if not want:
        free(starts)
        return 0
    for age in range(AGES, 0, -1):  # from the oldest: turn counts into positions
        at = starts[age - 1]
        starts[age - 1] = sum
        sum += at
        threshold = age - 1
        if sum >= want:
            break
    chosen = <Candidate *>bz_realloc(choice.candidates, want * sizeof(Candidate))
    if chosen is NULL:
        free(starts)
        return -1
    choice.candidates = chosen
    for number in range(numbers):
        entry = &table.entries[number]
        if not _can_go(entry, kinds):
            continue
        age = lru_age(lru, entry.epoch)
        if age < threshold or starts[age] >= want:
            continue
        at = starts[age]
        starts[age] += 1
        chosen[at].number = number
        chosen[at].stamp = entry.epoch
    choice.count = want
    free(starts)
    return 0


cdef uint32_t lru_idle_age(const LruState *lru, int64_t idle_ns) noexcept nogil:
    """Return the least age, in epochs, of pages that were idle for `idle_ns`.

    Return AGES if there can be none.
    """
    cdef int64_t latest
    cdef uint32_t low = 0, high = lru.moment_count, middle
    cdef uint64_t after
    if idle_ns <= 0:
        return 0
    latest = _now() - idle_ns - SECOND_NS - MOMENT_NS
    while low < high:  # find the first moment after `latest`
        middle = (low + high) // 2
        if lru.moments[middle].at_ns <= latest:
            low = middle + 1
        else:
            high = middle
    if not low:
        return AGES
    # All epochs before the next recorded one began within MOMENT_NS of the one found.
    after = lru.moments[low].epoch if low < lru.moment_count else lru.epoch + 1
    return <uint32_t>min(lru.epoch + 1 - after, <uint64_t>OLDEST)
