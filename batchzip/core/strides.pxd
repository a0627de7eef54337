from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    STREAMS = 8

cdef struct Stream:
    uint64_t last  # page of the last fault
    int64_t stride  # distance between faults in pages, or 0 if not known yet
    int64_t delta  # distance between the last two faults, in pages
    uint64_t next  # expected page of the next fault, if the program uses the whole window
    uint32_t window  # pages that were restored at the last fault or are being restored
    uint64_t used  # time of the last use, in faults

cdef struct StridesState:
    Stream streams[STREAMS]
    uint64_t faults
    uint64_t hits  # pages restored ahead in windows that the program used up

cdef uint32_t strides_fault(
    StridesState *strides, uint64_t page, uint32_t most, int64_t *stride
) noexcept nogil
