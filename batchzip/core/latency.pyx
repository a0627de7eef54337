"""Latency: histograms of the durations of calls, from a random sample.

    timer_start ─▶ 0 for most calls: only a counter is decremented
                └▶ the time, for one call in 64 ─▶ the call ─▶ timer_end: its bucket grows by one

Only a sample is timed, because two readings of the clock take 45 ns, an eighth of the time to find
and restore a small value. Decrementing a counter takes less than 1 ns. The number of calls from one
timed call to the next is random, from 1 to 127, so that a periodic pattern of calls is sampled in
proportion. Calls that fail are not counted.

Bucket n holds durations up to 2^(n + 8) ns that exceed the bucket before it: from 256 ns to 17 s.
The last bucket holds all longer ones. Whoever holds the GIL is the only writer of a Timer: a call
starts and ends with the GIL. Its waits in between (for a mutex, the GIL, the backing file) belong
to its duration, because its caller sees them. Faults of paged memory use the same Histogram. Every
fault is counted, under the mutex of its region.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from "native.h" nogil:
    """
    static inline int bz_bits(uint64_t word) { return word ? 64 - __builtin_clzll(word) : 0; }
    """
    int bz_bits(uint64_t)
    int64_t bz_now_ns()

cdef enum:
    MEAN_GAP = 64  # calls from one timed call to the next, on average
    LEAST_BITS = 8  # the first bucket ends at 2^8 ns

OPERATIONS = ("load", "store", "get", "put")
EVERY = MEAN_GAP
LOAD, STORE, GET, PUT = TIMED_LOAD, TIMED_STORE, TIMED_GET, TIMED_PUT
BOUNDS_S = tuple([(1 << number + LEAST_BITS) / 1e9 for number in range(BUCKETS - 1)])
"""The upper bound of each bucket but the last, in seconds."""


cdef void histogram_add(Histogram *histogram, int64_t started) noexcept nogil:
    """Count an operation that began at `started` and ends now."""
    cdef uint64_t took = max(bz_now_ns() - started, 1)
    histogram.calls[min(max(bz_bits(took - 1) - LEAST_BITS, 0), BUCKETS - 1)] += 1
    histogram.total_ns += took


cdef tuple histogram_of(const Histogram *histogram):
    """Return the number of operations per bucket, and their total time in nanoseconds."""
    cdef int bucket
    return [histogram.calls[bucket] for bucket in range(BUCKETS)], histogram.total_ns


cdef inline uint32_t _gap(Timer *timer) noexcept:
    timer.random ^= timer.random << 13
    timer.random ^= timer.random >> 17
    timer.random ^= timer.random << 5
    return 1 + timer.random % (2 * MEAN_GAP - 1)


cdef void timer_open(Timer *timer) noexcept:
    memset(timer, 0, sizeof(Timer))
    timer.random = <uint32_t>(<uint64_t>timer >> 4 ^ <uint64_t>bz_now_ns()) | 1  # never 0
    timer.left = _gap(timer)


cdef int64_t timer_choose(Timer *timer) noexcept:
    timer.left = _gap(timer)
    return bz_now_ns()


cdef void timer_end(Timer *timer, int64_t started) noexcept:
    """Count a call that began at `started` and ends now."""
    histogram_add(&timer.timed, started)
