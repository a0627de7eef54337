from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from batchzip.core.coder cimport Coders
from batchzip.core.entries cimport EntriesState, Prepared

cdef struct FolioState:
    Prepared new
    size_t page_size
    const uint8_t *pages  # consecutive pages; NULL: see table
    const uint8_t **table
    uint32_t room  # capacity of the arrays, in pages
    int32_t *errors  # per page: 0 or a negative errno
    uint32_t failed
    uint8_t *outputs
    size_t output_room
    size_t output_used

cdef struct Place:  # where a folio is published, as arguments of `entries_publish`
    EntriesState *entries
    uint64_t first
    bint may_go_elsewhere
    uint64_t limit
    int code  # its result


cdef class Folio:
    cdef FolioState state
    cdef object owner
    cdef Py_buffer *views
    cdef Py_ssize_t view_count
    cdef list batches  # their memory holds the outputs of pages that were lent
    cdef list copies  # private copies of pages that are stored raw
    cdef int make_room(self, size_t count) except -1
    cdef int make_outputs(self, size_t size) except -1
    cdef int compress_all(
        self, Coders coders, uint8_t number, bint keep_poor, bint keep_failed, Place *place
    ) except -1
    cdef void drop_pages(self) noexcept
