"""View: pages of another process's store, read from its shared memory in one call.

    index ─▶ block's place ─▶ entry ─▶ word ─▶ pread of the object ─▶ word and epoch as before?
                                └────────────▶ pread of the file ─▶ checksum ─▶ codec ─▶ page

The owner may change all of this meanwhile, and no reader can delay it. These rules ensure that a
page was stored at its index at some moment during the call:

* A reader loads an entry with one 16-byte read. If the owner freed or reassigned the entry's block
  meanwhile, `changes` shows it, because it is incremented before anything else. The reader then
  looks the entry up again.
* A handle is never reused. If a word is the same after the copy, in the same epoch, the copied
  bytes are those that the word names. (The epoch is incremented before objects move.)
* The checksum covers the bytes and the number of their codec. It detects a torn entry, a torn copy
  and memory errors.
* A codec number has one meaning until 255 numbers were given out. After that, a load checks whether
  numbers were given out since it learned their meanings.

An entry that stays the same while its bytes do not match is damaged. The owner might have been
stopped between two stores, so a reader reports damage only after PATIENCE_NS.

The reader trusts nothing that the owner writes: it copies each word once and checks its bounds
before it uses it. It verifies that the owner's files cannot shrink, so that no mapping of them can
fault.

Rejected:

* A mapping of the objects. If the owner has punched a page meanwhile, a read through a mapping
  allocates memory for it again, which is never counted or freed. pread() reads zeros instead.
* A lock or a counter of readers. A reader that dies would hold it forever.

    table     0       changes   how often a block got or lost its place; incremented before
    (one per  8       blocks    places that have memory
    group)    16      codecs    codec numbers given out; incremented before an entry has the number
              24      closed    1 once the group is closed
              4096    directory, i64: the block in each place, or −1
              + 8 MiB entries, 512 of 16 bytes for each block:
                      value u64, checksum u32, kind u8, codec u8, epoch u16
    words     0       epoch
              8       slots that have memory
              8 × slot: odd generation << 48 | address in grains << b | length − 1
                        b = log2(page size)                         writer of all fields: the owner
Invariants
* A mapping never changes; a larger one replaces it. The old mappings stay until the view is
  released, because other threads may be reading them.
* Places: the chains of `heads` and `next` contain each place below `known` whose `block_of` is not
  NONE exactly once.
* If a view is closed during calls, the last call releases it.

Locks: that of Places, during a look-up, only within calls.
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADMSG, EINTR, ENOMEM, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.coder cimport (
    ABORT, Coder, Coders, CoderState, check_page_size, raise_callback_error, restore_page,
)
from batchzip.core.libraries cimport Xxh3, find_xxh3
from batchzip.core.memory cimport bz_malloc
from batchzip.core.table cimport (
    ABSENT, BACKED, BLOCK, BLOCK_BITS, BLOCKS, CHANGES, CLOSED, CODECS, COMPRESSED, DIRECTORY,
    ENTRIES, MOST_SHARED, RAW, SAME_FILLED, check_word, spread,
)
from batchzip.core.zones cimport LENGTH_BITS
from batchzip.core.zspages cimport FIRST_SLOT, GENERATION_SHIFT, HEADER

from xxhash import xxh3_64_intdigest

from batchzip.errors import (
    BadArgument, BatchzipError, ClosedError, CorruptPage, PageError, PageNotStored,
)
from batchzip.wording import shown

cdef extern from "native.h" nogil:
    """
    #include <fcntl.h>
    #ifdef __x86_64__
    #include <emmintrin.h>
    #endif
    #ifndef BZ_PATIENCE_NS
    #define BZ_PATIENCE_NS 250000000
    #endif
    /* Read an entry whole. With AVX the read is atomic; without, checksums detect a torn entry. */
    static inline void bz_load_entry(const uint8_t *at, uint64_t *entry) {
    #ifdef __x86_64__
        __m128i both;
        __asm__ __volatile__("movdqa %1, %0" : "=x"(both) : "m"(*(const __m128i *)at) : "memory");
        memcpy(entry, &both, 16);
    #else
        entry[0] = bz_load64((const uint64_t *)at);
        entry[1] = bz_load64((const uint64_t *)(at + 8));
    #endif
    }
    static void *bz_map_to_read(int fd, uint64_t size) {
        void *base = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
        return base == MAP_FAILED ? NULL : base;
    }
    static int64_t bz_size_of_file(int fd) {
        struct stat file;
        return fstat(fd, &file) ? -1 : (int64_t)file.st_size;
    }
    static int bz_cannot_shrink(int fd) {
        int seals = fcntl(fd, F_GET_SEALS);
        return seals >= 0 && seals & F_SEAL_SHRINK;
    }
    static void bz_fill(uint8_t *page, uint64_t word, size_t size) {
        for (size_t at = 0; at < size; at += 8) memcpy(page + at, &word, 8);
    }
    """
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int munmap(void *, size_t)
    int64_t pread(int, void *, size_t, int64_t)
    int close(int)
    void bz_load_entry(const uint8_t *, uint64_t *)
    uint64_t bz_load64(const uint64_t *)
    void bz_store64(uint64_t *, uint64_t)
    int64_t bz_now_ns()
    void bz_sleep_ns(int64_t)
    int64_t BZ_PATIENCE_NS
    void *bz_map_to_read(int, uint64_t)
    int64_t bz_size_of_file(int)
    bint bz_cannot_shrink(int)
    void bz_fill(uint8_t *, uint64_t, size_t)

cdef enum:
    ENTRY_BYTES = 16
    NONE = -1
    CORRUPT = -2  # an invalid place: the directory is damaged
    MOST_NUMBERS = 255  # maximum number of codecs at a time

cdef uint64_t LOWER = (<uint64_t>1 << GENERATION_SHIFT) - 1
cdef uint64_t LEAST_ROOM = 64 << 10  # bytes of a mapping: 8 pages of table, or words of 8,000 pages

# A thread that lost its CPU between two stores has run again after this time.
cdef int64_t PATIENCE_NS = BZ_PATIENCE_NS
cdef int64_t PAUSE_NS = PATIENCE_NS // 250  # between two reads of an entry whose bytes do not match
cdef int64_t MOMENT_NS = 50_000_000  # between two checks for signals

cdef enum:
    LOOK_BYTES = 64 << 10  # bytes of pages loaded between two looks at the clock
    SPINS = 64  # reads of an object that is moving, before the thread yields its CPU

# The outcomes of an attempt, besides a page's negative errno and ABORT.
cdef enum:
    DONE = 1
    MISSING  # nothing is stored there
    MISMATCH  # the bytes do not match the entry
    MOVING  # the owner changed it during each attempt
    OVER  # the group or the store is closed
    LONGER_TABLE  # the entry lies beyond the mapping
    LONGER_WORDS
    NO_CODER  # no coder is ready for that number
    NEW_CODECS  # codec numbers may have new meanings
    ASK  # only the owner can read the file
    RETRY  # what was missing is available now
    STORED = 0x1000  # STORED + n means that n bytes were copied


cdef struct Mapping:
    uint8_t *base
    uint64_t room  # bytes mapped; those beyond the end of the file would fault
    uint64_t size  # size of the file at the last check; it never shrinks
    Mapping *older

cdef struct Shared:  # a file of the owner
    int fd
    Mapping *mapping

cdef struct Places:  # a copy of the directory: the place of each block, in chains by hash
    pthread_mutex_t lock
    bint compared  # whether it was ever compared with the directory
    uint64_t changes  # the header's `changes` before the last comparison
    uint32_t known  # number of places compared
    uint32_t room
    uint32_t mask
    int64_t *block_of
    int32_t *next  # next place in the chain, or NONE
    int32_t *heads  # first place by hash; one allocation with the two above

cdef struct SharedTableState:
    Shared file
    Places places

cdef struct SharedPoolState:
    int data_fd
    int file_fd  # −1 if there is none or only the owner can read it
    Shared words
    size_t page_size
    int length_bits
    size_t grain
    const Xxh3 *xxh3

cdef struct SharedEntry:
    uint64_t value
    uint64_t rest

cdef struct Scratch:  # the buffers and coders of one load
    uint8_t *stored  # a private copy of the stored bytes
    CoderState **coders  # by number
    uint64_t known  # codec numbers given out when the coders were made
    uint64_t codecs  # codec numbers given out by now
    SharedEntry entry
    uint64_t end  # end of the bytes that have to be mapped
    uint8_t *page  # the page being loaded
    bint may_spoil  # on failure, the page's contents may be undefined


# Files of the owner.

cdef bint _map(Shared *file, uint64_t least) except -1:
    """Map a file's first `least` bytes, and half as much again for growth.

    Return False if the file is shorter.
    """
    cdef int64_t size = bz_size_of_file(file.fd)
    cdef uint64_t room = max(LEAST_ROOM, least + least // 2) // 4096 * 4096
    if size < 0 or <uint64_t>size < least:
        return False
    if not bz_cannot_shrink(file.fd):
        raise BadArgument("the file is not the memory of a store: it may shrink")
    cdef Mapping *mapping = <Mapping *>bz_malloc(sizeof(Mapping))
    if mapping is NULL:
        raise MemoryError("no memory to map the store's memory")
    mapping.base = <uint8_t *>bz_map_to_read(file.fd, room)
    if mapping.base is NULL:
        room = least
        mapping.base = <uint8_t *>bz_map_to_read(file.fd, room)
    if mapping.base is NULL:
        free(mapping)
        raise MemoryError(f"no address space to map {least} bytes of the store's memory")
    mapping.room = room
    mapping.size = size
    mapping.older = file.mapping
    bz_store64(<uint64_t *>&file.mapping, <uint64_t>mapping)
    return True


cdef int _map_first(Shared *file, uint64_t least) except -1:
    if not _map(file, least):
        raise BadArgument("the file is not the memory of a store: it is too short")
    return 0


cdef bint _reaches(Shared *file, Mapping *mapping, uint64_t end) noexcept nogil:
    """Return whether the bytes before `end` can be read."""
    cdef int64_t size
    if end > mapping.room:
        return False
    if end <= bz_load64(&mapping.size):
        return True
    size = bz_size_of_file(file.fd)
    if size < 0 or <uint64_t>size < end:
        return False
    bz_store64(&mapping.size, size)
    return True


cdef void _release(Shared *file) noexcept:
    cdef Mapping *mapping = file.mapping
    cdef Mapping *older
    file.mapping = NULL
    while mapping is not NULL:
        older = mapping.older
        munmap(mapping.base, mapping.room)
        free(mapping)
        mapping = older
    _close(&file.fd)


cdef void _close(int *fd) noexcept:
    cdef int number = fd[0]
    fd[0] = -1
    if number >= 0:
        close(number)


cdef inline Mapping *_current(Shared *file) noexcept nogil:
    return <Mapping *>bz_load64(<const uint64_t *>&file.mapping)


# From a block to its place.

cdef inline uint32_t _hash(const Places *places, int64_t block) noexcept nogil:
    return <uint32_t>(spread(block) >> 40) & places.mask


cdef int64_t _find_place(Places *places, const Mapping *mapping, int64_t block) noexcept nogil:
    """Return the current place of a block, or NONE, CORRUPT or −ENOMEM."""
    cdef const uint64_t *header = <const uint64_t *>mapping.base
    cdef const uint64_t *directory = <const uint64_t *>(mapping.base + DIRECTORY)
    cdef int64_t found
    pthread_mutex_lock(&places.lock)
    found = _look(places, block)
    if found < 0 or <int64_t>bz_load64(directory + found) != block:
        if not places.compared or places.changes != bz_load64(header + CHANGES):
            if _compare(places, header, directory):
                found = _look(places, block)
            else:
                found = -ENOMEM
        elif found != NONE:
            found = CORRUPT  # the owner never wrote this word
    pthread_mutex_unlock(&places.lock)
    return found


cdef int64_t _look(const Places *places, int64_t block) noexcept nogil:
    """Return the place of a block, or NONE, or CORRUPT if several places have it."""
    cdef int32_t found = NONE, place = NONE
    if places.room:
        place = places.heads[_hash(places, block)]
    while place != NONE:
        if places.block_of[place] == block:
            if found != NONE:
                return CORRUPT
            found = place
        place = places.next[place]
    return found


cdef bint _compare(
    Places *places, const uint64_t *header, const uint64_t *directory
) noexcept nogil:
    """Copy the changes in the directory. Return False if memory is short."""
    cdef uint64_t changes = bz_load64(header + CHANGES)
    cdef uint32_t blocks = <uint32_t>min(bz_load64(header + BLOCKS), <uint64_t>MOST_SHARED)
    cdef uint32_t place
    cdef int64_t now
    if blocks > places.room and not _make_room(places, blocks):
        return False
    for place in range(max(blocks, places.known)):
        now = <int64_t>bz_load64(directory + place) if place < blocks else NONE
        if place >= places.known:
            places.block_of[place] = NONE
        elif now == places.block_of[place]:
            continue
        _unlink(places, place)
        _link(places, place, now if now >= 0 else NONE)
    places.known = blocks
    places.changes = changes
    places.compared = True
    return True


cdef void _unlink(Places *places, int32_t place) noexcept nogil:
    cdef int32_t *at
    if places.block_of[place] == NONE:
        return
    at = &places.heads[_hash(places, places.block_of[place])]
    while at[0] != place:
        at = &places.next[at[0]]
    at[0] = places.next[place]
    places.block_of[place] = NONE


cdef void _link(Places *places, int32_t place, int64_t block) noexcept nogil:
    cdef int32_t *head
    places.block_of[place] = block
    if block != NONE:
        head = &places.heads[_hash(places, block)]
        places.next[place] = head[0]
        head[0] = place


cdef bint _make_room(Places *places, uint32_t least) noexcept nogil:
    """Grow to a power of two of places. All places are then compared again.

    Return False if memory is short.
    """
    cdef uint32_t room = 64
    while room < least:
        room *= 2
    cdef int64_t *memory = <int64_t *>bz_malloc(<size_t>room * 16)
    if memory is NULL:
        return False
    free(places.block_of)
    places.block_of = memory
    places.next = <int32_t *>(memory + room)
    places.heads = places.next + room
    places.room = room
    places.mask = room - 1
    places.known = 0
    memset(places.heads, 0xFF, <size_t>room * sizeof(int32_t))
    return True


# One page.

cdef int _look_up(SharedTableState *table, int64_t index, Scratch *scratch) noexcept nogil:
    """Find the entry of an index. Return DONE or another outcome."""
    cdef Mapping *mapping
    cdef const uint64_t *header
    cdef uint64_t changes, end
    cdef int64_t place
    cdef int look
    if index < 0:
        return MISSING
    for look in range(SPINS):
        mapping = _current(&table.file)
        header = <const uint64_t *>mapping.base
        if bz_load64(header + CLOSED):
            return OVER
        changes = bz_load64(header + CHANGES)
        place = _find_place(&table.places, mapping, index >> BLOCK_BITS)
        if place >= 0:
            end = <uint64_t>place << BLOCK_BITS | index & (BLOCK - 1)
            end = ENTRIES + (end + 1) * ENTRY_BYTES
            if not _reaches(&table.file, mapping, end):
                scratch.end = end
                return LONGER_TABLE
            bz_load_entry(mapping.base + end - ENTRY_BYTES, &scratch.entry.value)
        elif place == NONE:
            scratch.entry.value = scratch.entry.rest = 0
        elif place == CORRUPT:
            scratch.entry.value = index
            scratch.entry.rest = 0
            return MISMATCH
        else:
            return <int>place
        scratch.codecs = bz_load64(header + CODECS)
        if bz_load64(header + CHANGES) == changes:
            return DONE if _kind(&scratch.entry) != ABSENT else MISSING
    return MOVING


cdef inline int _kind(const SharedEntry *entry) noexcept nogil:
    return entry.rest >> 32 & 0xFF


cdef inline int _number(const SharedEntry *entry) noexcept nogil:
    return entry.rest >> 40 & 0xFF


cdef int64_t _attempt(
    SharedPoolState *pool, SharedTableState *table, int64_t index, Scratch *scratch
) noexcept nogil:
    """Try once to load a page. Return an outcome, a negative errno or ABORT."""
    cdef int kind, found = _look_up(table, index, scratch)
    cdef int64_t length
    if found != DONE:
        return found
    kind = _kind(&scratch.entry)
    if kind == SAME_FILLED:
        # The checksum of the word shows that the two halves of the entry belong together.
        if check_word(scratch.entry.value) != <uint32_t>scratch.entry.rest:
            return MISMATCH
        bz_fill(scratch.page, scratch.entry.value, pool.page_size)
        return DONE
    if (
        scratch.codecs > MOST_NUMBERS
        and scratch.codecs != scratch.known
        and _number(&scratch.entry)
    ):
        return NEW_CODECS
    if kind == BACKED:
        if pool.file_fd < 0:
            return ASK
        length = _read_file(pool, scratch)
    elif kind == COMPRESSED or kind == RAW:
        length = _read_object(pool, scratch)
    else:
        return MISMATCH
    if length < STORED:
        return length
    return _restore(pool, scratch, length - STORED)


cdef int64_t _read_file(SharedPoolState *pool, Scratch *scratch) noexcept nogil:
    """Copy the entry's bytes from the file. Return STORED + length, MISMATCH or negative errno."""
    cdef size_t length = (scratch.entry.value & ((1 << LENGTH_BITS) - 1)) + 1
    cdef int64_t got
    if length > 2 * pool.page_size:
        return MISMATCH
    got = pread(pool.file_fd, scratch.stored, length, scratch.entry.value >> LENGTH_BITS)
    if got < 0:
        return -errno
    return STORED + got if <size_t>got == length else MISMATCH


cdef int64_t _read_object(SharedPoolState *pool, Scratch *scratch) noexcept nogil:
    """Copy the object of a handle. Return STORED + length, MISMATCH, MOVING or LONGER_WORDS."""
    cdef uint64_t handle = scratch.entry.value
    cdef uint64_t slot = handle & LOWER, end = (slot + 1) * 8
    cdef uint64_t epoch, word, place
    cdef size_t length
    cdef Mapping *mapping = _current(&pool.words)
    cdef const uint64_t *words = <const uint64_t *>mapping.base
    cdef int look
    if slot < FIRST_SLOT or slot >= bz_load64(words + 1):
        return MISMATCH
    if not _reaches(&pool.words, mapping, end):
        scratch.end = end
        return LONGER_WORDS
    for look in range(SPINS):
        epoch = bz_load64(words)
        word = bz_load64(words + slot)
        if (word ^ handle) >> GENERATION_SHIFT or not word >> GENERATION_SHIFT & 1:
            return MISMATCH
        place = word & LOWER
        length = (place & (pool.page_size - 1)) + 1
        place = (place >> pool.length_bits) * pool.grain + HEADER
        if pread(pool.data_fd, scratch.stored, length, place) != <int64_t>length:
            return MISMATCH
        if bz_load64(words + slot) == word and bz_load64(words) == epoch:
            return STORED + length
    return MOVING


cdef int64_t _restore(SharedPoolState *pool, Scratch *scratch, size_t length) noexcept nogil:
    """Decompress the entry's stored bytes into the page. Return DONE or another outcome."""
    cdef int number = _number(&scratch.entry)
    cdef CoderState *coder
    cdef int64_t restored
    cdef uint64_t hashed
    if pool.xxh3 is not NULL:
        hashed = pool.xxh3.hash64(scratch.stored, length)
    elif not _hash_in_python(scratch.stored, length, &hashed):
        return -ENOMEM
    if <uint32_t>(hashed ^ <uint64_t>number) != <uint32_t>scratch.entry.rest:
        return MISMATCH
    if not number:
        if length != pool.page_size:
            return MISMATCH
        memcpy(scratch.page, scratch.stored, length)
        return DONE
    coder = scratch.coders[number]
    if coder is NULL:
        return NO_CODER
    restored = restore_page(coder, scratch.stored, length, scratch.page, scratch.may_spoil)
    if restored == -EBADMSG:
        return MISMATCH
    return DONE if restored > 0 else restored


cdef bint _hash_in_python(const uint8_t *data, size_t length, uint64_t *hashed) noexcept with gil:
    """Hash bytes with the Python package, if xxhash's C functions were not found.

    Return False if memory is short.
    """
    try:
        hashed[0] = xxh3_64_intdigest(PyBytes_FromStringAndSize(<const char *>data, length))
    except MemoryError:
        return False
    return True


cdef size_t _load_pages(
    SharedPoolState *pool, SharedTableState *table, const int64_t *indices, size_t done,
    size_t count, Scratch *scratch, int64_t *outcome,
) noexcept nogil:
    """Load pages from number `done` on, for at most about MOMENT_NS.

    Return the number of pages loaded so far. `outcome` is DONE unless a page failed.
    """
    cdef size_t piece = max(1, <size_t>(LOOK_BYTES // pool.page_size))
    cdef size_t end
    cdef int64_t until = bz_now_ns() + MOMENT_NS
    outcome[0] = DONE
    while done < count:
        end = min(done + piece, count)
        while done < end:
            outcome[0] = _attempt(pool, table, indices[done], scratch)
            if outcome[0] != DONE:
                return done
            scratch.page += pool.page_size
            done += 1
        if bz_now_ns() > until:
            break
    return done


# The Python interface.

@cython.final
cdef class _Scratch:
    """Buffers and coders for one load at a time."""

    cdef Scratch state
    cdef CoderState *by_number[MOST_NUMBERS + 1]
    cdef list numbers  # Coders by number, as the pool had them
    cdef list lent  # pairs of Coders and the coder taken from them

    def __cinit__(self, size_t room):
        self.lent = []
        self.state.coders = self.by_number
        self.state.stored = <uint8_t *>bz_malloc(room)
        if self.state.stored is NULL:
            raise MemoryError("no memory for the stored bytes of a page")

    def __dealloc__(self):
        free(self.state.stored)

    cdef int renew(self, list numbers, uint64_t known) except -1:
        """Return all coders, because codec numbers may have new meanings."""
        cdef Coders coders
        cdef Coder coder
        memset(self.by_number, 0, sizeof(self.by_number))
        self.numbers = numbers
        self.state.known = known
        while self.lent:
            coders, coder = self.lent.pop()
            coders.give(coder)
        return 0

    cdef bint prepare(self, int number) except -1:
        """Prepare a coder for a number. Return False if no codec has that number."""
        cdef Coders coders = self.numbers[number]
        cdef Coder coder
        if coders is None:
            return False
        try:
            coder = coders.take()
        except (BatchzipError, MemoryError):
            raise
        except Exception as error:
            raise BatchzipError(
                f"a codec of the store does not work here: {shown(error)}"
            ) from error
        self.lent.append((coders, coder))
        self.by_number[number] = &coder.state
        return True


@cython.final
cdef class SharedPool:
    """The pool of another process's store, its backing file and its codecs."""

    cdef SharedPoolState state
    cdef object ask  # a callable that returns the codecs
    cdef list numbers  # Coders by number, or None if no codec has it
    cdef uint64_t known
    cdef list scratches
    cdef uint32_t users
    cdef readonly bint closed

    def __cinit__(
        self, int data_fd, int words_fd, int file_fd, size_t page_size, known, codecs, ask
    ):
        cdef SharedPoolState *state = &self.state
        state.data_fd = data_fd
        state.words.fd = words_fd
        state.file_fd = file_fd
        if page_size < 512 or page_size & (page_size - 1):
            raise BadArgument(f"a store cannot have pages of {page_size} bytes")
        check_page_size(page_size)
        state.page_size = page_size
        while <size_t>1 << state.length_bits < page_size:
            state.length_bits += 1
        state.grain = max(<size_t>16, page_size // 256)
        state.xxh3 = find_xxh3()
        _map_first(&state.words, FIRST_SLOT * 8)
        self.ask = ask
        self.scratches = []
        self.numbers = [None] * (MOST_NUMBERS + 1)
        self.note_codecs(known, codecs)

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        _release(&self.state.words)
        _close(&self.state.data_fd)
        _close(&self.state.file_fd)

    cdef int note_codecs(self, uint64_t known, dict codecs) except -1:
        """Record the meanings of codec numbers. A codec that keeps its number keeps its coders."""
        cdef list numbers = [None] * (MOST_NUMBERS + 1)
        cdef int number
        for number, codec in codecs.items():
            if not 1 <= number <= MOST_NUMBERS:
                raise BadArgument(f"{number} cannot be the number of a codec")
            before = self.numbers[number]
            same = (
                before is not None
                and type(before.codec) is type(codec)
                and before.codec == codec
            )
            numbers[number] = before if same else Coders(codec, self.state.page_size)
        self.numbers = numbers
        self.known = known
        return 0

    cdef _Scratch take_scratch(self):
        cdef _Scratch scratch
        if self.scratches:
            scratch = <_Scratch>self.scratches.pop()
        else:
            scratch = _Scratch(2 * self.state.page_size)
        if scratch.numbers is not self.numbers:
            scratch.renew(self.numbers, self.known)
        return scratch

    def close(self) -> None:
        """Release the descriptors and mappings, as soon as no call uses them."""
        self.closed = True
        if not self.users:
            self.scratches = []
            self.release()


cdef struct Patience:  # an entry whose bytes do not match, and how long to wait for it
    int64_t index
    SharedEntry entry
    int64_t until  # 0 if there was no such entry


@cython.final
cdef class SharedTable:
    """The table of one group of another process's store. Its objects are in a SharedPool."""

    cdef SharedTableState state
    cdef SharedPool pool
    cdef object ask  # a callable that returns stored bytes
    cdef uint32_t users
    cdef readonly bint closed

    def __cinit__(self, int fd, SharedPool pool not None, ask):
        self.state.file.fd = fd
        pthread_mutex_init(&self.state.places.lock, NULL)
        self.pool = pool
        self.ask = ask
        _map_first(&self.state.file, ENTRIES)

    def __dealloc__(self):
        _release(&self.state.file)
        free(self.state.places.block_of)
        pthread_mutex_destroy(&self.state.places.lock)

    def close(self) -> None:
        """Release the descriptor and the mapping, as soon as no call uses them."""
        self.closed = True
        if not self.users:
            _release(&self.state.file)

    cdef int enter(self) except -1:
        if self.closed or self.pool.closed:
            raise ClosedError("this view is closed")
        self.users += 1
        self.pool.users += 1
        return 0

    cdef void leave(self) noexcept:
        self.users -= 1
        self.pool.users -= 1
        if self.closed:
            self.close()
        if self.pool.closed:
            self.pool.close()

    def load(self, index) -> bytes:
        """Return the bytes of one page."""
        cdef int64_t where = _as_index(index)
        page = PyBytes_FromStringAndSize(NULL, self.pool.state.page_size)
        self.load_pages(&where, 1, <uint8_t *>PyBytes_AS_STRING(page), True)
        return page

    def load_into(self, index, page) -> None:
        """Fill a writable buffer of one page. The buffer is unchanged on failure."""
        cdef int64_t where = _as_index(index)
        cdef Py_buffer view
        PyObject_GetBuffer(page, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            if <size_t>view.len != self.pool.state.page_size:
                raise BadArgument(f"a page has {self.pool.state.page_size} bytes, not {view.len}")
            self.load_pages(&where, 1, <uint8_t *>view.buf, False)
        finally:
            PyBuffer_Release(&view)

    def load_many(self, indices, pages) -> None:
        """Fill a writable buffer with the pages of n indices (int64)."""
        cdef Py_buffer where, room
        PyObject_GetBuffer(indices, &where, PyBUF_C_CONTIGUOUS)
        try:
            PyObject_GetBuffer(pages, &room, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            try:
                if room.len != where.len // 8 * <Py_ssize_t>self.pool.state.page_size:
                    raise BadArgument(
                        f"a buffer of {room.len} bytes cannot hold exactly {where.len // 8} pages"
                    )
                self.load_pages(
                    <const int64_t *>where.buf, where.len // 8, <uint8_t *>room.buf, True
                )
            finally:
                PyBuffer_Release(&room)
        finally:
            PyBuffer_Release(&where)

    def get(self, index) -> tuple[int, int]:
        """Return the two words of an entry, or (0, 0) if nothing is stored."""
        cdef int64_t where = _as_index(index), outcome
        cdef Scratch scratch
        cdef Patience patience
        memset(&scratch, 0, sizeof(scratch))
        memset(&patience, 0, sizeof(patience))
        self.enter()
        try:
            while True:
                with nogil:
                    outcome = _look_up(&self.state, where, &scratch)
                if outcome == DONE:
                    return scratch.entry.value, scratch.entry.rest
                if outcome == MISSING:
                    return 0, 0
                self.settle(outcome, where, &scratch, &patience)
                PyErr_CheckSignals()
        finally:
            self.leave()

    cdef int load_pages(
        self, const int64_t *indices, size_t count, uint8_t *pages, bint may_spoil
    ) except -1:
        cdef SharedPool pool = self.pool
        cdef size_t done = 0
        cdef int64_t outcome
        cdef Patience patience
        cdef _Scratch scratch
        memset(&patience, 0, sizeof(patience))
        self.enter()
        try:
            scratch = pool.take_scratch()
            scratch.state.page = pages
            scratch.state.may_spoil = may_spoil
            try:
                while True:
                    with nogil:
                        done = _load_pages(
                            &pool.state, &self.state, indices, done, count, &scratch.state, &outcome
                        )
                    if outcome != DONE:
                        outcome = self.help_on(outcome, indices[done], scratch)
                        if outcome == DONE:
                            scratch.state.page += pool.state.page_size
                            done += 1
                        elif outcome != RETRY:
                            self.settle(outcome, indices[done], &scratch.state, &patience)
                    if done == count:
                        return 0
                    PyErr_CheckSignals()
            finally:
                pool.scratches.append(scratch)
        finally:
            self.leave()

    cdef int64_t help_on(self, int64_t outcome, int64_t index, _Scratch scratch) except 0:
        """Do the part that needs Python. Return DONE, RETRY or the page's outcome."""
        cdef SharedPool pool = self.pool
        cdef int number = _number(&scratch.state.entry)
        if outcome == NO_CODER and scratch.prepare(number):
            return RETRY
        if outcome == NO_CODER or outcome == NEW_CODECS:
            if scratch.state.codecs != pool.known:
                known, codecs = pool.ask()
                pool.note_codecs(known, codecs)
            elif scratch.numbers is pool.numbers:
                return MISMATCH
            scratch.renew(pool.numbers, pool.known)
            # Ask once only: with a damaged header or entry, repeated asking would never end.
            if outcome == NO_CODER:
                return MISMATCH if pool.numbers[number] is None else RETRY
            return RETRY if scratch.state.codecs == pool.known else MISMATCH
        if outcome == ASK:
            if number and scratch.by_number[number] is NULL:
                return self.help_on(NO_CODER, index, scratch)
            return self.restore(self.ask(index), scratch)
        if outcome == ABORT:
            raise_callback_error(scratch.by_number[number])
        return outcome

    cdef int64_t restore(self, bytes stored, _Scratch scratch) except 0:
        """Decompress the bytes that the owner read from its file, or None if there were none."""
        cdef size_t length
        cdef int64_t outcome
        if stored is None:
            return MISMATCH
        length = PyBytes_GET_SIZE(stored)
        if not 0 < length <= 2 * self.pool.state.page_size:
            return MISMATCH
        memcpy(scratch.state.stored, PyBytes_AS_STRING(stored), length)
        with nogil:
            outcome = _restore(&self.pool.state, &scratch.state, length)
        if outcome == ABORT:
            raise_callback_error(scratch.by_number[_number(&scratch.state.entry)])
        return outcome

    cdef int settle(
        self, int64_t outcome, int64_t index, Scratch *scratch, Patience *patience
    ) except -1:
        """Raise the error of a page, or wait until another attempt is worthwhile."""
        cdef SharedEntry *entry = &scratch.entry
        cdef int64_t now
        if outcome == MISSING:
            raise PageNotStored(index)
        if outcome == OVER:
            raise ClosedError("the store or this group of it is closed")
        if outcome == LONGER_TABLE or outcome == LONGER_WORDS:
            if _map(
                &self.state.file if outcome == LONGER_TABLE else &self.pool.state.words, scratch.end
            ):
                return 0
            if outcome == LONGER_TABLE:
                entry.value = scratch.end
                entry.rest = 0
        elif outcome < 0 and outcome != -EINTR:
            raise PageError(index, outcome)
        elif outcome != MISMATCH:
            return 0
        entry.rest &= LOWER  # ignore the epoch of the last use
        now = bz_now_ns()
        if not (
            patience.until and patience.index == index
            and patience.entry.value == entry.value and patience.entry.rest == entry.rest
        ):
            patience.index = index
            patience.entry = entry[0]
            patience.until = now + PATIENCE_NS
        elif now > patience.until:
            raise CorruptPage(index)
        if PAUSE_NS:
            with nogil:
                bz_sleep_ns(PAUSE_NS)
        return 0


cdef int64_t _as_index(index) except -1:
    if not 0 <= index <= <uint64_t>0x7FFFFFFFFFFFFFFF:
        raise PageNotStored(index)
    return index
