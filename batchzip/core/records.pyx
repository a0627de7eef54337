"""Records: the values of one mapping by their keys, and what a cache does with them.

    put(key, value) ─▶ compressed alone ─▶ one step: key in the index, entry in the table, object in the pool
    get(key)        ─▶ one step: key ─▶ entry ─▶ a copy of the object ─▶ checksum ─▶ restored
    shrink(bytes)   ─▶ the coldest go, until no more bytes are left in the pool

A value of up to a page is a record: an object of its own length. It is stored as it is where it does not
shrink. Its entry stands in the ledger's table at the index RECORDS | position, far beyond those of pages, so
that order of use, limits, writeback and checks are those of every entry.

A larger value lies on pages, which the mapping stores (mapping.py). Its entry has a number, by which
`large` has a Python object, and that the pages' indices. Who reads the pages holds the object.

What an entry was, and what it becomes, is decided in one step under the pool's mutex, without the
interpreter: two threads that change one key do so one after the other, and a handler that comes between two
lines finds each key with one value.

Invariants (`fault`)
* A position is live if and only if its entry is a RECORD, a BACKED_RECORD or LARGE.
* record_bytes of the ledger is the sum of the lengths of records, as they were serialised.
* `large` has the object of every LARGE entry, and those that are about to become one.

    field                       writer
    index, gauges               whoever holds the pool's mutex
    large, coders               whoever holds the GIL, within one call
"""

import secrets

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADF, EBADMSG, EDQUOT, EEXIST, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from batchzip.core.coder cimport (
    ABORT, COMPRESS, DECOMPRESS, Coder, Coders, CoderState, Tally, compress_value,
    raise_callback_error, restore_value,
)
from batchzip.core.gather cimport Gathered, checksum_of
from batchzip.core.keyindex cimport (
    NOWHERE, KeyBlock, KeyIndex, KeyView, block_of, index_add, index_bytes, index_close,
    index_drop_block, index_fault, index_find, index_hash, index_merge_into, index_move, index_open,
    index_prepare, index_remove, index_set_deadline, key_start, place_is_live,
)
from batchzip.core.keys cimport Key, decode_key, encode_key
from batchzip.core.ledger cimport Ledger, LedgerState, ledger_count, ledger_forget, ledger_remove
from batchzip.core.latency cimport TIMED_GET, TIMED_PUT, timer_start
from batchzip.core.lru cimport lru_coldest, lru_use
from batchzip.core.memory cimport bz_malloc
from batchzip.core.pool cimport pool_allocate, pool_bytes, pool_free, pool_lock, pool_settle, pool_unlock
from batchzip.core.table cimport (
    ABSENT, BACKED_RECORD, BLOCK, BLOCK_BITS, LARGE, RECORD, Entry, table_bytes, table_clear,
    table_find, table_place, table_prepare, table_put,
)

from batchzip.errors import ClosedError, PageError

cdef extern from "native.h" nogil:
    """
    #define BZ_RECORDS ((uint64_t)1 << 63)
    """
    uint64_t RECORDS "BZ_RECORDS"  # index of the first; pages have lower ones
    void bz_count(uint64_t *, uint64_t)
    int64_t bz_coarse_ns()
    int64_t bz_now_ns()

cdef enum:
    CHUNK = 64  # values of a batch between two looks at signals
    AHEAD = 16  # bytes in front of a copy: restore_value needs four
    LOOKS = 4  # deadlines that each new value looks at

cdef enum Outcome:
    LOADED
    MISSING_KEY
    IS_LARGE
    IN_FILE
    OTHER_CODEC

cdef struct State:
    LedgerState *ledger
    KeyIndex index
    uint64_t hits
    uint64_t misses
    uint64_t evictions
    uint64_t expirations
    uint32_t cursor  # position whose deadline is looked at next

cdef struct Value:  # about to be stored
    const uint8_t *data
    uint32_t length
    uint32_t raw_length
    uint8_t kind
    uint8_t codec
    uint64_t number  # of a LARGE one
    int64_t deadline

cdef struct Got:  # what was found, or taken out
    const uint8_t *data
    uint32_t length  # of what is stored
    uint32_t raw_length
    uint8_t codec
    uint64_t index
    Entry entry
    uint64_t gone_large  # number of a LARGE value that went; 0: none


cdef int64_t _shift_ns = 0


def shift_clock(double seconds) -> None:
    """Move the clock of deadlines forward by `seconds`: for tests."""
    global _shift_ns
    _shift_ns += <int64_t>(seconds * 1e9)


cdef inline int64_t _now() noexcept nogil:
    return bz_coarse_ns() + _shift_ns


def now_ns() -> int:
    """Return the time by which deadlines are told, in nanoseconds."""
    return _now()


# Steps; the pool's mutex is held by the caller.

cdef inline Entry *_entry_of(State *state, uint32_t position) noexcept nogil:
    return table_find(&state.ledger.table, RECORDS | position)


cdef inline bint _place_is_over(const KeyBlock *block, uint32_t place, int64_t now) noexcept nogil:
    return block.deadlines is not NULL and 0 < block.deadlines[place] <= now


cdef inline bint _is_over(State *state, uint32_t position, int64_t now) noexcept nogil:
    return _place_is_over(block_of(&state.index, position), position & (BLOCK - 1), now)


cdef bint _join(State *state, uint32_t first) noexcept nogil:
    """Move the values of a block and of the next one to a new one, if they are few and there is memory."""
    cdef KeyIndex *index = &state.index
    cdef uint32_t id = index_merge_into(index, first), other, turn, place, to
    cdef KeyBlock *block
    cdef Entry *old
    cdef Entry entry
    if id == NOWHERE:
        return False
    if table_prepare(&state.ledger.table, RECORDS | <uint64_t>id << BLOCK_BITS, BLOCK) < 0:
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
            table_put(&state.ledger.table, table_place(&state.ledger.table, RECORDS | to), &entry)
            table_clear(&state.ledger.table, old)
            to += 1
        index_drop_block(index, other)
    return True


cdef void _tidy(State *state, uint32_t id) noexcept nogil:
    """Give a block back that has no value left, or join it with one beside it."""
    cdef KeyBlock *block = state.index.blocks[id]
    if not block.live:
        index_drop_block(&state.index, id)
    elif block.before == NOWHERE or not _join(state, block.before):
        _join(state, id)


cdef void _take_out(State *state, uint32_t position, Got *got) noexcept nogil:
    """Take a value out with its key; its block is not tidied."""
    cdef Entry *entry = _entry_of(state, position)
    got.gone_large = entry.value if entry.kind == LARGE else 0
    state.ledger.record_bytes -= block_of(&state.index, position).lengths[position & (BLOCK - 1)]
    ledger_remove(state.ledger, entry)
    index_remove(&state.index, position)


cdef void _remove(State *state, uint32_t position, Got *got) noexcept nogil:
    _take_out(state, position, got)
    _tidy(state, position >> BLOCK_BITS)


cdef bint _expire_one(State *state, Got *got) noexcept nogil:
    """Look at the next deadlines, and take out a value that is over. Return whether there was one."""
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


cdef uint32_t _live_position(State *state, const KeyView *key, Got *got) noexcept nogil:
    """Return the position of a key, or NOWHERE; take its value out if its time is over."""
    cdef uint32_t position = index_find(&state.index, key)
    got.gone_large = 0
    if position != NOWHERE and _is_over(state, position, _now()):
        state.expirations += 1
        _remove(state, position, got)
        position = NOWHERE
    return position


cdef int _put(
    State *state, const KeyView *key, const Value *value, bint if_absent, uint64_t limit, Got *got
) noexcept nogil:
    """Store a value. Return 0, or −EEXIST, −EBADF (closed), −EDQUOT (`limit`), −ENOMEM, −ENOSPC (the pool's).

    Then the key has what it had.
    """
    cdef LedgerState *ledger = state.ledger
    cdef uint32_t position, before = 0, length = 0
    cdef Entry entry
    cdef Entry *place
    cdef uint8_t *room
    cdef int code
    if ledger.closed:
        got.gone_large = 0
        return -EBADF
    position = _live_position(state, key, got)
    if position != NOWHERE and if_absent:
        return -EEXIST
    if limit and value.kind == RECORD:
        place = NULL if position == NOWHERE else _entry_of(state, position)
        if place is not NULL and place.kind == RECORD:
            pool_bytes(ledger.objects.pool, place.value, &before)
        if ledger.pool_bytes - before + value.length > limit:
            return -EDQUOT
    entry.kind = value.kind
    entry.codec = value.codec
    entry.value = value.number
    entry.checksum = 0
    if value.kind == RECORD:
        code = pool_allocate(ledger.objects.pool, 1, &value.length, &entry.value)
        if code:
            return code
        room = pool_bytes(ledger.objects.pool, entry.value, &length)
        memcpy(room, value.data, length)
        entry.checksum = checksum_of(value.data, value.length, value.codec)
    code = _enter(state, key, position, value, &entry, length, got)
    if code and value.kind == RECORD:
        pool_free(ledger.objects.pool, entry.value)
    return code


cdef int _enter(
    State *state, const KeyView *key, uint32_t position, const Value *value, Entry *entry,
    uint32_t length, Got *got,
) noexcept nogil:
    """Have a key lead to an entry, whose object is there. Return 0 or −ENOMEM: nothing has changed then."""
    cdef LedgerState *ledger = state.ledger
    cdef bint is_new = position == NOWHERE
    cdef Entry *place
    cdef Entry old
    cdef KeyBlock *block
    if is_new:
        position = index_prepare(&state.index, key.length)
        if position == NOWHERE:
            return -ENOMEM
    if (
        table_prepare(&ledger.table, RECORDS | position, 1) < 0
        or index_set_deadline(&state.index, position, value.deadline) < 0
    ):
        if is_new and not block_of(&state.index, position).used:
            index_drop_block(&state.index, position >> BLOCK_BITS)
        return -ENOMEM
    entry.epoch = lru_use(&ledger.lru, &ledger.table, 1, ledger.pages + 1)
    place = table_place(&ledger.table, RECORDS | position)
    old = place[0]
    table_put(&ledger.table, place, entry)
    ledger_count(ledger, entry, length)
    ledger.page_stores += 1
    if is_new:
        index_add(&state.index, position, key)
        ledger.pages += 1
    else:
        got.gone_large = old.value if old.kind == LARGE else 0
        ledger_forget(ledger, &old)
    block = block_of(&state.index, position)
    state.ledger.record_bytes += value.raw_length - <uint64_t>block.lengths[position & (BLOCK - 1)]
    block.lengths[position & (BLOCK - 1)] = value.raw_length
    return 0


cdef int _find(
    State *state, const KeyView *key, CoderState *coder, int number, bint peek, Got *got
) noexcept nogil:
    """Find a value and copy what the pool has of it to the coder's output. Unless `peek`, it is a use."""
    cdef LedgerState *ledger = state.ledger
    cdef uint32_t position
    cdef Entry *entry
    cdef const uint8_t *data
    if ledger.closed:
        got.gone_large = 0
        return -EBADF
    position = _live_position(state, key, got)
    if position == NOWHERE:
        state.misses += not peek
        return MISSING_KEY
    entry = _entry_of(state, position)
    got.index = RECORDS | position
    got.codec = entry.codec
    got.raw_length = block_of(&state.index, position).lengths[position & (BLOCK - 1)]
    if entry.kind == RECORD and entry.codec and entry.codec != number:
        return OTHER_CODEC
    if not peek:
        entry.epoch = lru_use(&ledger.lru, &ledger.table, 1, ledger.pages)
        ledger.page_loads += 1
        state.hits += 1
    got.entry = entry[0]
    if entry.kind == LARGE:
        return IS_LARGE
    if entry.kind == BACKED_RECORD:
        return IN_FILE
    got.data = coder.output + AHEAD
    data = pool_bytes(ledger.objects.pool, entry.value, &got.length)
    memcpy(coder.output + AHEAD, data, got.length)
    return LOADED


# Values.

cdef int _restore(CoderState *coder, Got *got) noexcept nogil:
    """Restore a copied value; `got.data` leads to it then. Return LOADED, a negative errno or ABORT."""
    cdef int64_t restored
    cdef Tally *tally = &coder.tallies[DECOMPRESS]
    if checksum_of(got.data, got.length, got.codec) != got.entry.checksum:
        return -EBADMSG
    if got.codec == 0:
        return LOADED if got.length == max(got.raw_length, <uint32_t>1) else -EBADMSG
    restored = restore_value(coder, got.data, got.length, got.raw_length)
    bz_count(&tally.pages, 1)
    bz_count(&tally.bytes_in, got.length)
    if restored < 0:
        return <int>restored
    bz_count(&tally.bytes_out, got.raw_length)
    got.data = coder.restored
    return LOADED


cdef int _get(
    State *state, const KeyView *key, CoderState *coder, int number, bint peek, Got *got
) noexcept nogil:
    """Find and restore a value."""
    cdef int found
    pool_lock(state.ledger.objects.pool)
    found = _find(state, key, coder, number, peek, got)
    pool_unlock(state.ledger.objects.pool)
    return _restore(coder, got) if found == LOADED else found


cdef bint _remove_if(
    State *state, const KeyView *key, const Entry *expected, Got *got
) noexcept nogil:
    """Take a value out, if it is there and its entry the one expected, or any for NULL."""
    cdef uint32_t position = NOWHERE
    cdef bint same = False
    cdef const Entry *entry
    got.gone_large = 0
    pool_lock(state.ledger.objects.pool)
    if not state.ledger.closed:
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
        pool_settle(state.ledger.objects.pool)
    pool_unlock(state.ledger.objects.pool)
    return same


cdef int64_t _prepare(CoderState *coder, int number, const uint8_t *data, Value *value) noexcept nogil:
    """Compress a value to the coder's memory, or copy it there. Return 0 or ABORT."""
    cdef Tally *tally = &coder.tallies[COMPRESS]
    cdef int64_t length = 0
    value.kind = RECORD
    value.number = 0
    if value.raw_length:
        length = compress_value(coder, data, value.raw_length, &value.data)
        bz_count(&tally.pages, 1)
        bz_count(&tally.bytes_in, value.raw_length)
        if length == ABORT:
            return ABORT
    if 0 < length < value.raw_length:
        bz_count(&tally.bytes_out, length)
        value.length = <uint32_t>length
        value.codec = <uint8_t>number
    else:  # as it is; the coder has a private copy. An object has at least one byte
        value.data = coder.page
        value.length = max(value.raw_length, <uint32_t>1)
        value.codec = 0
    return 0


cdef int _store(
    State *state, const KeyView *key, const Value *value, bint if_absent, uint64_t limit, Got *got,
    uint64_t *expired,
) noexcept nogil:
    """Store a value; if another one's time is over, take that out: `expired` is its number, if it is LARGE."""
    cdef Got over
    cdef int code
    expired[0] = 0
    pool_lock(state.ledger.objects.pool)
    if not state.ledger.closed and _expire_one(state, &over):
        expired[0] = over.gone_large
    code = _put(state, key, value, if_absent, limit, got)
    pool_settle(state.ledger.objects.pool)
    pool_unlock(state.ledger.objects.pool)
    return code


cdef inline void _view(const KeyIndex *index, Key key, KeyView *view) noexcept:
    view.data = key.data
    view.length = key.length
    view.compared = key.compared
    view.compared_length = key.compared_length
    view.hash = index_hash(index, key.compared, key.compared_length)


cdef Found _make_found(const Got *got, bytes data):
    cdef Found found = Found.__new__(Found)
    found.index = got.index
    found.got = got[0]
    found.data = data
    return found


MISSING = object()
"""What `get` returns for a key that is not there."""


cdef class LargeValue:
    """Where a value is that lies on pages: lengths of its parts in bytes, and its indices."""

    cdef uint64_t number
    cdef readonly list lengths
    cdef readonly object reservation

    def __init__(self, list lengths not None, reservation):
        self.lengths = lengths
        self.reservation = reservation


cdef class Found:
    """A value as it was found: `data`, its bytes; or None: gather `index` from the file, for `finish`."""

    cdef readonly uint64_t index
    cdef readonly bytes data
    cdef Got got


cdef class Timed:
    """What `look_up` found, of a call that is timed, and when that began."""

    cdef readonly object found
    cdef readonly int64_t started


@cython.final
cdef class Records:
    """The values of one mapping, by key.

    Keys are those that core/keys.pyx encodes; others raise TypeError. `large` has the objects of values
    that lie on pages: who has one keeps its pages. Threads may share it; every call is one step to the
    others, or one step for each of several values. Raise ClosedError once the ledger is closed, and
    ForkedProcess in a forked child.
    """

    cdef readonly Ledger ledger
    cdef State state
    cdef dict large
    cdef uint64_t large_number
    cdef dict coders  # by the number of their codec
    cdef Coders current
    cdef readonly int number
    cdef object name
    cdef bint closed

    def __cinit__(self, Ledger ledger not None, name):
        cdef bytes seeds = secrets.token_bytes(16)
        self.ledger = ledger
        self.name = name
        self.state.ledger = &ledger.state
        index_open(&self.state.index)
        memcpy(self.state.index.seeds, PyBytes_AS_STRING(seeds), 16)
        self.large = {}
        self.coders = {}

    def __dealloc__(self):
        index_close(&self.state.index)

    cdef int refuse(self) except -1:
        if self.closed:
            raise ClosedError(f"this {self.name} is closed")
        return self.ledger.refuse()

    def require_open(self) -> None:
        """Raise what every call raises once the mapping is closed, or in a forked child."""
        self.refuse()

    def start_put(self) -> int:
        """Return when a put began, if it is to be timed, or 0. Raise as `require_open`."""
        self.refuse()
        return timer_start(&self.ledger.timers[TIMED_PUT])

    def use_codec(self, int number, Coders coders not None) -> None:
        """Compress values that come with the codec of a number, which the caller holds, from now on."""
        cdef int other
        self.coders[number] = coders
        self.current, self.number = coders, number
        for other in list(self.coders):
            if other != number and not self.state.ledger.objects.entries_of[other]:
                del self.coders[other]

    # One value.

    def look_up(self, key):
        """Return what `get` does; a few that are there as Timed, whose end the caller tells the ledger."""
        cdef int64_t started = timer_start(&self.ledger.timers[TIMED_GET])
        cdef Timed timed
        found = self.get(key)
        if not started or found is MISSING:
            return found
        timed = Timed.__new__(Timed)
        timed.found, timed.started = found, started
        return timed

    cpdef get(self, key, bint peek=False):
        """Return a value's bytes; MISSING; its LargeValue; or Found, where it lies in the file.

        With `peek`, the value does not count as used, and bytes are returned as Found, too. Raise PageError: −EBADMSG where
        what is stored is damaged.
        """
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Got got
        cdef int found = OTHER_CODEC, number = self.number
        cdef Coders coders = self.current
        cdef Coder coder
        cdef object result = None
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        while found == OTHER_CODEC:
            coder = coders.take()
            try:
                with nogil:
                    found = _get(&self.state, &view, &coder.state, number, peek, &got)
                if found == LOADED:
                    result = PyBytes_FromStringAndSize(<const char *>got.data, got.raw_length)
                elif found == ABORT:
                    raise_callback_error(&coder.state)
            finally:
                coders.give(coder)
            if found == OTHER_CODEC and got.codec:
                coders = <Coders>self.coders.get(got.codec)
                number = got.codec
                if coders is None:  # none of its values is left by now
                    coders, number = self.current, self.number
            elif found == IS_LARGE:
                result = self.large.get(got.entry.value)
                if result is None:  # replaced since
                    found = OTHER_CODEC
        if found == MISSING_KEY:
            if got.gone_large:
                self.large.pop(got.gone_large, None)
            return MISSING
        if found == IN_FILE or (peek and found == LOADED):
            return _make_found(&got, result)
        if found < 0:
            self._fail(coders, found)
        return result

    cdef int _fail(self, Coders coders, int code) except -1:
        if code == -EBADF:
            self.refuse()
        coders.add_errors([code])
        self.ledger.count_event("decompress_fail")
        raise PageError(0, code)

    def finish(self, Found where not None, Gathered gathered not None):
        """Return the bytes of a value that was read from the file; None: it has changed, get it again."""
        cdef Coders coders
        cdef Coder coder
        cdef Got got = where.got
        cdef const Entry *entry = &gathered.rows[0].entry
        cdef int found
        if entry.kind != got.entry.kind or entry.value != got.entry.value:
            return None
        coders = <Coders>self.coders[got.codec or self.number]
        if gathered.rows[0].failure:
            return None if gathered.has_changed(0) else self._fail(coders, gathered.rows[0].failure)
        coder = coders.take()
        try:
            got.length = gathered.rows[0].length
            found = -EBADMSG
            if got.length and got.length <= self.ledger.objects.page_size:
                memcpy(coder.state.output + AHEAD, gathered.rows[0].data, got.length)
                got.data = coder.state.output + AHEAD
                with nogil:
                    found = _restore(&coder.state, &got)
            if found == LOADED:
                return PyBytes_FromStringAndSize(<const char *>got.data, got.raw_length)
            if found == ABORT:
                raise_callback_error(&coder.state)
        finally:
            coders.give(coder)
        return None if gathered.has_changed(0) else self._fail(coders, found)

    def remove(self, key, expected=None) -> bool:
        """Take a key out with its value. Return whether it was there.

        `expected`   a LargeValue or what was Found: only if it is still the key's value.
        """
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Got got
        cdef Entry same
        cdef const Entry *wanted = NULL
        cdef bint removed
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
        with nogil:
            removed = _remove_if(&self.state, &view, wanted, &got)
        if got.gone_large:
            self.large.pop(got.gone_large, None)
        return removed

    def put(
        self, key, value, *, int64_t deadline=0, bint if_absent=False, uint64_t limit=0
    ) -> int:
        """Store a value of up to a page. Return 0, or a negative errno; then the key has what it had.

        `value`      a contiguous buffer.
        `deadline`   until when it is good, as `now_ns` has it; 0: for ever.
        `limit`      bytes of this ledger's objects in the pool, or 0: −EDQUOT beyond it.
        −EEXIST where the key is there and `if_absent`; −ENOSPC: the pool's limit; −ENOMEM.
        """
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Value new
        cdef Got got
        cdef Py_buffer buffer
        cdef Coders coders = self.current
        cdef Coder coder
        cdef int number = self.number, code
        cdef uint64_t expired = 0
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
        try:
            if <size_t>buffer.len > self.ledger.objects.page_size:
                raise ValueError("a value has at most a page")
            coder = coders.take()
            try:
                new.raw_length = <uint32_t>buffer.len
                new.deadline = deadline
                with nogil:
                    code = <int>_prepare(
                        &coder.state, number, <const uint8_t *>buffer.buf, &new
                    )
                    if code == 0:
                        code = _store(
                            &self.state, &view, &new, if_absent, limit, &got, &expired
                        )
                if code == ABORT:
                    raise_callback_error(&coder.state)
                if code != ABORT and got.gone_large:
                    self.large.pop(got.gone_large, None)
            finally:
                coders.give(coder)
        finally:
            PyBuffer_Release(&buffer)
            if expired:
                self.large.pop(expired, None)
        if code == -EBADF:
            self.refuse()
        return code

    def put_large(
        self, key, LargeValue value not None, *, int64_t deadline=0, bint if_absent=False
    ) -> int:
        """Have a key lead to a value that lies on pages. Return as `put`."""
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef Value new
        cdef Got got
        cdef int code
        cdef uint64_t expired = 0
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        self.large_number += 1
        value.number = new.number = self.large_number
        new.kind = LARGE
        new.codec = 0
        new.length = new.raw_length = 0
        new.deadline = deadline
        self.large[new.number] = value
        with nogil:
            code = _store(&self.state, &view, &new, if_absent, 0, &got, &expired)
        if code:
            self.large.pop(new.number, None)
        if got.gone_large:
            self.large.pop(got.gone_large, None)
        if expired:
            self.large.pop(expired, None)
        if code == -EBADF:
            self.refuse()
        return code


    # Several values.

    def get_many(self, list keys not None) -> list:
        """Return what `get` does for each of these keys; a value that fails is its PageError."""
        cdef Py_ssize_t start, count = len(keys), at, size
        cdef Key rooms = None
        cdef list found = [], chunk
        cdef KeyView views[CHUNK]
        cdef Got got[CHUNK]
        cdef int outcomes[CHUNK]
        cdef uint64_t offsets[CHUNK]
        cdef size_t page = self.ledger.objects.page_size
        cdef uint8_t *values
        cdef Coders coders = self.current
        cdef Coder coder
        cdef int number = self.number
        self.refuse()
        values = <uint8_t *>bz_malloc(CHUNK * page)
        if values is NULL:
            raise MemoryError("no memory for values")
        try:
            for start in range(0, count, CHUNK):
                size = min(<Py_ssize_t>CHUNK, count - start)
                chunk = [Key.__new__(Key) for _ in range(size)]
                for at in range(size):
                    rooms = <Key>chunk[at]
                    encode_key(rooms, keys[start + at])
                    _view(&self.state.index, rooms, &views[at])
                coder = coders.take()
                try:
                    with nogil:
                        _get_chunk(
                            &self.state, views, &coder.state, number, size, got, outcomes, values,
                            offsets,
                        )
                    raise_callback_error(&coder.state)
                finally:
                    coders.give(coder)
                for at in range(size):
                    if outcomes[at] == LOADED:
                        found.append(
                            PyBytes_FromStringAndSize(
                                <const char *>values + offsets[at], got[at].raw_length
                            )
                        )
                        continue
                    if got[at].gone_large:
                        self.large.pop(got[at].gone_large, None)
                    if outcomes[at] == MISSING_KEY:
                        found.append(MISSING)
                    elif outcomes[at] < 0:
                        try:
                            self._fail(coders, outcomes[at])
                        except PageError as error:
                            found.append(error)
                    else:
                        found.append(
                            self.get(keys[start + at], peek=outcomes[at] != OTHER_CODEC)
                        )
                PyErr_CheckSignals()
        finally:
            free(values)
        return found

    def put_many(
        self, list keys not None, list values not None, Py_ssize_t start, *, int64_t deadline=0,
        uint64_t limit=0,
    ) -> tuple[int, int]:
        """Store values of up to a page, from number `start` on.

        Return how many are stored, those before `start` included, and why not more: 0, or the negative
        errno of the next one.
        """
        cdef Py_ssize_t count = len(keys), at, size, done
        cdef list chunk
        cdef KeyView views[CHUNK]
        cdef Py_buffer buffers[CHUNK]
        cdef uint64_t gone[2 * CHUNK]
        cdef Coders coders = self.current
        cdef Coder coder
        cdef int number = self.number, code = 0
        self.refuse()
        while start < count and not code:
            size = min(<Py_ssize_t>CHUNK, count - start)
            chunk = [Key.__new__(Key) for _ in range(size)]
            for at in range(size):
                encode_key(<Key>chunk[at], keys[start + at])
                _view(&self.state.index, <Key>chunk[at], &views[at])
            done = 0
            try:
                for at in range(size):
                    PyObject_GetBuffer(values[start + at], &buffers[at], PyBUF_SIMPLE)
                    done += 1
                    if <size_t>buffers[at].len > self.ledger.objects.page_size:
                        raise ValueError("a value has at most a page")
                coder = coders.take()
                try:
                    with nogil:
                        done = _put_chunk(
                            &self.state, views, buffers, &coder.state, number, size, deadline, limit,
                            gone, &code,
                        )
                    for at in range(2 * size):
                        if gone[at]:
                            self.large.pop(gone[at], None)
                    if code == ABORT:
                        raise_callback_error(&coder.state)
                finally:
                    coders.give(coder)
                    start += done
                    done = size
            finally:
                for at in range(done):
                    PyBuffer_Release(&buffers[at])
            PyErr_CheckSignals()
        if code == -EBADF:
            self.refuse()
        return start, code

    # All of them.

    def contains(self, key) -> bool:
        """Return whether a key is there; that is no use of its value."""
        cdef Key room = Key.__new__(Key)
        cdef KeyView view
        cdef uint32_t position
        cdef bint found = False
        encode_key(room, key)
        self.refuse()
        _view(&self.state.index, room, &view)
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            if not self.state.ledger.closed:
                position = index_find(&self.state.index, &view)
                found = position != NOWHERE and not _is_over(&self.state, position, _now())
            pool_unlock(self.state.ledger.objects.pool)
        return found

    def __len__(self) -> int:
        cdef uint64_t found
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            found = 0 if self.state.ledger.closed else self.state.index.count
            pool_unlock(self.state.ledger.objects.pool)
        return found

    def keys(self) -> list:
        """Return all keys in the order in which they were put in first, as they are at one moment."""
        cdef KeyIndex *index = &self.state.index
        cdef uint64_t room = 0, used = 0, at
        cdef uint8_t *copy = NULL
        cdef list found = []
        cdef uint32_t length
        self.refuse()
        try:
            while True:
                with nogil:
                    pool_lock(self.state.ledger.objects.pool)
                    used = index.key_room + 4 * index.count
                    if used <= room:
                        used = 0 if self.state.ledger.closed else _copy_keys(&self.state, copy)
                    pool_unlock(self.state.ledger.objects.pool)
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
        """Return a list of the key that was put in last, or an empty one."""
        cdef KeyIndex *index = &self.state.index
        cdef uint32_t place, length = 0
        cdef uint8_t *room = NULL
        cdef const KeyBlock *block
        cdef bint found = False
        self.refuse()
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            if not self.state.ledger.closed and index.last != NOWHERE:
                found = True
                block = index.blocks[index.last]
                place = block.used - 1
                while not place_is_live(block, place):
                    place -= 1
                room = _copy_of_key(&self.state, index.last << BLOCK_BITS | place, &length)
            pool_unlock(self.state.ledger.objects.pool)
        return _decoded_copy(room, length) if found else []

    def clear(self) -> None:
        """Take all values out."""
        cdef KeyIndex *index = &self.state.index
        cdef uint32_t place
        cdef Got got
        cdef dict large
        self.refuse()
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            while not self.state.ledger.closed and index.first != NOWHERE:
                for place in range(BLOCK):
                    if place_is_live(index.blocks[index.first], place):
                        _take_out(&self.state, index.first << BLOCK_BITS | place, &got)
                index_drop_block(index, index.first)
            pool_settle(self.state.ledger.objects.pool)
            pool_unlock(self.state.ledger.objects.pool)
        large, self.large = self.large, {}

    # What a cache does.

    def shrink(self, uint64_t target) -> int:
        """Take out the coldest values until `target` bytes of the ledger are left in the pool.

        Return how many went; fewer bytes are left than `target`, or no value is.
        """
        cdef uint64_t gone = 0, went, large
        cdef int code = 1
        self.refuse()
        while code > 0:
            large = 0
            with nogil:
                pool_lock(self.state.ledger.objects.pool)
                code = _shrink(&self.state, target, &went, &large)
                pool_settle(self.state.ledger.objects.pool)
                pool_unlock(self.state.ledger.objects.pool)
            if large:
                self.large.pop(large, None)
            gone += went
        if code < 0:
            raise MemoryError("no memory to choose the coldest values")
        return gone

    def coldest(self) -> list:
        """Return a list of the key of the value that was not used for longest, or an empty one."""
        cdef uint64_t index = 0
        cdef int64_t found = 0
        cdef uint32_t length = 0
        cdef uint8_t *room = NULL
        self.refuse()
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            if not self.state.ledger.closed:
                found = _coldest(&self.state, &index)
            if found > 0:
                room = _copy_of_key(&self.state, <uint32_t>index, &length)
            pool_unlock(self.state.ledger.objects.pool)
        if found < 0:
            raise MemoryError("no memory to choose the coldest value")
        return _decoded_copy(room, length) if found else []

    def count_eviction(self) -> None:
        """Count a value that `remove` took out to make room."""
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            self.state.evictions += 1
            pool_unlock(self.state.ledger.objects.pool)

    def expire(self) -> int:
        """Take out all values whose time is over. Return how many went."""
        cdef uint64_t gone = 0, went = CHUNK, at
        cdef uint64_t large[CHUNK]
        self.refuse()
        while went == CHUNK:
            went = 0
            with nogil:
                pool_lock(self.state.ledger.objects.pool)
                if not self.state.ledger.closed:
                    went = _expire(&self.state, large)
                pool_settle(self.state.ledger.objects.pool)
                pool_unlock(self.state.ledger.objects.pool)
            for at in range(went):
                if large[at]:
                    self.large.pop(large[at], None)
            gone += went
        return gone

    def coder_bytes(self) -> int:
        """Return the bytes of memory of the coders that are not the engine's: those with a dictionary."""
        cdef Coders coders
        return sum([
            coders.memory_bytes() for coders in self.coders.values() if not coders.names_dictionary
        ])

    def figures(self) -> dict[str, int]:
        """Return the figures of one moment.

        "values", "raw_bytes" (of those that are records), "index_bytes", "key_bytes" (with room for
        more), and "hits", "misses", "evictions" and "expirations" so far.
        """
        cdef State *state = &self.state
        cdef uint64_t values, raw, bytes, keys, hits, misses, evictions, expirations
        with nogil:
            pool_lock(state.ledger.objects.pool)
            values, raw, bytes = state.index.count, state.ledger.record_bytes, index_bytes(&state.index)
            keys = state.index.key_room
            hits, misses = state.hits, state.misses
            evictions, expirations = state.evictions, state.expirations
            pool_unlock(state.ledger.objects.pool)
        return {
            "values": values, "raw_bytes": raw, "index_bytes": bytes, "key_bytes": keys, "hits": hits,
            "misses": misses, "evictions": evictions, "expirations": expirations,
        }

    def large_values(self) -> list:
        """Return the objects of the values that lie on pages."""
        return list(self.large.values())

    def close(self) -> None:
        """Forget all keys: the ledger's entries are its own business."""
        cdef dict large
        self.closed = True
        with nogil:
            pool_lock(self.state.ledger.objects.pool)
            index_close(&self.state.index)
            self.state.ledger.record_bytes = 0
            pool_unlock(self.state.ledger.objects.pool)
        large, self.large = self.large, {}

    def fault(self):
        """Return what is wrong, or None. No other thread may be changing anything."""
        cdef State *state = &self.state
        cdef uint32_t id = state.index.first, place
        cdef uint64_t raw = 0, count = 0, large = 0
        cdef const KeyBlock *block
        cdef const Entry *entry
        found = index_fault(&state.index)
        if found is not None:
            return found
        while id != NOWHERE:
            block = state.index.blocks[id]
            for place in range(BLOCK):
                if not place_is_live(block, place):
                    continue
                entry = _entry_of(state, id << BLOCK_BITS | place)
                if entry is NULL or entry.kind not in (RECORD, BACKED_RECORD, LARGE):
                    return f"position {id << BLOCK_BITS | place} has no value"
                count += 1
                raw += block.lengths[place]
                if entry.kind == LARGE:
                    large += 1
                    if entry.value not in self.large:
                        return f"large value {entry.value} has no object"
            id = block.after
        if raw != state.ledger.record_bytes:
            return f"values have {raw} bytes, counted are {state.ledger.record_bytes}"
        figures = self.ledger.figures()
        if count != figures["records"] + figures["backed_records"] + figures["large"]:
            return f"{count} values, and entries {figures}"
        if large != len(self.large):
            return f"{large} large values, and objects of {len(self.large)}"
        return None


# Several values, in the core.

cdef void _get_chunk(
    State *state, const KeyView *views, CoderState *coder, int number, size_t count, Got *got,
    int *outcomes, uint8_t *values, uint64_t *offsets,
) noexcept nogil:
    cdef size_t at
    cdef uint64_t used = 0
    for at in range(count):
        outcomes[at] = _get(state, &views[at], coder, number, False, &got[at])
        offsets[at] = used
        if outcomes[at] == LOADED:
            memcpy(values + used, got[at].data, got[at].raw_length)
            used += got[at].raw_length
        elif outcomes[at] == ABORT:
            for at in range(at + 1, count):
                outcomes[at] = MISSING_KEY
                got[at].gone_large = 0
            return


cdef size_t _put_chunk(
    State *state, const KeyView *views, const Py_buffer *buffers, CoderState *coder, int number,
    size_t count, int64_t deadline, uint64_t limit, uint64_t *gone, int *code,
) noexcept nogil:
    """Store values until one cannot be. Return how many are, and the numbers of large ones that went."""
    cdef size_t at, done = 0
    cdef Value new
    cdef Got got
    for at in range(2 * count):
        gone[at] = 0
    for at in range(count):
        new.raw_length = <uint32_t>buffers[at].len
        new.deadline = deadline
        code[0] = <int>_prepare(coder, number, <const uint8_t *>buffers[at].buf, &new)
        if code[0] == 0:
            code[0] = _store(state, &views[at], &new, False, limit, &got, &gone[2 * at])
        if code[0] != ABORT:
            gone[2 * at + 1] = got.gone_large
        if code[0]:
            break
        done += 1
    return done


# Order.

cdef uint64_t _copy_keys(State *state, uint8_t *copy) noexcept nogil:
    """Copy the length and the bytes of each key that is not over. Return the bytes written."""
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
    """Find the value that was not used for longest. Return 1, 0: there is none, or −1: no memory."""
    cdef int64_t found = 1
    while found > 0:
        found = lru_coldest(&state.ledger.lru, &state.ledger.table, 1, index)
        if found > 0 and index[0] & RECORDS:
            index[0] &= ~RECORDS
            return 1
    return found


cdef int _shrink(State *state, uint64_t target, uint64_t *went, uint64_t *large) noexcept nogil:
    """Take out cold values. Return 0: enough went, or all; 1: a large one went; −1: no memory."""
    cdef uint64_t index = 0
    cdef int64_t found
    cdef Got got
    went[0] = 0
    while not state.ledger.closed and state.ledger.pool_bytes > target:
        found = _coldest(state, &index)
        if found <= 0:
            return <int>found
        state.evictions += 1
        went[0] += 1
        _remove(state, <uint32_t>index, &got)
        if got.gone_large:
            large[0] = got.gone_large
            return 1
    return 0


cdef uint64_t _expire(State *state, uint64_t *large) noexcept nogil:
    """Take out up to CHUNK values whose time is over. Return how many; `large` has their numbers, or 0."""
    cdef KeyIndex *index = &state.index
    cdef uint32_t id = index.first, place, after
    cdef uint64_t went = 0
    cdef int64_t now = _now()
    cdef const KeyBlock *block
    cdef Got got
    while id != NOWHERE and went < CHUNK:
        block = index.blocks[id]
        after = block.after
        if block.deadlines is not NULL:
            for place in range(block.used):
                if went < CHUNK and place_is_live(block, place) and _place_is_over(block, place, now):
                    state.expirations += 1
                    _take_out(state, id << BLOCK_BITS | place, &got)
                    large[went] = got.gone_large
                    went += 1
            if not block.live:
                index_drop_block(index, id)
        id = after
    id = index.first
    while id != NOWHERE:
        after = index.blocks[id].before
        if not _join(state, id):
            id = index.blocks[id].after
        else:  # what is there now may go with the next one as well
            id = index.first if after == NOWHERE else index.blocks[after].after
    return went


cdef uint8_t *_copy_of_key(State *state, uint32_t position, uint32_t *length) noexcept nogil:
    """Return a copy of what is kept of a key, the caller's to free; NULL: no memory."""
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
