from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.libraries cimport Lz4, Xxh3, Zstd

cdef enum:
    COMPRESS = 0
    DECOMPRESS = 1

cdef enum:
    ABORT = -0x40000000  # a callback raised an exception that ends the batch

cdef struct Tally:  # one coder's work of one operation; its user writes it, anybody may read it
    uint64_t pages
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t busy_ns

cdef struct BatchTally:  # counters of batches of one operation; written under the GIL
    uint64_t batches
    uint64_t divided
    uint64_t waits
    uint64_t wait_ns
    uint64_t fallbacks

cdef struct Stored:  # the stored form of a value
    const uint8_t *data
    uint32_t length
    uint32_t raw_length  # bytes of the value itself
    uint32_t checksum
    uint8_t codec  # the codec's number; 0: the value is stored raw

cdef struct CoderState:
    int library  # the library whose functions are called; CALLBACK: a codec in Python
    int effort  # acceleration or level
    size_t page_size
    size_t bound  # upper bound of the output of a page, in bytes; 0: unknown
    size_t element_size  # bytes per element of shuffled pages; 0: pages are not shuffled
    bint floats  # shuffled elements are floating-point numbers
    size_t planes  # zstd: parts of a page that get blocks of their own
    bint verify
    bint gave_up  # a callback raised an exception; see ABORT
    const Lz4 *lz4
    const Zstd *zstd
    const Xxh3 *xxh3
    void *compressing  # an lz4 state or a ZSTD_CCtx
    void *restoring  # a ZSTD_DCtx
    const void *ddict
    PyObject *compress_call  # borrowed from the Coder
    PyObject *decompress_call
    PyObject *error  # owned: the exception of a callback
    size_t room  # size of each buffer below but `output`, in bytes; at least a page
    size_t output_room  # size of `output`
    uint8_t *page  # a private copy of the page
    uint8_t *shuffled
    uint8_t *restored  # a restored value, or what verification restores
    uint8_t *output  # outputs that may be too long for their destination
    Tally tallies[2]

cdef int64_t compress_page(
    CoderState *coder, const uint8_t *page, bint is_private, uint8_t *dst, size_t capacity
) noexcept nogil
cdef int64_t restore_page(
    CoderState *coder, const uint8_t *src, size_t length, uint8_t *dst, bint may_spoil
) noexcept nogil
cdef size_t most_value(size_t page_size) noexcept nogil
cdef int make_room(CoderState *coder, size_t size) noexcept nogil
cdef int64_t compress_value(
    CoderState *coder, const uint8_t *value, size_t size, const uint8_t **output
) noexcept nogil
cdef int64_t restore_value(
    CoderState *coder, const uint8_t *src, size_t length, uint8_t *output, size_t size
) noexcept nogil
cdef int encode_value(
    CoderState *coder, int number, const uint8_t *value, Stored *stored
) noexcept nogil
cdef int decode_value(
    CoderState *coder, const Stored *stored, uint8_t *output
) noexcept nogil
cdef void count_value(CoderState *coder, int operation, const Stored *stored) noexcept nogil
cdef bint is_faster_with_gil(const CoderState *coder, int operation, size_t size) noexcept nogil
cdef uint64_t hash_output(
    const CoderState *coder, const uint8_t *output, size_t length
) noexcept nogil
cdef size_t check_page_size(size_t page_size) except 0
cdef void raise_callback_error(CoderState *coder) except *


cdef class Coder:
    cdef CoderState state
    cdef readonly object codec
    cdef readonly bint native
    cdef object compress_call
    cdef object decompress_call
    cdef Coder shared  # the coder whose dictionary tables this one uses
    cdef void *cdict
    cdef void *ddict
    cdef _use_library(self, native, Coder like)
    cdef _use_zstd(self, bytes dictionary, Coder like)


cdef class Coders:
    cdef readonly object codec
    cdef readonly size_t page_size
    cdef bint names_dictionary
    cdef list every
    cdef list unused
    cdef size_t lent  # coders that are neither unused nor used by a call
    cdef dict error_counts
    cdef BatchTally tallies[2]
    cdef size_t count_used(self) noexcept
    cdef Coder lend(self)
    cdef void take_back(self, Coder coder)
    cdef Coder take(self)
    cdef void give(self, Coder coder)
    cdef void count_errors(self, int operation, const int32_t *errors, size_t count)
