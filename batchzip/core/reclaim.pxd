from libc.stdint cimport uint32_t, uint64_t

from batchzip.core.region cimport Hand

cdef enum Progress:
    NOTHING  # is left to be done
    UNMAPPED
    FREED

cdef int reclaim_step(Hand *hand, uint32_t most, bint urgent) noexcept nogil
cdef uint64_t reclaim_range(Hand *hand, uint64_t first, uint64_t count) noexcept nogil
