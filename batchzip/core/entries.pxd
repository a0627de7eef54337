from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.latency cimport TIMED_OPERATIONS, Timer
from batchzip.core.lru cimport LruState
from batchzip.core.pool cimport Allocator, PoolState
from batchzip.core.table cimport KINDS, Entry, TableState
from batchzip.core.zones cimport Zones, ZonesState

cdef enum:
    MOST_CODECS = 256

cdef struct ObjectsState:  # shared by all groups of a store
    PoolState *pool
    ZonesState *zones  # NULL: there is no backing file
    uint64_t entries_of[MOST_CODECS]  # entries per codec number
    uint64_t reused  # how often a codec number was given to another codec

cdef struct EntriesState:
    ObjectsState *objects
    TableState table
    LruState lru
    uint64_t gauges[KINDS]  # entries per kind
    uint64_t pages
    uint64_t pool_bytes  # bytes of this group's objects in the pool
    uint64_t record_bytes  # serialised bytes of values (records.pyx)
    uint64_t page_stores
    uint64_t page_loads
    bint closed

cdef struct Prepared:  # a folio that is ready to be published
    uint32_t count
    Entry *entries  # objects have no `value` yet
    uint32_t object_count
    const uint8_t **data  # per object: the stored bytes
    uint32_t *lengths
    uint64_t *values  # per object: room for its handle, or its position in the backing file

cdef int entries_publish(
    EntriesState *entries, uint64_t first, Prepared *folio, bint in_file, bint may_go_elsewhere,
    uint64_t limit,
) noexcept nogil
cdef void entries_forget(EntriesState *entries, const Entry *entry) noexcept nogil
cdef void entries_count(EntriesState *entries, const Entry *entry, uint32_t length) noexcept nogil
cdef void entries_remove(EntriesState *entries, Entry *entry) noexcept nogil


cdef class Objects:
    cdef ObjectsState state
    cdef readonly Allocator allocator
    cdef readonly Zones zones
    cdef readonly size_t page_size
    cdef list codecs  # by codec number
    cdef list coders  # by codec number
    cdef uint32_t holds[MOST_CODECS]  # by codec number: users that keep it from being reused
    cdef readonly uint64_t given  # how often a codec got a number
    cdef readonly int current  # the codec number of most pages
    cdef uint64_t events[7]  # sums over all groups, including closed ones
    cdef int _unused_number(self) except -1


cdef class Entries:
    cdef EntriesState state
    cdef readonly Objects objects
    cdef object name
    cdef uint64_t events[7]
    cdef Timer timers[TIMED_OPERATIONS]
    cdef int refuse(self) except -1
    cdef uint64_t figure(self, const uint64_t *address) noexcept
    cdef uint64_t drop_pages(self, uint64_t first, uint64_t count) noexcept
