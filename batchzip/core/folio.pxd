from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from batchzip.core.entries cimport Prepared

cdef struct FolioState:
    Prepared new
    size_t page_size
    const uint8_t *pages  # at a fixed distance of a page, or NULL: see table
    const uint8_t **table
    uint32_t room  # pages that the arrays have room for
    int32_t *errors  # by page
    uint32_t failed
    uint8_t *outputs
    size_t output_room
    size_t output_used


cdef class Folio:
    cdef FolioState state
    cdef object owner
    cdef Py_buffer *views
    cdef Py_ssize_t view_count
    cdef list batches  # whose memory outputs lie in
    cdef list copies  # of pages that are kept as they are
    cdef int make_room(self, size_t count) except -1
    cdef int make_outputs(self, size_t size) except -1
    cdef void drop_pages(self) noexcept
