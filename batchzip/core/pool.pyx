"""Pool: the allocator of compressed objects, zsmalloc's design over ranges of any length.

    size class   objects of the same number of grains. A grain is page_size / 256, at least 16 bytes.
    zspage       room for 1 to 64 objects of one class, side by side
    range        a part of the address space: a zspage, or free
    handle       generation << 48 | slot; it stays good while its object moves

    address space   | zspage | zspage |  free  | zspage |free| zspage | ahead |   never used
    machine pages   |·······|·······|·······|·······|·······|·······|·······|
                    0                                                 top

A zspage has as many objects as its class deserves, about a third of the root of how many live, so what
it has not filled yet is little beside what its class holds, and a class of three objects wastes nothing.
It lies wherever there is room and need not begin or end at a machine page: what is lost to the rounding is
a page for the pool, not one for each class. Rejected: zspages of whole machine pages, as zsmalloc
has them (60 classes of one object each hold 60 pages); objects end to end without classes (after a free,
only what is no longer fits the gap).

Every object begins with four bytes that tell its slot. Only compaction needs them, to find the word of what
it moves, and they are only a hint: believed if that word is live and names this place. All else is kept
out of the objects' memory, so whatever happens to that harms no other object.

    words, 8 bytes a slot, in a memory of their own that readers in other processes map
    slot  bits
    0     0…63    epoch: grows before and after objects move, odd meanwhile
    1     0…63    slots that have memory, these first ones included
    2…7           not used
    8…    48…63   generation: odd while the object is live
          b…47    live: grain where the object begins; its bytes are 4 further     b = log2(page_size)
          0…b−1   live: its length in bytes − 1
          0…47    free: the next free slot, or 0

A reader copies what a word names and looks at the word and at the epoch again. Bytes are there before
the word that names them, and a word changes before what it named is given away; an object that is moved by
less than its length is torn meanwhile, which its checksum tells. A handle is good if its generation is its slot's
and odd. A slot that reaches the last generation is never used again.

A machine page is backed while it has memory, and idle if no zspage touches it then. Some idle ones are kept;
beyond that, runs of them are given back. Memory comes in runs as well: for what a batch still needs, and a 256th
of what is held ahead.

Invariants (`audit.py` checks them)
* Ranges tile [0, top). No two neighbours are free, and the last is a zspage. A zspage has an object.
* pages[p] names the first zspage that touches page p, 0 if none does; then p is backed.
* held = backed pages, idle = those that pages[p] says nothing of, free_grains = those of free ranges.
* A zspage with a hole is in the list of its class and fullness; a full one is in none. A free range is in
  the list of its length.
* A live word names an object whose bit is set in its zspage; each set bit has one word.

Locks: one mutex a pool, taken without the GIL and held within one call. Nothing is called back under it.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EBADF, EINVAL, ENOMEM, ENOSPC
from libc.math cimport sqrtf
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from batchzip.core.memory cimport (
    bz_malloc, bz_realloc, machine_page, memory_close, memory_create, memory_grow, memory_held,
    memory_release, memory_reserve,
)
from batchzip.core.ring cimport forks

from batchzip.errors import BadArgument, BadHandle, ClosedError, ForkedProcess, PoolFull

cdef extern from *:
    """
    #include "native.h"
    static inline uint32_t bz_ones(uint64_t bits) { return (uint32_t)__builtin_popcountll(bits); }
    static inline uint32_t bz_lowest(uint64_t bits) { return (uint32_t)__builtin_ctzll(bits); }
    static inline uint32_t bz_log2(uint64_t value) { return 63 - (uint32_t)__builtin_clzll(value); }
    """
    uint32_t bz_ones(uint64_t) nogil
    uint32_t bz_lowest(uint64_t) nogil
    uint32_t bz_log2(uint64_t) nogil
    uint64_t bz_load64(const uint64_t *) nogil
    void bz_store64(uint64_t *, uint64_t) nogil
    void bz_order_stores() nogil
    int pthread_mutex_init(Mutex *, void *) nogil
    int pthread_mutex_destroy(Mutex *) nogil
    int pthread_mutex_lock(Mutex *) nogil
    int pthread_mutex_unlock(Mutex *) nogil
    uint64_t UINT64_MAX

cdef enum:
    HEADER = 4  # bytes before each object: its slot
    UNLISTED = 7  # group of a zspage that is in no list
    MOST_OBJECTS = 64  # of a zspage: its bitmap has as many bits
    MOST_GRAINS = 2048  # of a zspage: 8 pages, as of zsmalloc
    MOST_RANGES = 0x7FFFFFFF
    FIT_LOOKS = 8  # ranges of a list that has shorter ones, too, that are looked at
    BACKED_LOOKS = 64  # ranges that are looked at for one that needs no memory
    AHEAD_PAGES = 256  # taken ahead, at most
    IDLE_PAGES = 32  # that may be kept, besides a 64th of what is held
    SETTLE_PAGES = 512  # idle ones given back in one go, at most
    LOOKS_A_MOVE = 16  # ranges that compaction looks at in the time of one move
    SLIDE_PAGES = 256  # that slide over a free range before that is left behind
    LOOSE_SHARE = 128  # a 128th of the memory in use is worth sliding for
    COMPACT_TURNS = 16  # in one call, while they gain nothing

cdef extern from *:
    """
    #define BZ_BACKED 0x80000000u        /* in pages[]: the page has memory */
    #define BZ_ONE ((uint64_t)1 << 48)   /* one generation; set in a live word */
    #define BZ_SLOT (BZ_ONE - 1)
    #define BZ_RETIRED ((uint64_t)0xFFFE << 48)
    #define BZ_MOST_SLOTS ((uint64_t)1 << 32) /* the header of an object has four bytes */
    #define BZ_FIRST_BYTES ((uint64_t)16 << 30)
    #define BZ_LEAST_BYTES ((uint64_t)2 << 20)
    """
    uint32_t BACKED "BZ_BACKED"
    uint64_t ONE "BZ_ONE"
    uint64_t SLOT "BZ_SLOT"
    uint64_t RETIRED "BZ_RETIRED"
    uint64_t MOST_SLOTS "BZ_MOST_SLOTS"
    uint64_t FIRST_BYTES "BZ_FIRST_BYTES"  # of address space
    uint64_t LEAST_BYTES "BZ_LEAST_BYTES"  # likewise, where there is a limit to it

# Ranges.

cdef inline uint64_t _length(const Range *span) noexcept nogil:
    return span.live if not span.capacity else <uint64_t>span.capacity * span.grains


cdef inline uint64_t _end(const Range *span) noexcept nogil:
    return span.first + _length(span)


cdef inline uint64_t _page_of(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the machine page that a grain begins in."""
    return grain << pool.grain_shift >> pool.page_shift


cdef inline uint64_t _end_page(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the machine page behind the last that is touched below a grain."""
    return ((grain << pool.grain_shift) + (<uint64_t>1 << pool.page_shift) - 1) >> pool.page_shift


cdef bint _has_spare_range(PoolState *pool) noexcept nogil:
    """See that a record can be taken. Return False if there is no memory for one."""
    cdef uint64_t room = pool.range_room
    cdef Range *grown
    if pool.spare_range or pool.range_count < pool.range_room:
        return True
    room = min(room + room // 8 + 64, <uint64_t>MOST_RANGES)
    if room == pool.range_room:
        return False
    grown = <Range *>bz_realloc(pool.ranges, room * sizeof(Range))
    if grown is NULL:
        return False
    pool.ranges = grown
    pool.range_room = <uint32_t>room
    return True


cdef uint32_t _take_range(PoolState *pool) noexcept nogil:
    """Take a record that `_has_spare_range` saw."""
    cdef uint32_t at = pool.spare_range
    if at:
        pool.spare_range = pool.ranges[at].after
    else:
        at = pool.range_count
        pool.range_count += 1
    memset(&pool.ranges[at], 0, sizeof(Range))
    pool.ranges[at].group = UNLISTED
    return at


cdef void _drop_range(PoolState *pool, uint32_t at) noexcept nogil:
    memset(&pool.ranges[at], 0, sizeof(Range))
    pool.ranges[at].after = pool.spare_range
    pool.spare_range = at


cdef void _link(PoolState *pool, uint32_t at, uint32_t below, uint32_t above) noexcept nogil:
    """Put a range between two neighbours; 0: there is none."""
    pool.ranges[at].below = below
    pool.ranges[at].above = above
    if below:
        pool.ranges[below].above = at
    if above:
        pool.ranges[above].below = at
    else:
        pool.last = at


cdef void _unlink(PoolState *pool, uint32_t at) noexcept nogil:
    """Unlink a range from its neighbours."""
    cdef Range *ranges = pool.ranges
    cdef uint32_t below = ranges[at].below, above = ranges[at].above
    if below:
        ranges[below].above = above
    if above:
        ranges[above].below = below
    else:
        pool.last = below


# Free ranges: lists by length, sixteen to each power of two; those of up to 31 grains by the grain.

cdef inline uint32_t _list_of(uint64_t length) noexcept nogil:
    cdef uint32_t log
    if length < 16:
        return <uint32_t>length
    log = bz_log2(length)
    return min((log - 3) * 16 + <uint32_t>(length >> (log - 4) & 15), <uint32_t>(FREE_LISTS - 1))


cdef void _list_free(PoolState *pool, uint32_t at) noexcept nogil:
    cdef Range *span = &pool.ranges[at]
    cdef uint32_t number = _list_of(span.live), head = pool.free_lists[number]
    span.before = 0
    span.after = head
    if head:
        pool.ranges[head].before = at
    pool.free_lists[number] = at
    pool.free_map[number >> 6] |= <uint64_t>1 << (number & 63)
    pool.free_grains += span.live


cdef void _unlist_free(PoolState *pool, uint32_t at) noexcept nogil:
    cdef Range *span = &pool.ranges[at]
    cdef uint32_t number = _list_of(span.live)
    if span.before:
        pool.ranges[span.before].after = span.after
    else:
        pool.free_lists[number] = span.after
        if not span.after:
            pool.free_map[number >> 6] &= ~(<uint64_t>1 << (number & 63))
    if span.after:
        pool.ranges[span.after].before = span.before
    pool.free_grains -= span.live


cdef uint32_t _next_list(const PoolState *pool, uint32_t number) noexcept nogil:
    """Return the first list from `number` on that has a range; FREE_LISTS: none has."""
    cdef uint32_t word = number >> 6
    cdef uint64_t bits
    if number >= FREE_LISTS:
        return FREE_LISTS
    bits = pool.free_map[word] >> (number & 63) << (number & 63)
    while not bits:
        word += 1
        if word == FREE_WORDS:
            return FREE_LISTS
        bits = pool.free_map[word]
    return word * 64 + bz_lowest(bits)


cdef uint32_t _find_free(const PoolState *pool, uint64_t length) noexcept nogil:
    """Return a free range of at least `length` grains, about the shortest; 0: there is none."""
    cdef uint32_t number = _list_of(length), looks, at
    if length >= 32:
        at = pool.free_lists[number]
        for looks in range(FIT_LOOKS):
            if not at or pool.ranges[at].live >= length:
                break
            at = pool.ranges[at].after
        else:
            at = 0
        if at:
            return at
        number += 1
    number = _next_list(pool, number)
    return 0 if number == FREE_LISTS else pool.free_lists[number]


cdef uint32_t _find_backed(const PoolState *pool, uint64_t length) noexcept nogil:
    """Return a free range whose first `length` grains have memory; 0: not soon found."""
    cdef uint32_t number = _next_list(pool, _list_of(length)), at, looks = 0
    cdef const Range *span
    while number < FREE_LISTS:
        at = pool.free_lists[number]
        while at:
            span = &pool.ranges[at]
            if span.live >= length and not _unbacked(
                pool, _page_of(pool, span.first), _end_page(pool, span.first + length)
            ):
                return at
            looks += 1
            if looks == BACKED_LOOKS:
                return 0
            at = span.after
        number = _next_list(pool, number + 1)
    return 0


# Machine pages.

cdef uint64_t _unbacked(const PoolState *pool, uint64_t first, uint64_t end) noexcept nogil:
    """Count the pages of [first, end) that have no memory."""
    cdef uint64_t count = 0, page
    for page in range(first, end):
        count += page >= pool.page_room or not pool.pages[page] & BACKED
    return count


cdef void _touch(PoolState *pool, uint32_t at) noexcept nogil:
    """Note the backed pages that a zspage touches."""
    cdef const Range *span = &pool.ranges[at]
    cdef uint64_t page, end = _end_page(pool, _end(span))
    cdef uint32_t first
    for page in range(_page_of(pool, span.first), end):
        first = pool.pages[page] & ~BACKED
        pool.idle -= first == 0
        if not first or pool.ranges[first].first > span.first:
            pool.pages[page] = BACKED | at


cdef void _untouch(PoolState *pool, uint32_t at) noexcept nogil:
    """Take back what `_touch` noted, before the zspage's place or neighbours change."""
    cdef const Range *span = &pool.ranges[at]
    cdef uint64_t page, end = _end_page(pool, _end(span))
    cdef uint32_t next = span.above
    if next and not pool.ranges[next].capacity:
        next = pool.ranges[next].above
    for page in range(_page_of(pool, span.first), end):
        if pool.pages[page] & ~BACKED != at:
            continue
        if next and _page_of(pool, pool.ranges[next].first) == page:
            pool.pages[page] = BACKED | next
        else:
            pool.pages[page] = BACKED
            pool.idle += 1


cdef uint32_t _zspage_at(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the zspage that has a grain; 0: none has."""
    cdef uint32_t at
    if grain >= pool.top:
        return 0
    at = pool.pages[_page_of(pool, grain)] & ~BACKED
    while at and _end(&pool.ranges[at]) <= grain:
        at = pool.ranges[at].above
    if not at or pool.ranges[at].first > grain or not pool.ranges[at].capacity:
        return 0
    return at


cdef void _punch(PoolState *pool, uint64_t keep) noexcept nogil:
    """Give the memory of idle pages back, run by run, until at most `keep` are left."""
    cdef uint64_t seen = 0, page, end, most
    while pool.idle > keep and seen <= pool.page_room:
        if pool.hand >= pool.page_room:
            pool.hand = 0
        page = end = pool.hand
        most = min(pool.page_room, page + pool.idle - keep)
        while end < most and pool.pages[end] == BACKED:
            end += 1
        if end > page and not memory_release(
            &pool.data, page << pool.page_shift, (end - page) << pool.page_shift
        ):
            memset(&pool.pages[page], 0, (end - page) * sizeof(uint32_t))
            pool.idle -= end - page
            pool.held -= (end - page) << pool.page_shift
        pool.hand = max(end, page + 1)
        seen += pool.hand - page


cdef void pool_settle(PoolState *pool) noexcept nogil:
    """Give back the memory that is idle beyond what may be."""
    cdef uint64_t most = IDLE_PAGES + (pool.held >> pool.page_shift) // 64
    if pool.idle > most:
        _punch(pool, most - min(most // 2, <uint64_t>SETTLE_PAGES))


cdef int _try_back(PoolState *pool, uint64_t first, uint64_t end) noexcept nogil:
    """Give memory to the pages of [first, end) that have none. Return 0, -ENOSPC or -ENOMEM."""
    cdef uint64_t room = pool.page_room, size = pool.data.size, page, run
    cdef uint64_t bytes = _unbacked(pool, first, end) << pool.page_shift
    cdef uint32_t *grown
    if bytes > pool.limit or pool.held > pool.limit - bytes:
        return -ENOSPC
    if end > room:
        room = max(end, room + room // 8 + 512)
        grown = <uint32_t *>bz_realloc(pool.pages, room * sizeof(uint32_t))
        if grown is NULL:
            return -ENOMEM
        memset(grown + pool.page_room, 0, (room - pool.page_room) * sizeof(uint32_t))
        pool.pages = grown
        pool.page_room = room
    while end << pool.page_shift > size:
        size *= 2
    if size > pool.data.size and memory_grow(&pool.data, size):
        return -ENOMEM
    page = first
    while page < end:
        if pool.pages[page] & BACKED:
            page += 1
            continue
        run = page
        while run < end and not pool.pages[run] & BACKED:
            run += 1
        if memory_reserve(&pool.data, page << pool.page_shift, (run - page) << pool.page_shift):
            return -ENOMEM
        pool.held += (run - page) << pool.page_shift
        pool.idle += run - page
        while page < run:
            pool.pages[page] = BACKED
            page += 1
    return 0


cdef int _back(PoolState *pool, uint64_t first, uint64_t end, uint64_t most) noexcept nogil:
    """Give memory to the pages that touch grains [first, end), and to some ahead, below grain `most`.

    Return 0, -ENOSPC or -ENOMEM: some pages may be idle then.
    """
    cdef uint64_t page = _page_of(pool, first), end_page = _end_page(pool, end), ahead
    cdef int failed
    if not _unbacked(pool, page, end_page):
        return 0
    ahead = min(max((pool.held >> pool.page_shift) // 256, <uint64_t>1), <uint64_t>AHEAD_PAGES)
    if end > pool.top:
        ahead = max(ahead, _end_page(pool, end + pool.fresh) - end_page)
    ahead = min(ahead, max(_page_of(pool, most), end_page) - end_page)
    if _try_back(pool, page, end_page + ahead) == 0:
        return 0
    failed = _try_back(pool, page, end_page)
    if failed and pool.idle:
        _punch(pool, 0)
        failed = _try_back(pool, page, end_page)
    return failed


# Zspages.

cdef inline uint32_t _group_of(const Range *span) noexcept nogil:
    """Return the list that a zspage belongs to: by quarters of its capacity."""
    cdef uint32_t four = 4 * bz_ones(span.live), capacity = span.capacity
    if four == 4 * capacity:
        return UNLISTED
    return (four >= capacity) + (four >= 2 * capacity) + (four >= 3 * capacity)


cdef void _leave_group(PoolState *pool, uint32_t at) noexcept nogil:
    cdef Range *span = &pool.ranges[at]
    if span.group == UNLISTED:
        return
    if span.before:
        pool.ranges[span.before].after = span.after
    else:
        pool.classes[span.grains].groups[span.group] = span.after
    if span.after:
        pool.ranges[span.after].before = span.before
    span.before = span.after = 0
    span.group = UNLISTED


cdef inline void _regroup(PoolState *pool, uint32_t at) noexcept nogil:
    """Put a zspage into the list that its fullness asks for."""
    cdef Range *span = &pool.ranges[at]
    cdef uint32_t group = _group_of(span), head
    if group == span.group:
        return
    _leave_group(pool, at)
    if group == UNLISTED:
        return
    head = pool.classes[span.grains].groups[group]
    span.group = group
    span.after = head
    if head:
        pool.ranges[head].before = at
    pool.classes[span.grains].groups[group] = at


cdef inline uint32_t _capacity(const PoolState *pool, uint32_t grains) noexcept nogil:
    """Return how many objects the next zspage of a class is to have room for."""
    cdef uint32_t wanted = <uint32_t>(sqrtf(<float>pool.classes[grains].live) / 3)
    return max(min(wanted, <uint32_t>MOST_OBJECTS, <uint32_t>MOST_GRAINS // grains), <uint32_t>1)


cdef uint32_t _begin(PoolState *pool, uint32_t at, uint32_t grains, uint32_t capacity) noexcept nogil:
    """Make a record, whose place and neighbours are set, a zspage without objects."""
    cdef Range *span = &pool.ranges[at]
    cdef SizeClass *kind = &pool.classes[grains]
    span.grains = grains
    span.capacity = capacity
    span.live = 0
    span.before = span.after = 0
    span.group = UNLISTED
    kind.room += capacity
    kind.zspages += 1
    _touch(pool, at)
    return at


cdef uint32_t _carve(
    PoolState *pool, uint32_t free_range, uint32_t grains, uint32_t capacity
) noexcept nogil:
    """Make a zspage, of pages that are backed, at the beginning of a free range."""
    cdef uint32_t at = free_range
    cdef Range *rest = &pool.ranges[free_range]
    cdef uint64_t length = <uint64_t>grains * capacity
    _unlist_free(pool, free_range)
    if rest.live > length:
        at = _take_range(pool)
        pool.ranges[at].first = rest.first
        _link(pool, at, rest.below, free_range)
        rest.first += length
        rest.live -= length
        _list_free(pool, free_range)
    return _begin(pool, at, grains, capacity)


cdef uint32_t _extend(PoolState *pool, uint32_t grains, uint32_t capacity) noexcept nogil:
    """Make a zspage, of pages that are backed, at the top."""
    cdef uint32_t at = _take_range(pool)
    pool.ranges[at].first = pool.top
    _link(pool, at, pool.last, 0)
    pool.top += <uint64_t>grains * capacity
    return _begin(pool, at, grains, capacity)


cdef uint32_t _make_zspage(PoolState *pool, uint32_t grains, int *error) noexcept nogil:
    """Make a zspage for objects of a class. Return 0 where that cannot be, and why in `error`."""
    cdef uint32_t capacity = _capacity(pool, grains), fitting
    cdef uint32_t at = _find_free(pool, <uint64_t>grains * capacity)
    cdef Range *span
    if not _has_spare_range(pool):
        error[0] = -ENOMEM
        return 0
    if not at and capacity > 1:
        at = _find_free(pool, grains)
    if at:
        span = &pool.ranges[at]
        fitting = <uint32_t>min(<uint64_t>capacity, span.live // grains)
        if not _back(pool, span.first, span.first + fitting * grains, _end(span)):
            return _carve(pool, at, grains, fitting)
        at = _find_backed(pool, grains)
        if at:
            return _carve(pool, at, grains, 1)
    while True:
        if pool.top + capacity * grains > <uint64_t>1 << (GENERATION_SHIFT - pool.length_bits):
            error[0] = -ENOMEM
        else:
            error[0] = _back(pool, pool.top, pool.top + capacity * grains, UINT64_MAX)
        if not error[0]:
            return _extend(pool, grains, capacity)
        if capacity == 1:
            return 0
        capacity = 1


cdef void _free_range(PoolState *pool, uint32_t at, uint64_t length) noexcept nogil:
    """Make a record, whose place and neighbours are set, a free range; join it with its neighbours."""
    cdef Range *ranges = pool.ranges
    cdef Range *span = &ranges[at]
    cdef uint32_t below = span.below, above = span.above
    span.grains = span.capacity = 0
    span.live = length
    span.group = UNLISTED
    if above and not ranges[above].capacity:
        _unlist_free(pool, above)
        span.live += ranges[above].live
        _unlink(pool, above)
        _drop_range(pool, above)
    if below and not ranges[below].capacity:
        _unlist_free(pool, below)
        ranges[below].live += span.live
        _unlink(pool, at)
        _drop_range(pool, at)
        at = below
    if ranges[at].above:
        _list_free(pool, at)
        return
    pool.top = ranges[at].first
    _unlink(pool, at)
    _drop_range(pool, at)


cdef void _end_zspage(PoolState *pool, uint32_t at) noexcept nogil:
    """Make a zspage without objects a free range."""
    cdef Range *span = &pool.ranges[at]
    cdef SizeClass *kind = &pool.classes[span.grains]
    cdef uint64_t length = _length(span)
    _leave_group(pool, at)
    kind.room -= span.capacity
    kind.zspages -= 1
    _untouch(pool, at)
    _free_range(pool, at, length)


# Objects.

cdef inline uint32_t _grains(const PoolState *pool, uint32_t length) noexcept nogil:
    """Return the class of an object of `length` bytes."""
    return (length + HEADER + (1 << pool.grain_shift) - 1) >> pool.grain_shift


cdef inline uint64_t *_words(const PoolState *pool) noexcept nogil:
    return <uint64_t *>pool.words.base


cdef inline uint8_t *_bytes(const PoolState *pool, uint64_t grain) noexcept nogil:
    return pool.data.base + (grain << pool.grain_shift)


cdef inline uint64_t _place(const PoolState *pool, uint64_t word) noexcept nogil:
    """Return the grain that a live word names."""
    return (word & SLOT) >> pool.length_bits


cdef inline uint32_t _bytes_of(const PoolState *pool, uint64_t word) noexcept nogil:
    """Return the length of a live word's object."""
    return <uint32_t>(word & ((<uint64_t>1 << pool.length_bits) - 1)) + 1


cdef inline uint64_t _word(const PoolState *pool, uint64_t handle) noexcept nogil:
    """Return the word of a live handle; 0: it is not live."""
    cdef uint64_t slot = handle & SLOT, word
    if slot < FIRST_SLOT or slot >= pool.slots:
        return 0
    word = bz_load64(&_words(pool)[slot])
    if (word ^ handle) >> GENERATION_SHIFT or not word & ONE or _place(pool, word) >= pool.top:
        return 0
    return word


cdef bint _has_slot(PoolState *pool) noexcept nogil:
    """See that a slot is free. Return False if there is no memory for one."""
    cdef uint64_t bytes = pool.slots * 8, size = pool.words.size
    cdef uint64_t page = <uint64_t>1 << pool.page_shift, more = page
    if pool.free_slot or pool.next_slot < pool.slots:
        return True
    more += bytes // 64 & -page
    if (bytes + more) // 8 > MOST_SLOTS:
        return False
    while bytes + more > size:
        size *= 2
    if size > pool.words.size and memory_grow(&pool.words, size):
        return False
    if memory_reserve(&pool.words, bytes, more):
        more = page
        if memory_reserve(&pool.words, bytes, more):
            return False
    pool.slots = (bytes + more) // 8
    bz_store64(&_words(pool)[1], pool.slots)
    return True


cdef int _allocate(PoolState *pool, uint32_t length, uint64_t *handle) noexcept nogil:
    cdef uint32_t grains = _grains(pool, length), at = 0, bit
    cdef int group = GROUPS - 1, error = 0
    cdef SizeClass *kind = &pool.classes[grains]
    cdef Range *span
    cdef uint64_t slot, place, word
    if not _has_slot(pool):
        return -ENOMEM
    while group >= 0 and not at:
        at = kind.groups[group]
        group -= 1
    if not at:
        at = _make_zspage(pool, grains, &error)
        if not at:
            return error
    span = &pool.ranges[at]
    bit = bz_lowest(~span.live)
    span.live |= <uint64_t>1 << bit
    _regroup(pool, at)
    kind.live += 1
    slot = pool.free_slot
    if slot:
        pool.free_slot = _words(pool)[slot] & SLOT
    else:
        slot = pool.next_slot
        pool.next_slot += 1
    place = span.first + bit * grains
    (<uint32_t *>_bytes(pool, place))[0] = <uint32_t>slot
    word = (_words(pool)[slot] & ~SLOT) + ONE
    bz_store64(&_words(pool)[slot], word | place << pool.length_bits | (length - 1))
    pool.objects += 1
    pool.stored += length
    handle[0] = word | slot
    return 0


cdef uint32_t _free(PoolState *pool, uint64_t handle, bint is_unused) noexcept nogil:
    """Free an object; an unused one's handle was not given out, so its generation is used again."""
    cdef uint64_t word = _word(pool, handle), slot = handle & SLOT, place
    cdef uint32_t length, at, bit
    cdef Range *span
    if not word:
        return 0
    place = _place(pool, word)
    length = _bytes_of(pool, word)
    at = _zspage_at(pool, place)
    if not at:
        return 0
    span = &pool.ranges[at]
    bit = <uint32_t>(place - span.first) // span.grains
    if not span.live >> bit & 1:
        return 0
    word = (word & ~SLOT) - ONE if is_unused else (word & ~SLOT) + ONE
    if word < RETIRED:
        word |= pool.free_slot
        pool.free_slot = slot
    bz_store64(&_words(pool)[slot], word)
    bz_order_stores()
    span.live &= ~(<uint64_t>1 << bit)
    pool.classes[span.grains].live -= 1
    pool.objects -= 1
    pool.stored -= length
    if span.live:
        _regroup(pool, at)
    else:
        _end_zspage(pool, at)
    return length


cdef void pool_lock(PoolState *pool) noexcept nogil:
    pthread_mutex_lock(&pool.mutex)


cdef void pool_unlock(PoolState *pool) noexcept nogil:
    pthread_mutex_unlock(&pool.mutex)


cdef int pool_allocate(
    PoolState *pool, uint32_t count, const uint32_t *lengths, uint64_t *handles
) noexcept nogil:
    """Allocate an object for each length, or none. Return 0, -EBADF, -EINVAL, -ENOMEM or -ENOSPC."""
    cdef uint32_t number
    cdef int error = 0
    cdef SizeClass *kind
    cdef uint32_t grains
    if pool.closed:
        return -EBADF
    pool.fresh = 0
    for number in range(count):
        if lengths[number] - 1 >= pool.page_size:
            return -EINVAL
        grains = _grains(pool, lengths[number])
        kind = &pool.classes[grains]
        if kind.live == kind.room:
            pool.fresh += grains
    pool.fresh -= min(pool.fresh, pool.free_grains)
    number = 0
    while number < count:
        error = _allocate(pool, lengths[number], &handles[number])
        if error:
            break
        pool.fresh -= min(pool.fresh, <uint64_t>_grains(pool, lengths[number]))
        number += 1
    pool.fresh = 0
    if error:
        while number:
            number -= 1
            _free(pool, handles[number], True)
        pool_settle(pool)
    return error


cdef uint8_t *pool_bytes(PoolState *pool, uint64_t handle, uint32_t *length) noexcept nogil:
    """Return where an object's bytes are, and their length; NULL: it is not live."""
    cdef uint64_t word = _word(pool, handle)
    if not word:
        return NULL
    length[0] = _bytes_of(pool, word)
    return _bytes(pool, _place(pool, word)) + HEADER


cdef uint32_t pool_free(PoolState *pool, uint64_t handle) noexcept nogil:
    """Free an object. Return its length; 0: it is not live."""
    return _free(pool, handle, False)


# Compaction.

cdef uint32_t _slot_at(PoolState *pool, uint64_t place, int64_t *budget) noexcept nogil:
    """Return the slot of the object at a place, and mend its header if that does not tell."""
    cdef uint32_t *header = <uint32_t *>_bytes(pool, place)
    cdef uint64_t *words = _words(pool)
    cdef uint64_t slot = header[0], word
    if FIRST_SLOT <= slot < pool.slots:
        word = words[slot]
        if word & ONE and _place(pool, word) == place:
            return <uint32_t>slot
    budget[0] -= pool.next_slot // 256  # it takes about as long as so many moves
    for slot in range(FIRST_SLOT, pool.next_slot):
        word = words[slot]
        if word & ONE and _place(pool, word) == place:
            header[0] = <uint32_t>slot
            return <uint32_t>slot
    return 0


cdef bint _find_slots(
    PoolState *pool, const Range *span, uint32_t *slots, int64_t *budget
) noexcept nogil:
    """Find the slot of each object of a zspage, before any is moved."""
    cdef uint64_t bits = span.live
    cdef uint32_t bit
    while bits:
        bit = bz_lowest(bits)
        bits &= bits - 1
        slots[bit] = _slot_at(pool, span.first + bit * span.grains, budget)
        if not slots[bit]:
            return False
    return True


cdef void _move(PoolState *pool, uint32_t slot, uint64_t to) noexcept nogil:
    """Copy an object to another place, and have its word name that."""
    cdef uint64_t *word = &_words(pool)[slot]
    cdef uint32_t length = _bytes_of(pool, word[0])
    memmove(_bytes(pool, to), _bytes(pool, _place(pool, word[0])), HEADER + length)
    (<uint32_t *>_bytes(pool, to))[0] = slot  # what was copied may have been spoilt meanwhile
    bz_store64(word, (word[0] & ~SLOT) | to << pool.length_bits | (length - 1))
    bz_order_stores()


cdef void _step_epoch(PoolState *pool) noexcept nogil:
    bz_store64(_words(pool), _words(pool)[0] + 1)
    bz_order_stores()


cdef uint32_t _find_source(const PoolState *pool, uint32_t grains) noexcept nogil:
    """Return about the emptiest zspage whose objects the others of its class have room for; or 0."""
    cdef const SizeClass *kind = &pool.classes[grains]
    cdef uint64_t holes = kind.room - kind.live
    cdef uint32_t group, at
    # Where the first is too large, there are fewer holes than it has room: the lists are short.
    for group in range(GROUPS):
        at = kind.groups[group]
        while at:
            if pool.ranges[at].capacity <= holes:
                return at
            at = pool.ranges[at].after
    return 0


cdef uint32_t _find_target(const PoolState *pool, uint32_t grains, uint32_t source) noexcept nogil:
    """Return about the fullest zspage of a class that has a hole, but not `source`."""
    cdef int group = GROUPS - 1
    cdef uint32_t at
    while group >= 0:
        at = pool.classes[grains].groups[group]
        if at == source:
            at = pool.ranges[at].after
        if at:
            return at
        group -= 1
    return 0


cdef bint _empty(PoolState *pool, uint32_t source, int64_t *budget) noexcept nogil:
    """Move a zspage's objects to holes of its class, and end it. Return False if it cannot be."""
    cdef uint32_t slots[MOST_OBJECTS]
    cdef Range *span = &pool.ranges[source]
    cdef uint32_t grains = span.grains, bit, hole, target
    cdef Range *other
    if not _find_slots(pool, span, slots, budget):
        return False
    _step_epoch(pool)
    while span.live:
        target = _find_target(pool, grains, source)
        other = &pool.ranges[target]
        bit = bz_lowest(span.live)
        hole = bz_lowest(~other.live)
        _move(pool, slots[bit], other.first + hole * grains)
        other.live |= <uint64_t>1 << hole
        span.live &= span.live - 1
        _regroup(pool, target)
        budget[0] -= 1
    _step_epoch(pool)
    _end_zspage(pool, source)
    return True


cdef void _trim(PoolState *pool, uint32_t at, int64_t *budget) noexcept nogil:
    """Cut a zspage with holes to what it holds, if that can be."""
    cdef uint32_t slots[MOST_OBJECTS]
    cdef uint32_t rest, bit, hole, count
    cdef uint64_t full
    cdef Range *span
    if not _has_spare_range(pool):
        return
    span = &pool.ranges[at]
    count = bz_ones(span.live)  # less than 64
    full = (<uint64_t>1 << count) - 1
    if span.live != full:
        if not _find_slots(pool, span, slots, budget):
            return
        _step_epoch(pool)
        while span.live != full:
            bit = bz_log2(span.live)
            hole = bz_lowest(~span.live)
            _move(pool, slots[bit], span.first + hole * span.grains)
            span.live ^= <uint64_t>1 << bit | <uint64_t>1 << hole
            budget[0] -= 1
        _step_epoch(pool)
    _leave_group(pool, at)
    _untouch(pool, at)
    hole = span.capacity - count
    span.capacity = count
    pool.classes[span.grains].room -= hole
    rest = _take_range(pool)
    pool.ranges[rest].first = _end(span)
    _link(pool, rest, at, span.above)
    _free_range(pool, rest, <uint64_t>hole * span.grains)
    _touch(pool, at)


cdef void _pack(PoolState *pool, uint32_t grains, int64_t *budget) noexcept nogil:
    """Bring the objects of a class together, and cut what is left with holes."""
    cdef uint32_t source, group, at, after
    while budget[0] > 0:
        source = _find_source(pool, grains)
        if not source or not _empty(pool, source, budget):
            break
    for group in range(GROUPS):
        at = pool.classes[grains].groups[group]
        while at and budget[0] > 0:
            after = pool.ranges[at].after
            _trim(pool, at, budget)
            at = after


cdef uint32_t _range_from(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the lowest range that ends above a grain; 0: there is none."""
    cdef uint64_t page = _page_of(pool, grain), end = _end_page(pool, pool.top)
    cdef uint32_t at, below
    while page < end and not pool.pages[page] & ~BACKED:
        page += 1
    if page >= end:
        return 0
    at = pool.pages[page] & ~BACKED
    below = pool.ranges[at].below
    while below and _end(&pool.ranges[below]) > grain:
        at = below
        below = pool.ranges[at].below
    while at and _end(&pool.ranges[at]) <= grain:
        at = pool.ranges[at].above
    return at


cdef bint _slide(PoolState *pool, uint32_t at, int64_t *budget) noexcept nogil:
    """Move a zspage down over the free range below it. Return False if it cannot be."""
    cdef uint32_t slots[MOST_OBJECTS]
    cdef Range *span = &pool.ranges[at]
    cdef uint32_t gap = span.below, bit, below, above
    cdef Range *room = &pool.ranges[gap]
    cdef uint64_t first = room.first, length = room.live, bits = span.live
    if not _find_slots(pool, span, slots, budget):
        return False
    if _back(pool, first, first + _length(span), first):
        return False
    _step_epoch(pool)
    while bits:
        bit = bz_lowest(bits)
        bits &= bits - 1
        _move(pool, slots[bit], first + bit * span.grains)
        budget[0] -= 1
    _step_epoch(pool)
    _untouch(pool, at)
    _unlist_free(pool, gap)
    below, above = room.below, span.above
    span.first = first
    room.first = _end(span)
    _link(pool, at, below, gap)
    _link(pool, gap, at, above)
    _free_range(pool, gap, length)
    _touch(pool, at)
    return True


cdef void _slide_all(PoolState *pool, int64_t *budget) noexcept nogil:
    """Go on sliding zspages down, from where the last call ended to the top.

    The room below them gathers to one range on the way up. It is left behind now and then: what is
    gained by taking it further is a page at the most.
    """
    cdef uint32_t at = _range_from(pool, pool.sliding), above, looks = 0
    cdef uint64_t page = <uint64_t>1 << (pool.page_shift - min(pool.page_shift, pool.grain_shift))
    while at:
        if budget[0] <= 0:
            pool.sliding = pool.ranges[at].first
            return
        above = pool.ranges[at].above
        if pool.ranges[at].capacity:
            if above and pool.ranges[above].capacity:
                pool.slid = 0
            at = above
            looks += 1
            budget[0] -= looks % LOOKS_A_MOVE == 0
        elif pool.slid > SLIDE_PAGES * page and pool.ranges[at].live > 2 * page:
            at = above
            pool.slid = 0
        elif _slide(pool, above, budget):
            at = above  # which is below now
            pool.slid += _length(&pool.ranges[at])
        else:
            at = pool.ranges[above].above
    pool.sliding = pool.slid = 0


cdef uint64_t _loose(const PoolState *pool) noexcept nogil:
    """Return the bytes in pages in use that no object has, as far as they are worth moving objects."""
    cdef uint64_t packed = 0, used = pool.held - (pool.idle << pool.page_shift), loose
    cdef uint32_t grains
    for grains in range(1, CLASSES):
        packed += pool.classes[grains].live * grains
    loose = used - min(used, packed << pool.grain_shift)
    return loose if loose > max(used // LOOSE_SHARE, <uint64_t>1 << pool.page_shift) else 0


cdef uint64_t _fragmented(const PoolState *pool) noexcept nogil:
    """Return the bytes that compaction would give back, about."""
    cdef uint64_t page = <uint64_t>1 << pool.page_shift
    return (pool.idle << pool.page_shift) + (_loose(pool) & -page)


cdef uint64_t _compact(PoolState *pool, int64_t most) noexcept nogil:
    """Move about `most` objects together; more, while no page is gained. Return the bytes given back."""
    cdef uint64_t held = pool.held, begun
    cdef uint32_t grains, turn
    cdef int64_t budget
    for turn in range(COMPACT_TURNS):
        budget = most
        begun = pool.sliding
        for grains in range(1, CLASSES):
            if pool.classes[grains].live < pool.classes[grains].room:
                _pack(pool, grains, &budget)
        if _loose(pool):
            _slide_all(pool, &budget)
        _punch(pool, 0)
        if pool.held < held:
            return held - pool.held
        if budget > 0 and not begun:
            break
    return 0


# The face for Python.

cdef class Allocator:
    """A pool for `batchzip.pool.Pool`, which says what each method does. Arrays have one dimension.

    `limit`  bytes that may be held, or None. Raise OSError where the system refuses shared memory.
    """

    def __cinit__(self, uint32_t page_size, limit, str name):
        cdef PoolState *pool = &self.state
        cdef uint64_t page = machine_page()
        pool.closed = True
        self.made_in = forks()
        pool.page_size = page_size
        pool.length_bits = bz_log2(page_size)
        pool.grain_shift = max(<int>pool.length_bits - 8, 4)
        pool.page_shift = bz_log2(page)
        pthread_mutex_init(&pool.mutex, NULL)
        self.set_limit(limit)
        memory_create(&pool.data, name, FIRST_BYTES, LEAST_BYTES)
        memory_create(&pool.words, f"{name}-words", FIRST_BYTES // 64, page)
        if memory_reserve(&pool.words, 0, page):
            raise PoolFull("no memory for the first handles")
        pool.range_count = 1  # record 0 is none
        if not _has_spare_range(pool):
            raise PoolFull("no memory for a pool's tables")
        memset(pool.ranges, 0, sizeof(Range))
        pool.slots = page // 8
        pool.next_slot = FIRST_SLOT
        _words(pool)[1] = pool.slots
        pool.closed = False

    def __dealloc__(self):
        self.close()

    cdef int refuse(self) except -1:
        """Raise ForkedProcess or ClosedError where the pool cannot be used."""
        if self.made_in != forks():
            raise ForkedProcess("this pool belongs to the process that forked this one")
        if self.state.closed:
            raise ClosedError("this pool is closed")
        return 0

    def check_open(self) -> None:
        self.refuse()

    def close(self) -> None:
        cdef PoolState *pool = &self.state
        if self.made_in != forks():
            # What another thread had under way when this process was forked stays as it is.
            memory_close(&pool.data)
            memory_close(&pool.words)
            return
        with nogil:
            pool_lock(pool)
            pool.closed = True
            pool.slots = pool.top = 0
            memory_close(&pool.data)
            memory_close(&pool.words)
            free(pool.ranges)
            free(pool.pages)
            pool.ranges = NULL
            pool.pages = NULL
            pool_unlock(pool)

    def set_limit(self, limit) -> None:
        """Set the bytes that may be held, or None."""
        cdef uint64_t most = UINT64_MAX if limit is None else min(limit, UINT64_MAX)
        with nogil:
            pool_lock(&self.state)
            self.state.limit = most
            pool_unlock(&self.state)

    # Objects.

    def allocate(self, lengths, handles) -> None:
        """Allocate objects; `lengths` is uint32, `handles` uint64 and filled. Raise PoolFull."""
        cdef const uint32_t *asked = <const uint32_t *>_address(lengths, False)
        cdef uint64_t *given = <uint64_t *>_address(handles, True)
        cdef uint32_t count = len(lengths)
        cdef int error
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            error = pool_allocate(&self.state, count, asked, given)
            pool_unlock(&self.state)
        self.raise_refusal(error)

    cdef int raise_refusal(self, int error) except -1:
        """Raise what an error of `pool_allocate` means."""
        if error == 0:
            return 0
        self.refuse()
        if error == -EINVAL:
            raise BadArgument(f"an object has 1 to {self.state.page_size} bytes")
        if error == -ENOSPC:
            raise PoolFull(
                f"{self.state.held} of at most {self.state.limit} bytes are held, more do not fit",
                at_limit=True,
            )
        raise PoolFull(f"{self.state.held} bytes are held, the system has not more")

    def put(self, data) -> int:
        """Allocate and fill an object. Raise BadArgument, PoolFull."""
        cdef Py_buffer view
        cdef uint64_t handle = 0
        cdef uint32_t length = 0
        cdef int error
        self.refuse()
        _get_buffer(data, &view)
        with nogil:
            error = _fill(&self.state, 1, &view, &length, &handle)
        PyBuffer_Release(&view)
        self.raise_refusal(error)
        return handle

    def put_many(self, list buffers, handles) -> None:
        """Allocate and fill an object for each buffer. Raise as `put`."""
        cdef uint64_t *given = <uint64_t *>_address(handles, True)
        cdef _Views views = _Views(buffers)
        cdef int error
        self.refuse()
        with nogil:
            error = _fill(&self.state, <uint32_t>views.count, views.views, views.lengths, given)
        views.release()
        self.raise_refusal(error)

    def free(self, handles) -> int:
        """Free objects, all different, or none. Return the sum of their lengths. Raise BadHandle."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef uint64_t freed = 0
        cdef uint32_t count = len(handles), number
        cdef Py_ssize_t bad
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            bad = _find_bad(&self.state, count, given)
            if bad < 0:
                for number in range(count):
                    freed += pool_free(&self.state, given[number])
                pool_settle(&self.state)
            pool_unlock(&self.state)
        self.raise_bad(bad, given)
        return freed

    def free_one(self, handle) -> int:
        """Free one object; see `free`."""
        cdef uint64_t number = _handle(handle)
        cdef uint32_t length
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            length = pool_free(&self.state, number)
            pool_settle(&self.state)
            pool_unlock(&self.state)
        if not length:
            self.raise_bad(0, &number)
        return length

    cdef int raise_bad(self, Py_ssize_t index, const uint64_t *handles) except -1:
        """Raise BadHandle for the handle at an index; -1: there is none."""
        if index < 0:
            return 0
        self.refuse()
        raise BadHandle(f"handle {handles[index]} was never given out, or is freed")

    def write(self, handles, list buffers) -> None:
        """Fill objects. Raise BadHandle, or BadArgument where a length is another; all or nothing."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef PoolState *pool = &self.state
        cdef _Views views = _Views(buffers)
        cdef uint32_t count = len(buffers), number, length = 0
        cdef Py_ssize_t bad, wrong = -1
        cdef uint8_t *target
        self.refuse()
        with nogil:
            pool_lock(pool)
            bad = _find_bad(pool, count, given)
            if bad < 0:
                for number in range(count):
                    pool_bytes(pool, given[number], &length)
                    if <Py_ssize_t>length != views.views[number].len:
                        wrong = number
                        break
            if bad < 0 and wrong < 0:
                for number in range(count):
                    target = pool_bytes(pool, given[number], &length)
                    memcpy(target, views.views[number].buf, length)
            pool_unlock(pool)
        if wrong >= 0:
            wrong_length = views.views[wrong].len
        views.release()
        self.raise_bad(bad, given)
        if wrong >= 0:
            raise BadArgument(f"{wrong_length} bytes for an object of {length}")

    def read(self, handle) -> bytes:
        """Copy an object. Raise BadHandle."""
        cdef uint64_t number = _handle(handle)
        cdef uint32_t length = 0
        cdef const uint8_t *place
        cdef char *target
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            place = pool_bytes(&self.state, number, &length)
            pool_unlock(&self.state)
        if place is NULL:
            self.raise_bad(0, &number)
        # The length of a handle's object never changes; whether it is live may have.
        copy = PyBytes_FromStringAndSize(NULL, length)
        target = PyBytes_AS_STRING(copy)
        with nogil:
            pool_lock(&self.state)
            place = pool_bytes(&self.state, number, &length)
            if place is not NULL:
                memcpy(target, place, length)
            pool_unlock(&self.state)
        if place is NULL:
            self.raise_bad(0, &number)
        return copy

    def read_many(self, handles, lengths) -> list[bytes]:
        """Copy objects, all of one moment; `lengths`, uint32, is filled. Raise BadHandle."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef uint32_t *sizes
        cdef uint32_t number, count = len(handles), length = 0
        cdef Py_ssize_t bad
        self.lengths(handles, lengths)
        sizes = <uint32_t *>_address(lengths, True)
        copies = [PyBytes_FromStringAndSize(NULL, sizes[number]) for number in range(count)]
        cdef char **targets = <char **>bz_malloc(count * sizeof(char *) + 1)
        if targets is NULL:
            raise MemoryError("no memory for the addresses of copies")
        for number in range(count):
            targets[number] = PyBytes_AS_STRING(copies[number])
        with nogil:
            pool_lock(&self.state)
            bad = _find_bad(&self.state, count, given)
            if bad < 0:
                for number in range(count):
                    memcpy(
                        targets[number],
                        pool_bytes(&self.state, given[number], &length), sizes[number],
                    )
            pool_unlock(&self.state)
        free(targets)
        self.raise_bad(bad, given)
        return copies

    def lengths(self, handles, lengths) -> None:
        """Fill `lengths`, uint32, with those of the objects. Raise BadHandle."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef uint32_t *sizes = <uint32_t *>_address(lengths, True)
        cdef uint32_t number, count = len(handles)
        cdef Py_ssize_t bad
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            bad = _find_bad(&self.state, count, given)
            if bad < 0:
                for number in range(count):
                    pool_bytes(&self.state, given[number], &sizes[number])
            pool_unlock(&self.state)
        self.raise_bad(bad, given)

    def list_handles(self, handles) -> int:
        """Return how many objects are live; list their handles if there is room for all."""
        cdef uint64_t *given = <uint64_t *>_address(handles, True)
        cdef uint64_t room = len(handles), count, slot, word
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            count = self.state.objects
            if count <= room:
                room = 0
                for slot in range(FIRST_SLOT, min(self.state.slots, self.state.next_slot)):
                    word = _words(&self.state)[slot]
                    if word & ONE and room < count:
                        given[room] = (word & ~SLOT) | slot
                        room += 1
            pool_unlock(&self.state)
        self.refuse()
        return count

    # Memory.

    def compact(self, int64_t most) -> int:
        """Move about `most` objects together. Return the bytes given back."""
        cdef uint64_t given = 0
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            if not self.state.closed:
                given = _compact(&self.state, most)
            pool_unlock(&self.state)
        return given

    def figures(self) -> dict[str, int]:
        """Return held, stored, objects, fragmented and table bytes, all of one moment."""
        cdef PoolState *pool = &self.state
        cdef uint64_t held, stored, objects, fragmented, tables
        self.refuse()
        with nogil:
            pool_lock(pool)
            held, stored, objects = pool.held, pool.stored, pool.objects
            fragmented = _fragmented(pool)
            tables = pool.slots * 8 + pool.range_room * sizeof(Range)
            tables += pool.page_room * sizeof(uint32_t)
            pool_unlock(pool)
        return {
            "held": held, "stored": stored, "objects": objects,
            "fragmented": fragmented, "tables": tables,
        }

    def limit(self) -> int | None:
        """Return the bytes that may be held, or None."""
        cdef uint64_t limit = self.state.limit
        self.refuse()
        return None if limit == UINT64_MAX else limit

    def classes(self) -> list[tuple[int, int, int, int, int, int]]:
        """Return what ClassUse has, for each class that has a zspage."""
        cdef uint32_t grains
        cdef SizeClass kinds[CLASSES]
        cdef SizeClass *kind
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            memcpy(kinds, self.state.classes, sizeof(kinds))
            pool_unlock(&self.state)
        lines = []
        for grains in range(1, CLASSES):
            kind = &kinds[grains]
            if kind.zspages:
                size = grains << self.state.grain_shift
                lines.append((
                    min(size - HEADER, self.state.page_size), kind.zspages, kind.room, kind.live,
                    kind.room * size, (kind.room - kind.live) * size,
                ))
        return lines

    def class_bytes(self, uint32_t length) -> int:
        """Return the bytes of memory that an object of `length` bytes takes."""
        return _grains(&self.state, length) << self.state.grain_shift

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors of the objects and of the words; they stay the pool's."""
        self.refuse()
        return self.state.data.fd, self.state.words.fd

    # For tests.

    def extent(self, handle) -> tuple[int, int]:
        """Return where the bytes of an object begin and end in the memory of the objects."""
        cdef uint64_t number = _handle(handle), at = 0
        cdef uint32_t length = 0
        cdef const uint8_t *place
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            place = pool_bytes(&self.state, number, &length)
            at = place - self.state.data.base
            pool_unlock(&self.state)
        if place is NULL:
            self.raise_bad(0, &number)
        return at, at + length

    def tables(self) -> dict[str, object]:
        """Return copies of all tables, of one moment if nobody else uses the pool."""
        cdef PoolState *pool = &self.state
        self.refuse()
        pool_lock(pool)  # with the GIL: `audit.check` is the only one that asks
        try:
            return {
                "grain_shift": pool.grain_shift, "page_shift": pool.page_shift,
                "length_bits": pool.length_bits, "held": pool.held, "stored": pool.stored,
                "objects": pool.objects, "slots": pool.slots, "next_slot": pool.next_slot,
                "free_slot": pool.free_slot, "last": pool.last, "top": pool.top,
                "free_grains": pool.free_grains, "idle": pool.idle,
                "spare_range": pool.spare_range, "range_count": pool.range_count,
                "held_by_kernel": memory_held(&pool.data),
                "words_by_kernel": memory_held(&pool.words),
                "words": (<char *>pool.words.base)[:pool.slots * 8],
                "ranges": (<char *>pool.ranges)[:pool.range_count * sizeof(Range)],
                "pages": (<char *>pool.pages)[:pool.page_room * sizeof(uint32_t)],
                "free_map": [pool.free_map[at] for at in range(FREE_WORDS)],
                "free_lists": [pool.free_lists[at] for at in range(FREE_LISTS)],
                "classes": [
                    (kind.live, kind.room, kind.zspages, [kind.groups[at] for at in range(GROUPS)])
                    for kind in pool.classes[:CLASSES]
                ],
            }
        finally:
            pool_unlock(pool)


cdef int _fill(
    PoolState *pool, uint32_t count, const Py_buffer *views, uint32_t *lengths, uint64_t *handles
) noexcept nogil:
    """Allocate objects, and copy what is in these buffers. Return as `pool_allocate`."""
    cdef uint32_t number, length = 0
    cdef int error
    for number in range(count):
        lengths[number] = <uint32_t>min(<uint64_t>views[number].len, <uint64_t>0xFFFFFFFF)
    pool_lock(pool)
    error = pool_allocate(pool, count, lengths, handles)
    if not error:
        for number in range(count):
            memcpy(pool_bytes(pool, handles[number], &length), views[number].buf, lengths[number])
    pool_unlock(pool)
    return error


cdef Py_ssize_t _find_bad(PoolState *pool, uint32_t count, const uint64_t *handles) noexcept nogil:
    """Return the index of the first handle that is not live, or -1."""
    cdef uint32_t number
    for number in range(count):
        if not _word(pool, handles[number]):
            return number
    return -1


cdef uint64_t _handle(handle) except? 0:
    """Return a handle as a number. Raise BadHandle."""
    try:
        return handle
    except (TypeError, OverflowError):
        raise BadHandle(f"a handle is an integer from 0 to 2⁶⁴−1, not {handle!r}") from None


cdef int _get_buffer(data, Py_buffer *view) except -1:
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except (TypeError, ValueError, BufferError) as error:
        raise BadArgument(f"not a contiguous buffer of bytes: {error}") from None
    return 0


cdef class _Views:
    """Buffers that are held, and their lengths. Raise BadArgument for what is no buffer of bytes."""

    cdef Py_buffer *views
    cdef uint32_t *lengths
    cdef Py_ssize_t count

    def __cinit__(self, list buffers):
        cdef Py_ssize_t count = len(buffers)
        self.views = <Py_buffer *>bz_malloc(count * (sizeof(Py_buffer) + sizeof(uint32_t)) + 1)
        if self.views is NULL:
            raise MemoryError("no memory for the addresses of buffers")
        self.lengths = <uint32_t *>(self.views + count)
        for data in buffers[:count]:
            _get_buffer(data, &self.views[self.count])
            self.count += 1

    cdef void release(self):
        while self.count:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])

    def __dealloc__(self):
        self.release()
        free(self.views)


cdef void *_address(buffer, bint writable) except? NULL:
    """Return the address of a contiguous buffer, whose owner keeps it."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | (PyBUF_WRITABLE if writable else 0))
    cdef void *address = view.buf
    PyBuffer_Release(&view)
    return address
