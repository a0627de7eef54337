from libc.stdint cimport uint32_t, uint64_t

from batchzip.core.region cimport Hand

cdef enum Progress:  # of a step, from the worst to the best
    NOTHING  # no page can be taken: all are busy or pinned
    REFUSED  # the store refused a whole run, or the kernel did not unmap it
    MOVED  # no page was evicted, but the next step may evict one
    FREED

cdef int reclaim_step(Hand *hand, uint32_t most, bint urgent) noexcept nogil
cdef uint64_t reclaim_range(Hand *hand, uint64_t first, uint64_t count) noexcept nogil
