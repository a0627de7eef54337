from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    BUCKETS = 28

cdef enum:  # operations
    TIMED_LOAD
    TIMED_STORE
    TIMED_GET
    TIMED_PUT
    TIMED_OPERATIONS

cdef struct Histogram:
    uint64_t calls[BUCKETS]  # calls per bucket of duration
    uint64_t total_ns

cdef struct Timer:  # of one operation
    uint32_t left  # calls until the next timed one
    uint32_t random  # state of the random generator
    Histogram timed

cdef void histogram_add(Histogram *histogram, int64_t started) noexcept nogil
cdef tuple histogram_of(const Histogram *histogram)
cdef void timer_open(Timer *timer) noexcept
cdef int64_t timer_choose(Timer *timer) noexcept
cdef void timer_end(Timer *timer, int64_t started) noexcept


cdef inline int64_t timer_start(Timer *timer) noexcept:
    """Return the time if this call is to be timed, otherwise 0."""
    timer.left -= 1
    return 0 if timer.left else timer_choose(timer)
