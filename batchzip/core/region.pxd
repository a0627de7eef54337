from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchzip.core.coder cimport CoderState
from batchzip.core.latency cimport Histogram
from batchzip.core.entries cimport EntriesState
from batchzip.core.strides cimport StridesState
from batchzip.core.table cimport Entry

cdef extern from * nogil:
    """
    #include "native.h"
    /* The condition uses the monotonic clock: see bz_make_conditions in pager.pyx. */
    static inline void bz_wait_for(
        pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t timeout_ns) {
        struct timespec until;
        if (timeout_ns < 0) {
            pthread_cond_wait(condition, mutex);
            return;
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        int64_t ns = until.tv_nsec + timeout_ns;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        pthread_cond_timedwait(condition, mutex, &until);
    }
    """
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_broadcast(pthread_cond_t *)
    void bz_wait_for(pthread_cond_t *, pthread_mutex_t *, int64_t)

cdef enum:
    RUN_BYTES = 256 << 10  # maximum bytes restored or evicted together
    MOST_RUN = 64  # maximum pages restored or evicted together
    JOBS = 64  # maximum number of jobs that wait for the helper
    PAUSE_NS = 2_000_000  # delay before an operation that failed for now is tried again

cdef enum:  # kinds of pages; see region.pyx
    UNUSED
    EMPTY
    STORED
    LOST
    RESIDENT = 0x80
    CANDIDATE = 0x81

cdef enum:
    IN_MEMORY = 0x80  # set in the kinds of pages that are in memory
    BUSY = 0x40  # a thread works on the page, and only that thread changes it
    WANTED = 0x20  # the busy page was touched: the thread that works on it wakes the waiters
    KIND = 0x83

cdef enum:  # flags of a page
    ENTRY = 1  # the page has an entry
    CLEAN = 2  # a CANDIDATE that was not written to since its entry was made

cpdef enum AccessAdvice:  # how a page is going to be used
    NORMAL
    SEQUENTIAL
    RANDOM

cpdef enum Event:  # events that the core reports to Python
    NO_ROOM = 1  # the pool refused an object
    OVER_BUDGET = 2
    PAGE_LOST = 4
    CLOSING = 8

cdef struct Job:  # pages that may be restored before they are touched
    uint64_t first
    uint64_t count
    int64_t stride
    bint asked_for  # requested by prefetch, not predicted
    int64_t until  # when it is given up, or 0 while it makes progress

cdef struct RegionFigures:
    uint64_t faults_missing
    uint64_t faults_minor
    uint64_t restored_pages
    uint64_t readahead_pages
    uint64_t prefetched_pages
    uint64_t zeroed_pages
    uint64_t file_reads
    uint64_t evicted_pages
    uint64_t dropped_clean_pages
    uint64_t dropped_empty_pages
    uint64_t second_chances
    uint64_t direct_reclaims
    uint64_t over_budget
    uint64_t lost_pages

cdef struct RegionState:
    pthread_mutex_t mutex
    pthread_cond_t changed  # frames became free, or a page is no longer busy
    pthread_cond_t work  # wakes the helper
    pthread_cond_t low  # wakes the reclaimer: free frames are few
    int uffd
    int file  # memfd of the pages
    int pagemap
    int stop  # eventfd that ends the fault threads
    int watch  # epoll of uffd and stop
    int backing  # descriptor of the store's backing file, or −1
    uint64_t file_device
    uint64_t file_inode
    uint8_t *base
    size_t page_size
    uint32_t page_shift
    uint32_t machine_page
    uint64_t pages
    uint32_t run  # maximum pages in a run
    uint8_t *states  # kinds, with BUSY and WANTED
    uint8_t *flags
    uint8_t *advice  # AccessAdvice
    uint16_t *pins
    EntriesState *entries
    uint8_t number  # of the codec
    bint tracks_writes
    bint can_poison
    uint64_t budget
    uint64_t resident  # pages that have memory or are about to get it
    uint64_t candidates
    uint64_t pinned
    uint64_t used  # pages that belong to arrays
    uint64_t front  # hands of the clock
    uint64_t back
    uint64_t unused_hint  # no page below it is UNUSED
    uint32_t users  # calls under way
    bint closing
    int64_t full_until  # the pool is full and is not tried again before this time, in ns
    uint32_t events
    Job jobs[JOBS]
    uint32_t job_first
    uint32_t job_count
    StridesState strides
    RegionFigures figures
    Histogram latencies  # of faults

cdef struct Hand:  # the buffers and coder of one thread
    RegionState *region
    CoderState *coder
    uint8_t *pages  # a run of them
    uint8_t *outputs
    size_t output_room
    uint64_t file_reads
    uint64_t picked[MOST_RUN]  # pages that are unmapped together, in ascending order
    uint8_t codes[MOST_RUN]  # by page of a run
    Entry entries[MOST_RUN]
    const uint8_t *data[MOST_RUN]
    uint32_t lengths[MOST_RUN]
    uint64_t values[MOST_RUN]

cdef void region_lock(RegionState *region) noexcept nogil
cdef void region_unlock(RegionState *region) noexcept nogil
cdef inline void region_wait(RegionState *region, int64_t timeout_ns) noexcept nogil:
    """Wait until frames become free or a page is no longer busy. The caller holds the mutex."""
    bz_wait_for(&region.changed, &region.mutex, timeout_ns)
cdef void region_tell(RegionState *region, uint32_t event) noexcept nogil
cdef int region_unmap(RegionState *region, uint64_t first, uint64_t count) noexcept nogil
cdef int region_punch(RegionState *region, uint64_t first, uint64_t count) noexcept nogil
cdef void region_map_back(RegionState *region, uint64_t page, bint protect) noexcept nogil
cdef void region_wake(RegionState *region, uint64_t first, uint64_t count) noexcept nogil
cdef uint64_t region_clean(
    RegionState *region, const uint64_t *pages, uint32_t count
) noexcept nogil
cdef void region_lose(RegionState *region, uint64_t page, int code, bint say) noexcept nogil
cdef int region_fetch(Hand *hand, uint64_t page, uint8_t *to) noexcept nogil
cdef void region_forget(RegionState *region, uint64_t first, uint64_t count) noexcept nogil
cdef uint32_t region_fill(
    Hand *hand, uint64_t first, uint32_t count, uint8_t kind, bint writes
) noexcept nogil

cdef inline bint is_passing(int code) noexcept nogil:
    """Return whether an errno is temporary, so that the operation may succeed later."""
    return code == ENOMEM or code == EAGAIN

cdef inline uint8_t kind_of(const RegionState *region, uint64_t page) noexcept nogil:
    return region.states[page] & KIND

cdef inline bint is_busy(const RegionState *region, uint64_t page) noexcept nogil:
    return region.states[page] & BUSY != 0

cdef inline uint8_t *address_of(const RegionState *region, uint64_t page) noexcept nogil:
    return region.base + (page << region.page_shift)

cdef inline uint64_t low_mark(const RegionState *region) noexcept nogil:
    """Return the number of free frames below which the reclaimer begins; 0 if all arrays fit."""
    return 0 if region.used <= region.budget else min(region.budget // 64, <uint64_t>1024)

cdef inline uint64_t kept_frames(uint64_t budget) noexcept nogil:
    """Return the number of frames that may not be pinned.

    An instruction may need several pages at once.
    """
    return min(budget // 2, <uint64_t>4)

cdef inline bint is_low(const RegionState *region) noexcept nogil:
    """Return whether the reclaimer is needed."""
    return region.resident + low_mark(region) > region.budget

cdef inline uint64_t high_mark(const RegionState *region) noexcept nogil:
    """Return the number of free frames at which the reclaimer stops."""
    return 2 * low_mark(region)

cdef inline uint64_t lag(const RegionState *region) noexcept nogil:
    """Return the number of candidates to keep between the hands."""
    return region.budget // 8

cdef inline uint64_t free_frames(const RegionState *region) noexcept nogil:
    return region.budget - region.resident if region.resident < region.budget else 0
