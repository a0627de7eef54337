"""Coder: a codec with its buffers and contexts, which compresses and restores single pages.

    page ─▶ private copy ─▶ shuffle ─▶ codec ─▶ fits? ─▶ verify ─▶ destination, length
    source ─▶ codec ─▶ exactly a page? ─▶ unshuffle ─▶ page
    value of up to 64 KiB or a page: the same, in the coder's own buffers, which grow as needed

The codec is a C function of the wheel lz4 or zstandard if it is available (libraries.pyx). Any
other codec is a Python callable. The same code calls it back under the GIL, page by page.

The codec compresses a private copy of the page, because a page that changes during the call may be
compressed to bytes that no codec decodes. No more than its capacity is written to a destination,
whatever a codec returns: an output that may be too long is first made in a buffer of the coder.

Rejected: a coder per thread in thread-local storage. A free list under the GIL needs no bookkeeping
when threads end, and a signal handler or finalizer that compresses in the middle of another call
takes another coder.

Invariants
* A coder has one user at a time. Only that user writes its state. Anybody may read the tallies.
* A codec in Python runs with the GIL, and without any lock of the core.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.errno cimport EBADMSG, EINVAL, EIO, ENOMEM, ENOSPC
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy

from batchzip.core.libraries cimport (
    find_lz4, find_xxh3, find_zstd, zstd_compress_parts, zstd_make_cdict,
)
from batchzip.core.memory cimport bz_calloc, bz_malloc

from batchzip.errors import BadArgument, PageError

cdef extern from "native.h" nogil:
    """
    /* Move byte k of every element to row k, and back. The sign bit of a float is first rotated to
     * the lowest bit. There is one function per element size, so the compiler can vectorise it. */
    #define BZ_SHUFFLE(SIZE, WORD)                                                               \
        static void bz_shuffle##SIZE(const uint8_t *restrict page, uint8_t *restrict rows,       \
                                     size_t elements) {                                          \
            for (size_t k = 0; k < SIZE; k++)                                                    \
                for (size_t i = 0; i < elements; i++) rows[k * elements + i] = page[i * SIZE + k]; \
        }                                                                                        \
        static void bz_unshuffle##SIZE(const uint8_t *restrict rows, uint8_t *restrict page,     \
                                       size_t elements) {                                        \
            for (size_t i = 0; i < elements; i++)                                                \
                for (size_t k = 0; k < SIZE; k++) page[i * SIZE + k] = rows[k * elements + i];   \
        }                                                                                        \
        static void bz_shuffle_floats##SIZE(const uint8_t *restrict page,                        \
                                            uint8_t *restrict rows, size_t elements) {           \
            for (size_t k = 0; k < SIZE; k++)                                                    \
                for (size_t i = 0; i < elements; i++) {                                          \
                    WORD word;                                                                   \
                    memcpy(&word, page + i * SIZE, SIZE);                                        \
                    word = (WORD)(word << 1 | word >> (8 * SIZE - 1));                           \
                    rows[k * elements + i] = (uint8_t)(word >> 8 * k);                           \
                }                                                                                \
        }                                                                                        \
        static void bz_unshuffle_floats##SIZE(const uint8_t *restrict rows,                      \
                                              uint8_t *restrict page, size_t elements) {         \
            for (size_t i = 0; i < elements; i++) {                                              \
                WORD word = 0;                                                                   \
                for (size_t k = 0; k < SIZE; k++)                                                \
                    word |= (WORD)((WORD)rows[k * elements + i] << 8 * k);                       \
                word = (WORD)(word >> 1 | word << (8 * SIZE - 1));                               \
                memcpy(page + i * SIZE, &word, SIZE);                                            \
            }                                                                                    \
        }
    BZ_SHUFFLE(2, uint16_t)
    BZ_SHUFFLE(4, uint32_t)
    BZ_SHUFFLE(8, uint64_t)
    #define BZ_BY_SIZE(WHAT, FROM, TO)                                                           \
        if (element == 2) WHAT##2(FROM, TO, bytes / 2);                                          \
        else if (element == 4) WHAT##4(FROM, TO, bytes / 4);                                     \
        else WHAT##8(FROM, TO, bytes / 8)
    static void bz_shuffle(const uint8_t *page, uint8_t *rows, size_t bytes, size_t element,
                           int floats) {
        if (floats) { BZ_BY_SIZE(bz_shuffle_floats, page, rows); }
        else { BZ_BY_SIZE(bz_shuffle, page, rows); }
    }
    static void bz_unshuffle(const uint8_t *rows, uint8_t *page, size_t bytes, size_t element,
                             int floats) {
        if (floats) { BZ_BY_SIZE(bz_unshuffle_floats, rows, page); }
        else { BZ_BY_SIZE(bz_unshuffle, rows, page); }
    }
    /* A checksum for machines without xxhash's functions: FNV-1a over words. */
    static uint64_t bz_plain_hash(const uint8_t *data, size_t length) {
        uint64_t hash = 0xcbf29ce484222325u ^ length, word;
        for (; length >= 8; data += 8, length -= 8) {
            memcpy(&word, data, 8);
            hash = (hash ^ word) * 0x100000001b3u;
            hash ^= hash >> 29;
        }
        for (; length; data++, length--) hash = (hash ^ *data) * 0x100000001b3u;
        return hash ^ hash >> 32;
    }
    """
    void bz_shuffle(const uint8_t *, uint8_t *, size_t, size_t, bint)
    void bz_unshuffle(const uint8_t *, uint8_t *, size_t, size_t, bint)
    uint64_t bz_plain_hash(const uint8_t *, size_t)
    void bz_count(uint64_t *, uint64_t)
    uint64_t bz_read_figure(const uint64_t *)

cdef enum:
    CALLBACK, LZ4, LZ4HC, ZSTD

cdef dict _LIBRARIES = {"lz4": LZ4, "lz4hc": LZ4HC, "zstd": ZSTD}

cdef enum:
    MOST_PAGE_BYTES = 2 << 20  # the same limit as in batchzip.arguments.buffers
    MOST_VALUE_BYTES = 64 << 10  # restored in the calling thread, so it must take microseconds only

cdef enum:
    ZSTD_LEVEL = 100  # ZSTD_c_compressionLevel
    ZSTD_CONTENT_SIZE = 200  # ZSTD_c_contentSizeFlag
    ZSTD_DICTIONARY_ID = 202  # ZSTD_c_dictIDFlag
    ZSTD_HASH_LOG = 102  # ZSTD_c_hashLog
    ZSTD_MIN_MATCH = 105  # ZSTD_c_minMatch
    ZSTD_STRATEGY = 107  # ZSTD_c_strategy; 1: ZSTD_fast

cdef enum:
    SHORT_BYTES = 4096  # bytes that lz4 compresses, and lz4 and zstd restore, in a few microseconds
    LEAST_PLANE = 64  # bytes; this and the next as in batchzip.codecs.zstd
    DEFAULT_LEVEL = 3

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "batchzip stores words in the machine's byte order, which must be little-endian"
    #endif
    """
    enum: ZSTD_MAGIC "0xFD2FB528u"  # the first four bytes of a frame


# One page.

cdef int64_t compress_page(
    CoderState *coder, const uint8_t *page, bint is_private, uint8_t *dst, size_t capacity
) noexcept nogil:
    """Compress a page to at most `capacity` bytes. Return their number, a negative errno or ABORT.

    `is_private` means that nobody can change the page during the call.
    """
    cdef const uint8_t *source = page
    cdef uint8_t *room = dst
    cdef int64_t length
    if not is_private:
        memcpy(coder.page, page, coder.page_size)
        source = coder.page
    if coder.element_size:
        bz_shuffle(source, coder.shuffled, coder.page_size, coder.element_size, coder.floats)
        source = coder.shuffled
    if coder.library == CALLBACK:
        length = _call(coder, coder.compress_call, source, coder.page_size, dst, capacity, EIO)
    else:
        if capacity < coder.bound:
            room = coder.output
        length = _encode(coder, source, coder.page_size, room, coder.bound)
        if length > <int64_t>capacity:
            return -ENOSPC
    if length <= 0:
        return length
    if coder.verify and not _comes_back(coder, source, coder.page_size, room, length):
        return ABORT if coder.gave_up else -EIO
    if room != dst:
        memcpy(dst, room, length)
    return length


cdef int64_t _encode(
    CoderState *coder, const uint8_t *source, size_t size, uint8_t *room, size_t capacity
) noexcept nogil:
    cdef size_t produced
    if coder.library == ZSTD and coder.planes > 1 and size // coder.planes >= LEAST_PLANE:
        produced = zstd_compress_parts(
            coder.zstd, coder.compressing, room, capacity, source, size, coder.planes
        )
        return <int64_t>produced if produced else -EIO
    if coder.library == ZSTD:
        produced = coder.zstd.compress2(
            coder.compressing, room, capacity, source, size
        )
        return -EIO if coder.zstd.is_error(produced) else <int64_t>produced
    if coder.library == LZ4:
        produced = coder.lz4.compress_fast(
            coder.compressing, <const char *>source, <char *>room,
            <int>size, <int>capacity, coder.effort,
        )
    else:
        produced = coder.lz4.compress_hc(
            coder.compressing, <const char *>source, <char *>room,
            <int>size, <int>capacity, coder.effort,
        )
    return -EIO if <int>produced <= 0 else <int64_t>produced


cdef bint _comes_back(
    CoderState *coder, const uint8_t *source, size_t size, const uint8_t *output, size_t length
) noexcept nogil:
    cdef int64_t restored = _decode(coder, output, length, coder.restored, size)
    return restored > 0 and memcmp(coder.restored, source, size) == 0


cdef int64_t restore_page(
    CoderState *coder, const uint8_t *src, size_t length, uint8_t *dst, bint may_spoil
) noexcept nogil:
    """Restore exactly a page to `dst`. Return its length in bytes, a negative errno or ABORT.

    On failure, `dst` is unchanged unless `may_spoil` is set.
    """
    cdef uint8_t *room = dst
    cdef int64_t restored
    if coder.element_size:
        room = coder.shuffled
    elif not may_spoil:
        room = coder.page
    restored = _decode(coder, src, length, room, coder.page_size)
    if restored < 0:
        return restored
    if coder.element_size:
        bz_unshuffle(room, dst, coder.page_size, coder.element_size, coder.floats)
    elif room != dst:
        memcpy(dst, room, coder.page_size)
    return restored


cdef int64_t _decode(
    CoderState *coder, const uint8_t *src, size_t length, uint8_t *room, size_t size
) noexcept nogil:
    """Restore exactly `size` bytes to `room`. Return `size`, a negative errno or ABORT."""
    cdef size_t restored
    if coder.library == CALLBACK:
        restored = <size_t>_call(coder, coder.decompress_call, src, length, room, size, EBADMSG)
        if <int64_t>restored < 0 and <int64_t>restored != -ENOSPC:
            return <int64_t>restored
    elif length > 2 * max(coder.page_size, size) or not length:
        return -EBADMSG
    elif coder.library == ZSTD:
        # The frame must declare this size, and nothing may follow it.
        if coder.zstd.content_size(src, length) != size:
            return -EBADMSG
        if coder.zstd.compressed_size(src, length) != length:
            return -EBADMSG
        if coder.ddict is NULL:
            restored = coder.zstd.decompress_dctx(coder.restoring, room, size, src, length)
        else:
            restored = coder.zstd.decompress_with_ddict(
                coder.restoring, room, size, src, length, coder.ddict
            )
    else:
        restored = <size_t>coder.lz4.decompress(
            <const char *>src, <char *>room, <int>length, <int>size
        )
    return <int64_t>size if restored == size else -EBADMSG


# One value.

cdef size_t most_value(size_t page_size) noexcept nogil:
    """Return the length limit of a value that is compressed in one call, in bytes."""
    return max(page_size, <size_t>MOST_VALUE_BYTES)


cdef int make_room(CoderState *coder, size_t size) noexcept nogil:
    """Grow the coder's buffers for a value of `size` bytes. Return 0 or −ENOMEM.

    The contents of buffers that grow are lost.
    """
    cdef size_t room = coder.room
    if size <= room:
        return 0
    while room < size:
        room *= 2
    return _make_buffers(coder, room)


cdef int _make_buffers(CoderState *coder, size_t room) noexcept nogil:
    # 64 bytes more, because a stored value has four bytes of room in front of it.
    cdef size_t output_room = max(2 * coder.page_size, _bound(coder, room)) + 64
    cdef uint8_t *made = <uint8_t *>bz_malloc(3 * room + output_room)
    if made is NULL:
        return -ENOMEM
    free(coder.page)
    coder.page = made
    coder.shuffled = made + room
    coder.restored = made + 2 * room
    coder.output = made + 3 * room
    coder.room = room
    coder.output_room = output_room
    return 0


cdef size_t _bound(const CoderState *coder, size_t size) noexcept nogil:
    """Return the upper bound of a compressed value in bytes; 2 × `size` if it is unknown."""
    if coder.library == CALLBACK:
        return 2 * size
    if coder.library == ZSTD:
        return coder.zstd.compress_bound(size)
    return size + size // 255 + 16  # LZ4_COMPRESSBOUND


cdef int64_t compress_value(
    CoderState *coder, const uint8_t *value, size_t size, const uint8_t **output
) noexcept nogil:
    """Compress a value to the coder's own memory, at `output`. Return as `compress_page` does.

    The caller has called `make_room`. The first four bytes of a zstd frame are always the same, and
    are left out. A codec in Python takes at most a page. A longer value is only copied to
    `coder.page`, and 0 is returned.
    """
    cdef const uint8_t *source = coder.page
    cdef int64_t length
    memcpy(coder.page, value, size)
    if coder.library == CALLBACK and size > coder.page_size:
        return 0
    if coder.element_size:
        _shuffle_value(coder, size)
        source = coder.shuffled
    if coder.library == CALLBACK:
        length = _call(
            coder, coder.compress_call, source, size, coder.output, 2 * coder.page_size, EIO
        )
    else:
        length = _encode(coder, source, size, coder.output, coder.output_room)
    if length <= 0:
        return length
    if coder.verify and not _comes_back(coder, source, size, coder.output, length):
        return ABORT if coder.gave_up else -EIO
    output[0] = coder.output
    if coder.library == ZSTD and length > 4:
        output[0] += 4
        length -= 4
    return length


cdef void _shuffle_value(CoderState *coder, size_t size) noexcept nogil:
    """Shuffle the whole elements of the coder's page. Copy the bytes after them."""
    cdef size_t whole = size - size % coder.element_size
    if whole:
        bz_shuffle(coder.page, coder.shuffled, whole, coder.element_size, coder.floats)
    memcpy(coder.shuffled + whole, coder.page + whole, size - whole)


cdef int64_t restore_value(
    CoderState *coder, const uint8_t *src, size_t length, uint8_t *output, size_t size
) noexcept nogil:
    """Restore exactly `size` bytes to `output`. Return as `restore_page` does.

    The caller has called `make_room`. The four bytes before `src` are overwritten. On failure,
    `output` has arbitrary bytes.
    """
    cdef uint8_t *room = coder.shuffled if coder.element_size else output
    cdef uint32_t magic = ZSTD_MAGIC
    cdef int64_t restored
    cdef size_t whole
    if coder.library == ZSTD:
        memcpy(<uint8_t *>src - 4, &magic, 4)
        src -= 4
        length += 4
    restored = _decode(coder, src, length, room, size)
    if restored > 0 and coder.element_size:
        whole = size - size % coder.element_size
        if whole:
            bz_unshuffle(room, output, whole, coder.element_size, coder.floats)
        memcpy(output + whole, room + whole, size - whole)
    return restored


cdef int encode_value(
    CoderState *coder, int number, const uint8_t *value, Stored *stored
) noexcept nogil:
    """Make the stored form of a value of `raw_length` bytes, in the coder's memory.

    `number` is the number of the codec. Return 0, −ENOMEM or ABORT.
    """
    cdef int64_t length = 0
    stored.codec = 0
    if make_room(coder, stored.raw_length) < 0:
        return -ENOMEM
    if stored.raw_length:
        length = compress_value(coder, value, stored.raw_length, &stored.data)
        if length == ABORT:
            return ABORT
    if 0 < length < stored.raw_length:
        stored.length = <uint32_t>length
        stored.codec = <uint8_t>number
    else:  # raw, from the coder's private copy; an object has at least one byte
        stored.data = coder.page
        stored.length = max(stored.raw_length, <uint32_t>1)
    stored.checksum = _checksum(coder, stored)
    return 0


cdef int decode_value(
    CoderState *coder, const Stored *stored, uint8_t *output
) noexcept nogil:
    """Verify a stored value and restore it to `output`. Return 0, a negative errno or ABORT.

    The caller has called `make_room`. The four bytes before `data` are overwritten. On failure,
    `output` has arbitrary bytes.
    """
    cdef int64_t restored
    if stored.checksum != _checksum(coder, stored):
        return -EBADMSG
    if stored.codec == 0:
        if stored.length != max(stored.raw_length, <uint32_t>1):
            return -EBADMSG
        memcpy(output, stored.data, stored.raw_length)
        return 0
    restored = restore_value(coder, stored.data, stored.length, output, stored.raw_length)
    return <int>restored if restored < 0 else 0


cdef inline uint32_t _checksum(const CoderState *coder, const Stored *stored) noexcept nogil:
    """Return the checksum of an entry, as gather.pyx computes it."""
    return <uint32_t>(hash_output(coder, stored.data, stored.length) ^ stored.codec)


cdef void count_value(CoderState *coder, int operation, const Stored *stored) noexcept nogil:
    """Count a value that was done outside of a batch."""
    cdef Tally *tally = &coder.tallies[operation]
    cdef bint restores = operation == DECOMPRESS
    if stored.raw_length:
        bz_count(&tally.pages, 1)
        bz_count(&tally.bytes_in, stored.length if restores else stored.raw_length)
        if stored.codec:
            bz_count(&tally.bytes_out, stored.raw_length if restores else stored.length)


cdef bint is_faster_with_gil(const CoderState *coder, int operation, size_t size) noexcept nogil:
    """Return whether a value takes less time than releasing and reacquiring the GIL.

    That is about 10 µs if threads compete for the GIL.
    """
    if coder.verify:
        size *= 2
    if coder.library == LZ4:
        return size <= SHORT_BYTES
    if coder.library == ZSTD:
        return size <= SHORT_BYTES if operation == DECOMPRESS else (
            coder.effort <= DEFAULT_LEVEL and size <= SHORT_BYTES // 4
        )
    return False


cdef uint64_t hash_output(
    const CoderState *coder, const uint8_t *output, size_t length
) noexcept nogil:
    """Return the hash of compressed bytes, which detects later changes."""
    if coder.xxh3 is not NULL:
        return coder.xxh3.hash64(output, length)
    return bz_plain_hash(output, length)


# Codecs in Python.

cdef int64_t _call(
    CoderState *coder, PyObject *call, const uint8_t *data, size_t length,
    uint8_t *dst, size_t capacity, int otherwise,
) noexcept with gil:
    """Call a codec in Python, and copy its output to `dst`. Return as `compress_page` does.

    `otherwise` is the errno for an exception, and for an empty output.
    """
    cdef Py_buffer view
    cdef int64_t produced
    try:
        # A copy, because other threads could otherwise change the codec's input.
        output = (<object>call)(PyBytes_FromStringAndSize(<const char *>data, length))
        PyObject_GetBuffer(output, &view, PyBUF_SIMPLE)
        produced = view.len
        if produced == 0:
            produced = -otherwise
        elif <size_t>produced > capacity:
            produced = -ENOSPC
        else:
            memcpy(dst, view.buf, produced)
        PyBuffer_Release(&view)
        return produced
    except MemoryError:
        return -ENOMEM
    except Exception:
        return -otherwise
    except BaseException as error:
        Py_INCREF(error)
        Py_XDECREF(coder.error)
        coder.error = <PyObject *>error
        coder.gave_up = True
        return ABORT


cdef void raise_callback_error(CoderState *coder) except *:
    """Raise the exception of a callback that ended the batch, if there is one."""
    if not coder.gave_up:
        return
    error = <object>coder.error
    Py_XDECREF(coder.error)
    coder.error = NULL
    coder.gave_up = False
    raise error


cdef size_t check_page_size(size_t page_size) except 0:
    """Return the page size. Raise BadArgument if it is out of range."""
    if not 1 <= page_size <= MOST_PAGE_BYTES:
        raise BadArgument(f"page_size must be 1 to {MOST_PAGE_BYTES} bytes, not {page_size}")
    return page_size


def most_value_bytes(size_t page_size) -> int:
    """Return the length limit of a value that is compressed in one call, in bytes."""
    return most_value(page_size)


def is_available(native) -> bool:
    """Return whether this process has found the C function of a codec."""
    if _LIBRARIES[native.library] == ZSTD:
        return find_zstd() is not NULL
    return find_lz4() is not NULL


cdef class Coder:
    """A codec with its buffers and contexts, for pages of one size and one user at a time.

    `codec`             a codec, or its plan.
    `like`              a coder of the same codec, whose dictionary tables are shared.
    `names_dictionary`  whether zstd frames contain the ID of their dictionary. False if the reader
                        knows the dictionary from elsewhere.

    Raises the codec's exception if its compressor or decompressor cannot be made.
    """

    def __cinit__(
        self, object codec, size_t page_size, Coder like=None, bint names_dictionary=True
    ):
        plan = codec.plan()
        cdef CoderState *state = &self.state
        self.codec = codec
        state.page_size = check_page_size(page_size)
        state.element_size = plan.element_size
        state.floats = plan.floats
        state.verify = plan.verify
        state.xxh3 = find_xxh3()
        state.library = CALLBACK
        if plan.native is not None:
            self._use_library(plan.native, None if like is None else (like.shared or like))
        if state.library == ZSTD and not names_dictionary:
            state.zstd.set_parameter(state.compressing, ZSTD_DICTIONARY_ID, 0)
        self.native = state.library != CALLBACK
        if not self.native:
            self.compress_call = plan.codec.compressor(page_size)
            self.decompress_call = plan.codec.decompressor(page_size)
            state.compress_call = <PyObject *>self.compress_call
            state.decompress_call = <PyObject *>self.decompress_call
        else:
            state.bound = _bound(state, page_size)
        if _make_buffers(state, page_size) < 0:
            raise MemoryError("no memory for a codec's buffers")

    cdef _use_library(self, native, Coder like):
        cdef CoderState *state = &self.state
        cdef int library = _LIBRARIES[native.library]
        state.effort = native.effort
        if library == ZSTD:
            state.zstd = find_zstd()
            if state.zstd is NULL:
                return
            state.planes = native.planes
            self._use_zstd(native.dictionary, like)
        else:
            state.lz4 = find_lz4()
            if state.lz4 is NULL:
                return
            state.compressing = bz_calloc(
                1, state.lz4.fast_state_bytes if library == LZ4 else state.lz4.hc_state_bytes
            )
            if state.compressing is NULL:
                raise MemoryError("no memory for lz4's state")
        state.library = library

    cdef _use_zstd(self, bytes dictionary, Coder like):
        cdef CoderState *state = &self.state
        cdef const Zstd *zstd = state.zstd
        state.compressing = zstd.create_cctx()
        state.restoring = zstd.create_dctx()
        if state.compressing is NULL or state.restoring is NULL:
            raise MemoryError("no memory for zstd's contexts")
        cdef bint few_repeats = (
            state.planes > 1 and 1 <= state.effort <= DEFAULT_LEVEL and dictionary is None
        )
        cdef int level = 1 if few_repeats else state.effort
        if zstd.is_error(zstd.set_parameter(state.compressing, ZSTD_LEVEL, level)):
            raise ValueError(f"zstd refuses level {state.effort}")
        if few_repeats:
            zstd.set_parameter(state.compressing, ZSTD_STRATEGY, 1)
            zstd.set_parameter(state.compressing, ZSTD_HASH_LOG, 6)
            zstd.set_parameter(state.compressing, ZSTD_MIN_MATCH, 7)
        zstd.set_parameter(state.compressing, ZSTD_CONTENT_SIZE, 1)
        if dictionary is None:
            return
        cdef const char *data = PyBytes_AS_STRING(dictionary)
        cdef void *cdict
        if like is None:
            self.cdict = zstd_make_cdict(zstd, data, len(dictionary), state.effort)
            self.ddict = zstd.create_ddict(data, len(dictionary))
            if self.cdict is NULL or self.ddict is NULL:
                raise MemoryError("no memory for zstd's dictionary tables")
            cdict = self.cdict
            state.ddict = self.ddict
        else:
            self.shared = like
            cdict = like.cdict
            state.ddict = like.ddict
        if zstd.is_error(zstd.ref_cdict(state.compressing, cdict)):
            raise MemoryError("zstd refuses its dictionary tables")

    def __dealloc__(self):
        cdef CoderState *state = &self.state
        Py_XDECREF(state.error)
        if state.zstd is not NULL:
            state.zstd.free_cctx(state.compressing)
            state.zstd.free_dctx(state.restoring)
            if self.cdict is not NULL:
                state.zstd.free_cdict(self.cdict)
            if self.ddict is not NULL:
                state.zstd.free_ddict(self.ddict)
        else:
            free(state.compressing)
        free(state.page)

    def compress(self, page) -> bytes:
        """Compress one page. Raise PageError: -EINVAL for another size, -EIO, -ENOMEM."""
        cdef Py_buffer view
        cdef CoderState *state = &self.state
        cdef int64_t length
        PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
        if <size_t>view.len != state.page_size:
            PyBuffer_Release(&view)
            raise PageError(0, -EINVAL)
        with nogil:
            length = compress_page(
                state, <const uint8_t *>view.buf, False, state.output, state.output_room
            )
        PyBuffer_Release(&view)
        if length == ABORT:
            raise_callback_error(state)
        _count_page(&state.tallies[COMPRESS], state.page_size, length)
        if length < 0:
            raise PageError(0, length)
        return PyBytes_FromStringAndSize(<const char *>state.output, length)

    def decompress(self, src) -> bytes:
        """Restore one page. Raise PageError: -EBADMSG, -ENOMEM."""
        cdef Py_buffer view
        cdef CoderState *state = &self.state
        cdef int64_t restored = -EBADMSG
        page = PyBytes_FromStringAndSize(NULL, state.page_size)
        PyObject_GetBuffer(src, &view, PyBUF_SIMPLE)
        cdef size_t length = view.len
        cdef uint8_t *room = <uint8_t *>PyBytes_AS_STRING(page)
        if length <= 2 * state.page_size:  # no page compresses to more
            with nogil:
                restored = restore_page(state, <const uint8_t *>view.buf, length, room, True)
        PyBuffer_Release(&view)
        if restored == ABORT:
            raise_callback_error(state)
        _count_page(&state.tallies[DECOMPRESS], length, restored)
        if restored < 0:
            raise PageError(0, restored)
        return page


cdef inline void _count_page(Tally *tally, uint64_t bytes_in, int64_t produced) noexcept:
    bz_count(&tally.pages, 1)
    bz_count(&tally.bytes_in, bytes_in)
    if produced > 0:
        bz_count(&tally.bytes_out, produced)


cdef class Coders:
    """A free list of the coders of one codec. A coder is made when none is free.

    Taking a coder and giving it back is one step each, under the GIL. All coders and their counters
    are kept until this object is freed.
    """

    def __init__(self, codec, size_t page_size, *, bint names_dictionary=True):
        self.codec = codec
        self.page_size = page_size
        self.names_dictionary = names_dictionary
        self.every = []
        self.unused = []
        self.error_counts = {}

    @property
    def native(self) -> bool:
        """Whether the codec runs without the interpreter."""
        cdef Coder coder = self.take()
        self.give(coder)
        return coder.native

    cdef size_t count_used(self) noexcept:
        """Return the number of coders that calls are using now."""
        return len(self.every) - len(self.unused) - self.lent

    cdef Coder lend(self):
        """Take a coder for longer than a call. It does not count as used."""
        cdef Coder coder = self.take()
        self.lent += 1
        return coder

    cdef void take_back(self, Coder coder):
        """Take back a coder that was lent."""
        self.lent -= 1
        self.give(coder)

    cdef Coder take(self):
        if self.unused:
            return <Coder>self.unused.pop()
        cdef Coder first = <Coder>self.every[0] if self.every else None
        cdef Coder coder = Coder(self.codec, self.page_size, first, self.names_dictionary)
        self.every.append(coder)
        return coder

    cdef void give(self, Coder coder):
        self.unused.append(coder)

    def compress_page(self, page) -> bytes:
        """Compress one page, and count it. See Coder.compress."""
        cdef Coder coder = self.take()
        try:
            return coder.compress(page)
        except PageError as error:
            self.add_errors([error.errno])
            raise
        finally:
            self.give(coder)

    def decompress_page(self, src) -> bytes:
        """Restore one page, and count it. See Coder.decompress."""
        cdef Coder coder = self.take()
        try:
            return coder.decompress(src)
        except PageError as error:
            self.add_errors([error.errno])
            raise
        finally:
            self.give(coder)

    def memory_bytes(self) -> int:
        """Return the memory of the coders in bytes. See the stub."""
        cdef Coder coder
        cdef uint64_t found = 0
        for coder in self.every:
            found += 3 * coder.state.room + coder.state.output_room
            if coder.state.library == ZSTD:
                found += coder.state.zstd.size_of_cctx(coder.state.compressing)
                found += coder.state.zstd.size_of_dctx(coder.state.restoring)
                found += coder.state.zstd.size_of_cdict(coder.cdict)  # of NULL: 0
                found += coder.state.zstd.size_of_ddict(coder.ddict)
        return found

    def size_of(self, list values not None) -> int:
        """Return the total stored length of values that are compressed one by one. See the stub."""
        cdef Coder coder = self.take()
        cdef Py_buffer view
        cdef const uint8_t *output
        cdef int64_t length, total = 0
        try:
            for value in values:
                PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
                length = 0
                if 0 < view.len <= <Py_ssize_t>most_value(self.page_size):
                    if make_room(&coder.state, view.len) < 0:
                        PyBuffer_Release(&view)
                        raise MemoryError("no memory for a codec's buffers")
                    with nogil:
                        length = compress_value(
                            &coder.state, <const uint8_t *>view.buf, view.len, &output
                        )
                total += length if 0 < length < view.len else view.len
                PyBuffer_Release(&view)
                raise_callback_error(&coder.state)
        finally:
            self.give(coder)
        return total

    cdef void count_errors(self, int operation, const int32_t *errors, size_t count):
        """Count the failed pages of a batch, by negative errno."""
        cdef size_t index
        for index in range(count):
            if errors[index]:
                code = errors[index]
                self.error_counts[code] = self.error_counts.get(code, 0) + 1

    def add_errors(self, list codes) -> None:
        """Count pages that failed elsewhere, by their negative errno."""
        for code in codes:
            self.error_counts[code] = self.error_counts.get(code, 0) + 1

    def errors(self) -> dict[int, int]:
        """Return the number of pages that failed, by negative errno."""
        return dict(sorted(self.error_counts.items()))

    def add_batch(self, int operation, *, bint divided=False) -> None:
        """Count a batch that was done elsewhere. `divided` tells whether lanes had shares of it."""
        self.tallies[operation].batches += 1
        self.tallies[operation].divided += divided

    def totals(self, int operation) -> dict[str, int]:
        """Return the counters of one operation. The keys are the fields of Tally and BatchTally."""
        cdef BatchTally *batches = &self.tallies[operation]
        cdef uint64_t pages = 0, bytes_in = 0, bytes_out = 0, busy_ns = 0
        cdef Tally *tally
        cdef Coder coder
        for coder in self.every:
            tally = &coder.state.tallies[operation]
            pages += bz_read_figure(&tally.pages)
            bytes_in += bz_read_figure(&tally.bytes_in)
            bytes_out += bz_read_figure(&tally.bytes_out)
            busy_ns += bz_read_figure(&tally.busy_ns)
        return {
            "batches": batches.batches, "divided": batches.divided, "waits": batches.waits,
            "wait_ns": batches.wait_ns, "fallbacks": batches.fallbacks, "pages": pages,
            "bytes_in": bytes_in, "bytes_out": bytes_out, "busy_ns": busy_ns,
        }
