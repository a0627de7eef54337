"""Pager: the Python interface of a PagedMemory's region, its arrays and its threads.

    allocate ─▶ Extent, the buffer of an array; its destructor frees the pages
    evict, prefetch, pin, advise, budget ─▶ pieces of work without the GIL, signals between them
    close ─▶ threads end ─▶ an empty file replaces the region ─▶ waiting threads wake and get SIGBUS

No thread of the core ever waits for the GIL, because a faulting thread may hold it. A thread that
touches paged memory must not hold the region's or the pool's mutex. The core therefore copies from
and to user buffers without these mutexes.

close() may be called anywhere, even in a signal handler that interrupts another call. `users`
counts only calls that run in the core at that moment, and these run no Python code.

The addresses of a closed region stay reserved as long as an array uses some of them. A forked child
does not inherit the mapping (MADV_DONTFORK) and closes the descriptors, so that the memory is freed
with its owner.

    field                        writer
    workers, spare, extents      the thread that holds the GIL, within one step
    users, closing               the thread that holds the region's mutex
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADMSG, errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

import errno
import fcntl
import os
from contextlib import suppress

from batchzip.core.faults cimport (
    help_faults, make_resident, post_job, reclaim_ahead, serve_faults,
)
from batchzip.core.latency cimport Histogram, histogram_of
from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_may_reserve, machine_page
from batchzip.core.reclaim cimport FREED, MOVED, reclaim_range, reclaim_step
from batchzip.core.region cimport (
    BUSY, CANDIDATE, CLOSING, EMPTY, ENTRY, IN_MEMORY, KIND, LOST, MOST_RUN, NORMAL, RESIDENT,
    RUN_BYTES, STORED, UNUSED, WANTED, RegionFigures, Job, RegionState, address_of, is_busy,
    kept_frames, kind_of, pthread_cond_broadcast, pthread_cond_t, pthread_mutex_t, region_forget,
    region_lock, region_punch, region_tell, region_unlock, region_unmap, region_wait, region_wake,
)
from batchzip.core.ring cimport forks
from batchzip.core.userfaultfd cimport (
    POISON, THREAD_ID, bz_uffd_register, bz_uffd_watch, open_userfaultfd,
)
from batchzip.core.zspages cimport bz_log2

from batchzip.core.userfaultfd import CLEAN_PAGES, NEEDED, WAYS
from batchzip.system.descriptors import above_standard
from batchzip.errors import BadArgument, ClosedError, CorruptPage, ForkedProcess, PageError
from batchzip.system.limits import named, needing

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
    /* Descriptors of the regions; a forked child closes them. The GIL protects the table. */
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
    /* Close nothing if the program has closed the descriptors: their numbers may be reused. */
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
    /* Return an empty anonymous file, or -1. glibc has memfd_create() only since 2.27. */
    static int bz_empty_file(void) {
        return syscall(SYS_memfd_create, "batchzip-closed", 1 /* MFD_CLOEXEC */);
    }
    static void bz_watch_regions(void) { pthread_atfork(NULL, NULL, bz_close_in_child); }
    """
    int bz_make_conditions(pthread_cond_t *, pthread_cond_t *, pthread_cond_t *)
    void bz_identify(int, uint64_t *, uint64_t *)
    int bz_add_region(int, int, int, int, int, uint64_t, uint64_t)
    void bz_drop_region(int)
    void bz_close(int, int, int, int, int, uint64_t, uint64_t) nogil
    long write(int, const void *, size_t) nogil
    int mprotect(void *, size_t, int) nogil
    long pread(int, void *, size_t, long) nogil
    int bz_empty_file() nogil
    int close(int) nogil
    void bz_watch_regions()
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_cond_destroy(pthread_cond_t *)
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long) nogil
    int munmap(void *, size_t) nogil
    int munlock(void *, size_t) nogil
    int madvise(void *, size_t, int) nogil
    enum: PROT_READ, PROT_WRITE, PROT_NONE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED
    enum: MAP_NORESERVE, MADV_DONTFORK, MADV_NOHUGEPAGE
    int bz_start_thread(pthread_t *, void *(*)(void *) noexcept nogil, void *)
    void bz_join_thread(pthread_t) nogil
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
"""The names of the counters, which never decrease, in the order of region.pxd's RegionFigures."""

cdef enum:
    PIECE = 1024  # pages between two checks for signals
    STEPS = 16  # steps of reclaim between two checks for signals

bz_watch_regions()


# The Python interface.

cdef class Worker:
    """The buffers and coder of one thread of a pager."""

    def __cinit__(self, Pager pager not None):
        cdef RegionState *region = &pager.region
        self.coders = pager.coders
        self.coder = self.coders.lend()
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
    """A region of `pages` pages, at most `budget` of them in memory and the others in `entries`.

    `number`         number of the codec, which must run without the interpreter.
    `fault_threads`  number of threads that serve faults.
    `backing_fd`     descriptor of the store's backing file, or −1.

    Raises LimitReached if the system grants too little memory or address space. Raises
    PermissionError or OSError if no userfaultfd is available; userfaultfd.probe() says why.
    """

    def __cinit__(
        self, Entries entries not None, int number, *, uint64_t pages, uint64_t budget,
        uint32_t fault_threads=2, int backing_fd=-1,
    ):
        cdef RegionState *region = &self.region
        self.made_in = forks()
        self.slot = -1
        region.uffd = region.file = region.pagemap = region.stop = region.watch = -1
        self.entries = entries
        self.codec = entries.objects.codec(number)
        coders = entries.objects.coders_of(number)
        if coders is None or not coders.native:
            raise BadArgument(
                f"paged memory needs a codec that runs without the interpreter, not {self.codec}"
            )
        self.coders = coders
        region.entries = &entries.state
        region.number = number
        region.backing = backing_fd
        region.page_size = entries.objects.page_size
        region.page_shift = bz_log2(region.page_size)
        region.machine_page = <uint32_t>machine_page()
        region.run = max(1, min(<uint32_t>MOST_RUN, <uint32_t>(RUN_BYTES // region.page_size)))
        if region.page_size % region.machine_page or region.page_size > RUN_BYTES:
            raise BadArgument(
                f"a page of paged memory has {region.machine_page} to {<int>RUN_BYTES} bytes,"
                f" not {region.page_size}"
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
        region.pins = <uint16_t *>region.states  # first, so that it is aligned
        region.states = <uint8_t *>(region.pins + pages)
        region.flags = region.states + pages
        region.advice = region.flags + pages
        if not entries.objects.hold(number, self.codec):
            raise ClosedError("the codec's number was given to another codec")
        self.held = True
        try:
            self._open()
            for count in range(min(fault_threads, <uint32_t>MOST_FAULT_THREADS) + 2):
                self._start(
                    reclaim_ahead if count == 0 else (help_faults if count == 1 else serve_faults)
                )
        except BaseException:
            self.close()
            raise

    cdef int _open(self) except -1:
        """Create the memory, the mapping and the userfaultfd."""
        cdef RegionState *region = &self.region
        cdef uint64_t bytes = region.pages << region.page_shift
        cdef uint64_t features = NEEDED | CLEAN_PAGES | POISON | THREAD_ID
        cdef void *base
        cdef int failed
        with above_standard():
            with needing("memfd_create"):
                region.file = os.memfd_create(
                    "batchzip-paged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
                )
            bz_identify(region.file, &region.file_device, &region.file_inode)
            os.fchmod(region.file, 0o600)
            with suppress(OSError):  # it fails after setresuid(2) and without /proc, for example
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
            # PROT_NONE at first: in a program that locks all its memory (MCL_FUTURE), the kernel
            # would otherwise populate the mapping.
            base = mmap(NULL, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, region.file, 0)
        failed = c_errno
        if base == MAP_FAILED:
            raise named(OSError(failed or errno.ENOMEM, ""), f"{bytes} bytes of addresses")
        region.base = <uint8_t *>base
        munlock(base, bytes)
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
        if mprotect(base, bytes, PROT_READ | PROT_WRITE):
            raise OSError(c_errno, os.strerror(c_errno))
        self.slot = bz_add_region(
            region.uffd, region.file, region.pagemap, region.stop, region.watch, region.file_device,
            region.file_inode,
        )
        return 0

    cdef int _start(self, void *(*run)(void *) noexcept nogil) except -1:
        cdef Worker worker = Worker(self)
        cdef int failed
        self.workers.append(worker)
        failed = bz_start_thread(&self.threads[self.thread_count], run, &worker.hand)
        if failed:
            raise named(OSError(failed, ""), "a thread of the core cannot be started")
        self.thread_count += 1
        return 0

    cdef int refuse(self) except -1:
        if self.made_in != forks():
            raise ForkedProcess("this paged memory belongs to the process that forked this one")
        if self.ended:
            raise ClosedError("this paged memory is closed")
        return 0

    cdef Worker enter(self):
        """Begin a piece of work in the core.

        No Python code runs before `leave`, so that close() may wait for it.
        """
        cdef Worker worker
        self.refuse()
        worker = <Worker>self.spare.pop() if self.spare else Worker(self)
        if self.ended:  # closed during the allocation
            self.coders.take_back(worker.coder)
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
        """Return an Extent of `nbytes` zeros.

        Raise MemoryError if no run of unused pages is long enough.
        """
        cdef RegionState *region = &self.region
        cdef uint64_t count = (nbytes + region.page_size - 1) >> region.page_shift
        cdef uint64_t first = region.pages
        cdef Extent extent
        self.refuse()
        if not nbytes:
            raise BadArgument("an extent has at least one byte")
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
        if self.made_in != forks():
            return
        if self.ended:
            self._unmap_unused()
            return
        # Keep the GIL: a finalizer may drop an extent. Threads that make pages busy never wait for
        # the GIL.
        _free_pages(region, first, count)

    def find(self, uint64_t address, uint64_t nbytes) -> tuple:
        """Return the pages that contain a range of bytes, as (first, count).

        Raise BadArgument unless arrays of this memory contain the whole range.
        """
        cdef RegionState *region = &self.region
        cdef uint64_t offset = address - <uint64_t>region.base, size, first, end, page
        cdef bint is_ours = True
        self.refuse()
        size = region.pages << region.page_shift
        if offset >= size or nbytes > size - offset:
            raise BadArgument("the array does not lie in this paged memory")
        first = offset >> region.page_shift
        end = (offset + nbytes + region.page_size - 1) >> region.page_shift
        region_lock(region)
        for page in range(first, end):
            is_ours = is_ours and kind_of(region, page) != UNUSED
        region_unlock(region)
        if not is_ours:
            raise BadArgument("the array does not lie in this paged memory")
        return first, end - first

    @property
    def address(self) -> int:
        """Address of the region's first byte."""
        return <uint64_t>self.region.base

    def evict(self, uint64_t first, uint64_t count) -> int:
        """Evict pages, except those that are pinned or touched meanwhile.

        Return the number of pages evicted.
        """
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
        """Request that pages be restored soon.

        Request fewer pages than the budget; otherwise the first ones are evicted again.
        """
        cdef Job job
        self._check(first, count)
        self.refuse()
        job.first = first
        job.count = count
        job.stride = 1
        job.asked_for = True
        job.until = 0
        region_lock(&self.region)
        post_job(&self.region, job)
        region_unlock(&self.region)

    def advise(self, uint64_t first, uint64_t count, int advice) -> None:
        """Set the expected access pattern of pages, an AccessAdvice."""
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

        Raise BadArgument if the budget has no space for these pinned pages. Raise CorruptPage or
        PageError if a page cannot be restored. Nothing is pinned on failure.
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
        if region.pinned + more + kept_frames(region.budget) <= region.budget and most < 0xFFFF:
            for page in range(first, first + count):
                region.pins[page] += 1
            region.pinned += more
            done = 1
        region_unlock(region)
        if not done:
            raise BadArgument(
                f"{count} pages cannot be pinned besides {region.pinned} others: the budget is"
                f" {region.budget} pages, and {kept_frames(region.budget)} of them stay free for"
                f" other pages"
            )
        page = first
        try:
            while page < first + count:
                worker = self.enter()
                with nogil:
                    code = make_resident(&worker.hand, &page, min(page + PIECE, first + count))
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
        """Undo one `pin`. Do nothing if the pager is closed."""
        cdef RegionState *region = &self.region
        cdef uint64_t page
        if self.ended or self.made_in != forks():
            return
        self._check(first, count)
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
        """Size of a page in bytes."""
        return self.region.page_size

    @property
    def pages(self) -> int:
        """Number of pages in the region."""
        return self.region.pages

    @property
    def way(self) -> str:
        """How the userfaultfd was opened: one of userfaultfd.WAYS."""
        return WAYS[self.way_number]

    @property
    def tracks_writes(self) -> bool:
        """Whether a page that was only read is evicted without being compressed again."""
        return self.region.tracks_writes

    @property
    def can_poison(self) -> bool:
        """Whether touching a lost page raises SIGBUS; it raises SIGSEGV otherwise."""
        return self.region.can_poison

    @property
    def budget(self) -> int:
        """Maximum number of pages in memory. Lowering it evicts pages at once."""
        return self.region.budget

    @budget.setter
    def budget(self, uint64_t pages) -> None:
        cdef RegionState *region = &self.region
        cdef Worker worker
        cdef int number, progress = FREED
        cdef bint fits
        self.refuse()
        region_lock(region)
        fits = region.pinned + kept_frames(pages) <= pages
        if fits:
            region.budget = pages
        pthread_cond_broadcast(&region.low)
        region_unlock(region)
        if not fits:
            raise BadArgument(
                f"a budget of {pages} pages has no room for the {region.pinned} pages that are"
                f" pinned and {kept_frames(pages)} more, which stay free for other pages"
            )
        while progress >= MOVED and _is_beyond(region):
            worker = self.enter()
            with nogil:
                for number in range(STEPS):
                    if _is_beyond(region):
                        progress = reclaim_step(&worker.hand, MOST_RUN, True)
            self.leave(worker)
            PyErr_CheckSignals()

    def figures(self) -> dict:
        """Return the counters in FIGURES and the current number of pages of each kind."""
        cdef RegionState *region = &self.region
        cdef uint64_t kinds[256]
        cdef uint64_t page = 0, end
        cdef RegionFigures counted
        cdef uint64_t hits, budget, used, resident, candidates, pinned
        cdef const uint64_t *counters = <const uint64_t *>&counted
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
        # Create no object under the mutex: it may trigger a garbage collection that frees extents.
        region_lock(region)
        counted, hits = region.figures, region.strides.hits
        budget, used = region.budget, region.used
        resident, candidates, pinned = region.resident, region.candidates, region.pinned
        region_unlock(region)
        return {
            **{name: counters[number] for number, name in enumerate(FIGURES)},
            "readahead_hits": hits,
            "pages": region.pages,
            "budget_pages": budget,
            "used_pages": used,
            "resident_pages": resident,
            "candidate_pages": candidates,
            "pinned_pages": pinned,
            "stored_pages": kinds[STORED],
            "empty_pages": kinds[EMPTY],
            "unrestorable_pages": kinds[LOST],
            "arrays": self.extents,
        }

    def latencies(self) -> tuple:
        """Return a histogram of fault latencies, and the sum of the latencies in nanoseconds.

        A latency is the time from reading a fault to having served it.
        """
        cdef Histogram counted
        region_lock(&self.region)
        counted = self.region.latencies
        region_unlock(&self.region)
        return histogram_of(&counted)

    # Events.

    def await_event(self, double timeout_s) -> int:
        """Wait for an Event, without the GIL.

        Return the bits of the events that occurred, or 0 after `timeout_s` seconds.
        """
        cdef int64_t timeout_ns = <int64_t>(timeout_s * 1e9)
        with nogil:
            bz_futex_wait(&self.region.events, 0, timeout_ns)
        return bz_exchange32(&self.region.events, 0)

    def room_was_made(self) -> None:
        """Tell the pager that the pool may accept objects again."""
        region_lock(&self.region)
        self.region.full_until = 0
        pthread_cond_broadcast(&self.region.low)
        region_unlock(&self.region)

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant does not hold.

        No thread may touch the region during the call.
        """
        cdef RegionState *region = &self.region
        cdef uint64_t page, resident = 0, candidates = 0, pinned = 0, used = 0
        cdef uint64_t noted[4]
        cdef uint8_t kind = 0
        cdef bint has_entry = False, mapped = False
        self.refuse()
        # Create no object under the mutex, as in `figures`.
        region_lock(region)
        while region.job_count or _is_anything_busy(region):
            region_wait(region, 1_000_000)
        for page in range(region.pages):
            kind = kind_of(region, page)
            resident += kind & IN_MEMORY != 0
            candidates += kind == CANDIDATE
            pinned += region.pins[page] != 0
            used += kind != UNUSED
            has_entry = region.flags[page] & ENTRY != 0
            mapped = kind == RESIDENT if region.pagemap < 0 else _is_mapped(region, page)
            if mapped != (kind == RESIDENT):
                break
            if (kind == STORED and not has_entry) or (kind in (EMPTY, UNUSED) and has_entry):
                break
        else:
            kind = KIND
        noted[0], noted[1] = region.resident, region.candidates
        noted[2], noted[3] = region.pinned, region.used
        region_unlock(region)
        fault = None
        if kind != KIND:
            fault = (
                f"page {page} is of kind {kind}, but mapped: {mapped}, with an entry: {has_entry}"
            )
        elif (resident, candidates, pinned, used) != (noted[0], noted[1], noted[2], noted[3]):
            fault = (
                f"the gauges of pages in memory, candidates, pinned and used are {list(noted)},"
                f" but there are {[resident, candidates, pinned, used]}"
            )
        if fault is None:
            for page in range(region.pages):
                if region.flags[page] & ENTRY and not self.entries.kind(page):
                    fault = f"the entries have no entry for page {page}"
        assert fault is None, fault

    # The end.

    def close(self) -> int:
        """End the threads and release the memory. Return the number of arrays that still exist.

        A thread that touches such an array, now or later, gets SIGBUS. The call waits until calls
        in other threads have ended. In a forked child, do nothing.
        """
        cdef RegionState *region = &self.region
        cdef Worker worker
        cdef uint64_t one = 1
        cdef uint32_t number
        if self.ended:
            return 0
        self.ended = True
        if self.made_in != forks():
            region.base = NULL
            return 0
        bz_drop_region(self.slot)
        # Once the fault threads have ended, a thread that holds the GIL may wait for a page that no
        # thread will restore.
        with nogil:
            region_lock(region)
            region.closing = True
            pthread_cond_broadcast(&region.changed)
            pthread_cond_broadcast(&region.low)
            pthread_cond_broadcast(&region.work)
            while region.users:
                region_wait(region, -1)
            region_unlock(region)
            write(region.stop, &one, sizeof(one))
            for number in range(self.thread_count):
                bz_join_thread(self.threads[number])
            if region.base is not NULL:
                _replace_mapping(region)
            bz_close(
                region.file, region.uffd, region.pagemap, region.stop, region.watch,
                region.file_device, region.file_inode,
            )
        for worker in self.workers + self.spare:
            self.coders.take_back(worker.coder)
        self.workers = []
        self.spare = []
        if self.held:
            self.entries.objects.let_go(region.number)
        region_tell(region, CLOSING)
        self._unmap_unused()
        return self.extents

    cdef void _unmap_unused(self) noexcept:
        """Unmap the addresses of a closed region that no array uses any more."""
        cdef RegionState *region = &self.region
        if not self.extents and not region.users and region.base is not NULL:
            munmap(region.base, region.pages << region.page_shift)
            region.base = NULL

    def __dealloc__(self):
        cdef RegionState *region = &self.region
        if not self.opened:
            return
        self.close()
        if self.made_in == forks():
            self._unmap_unused()
            pthread_cond_destroy(&region.changed)
            pthread_cond_destroy(&region.work)
            pthread_cond_destroy(&region.low)
            pthread_mutex_destroy(&region.mutex)
        free(region.pins)


cdef class Extent:
    """The pages of one array. They are free again when the last reference is dropped."""

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
    """Return the first of `count` consecutive unused pages, or `pages` if there are none."""
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
    cdef bint has_entries = False, woken = False, failed
    region_lock(region)
    for page in range(first, first + count):
        while is_busy(region, page):
            region_wait(region, -1)
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
    for page in range(first, first + count):
        woken = woken or region.states[page] & WANTED
    # Pages whose hole cannot be punched are not used again: they do not read as zero.
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
    if woken:  # a thread that touches freed memory gets SIGBUS instead of waiting
        region_wake(region, first, count)


cdef bint _is_beyond(RegionState *region) noexcept nogil:
    """Return whether more pages are in memory than the budget allows."""
    cdef bint found
    region_lock(region)
    found = region.resident > region.budget
    region_unlock(region)
    return found


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
    """Make every touch of the region raise SIGBUS, by mapping an empty file.

    If there is no such file, a touch raises SIGSEGV.
    """
    cdef uint64_t bytes = region.pages << region.page_shift
    cdef int fd = bz_empty_file()
    cdef void *base = MAP_FAILED
    if fd >= 0:
        base = mmap(
            region.base, bytes, PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0,
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
