from libc.stdint cimport uint8_t

cdef enum:
    KEY_ROOM = 256

cdef class Key:  # a key as bytes; see keys.pyx
    cdef uint8_t own[KEY_ROOM]
    cdef bytes longer  # the encoding if it does not fit into `own`
    cdef const uint8_t *data  # the stored encoding, in `own` or `longer`
    cdef size_t length
    cdef const uint8_t *compared  # the part of `data` that decides whether keys are equal
    cdef size_t compared_length

cdef int encode_key(Key out, key) except -1
cdef object decode_key(const uint8_t *data, size_t length)
cdef void compared_part(
    const uint8_t *data, size_t length, const uint8_t **part, size_t *part_length
) noexcept nogil
