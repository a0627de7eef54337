from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.coder cimport Coder, Coders, CoderState
from batchzip.core.entries cimport Entries, EntriesState
from batchzip.core.table cimport Entry, TableState, table_find

cdef enum Outcome:  # the result of a row, if it is not a negative errno
    RESTORED
    PENDING

cdef struct Row:
    uint64_t index
    Entry entry
    const uint8_t *data  # the stored bytes; NULL: they are in the backing file, or there are none
    uint32_t length
    int32_t failure  # the negative errno of reading them from the backing file, or 0
    int32_t outcome

cdef enum Found:  # the result of `load_page`, if it is not a negative errno
    LOADED
    NOT_STORED
    ELSEWHERE  # in the backing file, or compressed by another codec than the coder's
    CHANGED  # codec numbers were given to other codecs meanwhile: try again
    IS_CLOSED

cdef inline bint entry_is(const Entry *entry, const Entry *other) noexcept nogil:
    """Return whether two entries are equal. The epoch of their last use does not count."""
    return (
        entry.value == other.value and entry.checksum == other.checksum
        and entry.kind == other.kind and entry.codec == other.codec
    )

cdef inline Entry *entry_if_still(
    TableState *table, uint64_t index, const Entry *found
) noexcept nogil:
    """Return the entry of an index if it is still `found`, or NULL."""
    cdef Entry *entry = table_find(table, index)
    return entry if entry is not NULL and entry_is(entry, found) else NULL

cdef int load_page(
    EntriesState *entries, uint64_t index, int number, uint64_t reused, CoderState *coder,
    uint8_t *page, bint exclusive,
) noexcept nogil
cdef uint32_t checksum_of(const uint8_t *data, size_t length, uint8_t codec) noexcept nogil


cdef class Gathered:
    cdef readonly Entries entries
    cdef Row *rows
    cdef readonly uint32_t count
    cdef readonly bint is_checked  # whether `check` or `load_many` has set the rows' outcomes
    cdef uint8_t *copies
    cdef list given  # keeps the bytes that `supply` got
    cdef uint64_t reused  # `Objects.reused` when the entries were gathered
    cdef readonly int64_t started  # when `load` began, if that call is timed; otherwise 0
    cdef int make_rows(self, size_t count) except -1
    cdef int get_room(self, pages, Py_buffer *view) except -1
    cdef int restore_from(
        self, uint32_t at, uint8_t number, Coders coders, Coder coder, uint8_t *pages
    ) except -1
    cdef int64_t _exchange(self, uint32_t row, bytes output, uint8_t number)
