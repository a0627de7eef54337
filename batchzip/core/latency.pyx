"""Latency: how long calls take, of a few of them.

    timer_start ─▶ 0, of most calls: one is counted down
                └▶ the time, of a random one in 64 ─▶ the call ─▶ timer_end: one more in its bucket

Reading the clock twice takes 45 ns, an eighth of what a small value takes to be found and restored; counting
down takes less than one. The calls between two that are timed are a random number from 1 to 127: what comes at
regular intervals is met as often as it is there. What failed is not counted.

Bucket n has what took up to 2^(n + 8) ns, and longer than the bucket before it: 256 ns to 17 s; the last one
has whatever took longer. Of a Timer whoever holds the GIL is the only writer: a call starts and ends with it,
and what it waits for in between (a mutex, the GIL, the backing file) is part of what its caller sees.
Faults of paged memory have the same Histogram, and are counted one and all, under their region's mutex.
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
    MEAN_GAP = 64  # calls from one that is timed to the next, on average
    LEAST_BITS = 8  # of the longest time in the first bucket

OPERATIONS = ("load", "store", "get", "put")
EVERY = MEAN_GAP
LOAD, STORE, GET, PUT = TIMED_LOAD, TIMED_STORE, TIMED_GET, TIMED_PUT
BOUNDS_S = tuple([(1 << number + LEAST_BITS) / 1e9 for number in range(BUCKETS - 1)])
"""The longest time of each bucket but the last, in seconds."""


cdef void histogram_add(Histogram *histogram, int64_t started) noexcept nogil:
    """Count what began then and ends now."""
    cdef uint64_t took = max(bz_now_ns() - started, 1)
    histogram.calls[min(max(bz_bits(took - 1) - LEAST_BITS, 0), BUCKETS - 1)] += 1
    histogram.total_ns += took


cdef tuple histogram_of(const Histogram *histogram):
    """Return what was counted, by bucket, and its nanoseconds."""
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
    """Count a call that began then and ends now."""
    histogram_add(&timer.timed, started)
