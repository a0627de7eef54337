from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    STREAMS = 8

cdef struct Stream:
    uint64_t last  # page of the last fault
    int64_t stride  # pages from one to the next; 0: unknown
    int64_t delta  # between the last two faults
    uint64_t next  # page that the next fault is expected at, if the window is used up
    uint32_t window  # pages that were restored at the last fault, or are on their way
    uint64_t used  # when it was used last, in faults

cdef struct StridesState:
    Stream streams[STREAMS]
    uint64_t faults
    uint64_t hits  # pages of windows that were used up

cdef uint32_t strides_fault(
    StridesState *strides, uint64_t page, uint32_t most, int64_t *stride
) noexcept nogil
