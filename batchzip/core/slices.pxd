from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from batchzip.core.entries cimport EntriesState

cdef extern from *:
    """
    #define BZ_SLICES ((uint64_t)3 << 62)
    """
    uint64_t SLICES "BZ_SLICES"  # index of the first slice; values and pages have lower ones

cdef struct Slices:
    uint32_t *next  # by number: the value's next slice, or the next unused number, or NO_SLICE
    uint32_t room
    uint32_t used  # numbers below it were given out
    uint32_t unused  # first number that was returned, or NO_SLICE

# The caller holds the pool's mutex. `value` is the value word of a SLICED entry.
cdef void slices_open(Slices *slices) noexcept nogil
cdef void slices_close(Slices *slices) noexcept nogil
# Return 0, or -ENOMEM or -ENOSPC with nothing stored.
cdef int slices_store(
    EntriesState *entries, Slices *slices, const uint8_t *data, uint32_t length, uint64_t *value
) noexcept nogil
cdef void slices_free(EntriesState *entries, Slices *slices, uint64_t value) noexcept nogil
cdef void slices_use(EntriesState *entries, Slices *slices, uint64_t value) noexcept nogil
# Return False if some slices are in the backing file.
cdef bint slices_copy(
    EntriesState *entries, const Slices *slices, uint64_t value, uint8_t *to
) noexcept nogil
cdef uint32_t slices_list(const Slices *slices, uint64_t value, uint64_t *indices) noexcept nogil
cdef bint slices_are(
    const Slices *slices, uint64_t value, const uint64_t *indices, uint32_t count
) noexcept nogil
cdef uint64_t slices_pool_bytes(
    EntriesState *entries, const Slices *slices, uint64_t value
) noexcept nogil
cdef object slices_fault(EntriesState *entries, const Slices *slices, list values)

cdef inline uint32_t slices_length(uint64_t value) noexcept nogil:
    return <uint32_t>(value >> 32)
