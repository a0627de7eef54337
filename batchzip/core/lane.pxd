from libc.stdint cimport uint32_t


cdef class ThreadLanes:
    cdef readonly tuple rings
    cdef list coders
    cdef void *lanes
    cdef uint32_t count
    cdef uint32_t made_in
