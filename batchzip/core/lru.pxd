from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from batchzip.core.table cimport TableState

cdef struct Moment:  # the time at which an epoch began
    uint64_t epoch
    int64_t at_ns

cdef struct Candidate:
    uint64_t number  # of the entry
    uint16_t stamp  # its epoch when it was chosen

cdef enum Kinds:  # what a choice is made from
    OBJECTS  # entries with an object in the pool: what can be moved to the file
    VALUES  # entries of values that may have memory in the pool: what a cache can evict

cdef struct Choice:  # the coldest entries of some kinds
    Candidate *candidates
    uint64_t next
    uint64_t count

cdef struct LruState:
    uint64_t epoch
    uint64_t used  # pages used in this epoch
    uint64_t quota  # the next epoch begins after this number of used pages
    int64_t until_ns  # the next epoch begins at this time at the latest
    Moment *moments
    uint32_t moment_count
    uint32_t moment_room
    Choice choices[2]  # by Kinds

cdef void lru_open(LruState *lru) noexcept nogil
cdef void lru_close(LruState *lru) noexcept nogil
cdef uint16_t lru_use(
    LruState *lru, TableState *table, uint64_t count, uint64_t pages
) noexcept nogil
cdef int64_t lru_coldest(
    LruState *lru, const TableState *table, Kinds kinds, uint64_t count, uint64_t *indices
) noexcept nogil
cdef uint32_t lru_idle_age(const LruState *lru, int64_t idle_ns) noexcept nogil
cdef inline uint16_t lru_age(const LruState *lru, uint16_t epoch) noexcept nogil:
    return <uint16_t>(<uint16_t>lru.epoch - epoch)
