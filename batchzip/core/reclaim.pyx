"""Reclaim: the eviction of a region's cold pages, with a clock of two hands.

                    front hand: unmaps RESIDENT pages, which become CANDIDATE
                    │
    ○ ○ ○ ● ● ● ● ● ▼ ○ ○ ○ ○ ○ ○ ○        ○ RESIDENT   ● CANDIDATE   · elsewhere
          ▲
          back hand: evicts pages that are still CANDIDATE

The hands go round the region in page order, an eighth of the budget apart. A page that is touched
between them is mapped again (a minor fault) and stays. In this order, adjacent pages are evicted
together, so that one system call unmaps a run of them and one punches their holes. Source: the
clock of 4.3BSD. Kernel counterpart: the inactive list.

    evicted    compressed, published in the entries, its hole punched
    dropped    not compressed, because its entry is still valid (CLEAN) or because it is all zeros

If the pool is full, the pages stay, and Python gets the event NO_ROOM. Until room is made or
FULL_NS have passed, only clean and empty pages are evicted.

Rejected: a queue in the order in which pages became resident. Neighbours in the queue are not
adjacent in the file, and pages that get a second chance leave stale positions behind.
"""

from libc.errno cimport EINTR, errno as c_errno
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from batchzip.core.coder cimport COMPRESS, Tally, compress_page
from batchzip.core.gather cimport checksum_of
from batchzip.core.entries cimport Prepared, entries_publish
from batchzip.core.region cimport (
    BUSY, CANDIDATE, CLEAN, EMPTY, ENTRY, KIND, NO_ROOM, RESIDENT, STORED, WANTED, Hand,
    RegionState,
    lag, pthread_cond_broadcast, region_clean, region_forget, region_lock,
    region_map_back, region_punch, region_tell, region_unlock, region_unmap, region_wait,
    region_wake,
)
from batchzip.core.table cimport (
    COMPRESSED, RAW, SAME_FILLED, Entry, check_word, is_same_filled,
)

cdef extern from *:
    """
    #include "native.h"
    """
    long pread(int, void *, size_t, long) nogil
    int64_t bz_now_ns() nogil
    void bz_count(uint64_t *, uint64_t) nogil

cdef uint64_t _no_word = 0

cdef enum:
    FULL_NS = 20_000_000
    SPREAD = 4  # maximum ratio of the pages in a span to the pages of it that are unmapped

cdef enum Fate:  # the fate of each page of a run, in hand.codes
    STAYS
    IS_STORED
    IS_EMPTY
    WAS_CLEAN


cdef inline bint _is_movable(const RegionState *region, uint64_t page, uint8_t kind) noexcept nogil:
    return region.states[page] == kind and not region.pins[page]


cdef uint64_t _seek(
    const RegionState *region, uint64_t page, uint64_t end, uint8_t kind
) noexcept nogil:
    """Return the first page from `page` on that may be taken, or `end` if there is none."""
    cdef uint64_t word
    while page < end:
        # Skip eight pages that are not in memory at once.
        if page + 8 <= end:
            memcpy(&word, region.states + page, 8)
            if not word & 0x8080808080808080u:
                page += 8
                continue
        if _is_movable(region, page, kind):
            return page
        page += 1
    return end


cdef uint32_t _take_run(
    RegionState *region, uint64_t first, uint64_t end, uint8_t kind, uint32_t most
) noexcept nogil:
    """Make a run of pages busy, from `first` on. Return their number."""
    cdef uint32_t count = 0
    while count < most and first + count < end and _is_movable(region, first + count, kind):
        region.states[first + count] = kind | BUSY
        count += 1
    return count


cdef bint _unmap_span(Hand *hand, uint64_t first, uint64_t end, uint32_t count) noexcept nogil:
    """Make candidates of the `count` picked pages of a span, except those touched meanwhile.

    All pages of the span are busy. Those that were not picked are not mapped, and are released.
    Return False if the kernel does not unmap the span.
    """
    cdef RegionState *region = hand.region
    cdef uint64_t clean = 0, wanted = 0, page
    cdef uint32_t number
    cdef bint woken = False
    cdef bint unmapped = region_unmap(region, first, end - first) == 0
    if unmapped and region.tracks_writes:
        for number in range(count):
            if region.flags[hand.picked[number]] & ENTRY:
                clean = region_clean(region, hand.picked, count)
                break
    region_lock(region)
    number = 0
    for page in range(first, end):
        if number == count or page != hand.picked[number]:
            woken = woken or region.states[page] & WANTED
            region.states[page] &= KIND
            continue
        region.flags[page] &= <uint8_t>~CLEAN
        if clean >> number & 1 and region.flags[page] & ENTRY:
            region.flags[page] |= CLEAN
        if region.states[page] & WANTED:
            wanted |= <uint64_t>1 << number
            region.figures.second_chances += 1
        elif unmapped:
            region.states[page] = CANDIDATE
            region.candidates += 1
        else:
            region.states[page] = RESIDENT
        number += 1
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)
    for number in range(count):
        if wanted >> number & 1:
            page = hand.picked[number]
            region_map_back(region, page, region.flags[page] & CLEAN != 0)
    if woken:
        region_wake(region, first, end - first)
    return unmapped


cdef void _compress(Hand *hand, uint32_t number, Prepared *new, size_t *used) noexcept nogil:
    """Compress a page in its row of `hand.pages`, and prepare its entry."""
    cdef RegionState *region = hand.region
    cdef size_t size = region.page_size
    cdef const uint8_t *page = hand.pages + number * size
    cdef Entry *entry = &new.entries[new.count]
    cdef Tally *tally = &hand.coder.tallies[COMPRESS]
    cdef int64_t length
    cdef const uint8_t *data = page
    memset(entry, 0, sizeof(Entry))
    new.count += 1
    if is_same_filled(page, size):
        memcpy(&entry.value, page, 8)
        entry.kind = SAME_FILLED
        entry.checksum = check_word(entry.value)
        return
    length = compress_page(
        hand.coder, page, True, hand.outputs + used[0], hand.output_room - used[0]
    )
    bz_count(&tally.pages, 1)
    bz_count(&tally.bytes_in, size)
    if 0 < length < <int64_t>size:
        data = hand.outputs + used[0]
        used[0] += length
        entry.kind = COMPRESSED
        entry.codec = region.number
        bz_count(&tally.bytes_out, length)
    else:  # it does not shrink, or the codec failed
        length = size
        entry.kind = RAW
    entry.checksum = checksum_of(data, length, entry.codec)
    new.data[new.object_count] = data
    new.lengths[new.object_count] = <uint32_t>length
    new.object_count += 1


cdef void _publish(Hand *hand, uint64_t first, uint32_t start, Prepared *new) noexcept nogil:
    """Publish the entries that were prepared for the pages of a run from `start` on."""
    cdef RegionState *region = hand.region
    cdef Prepared one
    cdef uint32_t number, used = 0
    cdef bint is_full = False
    if not new.count:
        return
    if _enter(hand, first, start, new):
        # The pool has no room for all of them. Try one at a time.
        for number in range(new.count):
            one.count = 1
            one.entries = new.entries + number
            one.object_count = new.entries[number].kind != SAME_FILLED
            one.data = new.data + used
            one.lengths = new.lengths + used
            one.values = new.values + used
            used += one.object_count
            is_full = _enter(hand, first, start + number, &one) != 0 or is_full
    if is_full:
        region_lock(region)
        region.full_until = bz_now_ns() + FULL_NS
        region_unlock(region)
        region_tell(region, NO_ROOM)
    new.count = new.object_count = 0


cdef int _enter(Hand *hand, uint64_t first, uint32_t start, Prepared *new) noexcept nogil:
    """Publish entries of a run, all or none. Return 0 or a negative errno."""
    cdef RegionState *region = hand.region
    cdef uint32_t number
    cdef int code = entries_publish(region.entries, first + start, new, False, False, UINT64_MAX)
    for number in range(start, start + new.count):
        hand.codes[number] = STAYS if code else IS_STORED
        # A refused store also removes the previous entries, which are stale.
        region.flags[first + number] &= <uint8_t>~(ENTRY | CLEAN)
        if not code:
            region.flags[first + number] |= ENTRY | (CLEAN if region.tracks_writes else 0)
    return code


cdef void _store_run(Hand *hand, uint64_t first, uint32_t count, bint full) noexcept nogil:
    """Decide the fate of busy CANDIDATE pages, and publish those that are to be compressed."""
    cdef RegionState *region = hand.region
    cdef size_t size = region.page_size, used = 0
    cdef uint32_t number, start = 0, have = 0
    cdef const uint8_t *page
    cdef Prepared new
    memset(hand.codes, STAYS, count)
    new.count = new.object_count = 0
    new.entries, new.data, new.lengths, new.values = (
        hand.entries, hand.data, hand.lengths, hand.values
    )
    for number in range(count):
        if region.flags[first + number] & CLEAN:
            hand.codes[number] = WAS_CLEAN
            _publish(hand, first, start, &new)
            continue
        if number >= have:
            have = _read_run(hand, first, number, count)
            if number >= have:
                break
        page = hand.pages + number * size
        if not memcmp(page, &_no_word, 8) and is_same_filled(page, size):
            _publish(hand, first, start, &new)
            if region.flags[first + number] & ENTRY:
                region_forget(region, first + number, 1)
                region.flags[first + number] &= <uint8_t>~ENTRY
            hand.codes[number] = IS_EMPTY
            continue
        if full:
            continue
        if not new.count:
            start = number
            used = 0
        _compress(hand, number, &new, &used)
    _publish(hand, first, start, &new)


cdef uint32_t _read_run(Hand *hand, uint64_t first, uint32_t start, uint32_t count) noexcept nogil:
    """Read the pages of a run that are not clean to their rows, from `start` on.

    Return the end of the pages that were read.
    """
    cdef RegionState *region = hand.region
    cdef uint32_t end = start
    cdef int64_t wanted, done = 0, got
    while end < count and not region.flags[first + end] & CLEAN:
        end += 1
    wanted = <int64_t>(end - start) * region.page_size
    while done < wanted:
        got = pread(
            region.file, hand.pages + start * region.page_size + done, wanted - done,
            ((first + start) << region.page_shift) + done,
        )
        if got <= 0 and c_errno != EINTR:
            return start
        done += max(got, <int64_t>0)
    return end


cdef uint32_t _evict_run(
    Hand *hand, uint64_t first, uint32_t count, uint64_t *spared
) noexcept nogil:
    """Evict busy CANDIDATE pages. Return the number of pages evicted.

    Pages touched meanwhile stay. `spared` gets a bit for each of them.
    """
    cdef RegionState *region = hand.region
    cdef uint64_t wanted = 0, page, woken = 0
    cdef uint32_t number, start, freed = 0
    cdef bint full
    region_lock(region)
    full = bz_now_ns() < region.full_until
    region_unlock(region)
    _store_run(hand, first, count, full)
    region_lock(region)
    for number in range(count):
        if region.states[first + number] & WANTED:
            wanted |= <uint64_t>1 << number
            region.figures.second_chances += 1
    region_unlock(region)
    spared[0] = wanted
    number = 0
    while number < count:
        start = number
        while number < count and hand.codes[number] != STAYS and not wanted >> number & 1:
            number += 1
        if number > start and region_punch(region, first + start, number - start):
            for start in range(start, number):
                hand.codes[start] = STAYS
        number += 1
    region_lock(region)
    for number in range(count):
        if wanted >> number & 1:
            continue
        page = first + number
        if region.states[page] & WANTED:
            woken |= <uint64_t>1 << number
        if hand.codes[number] == STAYS:
            region.states[page] = CANDIDATE
            region.candidates += 1
            continue
        region.states[page] = EMPTY if hand.codes[number] == IS_EMPTY else STORED
        freed += 1
        if hand.codes[number] == IS_EMPTY:
            region.figures.dropped_empty_pages += 1
        elif hand.codes[number] == WAS_CLEAN:
            region.figures.dropped_clean_pages += 1
        else:
            region.figures.evicted_pages += 1
    region.resident -= freed
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)
    for number in range(count):
        if wanted >> number & 1:
            region_map_back(region, first + number, region.flags[first + number] & CLEAN != 0)
        elif woken >> number & 1:
            region_wake(region, first + number, 1)
    return freed


cdef int _advance_front(Hand *hand, uint32_t most) noexcept nogil:
    """Make candidates of the next resident pages. Return the Progress.

    One call unmaps them together with the pages between them: each call flushes the TLBs of other
    CPUs, which interrupts the program.
    """
    cdef RegionState *region = hand.region
    cdef uint64_t first, end, page
    cdef uint32_t count = 0
    region_lock(region)
    first = _seek(region, region.front, region.pages, RESIDENT)
    if first == region.pages:
        first = _seek(region, 0, region.front, RESIDENT)
        if first == region.front:
            region_unlock(region)
            return NOTHING
    end = page = first
    while page < region.pages and count < most and page < first + SPREAD * most:
        if _is_movable(region, page, RESIDENT):
            hand.picked[count] = page
            count += 1
            end = page + 1
        elif region.states[page] not in (STORED, EMPTY, CANDIDATE):
            break
        region.states[page] |= BUSY
        page += 1
    for page in range(end, page):
        region.states[page] &= <uint8_t>~BUSY
    region.front = end
    region_unlock(region)
    return MOVED if _unmap_span(hand, first, end, count) else REFUSED


cdef int _advance_back(Hand *hand, uint32_t most) noexcept nogil:
    """Evict the next run of candidates. Return the Progress."""
    cdef RegionState *region = hand.region
    cdef uint64_t first, spared = 0
    cdef uint32_t count
    region_lock(region)
    if not region.candidates:
        region_unlock(region)
        return NOTHING
    first = _seek(region, region.back, region.pages, CANDIDATE)
    if first == region.pages:
        first = _seek(region, 0, region.back, CANDIDATE)
        if first == region.back:
            region_unlock(region)
            return NOTHING
    count = _take_run(region, first, region.pages, CANDIDATE, most)
    region.back = first + count if first + count < region.pages else 0
    region.candidates -= count
    region_unlock(region)
    if _evict_run(hand, first, count, &spared):
        return FREED
    return MOVED if spared else REFUSED


cdef int reclaim_step(Hand *hand, uint32_t most, bint urgent) noexcept nogil:
    """Advance a hand of the clock by a run of up to `most` pages. Return the Progress.

    `urgent` means that pages have to be evicted even if there are few candidates.
    """
    cdef RegionState *region = hand.region
    cdef int moved = NOTHING, progress
    cdef bint is_short  # of candidates
    region_lock(region)  # the budget may change at any time
    # At most a sixteenth of the budget, so that pages have time between the hands.
    most = min(most, min(region.run, max(<uint32_t>(region.budget // 16), <uint32_t>1)))
    is_short = region.candidates <= lag(region)
    region_unlock(region)
    if is_short:
        moved = _advance_front(hand, most)
        if moved == MOVED and not urgent:
            return MOVED
    progress = _advance_back(hand, most)
    if progress == REFUSED and moved == NOTHING:
        # Refused pages stay candidates. They must not stop the front hand from reaching pages that
        # can be evicted.
        _advance_front(hand, most)
    return moved if progress == NOTHING else progress


cdef uint64_t reclaim_range(Hand *hand, uint64_t first, uint64_t count) noexcept nogil:
    """Evict all pages of a range that may be evicted. Return the number of pages evicted."""
    cdef RegionState *region = hand.region
    cdef uint64_t page = first, end = first + count, freed = 0, spared = 0
    cdef uint32_t run, number
    while page < end and not region.closing:
        region_lock(region)
        while region.states[page] & BUSY:
            region_wait(region, -1)
        run = _take_run(region, page, end, RESIDENT, region.run)
        region_unlock(region)
        for number in range(run):
            hand.picked[number] = page + number
        if run:
            _unmap_span(hand, page, page + run, run)
        region_lock(region)
        run = _take_run(region, page, end, CANDIDATE, region.run)
        region.candidates -= run
        region_unlock(region)
        if run:
            freed += _evict_run(hand, page, run, &spared)
        page += max(run, <uint32_t>1)
    return freed
