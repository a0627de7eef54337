"""Pool: the allocator of compressed objects, zsmalloc's design over ranges of any length.

    grain        page_size / 256, at least 16 bytes
    size class   objects of the same number of grains
    zspage       contiguous room for 1 to 64 objects of one class
    range        a part of the address space: a zspage, or free
    handle       generation << 48 | slot; it stays valid when its object moves

    address space   | zspage | zspage |  free  | zspage |free| zspage | ahead |   never used
    machine pages   |·······|·······|·······|·······|·······|·······|·······|
                    0                                                 top

The capacity of a new zspage grows with the square root of the number of live objects in its class.
The unfilled part of a zspage is therefore small relative to its class, and a class of three objects
wastes nothing. A zspage lies wherever there is room and need not begin or end at a machine page.
Rounding to machine pages thus costs one page per pool, not one per class.

Rejected:

* Zspages of whole machine pages, as in zsmalloc. 60 classes of one object each hold 60 pages.
* Contiguous objects without classes. After a free, only objects that are not longer fit the gap.

Every object begins with four bytes that contain its slot. Only compaction needs them, to find the
word of the object that it moves. They are only a hint: compaction verifies that the word is live
and names this place. All other metadata is outside the objects' memory, so damage to that memory
harms no other object.

    words, 8 bytes per slot, in a separate memory that readers in other processes map
    slot  bits
    0     0…63    epoch: incremented before and after objects move, odd meanwhile
    1     0…63    number of slots that have memory, including these first ones
    2…7           not used
    8…    48…63   generation: odd while the object is live
          b…47    live: grain where the object begins, 4 bytes before its data; b = log2(page_size)
          0…b−1   live: its length in bytes − 1
          0…47    free: the next free slot, or 0

A reader copies the bytes that a word names, then reads the word and the epoch again. The owner
writes the bytes before the word that names them, and changes the word before it reuses the bytes.
An object that moves by less than its length is torn meanwhile; its checksum shows that. A handle is
valid if its generation is odd and equals its slot's. A slot that reaches the last generation is
never used again.

A machine page is backed if it has memory. A backed page is idle if no zspage touches it. The pool
keeps some idle pages and returns runs of others to the system. It also allocates memory in runs:
what the current batch still needs, and a 256th of the held memory ahead.

Invariants (`audit.py` checks them)
* Ranges tile [0, top). No two neighbours are free, and the last range is a zspage. A zspage has at
  least one object.
* pages[p] names the first zspage that touches page p, or is 0 if none does. A page that a zspage
  touches is backed.
* held is the size of all backed pages, idle the number of backed pages that no zspage touches, and
  free_grains the number of grains in free ranges.
* A zspage with a hole is in the list of its class and fullness; a full one is in no list. A free
  range is in the list of its length.
* A live word names an object whose bit is set in its zspage, and each set bit has one word.

Locks: one mutex per pool. A thread waits for it without the GIL and holds it within one call. No
callback runs under it. A thread tries for a moment before it sleeps: most steps under the mutex
take a tenth of a microsecond, and sleeping and waking takes fifty times as long.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_Index
from libc.errno cimport EBADF, EINVAL, ENOMEM, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.compaction cimport compact_pool, fragmented_bytes
from batchzip.core.memory cimport (
    bz_malloc, machine_page, memory_close, memory_create, memory_grow, memory_held, memory_reserve,
)
from batchzip.core.ring cimport forks
from batchzip.core.zspages cimport (
    CLASSES, FIRST_SLOT, FREE_LISTS, FREE_WORDS, GENERATION_SHIFT, GROUPS, HEADER, MOST_SLOTS,
    ONE, RETIRED, SLOT, UINT64_MAX, Mutex, Range, SizeClass, bytes_at, bz_load64, bz_log2,
    bz_lowest, bz_order_stores, bz_store64, end_zspage, has_spare_range, length_of_word,
    make_zspage, place_of, punch_idle, regroup, words_of, zspage_at,
)

from batchzip.errors import BadArgument, BadHandle, ClosedError, ForkedProcess, PoolFull
from batchzip.wording import shown

cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()

cdef extern from *:
    """
    #define BZ_FIRST_BYTES ((uint64_t)16 << 30)
    #define BZ_LEAST_BYTES ((uint64_t)2 << 20)
    """
    uint64_t FIRST_BYTES "BZ_FIRST_BYTES"  # initial address space
    uint64_t LEAST_BYTES "BZ_LEAST_BYTES"  # minimum, if the system limits the address space
    int pthread_mutex_init(Mutex *, void *) noexcept nogil
    int pthread_mutex_lock(Mutex *) noexcept nogil
    int pthread_mutex_trylock(Mutex *) noexcept nogil
    int pthread_mutex_unlock(Mutex *) noexcept nogil
    void bz_pause() noexcept nogil

cdef enum:
    IDLE_PAGES = 32  # idle pages that may be kept, besides a 64th of the held ones
    SETTLE_PAGES = 512  # maximum idle pages returned at once
    TRIES = 32  # attempts, about a microsecond, before a thread sleeps or gives up

# Objects.

cdef inline uint32_t _grains(const PoolState *pool, uint32_t length) noexcept nogil:
    """Return the class of an object of `length` bytes."""
    return (length + HEADER + (1 << pool.grain_shift) - 1) >> pool.grain_shift


cdef inline uint64_t _word(const PoolState *pool, uint64_t handle) noexcept nogil:
    """Return the word of a handle, or 0 if the handle is not live."""
    cdef uint64_t slot = handle & SLOT, word
    if slot < FIRST_SLOT or slot >= pool.slots:
        return 0
    word = bz_load64(&words_of(pool)[slot])
    if (word ^ handle) >> GENERATION_SHIFT or not word & ONE or place_of(pool, word) >= pool.top:
        return 0
    return word


cdef bint _has_slot(PoolState *pool) noexcept nogil:
    """Make sure that a slot is free. Return False if memory is short."""
    cdef uint64_t bytes = pool.slots * 8, size = pool.words.size
    cdef uint64_t page = <uint64_t>1 << pool.page_shift, more = page
    if pool.free_slot or pool.next_slot < pool.slots:
        return True
    more += bytes // 64 & -page
    if (bytes + more) // 8 > MOST_SLOTS:
        return False
    while bytes + more > size:
        size *= 2
    if size > pool.words.size and memory_grow(&pool.words, size):
        return False
    if memory_reserve(&pool.words, bytes, more):
        more = page
        if memory_reserve(&pool.words, bytes, more):
            return False
    pool.slots = (bytes + more) // 8
    bz_store64(&words_of(pool)[1], pool.slots)
    return True


cdef int _allocate(PoolState *pool, uint32_t length, uint64_t *handle) noexcept nogil:
    cdef uint32_t grains = _grains(pool, length), at = 0, bit
    cdef int group = GROUPS - 1, error = 0
    cdef SizeClass *kind = &pool.classes[grains]
    cdef Range *span
    cdef uint64_t slot, place, word
    if not _has_slot(pool):
        return -ENOMEM
    while group >= 0 and not at:
        at = kind.groups[group]
        group -= 1
    if not at:
        at = make_zspage(pool, grains, &error)
        if not at:
            return error
    span = &pool.ranges[at]
    bit = bz_lowest(~span.live)
    span.live |= <uint64_t>1 << bit
    regroup(pool, at)
    kind.live += 1
    slot = pool.free_slot
    if slot:
        pool.free_slot = words_of(pool)[slot] & SLOT
    else:
        slot = pool.next_slot
        pool.next_slot += 1
    place = span.first + bit * grains
    (<uint32_t *>bytes_at(pool, place))[0] = <uint32_t>slot
    word = (words_of(pool)[slot] & ~SLOT) + ONE
    bz_store64(&words_of(pool)[slot], word | place << pool.length_bits | (length - 1))
    pool.objects += 1
    pool.stored += length
    handle[0] = word | slot
    return 0


cdef uint32_t _free(PoolState *pool, uint64_t handle, bint is_unused) noexcept nogil:
    """Free an object. If `is_unused`, its handle was not returned, so reuse its generation."""
    cdef uint64_t word = _word(pool, handle), slot = handle & SLOT, place
    cdef uint32_t length, at, bit
    cdef Range *span
    if not word:
        return 0
    place = place_of(pool, word)
    length = length_of_word(pool, word)
    at = zspage_at(pool, place)
    if not at:
        return 0
    span = &pool.ranges[at]
    bit = <uint32_t>(place - span.first) // span.grains
    if not span.live >> bit & 1:
        return 0
    word = (word & ~SLOT) - ONE if is_unused else (word & ~SLOT) + ONE
    if word < RETIRED:
        word |= pool.free_slot
        pool.free_slot = slot
    bz_store64(&words_of(pool)[slot], word)
    bz_order_stores()
    span.live &= ~(<uint64_t>1 << bit)
    pool.classes[span.grains].live -= 1
    pool.objects -= 1
    pool.stored -= length
    if span.live:
        regroup(pool, at)
    else:
        end_zspage(pool, at)
    return length


cdef void pool_lock(PoolState *pool) noexcept nogil:
    """Take the mutex. Try for a moment before sleeping, as most steps under it are short."""
    if not pool_try_lock(pool):
        pthread_mutex_lock(&pool.mutex)


cdef bint pool_try_lock(PoolState *pool) noexcept nogil:
    """Take the mutex, unless another thread holds it for more than a moment.

    Return whether it was taken.
    """
    cdef int number
    for number in range(TRIES):
        if pthread_mutex_trylock(&pool.mutex) == 0:
            return True
        bz_pause()
    return False


cdef void pool_unlock(PoolState *pool) noexcept nogil:
    pthread_mutex_unlock(&pool.mutex)


cdef int pool_allocate(
    PoolState *pool, uint32_t count, const uint32_t *lengths, uint64_t *handles
) noexcept nogil:
    """Allocate an object for each length, or none. Return 0 or a negative errno."""
    cdef uint32_t number
    cdef int error = 0
    cdef SizeClass *kind
    cdef uint32_t grains
    if pool.closed:
        return -EBADF
    pool.fresh = 0
    for number in range(count):
        if lengths[number] - 1 >= pool.page_size:
            return -EINVAL
        grains = _grains(pool, lengths[number])
        kind = &pool.classes[grains]
        if kind.live == kind.room:
            pool.fresh += grains
    pool.fresh -= min(pool.fresh, pool.free_grains)
    number = 0
    while number < count:
        error = _allocate(pool, lengths[number], &handles[number])
        if error:
            break
        pool.fresh -= min(pool.fresh, <uint64_t>_grains(pool, lengths[number]))
        number += 1
    pool.fresh = 0
    if error:
        while number:
            number -= 1
            _free(pool, handles[number], True)
        pool_settle(pool)
    return error


cdef uint8_t *pool_bytes(PoolState *pool, uint64_t handle, uint32_t *length) noexcept nogil:
    """Return the address of an object's bytes and set their length, or NULL if it is not live."""
    cdef uint64_t word = _word(pool, handle)
    if not word:
        return NULL
    length[0] = length_of_word(pool, word)
    return bytes_at(pool, place_of(pool, word)) + HEADER


cdef uint32_t pool_free(PoolState *pool, uint64_t handle) noexcept nogil:
    """Free an object. Return its length, or 0 if it is not live."""
    return _free(pool, handle, False)


cdef void pool_settle(PoolState *pool) noexcept nogil:
    """Return idle memory beyond the reserve to the system."""
    cdef uint64_t most = IDLE_PAGES + (pool.held >> pool.page_shift) // 64
    if pool.idle > most:
        punch_idle(pool, most - min(most // 2, <uint64_t>SETTLE_PAGES))


cdef struct PoolFigures:
    uint64_t held
    uint64_t stored
    uint64_t objects
    uint64_t fragmented
    uint64_t tables


cdef bint _read_figures(PoolState *pool, bint waits, PoolFigures *found) noexcept nogil:
    """Take a snapshot of the figures.

    Return False if the mutex was busy and `waits` is not set: the caller holds the GIL.
    """
    if waits:
        pool_lock(pool)
    elif not pool_try_lock(pool):
        return False
    found.held, found.stored, found.objects = pool.held, pool.stored, pool.objects
    found.fragmented = fragmented_bytes(pool)
    found.tables = pool.slots * 8 + pool.range_room * sizeof(Range)
    found.tables += pool.page_room * sizeof(uint32_t)
    pool_unlock(pool)
    return True


# The Python interface.

cdef class Allocator:
    """A pool for `batchzip.pool.Pool`, which documents the methods. Arrays have one dimension.

    `limit`  limit of the bytes held, or None.

    Raises LimitReached or PoolFull if the system refuses memory.
    """

    def __cinit__(self, uint32_t page_size, limit, str name):
        cdef PoolState *pool = &self.state
        cdef uint64_t page = machine_page()
        pool.closed = True
        self.made_in = forks()
        pool.page_size = page_size
        pool.length_bits = bz_log2(page_size)
        pool.grain_shift = max(<int>pool.length_bits - 8, 4)
        pool.page_shift = bz_log2(page)
        pthread_mutex_init(&pool.mutex, NULL)
        pool.limit = limit_of(limit)
        memory_create(&pool.data, name, FIRST_BYTES, LEAST_BYTES)
        memory_create(&pool.words, f"{name}-words", FIRST_BYTES // 64, page, keeps=True)
        if memory_reserve(&pool.words, 0, page):
            raise PoolFull("no memory for the first handles")
        pool.range_count = 1  # record 0 stands for no range
        if not has_spare_range(pool):
            raise PoolFull("no memory for a pool's tables")
        memset(pool.ranges, 0, sizeof(Range))
        pool.slots = page // 8
        pool.next_slot = FIRST_SLOT
        words_of(pool)[1] = pool.slots
        pool.closed = False

    def __dealloc__(self):
        self.close()

    cdef int refuse(self) except -1:
        """Raise ForkedProcess or ClosedError if the pool cannot be used."""
        if self.made_in != forks():
            raise ForkedProcess("this pool belongs to the process that forked this one")
        if self.ended:
            raise ClosedError("this pool is closed")
        return 0

    def close(self) -> None:
        cdef PoolState *pool = &self.state
        self.ended = True
        if self.made_in != forks():
            # Leave the tables alone: at the fork, another thread may have been changing them.
            memory_close(&pool.data)
            memory_close(&pool.words)
            return
        with nogil:
            pool_lock(pool)
            pool.closed = True
            pool.slots = pool.top = 0
            memory_close(&pool.data)
            memory_close(&pool.words)
            free(pool.ranges)
            free(pool.pages)
            pool.ranges = NULL
            pool.pages = NULL
            pool_unlock(pool)

    def set_limit(self, limit) -> None:
        """Set the limit of the bytes held; None means no limit."""
        cdef uint64_t most = limit_of(limit)
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            bz_store64(&self.state.limit, most)
            pool_unlock(&self.state)

    # Objects.

    def allocate(self, lengths, handles) -> None:
        """Allocate objects. Fill `handles` (uint64); `lengths` is uint32. Raise PoolFull."""
        cdef const uint32_t *asked = <const uint32_t *>_address(lengths, False)
        cdef uint64_t *given = <uint64_t *>_address(handles, True)
        cdef uint32_t count = len(lengths)
        cdef int error
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            error = pool_allocate(&self.state, count, asked, given)
            pool_unlock(&self.state)
        self.raise_refusal(error)

    cdef int raise_refusal(self, int error) except -1:
        """Raise the exception for an error of `pool_allocate`."""
        cdef uint64_t held
        if error == 0:
            return 0
        self.refuse()
        held = self.figures()["held"]
        if error == -EINVAL:
            raise BadArgument(f"an object has 1 to {self.state.page_size} bytes")
        if error == -ENOSPC:
            raise PoolFull(
                f"{held} of at most {self.limit()} bytes are held, more do not fit",
                at_limit=True,
            )
        raise PoolFull(f"{held} bytes are held, and the system has no more memory")

    def put(self, data) -> int:
        """Allocate and fill an object. Return its handle. Raise BadArgument or PoolFull."""
        cdef Py_buffer view
        cdef uint64_t handle = 0
        cdef uint32_t length = 0
        cdef int error
        self.refuse()
        _get_buffer(data, &view)
        with nogil:
            error = _fill(&self.state, 1, &view, &length, &handle)
        PyBuffer_Release(&view)
        self.raise_refusal(error)
        return handle

    def put_many(self, list buffers, handles) -> None:
        """Allocate and fill an object for each buffer. Raise as `put`."""
        cdef uint64_t *given = <uint64_t *>_address(handles, True)
        cdef _Views views = _Views(buffers)
        cdef int error
        self.refuse()
        with nogil:
            error = _fill(&self.state, <uint32_t>views.count, views.views, views.lengths, given)
        views.release()
        self.raise_refusal(error)

    def free(self, handles) -> int:
        """Free distinct objects, or none. Return the sum of their lengths. Raise BadHandle."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef uint64_t freed = 0
        cdef uint32_t count = len(handles), number
        cdef Py_ssize_t bad
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            bad = _find_bad(&self.state, count, given)
            if bad < 0:
                for number in range(count):
                    freed += pool_free(&self.state, given[number])
                pool_settle(&self.state)
            pool_unlock(&self.state)
        self.raise_bad(bad, given)
        return freed

    def free_one(self, handle) -> int:
        """Free one object; see `free`."""
        cdef uint64_t number = _handle(handle)
        cdef uint32_t length
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            length = pool_free(&self.state, number)
            pool_settle(&self.state)
            pool_unlock(&self.state)
        if not length:
            self.raise_bad(0, &number)
        return length

    cdef int raise_bad(self, Py_ssize_t index, const uint64_t *handles) except -1:
        """Raise BadHandle for the handle at `index`. Do nothing for −1."""
        if index < 0:
            return 0
        self.refuse()
        raise BadHandle(f"handle {handles[index]} was never given out, or is freed")

    def write(self, handles, list buffers) -> None:
        """Fill all objects, or none. Raise BadHandle, or BadArgument if a length differs."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef PoolState *pool = &self.state
        cdef _Views views = _Views(buffers)
        cdef uint32_t count = len(buffers), number, length = 0
        cdef Py_ssize_t bad, wrong = -1, wrong_length = 0
        cdef uint8_t *target
        self.refuse()
        with nogil:
            pool_lock(pool)
            bad = _find_bad(pool, count, given)
            if bad < 0:
                for number in range(count):
                    pool_bytes(pool, given[number], &length)
                    if <Py_ssize_t>length != views.views[number].len:
                        wrong = number
                        break
            if bad < 0 and wrong < 0:
                for number in range(count):
                    target = pool_bytes(pool, given[number], &length)
                    memcpy(target, views.views[number].buf, length)
            pool_unlock(pool)
        if wrong >= 0:
            wrong_length = views.views[wrong].len
        views.release()
        self.raise_bad(bad, given)
        if wrong >= 0:
            raise BadArgument(f"{wrong_length} bytes for an object of {length}")

    def read(self, handle) -> bytes:
        """Return a copy of an object. Raise BadHandle."""
        cdef uint64_t number = _handle(handle)
        cdef uint32_t length = 0
        cdef const uint8_t *place
        cdef char *target
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            place = pool_bytes(&self.state, number, &length)
            pool_unlock(&self.state)
        if place is NULL:
            self.raise_bad(0, &number)
        # The length of a handle's object never changes, but it may have been freed meanwhile.
        copy = PyBytes_FromStringAndSize(NULL, length)
        target = PyBytes_AS_STRING(copy)
        with nogil:
            pool_lock(&self.state)
            place = pool_bytes(&self.state, number, &length)
            if place is not NULL:
                memcpy(target, place, length)
            pool_unlock(&self.state)
        if place is NULL:
            self.raise_bad(0, &number)
        return copy

    def read_many(self, handles, lengths) -> list[bytes]:
        """Return a snapshot of the objects. Fill `lengths` (uint32). Raise BadHandle."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef uint32_t *sizes
        cdef uint32_t number, count = len(handles), length = 0
        cdef Py_ssize_t bad
        self.lengths(handles, lengths)
        sizes = <uint32_t *>_address(lengths, True)
        copies = [PyBytes_FromStringAndSize(NULL, sizes[number]) for number in range(count)]
        cdef char **targets = <char **>bz_malloc(count * sizeof(char *) + 1)
        if targets is NULL:
            raise MemoryError("no memory for the addresses of copies")
        for number in range(count):
            targets[number] = PyBytes_AS_STRING(copies[number])
        with nogil:
            pool_lock(&self.state)
            bad = _find_bad(&self.state, count, given)
            if bad < 0:
                for number in range(count):
                    memcpy(
                        targets[number],
                        pool_bytes(&self.state, given[number], &length), sizes[number],
                    )
            pool_unlock(&self.state)
        free(targets)
        self.raise_bad(bad, given)
        return copies

    def lengths(self, handles, lengths) -> None:
        """Fill `lengths` (uint32) with the lengths of the objects. Raise BadHandle."""
        cdef const uint64_t *given = <const uint64_t *>_address(handles, False)
        cdef uint32_t *sizes = <uint32_t *>_address(lengths, True)
        cdef uint32_t number, count = len(handles)
        cdef Py_ssize_t bad
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            bad = _find_bad(&self.state, count, given)
            if bad < 0:
                for number in range(count):
                    pool_bytes(&self.state, given[number], &sizes[number])
            pool_unlock(&self.state)
        self.raise_bad(bad, given)

    def list_handles(self, handles) -> int:
        """Return the number of live objects. List their handles if `handles` has room for all."""
        cdef uint64_t *given = <uint64_t *>_address(handles, True)
        cdef uint64_t room = len(handles), count, slot, word
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            count = self.state.objects
            if count <= room:
                room = 0
                for slot in range(FIRST_SLOT, min(self.state.slots, self.state.next_slot)):
                    word = words_of(&self.state)[slot]
                    if word & ONE and room < count:
                        given[room] = (word & ~SLOT) | slot
                        room += 1
            pool_unlock(&self.state)
        self.refuse()
        return count

    # Memory.

    def compact(self, int64_t most) -> int:
        """Move about `most` objects to close gaps. Return the bytes returned to the system."""
        cdef uint64_t given = 0
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            if not self.state.closed:
                given = compact_pool(&self.state, most)
            pool_unlock(&self.state)
        return given

    def figures(self) -> dict[str, int]:
        """Return a snapshot of the figures: held, stored, objects, fragmented, tables."""
        cdef PoolFigures found
        self.refuse()
        if not _read_figures(&self.state, False, &found):
            with nogil:
                _read_figures(&self.state, True, &found)
        return {
            "held": found.held, "stored": found.stored, "objects": found.objects,
            "fragmented": found.fragmented, "tables": found.tables,
        }

    def limit(self) -> int | None:
        """Return the limit of the bytes held, or None."""
        cdef uint64_t limit
        self.refuse()
        limit = bz_load64(&self.state.limit)
        return None if limit == UINT64_MAX else limit

    def classes(self) -> list[tuple[int, int, int, int, int, int]]:
        """Return the fields of ClassUse for each class that has a zspage."""
        cdef uint32_t grains
        cdef SizeClass kinds[CLASSES]
        cdef SizeClass *kind
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            memcpy(kinds, self.state.classes, sizeof(kinds))
            pool_unlock(&self.state)
        lines = []
        for grains in range(1, CLASSES):
            kind = &kinds[grains]
            if kind.zspages:
                size = grains << self.state.grain_shift
                lines.append((
                    min(size - HEADER, self.state.page_size), kind.zspages, kind.room, kind.live,
                    kind.room * size, (kind.room - kind.live) * size,
                ))
        return lines

    def class_bytes(self, uint32_t length) -> int:
        """Return the bytes of memory that an object of `length` bytes takes."""
        return _grains(&self.state, length) << self.state.grain_shift

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors of the objects and of the words. The pool keeps owning them."""
        self.refuse()
        return self.state.data.fd, self.state.words.fd

    # For tests.

    def extent(self, handle) -> tuple[int, int]:
        """Return the offsets at which an object's bytes begin and end."""
        cdef uint64_t number = _handle(handle), at = 0
        cdef uint32_t length = 0
        cdef const uint8_t *place
        self.refuse()
        with nogil:
            pool_lock(&self.state)
            place = pool_bytes(&self.state, number, &length)
            at = place - self.state.data.base
            pool_unlock(&self.state)
        if place is NULL:
            self.raise_bad(0, &number)
        return at, at + length

    def tables(self) -> dict[str, object]:
        """Return copies of all tables. They are consistent if no other thread uses the pool."""
        cdef PoolState *pool = &self.state
        self.refuse()
        # Keep the GIL: only `audit.check` calls this. Disable finalizers, which may call the pool.
        cdef bint collects = PyGC_Disable()
        pool_lock(pool)
        try:
            return {
                "grain_shift": pool.grain_shift, "page_shift": pool.page_shift,
                "length_bits": pool.length_bits, "held": pool.held, "stored": pool.stored,
                "objects": pool.objects, "slots": pool.slots, "next_slot": pool.next_slot,
                "free_slot": pool.free_slot, "last": pool.last, "top": pool.top,
                "free_grains": pool.free_grains, "idle": pool.idle,
                "spare_range": pool.spare_range, "range_count": pool.range_count,
                "held_by_kernel": memory_held(&pool.data),
                "words_by_kernel": memory_held(&pool.words),
                "words": (<char *>pool.words.base)[:pool.slots * 8],
                "ranges": (<char *>pool.ranges)[:pool.range_count * sizeof(Range)],
                "pages": (<char *>pool.pages)[:pool.page_room * sizeof(uint32_t)],
                "free_map": [pool.free_map[at] for at in range(FREE_WORDS)],
                "free_lists": [pool.free_lists[at] for at in range(FREE_LISTS)],
                "classes": [
                    (kind.live, kind.room, kind.zspages, [kind.groups[at] for at in range(GROUPS)])
                    for kind in pool.classes[:CLASSES]
                ],
            }
        finally:
            pool_unlock(pool)
            if collects:
                PyGC_Enable()


cdef int _fill(
    PoolState *pool, uint32_t count, const Py_buffer *views, uint32_t *lengths, uint64_t *handles
) noexcept nogil:
    """Allocate objects, and copy the buffers into them. Return as `pool_allocate`."""
    cdef uint32_t number, length = 0
    cdef int error
    for number in range(count):
        lengths[number] = <uint32_t>min(<uint64_t>views[number].len, <uint64_t>0xFFFFFFFF)
    pool_lock(pool)
    error = pool_allocate(pool, count, lengths, handles)
    if not error:
        for number in range(count):
            memcpy(pool_bytes(pool, handles[number], &length), views[number].buf, lengths[number])
    pool_unlock(pool)
    return error


cdef Py_ssize_t _find_bad(PoolState *pool, uint32_t count, const uint64_t *handles) noexcept nogil:
    """Return the index of the first handle that is not live, or −1."""
    cdef uint32_t number
    for number in range(count):
        if not _word(pool, handles[number]):
            return number
    return -1


cdef uint64_t limit_of(limit) except? 0:
    """Return a limit of bytes; None means that there is none."""
    return UINT64_MAX if limit is None else min(limit, <object>UINT64_MAX)


cdef uint64_t _handle(handle) except? 0:
    """Return a handle as a number. Raise BadHandle."""
    try:
        return PyNumber_Index(handle)  # reject floats
    except (TypeError, OverflowError):
        raise BadHandle(f"a handle is an integer from 0 to 2⁶⁴−1, not {shown(handle)}") from None


cdef int _get_buffer(data, Py_buffer *view) except -1:
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except (TypeError, ValueError, BufferError) as error:
        raise BadArgument(f"not a contiguous buffer of bytes: {error}") from None
    return 0


cdef class _Views:
    """Exported buffers and their lengths. Raises BadArgument for an object that is not a buffer."""

    cdef Py_buffer *views
    cdef uint32_t *lengths
    cdef Py_ssize_t count

    def __cinit__(self, list buffers):
        cdef Py_ssize_t count = len(buffers)
        self.views = <Py_buffer *>bz_malloc(count * (sizeof(Py_buffer) + sizeof(uint32_t)) + 1)
        if self.views is NULL:
            raise MemoryError("no memory for the addresses of buffers")
        self.lengths = <uint32_t *>(self.views + count)
        for data in buffers[:count]:
            _get_buffer(data, &self.views[self.count])
            self.count += 1

    cdef void release(self):
        while self.count:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])

    def __dealloc__(self):
        self.release()
        free(self.views)


cdef void *_address(buffer, bint writable) except? NULL:
    """Return the address of a contiguous buffer. The caller keeps the buffer alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | (PyBUF_WRITABLE if writable else 0))
    cdef void *address = view.buf
    PyBuffer_Release(&view)
    return address
