from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.coder cimport Coders, CoderState, Stored

cdef struct Value:  # one of a batch of values, or of the chunks of a value
    const uint8_t *data  # the value, to be compressed
    uint8_t *output  # room for the stored bytes, or for the restored value
    Stored stored
    int code  # 0, or the negative errno of a value that cannot be compressed or restored

cdef struct BatchState:  # the part of a batch that lanes need, as plain memory
    int operation
    uint32_t count
    size_t page_size
    size_t capacity  # upper bound of an output, in bytes
    bint is_private  # nobody can change the inputs during the run
    bint may_spoil  # the destination of a failed page may be left with arbitrary bytes
    bint packed  # outputs follow one another; otherwise each has a place of its own
    const uint8_t *inputs  # inputs at a fixed distance; NULL: see input_table
    size_t input_pitch
    const uint8_t **input_table
    const uint32_t *input_lengths  # NULL: each input is a page
    uint8_t *outputs  # outputs at a fixed distance or packed; NULL: see output_table
    size_t output_pitch
    uint8_t **output_table
    uint64_t *offsets  # packed: where each output begins
    uint64_t *hashes  # a hash of each output, or NULL
    uint32_t *dlens
    int32_t *errors
    const uint32_t *order  # index by position; NULL: position and index are equal
    const uint32_t *row_table  # in a worker: the row of each output; NULL: the index is the row
    uint32_t row_limit  # the last row, if there is a row_table
    Value *values  # NULL: this is a batch of pages
    CoderState **coders  # the coders of values, by the lane's number
    int number  # the number of the values' codec

cdef struct Packer:  # the place of a lane's next packed output
    uint32_t position
    uint64_t offset

cdef struct Done:  # work that is not yet counted
    uint64_t pages
    uint64_t bytes_in
    uint64_t bytes_out

cdef int64_t run_page(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t position, Done *done
) noexcept nogil
cdef void count_done(
    CoderState *coder, int operation, const Done *done, int64_t started
) noexcept nogil
cdef int run_pages(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t first, uint32_t end
) noexcept nogil
cdef void fail_pages(BatchState *batch, uint32_t first, uint32_t end, int code) noexcept nogil
cdef bint accept_pages(
    BatchState *batch, Packer *packer, uint32_t first, uint32_t count,
    const uint8_t *memory, size_t room, size_t pitch,
    const uint32_t *dlens, const int32_t *errors, const uint64_t *hashes, const CoderState *coder,
    uint64_t *sum,
) noexcept nogil


cdef class Pointers:
    cdef BatchState state
    cdef object dlens, errors, offsets, slens  # the arrays behind the addresses
    cdef object input_owner, output_owner
    cdef Py_buffer *input_views
    cdef Py_buffer *output_views
    cdef Py_ssize_t input_count, output_count
    cdef uint32_t *order
    cdef bint wants_order
    cdef bint under_way  # lanes or a caller may be using the memory
    cdef int refuse_under_way(self) except -1
    cdef readonly uint32_t failed  # pages that failed in the last run
    cdef readonly uint32_t runs  # number of resets of the results
    cdef void _release_inputs(self) noexcept
    cdef void _release_outputs(self) noexcept
    cdef int make_tables(self, uint32_t count, lengths, bint for_outputs) except -1
    cdef void set_row(
        self, uint32_t position, const uint8_t *data, uint32_t length, uint8_t *output
    ) noexcept
    cdef int begin(self) except -1
    cdef void finish(self) noexcept
    cdef void sort(self) except *
    cdef uint32_t count_failed(self) noexcept
    cpdef uint32_t run(self, Coders coders, int64_t deadline=*) except? 0xFFFFFFFF

cdef struct Block:  # an array in the arena, which workers share
    const uint8_t *start
    const uint8_t *end
    uint64_t offset  # in the arena


cdef class Blocks:
    cdef Block *items
    cdef uint32_t count
    cdef uint32_t room
    cdef int64_t find(self, const uint8_t *start, uint64_t length) noexcept
    cdef int64_t inputs_of(self, Pointers batch) noexcept
    cdef int64_t outputs_of(self, Pointers batch) noexcept
