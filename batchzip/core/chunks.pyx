"""Chunks: the stored form of a value that is too long to be compressed in one call.

    part 0                      │ part 1 …       the value: one buffer, or several
    chunk │ chunk │ rest of it  │ chunk │ …      128 KiB each, or a page if that is larger
      │ compress, in this thread and in lanes that are threads
      ▼
    head │ gap, chunk │ gap, chunk │ …           the stored form, in slices or in one object

The head tells how to read the rest:

    chunk size, number of parts │ length of each part │ length and checksum of each stored chunk

All fields have 32 bits. The highest bit of a chunk's length says that the chunk did not shrink and
is stored raw. The gap of four bytes gives a zstd frame back its magic number (coder.pyx).

Chunks compress better and cost less per byte than pages do, which are streams of 4 KiB. Chunks of
twice this size gain one to three per cent, and lanes could share fewer values. See
docs/decisions/mapping.md.

Checksums. Each chunk has its own, so it is verified by the thread that restores it. The checksum of
the value's entry covers the head, and thereby all chunks and their order. If the form takes up to a
page, it is one object, and its checksum covers all of it, as that of every object does.

Rejected:

* One call for the whole value. zstd would find more repetitions. A hundred megabytes would take a
  coder with three hundred, and one thread would do all of it.
* Restoring chunk by chunk from the pool, with the mutex released in between. The value might be
  replaced between two chunks, and a reader would have to start again.

A Chunked is private memory and does not change once it is made. A ChunkWork belongs to one thread.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADMSG, ENOMEM
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from batchzip.core.batch cimport Pointers, Value
from batchzip.core.coder cimport (
    COMPRESS, DECOMPRESS, Coder, Coders, CoderState, Stored, most_value,
)
from batchzip.core.gather cimport checksum_of
from batchzip.core.memory cimport bz_calloc, bz_realloc

import numpy as np

from batchzip.core.division import DONE as _DONE
from batchzip.errors import BadArgument, PageError

cdef enum:
    CHUNK_BYTES = 128 << 10
    TOGETHER = 16  # minimum number of chunks per batch; between two batches, signals are handled
    PER_LANE = 4  # chunks per lane and batch
    GAP = 4  # bytes in front of each chunk
    RAW = <uint32_t>1 << 31

MOST_CHUNKED = 0xF000_0000
"""The longest value, in bytes, that is stored in chunks. The rest of 4 GiB is for heads and gaps."""


cdef inline uint32_t _get(const uint8_t *data, size_t number) noexcept nogil:
    cdef uint32_t found
    memcpy(&found, data + 4 * number, 4)
    return found


cdef inline void _set(uint8_t *data, size_t number, uint32_t word) noexcept nogil:
    memcpy(data + 4 * number, &word, 4)


cdef inline size_t _chunk_size(size_t page_size) noexcept nogil:
    return max(page_size, <size_t>CHUNK_BYTES)


cdef size_t _head_length(const uint8_t *data, size_t length) noexcept nogil:
    """Return the length of the head in bytes. Return 0 if `data` has no complete head."""
    cdef uint64_t head, part
    cdef uint32_t size
    if length < 8:
        return 0
    size = _get(data, 0)
    head = 8 + 4 * <uint64_t>_get(data, 1)
    if not size or head > length:
        return 0
    for part in range(_get(data, 1)):
        head += 8 * ((<uint64_t>_get(data, 2 + part) + size - 1) // size)
        if head > length:
            return 0
    return head


cdef size_t _covered(const uint8_t *data, size_t length, size_t page_size) noexcept nogil:
    """Return the number of bytes that the checksum of the value's entry covers."""
    return length if length <= page_size else _head_length(data, length)


@cython.final
cdef class Chunked:
    """The stored form of a value in chunks. See the stub."""

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, size_t room) except -1:
        """Make room for the first `room` bytes. Keep what is there."""
        cdef uint8_t *data
        if room > self.room:
            data = <uint8_t *>bz_realloc(self.data, room)
            if data is NULL:
                raise MemoryError("no memory for a value in chunks")
            self.data, self.room = data, room
        return 0


@cython.final
cdef class _Batch(Pointers):
    """Chunks that are compressed or restored together, partly by lanes."""

    cdef Value *values
    cdef uint32_t room
    cdef ChunkWork work
    cdef list buffers  # what the addresses in `values` point into, apart from `form`
    cdef Chunked form

    cdef int begin_with(self, ChunkWork work, list buffers, Chunked form) except -1:
        cdef size_t at, lanes = len(work.rings)
        cdef uint32_t room = <uint32_t>max(<size_t>TOGETHER, PER_LANE * lanes)
        cdef uint8_t *tables = <uint8_t *>bz_calloc(
            1, room * (sizeof(Value) + sizeof(uint32_t) + sizeof(int32_t)) + lanes * sizeof(void *)
        )
        if tables is NULL:
            raise MemoryError("no memory for a batch of chunks")
        self.room = room
        self.work, self.buffers, self.form = work, buffers, form
        self.wants_order = False
        self.values = self.state.values = <Value *>tables
        self.state.coders = <CoderState **>(self.values + room)
        self.state.dlens = <uint32_t *>(self.state.coders + lanes)
        self.state.errors = <int32_t *>(self.state.dlens + room)
        self.state.number = work.number
        for at in range(lanes):
            self.state.coders[at] = &(<Coder>work.lane_coders[at]).state
        return 0

    def __dealloc__(self):
        free(self.values)

    cdef Value *add(self) noexcept:
        """Return the next chunk, which the caller fills in."""
        self.state.count += 1
        return &self.values[self.state.count - 1]

    cdef int do_chunks(self) except 1:
        """Do all chunks. Handle signals. Return 0, or the negative errno of one that failed."""
        cdef uint32_t at
        cdef int code = 0
        if self.state.count:
            job = self.work.divider.execute(self, self.work.rings)
            while job is not None and job.run() != _DONE:
                PyErr_CheckSignals()
        PyErr_CheckSignals()
        for at in range(self.state.count):
            code = code or self.values[at].code or self.state.errors[at]
        return code

    cdef size_t compress(self, size_t used, size_t *row) except 0:
        """Compress all chunks and append them to the form, of `used` bytes. Return its new length.

        `row` is the number of the first chunk's word in the head.
        """
        cdef Chunked form = self.form
        cdef size_t place = used
        cdef uint32_t at
        cdef int code
        cdef Stored *stored
        for at in range(self.state.count):
            place += GAP + self.values[at].stored.raw_length
        if place > form.room:
            form.reserve(max(place, min(2 * form.room, place + form.stored.raw_length)))
        place = used
        for at in range(self.state.count):
            self.values[at].output = form.data + place + GAP
            place += GAP + self.values[at].stored.raw_length
        code = self.do_chunks()
        if code == -ENOMEM:
            raise MemoryError("no memory to compress a value in chunks")
        if code:
            raise PageError(0, code)
        for at in range(self.state.count):
            stored = &self.values[at].stored
            memset(form.data + used, 0, GAP)
            memmove(form.data + used + GAP, stored.data, stored.length)
            used += GAP + stored.length
            _set(form.data, row[0], stored.length | (0 if stored.codec else <uint32_t>RAW))
            _set(form.data, row[0] + 1, stored.checksum)
            row[0] += 2
            form.stored.codec = max(form.stored.codec, stored.codec)
        self.state.count = 0
        return used

    cdef int restore(self) except 1:
        """Restore all chunks. Return 0, or the negative errno of one that is damaged."""
        cdef int code = self.do_chunks()
        self.state.count = 0
        return code


@cython.final
cdef class ChunkWork:
    """What one value is compressed or restored with. See the stub."""

    def __init__(
        self, Coders coders not None, int number, divider not None, tuple rings not None,
        list lane_coders, size_t page_size,
    ):
        self.coders, self.number, self.divider = coders, number, divider
        self.rings, self.lane_coders = rings, lane_coders
        self.page_size = page_size

    cdef Chunked compress(self, list parts):
        """Compress a value. Raise MemoryError, or PageError if a chunk cannot be compressed."""
        cdef Chunked form = Chunked.__new__(Chunked)
        cdef _Batch batch = _Batch(COMPRESS, self.page_size)
        cdef size_t size = _chunk_size(self.page_size), total = 0, used, row, at, length
        cdef list held = [memoryview(part) for part in parts]
        cdef const uint8_t *data
        cdef Value *value
        cdef Py_buffer buffer
        cdef uint32_t chunks = 0, number
        for part in held:
            total += len(part)
            chunks += (len(part) + size - 1) // size
        if total > MOST_CHUNKED or len(held) > MOST_CHUNKED // 16:
            raise BadArgument(f"a value of {total} bytes in {len(held)} parts is too large")
        if total <= most_value(self.page_size):  # its length would not tell that it is in chunks
            raise BadArgument(f"a value of {total} bytes is too short for chunks")
        row = 2 + len(held)
        used = 4 * (row + 2 * chunks)
        form.reserve(used)
        form.coders = self.coders
        form.stored.raw_length = <uint32_t>total
        _set(form.data, 0, <uint32_t>size)
        _set(form.data, 1, <uint32_t>len(held))
        batch.begin_with(self, held, form)
        for number in range(<uint32_t>len(held)):
            PyObject_GetBuffer(held[number], &buffer, PyBUF_SIMPLE)
            data, length = <const uint8_t *>buffer.buf, buffer.len
            PyBuffer_Release(&buffer)  # the memoryview still holds it
            _set(form.data, 2 + number, <uint32_t>length)
            for at in range(0, length, size):
                if batch.state.count == batch.room:
                    used = batch.compress(used, &row)
                value = batch.add()
                value.data = data + at
                value.stored.raw_length = <uint32_t>min(size, length - at)
        used = batch.compress(used, &row)
        form.stored.data = form.data
        form.stored.length = <uint32_t>used
        form.stored.checksum = checksum_of(
            form.data, _covered(form.data, used, self.page_size), form.stored.codec
        )
        return form

    cdef object restore(self, Chunked form):
        """Restore a value: bytes if it has one part, otherwise a list of writable memoryviews.

        Return the negative errno if the form is damaged.
        """
        cdef const uint8_t *data = form.data
        cdef size_t length = form.stored.length, head = _head_length(data, length), row, used, size
        cdef size_t at
        cdef uint64_t total = 0
        cdef uint32_t number, stored
        cdef uint8_t *output
        cdef Value *value
        cdef Py_buffer buffer
        cdef list rooms
        cdef _Batch batch = _Batch(DECOMPRESS, self.page_size)
        cdef int code
        if not head or form.stored.checksum != checksum_of(
            data, _covered(data, length, self.page_size), form.stored.codec
        ):
            return -EBADMSG
        size = _get(data, 0)
        for number in range(_get(data, 1)):
            total += _get(data, 2 + number)
        if size > _chunk_size(self.page_size) or total != form.stored.raw_length:
            return -EBADMSG
        if _get(data, 1) == 1:
            rooms = [PyBytes_FromStringAndSize(NULL, total)]
        else:
            rooms = [np.empty(_get(data, 2 + number), np.uint8) for number in range(_get(data, 1))]
        batch.begin_with(self, rooms, form)
        row, used = 2 + len(rooms), head
        for number in range(<uint32_t>len(rooms)):
            if type(rooms[number]) is bytes:
                output = <uint8_t *>PyBytes_AS_STRING(rooms[number])
            else:
                PyObject_GetBuffer(rooms[number], &buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
                output = <uint8_t *>buffer.buf
                PyBuffer_Release(&buffer)  # `rooms` keeps the array
            for at in range(0, _get(data, 2 + number), size):
                if batch.state.count == batch.room:
                    code = batch.restore()
                    if code:
                        return code
                stored = _get(data, row)
                value = batch.add()
                value.stored.codec = 0 if stored & RAW else <uint8_t>self.number
                value.stored.length = stored & ~<uint32_t>RAW
                value.stored.checksum = _get(data, row + 1)
                value.stored.raw_length = <uint32_t>min(size, _get(data, 2 + number) - at)
                value.stored.data = data + used + GAP
                value.output = output + at
                used += GAP + value.stored.length
                row += 2
                if used > length:
                    return -EBADMSG
        code = batch.restore()
        if code or used != length:
            return code or -EBADMSG
        return rooms[0] if type(rooms[0]) is bytes else [room.data for room in rooms]
