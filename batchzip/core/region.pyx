"""Region: the memory of a PagedMemory, and the operations on its pages.

    user's mapping ──touch──▶ fault ──▶ pager.pyx: restore, map          the program waits meanwhile
         ▲                                  │ region_fill: entries ─▶ buffer ─▶ UFFDIO_COPY
         │                                  ▼
    memfd (pages in memory) ◀───────── RESIDENT
         │                                  │ reclaim.pyx: MADV_DONTNEED
         │ pread                            ▼
         └────────────────────────── CANDIDATE ──▶ compress, publish, punch ──▶ STORED (entries)

A page is in one of these states:

    UNUSED      in no array
    EMPTY       all zeros, without memory and without an entry
    STORED      only in the entries
    LOST        cannot be restored; a touch raises SIGBUS
    RESIDENT    in the memfd, and mapped
    CANDIDATE   in the memfd, not mapped; a touch is a minor fault and gives it a second chance

A thread that works on a page sets BUSY and works without the mutex. A touch of a busy page sets
WANTED, and the touching thread sleeps in the kernel until the page is mapped or woken. The thread
that clears BUSY wakes the threads that wait for a WANTED page. It does so even after it has mapped
the page or marked it as lost, although that wakes them, too: the kernel does not treat a mark as a
page, so a thread may go to sleep after the marking.

A page cannot change while it is unmapped, and only BUSY pages are mapped or unmapped. The
compressed bytes are therefore what the program wrote last.

Clean pages. A page that is restored for reading is mapped write-protected and keeps its entry. The
kernel lifts the protection at the first write (UFFD_FEATURE_WP_ASYNC). If the page is still
protected when it is unmapped, a marker stays behind: bit 57 of /proc/self/pagemap. The marker is
read after the unmapping, so no write can come in between. Such a page is dropped without being
compressed again.

Rejected
* A second mapping for the pager. Its write fault costs 2 to 3 µs per page; UFFDIO_COPY from a warm
  buffer costs 1.1 µs, and pread reads a candidate in 0.4 µs.
* UFFD_FEATURE_SIGBUS, which restores pages in the faulting thread. System calls then fail with
  EFAULT.
* UFFDIO_MOVE of anonymous pages (Linux 6.8). It gives no second chance without a further fault.

Invariants (`fault` in pager.pyx)
* `resident` is the number of pages that are in memory or about to be. `candidates` is the number of
  CANDIDATE pages.
* A page that is not BUSY is mapped if and only if it is RESIDENT.
* A STORED page has the flag ENTRY, and `entries` has its entry.

    field                                   writer
    states, flags, pins, counts, hands      the thread that holds the mutex; for the flags of a BUSY
                                            page, the thread that set BUSY
    events                                  any thread, atomically

Locks: `mutex`, within one step. It is never held while a codec runs or during a system call that
may sleep. No thread holds it together with the pool's mutex, and no thread waits for the GIL while
it holds either.
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
        case EBADMSG: return "its stored data is damaged";
        case ENOENT: return "its entry was taken out of the store";
        case EBADF: return "its store is closed";
        case EFAULT: return "it belongs to no array";
        default: return strerror_r(code, room, size);
        }
    }
    static void bz_say_lost(
        const void *region, uint64_t page, uint64_t offset, int code, int can_poison) {
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
                              "batchzip: the kernel cannot mark page %llu of the paged memory at "
                              "%p as lost: %s. A touch raises SIGSEGV.\\n",
                              (unsigned long long)page, region,
                              strerror_r(code, room, sizeof room));
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
    MARKER_BIT = 57  # in a pagemap word: the page was write-protected when it was unmapped
    WORDS = 512  # maximum number of pagemap words per read

cdef void region_lock(RegionState *region) noexcept nogil:
    pthread_mutex_lock(&region.mutex)


cdef void region_unlock(RegionState *region) noexcept nogil:
    pthread_mutex_unlock(&region.mutex)


cdef void region_tell(RegionState *region, uint32_t event) noexcept nogil:
    """Report an Event to Python: see Pager.await_event."""
    bz_or32(&region.events, event)
    bz_futex_wake(&region.events)


# Mapped pages. The caller has made the pages BUSY, so that no other thread changes them.

cdef int region_unmap(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Unmap pages. They stay in the file. Return 0, or an errno with some pages still mapped."""
    cdef uint64_t bytes = count << region.page_shift
    if madvise(address_of(region, first), bytes, MADV_DONTNEED) == 0:
        return 0
    # The program has locked the pages with mlock(2). The budget applies to them as well.
    return c_errno if madvise(address_of(region, first), bytes, BZ_DONTNEED_LOCKED) else 0


cdef int region_punch(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Punch holes for pages. Return 0, or an errno with some pages still in memory."""
    while fallocate(
        region.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first << region.page_shift,
        count << region.page_shift,
    ):
        if c_errno != EINTR:
            return c_errno
    return 0


cdef void region_map_back(RegionState *region, uint64_t page, bint protect) noexcept nogil:
    """Map a busy page that is in the file, and clear BUSY.

    If the kernel cannot map it now, the page becomes a candidate again, and waiting threads touch
    it again.
    """
    cdef bint woken
    cdef int code = -bz_uffd_continue(
        region.uffd, address_of(region, page), region.page_size, protect, region.machine_page
    )
    if code and not is_passing(code):  # for example EIO: its memory is damaged
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
    """Wake the threads that wait for one of the pages. They touch it again."""
    bz_uffd_wake(region.uffd, address_of(region, first), count << region.page_shift)


cdef uint64_t region_clean(
    RegionState *region, const uint64_t *pages, uint32_t count
) noexcept nogil:
    """Return a bit set of those of up to 64 unmapped pages that were still write-protected then.

    The pages are in ascending order. One read covers pages that are near each other.
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
    """Mark a busy page as lost, so that a touch raises SIGBUS, and clear BUSY.

    A page may be lost twice: two threads that touch it at once may each cause a fault, and the
    second fault may be served after the first one has marked the page.
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
        # The object may have moved meanwhile. It is damaged only if the entry is unchanged.
        if before.kind == BACKED and entry_is(&before, &found):
            return EIO if length < 0 else EBADMSG
        before = found


cdef void region_forget(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    """Remove the entries of pages."""
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
    """Restore busy pages, all STORED or all EMPTY, and map them. Return their number.

    `hand.codes` gets 0 for each restored page and an errno for the others. `writes` means that the
    program is about to write to them.
    """
    cdef RegionState *region = hand.region
    cdef size_t size = region.page_size
    cdef uint32_t number, start, filled = 0
    cdef bint protect = region.tracks_writes and kind == STORED and not writes
    if kind == STORED:
        for number in range(count):
            hand.codes[number] = <uint8_t>region_fetch(
                hand, first + number, hand.pages + number * size
            )
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
        # The whole run failed, for example for lack of memory. Try page by page.
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
    """Fill and map a run of pages in one call. Return 0 or an errno."""
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
    """Undo a fill that stopped in the middle."""
    region_unmap(region, first, count)
    region_punch(region, first, count)
