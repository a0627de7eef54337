from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    LENGTH_BITS = 21  # low bits of a position: length - 1; the largest page is 2 MiB

cdef struct Zone:
    uint32_t filled  # end of the last object, or 0 if no object is live
    uint32_t live  # bytes of the objects that are reserved and not freed
    uint32_t objects
    uint32_t next  # the next one to be discarded
    uint8_t state
    uint8_t poisoned  # nothing is written to it any more
    uint16_t pending  # pieces of uncommitted batches: a cleaner would not find their entries
    uint32_t uses  # number of times it was opened

cdef struct ZonesState:
    pthread_mutex_t mutex
    uint64_t base  # offset of zone 0
    uint32_t zone_bits
    uint32_t forks  # number of forks that led to the process that created this
    uint64_t limit  # maximum bytes held; UINT64_MAX means no limit
    uint64_t held
    uint64_t live
    uint64_t objects
    Zone *table
    uint32_t room  # number of zones in the table
    uint32_t open  # the zone to which objects are appended, or NO_ZONE
    uint32_t hint  # no zone below it is free
    uint32_t end  # no zone from here on was written to since the file was last cut
    uint32_t emptied  # the first zone to discard, or NO_ZONE
    uint32_t fence  # no zone from here on may be taken while the file is cut; NO_ZONE if it is not

cdef struct Piece:  # objects [first, last) of a batch, contiguous in one zone
    uint32_t first
    uint32_t last
    uint32_t zone
    uint32_t length
    uint64_t offset

cdef inline uint64_t position_offset(uint64_t position) noexcept nogil:
    """Return the offset of an object in the file."""
    return position >> LENGTH_BITS

cdef inline uint64_t position_length(uint64_t position) noexcept nogil:
    """Return the length of an object in bytes."""
    return (position & ((1 << LENGTH_BITS) - 1)) + 1

cdef void zones_free(ZonesState *zones, const uint64_t *positions, uint32_t count) noexcept nogil


cdef class Zones:
    cdef ZonesState state
    cdef uint64_t failures  # number of syncs that did not succeed
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
    cdef uint64_t failures  # number of failed syncs before anything was written
    cdef bint settled  # committed or undone
    cdef void commit(self) noexcept nogil
    cpdef void undo(self) noexcept


cdef class Emptied:
    cdef Zones zones
    cdef uint32_t first  # head of the zones' list; they stay linked
    cdef uint32_t count
    cdef void _end(self, int state) noexcept
