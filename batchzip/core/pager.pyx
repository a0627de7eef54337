"""Pager: threads that serve the faults of a region, and reclaim its cold pages, without the interpreter.

    fault threads   poll ─▶ handle_fault: second chance, zeros, or restore a few pages ─▶ mapped, program goes on
                        └─▶ the rest of the window ─▶ jobs
    helper          jobs: readahead and prefetch, while the program works
    reclaimer       from the low mark to the high mark: reclaim_step (kernel counterpart: kswapd)

A fault that finds no free frame reclaims by itself. If nothing can be reclaimed, the budget is exceeded rather
than the program stopped: this is counted, and Python told.

No thread here ever waits for the GIL, because a thread that faults may hold it. Nor may a thread hold the region's
or the pool's mutex when it touches paged memory: the core copies what it reads from, or writes to, buffers of
users without them.

Ending. close() ends the threads, puts an empty file in the place of the region, and closes the userfaultfd, which
wakes whoever waits: their touch raises SIGBUS. The addresses stay reserved as long as an array has some of them.

A forked child has no mapping of the region (MADV_DONTFORK), and closes its descriptors, so that the memory goes
with its owner.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADF, EBADMSG, EFAULT, ENOMEM, errno as c_errno
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

import errno
import fcntl
import os
from contextlib import suppress

from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_may_reserve, machine_page
from batchzip.core.reclaim cimport FREED, NOTHING, reclaim_range, reclaim_step
from batchzip.core.region cimport (
    BUCKETS, BUSY, CANDIDATE, CLEAN, CLOSING, EMPTY, ENTRY, IN_MEMORY, JOBS, KIND, LOST, MOST_RUN,
    NORMAL, OVER_BUDGET, RANDOM, RESIDENT, RUN_BYTES, SEQUENTIAL, STORED, UNUSED, WANTED, Job,
    RegionState, address_of, bz_wait_for, free_frames, high_mark, is_busy, kind_of, low_mark,
    pthread_cond_broadcast, pthread_cond_t, pthread_mutex_t, region_fill, region_forget, region_lock, region_lose,
    region_map, region_punch, region_tell, region_unlock, region_unmap, region_wait, region_wake,
)
from batchzip.core.ring cimport forks
from batchzip.core.strides cimport strides_fault
from batchzip.core.userfaultfd cimport (
    POISON, WP_ASYNC, WP_SHMEM, bz_uffd_next, bz_uffd_register, bz_uffd_watch, open_userfaultfd,
)

from batchzip.core.userfaultfd import CLEAN_PAGES, NEEDED, WAYS
from batchzip.descriptors import above_standard
from batchzip.errors import BadArgument, ClosedError, CorruptPage, ForkedProcess, PageError
from batchzip.limits import named

cdef extern from *:
    """
    static int bz_make_conditions(pthread_cond_t *a, pthread_cond_t *b, pthread_cond_t *c) {
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        int failed = pthread_cond_init(a, &monotonic) || pthread_cond_init(b, &monotonic) ||
                     pthread_cond_init(c, &monotonic);
        pthread_condattr_destroy(&monotonic);
        return failed;
    }
    /* Descriptors of the regions there are, which a forked child has no use for. Changed under the GIL. */
    #define BZ_REGIONS 256
    static struct bz_ends { int fds[5]; uint64_t device, inode; } bz_regions[BZ_REGIONS];
    static void bz_identify(int file, uint64_t *device, uint64_t *inode) {
        struct stat status;
        fstat(file, &status);
        *device = status.st_dev;
        *inode = status.st_ino;
    }
    static int bz_add_region(int uffd, int file, int pagemap, int stop, int watch,
                             uint64_t device, uint64_t inode) {
        for (int at = 0; at < BZ_REGIONS; at++)
            if (!bz_regions[at].inode) {
                struct bz_ends ends = {{file, uffd, pagemap, stop, watch}, device, inode};
                bz_regions[at] = ends;
                return at;
            }
        return -1;
    }
    static void bz_drop_region(int at) { if (at >= 0) bz_regions[at].inode = 0; }
    /* Whoever closes descriptors that it does not know closes the file, too. */
    static void bz_close_ends(const struct bz_ends *ends) {
        struct stat status;
        if (fstat(ends->fds[0], &status) || status.st_dev != ends->device ||
            status.st_ino != ends->inode)
            return;
        for (int at = 0; at < 5; at++) close(ends->fds[at]);
    }
    static void bz_close(int file, int uffd, int pagemap, int stop, int watch,
                             uint64_t device, uint64_t inode) {
        struct bz_ends ends = {{file, uffd, pagemap, stop, watch}, device, inode};
        bz_close_ends(&ends);
    }
    static void bz_close_in_child(void) {
        for (int at = 0; at < BZ_REGIONS; at++)
            if (bz_regions[at].inode) {
                bz_close_ends(&bz_regions[at]);
                bz_regions[at].inode = 0;
            }
    }
    static void bz_watch_regions(void) { pthread_atfork(NULL, NULL, bz_close_in_child); }
    static inline int bz_log2_of(uint64_t value) { return value ? 63 - __builtin_clzll(value) : 0; }
    """
    int bz_make_conditions(pthread_cond_t *, pthread_cond_t *, pthread_cond_t *)
    void bz_identify(int, uint64_t *, uint64_t *)
    int bz_add_region(int, int, int, int, int, uint64_t, uint64_t)
    void bz_drop_region(int)
    void bz_close(int, int, int, int, int, uint64_t, uint64_t)
    int mprotect(void *, size_t, int) nogil
    long pread(int, void *, size_t, long) nogil
    int memfd_create(const char *, unsigned int) nogil
    int close(int) nogil
    enum: MFD_CLOEXEC
    void bz_watch_regions()
    int bz_log2_of(uint64_t) nogil
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_cond_destroy(pthread_cond_t *)
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long) nogil
    int munmap(void *, size_t) nogil
    int madvise(void *, size_t, int) nogil
    enum: PROT_READ, PROT_WRITE, PROT_NONE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED
    enum: MAP_NORESERVE, MADV_DONTFORK, MADV_NOHUGEPAGE
    int bz_start_thread(pthread_t *, void *(*)(void *) noexcept nogil, void *)
    void bz_join_thread(pthread_t) nogil
    int64_t bz_now_ns() nogil
    uint32_t bz_load32(const uint32_t *) nogil
    uint32_t bz_exchange32(uint32_t *, uint32_t) nogil
    void bz_futex_wait(uint32_t *, uint32_t, int64_t) nogil

FIGURES = (
    "faults_missing",
    "faults_minor",
    "restored_pages",
    "readahead_pages",
    "prefetched_pages",
    "zeroed_pages",
    "file_reads",
    "evicted_pages",
    "dropped_clean_pages",
    "dropped_empty_pages",
    "second_chances",
    "direct_reclaims",
    "over_budget",
    "lost_pages",
)
"""Names of the counters that only grow, in the order of region.pxd's Figures."""

cdef enum:
    AT_ONCE = 16  # pages of a window that the faulting thread waits for; the helper does the others
    DIRECT_RUN = 8  # pages that a fault reclaims by itself
    PAUSE_NS = 2_000_000  # before what cannot be done now is tried again
    MOST_WAITS = 50  # pauses for a page that others reclaim
    PIECE = 1024  # pages between two looks at signals
    STEPS = 16  # of reclaim, likewise

bz_watch_regions()


# Frames. The mutex is held before and after.

cdef void _take_frame(Hand *hand) noexcept nogil:
    """Take a free frame, or one beyond the budget where none can be freed."""
    cdef RegionState *region = hand.region
    cdef uint32_t waits = 0
    cdef int progress
    while not free_frames(region) and not region.closing:
        region.figures.direct_reclaims += 1
        region_unlock(region)
        progress = reclaim_step(hand, DIRECT_RUN, True)
        region_lock(region)
        if progress != NOTHING or free_frames(region):
            continue
        if not region.reclaiming or waits == MOST_WAITS:
            region.figures.over_budget += 1
            region_tell(region, OVER_BUDGET)
            break
        waits += 1
        region_wait(region, PAUSE_NS)
    region.resident += 1
    if free_frames(region) < low_mark(region):
        pthread_cond_broadcast(&region.low)


cdef inline bint _may_fill(const RegionState *region, uint64_t page, uint8_t kind) noexcept nogil:
    return page < region.pages and region.states[page] == kind


cdef uint32_t _claim(
    RegionState *region, uint64_t page, int64_t stride, uint32_t count, uint8_t kind, uint64_t *claimed
) noexcept nogil:
    """Make pages after `page` busy, as long as they are of the same kind and frames are free.

    Put the numbers of all of them into `claimed`, `page` itself first, and return how many they are.
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


cdef void _post(RegionState *region, Job job) noexcept nogil:
    """Leave pages to the helper. What it has no room for will be restored when it is touched."""
    if region.job_count < JOBS:
        region.jobs[(region.job_first + region.job_count) % JOBS] = job
        region.job_count += 1
        pthread_cond_broadcast(&region.work)


# Filling.

cdef void _fill(
    Hand *hand, const uint64_t *claimed, uint32_t count, int64_t stride, uint8_t kind, bint writes,
    uint64_t touched,
) noexcept nogil:
    """Bring claimed pages into memory, map them, and end their being busy.

    `touched` is the page that a program waits for: if it cannot be restored, it is lost. Others may be, later.
    """
    cdef uint32_t number
    if stride == 1:
        _fill_run(hand, claimed[0], count, kind, writes, touched)
    elif stride == -1:
        _fill_run(hand, claimed[count - 1], count, kind, writes, touched)
    else:
        for number in range(count):
            _fill_run(hand, claimed[number], 1, kind, writes, touched)


cdef int _fill_run(
    Hand *hand, uint64_t first, uint32_t count, uint8_t kind, bint writes, uint64_t touched
) noexcept nogil:
    """Do so for neighbours. Return 0, or the errno of a page that is not there: see `hand.codes`."""
    cdef RegionState *region = hand.region
    cdef uint32_t number
    cdef int code = 0
    cdef uint64_t page, left = 0
    cdef bint is_lost = False
    cdef uint32_t filled = region_fill(hand, first, count, kind, writes)
    region_lock(region)
    for number in range(count):
        page = first + number
        if not hand.codes[number]:
            region.states[page] = RESIDENT
            region.flags[page] &= <uint8_t>~CLEAN
            continue
        region.resident -= 1
        code = hand.codes[number]
        if page == touched and code != ENOMEM:
            is_lost = True
        else:
            left |= <uint64_t>1 << number
            region.states[page] = kind
    if kind == EMPTY:
        region.figures.zeroed_pages += filled
    else:
        region.figures.restored_pages += filled
    region.figures.file_reads += hand.file_reads
    hand.file_reads = 0
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)
    if left and code == ENOMEM:  # the machine has none now
        reclaim_step(hand, DIRECT_RUN, True)
        region_lock(region)
        region_wait(region, PAUSE_NS)
        region_unlock(region)
    for number in range(count):
        if left >> number & 1:  # whoever touched it meanwhile touches it again
            region_wake(region, first + number)
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
        region_map(region, page, 1, clean)
        region_lock(region)
        region.states[page] = RESIDENT
        pthread_cond_broadcast(&region.changed)
    elif state == STORED or state == EMPTY:
        region.figures.faults_missing += 1
        region.states[page] = state | BUSY
        window = _window(region, page, &stride)
        _take_frame(hand)
        count = _claim(region, page, stride, min(window, <uint32_t>AT_ONCE), state, claimed)
        if count < window and count == AT_ONCE:
            rest.first = page + stride * <int64_t>count
            rest.count = window - count
            rest.stride = stride
            rest.asked_for = False
            _post(region, rest)
        region.figures.readahead_pages += count - 1
        region_unlock(region)
        _fill(hand, claimed, count, stride, state, writes, page)
        region_lock(region)
    else:
        region.states[page] = state | BUSY
        region_unlock(region)
        region_lose(region, page, EFAULT, state == UNUSED)
        return
    region.latencies[min(bz_log2_of(bz_now_ns() - started), <int>BUCKETS - 1)] += 1
    region_unlock(region)


cdef uint32_t _window(RegionState *region, uint64_t page, int64_t *stride) noexcept nogil:
    """Return how many pages to restore from this one on."""
    stride[0] = 1
    if region.advice[page] == RANDOM:
        return 1
    if region.advice[page] == SEQUENTIAL:
        return region.run
    return strides_fault(&region.strides, page, region.run, stride)


cdef void *_serve_faults(void *argument) noexcept nogil:
    cdef Hand *hand = <Hand *>argument
    cdef RegionState *region = hand.region
    cdef uint64_t address = 0
    cdef bint writes = False
    while bz_uffd_next(region.uffd, region.watch, &address, &writes):
        _handle_fault(hand, (address - <uint64_t>region.base) >> region.page_shift, writes)
    return NULL


cdef void *_reclaim(void *argument) noexcept nogil:
    cdef Hand *hand = <Hand *>argument
    cdef RegionState *region = hand.region
    cdef int progress
    region_lock(region)
    while not region.closing:
        if region.resident + low_mark(region) <= region.budget:
            bz_wait_for(&region.low, &region.mutex, -1)
            continue
        progress = FREED
        while not region.closing and region.resident + high_mark(region) > region.budget:
            region_unlock(region)
            progress = reclaim_step(hand, MOST_RUN, False)
            region_lock(region)
            if progress == NOTHING:
                break
        if progress == NOTHING and not region.closing:  # all is pinned or busy, or the pool is full
            bz_wait_for(&region.low, &region.mutex, 10 * PAUSE_NS)
    region_unlock(region)
    return NULL


cdef void *_help(void *argument) noexcept nogil:
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
    """Restore some pages of a job. Return False where the rest of it is given up."""
    cdef RegionState *region = hand.region
    cdef uint64_t claimed[MOST_RUN]
    cdef uint64_t page = job.first
    cdef uint32_t count
    cdef uint8_t kind
    if page >= region.pages:
        return False
    kind = region.states[page]
    job.first += job.stride
    job.count -= 1
    if kind != STORED and (kind != EMPTY or job.asked_for):
        return True
    if not free_frames(region):
        if not job.asked_for or region.pinned >= region.budget:
            return False
        region.states[page] = kind | BUSY
        _take_frame(hand)
    else:
        region.states[page] = kind | BUSY
        region.resident += 1
    count = _claim(
        region, page, job.stride, <uint32_t>min(job.count + 1, <uint64_t>region.run), kind, claimed
    )
    job.first += job.stride * <int64_t>(count - 1)
    job.count -= count - 1
    if job.asked_for:
        region.figures.prefetched_pages += count
    else:
        region.figures.readahead_pages += count
    if free_frames(region) < low_mark(region):
        pthread_cond_broadcast(&region.low)
    region_unlock(region)
    _fill(hand, claimed, count, job.stride, kind, False, UINT64_MAX)
    region_lock(region)
    return True


# Python's side.

cdef class Worker:
    """What one thread works with."""

    def __cinit__(self, Pager pager not None):
        cdef RegionState *region = &pager.region
        self.coders = pager.coders
        self.coder = self.coders.take()
        self.hand.region = region
        self.hand.coder = &self.coder.state
        self.hand.output_room = region.run * region.page_size + self.coder.state.bound + 64
        self.hand.pages = <uint8_t *>bz_malloc(
            region.run * region.page_size + self.hand.output_room
        )
        if self.hand.pages is NULL:
            raise MemoryError("no memory for a pager's buffers")
        self.hand.outputs = self.hand.pages + region.run * region.page_size

    def __dealloc__(self):
        free(self.hand.pages)


@cython.no_gc_clear
cdef class Pager:
    """A region of `pages` pages, of which `budget` are in memory at most; the others are in `ledger`.

    `number`         of the codec, which runs without the interpreter.
    `fault_threads`  that serve faults.
    `backing_fd`     descriptor of the store's backing file, or −1.

    Raise LimitReached; PermissionError or OSError if no userfaultfd can be had: userfaultfd.probe() tells why.
    """

    def __cinit__(
        self, Ledger ledger not None, int number, *, uint64_t pages, uint64_t budget,
        uint32_t fault_threads=2, int backing_fd=-1,
    ):
        cdef RegionState *region = &self.region
        self.made_in = forks()
        self.slot = -1
        region.uffd = region.file = region.pagemap = region.stop = region.watch = -1
        self.ledger = ledger
        self.codec = ledger.objects.codec(number)
        coders = ledger.objects.coders_of(number)
        if coders is None or not coders.native:
            raise BadArgument(
                f"paged memory needs a codec that runs without the interpreter, not {self.codec}"
            )
        self.coders = coders
        region.ledger = &ledger.state
        region.number = number
        region.backing = backing_fd
        region.page_size = ledger.objects.page_size
        region.page_shift = bz_log2_of(region.page_size)
        region.machine_page = <uint32_t>machine_page()
        region.run = max(1, min(<uint32_t>MOST_RUN, <uint32_t>(RUN_BYTES // region.page_size)))
        if region.page_size % region.machine_page or region.page_size > RUN_BYTES:
            raise BadArgument(
                f"a page of paged memory has {region.machine_page} to {<int>RUN_BYTES} bytes, not {region.page_size}"
            )
        region.pages = pages
        region.budget = budget
        self.workers = []
        self.spare = []
        if pthread_mutex_init(&region.mutex, NULL) or bz_make_conditions(
            &region.changed, &region.work, &region.low
        ):
            raise MemoryError("no memory for the locks of paged memory")
        self.opened = True
        region.states = <uint8_t *>bz_calloc(pages, 3 + sizeof(uint16_t))
        if region.states is NULL:
            raise MemoryError("no memory for the table of paged memory")
        region.pins = <uint16_t *>region.states  # aligned: it comes first
        region.states = <uint8_t *>(region.pins + pages)
        region.flags = region.states + pages
        region.advice = region.flags + pages
        if not ledger.objects.hold(number, self.codec):
            raise ClosedError("the codec's number was given to another one")
        self.held = True
        try:
            self._open()
            for count in range(fault_threads + 2):
                self._start(
                    _reclaim if count == 0 else (_help if count == 1 else _serve_faults)
                )
        except BaseException:
            self.close()
            raise

    cdef int _open(self) except -1:
        """Make memory, mapping and userfaultfd."""
        cdef RegionState *region = &self.region
        cdef uint64_t bytes = region.pages << region.page_shift
        cdef uint64_t features = NEEDED | CLEAN_PAGES | POISON
        cdef void *base
        cdef int failed
        with above_standard():
            region.file = os.memfd_create("batchzip-paged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            bz_identify(region.file, &region.file_device, &region.file_inode)
            os.fchmod(region.file, 0o600)
            with suppress(OSError):  # not after setresuid(2), for instance, nor without /proc
                region.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            region.stop = eventfd(0, EFD_CLOEXEC)
            if region.stop < 0:
                raise OSError(c_errno, os.strerror(c_errno))
        try:
            os.ftruncate(region.file, bytes)
            fcntl.fcntl(region.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError as error:
            raise named(error, f"{bytes} bytes of paged memory") from None
        base = MAP_FAILED
        if bz_may_reserve():
            base = mmap(
                NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region.file, 0
            )
        failed = c_errno
        if base == MAP_FAILED:
            raise named(OSError(failed or errno.ENOMEM, ""), f"{bytes} bytes of addresses")
        region.base = <uint8_t *>base
        madvise(base, bytes, MADV_DONTFORK)
        madvise(base, bytes, MADV_NOHUGEPAGE)
        with above_standard():
            region.uffd = open_userfaultfd(&features, &self.way_number)
            region.watch = bz_uffd_watch(region.uffd, region.stop)
            if region.watch < 0:
                raise OSError(-region.watch, os.strerror(-region.watch))
        region.can_poison = features & POISON != 0
        region.tracks_writes = features & CLEAN_PAGES == CLEAN_PAGES and region.pagemap >= 0
        failed = bz_uffd_register(region.uffd, region.base, bytes, region.tracks_writes)
        if failed:
            raise OSError(-failed, f"{os.strerror(-failed)}: userfaultfd refuses the region")
        self.slot = bz_add_region(
            region.uffd, region.file, region.pagemap, region.stop, region.watch, region.file_device,
            region.file_inode,
        )
        return 0

    cdef int _start(self, void *(*run)(void *) noexcept nogil) except -1:
        cdef Worker worker = Worker(self)
        cdef int failed = bz_start_thread(&worker.thread, run, &worker.hand)
        if failed:
            raise named(OSError(failed, ""), "a thread of the core cannot be started")
        self.workers.append(worker)
        return 0

    cdef int refuse(self) except -1:
        if self.made_in != forks():
            raise ForkedProcess("this paged memory belongs to the process that forked this one")
        if self.ended:
            raise ClosedError("this paged memory is closed")
        return 0

    cdef Worker enter(self):
        """Begin a piece of work in the core. No Python code runs before `leave`, so that close() may wait."""
        cdef Worker worker
        self.refuse()
        worker = <Worker>self.spare.pop() if self.spare else Worker(self)
        if self.ended:  # while memory was asked for
            self.coders.give(worker.coder)
            self.refuse()
        region_lock(&self.region)
        self.region.users += 1
        region_unlock(&self.region)
        return worker

    cdef void leave(self, Worker worker) noexcept:
        region_lock(&self.region)
        self.region.users -= 1
        pthread_cond_broadcast(&self.region.changed)
        region_unlock(&self.region)
        self.spare.append(worker)

    # Arrays.

    def allocate(self, size_t nbytes):
        """Return an Extent of `nbytes` zeros. Raise MemoryError if no run of pages is unused."""
        cdef RegionState *region = &self.region
        cdef uint64_t count = (nbytes + region.page_size - 1) >> region.page_shift
        cdef uint64_t first = region.pages
        cdef Extent extent
        self.refuse()
        if not nbytes:
            raise BadArgument("an extent has at least a byte")
        extent = Extent.__new__(Extent)
        region_lock(region)
        if count <= region.pages:
            first = _find_unused(region, count)
        if first < region.pages:
            memset(region.states + first, EMPTY, count)
            region.used += count
            self.extents += 1
        region_unlock(region)
        if first == region.pages:
            raise MemoryError(
                f"no {count * region.page_size} bytes in one piece are free in paged memory of"
                f" {region.pages * region.page_size} bytes, of which"
                f" {region.used * region.page_size} are used"
            )
        extent.pager = self
        extent.first = first
        extent.count = count
        extent.nbytes = nbytes
        return extent

    cdef void free_run(self, uint64_t first, uint64_t count) noexcept:
        cdef RegionState *region = &self.region
        self.extents -= 1
        if self.made_in != forks() or self.ended:
            return
        # The GIL is kept: an extent may go in a finalizer. Whoever makes pages busy never waits for it.
        _free_pages(region, first, count)

    def find(self, uint64_t address, uint64_t nbytes) -> tuple:
        """Return the pages (first, count) that a range of bytes lies on.

        Raise BadArgument unless it lies in arrays of this memory.
        """
        cdef RegionState *region = &self.region
        cdef uint64_t offset = address - <uint64_t>region.base, first, end, page
        cdef bint is_ours = True
        self.refuse()
        if offset >= region.pages << region.page_shift or nbytes > (region.pages << region.page_shift) - offset:
            raise BadArgument("this is no array of this paged memory")
        first = offset >> region.page_shift
        end = (offset + nbytes + region.page_size - 1) >> region.page_shift
        region_lock(region)
        for page in range(first, end):
            is_ours = is_ours and kind_of(region, page) != UNUSED
        region_unlock(region)
        if not is_ours:
            raise BadArgument("this is no array of this paged memory")
        return first, end - first

    def offset_of(self, uint64_t page) -> int:
        """Return the address of a page."""
        return <uint64_t>address_of(&self.region, page)

    def evict(self, uint64_t first, uint64_t count) -> int:
        """Move pages out of memory, but for those that are pinned or touched. Return how many left."""
        cdef uint64_t piece, freed = 0
        cdef Worker worker
        self._check(first, count)
        while count:
            piece = min(count, <uint64_t>PIECE)
            worker = self.enter()
            with nogil:
                freed += reclaim_range(&worker.hand, first, piece)
            self.leave(worker)
            first += piece
            count -= piece
            PyErr_CheckSignals()
        return freed

    def prefetch(self, uint64_t first, uint64_t count) -> None:
        """Have pages restored soon. Ask for less than the budget: what is restored first leaves again otherwise."""
        cdef Job job
        self._check(first, count)
        self.refuse()
        job.first = first
        job.count = count
        job.stride = 1
        job.asked_for = True
        region_lock(&self.region)
        _post(&self.region, job)
        region_unlock(&self.region)

    def advise(self, uint64_t first, uint64_t count, int advice) -> None:
        """Say how pages are going to be touched: an Advice."""
        self._check(first, count)
        self.refuse()
        region_lock(&self.region)
        memset(self.region.advice + first, advice, count)
        region_unlock(&self.region)

    cdef int _check(self, uint64_t first, uint64_t count) except -1:
        if first > self.region.pages or count > self.region.pages - first:
            raise BadArgument(f"paged memory has pages 0 to {self.region.pages - 1}")
        return 0

    def pin(self, uint64_t first, uint64_t count) -> None:
        """Restore pages, and keep them in memory and mapped until `unpin`.

        Raise BadArgument if more pages than the budget were pinned, CorruptPage or PageError for a page that
        cannot be restored; nothing is pinned then.
        """
        cdef RegionState *region = &self.region
        cdef uint64_t page, more = 0, done = 0
        cdef uint16_t most = 0
        cdef Worker worker
        cdef int code
        self._check(first, count)
        self.refuse()
        region_lock(region)
        for page in range(first, first + count):
            more += region.pins[page] == 0
            most = max(most, region.pins[page])
        if region.pinned + more <= region.budget and most < 0xFFFF:
            for page in range(first, first + count):
                region.pins[page] += 1
            region.pinned += more
            done = 1
        region_unlock(region)
        if not done:
            raise BadArgument(
                f"{count} pages cannot be kept in memory beside {region.pinned} others: the budget is"
                f" {region.budget} pages"
            )
        page = first
        try:
            while page < first + count:
                worker = self.enter()
                with nogil:
                    code = _make_resident(&worker.hand, &page, min(page + PIECE, first + count))
                self.leave(worker)
                if code == EBADMSG:
                    raise CorruptPage(page)
                if code:
                    raise PageError(page, -code)
                PyErr_CheckSignals()
        except BaseException:
            self.unpin(first, count)
            raise

    def unpin(self, uint64_t first, uint64_t count) -> None:
        """Undo one `pin`. Do nothing once it is closed."""
        cdef RegionState *region = &self.region
        cdef uint64_t page
        if self.ended or self.made_in != forks():
            return
        region_lock(region)
        for page in range(first, first + count):
            if region.pins[page]:
                region.pins[page] -= 1
                region.pinned -= region.pins[page] == 0
        pthread_cond_broadcast(&region.low)
        region_unlock(region)

    # Figures.

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.ended

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self.region.page_size

    @property
    def pages(self) -> int:
        """Pages of the region."""
        return self.region.pages

    @property
    def way(self) -> str:
        """How the userfaultfd was had: one of userfaultfd.WAYS."""
        return WAYS[self.way_number]

    @property
    def tracks_writes(self) -> bool:
        """Whether pages that were not written to leave without being compressed again."""
        return self.region.tracks_writes

    @property
    def can_poison(self) -> bool:
        """Whether a page that is lost raises SIGBUS; it raises SIGSEGV otherwise."""
        return self.region.can_poison

    @property
    def budget(self) -> int:
        """Pages that are in memory at most. If it is lowered, pages are evicted at once."""
        return self.region.budget

    @budget.setter
    def budget(self, uint64_t pages) -> None:
        cdef RegionState *region = &self.region
        cdef Worker worker
        cdef int number, progress = FREED
        self.refuse()
        region_lock(region)
        region.budget = pages
        pthread_cond_broadcast(&region.low)
        region_unlock(region)
        while progress != NOTHING and region.resident > region.budget:
            worker = self.enter()
            with nogil:
                for number in range(STEPS):
                    if region.resident > region.budget:
                        progress = reclaim_step(&worker.hand, MOST_RUN, True)
            self.leave(worker)
            PyErr_CheckSignals()

    def figures(self) -> dict:
        """Return FIGURES, and how many pages there are of each kind, as they are now."""
        cdef RegionState *region = &self.region
        cdef uint64_t kinds[256]
        cdef uint64_t page = 0, end
        cdef const uint64_t *counters = <const uint64_t *>&region.figures
        self.refuse()
        memset(kinds, 0, sizeof(kinds))
        with nogil:
            while page < region.pages:
                end = min(page + PIECE * 16, region.pages)
                region_lock(region)
                for page in range(page, end):
                    kinds[kind_of(region, page)] += 1
                region_unlock(region)
                page = end
        region_lock(region)
        found = {name: counters[number] for number, name in enumerate(FIGURES)}
        found |= {
            "readahead_hits": region.strides.hits,
            "pages": region.pages,
            "budget_pages": region.budget,
            "used_pages": region.used,
            "resident_pages": region.resident,
            "candidate_pages": region.candidates,
            "pinned_pages": region.pinned,
            "stored_pages": kinds[STORED],
            "empty_pages": kinds[EMPTY],
            "unrestorable_pages": kinds[LOST],
            "arrays": self.extents,
        }
        region_unlock(region)
        return found

    def latencies(self) -> list:
        """Return how many faults took 2ⁿ ns and more, but less than twice as long, from being read to being served."""
        cdef int number
        region_lock(&self.region)
        found = [self.region.latencies[number] for number in range(BUCKETS)]
        region_unlock(&self.region)
        return found

    # Events.

    def await_event(self, double timeout_s) -> int:
        """Wait for an Event, without the GIL. Return the bits of those that there were; 0 after `timeout_s`."""
        cdef int64_t timeout_ns = <int64_t>(timeout_s * 1e9)
        with nogil:
            bz_futex_wait(&self.region.events, 0, timeout_ns)
        return bz_exchange32(&self.region.events, 0)

    def room_was_made(self) -> None:
        """Say that the pool may take more now."""
        region_lock(&self.region)
        self.region.full_until = 0
        pthread_cond_broadcast(&self.region.low)
        region_unlock(&self.region)

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold. Nobody may touch the region meanwhile."""
        cdef RegionState *region = &self.region
        cdef uint64_t page, resident = 0, candidates = 0, pinned = 0, used = 0
        cdef uint8_t kind
        cdef Worker worker
        self.refuse()
        region_lock(region)
        while region.job_count or _is_anything_busy(region):
            region_wait(region, 1_000_000)
        fault = None
        for page in range(region.pages):
            kind = kind_of(region, page)
            resident += kind & IN_MEMORY != 0
            candidates += kind == CANDIDATE
            pinned += region.pins[page] != 0
            used += kind != UNUSED
            if kind == STORED and not region.flags[page] & ENTRY:
                fault = f"page {page} is stored, and has no entry"
            if (kind == EMPTY or kind == UNUSED) and region.flags[page] & ENTRY:
                fault = f"page {page} is empty, and has an entry"
            if _is_mapped(region, page) != (kind == RESIDENT):
                fault = f"page {page} is of kind {kind}, but mapped: {not kind == RESIDENT}"
            if fault is not None:
                break
        else:
            counts = (resident, candidates, pinned, used)
            noted = (region.resident, region.candidates, region.pinned, region.used)
            if counts != noted:
                fault = f"{noted} pages in memory, candidates, pinned and used are noted, {counts} there"
        region_unlock(region)
        if fault is None:
            for page in range(region.pages):
                if region.flags[page] & ENTRY and not self.ledger.kind(page):
                    fault = f"the ledger has no entry of page {page}"
        assert fault is None, fault

    # The end.

    def close(self) -> int:
        """End the threads and let go of the memory. Return how many arrays there still were.

        Whoever touches one of these from now on, or does so meanwhile, gets SIGBUS. Calls in other threads end
        first. In a forked child, do nothing.
        """
        cdef RegionState *region = &self.region
        cdef uint64_t one = 1
        cdef Worker worker
        if self.ended:
            return 0
        self.ended = True
        if self.made_in != forks():
            region.base = NULL
            return 0
        with nogil:
            region_lock(region)
            region.closing = True
            pthread_cond_broadcast(&region.changed)
            pthread_cond_broadcast(&region.low)
            pthread_cond_broadcast(&region.work)
            while region.users:
                region_wait(region, -1)
            region_unlock(region)
        if region.stop >= 0:
            os.eventfd_write(region.stop, 1)
        for worker in self.workers:
            with nogil:
                bz_join_thread(worker.thread)
        for worker in self.workers + self.spare:
            self.coders.give(worker.coder)
        self.workers = []
        self.spare = []
        if region.base is not NULL:
            _replace_mapping(region)
        self._close_descriptors()
        if self.held:
            self.ledger.objects.let_go(region.number)
        region_tell(region, CLOSING)
        return self.extents

    cdef int _close_descriptors(self) except -1:
        bz_drop_region(self.slot)
        bz_close(
            self.region.file, self.region.uffd, self.region.pagemap, self.region.stop, self.region.watch,
            self.region.file_device, self.region.file_inode,
        )
        return 0

    def __dealloc__(self):
        cdef RegionState *region = &self.region
        if not self.opened:
            return
        self.close()
        if self.made_in == forks():
            if region.base is not NULL:
                munmap(region.base, region.pages << region.page_shift)
            pthread_cond_destroy(&region.changed)
            pthread_cond_destroy(&region.work)
            pthread_cond_destroy(&region.low)
            pthread_mutex_destroy(&region.mutex)
        free(region.pins)


cdef class Extent:
    """Pages of a region that one array lies on; free again when nobody has a reference."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        view.buf = self.pager.region.base + (self.first << self.pager.region.page_shift)
        view.len = self.nbytes
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = <char *>"B"
        self.shape[0] = self.nbytes
        self.steps[0] = 1
        view.shape = self.shape if flags & PyBUF_ND else NULL
        view.strides = self.steps if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        view.obj = self

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return <uint64_t>address_of(&self.pager.region, self.first)

    def __dealloc__(self):
        if self.pager is not None:
            self.pager.free_run(self.first, self.count)


# Steps of these calls.

cdef uint64_t _find_unused(RegionState *region, uint64_t count) noexcept nogil:
    """Return the first of `count` unused pages in a row; `pages`: there are none."""
    cdef uint64_t page = region.unused_hint, run = 0
    while page < region.pages and region.states[page] != UNUSED:
        page += 1
    region.unused_hint = page
    while page < region.pages:
        run = run + 1 if region.states[page] == UNUSED else 0
        page += 1
        if run == count:
            return page - count
    return region.pages


cdef void _free_pages(RegionState *region, uint64_t first, uint64_t count) noexcept nogil:
    cdef uint64_t page, in_memory = 0, lost = 0
    cdef bint has_entries = False, failed
    region_lock(region)
    for page in range(first, first + count):
        while is_busy(region, page):
            region_wait(region, PAUSE_NS)
        in_memory += region.states[page] & IN_MEMORY != 0
        region.candidates -= region.states[page] == CANDIDATE
        lost += region.states[page] == LOST
        has_entries = has_entries or region.flags[page] & ENTRY
        region.states[page] |= BUSY
    region_unlock(region)
    if has_entries:
        region_forget(region, first, count)
    if lost:
        mprotect(
            address_of(region, first), count << region.page_shift, PROT_READ | PROT_WRITE
        )
    region_unmap(region, first, count)
    failed = in_memory and region_punch(region, first, count)
    region_lock(region)
    # What cannot be punched is not used again: it is not zeros.
    memset(region.states + first, LOST if failed else UNUSED, count)
    memset(region.flags + first, 0, count)
    memset(region.advice + first, NORMAL, count)
    for page in range(first, first + count):
        region.pinned -= region.pins[page] != 0
        region.pins[page] = 0
    region.resident -= in_memory
    region.used -= 0 if failed else count
    region.unused_hint = min(region.unused_hint, first)
    pthread_cond_broadcast(&region.changed)
    region_unlock(region)


cdef int _make_resident(Hand *hand, uint64_t *next, uint64_t end) noexcept nogil:
    """Bring pinned pages [next, end) into memory and map them. Return 0, or the errno of page `next`."""
    cdef RegionState *region = hand.region
    cdef uint64_t claimed[MOST_RUN]
    cdef uint64_t page
    cdef uint32_t count
    cdef uint8_t kind
    cdef bint clean
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
            region_map(region, page, 1, clean)
            region_lock(region)
            region.states[page] = RESIDENT
            pthread_cond_broadcast(&region.changed)
        elif kind == LOST:  # perhaps it can be restored by now
            region.states[page] = kind | BUSY
            region_unlock(region)
            mprotect(address_of(region, page), region.page_size, PROT_READ | PROT_WRITE)
            region_unmap(region, page, 1)
            region_lock(region)
            region.states[page] = STORED
            pthread_cond_broadcast(&region.changed)
        else:
            region.states[page] = kind | BUSY
            _take_frame(hand)
            count = _claim(
                region, page, 1, <uint32_t>min(end - page, <uint64_t>region.run), kind, claimed
            )
            region_unlock(region)
            code = _fill_run(hand, page, count, kind, False, UINT64_MAX)
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


cdef bint _is_anything_busy(const RegionState *region) noexcept nogil:
    cdef uint64_t page
    for page in range(region.pages):
        if is_busy(region, page):
            return True
    return False


cdef bint _is_mapped(const RegionState *region, uint64_t page) noexcept nogil:
    cdef uint64_t word = 0
    cdef uint64_t at = <uint64_t>address_of(region, page) // region.machine_page * 8
    pread(region.pagemap, &word, 8, at)
    return word >> 63


cdef void _replace_mapping(RegionState *region) noexcept nogil:
    """Have every touch of the region raise SIGBUS: an empty file has no pages. Without one, SIGSEGV."""
    cdef uint64_t bytes = region.pages << region.page_shift
    cdef int fd = memfd_create("batchzip-closed", MFD_CLOEXEC)
    cdef void *base = MAP_FAILED
    if fd >= 0:
        base = mmap(
            region.base, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0
        )
        close(fd)
    if base == MAP_FAILED:
        base = mmap(
            region.base, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
            -1, 0,
        )
    if base == MAP_FAILED:
        region.base = NULL
    else:
        madvise(base, bytes, MADV_DONTFORK)
