"""Batches as plain memory: addresses and lengths, so that lanes need no interpreter.

    CompressBatch, DecompressBatch ─▶ Pointers ─▶ BatchState ─▶ run_pages(state, coder, first, end)

A BatchState has the addresses of the inputs, the outputs, their lengths and their errors. A lane
that is a thread uses the owner's BatchState. A worker process builds one from the slot of its ring.
Both then call `run_page` or `run_pages`. A page is named by its position in the batch's order: a
batch to decompress begins with its largest sources. They take longest, so no lane waits for a long
one at the end.

Packed outputs. A batch without `dsts` has room for `capacity` bytes per page. Its outputs follow
one another within each share, so the output at position p begins at p × capacity or before.
Typically they touch a sixth of that memory, stay in the cache, and never move. `offsets` has their
places.

Values. A batch of a mapping has `values` instead of pages. Each value, or chunk of a value, has room
of its own (records.pyx, chunks.pyx). Lanes use `coders` for their codec, which is not always the
engine's.

The Python classes check shapes, types and overlap before they make a Pointers. A Pointers keeps
references to the buffers, so their memory stays valid.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_CheckExact
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADMSG, EINVAL, ENOMEM, ETIMEDOUT
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.coder cimport (
    ABORT, COMPRESS, DECOMPRESS, Coder, Coders, CoderState, Stored, Tally, compress_page,
    decode_value, encode_value, hash_output, make_room, raise_callback_error, restore_page,
)
from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_realloc

from batchzip.errors import BadBatch

cdef extern from "native.h" nogil:
    void bz_count(uint64_t *, uint64_t)
    int64_t bz_now_ns()
    uint64_t bz_fold(uint64_t, uint64_t)

cdef enum:
    LOOK_BYTES = 64 << 10  # bytes of pages between two checks of the deadline
    BUCKETS = 256  # classes of source lengths in the counting sort
    MOMENT_NS = 50_000_000  # time between two checks for signals


cdef int64_t run_page(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t position, Done *done
) noexcept nogil:
    """Compress or restore the page at a position. Return ABORT if a callback ended the batch."""
    if batch.values is not NULL:
        return _do_value(batch, coder, &batch.values[position], done)
    if batch.operation == COMPRESS:
        return _compress(batch, coder, packer, position, &done.bytes_in, &done.bytes_out)
    return _restore(batch, coder, position, &done.bytes_in, &done.bytes_out)


cdef int64_t _do_value(
    BatchState *batch, CoderState *coder, Value *value, Done *done
) noexcept nogil:
    """Compress or restore a value into its own room. Return 0 or a negative errno."""
    cdef Stored *stored = &value.stored
    cdef size_t length
    if batch.operation == COMPRESS:
        value.code = encode_value(coder, batch.number, value.data, stored)
        length = stored.length
        if value.code == 0:
            memcpy(value.output, stored.data, length)
        done.bytes_in += stored.raw_length
    else:
        done.bytes_in += stored.length
        value.code = -ENOMEM
        if make_room(coder, stored.raw_length) == 0:
            value.code = decode_value(coder, stored, value.output)
        length = stored.raw_length
    if value.code == 0:
        stored.data = value.output
        if stored.codec:
            done.bytes_out += length
    return value.code


cdef void count_done(
    CoderState *coder, int operation, const Done *done, int64_t started
) noexcept nogil:
    """Add pages that a coder did since `started` to its tallies."""
    cdef Tally *tally = &coder.tallies[operation]
    bz_count(&tally.pages, done.pages)
    bz_count(&tally.bytes_in, done.bytes_in)
    bz_count(&tally.bytes_out, done.bytes_out)
    bz_count(&tally.busy_ns, bz_now_ns() - started)


cdef int run_pages(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t first, uint32_t end
) noexcept nogil:
    """Do the pages at positions [first, end). Return 0, or ABORT if a callback ended the batch."""
    cdef uint32_t position
    cdef int64_t outcome = 0
    cdef int64_t started = bz_now_ns()
    cdef Done done
    memset(&done, 0, sizeof(done))
    for position in range(first, end):
        outcome = run_page(batch, coder, packer, position, &done)
        if outcome == ABORT:
            break
        done.pages += 1
    count_done(coder, batch.operation, &done, started)
    return ABORT if outcome == ABORT else 0


cdef inline int64_t _compress(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t position,
    uint64_t *bytes_in, uint64_t *bytes_out,
) noexcept nogil:
    cdef uint32_t index = position if batch.order is NULL else batch.order[position]
    cdef const uint8_t *page
    cdef uint64_t offset
    cdef int64_t length
    if batch.input_table is NULL:
        page = batch.inputs + index * batch.input_pitch
    else:
        page = batch.input_table[index]
    if batch.packed:
        offset = _next_packed(batch, packer, position)
        batch.offsets[index] = offset
    else:
        offset = _row(batch, index) * batch.output_pitch
    if batch.input_lengths is not NULL and batch.input_lengths[index] != batch.page_size:
        length = -EINVAL
    else:
        length = compress_page(
            coder, page, batch.is_private, batch.outputs + offset, batch.capacity
        )
        bytes_in[0] += batch.page_size
    if length < 0:
        if length == ABORT:
            return ABORT
        batch.dlens[index] = 0
        batch.errors[index] = <int32_t>length
        length = 0
    else:
        if batch.hashes is not NULL:
            batch.hashes[index] = hash_output(coder, batch.outputs + offset, length)
        batch.errors[index] = 0
        batch.dlens[index] = <uint32_t>length
        bytes_out[0] += length
    if batch.packed:
        packer.offset = offset + length
        packer.position = position + 1
    return length


cdef inline uint64_t _next_packed(
    BatchState *batch, Packer *packer, uint32_t position
) noexcept nogil:
    """Return the offset of an output: the end of the previous one, if this lane packed that."""
    if packer.position == position and position:
        return packer.offset
    return <uint64_t>position * batch.capacity


cdef inline int64_t _restore(
    BatchState *batch, CoderState *coder, uint32_t position,
    uint64_t *bytes_in, uint64_t *bytes_out,
) noexcept nogil:
    cdef uint32_t index = position if batch.order is NULL else batch.order[position]
    cdef const uint8_t *source
    cdef uint8_t *page
    cdef size_t length = batch.input_lengths[index]
    cdef int64_t restored
    if batch.input_table is NULL:
        source = batch.inputs + index * batch.input_pitch
    else:
        source = batch.input_table[index]
    page = _page_of(batch, index)
    if length > 2 * batch.page_size:  # no page compresses to more
        restored = -EBADMSG
    else:
        restored = restore_page(coder, source, length, page, batch.may_spoil)
        bytes_in[0] += length
    if restored == ABORT:
        return ABORT
    if restored < 0:
        batch.dlens[index] = 0
        batch.errors[index] = <int32_t>restored
    else:
        batch.errors[index] = 0
        batch.dlens[index] = <uint32_t>restored
        bytes_out[0] += restored
    return restored


cdef inline uint8_t *_page_of(BatchState *batch, uint32_t index) noexcept nogil:
    if batch.output_table is NULL:
        return batch.outputs + _row(batch, index) * batch.output_pitch
    return batch.output_table[index]


cdef inline uint64_t _row(BatchState *batch, uint32_t index) noexcept nogil:
    """Return the row of an output. The table is shared memory, so its values are bounded again."""
    if batch.row_table is NULL:
        return index
    return min((<const volatile uint32_t *>batch.row_table)[index], batch.row_limit)


cdef void fail_pages(BatchState *batch, uint32_t first, uint32_t end, int code) noexcept nogil:
    """Set the errors of the pages at positions [first, end) to `code`, and their lengths to 0."""
    cdef uint32_t position, index
    for position in range(first, end):
        index = position if batch.order is NULL else batch.order[position]
        batch.dlens[index] = 0
        batch.errors[index] = code


cdef bint accept_pages(
    BatchState *batch, Packer *packer, uint32_t first, uint32_t count,
    const uint8_t *memory, size_t room, size_t pitch,
    const uint32_t *dlens, const int32_t *errors, const uint64_t *hashes, const CoderState *coder,
    uint64_t *sum,
) noexcept nogil:
    """Take the results of the pages at positions [first, first + count) from another process.

    The outputs lie in `memory`, which has `room` bytes, one after another or `pitch` bytes apart.
    If `memory` is NULL, they lie at their destinations already. Every value is read once, and
    checked before it is used. `sum` is extended by the values read. Return False if a value is
    impossible; the caller then does the pages again.
    """
    cdef uint32_t number, index
    cdef uint64_t offset
    cdef size_t at = 0, length
    cdef int32_t code
    cdef uint8_t *target
    for number in range(count):
        index = first + number if batch.order is NULL else batch.order[first + number]
        length = (<const volatile uint32_t *>dlens)[number]
        code = (<const volatile int32_t *>errors)[number]
        sum[0] = bz_fold(sum[0], <uint64_t>length << 32 | <uint32_t>code)
        if code:
            if code > 0 or code < -4095 or length:
                return False
            batch.dlens[index] = 0
            batch.errors[index] = code
            if batch.packed:
                batch.offsets[index] = <uint64_t>(first + number) * batch.capacity
            at += pitch
            continue
        if batch.operation == DECOMPRESS:
            if length != batch.page_size:
                return False
            target = _page_of(batch, index)
        else:
            if length == 0 or length > batch.capacity:
                return False
            if batch.packed:
                offset = _next_packed(batch, packer, first + number)
                batch.offsets[index] = offset
                packer.offset = offset + length
                packer.position = first + number + 1
            else:
                offset = index * batch.output_pitch
            target = batch.outputs + offset
        if memory is not NULL:
            if at + length > room:
                return False
            memcpy(target, memory + at, length)
            at += pitch if pitch else length
        if hashes is not NULL and hash_output(coder, target, length) != hashes[number]:
            return False
        batch.errors[index] = 0
        batch.dlens[index] = <uint32_t>length
    return True


cdef class Pointers:
    """The core's view of one batch. See the stub."""

    def __cinit__(self, int operation, size_t page_size):
        self.state.operation = operation
        self.state.page_size = page_size
        self.wants_order = operation == DECOMPRESS

    def __dealloc__(self):
        self._release_inputs()
        self._release_outputs()
        free(self.order)

    def set_results(self, dlens not None, errors not None, uint32_t count) -> None:
        """Set the arrays for lengths (uint32) and errors (int32) of `count` pages."""
        self.refuse_under_way()
        self.dlens, self.errors = dlens, errors
        self.state.count = count
        self.state.dlens = <uint32_t *>_address(dlens, True)
        self.state.errors = <int32_t *>_address(errors, True)

    # Inputs.

    cdef void _release_inputs(self) noexcept:
        cdef Py_ssize_t at
        for at in range(self.input_count):
            PyBuffer_Release(&self.input_views[at])
        self.input_count = 0
        free(self.input_views)
        free(self.state.input_table)
        self.input_views = NULL
        self.state.input_table = NULL

    def set_inputs(self, array, size_t pitch, lengths=None) -> None:
        """Set the inputs: they lie `pitch` bytes apart in an array.

        `lengths` is a uint32 array; None: each input is a page.
        """
        cdef const void *address = _address(array, False)
        self.refuse_under_way()
        self._release_inputs()
        self.input_owner = array
        self.state.inputs = <const uint8_t *>address
        self.state.input_pitch = pitch
        self.state.is_private = False
        self.slens = lengths
        self.state.input_lengths = NULL
        if lengths is not None:
            self.state.input_lengths = <const uint32_t *>_address(lengths, False)

    def set_input_list(self, list buffers, lengths) -> int:
        """Set the inputs to a list of buffers, and write their lengths to a uint32 array.

        Return −1. If a buffer is not contiguous, return the index of the first such one and keep
        the previous inputs. Lengths above 4 GiB are written as 2³² − 1.
        """
        self.refuse_under_way()
        cdef Py_ssize_t count = len(buffers), at = 0
        cdef Py_buffer *views = <Py_buffer *>bz_calloc(count, sizeof(Py_buffer))
        cdef const uint8_t **table = <const uint8_t **>bz_calloc(count, sizeof(uint8_t *))
        cdef uint32_t *sizes = <uint32_t *>_address(lengths, True)
        cdef bint is_private = True, failed = False
        if views is NULL or table is NULL:
            free(views)
            free(table)
            raise MemoryError("no memory for the addresses of a batch")
        for at in range(count):
            buffer = buffers[at]
            try:
                PyObject_GetBuffer(buffer, &views[at], PyBUF_SIMPLE)
            except (TypeError, ValueError, BufferError):
                failed = True
                break
            is_private = is_private and PyBytes_CheckExact(buffer)
            table[at] = <const uint8_t *>views[at].buf
            sizes[at] = <uint32_t>min(views[at].len, 0xFFFFFFFF)
        if failed:
            while at > 0:
                at -= 1
                PyBuffer_Release(&views[at])
            free(views)
            free(table)
            for at in range(count):
                try:
                    memoryview(buffers[at]).cast("B")
                except (TypeError, ValueError, BufferError):
                    return at
            return 0
        self._release_inputs()
        self.input_owner = None
        self.input_views, self.input_count = views, count
        self.state.input_table = table
        self.state.inputs = NULL
        self.state.input_pitch = 0
        self.slens = lengths
        self.state.input_lengths = sizes
        self.state.is_private = is_private
        return -1

    cdef int make_tables(self, uint32_t count, lengths, bint for_outputs) except -1:
        """Allocate tables for the addresses of `count` inputs and, if asked, of their outputs.

        `set_row` fills the tables. `lengths` is a uint32 array for the inputs' lengths; None: each
        input is a page. The caller keeps the memory at those addresses valid.
        """
        self.refuse_under_way()
        cdef const uint8_t **table = <const uint8_t **>bz_calloc(count + 1, sizeof(uint8_t *))
        cdef uint8_t **outputs = <uint8_t **>bz_calloc(count + 1, sizeof(uint8_t *))
        if table is NULL or outputs is NULL:
            free(table)
            free(outputs)
            raise MemoryError("no memory for the addresses of a batch")
        self._release_inputs()
        self.input_owner = None
        self.slens = lengths
        self.state.input_table = table
        self.state.inputs = NULL
        self.state.input_pitch = 0
        self.state.input_lengths = NULL if lengths is None else <uint32_t *>_address(lengths, True)
        self.state.is_private = False
        self.state.count = count
        if not for_outputs:
            free(outputs)
            return 0
        self._release_outputs()
        self.state.output_table = outputs
        self.output_owner = None
        self.state.outputs = NULL
        self.state.capacity = self.state.page_size
        self.state.may_spoil = True
        return 0

    cdef void set_row(
        self, uint32_t position, const uint8_t *data, uint32_t length, uint8_t *output
    ) noexcept:
        """Set the address of one input and, unless `output` is NULL, of its output."""
        self.state.input_table[position] = data
        if self.state.input_lengths is not NULL:
            (<uint32_t *>self.state.input_lengths)[position] = length
        if output is not NULL:
            self.state.output_table[position] = output

    def refill(self, array, uint32_t most) -> int:
        """Replace the pages by an array (n, page_size) of bytes, with 1 ≤ n ≤ `most`.

        Return n. If the array has another form or overlaps the outputs, change nothing and return
        −1.
        """
        cdef Py_buffer view
        cdef const uint8_t *outputs = self.state.outputs
        cdef size_t room = most * self.state.output_pitch
        self.refuse_under_way()
        try:
            PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
        except (TypeError, ValueError, BufferError):
            return -1
        cdef Py_ssize_t count = -1
        if view.ndim == 2 and view.itemsize == 1 and <size_t>view.shape[1] == self.state.page_size:
            count = view.shape[0]
            if outputs < <const uint8_t *>view.buf + view.len and (
                <const uint8_t *>view.buf < outputs + room
            ):
                count = -1
        if not 0 < count <= <Py_ssize_t>most:
            PyBuffer_Release(&view)
            return -1
        self._release_inputs()
        self.input_owner = array
        self.state.inputs = <const uint8_t *>view.buf
        self.state.input_pitch = self.state.page_size
        self.state.input_lengths = NULL
        self.state.is_private = False
        self.state.count = <uint32_t>count
        PyBuffer_Release(&view)
        return count

    def drop_inputs(self) -> None:
        """Release the inputs."""
        self.refuse_under_way()
        self._release_inputs()
        self.input_owner = None
        self.state.inputs = NULL
        self.state.count = 0

    # Outputs.

    cdef void _release_outputs(self) noexcept:
        cdef Py_ssize_t at
        for at in range(self.output_count):
            PyBuffer_Release(&self.output_views[at])
        self.output_count = 0
        free(self.output_views)
        free(self.state.output_table)
        self.output_views = NULL
        self.state.output_table = NULL

    def set_outputs(self, array, size_t pitch, size_t capacity, *, bint may_spoil=False) -> None:
        """Set the outputs: they lie `pitch` bytes apart, each with `capacity` bytes of room."""
        self.refuse_under_way()
        self._release_outputs()
        self.output_owner = array
        self.state.outputs = <uint8_t *>_address(array, True)
        self.state.output_pitch = pitch
        self.state.capacity = capacity
        self.state.may_spoil = may_spoil
        self.state.packed = False

    def set_packed_outputs(self, array, offsets, size_t capacity) -> None:
        """Set packed outputs. The run writes the offset of each to a uint64 array."""
        self.set_outputs(array, 0, capacity)
        self.offsets = offsets
        self.state.offsets = <uint64_t *>_address(offsets, True)
        self.state.packed = True

    def set_output_list(self, list buffers) -> None:
        """Set the outputs to buffers of a page each. The caller has checked them."""
        cdef Py_ssize_t count = len(buffers), at
        self.refuse_under_way()
        self._release_outputs()
        self.output_views = <Py_buffer *>bz_calloc(count, sizeof(Py_buffer))
        self.state.output_table = <uint8_t **>bz_calloc(count, sizeof(uint8_t *))
        if self.output_views is NULL or self.state.output_table is NULL:
            raise MemoryError("no memory for the addresses of a batch")
        for at in range(count):
            PyObject_GetBuffer(buffers[at], &self.output_views[at], PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.output_count = at + 1
            self.state.output_table[at] = <uint8_t *>self.output_views[at].buf
        self.output_owner = None
        self.state.outputs = NULL
        self.state.capacity = self.state.page_size
        self.state.may_spoil = False

    # Running.

    cdef int refuse_under_way(self) except -1:
        """Raise BadBatch during a run, because lanes are using the memory."""
        if self.under_way:
            raise BadBatch("this batch is under way: wait for its request first")
        return 0

    cdef int begin(self) except -1:
        """Clear the results of an earlier run. Nothing can be set from here until `finish`."""
        self.reset()
        self.under_way = True
        return 0

    cdef void finish(self) noexcept:
        """Count the pages that failed. From here everything can be set again."""
        self.failed = self.count_failed()
        self.under_way = False

    cdef void sort(self) except *:
        """Put the largest sources first: a counting sort with 256 classes of length."""
        cdef uint32_t counts[BUCKETS]
        cdef uint32_t count = self.state.count, index, bucket, start = 0
        cdef size_t limit = 2 * self.state.page_size
        if not self.wants_order or count < 3:
            return
        free(self.order)
        self.order = <uint32_t *>bz_malloc(count * sizeof(uint32_t))
        if self.order is NULL:
            raise MemoryError("no memory for the order of a batch")
        memset(counts, 0, sizeof(counts))
        for index in range(count):
            counts[_bucket(self.state.input_lengths[index], limit)] += 1
        for bucket in range(BUCKETS):
            start += counts[bucket]
            counts[bucket] = start - counts[bucket]
        for index in range(count):
            bucket = _bucket(self.state.input_lengths[index], limit)
            self.order[counts[bucket]] = index
            counts[bucket] += 1
        self.state.order = self.order

    cdef uint32_t count_failed(self) noexcept:
        cdef uint32_t index, failed = 0
        for index in range(self.state.count):
            failed += self.state.errors[index] != 0
        return failed

    cpdef uint32_t run(self, Coders coders, int64_t deadline=-1) except? 0xFFFFFFFF:
        """Run the batch in the calling thread. Return the number of failed pages.

        Pages that are not done at `deadline`, in nanoseconds of the monotonic clock, get
        -ETIMEDOUT; −1: there is no deadline. Signal handlers run every 50 ms. An exception of a
        handler ends the run.
        """
        cdef Coder coder
        cdef Packer packer
        cdef uint32_t done = 0
        if coders is None:
            raise TypeError("coders must be Coders, not None")
        self.begin()
        coder = coders.take()
        packer.position = 0
        packer.offset = 0
        try:
            while done < self.state.count:
                with nogil:
                    done = _run_alone(&self.state, &coder.state, &packer, done, deadline)
                if done < self.state.count:
                    PyErr_CheckSignals()
            raise_callback_error(&coder.state)
            coders.tallies[self.state.operation].batches += 1
        finally:
            coders.give(coder)
            self.finish()
        if self.failed:
            coders.count_errors(self.state.operation, self.state.errors, self.state.count)
        return self.failed

    def accept(self, indices, memory, results) -> bool:
        """Take the results of pages that were done elsewhere. Return False if they are impossible.

        `indices`  uint32 array: the indices of the pages.
        `memory`   bytes: their outputs, one after another; a page each if they were restored.
        `results`  int32 array: the length of each output, or its negative errno.
        """
        cdef const uint32_t *order = <const uint32_t *>_address(indices, False)
        cdef const int32_t *outcome = <const int32_t *>_address(results, False)
        cdef uint32_t count = len(indices), number, dlen
        cdef int32_t error
        cdef Py_buffer view
        cdef BatchState state = self.state
        cdef Packer packer
        cdef size_t at = 0, pitch = state.page_size if state.operation == DECOMPRESS else 0
        cdef uint64_t sum = 0
        cdef bint good = True
        PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
        for number in range(count):
            if order[number] >= state.count:
                good = False
                break
            # A packed output goes to index × capacity: pages done elsewhere have no order.
            packer.position = 0
            state.order = NULL
            error = min(outcome[number], 0)
            dlen = 0
            if outcome[number] > 0:
                dlen = outcome[number]
            elif outcome[number] == 0 and state.operation == DECOMPRESS:
                dlen = state.page_size
            if not accept_pages(
                &state, &packer, order[number], 1, <const uint8_t *>view.buf + at,
                view.len - at if <size_t>view.len > at else 0, pitch, &dlen, &error, NULL, NULL,
                &sum,
            ):
                good = False
                break
            at += pitch if pitch else dlen
        PyBuffer_Release(&view)
        return good

    def reset(self) -> None:
        """Clear the results of an earlier run."""
        self.refuse_under_way()
        self.runs += 1
        memset(self.state.dlens, 0, self.state.count * sizeof(uint32_t))
        memset(self.state.errors, 0, self.state.count * sizeof(int32_t))
        self.state.order = NULL

    def fail_undone(self, int code) -> None:
        """Set the error of every page without a result to the negative errno `code`."""
        cdef uint32_t index
        for index in range(self.state.count):
            if not self.state.dlens[index] and not self.state.errors[index]:
                self.state.errors[index] = code


cdef class Blocks:
    """The arrays of this process that lie in the arena shared with an engine's workers.

    Every call is one step under the GIL.
    """

    def __dealloc__(self):
        free(self.items)

    def __len__(self) -> int:
        return self.count

    def add(self, array, uint64_t offset) -> None:
        """Add a contiguous array that begins `offset` bytes into the arena."""
        cdef Py_buffer view
        cdef Block *grown
        if self.count == self.room:
            grown = <Block *>bz_realloc(self.items, (2 * self.room + 8) * sizeof(Block))
            if grown is NULL:
                raise MemoryError("no memory to note an array of the arena")
            self.items = grown
            self.room = 2 * self.room + 8
        PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
        self.items[self.count].start = <const uint8_t *>view.buf
        self.items[self.count].end = <const uint8_t *>view.buf + view.len
        self.items[self.count].offset = offset
        PyBuffer_Release(&view)
        self.count += 1

    def remove(self, uint64_t offset) -> None:
        """Remove the array at an offset, before its memory is freed."""
        cdef uint32_t at
        for at in range(self.count):
            if self.items[at].offset == offset:
                self.count -= 1
                self.items[at] = self.items[self.count]
                return

    def locate(self, array) -> int:
        """Return the offset of an array in the arena, or −1 if it does not lie there."""
        cdef Py_buffer view
        cdef int64_t found
        PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
        found = self.find(<const uint8_t *>view.buf, view.len)
        PyBuffer_Release(&view)
        return found

    cdef int64_t find(self, const uint8_t *start, uint64_t length) noexcept:
        cdef uint32_t at
        for at in range(self.count):
            if self.items[at].start <= start and start + length <= self.items[at].end:
                return self.items[at].offset + (start - self.items[at].start)
        return -1

    cdef int64_t inputs_of(self, Pointers batch) noexcept:
        """Return the offset of a batch's pages in the arena, or −1 if its inputs must be copied."""
        cdef BatchState *state = &batch.state
        if not self.count or state.operation != COMPRESS or state.input_table is not NULL:
            return -1
        return self.find(state.inputs, state.count * state.input_pitch)

    cdef int64_t outputs_of(self, Pointers batch) noexcept:
        """Return the offset of a batch's outputs in the arena, or −1."""
        cdef BatchState *state = &batch.state
        if not self.count or state.packed or state.output_table is not NULL:
            return -1
        return self.find(
            state.outputs, (state.count - 1) * state.output_pitch + state.capacity
        )


cdef inline uint32_t _bucket(uint32_t length, size_t limit) noexcept nogil:
    return BUCKETS - 1 - <uint32_t>(min(<size_t>length, limit - 1) * BUCKETS // limit)


cdef uint32_t _run_alone(
    BatchState *batch, CoderState *coder, Packer *packer, uint32_t done, int64_t deadline
) noexcept nogil:
    """Do pages from position `done` on, for up to 50 ms. Return the position of the next one."""
    cdef uint32_t end
    cdef uint32_t piece = max(1, <uint32_t>(LOOK_BYTES // batch.page_size))
    cdef int64_t now = bz_now_ns()
    cdef int64_t until = now + MOMENT_NS
    while done < batch.count and now < until:
        if deadline >= 0 and now >= deadline:
            fail_pages(batch, done, batch.count, -ETIMEDOUT)
            return batch.count
        end = min(done + piece, batch.count)
        if run_pages(batch, coder, packer, done, end) == ABORT:
            return batch.count
        done = end
        now = bz_now_ns()
    return done


cdef void *_address(buffer, bint writable) except? NULL:
    """Return the address of a contiguous buffer. The caller keeps a reference to its owner."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
    cdef void *address = view.buf
    PyBuffer_Release(&view)
    return address
