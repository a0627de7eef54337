from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    LENGTH_BITS = 21  # of a position hold length - 1: the largest page is 2 MiB

cdef struct Zone:
    uint32_t filled  # end of the last object; 0 where nothing lives
    uint32_t live  # bytes of the objects that are reserved and not freed
    uint32_t objects
    uint32_t next  # the next one to be discarded
    uint8_t state
    uint8_t poisoned  # is not written to any more
    uint16_t pending  # pieces of batches that are not committed: who cleans would not find them
    uint32_t uses  # times it was opened

cdef struct ZonesState:
    pthread_mutex_t mutex
    uint64_t base  # where zone 0 begins
    uint32_t zone_bits
    uint32_t forks  # those that led to the process that made this
    uint64_t limit  # bytes that may be held; UINT64_MAX: any number
    uint64_t held
    uint64_t live
    uint64_t objects
    Zone *table
    uint32_t room  # zones that the table has
    uint32_t open  # the zone that is filled by appending, or NO_ZONE
    uint32_t hint  # no zone below it is free
    uint32_t end  # none from here on was written to since the file was cut
    uint32_t emptied  # the first that is to be discarded, or NO_ZONE
    uint32_t fence  # none from here on may be taken: the file is being cut there; NO_ZONE

cdef struct Piece:  # objects [first, last) of a batch, which lie side by side in one zone
    uint32_t first
    uint32_t last
    uint32_t zone
    uint32_t length
    uint64_t offset

cdef inline uint64_t position_offset(uint64_t position) noexcept nogil:
    """Return the first byte of an object."""
    return position >> LENGTH_BITS

cdef inline uint64_t position_length(uint64_t position) noexcept nogil:
    """Return the bytes of an object."""
    return (position & ((1 << LENGTH_BITS) - 1)) + 1

cdef void zones_free(ZonesState *zones, const uint64_t *positions, uint32_t count) noexcept nogil


cdef class Zones:
    cdef ZonesState state
    cdef uint64_t failures  # syncs that did not say that all is well
    cdef int refuse(self) except -1
    cdef int _reserve(
        self, const uint32_t *lengths, uint32_t count, ZoneReservation reservation, bint cleaning
    ) noexcept
    cdef void _poison(self, ZoneReservation reservation) noexcept
    cdef void _lower_fence(self, uint32_t end) noexcept
    cdef uint32_t _copy(self, Zone **table, ZonesState *state) except? 0


cdef class ZoneReservation:
    cdef uint64_t *positions
    cdef uint32_t count
    cdef Zones zones
    cdef Piece *pieces
    cdef uint32_t piece_count
    cdef uint64_t failures  # of syncs, before anything was written
    cdef bint settled  # committed or undone
    cdef void commit(self) noexcept nogil
    cpdef void undo(self) noexcept


cdef class Emptied:
    cdef Zones zones
    cdef uint32_t first  # the zones are linked, as they were before
    cdef uint32_t count
    cdef void _end(self, int state) noexcept
