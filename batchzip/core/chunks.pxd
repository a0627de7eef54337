from libc.stdint cimport uint8_t

from batchzip.core.coder cimport Coders, Stored

cdef class Chunked:
    cdef uint8_t *data
    cdef size_t room  # bytes allocated
    cdef Stored stored
    cdef Coders coders
    cdef int reserve(self, size_t room) except -1


cdef class ChunkWork:
    cdef Coders coders
    cdef object divider
    cdef tuple rings
    cdef list lane_coders
    cdef int number
    cdef size_t page_size
    cdef Chunked compress(self, list parts)
    cdef object restore(self, Chunked form)
