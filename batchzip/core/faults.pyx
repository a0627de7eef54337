"""Faults: bring touched pages into memory, in threads that never enter the interpreter.

    fault threads   read a fault ─▶ a candidate: mapped again, its second chance
                                 ─▶ zeros, or pages from the entries, up to 16 at once ─▶ mapped,
                                    the program continues
                                      └─▶ the rest of the window ─▶ jobs
    helper          jobs: readahead and prefetch, while the program runs
    reclaimer       from the low mark of free frames to the high mark (kernel counterpart: kswapd)

A fault that finds no free frame reclaims by itself (direct reclaim). A page that is touched during
its eviction stays, and the fault tries the next one. If other threads are working on all frames,
the fault waits for them, up to a second. If the store refuses several runs of pages, the fault
exceeds the budget instead of stopping the program. This is counted, and Python is notified.

A fault thread moves to the CPU of the thread that faulted last. That CPU is idle then, and the two
context switches cost 3 µs. The scheduler would instead wake the fault thread on an idle CPU,
which in a virtual machine takes two exits from the guest (docs/decisions/paged.md has the figures).

Readahead uses only free frames. It skips pages that it cannot restore, so only a page that was
touched can be lost.

region.pyx describes the states, the invariants and the locks.
"""

from libc.errno cimport EBADF, EFAULT
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.latency cimport histogram_add
from batchzip.core.reclaim cimport FREED, MOVED, NOTHING, reclaim_step
from batchzip.core.region cimport (
    BUSY, CANDIDATE, CLEAN, EMPTY, IN_MEMORY, JOBS, LOST, MOST_RUN, OVER_BUDGET, PAUSE_NS, RANDOM,
    RESIDENT, SEQUENTIAL, STORED, UNUSED, WANTED, Hand, Job, RegionState, address_of, bz_wait_for,
    free_frames, high_mark, is_low, is_passing, pthread_cond_broadcast, region_fill, region_lock,
    region_lose, region_map_back, region_tell, region_unlock, region_unmap, region_wait,
    region_wake,
)
from batchzip.core.strides cimport strides_fault
from batchzip.core.userfaultfd cimport bz_uffd_next

cdef extern from *:
    """
    /* Pin the calling thread to the CPU on which another thread ran last. */
    static void bz_follow(uint32_t thread) {
        char path[48], text[512], *at;
        int cpu = -1;
        snprintf(path, sizeof path, "/proc/self/task/%u/stat", thread);
        int fd = thread ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd < 0) return;
        ssize_t length = read(fd, text, sizeof text - 1);
        close(fd);
        text[length > 0 ? length : 0] = 0;
        at = strrchr(text, ')'); /* the thread's name may contain anything */
        for (int field = 2; at && field < 39; field++) at = strchr(at + 1, ' ');
        if (at) cpu = atoi(at + 1);
        if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == sched_getcpu()) return;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
    }
    """
    void bz_follow(uint32_t) nogil
    int64_t bz_now_ns() nogil
    int mprotect(void *, size_t, int) nogil
    enum: PROT_READ, PROT_WRITE

cdef enum:
    AT_ONCE = 16  # pages of a window that the program waits for; the helper restores the others
    DIRECT_RUN = 8  # pages that a fault reclaims at a time
    FOLLOW_EVERY = 64  # faults between two moves to the faulting thread's CPU
    MOST_REFUSALS = 8  # runs that a fault fails to evict before it exceeds the budget
    STUCK_NS = 1_000_000_000  # time that a fault or a prefetch waits for a frame


# Frames. The caller holds the region's mutex. `take_frame` releases it in between.

cdef void take_frame(Hand *hand) noexcept nogil:
    """Take a free frame. If none can be freed, exceed the budget."""
    cdef RegionState *region = hand.region
    cdef uint32_t refusals = 0
    cdef int64_t until = 0, now
    cdef int progress
    while not free_frames(region) and not region.closing:
        region.figures.direct_reclaims += 1
        region_unlock(region)
        progress = reclaim_step(hand, DIRECT_RUN, True)
        region_lock(region)
        if progress >= MOVED or free_frames(region):
            until = 0
            continue
        if progress == NOTHING:
            now = bz_now_ns()
            until = until or now + STUCK_NS
            if now < until:
                region_wait(region, PAUSE_NS)
                continue
        else:
            refusals += 1
            if refusals < MOST_REFUSALS:
                continue
        region.figures.over_budget += 1
        region_tell(region, OVER_BUDGET)
        break
    region.resident += 1
    if is_low(region):
        pthread_cond_broadcast(&region.low)


cdef inline bint _may_fill(const RegionState *region, uint64_t page, uint8_t kind) noexcept nogil:
    return page < region.pages and region.states[page] == kind


cdef uint32_t claim_pages(
    RegionState *region, uint64_t page, int64_t stride, uint32_t count, uint8_t kind,
    uint64_t *claimed
) noexcept nogil:
    """Mark pages from `page` on as busy, `stride` apart, up to `count` pages.

    The caller has claimed `page` itself. Stop at a page of another kind, or when no frame is free.
    Write the numbers of the claimed pages to `claimed`, `page` first. Return their number.
    """
    cdef uint32_t number
    claimed[0] = page
    for number in range(1, count):
        page += stride
        if not _may_fill(region, page, kind) or not free_frames(region):
            return number
        region.states[page] = kind | BUSY
        region.resident += 1
        claimed[number] = page
    return count


cdef void post_job(RegionState *region, Job job) noexcept nogil:
    """Queue pages for the helper. If the queue is full, they are restored when they are touched."""
    if region.job_count < JOBS:
        region.jobs[(region.job_first + region.job_count) % JOBS] = job
        region.job_count += 1
        pthread_cond_broadcast(&region.work)


# Filling.

cdef void _fill(
    Hand *hand, const uint64_t *claimed, uint32_t count, int64_t stride, uint8_t kind, bint writes,
    uint64_t touched,
) noexcept nogil:
    """Bring claimed pages into memory, map them, and clear their busy state.

    `touched` is the page that a program waits for. It becomes lost if it cannot be restored. Other
    pages keep their state then, and a later touch tries again.
    """
    cdef uint32_t number
    if stride == 1:
        fill_pages(hand, claimed[0], count, kind, writes, touched)
    elif stride == -1:
        fill_pages(hand, claimed[count - 1], count, kind, writes, touched)
    else:
        for number in range(count):
            fill_pages(hand, claimed[number], 1, kind, writes, touched)


cdef int fill_pages(
    Hand *hand, uint64_t first, uint32_t count, uint8_t kind, bint writes, uint64_t touched
) noexcept nogil:
    """Fill neighbouring pages, as `_fill` does. Return 0, or the errno of the last one that failed.

    `hand.codes` has the errno of each page.
    """
    cdef RegionState *region = hand.region
    cdef uint32_t number
    cdef int code = 0
    cdef uint64_t page, woken = 0
    cdef bint is_lost = False
    cdef uint32_t filled = region_fill(hand, first, count, kind, writes)
    region_lock(region)
    for number in range(count):
        page = first + number
        if not hand.codes[number]:
            woken |= <uint64_t>(region.states[page] & WANTED != 0) << number
            region.states[page] = RESIDENT
            region.flags[page] &= <uint8_t>~CLEAN
            continue
        region.resident -= 1
        code = hand.codes[number]
        if page == touched and not is_passing(code):
            is_lost = True
        else:
            woken |= <uint64_t>1 << number
            region.states[page] = kind
    if kind == EMPTY:
        region.figures.zeroed_pages += filled
    else:
        region.figures.restored_pages += filled
    region.figures.file_reads += hand.file_reads
    hand.file_reads = 0
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)
    if is_passing(code):  # a transient failure: the machine has no memory now
        reclaim_step(hand, DIRECT_RUN, True)
        region_lock(region)
        region_wait(region, PAUSE_NS)
        region_unlock(region)
    for number in range(count):
        if woken >> number & 1:  # threads that touched it meanwhile retry their access
            region_wake(region, first + number, 1)
        elif is_lost and first + number == touched:
            region_lose(region, touched, hand.codes[number], True)
    return code


# Faults.

cdef void _handle_fault(Hand *hand, uint64_t page, bint writes) noexcept nogil:
    cdef RegionState *region = hand.region
    cdef int64_t started = bz_now_ns(), stride = 1
    cdef uint64_t claimed[MOST_RUN]
    cdef uint32_t count, window
    cdef uint8_t state
    cdef bint clean
    cdef Job rest
    region_lock(region)
    state = region.states[page]
    if state & BUSY:
        region.states[page] = state | WANTED
        region_unlock(region)
        return
    if state & IN_MEMORY:
        region.figures.faults_minor += 1
        clean = False
        if state == CANDIDATE:
            clean = region.flags[page] & CLEAN != 0 and not writes
            region.candidates -= 1
            region.figures.second_chances += 1
        region.states[page] = RESIDENT | BUSY
        region_unlock(region)
        region_map_back(region, page, clean)
        region_lock(region)
    elif state == STORED or state == EMPTY:
        region.figures.faults_missing += 1
        region.states[page] = state | BUSY
        window = _window(region, page, &stride)
        take_frame(hand)
        count = claim_pages(region, page, stride, min(window, <uint32_t>AT_ONCE), state, claimed)
        if count < window and count == AT_ONCE:
            rest.first = page + stride * <int64_t>count
            rest.count = window - count
            rest.stride = stride
            rest.asked_for = False
            rest.until = 0
            post_job(region, rest)
        region.figures.readahead_pages += count - 1
        region_unlock(region)
        _fill(hand, claimed, count, stride, state, writes, page)
        region_lock(region)
    else:
        region.states[page] = state | BUSY
        region_unlock(region)
        region_lose(region, page, EFAULT, state == UNUSED)
        return
    histogram_add(&region.latencies, started)
    region_unlock(region)


cdef uint32_t _window(RegionState *region, uint64_t page, int64_t *stride) noexcept nogil:
    """Return the number of pages to restore from this one on. Set `stride` to their distance."""
    stride[0] = 1
    if region.advice[page] == RANDOM:
        return 1
    if region.advice[page] == SEQUENTIAL:
        return region.run
    return strides_fault(&region.strides, page, region.run, stride)


cdef void *serve_faults(void *argument) noexcept nogil:
    cdef Hand *hand = <Hand *>argument
    cdef RegionState *region = hand.region
    cdef uint64_t address = 0
    cdef bint writes = False
    cdef uint32_t thread = 0, faults = 0
    while bz_uffd_next(region.uffd, region.watch, &address, &writes, &thread):
        if faults % FOLLOW_EVERY == 0:
            bz_follow(thread)
        faults += 1
        _handle_fault(hand, (address - <uint64_t>region.base) >> region.page_shift, writes)
    return NULL


cdef void *reclaim_ahead(void *argument) noexcept nogil:
    cdef Hand *hand = <Hand *>argument
    cdef RegionState *region = hand.region
    cdef int progress
    region_lock(region)
    while not region.closing:
        if not is_low(region):
            bz_wait_for(&region.low, &region.mutex, -1)
            continue
        progress = FREED
        while not region.closing and region.resident + high_mark(region) > region.budget:
            region_unlock(region)
            progress = reclaim_step(hand, MOST_RUN, False)
            region_lock(region)
            if progress < MOVED:
                break
        # All pages are pinned or busy, or the pool is full.
        if progress < MOVED and not region.closing:
            bz_wait_for(&region.low, &region.mutex, 10 * PAUSE_NS)
    region_unlock(region)
    return NULL


cdef void *help_faults(void *argument) noexcept nogil:
    cdef Hand *hand = <Hand *>argument
    cdef RegionState *region = hand.region
    cdef Job job
    region_lock(region)
    while not region.closing:
        if not region.job_count:
            bz_wait_for(&region.work, &region.mutex, -1)
            continue
        job = region.jobs[region.job_first]
        region.job_first = (region.job_first + 1) % JOBS
        region.job_count -= 1
        while job.count and not region.closing:
            if not _do_piece(hand, &job):
                break
    region_unlock(region)
    return NULL


cdef bint _do_piece(Hand *hand, Job *job) noexcept nogil:
    """Restore the next pages of a job. Return False if the rest of the job is dropped."""
    cdef RegionState *region = hand.region
    cdef uint64_t claimed[MOST_RUN]
    cdef uint64_t page = job.first
    cdef uint32_t count
    cdef uint8_t kind
    cdef int found
    cdef int64_t now
    if page >= region.pages:
        return False
    kind = region.states[page]
    if kind != STORED and (kind != EMPTY or job.asked_for):
        job.first += job.stride
        job.count -= 1
        return True
    if not free_frames(region):
        if not job.asked_for:
            return False
        region_unlock(region)
        found = reclaim_step(hand, DIRECT_RUN, True)
        region_lock(region)
        if found >= MOVED:
            job.until = 0
            return True
        now = bz_now_ns()
        if not job.until:
            job.until = now + STUCK_NS
        region_wait(region, PAUSE_NS)
        return now < job.until
    region.states[page] = kind | BUSY
    take_frame(hand)
    count = claim_pages(
        region, page, job.stride, <uint32_t>min(job.count, <uint64_t>region.run), kind, claimed
    )
    job.first += job.stride * <int64_t>count
    job.count -= count
    if job.asked_for:
        region.figures.prefetched_pages += count
    else:
        region.figures.readahead_pages += count
    region_unlock(region)
    _fill(hand, claimed, count, job.stride, kind, False, UINT64_MAX)
    region_lock(region)
    return True


cdef int make_resident(Hand *hand, uint64_t *next, uint64_t end) noexcept nogil:
    """Bring the pinned pages [next, end) into memory and map them.

    Advance `next`. Return 0, or the errno of the page at `next`.
    """
    cdef RegionState *region = hand.region
    cdef uint64_t claimed[MOST_RUN]
    cdef uint64_t page
    cdef uint32_t count
    cdef uint8_t kind
    cdef bint clean, woken
    cdef int code
    region_lock(region)
    while next[0] < end and not region.closing:
        page = next[0]
        kind = region.states[page]
        if kind & BUSY:
            region_wait(region, PAUSE_NS)
        elif kind == RESIDENT:
            next[0] += 1
        elif kind == CANDIDATE:
            clean = region.flags[page] & CLEAN != 0
            region.candidates -= 1
            region.states[page] = RESIDENT | BUSY
            region_unlock(region)
            region_map_back(region, page, clean)
            region_lock(region)
        elif kind == LOST:  # try again: it may be restorable by now
            region.states[page] = kind | BUSY
            region_unlock(region)
            mprotect(address_of(region, page), region.page_size, PROT_READ | PROT_WRITE)
            region_unmap(region, page, 1)
            region_lock(region)
            woken = region.states[page] & WANTED != 0
            region.states[page] = STORED
            pthread_cond_broadcast(&region.changed)
            if woken:
                region_unlock(region)
                region_wake(region, page, 1)
                region_lock(region)
        else:
            region.states[page] = kind | BUSY
            take_frame(hand)
            count = claim_pages(
                region, page, 1, <uint32_t>min(end - page, <uint64_t>region.run), kind, claimed
            )
            region_unlock(region)
            code = fill_pages(hand, page, count, kind, False, UINT64_MAX)
            if code:
                for count in range(count):
                    if hand.codes[count]:
                        next[0] = page + count
                        break
                return code
            region_lock(region)
    code = EBADF if region.closing else 0
    region_unlock(region)
    return code
