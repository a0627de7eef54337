"""Records: the values of one mapping by key, with the operations of a cache.

    put(key, value) ─▶ compress ─▶ one step: index the key, write the entry, store the object
    get(key)        ─▶ one step: key ─▶ entry ─▶ copy of the object ─▶ verify checksum ─▶ decompress
    shrink(bytes)   ─▶ remove the coldest values until they take at most `bytes` in the pool

A value of up to 64 KiB, or of a page if that is larger, is compressed in one call. If it does not
shrink, it is stored uncompressed. If the result takes up to a page, the value is a record: an
object of its own length. Its entry is in the group's table at the index RECORDS | position, far
beyond the indices of pages. LRU, limits, writeback and checks therefore treat it like every other
entry. If the result takes more than a page, the value lies in slices (slices.pyx), and its entry
says in which.

A larger value is compressed in chunks (chunks.pyx). Its stored form is a record or lies in slices
like that of every other value. A value is one in chunks if and only if it is longer than what is
compressed in one call.

If the codec runs elsewhere, in worker processes or in Python, a larger value is stored as pages by
the mapping (mapping/pages.py). Its entry holds a number. `large` maps that number to a Python
object, which holds the pages' indices. A reader of the pages keeps a reference to that object.

One step under the pool's mutex, without the interpreter, determines what an entry was and what it
becomes. Two threads that change one key do so one after the other. A signal handler that runs
between two lines of Python finds one value for each key.

The GIL. A call for one short value keeps the GIL: if other threads want it, releasing it costs more
than the value takes, and several threads would be slower than one. While a thread holds the GIL, it
only tries to take the mutex, for a microsecond. If that fails, it releases the GIL and waits. So no
thread waits for the mutex while it holds the GIL, or for the GIL while it holds the mutex, and a
long step does not stop the interpreter. (The mutex of the zones is taken under the pool's. It is
held for a few stores and never during I/O.)

    one value, short          GIL ─ compress ─ step        is_faster_with_gil (coder.pyx) decides
    one value, long           GIL ▏compress ─ step▕ GIL
    a batch, alone            GIL ─ keys, buffers ▏(compress ─ step) × 256▕ GIL ─ …
    a batch, with lanes       caller:  part 1 ready │ part 2 ready │ rest of 1 │ store 1 │ part 3 …
                              lanes:                └─ compress 1 ──────────┘ └─ compress 2 ──…

Lanes that are threads (division.pyx) help with a batch that would take one thread SHARED_NS, if no
more batches are under way than there are lanes. A lane gets a whole part, and the caller takes back
what the lane has not begun. The time per value is known from batches that one thread did alone;
every MEASURE_EVERY-th batch is done alone to measure it. Each lane has a coder of the values'
codec, which may have a dictionary that the engine's coder lacks.

Rejected:

* Lanes that store what they compressed. They would wait for the caller's mutex, and the order in
  which values are stored would be undefined.
* Worker processes. Copying the values costs more than compressing them.

Invariants (`fault`)
* A position is live if and only if its entry is a RECORD, a BACKED_RECORD, SLICED or LARGE.
* record_bytes of the entries is the sum of the serialised lengths of all values that are not LARGE.
* `large` has the object of every LARGE entry, and those of entries that are about to become LARGE.

    field                       writer
    index, slices, gauges       the thread that holds the pool's mutex
    large, coders, batches      the thread that holds the GIL, within one call
    a part's values             its caller, and lanes from `share` until its job is done
"""

import secrets

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EBADF, EBADMSG, EDQUOT, EEXIST, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.batch cimport Pointers, Value
from batchzip.core.coder cimport (
    ABORT, COMPRESS, DECOMPRESS, Coder, Coders, CoderState, Stored, count_value, decode_value,
    encode_value, is_faster_with_gil, make_room, most_value, raise_callback_error,
)
from batchzip.core.chunks cimport Chunked, ChunkWork
from batchzip.core.gather cimport Gathered, Row, entry_if_still
from batchzip.core.keyindex cimport (
    NOWHERE, KeyBlock, KeyIndex, KeyView, block_of, index_add, index_bytes, index_close,
    index_drop_block, index_fault, index_find, index_hash, index_merge_into, index_move, index_open,
    index_prepare, index_remove, index_set_deadline, key_start, place_is_live,
)
from batchzip.core.keys cimport Key, decode_key, encode_key
from batchzip.core.entries cimport (
    Entries, EntriesState, entries_count, entries_forget, entries_remove,
)
from batchzip.core.latency cimport TIMED_GET, TIMED_PUT, timer_start
from batchzip.core.lru cimport VALUES, lru_coldest, lru_use
from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_realloc
from batchzip.core.pool cimport (
    pool_allocate, pool_bytes, pool_free, pool_lock, pool_settle, pool_try_lock, pool_unlock,
)
from batchzip.core.ring cimport Ring
from batchzip.core.slices cimport (
    Slices, slices_are, slices_close, slices_copy, slices_fault, slices_free, slices_length,
    slices_list, slices_open, slices_pool_bytes, slices_store, slices_use,
)
from batchzip.core.table cimport (
    BACKED_RECORD, BLOCK, BLOCK_BITS, LARGE, RECORD, SLICED, Entry, table_clear, table_find,
    table_place, table_prepare, table_put,
)

from batchzip.core.coder import is_available as _is_available
from batchzip.core.division import DONE as _DONE, Divider
from batchzip.errors import BadArgument, ClosedError, PageError

cdef extern from "native.h" nogil:
    """
    #define BZ_RECORDS ((uint64_t)1 << 63)
    """
    uint64_t RECORDS "BZ_RECORDS"  # index of the first record; pages are below, slices above
    int64_t bz_coarse_ns()
    int64_t bz_now_ns()
    void bz_sleep_ns(int64_t)

cdef enum:
    EXPIRED = 64  # expired values removed in one step
    PART = 256  # maximum number of values per part without lanes
    SHARED = 128  # maximum number of values per part with lanes
    FEW = 64  # minimum number of values per put with `most`, if they fit as many pages
    PART_BYTES = 128 << 10  # approximate bytes per part with lanes
    ALONE_BYTES = 1 << 20  # approximate bytes per part without lanes
    SHARED_NS = 200_000  # lanes help with a batch that would take one thread this long
    WAIT_NS = 20_000  # wait for a put that still has to register its coders
    READ_NS = 900  # minimum time per value for lanes to help with reads, as they need copies
    MEASURE_EVERY = 64  # every MEASURE_EVERY-th batch is done alone, to measure the time per value
    AHEAD = 16  # bytes in front of a copy; decode_value needs four
    LOOKS = 4  # deadlines that each new value examines

cdef enum RecordOutcome:
    LOADED  # 0, like every success code
    BUSY  # the mutex was not free
    MISSING_KEY
    IS_LARGE
    IS_CHUNKED
    IN_FILE
    OTHER_CODEC
    TOO_LONG

cdef struct State:
    EntriesState *entries
    KeyIndex index
    Slices slices
    uint64_t hits
    uint64_t misses
    uint64_t evictions
    uint64_t expirations
    uint32_t cursor  # position whose deadline is examined next
    bint closed  # the group may still have entries of this mapping

cdef struct NewValue:  # a value that is about to be stored
    Stored stored
    uint8_t kind
    uint64_t number  # of a LARGE value
    int64_t deadline

cdef struct Lookup:  # a value that was found or removed
    Stored stored
    uint64_t index
    Entry entry
    uint64_t removed_large  # number of a LARGE value that was removed, or 0


cdef int64_t _shift_ns = 0


def shift_clock(double seconds) -> None:
    """Move the clock of deadlines forward by `seconds`. Only tests use it."""
    global _shift_ns
    _shift_ns += <int64_t>(seconds * 1e9)


cdef inline int64_t _now() noexcept nogil:
    return bz_coarse_ns() + _shift_ns


def now_ns() -> int:
    """Return the current time on the clock of deadlines, in nanoseconds."""
    return _now()


# Steps. The caller holds the pool's mutex, except in `_lock`, which takes it.

cdef inline bint _lock(State *state, bint waits) noexcept nogil:
    """Take the pool's mutex. Return whether it was taken.

    Without `waits`, only try: the caller holds the GIL and must not wait.
    """
    if not waits:
        return pool_try_lock(state.entries.objects.pool)
    pool_lock(state.entries.objects.pool)
    return True


cdef inline Entry *_entry_of(State *state, uint32_t position) noexcept nogil:
    return table_find(&state.entries.table, RECORDS | position)


cdef inline bint _place_is_over(const KeyBlock *block, uint32_t place, int64_t now) noexcept nogil:
    return block.deadlines is not NULL and 0 < block.deadlines[place] <= now


cdef inline bint _is_over(State *state, uint32_t position, int64_t now) noexcept nogil:
    return _place_is_over(block_of(&state.index, position), position & (BLOCK - 1), now)


cdef bint _join(State *state, uint32_t first) noexcept nogil:
    """Merge a block and its successor into a new block, if they are sparse and memory allows.

    Return whether they were merged.
    """
    cdef KeyIndex *index = &state.index
    cdef uint32_t id = index_merge_into(index, first), other, turn, place, to
    cdef KeyBlock *block
    cdef Entry *old
    cdef Entry entry
    if id == NOWHERE:
        return False
    if table_prepare(&state.entries.table, RECORDS | <uint64_t>id << BLOCK_BITS, BLOCK) < 0:
        index_drop_block(index, id)
        return False
    to = id << BLOCK_BITS
    for turn in range(2):
        other = index.blocks[id].after
        block = index.blocks[other]
        for place in range(block.used):
            if not place_is_live(block, place):
                continue
            index_move(index, other << BLOCK_BITS | place, to)
            old = _entry_of(state, other << BLOCK_BITS | place)
            entry = old[0]
            table_put(&state.entries.table, table_place(&state.entries.table, RECORDS | to), &entry)
            table_clear(&state.entries.table, old)
            to += 1
        index_drop_block(index, other)
    return True


cdef void _tidy(State *state, uint32_t id) noexcept nogil:
    """Free a block that has no value left, or merge it with a neighbour."""
    cdef KeyBlock *block = state.index.blocks[id]
    if not block.live:
        index_drop_block(&state.index, id)
    elif block.before == NOWHERE or not _join(state, block.before):
        _join(state, id)


cdef void _take_out(State *state, uint32_t position, Lookup *got) noexcept nogil:
    """Remove a key and its value. Do not tidy its block."""
    cdef Entry *entry = _entry_of(state, position)
    got.removed_large = entry.value if entry.kind == LARGE else 0
    state.entries.record_bytes -= block_of(&state.index, position).lengths[position & (BLOCK - 1)]
    if entry.kind == SLICED:
        slices_free(state.entries, &state.slices, entry.value)
    entries_remove(state.entries, entry)
    index_remove(&state.index, position)


cdef void _remove(State *state, uint32_t position, Lookup *got) noexcept nogil:
    _take_out(state, position, got)
    _tidy(state, position >> BLOCK_BITS)


cdef bint _expire_one(State *state, Lookup *got) noexcept nogil:
    """Examine the next LOOKS deadlines. Remove the first expired value. Return whether one was."""
    cdef KeyIndex *index = &state.index
    cdef uint32_t look, id, place
    cdef int64_t now
    cdef KeyBlock *block
    if not index.deadline_blocks:
        return False
    now = _now()
    for look in range(LOOKS):
        id = state.cursor >> BLOCK_BITS
        place = state.cursor & (BLOCK - 1)
        block = index.blocks[id] if id < index.block_room else NULL
        if block is NULL or place >= block.used or block.deadlines is NULL:
            id = index.first if block is NULL or block.after == NOWHERE else block.after
            state.cursor = id << BLOCK_BITS
            continue
        state.cursor = NOWHERE if place == BLOCK - 1 and block.after == NOWHERE else (
            block.after << BLOCK_BITS if place == BLOCK - 1 else state.cursor + 1
        )
        if place_is_live(block, place) and _place_is_over(block, place, now):
            state.expirations += 1
            _remove(state, id << BLOCK_BITS | place, got)
            return True
    return False


cdef uint32_t _live_position(State *state, const KeyView *key, Lookup *got) noexcept nogil:
    """Return the position of a key, or NOWHERE. Remove its value if it has expired."""
    cdef uint32_t position = index_find(&state.index, key)
    got.removed_large = 0
    if position != NOWHERE and _is_over(state, position, _now()):
        state.expirations += 1
        _remove(state, position, got)
        position = NOWHERE
    return position


cdef int _put(
    State *state, const KeyView *key, const NewValue *value, bint if_absent, uint64_t limit,
    Lookup *got,
) noexcept nogil:
    """Store a value. Return 0 or a negative errno. On failure the key keeps its old value.

    The errors are −EEXIST, −EBADF (closed), −EDQUOT (beyond `limit`), −ENOMEM and −ENOSPC (the pool
    is at its limit).
    """
    cdef EntriesState *entries = state.entries
    cdef uint32_t position, length = 0
    cdef uint64_t before
    cdef Entry entry
    cdef uint8_t *room
    cdef int code = 0
    if entries.closed or state.closed:
        got.removed_large = 0
        return -EBADF
    position = _live_position(state, key, got)
    if position != NOWHERE and if_absent:
        return -EEXIST
    if limit and value.kind != LARGE:
        before = 0 if position == NOWHERE else _bytes_in_pool(state, _entry_of(state, position))
        if entries.pool_bytes - before + value.stored.length > limit:
            return -EDQUOT
    entry.kind = value.kind
    entry.codec = value.stored.codec
    entry.value = value.number
    entry.checksum = value.stored.checksum
    if value.kind == RECORD and value.stored.length > entries.objects.pool.page_size:
        entry.kind = SLICED
        code = slices_store(
            entries, &state.slices, value.stored.data, value.stored.length, &entry.value
        )
        if code:
            return code
    elif value.kind == RECORD:
        code = pool_allocate(entries.objects.pool, 1, &value.stored.length, &entry.value)
        if code:
            return code
        room = pool_bytes(entries.objects.pool, entry.value, &length)
        memcpy(room, value.stored.data, length)
    code = _enter(state, key, position, value, &entry, length, got)
    if code and entry.kind == RECORD:
        pool_free(entries.objects.pool, entry.value)
    elif code and entry.kind == SLICED:
        slices_free(entries, &state.slices, entry.value)
    return code


cdef uint64_t _bytes_in_pool(State *state, const Entry *entry) noexcept nogil:
    """Return the bytes of a value in the pool, or 0 if it is stored as pages."""
    cdef uint32_t length = 0
    if entry.kind == SLICED:
        return slices_pool_bytes(state.entries, &state.slices, entry.value)
    if entry.kind == RECORD:
        pool_bytes(state.entries.objects.pool, entry.value, &length)
    return length


cdef int _enter(
    State *state, const KeyView *key, uint32_t position, const NewValue *value, Entry *entry,
    uint32_t length, Lookup *got,
) noexcept nogil:
    """Assign to a key an entry whose object exists. Return 0, or −ENOMEM with nothing changed."""
    cdef EntriesState *entries = state.entries
    cdef bint is_new = position == NOWHERE
    cdef Entry *place
    cdef Entry old
    cdef KeyBlock *block
    if is_new:
        position = index_prepare(&state.index, key.length)
        if position == NOWHERE:
            return -ENOMEM
    if (
        table_prepare(&entries.table, RECORDS | position, 1) < 0
        or index_set_deadline(&state.index, position, value.deadline) < 0
    ):
        if is_new and not block_of(&state.index, position).used:
            index_drop_block(&state.index, position >> BLOCK_BITS)
        return -ENOMEM
    entry.epoch = lru_use(&entries.lru, &entries.table, 1, entries.pages + 1)
    place = table_place(&entries.table, RECORDS | position)
    old = place[0]
    table_put(&entries.table, place, entry)
    entries_count(entries, entry, length)
    entries.page_stores += 1
    if is_new:
        index_add(&state.index, position, key)
        entries.pages += 1
    else:
        got.removed_large = old.value if old.kind == LARGE else 0
        if old.kind == SLICED:
            slices_free(entries, &state.slices, old.value)
        entries_forget(entries, &old)
    block = block_of(&state.index, position)
    state.entries.record_bytes += (
        value.stored.raw_length - <uint64_t>block.lengths[position & (BLOCK - 1)]
    )
    block.lengths[position & (BLOCK - 1)] = value.stored.raw_length
    return 0


cdef inline bint _is_chunked(State *state, const Lookup *got) noexcept nogil:
    return got.stored.raw_length > most_value(state.entries.objects.pool.page_size)


cdef int _find(
    State *state, const KeyView *key, uint8_t *room, size_t size, int number, bint peek,
    bint chunked, Lookup *got,
) noexcept nogil:
    """Find a value and copy its object from the pool. It counts as used unless `peek` is set.

    Return a RecordOutcome, −EBADF (closed), or −EBADMSG (damaged). TOO_LONG means that the value in
    the pool has more than `size` bytes. Without `chunked`, a value in chunks is not copied and
    does not count as used. `got` then has the length of its stored form, and IS_CHUNKED is
    returned. With `chunked`, `size` is the room for a stored form.
    """
    cdef EntriesState *entries = state.entries
    cdef uint32_t position
    cdef Entry *entry
    cdef const uint8_t *data = NULL
    cdef size_t needed
    if entries.closed or state.closed:
        got.removed_large = 0
        return -EBADF
    position = _live_position(state, key, got)
    if position == NOWHERE:
        state.misses += not peek
        return MISSING_KEY
    entry = _entry_of(state, position)
    got.index = RECORDS | position
    got.stored.length = 0
    got.stored.codec = entry.codec
    got.stored.checksum = entry.checksum
    got.stored.raw_length = block_of(&state.index, position).lengths[position & (BLOCK - 1)]
    if entry.kind == RECORD or entry.kind == SLICED:
        if entry.codec and entry.codec != number:
            return OTHER_CODEC
        if entry.kind == SLICED:
            got.stored.length = slices_length(entry.value)
        else:
            data = pool_bytes(entries.objects.pool, entry.value, &got.stored.length)
        needed = got.stored.raw_length
        if _is_chunked(state, got):
            if not chunked:
                return IS_CHUNKED
            needed = got.stored.length
        if needed > size:
            return TOO_LONG
        if got.stored.length > size:
            return -EBADMSG
    if not peek:
        if entry.kind == SLICED:  # before the entry: many slices begin a new epoch
            slices_use(entries, &state.slices, entry.value)
        entry.epoch = lru_use(&entries.lru, &entries.table, 1, entries.pages)
        entries.page_loads += 1
        state.hits += 1
    got.entry = entry[0]
    if entry.kind == LARGE:
        return IS_LARGE
    if entry.kind == BACKED_RECORD:
        return IN_FILE
    got.stored.data = room
    if entry.kind == SLICED:
        return LOADED if slices_copy(entries, &state.slices, entry.value, room) else IN_FILE
    memcpy(room, data, got.stored.length)
    return LOADED


# Values.

cdef int _find_one(
    State *state, const KeyView *key, Coder coder, int number, bint peek, bint waits, Lookup *got
) noexcept nogil:
    """Find a value and copy its object to the coder's memory. Return as `_find`, or BUSY."""
    cdef int found
    if not _lock(state, waits):
        return BUSY
    found = _find(
        state, key, coder.state.output + AHEAD, coder.state.room, number, peek, False, got
    )
    if found == TOO_LONG:
        found = -ENOMEM
        if make_room(&coder.state, got.stored.raw_length) == 0:
            found = _find(
                state, key, coder.state.output + AHEAD, coder.state.room, number, peek, False, got
            )
    pool_unlock(state.entries.objects.pool)
    return found


cdef int _join_rows(
    const Row *rows, uint32_t count, uint8_t *room, size_t size, Lookup *got
) noexcept nogil:
    """Join a value's gathered objects in `size` bytes of memory. Return LOADED or an errno."""
    cdef uint32_t at, length = 0
    for at in range(count):
        if rows[at].failure:
            return rows[at].failure
        if rows[at].data is NULL or rows[at].length > size - length:
            return -EBADMSG
        memcpy(room + length, rows[at].data, rows[at].length)
        length += rows[at].length
    if got.entry.kind == SLICED and length != slices_length(got.entry.value):
        return -EBADMSG
    got.stored.data = room
    got.stored.length = length
    return LOADED


cdef int _restore(CoderState *coder, const Lookup *got, uint8_t *output) noexcept nogil:
    """Decompress a copied value to `output`. Return LOADED, a negative errno or ABORT."""
    cdef Stored stored = got.stored
    cdef int code = decode_value(coder, &got.stored, output)
    if stored.codec:
        stored.codec = 0 if code else stored.codec
        count_value(coder, DECOMPRESS, &stored)
    return code


cdef bytes _restored(Coder coder, const Lookup *got, int *code):
    """Return the bytes of a copied value. `code` gets LOADED or the negative errno of a failure."""
    cdef bytes result = PyBytes_FromStringAndSize(NULL, got.stored.raw_length)
    cdef uint8_t *output = <uint8_t *>PyBytes_AS_STRING(result)
    # For a short value, releasing the GIL costs more than it gains.
    if is_faster_with_gil(&coder.state, DECOMPRESS, got.stored.raw_length):
        code[0] = _restore(&coder.state, got, output)
    else:
        with nogil:
            code[0] = _restore(&coder.state, got, output)
    if code[0] == ABORT:
        raise_callback_error(&coder.state)
    return result


cdef int _remove_if(
    State *state, const KeyView *key, const Entry *expected, bint waits, Lookup *got
) noexcept nogil:
    """Remove a value if its entry equals `expected`, or in any case if that is NULL.

    Return whether it was removed, or −EAGAIN if the mutex was busy.
    """
    cdef uint32_t position = NOWHERE
    cdef bint same = False
    cdef const Entry *entry
    got.removed_large = 0
    if not _lock(state, waits):
        return -EAGAIN
    if not state.entries.closed:
        position = index_find(&state.index, key)
    if position != NOWHERE:
        entry = _entry_of(state, position)
        same = expected is NULL or (
            entry.kind == expected.kind and entry.value == expected.value
            and entry.checksum == expected.checksum
        )
        if expected is NULL and _is_over(state, position, _now()):
            state.expirations += 1
            same = False
            _remove(state, position, got)
        elif same:
            _remove(state, position, got)
        pool_settle(state.entries.objects.pool)
    pool_unlock(state.entries.objects.pool)
    return same


cdef int _store(
    State *state, const KeyView *key, const NewValue *value, bint if_absent, uint64_t limit,
    bint waits, Lookup *got, uint64_t *expired,
) noexcept nogil:
    """Remove one expired value, if one is found, then store a value.

    `expired` gets the number of the expired value if that was LARGE. Return as `_put`, or −EAGAIN
    if the mutex was busy.
    """
    cdef Lookup over
    cdef int code
    got.removed_large = expired[0] = 0
    if not _lock(state, waits):
        return -EAGAIN
    if not state.entries.closed and _expire_one(state, &over):
        expired[0] = over.removed_large
    code = _put(state, key, value, if_absent, limit, got)
    pool_settle(state.entries.objects.pool)
    pool_unlock(state.entries.objects.pool)
    return code


cdef bint _contains(State *state, const KeyView *key, bint waits, bint *found) noexcept nogil:
    """Find out whether a key exists. Return False, with `found` unset, if the mutex was busy."""
    cdef uint32_t position
    if not _lock(state, waits):
        return False
    found[0] = False
    if not state.entries.closed:
        position = index_find(&state.index, key)
        found[0] = position != NOWHERE and not _is_over(state, position, _now())
    pool_unlock(state.entries.objects.pool)
    return True


cdef inline void _view(const KeyIndex *index, Key key, KeyView *view) noexcept:
    view.data = key.data
    view.length = key.length
    view.compared = key.compared
    view.compared_length = key.compared_length
    view.hash = index_hash(index, key.compared, key.compared_length)


cdef Found _make_found(
    const Lookup *got, bytes data, bytes indices, Chunked chunked=None
):
    cdef Found found = Found.__new__(Found)
    found.got = got[0]
    found.data = data
    found.indices = indices
    found.chunked = chunked
    return found


cdef bint _is_still(State *state, const Lookup *got) noexcept nogil:
    """Return whether a value is still where it was found. The caller holds the pool's mutex."""
    if state.entries.closed or state.closed:
        return False
    return entry_if_still(&state.entries.table, got.index, &got.entry) is not NULL


cdef bint _is_unchanged(
    State *state, const Lookup *got, const uint64_t *indices, Gathered gathered
) noexcept nogil:
    """Return whether a value is still where it was found, and its objects are the gathered ones.

    An equal value that was stored meanwhile may begin with the same slice, and go on with others.
    The caller holds the pool's mutex.
    """
    cdef uint32_t row
    if not _is_still(state, got):
        return False
    if gathered is None:
        return True
    if got.entry.kind == SLICED and not slices_are(
        &state.slices, got.entry.value, indices, gathered.count
    ):
        return False
    for row in range(gathered.count):
        if entry_if_still(
            &state.entries.table, indices[row], &gathered.rows[row].entry
        ) is NULL:
            return False
    return True


MISSING = object()
"""The result of `get` for an absent key."""


cdef class LargeValue:
    """A value that is stored as pages: the lengths of its parts in bytes, and its indices."""

    cdef uint64_t number
    cdef readonly list lengths
    cdef readonly object reservation

    def __init__(self, list lengths not None, reservation):
        self.lengths = lengths
        self.reservation = reservation


cdef class Found:
    """A value that a look-up found.

    `data` holds its bytes. If `data` is None, pass it to `finish`, with the gathered objects at
    `indices`, an array of uint64, if there are any.
    """

    cdef readonly bytes indices
    cdef readonly bytes data
    cdef Chunked chunked
    cdef Lookup got


cdef class Timed:
    """The result of a `look_up` whose latency is measured, and when the call began."""

    cdef readonly object found
    cdef readonly int64_t started


cdef int _check_length(size_t length, size_t most) except -1:
    if length > most:
        raise ValueError(f"a value of {length} bytes is above {most} bytes: store it as pages")
    return 0


@cython.final
cdef class _Part(Pointers):
    """Values of a batch that are processed together, partly by lanes.

    To store values, call `add_key` and `add_value` for each, then `set_places`. To read values,
    call `add_key` for each, then `set_places`, then `_find_part` or `_get_part`.
    """

    cdef uint32_t room  # maximum number of values
    cdef uint32_t keys  # number of keys added
    cdef KeyView *views
    cdef Value *values  # to compress or to decompress; absent keys have none
    cdef Lookup *got
    cdef int *outcomes
    cdef Py_buffer *buffers
    cdef uint32_t held  # number of buffers to release
    cdef uint8_t *key_bytes
    cdef size_t key_room
    cdef size_t key_used
    cdef uint8_t *data  # compressed values; without lanes, the values of a read
    cdef size_t data_room
    cdef size_t data_used
    cdef uint8_t *outputs  # decompressed values
    cdef size_t output_used
    cdef Coders coders
    cdef object divider
    cdef tuple rings
    cdef list lane_coders
    cdef _Part first  # the part that owns the memory, of which this one uses the other half

    cdef int begin_with(
        self, uint32_t room, Coders coders, int number, divider, tuple rings, list lane_coders
    ) except -1:
        """Allocate the tables for `room` values of the codec with this number."""
        cdef bint reads = self.state.operation == DECOMPRESS
        cdef size_t at, lanes = 0 if lane_coders is None else len(lane_coders)
        cdef uint8_t *tables
        self.coders, self.divider = coders, divider
        self.rings, self.lane_coders = rings, lane_coders
        self.state.number = number
        self.wants_order = False
        tables = <uint8_t *>bz_calloc(
            1, room * (sizeof(KeyView) + sizeof(Value) + 2 * sizeof(uint32_t))
            + room * (sizeof(Lookup) + sizeof(int) if reads else sizeof(Py_buffer))
            + lanes * sizeof(void *)
        )
        if tables is NULL:
            raise MemoryError("no memory for a batch of values")
        self.room = room
        self.views = <KeyView *>tables
        self.values = <Value *>(self.views + room)
        self.state.values = self.values
        self.state.coders = <CoderState **>(self.values + room)
        tables = <uint8_t *>(self.state.coders + lanes)
        if reads:
            self.got = <Lookup *>tables
            tables = <uint8_t *>(self.got + room)
        else:
            self.buffers = <Py_buffer *>tables
            tables = <uint8_t *>(self.buffers + room)
        self.state.dlens = <uint32_t *>tables
        self.state.errors = <int32_t *>(self.state.dlens + room)
        self.outcomes = <int *>(self.state.errors + room)
        for at in range(lanes):
            self.state.coders[at] = &(<Coder>lane_coders[at]).state
        return 0

    cdef _Part another(self):
        """Make a second part for the same batch."""
        cdef _Part part = _Part(self.state.operation, self.state.page_size)
        cdef size_t half = self.data_room if self.outputs is NULL else 2 * self.data_room
        part.begin_with(
            self.room, self.coders, self.state.number, self.divider, self.rings, self.lane_coders
        )
        part.first = self
        part.data_room = self.data_room
        part.data = self.data + half
        part.outputs = NULL if self.outputs is NULL else self.outputs + half
        return part

    cdef int make_room_for_two(self) except -1:
        """Allocate memory for this part and another one.

        It is one block, so that malloc keeps it for the next batch.
        """
        cdef size_t room = PART_BYTES + 2 * (most_value(self.state.page_size) + AHEAD)
        cdef bint reads = self.state.operation == DECOMPRESS
        self.data = self.grown(NULL, 4 * room if reads else 2 * room)
        self.outputs = self.data + room if reads else NULL
        self.data_room = room
        return 0

    def __dealloc__(self):
        self.forget()
        free(self.key_bytes)
        if self.first is None:
            free(self.data)
        free(self.views)

    cdef void forget(self) noexcept:
        """Release the buffers and drop all keys and values."""
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.buffers[self.held])
        memset(self.state.errors, 0, self.room * sizeof(int32_t) if self.room else 0)
        self.keys = self.state.count = 0
        self.key_used = self.data_used = self.output_used = 0

    cdef int add_key(self, const KeyIndex *index, Key key) except -1:
        """Add a key. `set_places` sets its address, because the memory may still move."""
        cdef KeyView *view = &self.views[self.keys]
        if self.key_used + key.length > self.key_room:
            self.key_bytes = self.grown(self.key_bytes, 2 * (self.key_used + key.length) + 1024)
            self.key_room = 2 * (self.key_used + key.length) + 1024
        memcpy(self.key_bytes + self.key_used, key.data, key.length)
        _view(index, key, view)
        view.compared = <const uint8_t *>(self.key_used + (key.compared - key.data))
        view.data = <const uint8_t *>self.key_used
        self.key_used += key.length
        self.keys += 1
        return 0

    cdef uint8_t *grown(self, uint8_t *memory, size_t room) except NULL:
        cdef uint8_t *found = <uint8_t *>bz_realloc(memory, room)
        if found is NULL:
            raise MemoryError("no memory for a batch of values")
        return found

    cdef int add_value(self, value, size_t most) except -1:
        """Add the value of the key that was added last."""
        cdef uint32_t number = self.state.count
        cdef Value *new = &self.values[number]
        PyObject_GetBuffer(value, &self.buffers[number], PyBUF_SIMPLE)
        self.held = number + 1
        _check_length(self.buffers[number].len, most)
        new.data = <const uint8_t *>self.buffers[number].buf
        new.stored.raw_length = <uint32_t>self.buffers[number].len
        new.output = <uint8_t *>self.data_used
        self.data_used += max(new.stored.raw_length, <uint32_t>1)
        self.state.count = number + 1
        return 0

    cdef int set_places(self, size_t room) except -1:
        """Allocate `room` bytes for the data, if there are fewer, and set all addresses."""
        cdef uint32_t number
        if room > self.data_room:
            self.data = self.grown(self.data, room)
            self.data_room = room
        for number in range(self.keys):
            self.views[number].data = self.key_bytes + <size_t>self.views[number].data
            self.views[number].compared = self.key_bytes + <size_t>self.views[number].compared
        for number in range(self.state.count):
            self.values[number].output = self.data + <size_t>self.values[number].output
        return 0

    cdef object share(self):
        """Start a job for all values, with lanes if they pay. Return the job, or None if empty."""
        return self.divider.start(self, self.rings) if self.state.count else None


@cython.final
cdef class Records:
    """The values of one mapping, by key.

    Keys are those that core/keys.pyx encodes; others raise NotPlain. `large` has the objects of
    values that are stored as pages; a reference to such an object keeps its pages. Threads may
    share it. To other threads, every call is one step, or one step per value. Calls raise
    ClosedError once it or its entries are closed, and ForkedProcess in a forked child.
    """

    cdef readonly Entries entries
    cdef State state
    cdef dict large
    cdef uint64_t large_number
    cdef dict coders  # by the number of their codec
    cdef Coders current
    cdef readonly object divider  # divides batches of values of that codec
    cdef tuple lane_coders  # Coders, rings, and one coder per ring
    cdef tuple chunk_tools  # Coders, their number, and a Divider for chunks
    cdef Py_ssize_t batches  # under way
    cdef uint64_t value_ns[2]  # time per value in a batch, by operation; 0 if not known yet
    cdef uint32_t turns  # batches that qualified for lanes
    cdef readonly int number
    cdef readonly size_t most_bytes  # the largest value that is compressed in one call
    cdef readonly bint takes_chunks  # whether larger values are compressed in chunks
    cdef object name
    cdef bint closed

    def __cinit__(self, Entries entries not None, name):
        cdef bytes seeds = secrets.token_bytes(16)
        self.entries = entries
        self.name = name
        self.state.entries = &entries.state
        index_open(&self.state.index)
        slices_open(&self.state.slices)
        memcpy(self.state.index.seeds, PyBytes_AS_STRING(seeds), 16)
        self.large = {}
        self.coders = {}
        self.lane_coders = (None, None, [])

    def __dealloc__(self):
        index_close(&self.state.index)
        slices_close(&self.state.slices)

    cdef int refuse(self) except -1:
        if self.closed:
            raise ClosedError(f"this {self.name} is closed")
        return self.entries.refuse()

    @property
    def chunk_divider(self):
        """The Divider that divides the chunks of one value between its caller and the lanes."""
        return self.chunk_tools[2]

    def require_open(self) -> None:
        """Raise ClosedError if the mapping is closed, or ForkedProcess in a forked child."""
        self.refuse()

    def start_put(self) -> int:
        """Return the start time of a put whose latency is to be measured, or 0 otherwise.

        Raise as `require_open`.
        """
        self.refuse()
        return timer_start(&self.entries.timers[TIMED_PUT])

    def use_codec(self, int number, Coders coders not None) -> None:
        """Compress new values with the codec of that number. The caller holds the number."""
        cdef int other
        self.coders[number] = coders
        self.current, self.number = coders, number
        native = coders.codec.plan().native
        self.most_bytes = self.entries.objects.page_size
        self.takes_chunks = native is not None and _is_available(native)
        if self.takes_chunks:
            self.most_bytes = most_value(self.most_bytes)
        self.divider = Divider(coders, eager=True)
        self.chunk_tools = coders, number, Divider(coders)
        for other in list(self.coders):
            if other != number and not self.state.entries.objects.entries_of[other]:
                del self.coders[other]

    # One value.

    def look_up(self, key):
        """Return the result of `get`.

        The results of a few calls are returned as Timed. The caller then reports the end of the
        call to the entries.
        """
        cdef int64_t started = timer_start(&self.entries.timers[TIMED_GET])
        cdef Timed timed
        found = self.get(key)
        if not started or found is MISSING:
            return found
        timed = Timed.__new__(Timed)
        timed.found, timed.started = found, started
        return timed

    cpdef get(self, key, bint peek=False):
        """Return a value's bytes, MISSING, its LargeValue, or a Found that `finish` takes.

        With `peek`, the value does not count as used, and its bytes are returned as a Found, too.
        Raise PageError with EBADMSG if the stored value is damaged.
        """
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Lookup got
        cdef int found = OTHER_CODEC, number = self.number
        cdef Coders coders = self.current
        cdef Coder coder
        cdef Chunked chunked = None
        cdef object result = None
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        while found == OTHER_CODEC:
            coder = coders.take()
            try:
                found = _find_one(&self.state, &view, coder, number, peek, False, &got)
                if found == BUSY:
                    with nogil:
                        found = _find_one(&self.state, &view, coder, number, peek, True, &got)
                if found == LOADED:
                    result = _restored(coder, &got, &found)
            finally:
                coders.give(coder)
            if found == IS_CHUNKED:
                chunked = Chunked.__new__(Chunked)
                chunked.reserve(got.stored.length)
                with nogil:
                    pool_lock(self.state.entries.objects.pool)
                    found = _find(
                        &self.state, &view, chunked.data, chunked.room, number, peek, True, &got
                    )
                    pool_unlock(self.state.entries.objects.pool)
                if found == LOADED and _is_chunked(&self.state, &got):
                    return _make_found(&got, None, b"", chunked)
                if found == LOADED or found == TOO_LONG:  # replaced meanwhile
                    found = OTHER_CODEC
            if found == OTHER_CODEC and got.stored.codec:
                coders = <Coders>self.coders.get(got.stored.codec)
                number = got.stored.codec
                if coders is None:  # no value of that codec is left, or its put is not over
                    coders, number = self.current, self.number
                    with nogil:  # let the put register its coders
                        bz_sleep_ns(WAIT_NS)
                    PyErr_CheckSignals()
            elif found == IS_LARGE:
                result = self.large.get(got.entry.value)
                if result is None:  # replaced meanwhile
                    found = OTHER_CODEC
        if found == MISSING_KEY:
            if got.removed_large:
                self.large.pop(got.removed_large, None)
            return MISSING
        if peek and found == LOADED:
            return _make_found(&got, result, b"")
        if found == IN_FILE:
            where = self._in_file(&got)
            # The value may have been replaced or removed meanwhile.
            return self.get(key, True) if where is None else where
        if found < 0:
            self._fail(coders, found)
        return result

    cdef Found _in_file(self, const Lookup *got):
        """Return what `finish` needs for a value that is at least partly in the backing file.

        Return None if the value has changed.
        """
        cdef size_t page = self.entries.objects.page_size, count = 1
        cdef bint same = True
        cdef uint64_t *start
        cdef bytes indices
        if got.entry.kind == SLICED:
            count = (slices_length(got.entry.value) + page - 1) // page
        indices = PyBytes_FromStringAndSize(NULL, 8 * count)
        start = <uint64_t *>PyBytes_AS_STRING(indices)
        start[0] = got.index
        if got.entry.kind == SLICED:
            with nogil:
                pool_lock(self.state.entries.objects.pool)
                same = _is_still(&self.state, got)
                if same:
                    slices_list(&self.state.slices, got.entry.value, start)
                pool_unlock(self.state.entries.objects.pool)
        return _make_found(got, None, indices) if same else None

    cdef int _fail(self, Coders coders, int code) except -1:
        if code == -EBADF:
            self.refuse()
        coders.add_errors([code])
        self.entries.count_event("decompress_fail")
        raise PageError(0, code)

    def finish(self, Found where not None, Gathered gathered=None, *, tuple rings=()):
        """Return the value that `get` found: bytes, or a list of its parts.

        `gathered`  the objects at its `indices`, read from the backing file if necessary.
        `rings`     those of the lanes, which help with a value in chunks if they are threads.

        Return None if the value has changed meanwhile; call `get` again then.
        """
        cdef Coders coders
        cdef Coder coder
        cdef Lookup got = where.got
        cdef const uint64_t *indices
        cdef int found = LOADED
        cdef bint same
        cdef object result = None
        if gathered is None and where.chunked is None:
            raise BadArgument("a value that was not copied needs its gathered objects")
        stored_at = where.indices or b""
        if gathered is not None and 8 * <Py_ssize_t>gathered.count != len(stored_at):
            raise BadArgument("gather the objects at the indices of the value")
        indices = <const uint64_t *>PyBytes_AS_STRING(stored_at)
        coders = <Coders>self.coders.get(got.stored.codec or self.number)
        if coders is None:  # no value of that codec is left
            return None
        if _is_chunked(&self.state, &got):
            result = self._finish_chunked(coders, where, gathered, rings)
            if type(result) is not int:
                return result
            found = <int>result
        else:
            coder = coders.take()
            try:
                if make_room(&coder.state, got.stored.raw_length) < 0:
                    found = -ENOMEM
                else:
                    found = _join_rows(
                        gathered.rows, gathered.count, coder.state.output + AHEAD, coder.state.room,
                        &got,
                    )
                if found == LOADED:
                    result = _restored(coder, &got, &found)
                if found == LOADED:
                    return result
            finally:
                coders.give(coder)
        with nogil:
            pool_lock(self.state.entries.objects.pool)
            same = _is_unchanged(&self.state, &got, indices, gathered)
            pool_unlock(self.state.entries.objects.pool)
        return self._fail(coders, found) if same else None

    cdef object _finish_chunked(
        self, Coders coders, Found where, Gathered gathered, tuple rings
    ):
        """Return a value in chunks, or a negative errno."""
        cdef Chunked chunked = where.chunked
        cdef Lookup got = where.got
        cdef uint64_t length = 0
        cdef uint32_t row
        cdef int code
        if chunked is None:
            for row in range(gathered.count):
                length += gathered.rows[row].length
            chunked = Chunked.__new__(Chunked)
            chunked.reserve(max(length, <uint64_t>1))
            code = _join_rows(
                gathered.rows, gathered.count, chunked.data, chunked.room, &got
            )
            if code != LOADED:
                return code
        chunked.stored = got.stored
        chunked.stored.data = chunked.data
        return self._chunk_work(coders, got.stored.codec, rings).restore(chunked)

    cdef ChunkWork _chunk_work(self, Coders coders, int number, tuple rings):
        """Return what chunks of a codec are compressed or restored with."""
        cdef list lane_coders = None
        current, _, divider = self.chunk_tools
        if current is not coders:
            divider = Divider(coders)
        elif rings:
            lane_coders = self.coders_for(coders, rings)
        return ChunkWork(
            coders, number, divider, () if lane_coders is None else rings, lane_coders,
            self.entries.objects.page_size,
        )

    def remove(self, key, expected=None) -> bool:
        """Remove a key and its value. Return whether a value was removed.

        With `expected`, a LargeValue or a Found, remove the key only if that is still its value.
        """
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Lookup got
        cdef Entry same
        cdef const Entry *wanted = NULL
        cdef int removed
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        if type(expected) is Found:
            wanted = &(<Found>expected).got.entry
        elif expected is not None:
            same.kind = LARGE
            same.value = (<LargeValue>expected).number
            same.checksum = 0
            wanted = &same
        removed = _remove_if(&self.state, &view, wanted, False, &got)
        if removed == -EAGAIN:
            with nogil:
                removed = _remove_if(&self.state, &view, wanted, True, &got)
        if got.removed_large:
            self.large.pop(got.removed_large, None)
        return removed != 0

    def put(
        self, key, value, *, int64_t deadline=0, bint if_absent=False, uint64_t limit=0
    ) -> int:
        """Store a value of up to `most_bytes`. Return 0, or a negative errno.

        On failure the key keeps its old value.

        `value`      a contiguous buffer.
        `deadline`   when the value expires, on the clock of `now_ns`; 0 means never.
        `limit`      maximum bytes of the group's objects in the pool; 0 means no limit.

        The errors are −EEXIST if the key exists and `if_absent` is set, −EDQUOT beyond `limit`,
        −ENOSPC if the pool is at its limit, and −ENOMEM.
        """
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef NewValue new
        cdef Lookup got
        cdef Py_buffer buffer
        cdef Coders coders = self.current
        cdef Coder coder
        cdef int number = self.number, code
        cdef bint with_gil
        cdef uint64_t expired = 0
        got.removed_large = 0
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
        try:
            _check_length(buffer.len, most_value(self.entries.objects.page_size))
            coder = coders.take()
            try:
                new.kind = RECORD
                new.number = 0
                new.deadline = deadline
                new.stored.raw_length = <uint32_t>buffer.len
                with_gil = is_faster_with_gil(&coder.state, COMPRESS, buffer.len)
                code = -EAGAIN
                if with_gil:
                    code = encode_value(
                        &coder.state, number, <const uint8_t *>buffer.buf, &new.stored
                    )
                    if code == 0:
                        code = _store(
                            &self.state, &view, &new, if_absent, limit, False, &got, &expired
                        )
                if code == -EAGAIN:
                    with nogil:
                        code = 0
                        if not with_gil:
                            code = encode_value(
                                &coder.state, number, <const uint8_t *>buffer.buf, &new.stored
                            )
                        if code == 0:
                            code = _store(
                                &self.state, &view, &new, if_absent, limit, True, &got, &expired
                            )
                if code == ABORT:
                    raise_callback_error(&coder.state)
                count_value(&coder.state, COMPRESS, &new.stored)
            finally:
                coders.give(coder)
        finally:
            PyBuffer_Release(&buffer)
            if got.removed_large:
                self.large.pop(got.removed_large, None)
            if expired:
                self.large.pop(expired, None)
        if code == -EBADF:
            self.refuse()
        if code == 0:
            self._keep_coders(number, coders)
        return code

    def put_large(
        self, key, LargeValue value not None, *, int64_t deadline=0, bint if_absent=False
    ) -> int:
        """Assign to a key a value that is stored as pages. Return as `put`."""
        cdef NewValue new
        cdef int code
        self.refuse()
        self.large_number += 1
        value.number = new.number = self.large_number
        new.kind = LARGE
        new.stored.codec = 0
        new.stored.checksum = new.stored.length = new.stored.raw_length = 0
        new.deadline = deadline
        self.large[new.number] = value
        code = -1
        try:
            code = self._put_made(key, &new, if_absent, 0)
        finally:
            if code:
                self.large.pop(new.number, None)
        return code

    def compress(self, parts not None, *, tuple rings=()) -> Chunked:
        """Compress the parts of a value that is larger than `most_bytes`, for `put_chunked`.

        `rings` are those of the lanes. Lanes help only if they are threads.
        """
        coders, number, _ = self.chunk_tools
        self.refuse()
        return self._chunk_work(coders, number, rings).compress(list(parts))

    def put_chunked(
        self, key, Chunked value not None, *, int64_t deadline=0, bint if_absent=False,
        uint64_t limit=0,
    ) -> int:
        """Store a value that was compressed in chunks. Return as `put`."""
        cdef NewValue new
        cdef int code
        self.refuse()
        if value.data is NULL:
            raise BadArgument("this value was not compressed")
        new.kind = RECORD
        new.number = 0
        new.deadline = deadline
        new.stored = value.stored
        self._keep_coders(value.stored.codec, value.coders)  # this may fail
        code = self._put_made(key, &new, if_absent, limit)
        if code == 0:
            self._keep_coders(value.stored.codec, value.coders)
        return code

    cdef int _put_made(self, key, const NewValue *new, bint if_absent, uint64_t limit) except 1:
        """Store a value whose stored form is ready. Return as `put`."""
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Lookup got
        cdef int code
        cdef uint64_t expired = 0
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        with nogil:
            code = _store(&self.state, &view, new, if_absent, limit, True, &got, &expired)
        if got.removed_large:
            self.large.pop(got.removed_large, None)
        if expired:
            self.large.pop(expired, None)
        if code == -EBADF:
            self.refuse()
        return code

    cdef int _keep_coders(self, int number, Coders coders) except -1:
        """Keep the coders of a stored value. Call it before the value is stored, and afterwards.

        `use_codec` in another thread may have dropped them, because no value had their codec. Until
        a put has called this again, readers of its value wait.
        """
        if number and number not in self.coders:
            self.coders[number] = coders
        return 0

    # Several values.

    cdef list coders_for(self, Coders coders, tuple rings):
        """Return a coder for the exclusive use of each lane, or None if they are not threads."""
        cdef list made
        if not rings or not (<Ring>rings[0]).state.is_thread:
            return None
        if self.lane_coders[0] is not coders or self.lane_coders[1] is not rings:
            made = [coders.lend() for _ in rings]
            if self.lane_coders[0] is coders and self.lane_coders[1] is rings:
                for coder in made:  # another thread was faster
                    coders.take_back(<Coder>coder)
            else:
                self.lane_coders = (coders, rings, made)
        return <list>self.lane_coders[2]

    def get_many(self, list keys not None, *, tuple rings=()) -> list:
        """Return the result of `get` for each key. A value that fails yields its PageError.

        `rings` are those of the lanes. Lanes help only if they are threads.
        """
        cdef list found = []
        cdef _Part part
        self.refuse()
        self.batches += 1
        try:
            part = self.new_part(DECOMPRESS, len(keys), rings)
            if part.lane_coders is None:
                self.get_alone(part, keys, found)
            else:
                self.get_shared(part, keys, found)
        finally:
            self.batches -= 1
        return found

    cdef int get_alone(self, _Part part, list keys, list found) except -1:
        cdef Coder coder = part.coders.take()
        cdef Py_ssize_t start = 0
        cdef int64_t took
        try:
            while start < len(keys):
                self.fill_keys(part, keys, start)
                with nogil:
                    took = bz_now_ns()
                    _get_part(&self.state, part, &coder.state)
                    took = bz_now_ns() - took
                self.note(DECOMPRESS, took, part.keys)
                raise_callback_error(&coder.state)
                self.collect(part, keys, start, found)
                start += part.keys
                PyErr_CheckSignals()
        finally:
            part.coders.give(coder)
        return 0

    cdef int get_shared(self, _Part part, list keys, list found) except -1:
        cdef _Part other = part.another()
        cdef Py_ssize_t start = 0
        cdef object job
        self.fill_keys(part, keys, start)
        with nogil:
            _find_part(&self.state, part)
        job = part.share()
        while part.keys:
            # Find the next values while lanes decompress these; then make bytes objects of these.
            self.fill_keys(other, keys, start + part.keys)
            with nogil:
                _find_part(&self.state, other)
            _await(job)
            job = other.share()
            self.collect(part, keys, start, found)
            start += part.keys
            part, other = other, part
            PyErr_CheckSignals()
        return 0

    cdef _Part new_part(self, int operation, Py_ssize_t count, tuple rings):
        """Make a part of a batch of `count` values, for the current codec.

        Lanes help if that pays and other batches do not keep them busy.
        """
        cdef Coders coders = self.current
        cdef object divider = self.divider
        cdef int number = self.number
        cdef list lane_coders = None
        cdef _Part part = _Part(operation, self.entries.objects.page_size)
        if self.is_shared(operation, count, len(rings)):
            lane_coders = self.coders_for(coders, rings)
        part.begin_with(
            max(1, min(count, PART if lane_coders is None else SHARED)), coders, number, divider,
            rings, lane_coders,
        )
        if lane_coders is not None:
            part.make_room_for_two()
        return part

    cdef bint is_shared(self, int operation, Py_ssize_t count, Py_ssize_t lanes) except -1:
        cdef uint64_t value_ns = self.value_ns[operation]
        if not lanes or not count or self.divider.generous:
            return lanes > 0 and count > 0
        if self.batches > lanes or count < 2 or value_ns * count < SHARED_NS:
            return False
        if operation == DECOMPRESS and value_ns < READ_NS:
            return False
        self.turns += 1
        return self.turns % MEASURE_EVERY != 0

    cdef void note(self, int operation, int64_t took, uint32_t count) noexcept:
        """Record the time per value of one thread.

        An outlier raises the estimate by a quarter at most: the thread may have lost its CPU.
        """
        cdef uint64_t seen = max(1, took // max(1, count)), known = self.value_ns[operation]
        self.value_ns[operation] = min(seen, known + known // 4 + 1) if known else seen

    cdef int fill_keys(self, _Part part, list keys, Py_ssize_t start) except -1:
        """Fill a part with the next keys."""
        cdef Key room = Key.__new__(Key)
        cdef size_t most = self.entries.objects.page_size + AHEAD
        part.forget()
        while start < len(keys) and part.keys < part.room:
            encode_key(room, keys[start])
            part.add_key(&self.state.index, room)
            start += 1
        part.set_places(min(part.keys * most, PART_BYTES) + most)
        return 0

    cdef int collect(
        self, _Part part, list keys, Py_ssize_t start, list found
    ) except -1:
        """Append the results of a part that is done to `found`."""
        cdef uint32_t at, number = 0
        cdef int code
        cdef const Value *value
        for at in range(part.keys):
            if part.outcomes[at] == LOADED:
                code = part.values[number].code or part.state.errors[number]
                number += 1
                if code == 0:
                    value = &part.values[number - 1]
                    found.append(
                        PyBytes_FromStringAndSize(
                            <const char *>value.output, value.stored.raw_length
                        )
                    )
                    continue
                part.outcomes[at] = code
            if part.got[at].removed_large:
                self.large.pop(part.got[at].removed_large, None)
            if part.outcomes[at] == MISSING_KEY:
                found.append(MISSING)
            elif part.outcomes[at] < 0:
                try:
                    self._fail(part.coders, part.outcomes[at])
                except PageError as error:
                    found.append(error)
            else:
                used = part.outcomes[at] not in (OTHER_CODEC, TOO_LONG, IS_CHUNKED)
                try:
                    found.append(self.get(keys[start + at], used))
                except PageError as error:
                    found.append(error)
        return 0

    def put_many(
        self, list keys not None, list values not None, Py_ssize_t start, *, int64_t deadline=0,
        uint64_t limit=0, uint64_t most=0, tuple rings=(),
    ) -> tuple[int, int]:
        """Store values of up to `most_bytes` each, from number `start` on.

        `most`    stop after about `most` bytes, but not before FEW short values; 0: no limit.
        `rings`   those of the lanes. Lanes help only if they are threads.

        Return the number of values stored, including those before `start`, and 0 or the negative
        errno of the first value that was not stored.
        """
        cdef _Part part = None
        cdef int code = 0
        if len(values) != len(keys) or not 0 <= start <= len(keys):
            raise BadArgument(
                f"{len(keys)} keys need as many values and a start of 0 to {len(keys)}, not "
                f"{len(values)} values and {start}"
            )
        self.refuse()
        self.batches += 1
        try:
            part = self.new_part(COMPRESS, len(keys) - start, rings)
            if part.lane_coders is None:
                self.put_alone(part, keys, values, &start, deadline, limit, most, &code)
            else:
                self.put_shared(part, keys, values, &start, deadline, limit, most, &code)
        finally:
            self.batches -= 1
            if part is not None:
                self._keep_coders(part.state.number, part.coders)
        if code == -EBADF:
            self.refuse()
        return start, code

    cdef int put_alone(
        self, _Part part, list keys, list values, Py_ssize_t *start, int64_t deadline,
        uint64_t limit, uint64_t most, int *code,
    ) except -1:
        cdef Coder coder = part.coders.take()
        cdef uint64_t gone[2 * PART]
        cdef uint64_t used = 0
        cdef uint32_t done
        cdef int64_t took
        try:
            while start[0] < len(keys) and not code[0] and (not most or used < most):
                self.fill_part(part, keys, values, start[0], most)
                used += part.data_used
                with nogil:
                    took = bz_now_ns()
                    done = _put_part(
                        &self.state, part, &coder.state, deadline, limit, gone, code
                    )
                    took = bz_now_ns() - took
                self.note(COMPRESS, took, done)
                start[0] += done
                self.drop_gone(gone, min(2 * done + 2, 2 * part.keys))
                raise_callback_error(&coder.state)
                PyErr_CheckSignals()
        finally:
            part.coders.give(coder)
        return 0

    cdef int put_shared(
        self, _Part part, list keys, list values, Py_ssize_t *start, int64_t deadline,
        uint64_t limit, uint64_t most, int *code,
    ) except -1:
        cdef _Part other = part.another()
        cdef uint64_t gone[2 * PART]
        cdef uint64_t used
        cdef uint32_t done
        cdef object job, failure = None
        self.fill_part(part, keys, values, start[0], most)
        used = part.data_used
        job = part.share()
        while part.keys and not code[0]:
            # Prepare the next values while lanes compress these; then store these.
            other.forget()
            if not most or used < most:
                try:
                    self.fill_part(other, keys, values, start[0] + part.keys, most)
                except BaseException as error:
                    failure = error
                    other.forget()
                used += other.data_used
            _await(job)
            job = other.share()
            with nogil:
                done = _put_part(&self.state, part, NULL, deadline, limit, gone, code)
            start[0] += done
            self.drop_gone(gone, min(2 * done + 2, 2 * part.keys))
            if failure is not None:
                raise failure
            part, other = other, part
            PyErr_CheckSignals()
        return 0

    cdef int drop_gone(self, const uint64_t *gone, uint32_t count) except -1:
        """Drop the objects of large values that were removed."""
        cdef uint32_t at
        for at in range(count):
            if gone[at]:
                self.large.pop(gone[at], None)
        return 0

    cdef int fill_part(
        self, _Part part, list keys, list values, Py_ssize_t start, uint64_t most
    ) except -1:
        """Fill a part with the next values.

        If `most` is not 0, stop after `most` bytes, but not before FEW values, unless these have
        more bytes than FEW pages.
        """
        cdef Key room = Key.__new__(Key)
        cdef bint alone = part.lane_coders is None
        cdef size_t page = self.entries.objects.page_size
        cdef size_t full = ALONE_BYTES if alone else PART_BYTES
        part.forget()
        while start < len(keys) and part.keys < part.room and part.data_used < full:
            if most and part.data_used >= most and (
                part.keys >= FEW or part.data_used >= FEW * page
            ):
                break
            encode_key(room, keys[start])
            part.add_key(&self.state.index, room)
            part.add_value(values[start], most_value(page))
            start += 1
        part.set_places(0 if alone else part.data_used)
        return 0

    # All values.

    def contains(self, key) -> bool:
        """Return whether a key exists. This does not count as a use of its value."""
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef bint found = False
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        if not _contains(&self.state, &view, False, &found):
            with nogil:
                _contains(&self.state, &view, True, &found)
        return found

    def __len__(self) -> int:
        cdef uint64_t found = self.entries.figure(&self.state.index.count)
        return 0 if self.state.entries.closed else found

    def keys(self) -> list:
        """Return a snapshot of all keys, in the order in which they were inserted."""
        cdef KeyIndex *index = &self.state.index
        cdef uint64_t room = 0, used = 0, at
        cdef uint8_t *copy = NULL
        cdef list found = []
        cdef uint32_t length
        self.refuse()
        try:
            while True:
                with nogil:
                    pool_lock(self.state.entries.objects.pool)
                    used = index.key_room + 4 * index.count
                    if used <= room:
                        used = 0 if self.state.entries.closed else _copy_keys(&self.state, copy)
                    pool_unlock(self.state.entries.objects.pool)
                if used <= room:
                    break
                free(copy)
                room = used + used // 8
                copy = <uint8_t *>bz_malloc(room)
                if copy is NULL:
                    raise MemoryError("no memory for a copy of the keys")
            at = 0
            while at < used:
                memcpy(&length, copy + at, 4)
                found.append(decode_key(copy + at + 4, length))
                at += 4 + length
        finally:
            free(copy)
        return found

    def last(self) -> list:
        """Return a list that holds the key inserted last, or an empty list."""
        cdef KeyIndex *index = &self.state.index
        cdef uint32_t place, length = 0
        cdef uint8_t *room = NULL
        cdef const KeyBlock *block
        cdef bint found = False
        self.refuse()
        with nogil:
            pool_lock(self.state.entries.objects.pool)
            if not self.state.entries.closed and index.last != NOWHERE:
                found = True
                block = index.blocks[index.last]
                place = block.used - 1
                while not place_is_live(block, place):
                    place -= 1
                room = _copy_of_key(&self.state, index.last << BLOCK_BITS | place, &length)
            pool_unlock(self.state.entries.objects.pool)
        return _decoded_copy(room, length) if found else []

    def clear(self) -> None:
        """Remove all values."""
        cdef KeyIndex *index = &self.state.index
        cdef uint32_t place
        cdef Lookup got
        cdef dict large
        self.refuse()
        with nogil:
            pool_lock(self.state.entries.objects.pool)
            while not self.state.entries.closed and index.first != NOWHERE:
                for place in range(BLOCK):
                    if place_is_live(index.blocks[index.first], place):
                        _take_out(&self.state, index.first << BLOCK_BITS | place, &got)
                index_drop_block(index, index.first)
            pool_settle(self.state.entries.objects.pool)
            pool_unlock(self.state.entries.objects.pool)
        large, self.large = self.large, {}

    # Operations of a cache.

    def shrink(self, uint64_t target) -> int:
        """Remove the coldest values until at most `target` bytes of the entries are in the pool.

        Return the number of values removed. The usage stays above `target` only if no value is
        left.
        """
        cdef uint64_t gone = 0, went, large
        cdef int code = 1
        self.refuse()
        while code > 0:
            large = 0
            with nogil:
                pool_lock(self.state.entries.objects.pool)
                code = _shrink(&self.state, target, &went, &large)
                pool_settle(self.state.entries.objects.pool)
                pool_unlock(self.state.entries.objects.pool)
            if large:
                self.large.pop(large, None)
            gone += went
        if code < 0:
            raise MemoryError("no memory to choose the coldest values")
        return gone

    def coldest(self) -> list:
        """Return a list that holds the key of the coldest value, or an empty list."""
        cdef uint64_t index = 0
        cdef int64_t found = 0
        cdef uint32_t length = 0
        cdef uint8_t *room = NULL
        self.refuse()
        with nogil:
            pool_lock(self.state.entries.objects.pool)
            if not self.state.entries.closed:
                found = _coldest(&self.state, &index)
            if found > 0:
                room = _copy_of_key(&self.state, <uint32_t>index, &length)
            pool_unlock(self.state.entries.objects.pool)
        if found < 0:
            raise MemoryError("no memory to choose the coldest value")
        return _decoded_copy(room, length) if found else []

    def count_eviction(self) -> None:
        """Count one eviction: `remove` took a value out to make room."""
        with nogil:
            pool_lock(self.state.entries.objects.pool)
            self.state.evictions += 1
            pool_unlock(self.state.entries.objects.pool)

    def expire(self) -> int:
        """Remove all expired values. Return the number of values removed."""
        cdef uint64_t gone = 0, went = EXPIRED, at
        cdef uint64_t large[EXPIRED]
        self.refuse()
        while went == EXPIRED:
            went = 0
            with nogil:
                pool_lock(self.state.entries.objects.pool)
                if not self.state.entries.closed:
                    went = _expire(&self.state, large)
                pool_settle(self.state.entries.objects.pool)
                pool_unlock(self.state.entries.objects.pool)
            for at in range(went):
                if large[at]:
                    self.large.pop(large[at], None)
            gone += went
        return gone

    def coder_bytes(self) -> int:
        """Return the memory, in bytes, of coders with a dictionary. The engine owns the others."""
        cdef Coders coders
        return sum([
            coders.memory_bytes() for coders in self.coders.values() if not coders.names_dictionary
        ])

    def figures(self) -> dict[str, int]:
        """Return a snapshot of the figures.

        They are "values", "raw_bytes" (of values not stored as pages), "index_bytes", "key_bytes"
        (allocated, including spare capacity), and "hits", "misses", "evictions" and "expirations"
        so far.
        """
        cdef State *state = &self.state
        cdef uint64_t values, raw, bytes, keys, hits, misses, evictions, expirations
        with nogil:
            pool_lock(state.entries.objects.pool)
            values, raw = state.index.count, state.entries.record_bytes
            bytes = index_bytes(&state.index)
            bytes += state.slices.room * sizeof(uint32_t)
            keys = state.index.key_room
            hits, misses = state.hits, state.misses
            evictions, expirations = state.evictions, state.expirations
            pool_unlock(state.entries.objects.pool)
        return {
            "values": values, "raw_bytes": raw, "index_bytes": bytes, "key_bytes": keys,
            "hits": hits, "misses": misses, "evictions": evictions, "expirations": expirations,
        }

    def large_values(self) -> list:
        """Return the objects of the values that are stored as pages."""
        return list(self.large.values())

    def close(self) -> None:
        """Drop all keys. The group frees its entries itself."""
        cdef dict large
        self.closed = True
        with nogil:
            pool_lock(self.state.entries.objects.pool)
            self.state.closed = True
            index_close(&self.state.index)
            slices_close(&self.state.slices)
            self.state.entries.record_bytes = 0
            pool_unlock(self.state.entries.objects.pool)
        large, self.large = self.large, {}

    def fault(self):
        """Return what is wrong, or None. No other thread may change anything during the call."""
        cdef State *state = &self.state
        cdef uint32_t id = state.index.first, place
        cdef uint64_t raw = 0, count = 0, large = 0
        cdef const KeyBlock *block
        cdef const Entry *entry
        cdef list sliced = []
        found = index_fault(&state.index)
        if found is not None:
            return found
        while id != NOWHERE:
            block = state.index.blocks[id]
            for place in range(BLOCK):
                if not place_is_live(block, place):
                    continue
                entry = _entry_of(state, id << BLOCK_BITS | place)
                if entry is NULL or entry.kind not in (RECORD, BACKED_RECORD, LARGE, SLICED):
                    return f"position {id << BLOCK_BITS | place} has no value"
                count += 1
                raw += block.lengths[place]
                if entry.kind == SLICED:
                    sliced.append(entry.value)
                if entry.kind == LARGE:
                    large += 1
                    if entry.value not in self.large:
                        return f"large value {entry.value} has no object"
            id = block.after
        if raw != state.entries.record_bytes:
            return f"values have {raw} bytes, but the gauge says {state.entries.record_bytes}"
        figures = self.entries.figures()
        kinds = ("records", "backed_records", "sliced", "large")
        if count != sum([figures[kind] for kind in kinds]):
            return f"there are {count} values, but the entries are {figures}"
        found = slices_fault(&self.entries.state, &state.slices, sliced)
        if found is not None:
            return found
        if large != len(self.large):
            return f"there are {large} large values, but {len(self.large)} objects for them"
        return None


# Several values, without the GIL.

cdef void _get_part(State *state, _Part part, CoderState *coder) noexcept nogil:
    """Find and decompress the values of a part's keys, as many as fit its memory."""
    cdef uint32_t at
    cdef size_t size = coder.page_size
    cdef Value *value
    cdef Lookup *got
    for at in range(part.keys):
        if part.output_used + size > part.data_room:
            part.keys = at
            return
        got = &part.got[at]
        pool_lock(state.entries.objects.pool)
        part.outcomes[at] = _find(
            state, &part.views[at], coder.output + AHEAD, size, part.state.number, False, False, got
        )
        pool_unlock(state.entries.objects.pool)
        if part.outcomes[at] != LOADED:
            continue
        value = &part.values[part.state.count]
        part.state.count += 1
        value.stored = got.stored
        value.output = part.data + part.output_used
        value.code = _restore(coder, got, value.output)
        if value.code == ABORT:
            return
        part.output_used += got.stored.raw_length


cdef void _find_part(State *state, _Part part) noexcept nogil:
    """Find the values of a part's keys and copy their objects, as many as fit its memory."""
    cdef uint32_t at
    cdef size_t size = part.state.page_size
    cdef Value *value
    for at in range(part.keys):
        if max(part.output_used, part.data_used + AHEAD) + size > part.data_room:
            part.keys = at
            return
        pool_lock(state.entries.objects.pool)
        part.outcomes[at] = _find(
            state, &part.views[at], part.data + part.data_used + AHEAD, size, part.state.number,
            False, False, &part.got[at],
        )
        pool_unlock(state.entries.objects.pool)
        if part.outcomes[at] == LOADED:
            value = &part.values[part.state.count]
            part.state.count += 1
            value.stored = part.got[at].stored
            value.output = part.outputs + part.output_used
            part.output_used += value.stored.raw_length
            part.data_used += value.stored.length + AHEAD


cdef void _await(job) except *:
    """Do what lanes have not begun of a job, and wait for the rest. Accept None for no job."""
    while job is not None and job.run() != _DONE:
        pass


cdef uint32_t _put_part(
    State *state, _Part part, CoderState *coder, int64_t deadline, uint64_t limit, uint64_t *gone,
    int *code,
) noexcept nogil:
    """Store values until one fails. Return the number of values stored.

    `coder` compresses them, or is NULL if they are compressed. `gone` gets two numbers per value:
    those of large values that were removed, or 0. `code` gets 0 or the error.
    """
    cdef uint32_t at
    cdef Value *value
    cdef NewValue new
    cdef Lookup got
    new.kind = RECORD
    new.number = 0
    new.deadline = deadline
    for at in range(part.keys):
        gone[2 * at] = gone[2 * at + 1] = 0
        value = &part.values[at]
        if coder is not NULL:
            value.code = encode_value(coder, part.state.number, value.data, &value.stored)
            if value.code == 0:
                count_value(coder, COMPRESS, &value.stored)
        code[0] = value.code or part.state.errors[at]
        if code[0]:
            return at
        new.stored = value.stored
        code[0] = _store(state, &part.views[at], &new, False, limit, True, &got, &gone[2 * at])
        gone[2 * at + 1] = got.removed_large
        if code[0]:
            return at
    return part.keys


# Keys and the order of use.

cdef uint64_t _copy_keys(State *state, uint8_t *copy) noexcept nogil:
    """Copy the length and the bytes of each key that has not expired. Return the bytes written."""
    cdef KeyIndex *index = &state.index
    cdef uint32_t id = index.first, place, start, length
    cdef uint64_t used = 0
    cdef int64_t now = _now()
    cdef const KeyBlock *block
    while id != NOWHERE:
        block = index.blocks[id]
        for place in range(block.used):
            if not place_is_live(block, place) or _place_is_over(block, place, now):
                continue
            start = key_start(block, place)
            length = block.ends[place] - start
            memcpy(copy + used, &length, 4)
            memcpy(copy + used + 4, block.keys + start, length)
            used += 4 + length
        id = block.after
    return used


cdef int64_t _coldest(State *state, uint64_t *index) noexcept nogil:
    """Find the coldest value. Return 1, or 0 if there is none, or −1 if memory is short."""
    cdef int64_t found = 0
    if not state.closed:
        found = lru_coldest(&state.entries.lru, &state.entries.table, VALUES, 1, index)
    if found > 0:
        index[0] &= ~RECORDS
    return found


cdef int _shrink(State *state, uint64_t target, uint64_t *went, uint64_t *large) noexcept nogil:
    """Remove cold values.

    Return 0 if usage is at `target` or nothing is left, 1 if a large value was removed (call it
    again), or −1 if memory is short.
    """
    cdef uint64_t index = 0
    cdef int64_t found
    cdef Lookup got
    went[0] = 0
    while not state.entries.closed and state.entries.pool_bytes > target:
        found = _coldest(state, &index)
        if found <= 0:
            return <int>found
        state.evictions += 1
        went[0] += 1
        _remove(state, <uint32_t>index, &got)
        if got.removed_large:
            large[0] = got.removed_large
            return 1
    return 0


cdef uint64_t _expire(State *state, uint64_t *large) noexcept nogil:
    """Remove up to EXPIRED expired values. Return the number of values removed.

    `large` gets the number of each value that was LARGE, or 0.
    """
    cdef KeyIndex *index = &state.index
    cdef uint32_t id = index.first, place, after
    cdef uint64_t went = 0
    cdef int64_t now = _now()
    cdef const KeyBlock *block
    cdef Lookup got
    while id != NOWHERE and went < EXPIRED:
        block = index.blocks[id]
        after = block.after
        if block.deadlines is not NULL:
            for place in range(block.used):
                if went == EXPIRED:
                    break
                if place_is_live(block, place) and _place_is_over(block, place, now):
                    state.expirations += 1
                    _take_out(state, id << BLOCK_BITS | place, &got)
                    large[went] = got.removed_large
                    went += 1
            if not block.live:
                index_drop_block(index, id)
        id = after
    id = index.first
    while id != NOWHERE:
        after = index.blocks[id].before
        if not _join(state, id):
            id = index.blocks[id].after
        else:  # the merged block may merge with the next one, too
            id = index.first if after == NOWHERE else index.blocks[after].after
    return went


cdef uint8_t *_copy_of_key(State *state, uint32_t position, uint32_t *length) noexcept nogil:
    """Return a copy of an encoded key, which the caller frees, or NULL if memory is short."""
    cdef const KeyBlock *block = block_of(&state.index, position)
    cdef uint32_t place = position & (BLOCK - 1), start = key_start(block, place)
    cdef uint8_t *room
    length[0] = block.ends[place] - start
    room = <uint8_t *>bz_malloc(length[0])
    if room is not NULL:
        memcpy(room, block.keys + start, length[0])
    return room


cdef list _decoded_copy(uint8_t *room, uint32_t length):
    if room is NULL:
        raise MemoryError("no memory for a copy of a key")
    try:
        return [decode_key(room, length)]
    finally:
        free(room)
