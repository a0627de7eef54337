from libc.stdint cimport uint32_t, uint64_t

from batchzip.core.coder cimport Coder, Coders
from batchzip.core.entries cimport Entries
from batchzip.core.region cimport Hand, RegionState

cdef enum:
    MOST_FAULT_THREADS = 64  # the same constant as in batchzip.paged

cdef extern from "native.h" nogil:
    ctypedef struct pthread_t:
        pass


cdef class Worker:
    cdef Hand hand
    cdef Coders coders
    cdef Coder coder


cdef class Pager:
    cdef RegionState region
    cdef readonly Entries entries
    cdef object codec
    cdef Coders coders
    cdef list workers  # Workers that have a thread
    cdef pthread_t threads[MOST_FAULT_THREADS + 2]
    cdef uint32_t thread_count
    cdef list spare  # Workers for calls from Python
    cdef uint32_t made_in
    cdef int way_number
    cdef uint64_t extents
    cdef bint opened
    cdef bint held  # whether this holds the codec's number
    cdef bint ended
    cdef int slot  # position in the table of regions that a forked child closes
    cdef int _open(self) except -1
    cdef int _start(self, void *(*run)(void *) noexcept nogil) except -1
    cdef int refuse(self) except -1
    cdef Worker enter(self)
    cdef void leave(self, Worker worker) noexcept
    cdef int _check(self, uint64_t first, uint64_t count) except -1
    cdef void _unmap_unused(self) noexcept
    cdef void free_run(self, uint64_t first, uint64_t count) noexcept


cdef class Extent:
    cdef Pager pager
    cdef readonly uint64_t first
    cdef readonly uint64_t count
    cdef readonly size_t nbytes
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t steps[1]
