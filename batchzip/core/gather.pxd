from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.coder cimport CoderState
from batchzip.core.entries cimport Entries, EntriesState
from batchzip.core.table cimport Entry

cdef enum Outcome:  # of a row, beside negative errnos
    RESTORED
    PENDING

cdef struct Row:
    uint64_t index
    Entry entry
    const uint8_t *data  # what is stored; NULL: it is in the backing file, or nothing is stored
    uint32_t length
    int32_t failure  # of reading it
    int32_t outcome

cdef enum Found:  # what `load_page` returns, beside negative errnos
    LOADED
    NOT_STORED
    ELSEWHERE  # in the file, or made by another codec than the coder's
    CHANGED  # numbers of codecs, meanwhile
    IS_CLOSED

cdef inline bint entry_is(const Entry *entry, const Entry *other) noexcept nogil:
    """Return whether two entries are the same, whenever they were used."""
    return (
        entry.value == other.value and entry.checksum == other.checksum
        and entry.kind == other.kind and entry.codec == other.codec
    )

cdef int load_page(
    EntriesState *entries, uint64_t index, int number, uint64_t reused, CoderState *coder,
    uint8_t *page, bint exclusive,
) noexcept nogil
cdef uint32_t checksum_of(const uint8_t *data, size_t length, uint8_t codec) noexcept nogil


cdef class Gathered:
    cdef readonly Entries entries
    cdef Row *rows
    cdef readonly uint32_t count
    cdef uint8_t *copies
    cdef list given  # what `supply` was given
    cdef uint64_t reused
    cdef readonly int64_t started  # when `load` began, if that is timed; or 0
    cdef int make_rows(self, size_t count) except -1
    cdef int64_t _exchange(self, uint32_t row, bytes output, uint8_t number)
