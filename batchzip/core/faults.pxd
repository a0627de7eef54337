from libc.stdint cimport uint64_t

from batchzip.core.region cimport Hand, Job, RegionState

cdef void post_job(RegionState *region, Job job) noexcept nogil
cdef int make_resident(Hand *hand, uint64_t *next, uint64_t end) noexcept nogil
cdef void *serve_faults(void *hand) noexcept nogil
cdef void *help_faults(void *hand) noexcept nogil
cdef void *reclaim_ahead(void *hand) noexcept nogil
