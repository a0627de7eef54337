from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from batchzip.core.entries cimport EntriesState

cdef enum:
    MOST_SLICES = 128  # of a value: 64 KiB in the smallest pages

cdef extern from *:
    """
    #define BZ_SLICES ((uint64_t)3 << 62)
    """
    uint64_t SLICES "BZ_SLICES"  # index of the first; those of values and pages are lower

cdef struct Slices:
    uint32_t *next  # by number: the next one of the value, or the next unused one; NO_SLICE: none
    uint32_t room
    uint32_t used  # numbers that were given out
    uint32_t unused  # the first of those that came back; NO_SLICE: none

# The caller holds the pool's mutex. `value` is that of a SLICED entry.
cdef void slices_open(Slices *slices) noexcept nogil
cdef void slices_close(Slices *slices) noexcept nogil
# 0, -ENOMEM or -ENOSPC: nothing is stored then.
cdef int slices_store(
    EntriesState *entries, Slices *slices, const uint8_t *data, uint32_t length, uint64_t *value
) noexcept nogil
cdef void slices_free(EntriesState *entries, Slices *slices, uint64_t value) noexcept nogil
cdef void slices_use(EntriesState *entries, Slices *slices, uint64_t value) noexcept nogil
# False: some lie in the file.
cdef bint slices_copy(
    EntriesState *entries, const Slices *slices, uint64_t value, uint8_t *to
) noexcept nogil
cdef uint32_t slices_list(const Slices *slices, uint64_t value, uint64_t *indices) noexcept nogil
cdef uint64_t slices_pool_bytes(
    EntriesState *entries, const Slices *slices, uint64_t value
) noexcept nogil
cdef object slices_fault(EntriesState *entries, const Slices *slices, list values)

cdef inline uint32_t slices_length(uint64_t value) noexcept nogil:
    return <uint32_t>(value >> 32)
