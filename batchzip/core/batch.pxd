from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.coder cimport Coders, CoderState, Stored

cdef struct Value:  # one of a batch of values, of up to a page each
    const uint8_t *data  # the value, to be compressed
    uint8_t *output  # room for what is kept of it; restored, for the value
    Stored stored
    int code  # of what cannot be restored, a negative errno

cdef struct BatchState:  # plain memory: what lanes need of a batch
    int operation
    uint32_t count
    size_t page_size
    size_t capacity  # most bytes of an output
    bint is_private  # nobody can change the inputs meanwhile
    bint may_spoil  # destinations may hold anything where a page fails
    bint packed  # outputs follow one another; otherwise each has its own place
    const uint8_t *inputs  # inputs at a fixed distance, or NULL: see input_table
    size_t input_pitch
    const uint8_t **input_table
    const uint32_t *input_lengths  # NULL: each is a page
    uint8_t *outputs  # outputs at a fixed distance or packed, or NULL: see output_table
    size_t output_pitch
    uint8_t **output_table
    uint64_t *offsets  # packed: where each output begins
    uint64_t *hashes  # a hash of each output, or NULL
    uint32_t *dlens
    int32_t *errors
    const uint32_t *order  # index by position, or NULL: in order
    const uint32_t *row_table  # a worker's: where the output of each page goes, or NULL
    uint32_t row_limit  # the last row there is then
    Value *values  # NULL: it is a batch of pages
    CoderState **coders  # those of values, by the lane's number
    int number  # of their codec

cdef struct Packer:  # where a lane's next packed output goes
    uint32_t position
    uint64_t offset

cdef struct Done:  # what was done since the last count
    uint64_t pages
    uint64_t bytes_in
    uint64_t bytes_out

cdef int64_t run_page(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t position, Done *done
) noexcept nogil
cdef void count_done(CoderState *coder, int operation, const Done *done, int64_t started) noexcept nogil
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
    cdef object dlens, errors, offsets, slens  # arrays that the pointers point to
    cdef object input_owner, output_owner
    cdef Py_buffer *input_views
    cdef Py_buffer *output_views
    cdef Py_ssize_t input_count, output_count
    cdef uint32_t *order
    cdef bint wants_order
    cdef bint under_way  # lanes or a caller may use what it points to
    cdef int refuse_under_way(self) except -1
    cdef readonly uint32_t failed  # pages that failed, once it is done
    cdef readonly uint32_t runs  # how often results were forgotten
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

cdef struct Block:  # memory that workers share
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
