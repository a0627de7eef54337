"""Zspages: the address space of a pool as ranges, its machine pages, and their memory.

The header of pool.pyx defines the terms and the invariants. A range is a record of 32 bytes. It is
linked to its neighbours in address order and is in at most one list: a zspage with holes in that of
its class and fullness group, a free range in that of its length.

    pages[p]   the first zspage that touches machine page p (its neighbours lead to the others), and
               whether the page has memory

Steps that may fail come first: getting a record and backing the pages. Only then are the tables
changed.
"""

from libc.errno cimport ENOMEM, ENOSPC
from libc.math cimport sqrtf
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from batchzip.core.memory cimport bz_realloc, memory_grow, memory_release, memory_reserve

cdef enum:
    MOST_GRAINS = 2048  # maximum grains of a zspage: 8 pages, as in zsmalloc
    MOST_RANGES = 0x7FFFFFFF
    FIT_LOOKS = 8  # ranges examined in a list that also has ranges that are too short
    BACKED_LOOKS = 64  # ranges examined to find one that is backed
    AHEAD_PAGES = 256  # maximum pages backed ahead

# Ranges.

cdef bint has_spare_range(PoolState *pool) noexcept nogil:
    """Make sure that a record can be taken. Return False if memory is short."""
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


cdef uint32_t take_range(PoolState *pool) noexcept nogil:
    """Take a record. `has_spare_range` has returned True before."""
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


cdef void link_range(PoolState *pool, uint32_t at, uint32_t below, uint32_t above) noexcept nogil:
    """Link a range between two neighbours; 0 means no neighbour."""
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


# Free ranges: sixteen lists per power of two of the length; one per grain up to 31 grains.

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


cdef void unlist_free(PoolState *pool, uint32_t at) noexcept nogil:
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
    """Return the first list from `number` on that has a range, or FREE_LISTS if none has."""
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
    """Return about the shortest free range of at least `length` grains, or 0 if there is none."""
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
    """Return a free range whose first `length` grains have memory.

    Return 0 if a short search finds none.
    """
    cdef uint32_t number = _next_list(pool, _list_of(length)), at, looks = 0
    cdef const Range *span
    while number < FREE_LISTS:
        at = pool.free_lists[number]
        while at:
            span = &pool.ranges[at]
            if span.live >= length and not _unbacked(
                pool, page_of(pool, span.first), end_page_of(pool, span.first + length)
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
    """Return the number of pages of [first, end) that have no memory."""
    cdef uint64_t count = 0, page
    for page in range(first, end):
        count += page >= pool.page_room or not pool.pages[page] & BACKED
    return count


cdef void touch_pages(PoolState *pool, uint32_t at) noexcept nogil:
    """Record the backed pages that a zspage touches."""
    cdef const Range *span = &pool.ranges[at]
    cdef uint64_t page, end = end_page_of(pool, end_of(span))
    cdef uint32_t first
    for page in range(page_of(pool, span.first), end):
        first = pool.pages[page] & ~BACKED
        pool.idle -= first == 0
        if not first or pool.ranges[first].first > span.first:
            pool.pages[page] = BACKED | at


cdef void untouch_pages(PoolState *pool, uint32_t at) noexcept nogil:
    """Undo `touch_pages`. Call it before the zspage's place or neighbours change."""
    cdef const Range *span = &pool.ranges[at]
    cdef uint64_t page, end = end_page_of(pool, end_of(span))
    cdef uint32_t next = span.above
    if next and not pool.ranges[next].capacity:
        next = pool.ranges[next].above
    for page in range(page_of(pool, span.first), end):
        if pool.pages[page] & ~BACKED != at:
            continue
        if next and page_of(pool, pool.ranges[next].first) == page:
            pool.pages[page] = BACKED | next
        else:
            pool.pages[page] = BACKED
            pool.idle += 1


cdef uint32_t zspage_at(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the zspage that contains a grain, or 0 if none does."""
    cdef uint32_t at
    if grain >= pool.top:
        return 0
    at = pool.pages[page_of(pool, grain)] & ~BACKED
    while at and end_of(&pool.ranges[at]) <= grain:
        at = pool.ranges[at].above
    if not at or pool.ranges[at].first > grain or not pool.ranges[at].capacity:
        return 0
    return at


cdef void punch_idle(PoolState *pool, uint64_t keep) noexcept nogil:
    """Return the memory of idle pages to the system, run by run, until at most `keep` are left."""
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


cdef int _try_back(PoolState *pool, uint64_t first, uint64_t end) noexcept nogil:
    """Back the pages of [first, end) that have no memory. Return 0, −ENOSPC or −ENOMEM."""
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


cdef int back_pages(PoolState *pool, uint64_t first, uint64_t end, uint64_t most) noexcept nogil:
    """Back the pages of grains [first, end), and some pages ahead, below grain `most`.

    Return 0, or −ENOSPC or −ENOMEM. On failure, some pages may have become idle ones.
    """
    cdef uint64_t page = page_of(pool, first), end_page = end_page_of(pool, end), ahead
    cdef int failed
    if not _unbacked(pool, page, end_page):
        return 0
    ahead = min(max((pool.held >> pool.page_shift) // 256, <uint64_t>1), <uint64_t>AHEAD_PAGES)
    if end > pool.top:
        ahead = max(ahead, end_page_of(pool, end + pool.fresh) - end_page)
    ahead = min(ahead, max(page_of(pool, most), end_page) - end_page)
    if _try_back(pool, page, end_page + ahead) == 0:
        return 0
    failed = _try_back(pool, page, end_page)
    if failed and pool.idle:
        punch_idle(pool, 0)
        failed = _try_back(pool, page, end_page)
    return failed


# Zspages.

cdef void _leave_list(PoolState *pool, uint32_t at) noexcept nogil:
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


cdef void regroup_zspage(PoolState *pool, uint32_t at, uint32_t group) noexcept nogil:
    """Move a zspage to another list of its class, or to none for UNLISTED."""
    cdef Range *span = &pool.ranges[at]
    cdef uint32_t head
    _leave_list(pool, at)
    if group == UNLISTED:
        return
    head = pool.classes[span.grains].groups[group]
    span.group = group
    span.after = head
    if head:
        pool.ranges[head].before = at
    pool.classes[span.grains].groups[group] = at


cdef uint32_t _capacity(const PoolState *pool, uint32_t grains) noexcept nogil:
    """Return the capacity, in objects, of the next zspage of a class.

    With c objects per zspage, a class of n objects of s bytes has records of 32 n / c bytes and
    c s / 2 bytes of unfilled room. As c grows with n, the sum is least for c = √(128 n / s).
    """
    cdef float objects = pool.classes[grains].live, size = grains << pool.grain_shift
    cdef uint32_t wanted = <uint32_t>sqrtf(128 * objects / size)
    return max(min(wanted, <uint32_t>MOST_OBJECTS, <uint32_t>MOST_GRAINS // grains), <uint32_t>1)


cdef uint32_t _begin(
    PoolState *pool, uint32_t at, uint32_t grains, uint32_t capacity
) noexcept nogil:
    """Make an empty zspage of a record whose place and neighbours are set."""
    cdef Range *span = &pool.ranges[at]
    cdef SizeClass *kind = &pool.classes[grains]
    span.grains = grains
    span.capacity = capacity
    span.live = 0
    span.before = span.after = 0
    span.group = UNLISTED
    kind.room += capacity
    kind.zspages += 1
    touch_pages(pool, at)
    return at


cdef uint32_t _carve(
    PoolState *pool, uint32_t free_range, uint32_t grains, uint32_t capacity
) noexcept nogil:
    """Make a zspage at the beginning of a free range. Its pages are backed."""
    cdef uint32_t at = free_range
    cdef Range *rest = &pool.ranges[free_range]
    cdef uint64_t length = <uint64_t>grains * capacity
    unlist_free(pool, free_range)
    if rest.live > length:
        at = take_range(pool)
        pool.ranges[at].first = rest.first
        link_range(pool, at, rest.below, free_range)
        rest.first += length
        rest.live -= length
        _list_free(pool, free_range)
    return _begin(pool, at, grains, capacity)


cdef uint32_t _extend(PoolState *pool, uint32_t grains, uint32_t capacity) noexcept nogil:
    """Make a zspage at the top. Its pages are backed."""
    cdef uint32_t at = take_range(pool)
    pool.ranges[at].first = pool.top
    link_range(pool, at, pool.last, 0)
    pool.top += <uint64_t>grains * capacity
    return _begin(pool, at, grains, capacity)


cdef uint32_t make_zspage(PoolState *pool, uint32_t grains, int *error) noexcept nogil:
    """Make a zspage for objects of a class. Return 0 on failure, with the reason in `error`."""
    cdef uint32_t capacity = _capacity(pool, grains), fitting
    cdef uint32_t at = _find_free(pool, <uint64_t>grains * capacity)
    cdef Range *span
    if not has_spare_range(pool):
        error[0] = -ENOMEM
        return 0
    if not at and capacity > 1:
        at = _find_free(pool, grains)
    if at:
        span = &pool.ranges[at]
        fitting = <uint32_t>min(<uint64_t>capacity, span.live // grains)
        if not back_pages(pool, span.first, span.first + fitting * grains, end_of(span)):
            return _carve(pool, at, grains, fitting)
        at = _find_backed(pool, grains)
        if at:
            return _carve(pool, at, grains, 1)
    while True:
        if pool.top + capacity * grains > <uint64_t>1 << (GENERATION_SHIFT - pool.length_bits):
            error[0] = -ENOMEM
        else:
            error[0] = back_pages(pool, pool.top, pool.top + capacity * grains, UINT64_MAX)
        if not error[0]:
            return _extend(pool, grains, capacity)
        if capacity == 1:
            return 0
        capacity = 1


cdef void make_free(PoolState *pool, uint32_t at, uint64_t length) noexcept nogil:
    """Make a free range of a record whose place is set, and merge it with free neighbours."""
    cdef Range *ranges = pool.ranges
    cdef Range *span = &ranges[at]
    cdef uint32_t below = span.below, above = span.above
    span.grains = span.capacity = 0
    span.live = length
    span.group = UNLISTED
    if above and not ranges[above].capacity:
        unlist_free(pool, above)
        span.live += ranges[above].live
        _unlink(pool, above)
        _drop_range(pool, above)
    if below and not ranges[below].capacity:
        unlist_free(pool, below)
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


cdef void end_zspage(PoolState *pool, uint32_t at) noexcept nogil:
    """Turn an empty zspage into a free range."""
    cdef Range *span = &pool.ranges[at]
    cdef SizeClass *kind = &pool.classes[span.grains]
    cdef uint64_t length = length_of(span)
    _leave_list(pool, at)
    kind.room -= span.capacity
    kind.zspages -= 1
    untouch_pages(pool, at)
    make_free(pool, at, length)
