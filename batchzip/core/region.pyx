"""Region: the memory of a PagedMemory, and what is done to single pages of it.

    user's mapping ──touch──▶ fault ──▶ pager.pyx: restore, map          program waits meanwhile
         ▲                                  │ region_fill: entries ─▶ buffer ─▶ UFFDIO_COPY
         │                                  ▼
    memfd (pages in memory) ◀───────── RESIDENT
         │                                  │ reclaim.pyx: MADV_DONTNEED
         │ pread                            ▼
         └────────────────────────── CANDIDATE ──▶ compress, publish, punch ──▶ STORED (entries)

A page is in one of these states:

    UNUSED      in no array
    EMPTY       zeros; neither memory nor an entry
    STORED      in the entries alone
    LOST        cannot be restored; a touch raises SIGBUS
    RESIDENT    in the memfd, and mapped
    CANDIDATE   in the memfd and not mapped: a touch is a minor fault, and gives it a second chance

A thread that works on a page sets BUSY, and does so without the mutex. A touch of a busy page sets
WANTED, and its thread sleeps in the kernel until the page is mapped or woken. Whoever ends BUSY
wakes those who wait for a WANTED page, even if it has just mapped the page or marked it as lost,
which wakes, too. The kernel takes a mark for no page, so a thread may go to sleep after that.

A page cannot change while it is unmapped, and only BUSY pages are mapped or unmapped, so what is
compressed is what the program wrote last.

Clean pages. A page that is restored for reading is mapped write-protected, and keeps its entry. The
kernel lifts the protection at the first write by itself (UFFD_FEATURE_WP_ASYNC). When the page is
unmapped, a marker stays behind if it was still protected: bit 57 of /proc/self/pagemap. Looked at
afterwards, it cannot be overtaken by a write. Such a page is dropped, and not compressed again.

Rejected
* A second mapping for the pager. Its write fault costs 2 to 3 µs per page, UFFDIO_COPY from a warm buffer 1.1,
  and pread reads a candidate for 0.4.
* UFFD_FEATURE_SIGBUS, which restores pages in the faulting thread: system calls then fail with EFAULT.
* UFFDIO_MOVE of anonymous pages (Linux 6.8): no second chance without a fault of its own.

Invariants (`fault` in pager.pyx)
* resident is the number of pages in memory, and of those about to be; candidates that of CANDIDATE ones.
* A page that is not BUSY is mapped if and only if it is RESIDENT.
* STORED implies ENTRY, and an entry in the entries.

    field                                   writer
    states, flags, pins, counts, hands      whoever holds the mutex; flags of a BUSY page: who made it so
    events                                  anybody, atomically

Locks: `mutex`, within one step; never while a codec runs, nor during a system call that may sleep. The pool's
mutex is not taken while it is held, nor the other way round. The GIL is never waited for with either.
"""

from libc.errno cimport EBADF, EBADMSG, EINTR, EIO, ENOENT, ENOMEM, errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from batchzip.core.coder cimport restore_page
from batchzip.core.gather cimport (
    ELSEWHERE, IS_CLOSED, LOADED, NOT_STORED, checksum_of, entry_is, load_page,
)
from batchzip.core.entries cimport entries_remove
from batchzip.core.memory cimport bz_may_reserve
from batchzip.core.pool cimport pool_lock, pool_settle, pool_unlock
from batchzip.core.table cimport ABSENT, BACKED, COMPRESSED, Entry, table_find
from batchzip.core.userfaultfd cimport (
    bz_uffd_continue, bz_uffd_copy, bz_uffd_poison, bz_uffd_wake, bz_uffd_zero,
)
from batchzip.core.zones cimport position_length, position_offset

cdef extern from *:
    """
    #define BZ_DONTNEED_LOCKED 24 /* Linux 5.18 */
    static const char *bz_why(int code, char *room, size_t size) {
        switch (code) {
        case EBADMSG: return "what is stored of it is damaged";
        case ENOENT: return "its entry was taken out of the store";
        case EBADF: return "its store is closed";
        case EFAULT: return "it belongs to no array";
        default: return strerror_r(code, room, size);
        }
    }
    static void bz_say_lost(const void *region, uint64_t page, uint64_t offset, int code, int can_poison) {
        char line[320], room[80];
        int length = snprintf(line, sizeof line,
                              "batchzip: page %llu of the paged memory at %p (byte %llu) cannot be "
                              "restored: %s. A touch raises %s.\\n",
                              (unsigned long long)page, region, (unsigned long long)offset,
                              bz_why(code, room, sizeof room), can_poison ? "SIGBUS" : "SIGSEGV");
        if (write(2, line, length) < 0) return;
    }
    static void bz_say_not_marked(const void *region, uint64_t page, int code) {
        char line[320], room[80];
        int length = snprintf(line, sizeof line,
                              "batchzip: the kernel cannot mark page %llu of the paged memory at %p as "
                              "lost: %s. A touch raises SIGSEGV.\\n",
                              (unsigned long long)page, region, strerror_r(code, room, sizeof room));
        if (write(2, line, length) < 0) return;
    }
    static inline void bz_or32(uint32_t *word, uint32_t bits) {
        __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
    }
    """
    void bz_say_lost(const void *, uint64_t, uint64_t, int, bint) nogil
    void bz_say_not_marked(const void *, uint64_t, int) nogil
    void bz_or32(uint32_t *, uint32_t) nogil
    void bz_futex_wake(uint32_t *) nogil
    int pthread_mutex_lock(pthread_mutex_t *) nogil
    int pthread_mutex_unlock(pthread_mutex_t *) nogil
    int madvise(void *, size_t, int) nogil
    int fallocate(int, int, long, long) nogil
    int mprotect(void *, size_t, int) nogil
    long pread(int, void *, size_t, long) nogil
    enum: PROT_NONE, MADV_DONTNEED, BZ_DONTNEED_LOCKED, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE

cdef enum:
    MARKER_BIT = 57  # of a word of pagemap: the page was write-protected when it was unmapped
    WORDS = 512  # of pagemap that are read in one go, at most

cdef void region_lock(RegionState *region) noexcept nogil:
    pthread_mutex_lock(&region.mutex)


cdef void region_unlock(RegionState *region) noexcept nogil:
    pthread_mutex_unlock(&region.mutex)


cdef void region_tell(RegionState *region, uint32_t event) noexcept nogil:
    """Tell Python of an Event: see Pager.await_event."""
    bz_or32(&region.events, event)
    bz_futex_wake(&region.events)


# Mapped pages. The pages are the caller's: BUSY, and nobody else changes them.

cdef int region_unmap(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Unmap pages; they stay in the file. Return 0 or an errno: some may be mapped still."""
    cdef uint64_t bytes = count << region.page_shift
    if madvise(address_of(region, first), bytes, MADV_DONTNEED) == 0:
        return 0
    # The program has locked them (mlock(2)). The budget counts for these, too.
    return c_errno if madvise(address_of(region, first), bytes, BZ_DONTNEED_LOCKED) else 0


cdef int region_punch(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Give the memory of pages back. Return 0 or an errno: some may be there still."""
    while fallocate(
        region.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first << region.page_shift,
        count << region.page_shift,
    ):
        if c_errno != EINTR:
            return c_errno
    return 0


cdef void region_map_back(RegionState *region, uint64_t page, bint protect) noexcept nogil:
    """Map a busy page that is in the file, and end its being busy.

    Where the kernel cannot do so now, the page is a candidate again, and whoever waits touches it again.
    """
    cdef bint woken
    cdef int code = -bz_uffd_continue(
        region.uffd, address_of(region, page), region.page_size, protect, region.machine_page
    )
    if code and not is_passing(code):  # its memory is damaged: EIO
        region_forget(region, page, 1)
        region_punch(region, page, 1)
        region_lock(region)
        region.flags[page] &= <uint8_t>~(ENTRY | CLEAN)
        region.resident -= 1
        region_unlock(region)
        region_lose(region, page, code, True)
        return
    region_lock(region)
    if code:
        region_wait(region, PAUSE_NS)
        region.candidates += 1
    woken = code != 0 or region.states[page] & WANTED
    region.states[page] = CANDIDATE if code else RESIDENT
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)
    if woken:
        region_wake(region, page, 1)


cdef void region_wake(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Wake whoever waits for one of the pages: they touch it again."""
    bz_uffd_wake(region.uffd, address_of(region, first), count << region.page_shift)


cdef uint64_t region_clean(
    RegionState *region, const uint64_t *pages, uint32_t count
) noexcept nogil:
    """Return a bit for each of up to 64 unmapped pages: it was still write-protected when it was unmapped.

    The pages are in ascending order. Those that are near each other are looked at together.
    """
    cdef uint64_t words[WORDS]
    cdef uint64_t found = 0, marked, at, parts = region.page_size // region.machine_page
    cdef uint32_t done = 0, end, part
    cdef int64_t bytes
    while done < count:
        end = done + 1
        while end < count and (pages[end] - pages[done] + 1) * parts <= WORDS:
            end += 1
        bytes = 8 * (pages[end - 1] - pages[done] + 1) * parts
        at = <uint64_t>address_of(region, pages[done]) // region.machine_page * 8
        if bytes > <int64_t>sizeof(words) or pread(region.pagemap, words, bytes, at) != bytes:
            return found
        at = pages[done]
        for done in range(done, end):
            marked = 1
            for part in range(parts):
                marked &= words[(pages[done] - at) * parts + part] >> MARKER_BIT
            found |= marked << done
        done = end
    return found


cdef void region_lose(RegionState *region, uint64_t page, int code, bint say) noexcept nogil:
    """Have touches of a busy page raise SIGBUS, and end its being busy.

    A page may be lost twice: each of two threads that touched it at once may have a fault of its own, and the
    second one may be looked at after the page was lost for the first one.
    """
    cdef uint8_t *address = address_of(region, page)
    cdef int failed = 0
    cdef bint woken
    if say:
        bz_say_lost(region.base, page, page << region.page_shift, code, region.can_poison)
    if region.can_poison:
        failed = -bz_uffd_poison(region.uffd, address, region.page_size, region.machine_page)
        if failed:
            bz_say_not_marked(region.base, page, failed)
    if failed or not region.can_poison:
        mprotect(address, region.page_size, PROT_NONE)
    region_lock(region)
    woken = failed or not region.can_poison or region.states[page] & WANTED
    region.states[page] = LOST
    region.figures.lost_pages += say
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)
    if woken:
        region_wake(region, page, 1)
    if say:
        region_tell(region, PAGE_LOST)


# Stored pages.

cdef int region_fetch(Hand *hand, uint64_t page, uint8_t *to) noexcept nogil:
    """Restore a page from the entries to a private buffer. Return 0 or an errno."""
    cdef RegionState *region = hand.region
    cdef EntriesState *entries = region.entries
    cdef Entry *entry
    cdef Entry found, before
    cdef int code
    cdef int64_t length
    memset(&before, 0, sizeof(before))
    while True:
        code = load_page(
            entries, page, region.number, entries.objects.reused, hand.coder, to, False
        )
        if code == LOADED:
            return 0
        if code == NOT_STORED:
            return ENOENT
        if code == IS_CLOSED:
            return EBADF
        if code < 0:
            return -code
        if code != ELSEWHERE:
            continue
        pool_lock(entries.objects.pool)
        entry = NULL if entries.closed else table_find(&entries.table, page)
        if entry is NULL:
            found.kind = ABSENT
        else:
            found = entry[0]
        pool_unlock(entries.objects.pool)
        if found.kind != BACKED:
            if found.kind == COMPRESSED and found.codec != region.number:
                return EIO
            continue
        if found.codec != 0 and found.codec != region.number:
            return EIO
        length = position_length(found.value)
        length = pread(region.backing, hand.coder.output, length, position_offset(found.value))
        hand.file_reads += 1
        if length == <int64_t>position_length(found.value) and (
            checksum_of(hand.coder.output, length, found.codec) == found.checksum
        ):
            if found.codec:
                code = <int>restore_page(hand.coder, hand.coder.output, length, to, True)
                return 0 if code >= 0 else -code
            if <size_t>length == region.page_size:
                memcpy(to, hand.coder.output, length)
                return 0
            return EBADMSG
        # It may have been moved meanwhile. Damaged is only what is still there.
        if before.kind == BACKED and entry_is(&before, &found):
            return EIO if length < 0 else EBADMSG
        before = found


cdef void region_forget(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Take the entries of pages out of the entries."""
    cdef EntriesState *entries = region.entries
    cdef Entry *entry
    cdef uint64_t page
    pool_lock(entries.objects.pool)
    if not entries.closed:
        for page in range(first, first + count):
            entry = table_find(&entries.table, page)
            if entry is not NULL and entry.kind != ABSENT:
                entries_remove(entries, entry)
        pool_settle(entries.objects.pool)
    pool_unlock(entries.objects.pool)


cdef uint32_t region_fill(
    Hand *hand, uint64_t first, uint32_t count, uint8_t kind, bint writes
) noexcept nogil:
    """Bring busy pages, all STORED or all EMPTY, into memory, and map them. Return how many are there.

    `hand.codes` has 0 for each of these, and an errno for the others. `writes`: the program writes to them.
    """
    cdef RegionState *region = hand.region
    cdef size_t size = region.page_size
    cdef uint32_t number, start, filled = 0
    cdef bint protect = region.tracks_writes and kind == STORED and not writes
    if kind == STORED:
        for number in range(count):
            hand.codes[number] = <uint8_t>region_fetch(hand, first + number, hand.pages + number * size)
    else:
        memset(hand.codes, 0, count)
    number = 0
    while number < count:
        if hand.codes[number]:
            number += 1
            continue
        start = number
        while number < count and not hand.codes[number]:
            number += 1
        if _fill_run(hand, first + start, start, number - start, kind, protect) == 0:
            filled += number - start
            continue
        # Not all of them, for want of memory, say: what there is goes page by page.
        _take_back(region, first + start, number - start)
        for number in range(start, number):
            hand.codes[number] = <uint8_t>_fill_run(hand, first + number, number, 1, kind, protect)
            if hand.codes[number]:
                _take_back(region, first + number, 1)
            else:
                filled += 1
        number += 1
    return filled


cdef int _fill_run(
    Hand *hand, uint64_t first, uint32_t row, uint32_t count, uint8_t kind, bint protect
) noexcept nogil:
    """Return 0 or an errno."""
    cdef RegionState *region = hand.region
    cdef uint64_t bytes = <uint64_t>count << region.page_shift
    cdef uint8_t *address = address_of(region, first)
    if not bz_may_reserve():
        return ENOMEM
    if kind == EMPTY:
        return -bz_uffd_zero(region.uffd, address, bytes, region.machine_page)
    return -bz_uffd_copy(
        region.uffd, address, hand.pages + row * region.page_size, bytes, protect,
        region.machine_page,
    )


cdef void _take_back(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Undo a filling that stopped in the middle."""
    region_unmap(region, first, count)
    region_punch(region, first, count)
