"""Compaction: move objects together, so that machine pages become idle and return to the kernel.

    pack    per size class: objects of the emptiest zspages move to holes in the fullest ones; a
            zspage that still has holes is shortened to its objects
    slide   from the bottom up: a zspage moves down over the free range below it

Each call does a part of the work, and the next call continues there. An object moves in this order:
its bytes are copied, its word is changed to the new place, and only then does its old place become
free. The epoch is incremented before and after the objects of a zspage move. If a zspage's headers
do not name the slots of its objects, the headers are first repaired from the words.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memmove

from batchzip.core.zspages cimport (
    BACKED, CLASSES, FIRST_SLOT, GROUPS, HEADER, MOST_OBJECTS, ONE, SLOT, UNLISTED, PoolState,
    Range, SizeClass, back_pages, bytes_at, bz_log2, bz_lowest, bz_ones, bz_order_stores,
    bz_store64, end_of, end_page_of, end_zspage, has_spare_range, length_of, length_of_word,
    link_range, make_free, page_of, place_of, punch_idle, regroup, regroup_zspage, take_range,
    touch_pages, unlist_free, untouch_pages, words_of,
)

cdef enum:
    LOOKS_A_MOVE = 16  # ranges that can be examined in the time of one move
    SLIDE_PAGES = 256  # pages that slide over a free range before it is left behind
    LOOSE_SHARE = 128  # sliding begins when more than 1/128 of the memory in use is unused
    COMPACT_TURNS = 16  # passes per call while they free no memory


cdef uint32_t _slot_at(PoolState *pool, uint64_t place, int64_t *budget) noexcept nogil:
    """Return the slot of the object at a place, or 0. Repair the object's header if it is wrong."""
    cdef uint32_t *header = <uint32_t *>bytes_at(pool, place)
    cdef uint64_t *words = words_of(pool)
    cdef uint64_t slot = header[0], word
    if FIRST_SLOT <= slot < pool.slots:
        word = words[slot]
        if word & ONE and place_of(pool, word) == place:
            return <uint32_t>slot
    budget[0] -= pool.next_slot // 256  # the cost of the search, in moves
    for slot in range(FIRST_SLOT, pool.next_slot):
        word = words[slot]
        if word & ONE and place_of(pool, word) == place:
            header[0] = <uint32_t>slot
            return <uint32_t>slot
    return 0


cdef bint _find_slots(
    PoolState *pool, const Range *span, uint32_t *slots, int64_t *budget
) noexcept nogil:
    """Find the slots of all objects of a zspage, before any is moved. Return whether all exist."""
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
    """Copy an object to another place, and store that place in the object's word."""
    cdef uint64_t *word = &words_of(pool)[slot]
    cdef uint32_t length = length_of_word(pool, word[0])
    memmove(bytes_at(pool, to), bytes_at(pool, place_of(pool, word[0])), HEADER + length)
    (<uint32_t *>bytes_at(pool, to))[0] = slot  # the copied header may be damaged
    bz_store64(word, (word[0] & ~SLOT) | to << pool.length_bits | (length - 1))
    bz_order_stores()


cdef void _step_epoch(PoolState *pool) noexcept nogil:
    bz_store64(words_of(pool), words_of(pool)[0] + 1)
    bz_order_stores()


cdef uint32_t _find_source(const PoolState *pool, uint32_t grains) noexcept nogil:
    """Return one of the emptiest zspages whose objects fit into the others of its class, or 0."""
    cdef const SizeClass *kind = &pool.classes[grains]
    cdef uint64_t holes = kind.room - kind.live
    cdef uint32_t group, at
    # If the first zspage does not fit, the class has fewer holes than one zspage has room. The
    # lists are then short.
    for group in range(GROUPS):
        at = kind.groups[group]
        while at:
            if pool.ranges[at].capacity <= holes:
                return at
            at = pool.ranges[at].after
    return 0


cdef uint32_t _find_target(const PoolState *pool, uint32_t grains, uint32_t source) noexcept nogil:
    """Return one of the fullest zspages of a class with a hole, other than `source`; 0 if none."""
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
    """Move a zspage's objects to holes in its class, and free it. Return False if it is damaged."""
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
        regroup(pool, target)
        budget[0] -= 1
    _step_epoch(pool)
    end_zspage(pool, source)
    return True


cdef void _trim(PoolState *pool, uint32_t at, int64_t *budget) noexcept nogil:
    """Shorten a zspage with holes to its objects, if possible."""
    cdef uint32_t slots[MOST_OBJECTS]
    cdef uint32_t rest, bit, hole, count
    cdef uint64_t full
    cdef Range *span
    if not has_spare_range(pool):
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
    regroup_zspage(pool, at, UNLISTED)
    untouch_pages(pool, at)
    hole = span.capacity - count
    span.capacity = count
    pool.classes[span.grains].room -= hole
    rest = take_range(pool)
    pool.ranges[rest].first = end_of(span)
    link_range(pool, rest, at, span.above)
    make_free(pool, rest, <uint64_t>hole * span.grains)
    touch_pages(pool, at)


cdef void _pack(PoolState *pool, uint32_t grains, int64_t *budget) noexcept nogil:
    """Move the objects of a class together, and shorten the zspages that still have holes."""
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
    """Return the lowest range that ends above a grain, or 0 if there is none."""
    cdef uint64_t page = page_of(pool, grain), end = end_page_of(pool, pool.top)
    cdef uint32_t at, below
    while page < end and not pool.pages[page] & ~BACKED:
        page += 1
    if page >= end:
        return 0
    at = pool.pages[page] & ~BACKED
    below = pool.ranges[at].below
    while below and end_of(&pool.ranges[below]) > grain:
        at = below
        below = pool.ranges[at].below
    while at and end_of(&pool.ranges[at]) <= grain:
        at = pool.ranges[at].above
    return at


cdef bint _slide(PoolState *pool, uint32_t at, int64_t *budget) noexcept nogil:
    """Move a zspage down over the free range below it. Return False if that is impossible."""
    cdef uint32_t slots[MOST_OBJECTS]
    cdef Range *span = &pool.ranges[at]
    cdef uint32_t gap = span.below, bit, below, above
    cdef Range *room = &pool.ranges[gap]
    cdef uint64_t first = room.first, length = room.live, bits = span.live
    if not _find_slots(pool, span, slots, budget):
        return False
    if back_pages(pool, first, first + length_of(span), first):
        return False
    _step_epoch(pool)
    while bits:
        bit = bz_lowest(bits)
        bits &= bits - 1
        _move(pool, slots[bit], first + bit * span.grains)
        budget[0] -= 1
    _step_epoch(pool)
    untouch_pages(pool, at)
    unlist_free(pool, gap)
    below, above = room.below, span.above
    span.first = first
    room.first = end_of(span)
    link_range(pool, at, below, gap)
    link_range(pool, gap, at, above)
    make_free(pool, gap, length)
    touch_pages(pool, at)
    return True


cdef void _slide_all(PoolState *pool, int64_t *budget) noexcept nogil:
    """Slide zspages down, from where the last call ended to the top.

    The free ranges between them merge into one range that moves up. Now and then that range is left
    behind, because moving it further gains one page at most.
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
            at = above  # the zspage, which is now below the free range
            pool.slid += length_of(&pool.ranges[at])
        else:
            at = pool.ranges[above].above
    pool.sliding = pool.slid = 0


cdef uint64_t _loose(const PoolState *pool) noexcept nogil:
    """Return the unused bytes in pages in use, or 0 if they are too few to move objects for."""
    cdef uint64_t packed = 0, used = pool.held - (pool.idle << pool.page_shift), loose
    cdef uint32_t grains
    for grains in range(1, CLASSES):
        packed += pool.classes[grains].live * grains
    loose = used - min(used, packed << pool.grain_shift)
    return loose if loose > max(used // LOOSE_SHARE, <uint64_t>1 << pool.page_shift) else 0


cdef uint64_t fragmented_bytes(const PoolState *pool) noexcept nogil:
    """Return the approximate number of bytes that compaction would free."""
    cdef uint64_t page = <uint64_t>1 << pool.page_shift
    return (pool.idle << pool.page_shift) + (_loose(pool) & -page)


cdef uint64_t compact_pool(PoolState *pool, int64_t most) noexcept nogil:
    """Move about `most` objects together, more while that frees no page. Return the bytes freed."""
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
        punch_idle(pool, 0)
        if pool.held < held:
            return held - pool.held
        if budget > 0 and not begun:
            break
    return 0
