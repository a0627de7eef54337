"""Gathered: copies of entries and of their objects at one moment, and pages restored from them.

    gather(entries, indices)   under the mutex: copy entries and objects, renew the entries' epochs
    supply(row, bytes)         give an object of the backing file, which the caller has read
    check(pages)               verify checksums; restore same-filled and raw pages
    restore(…)                 decompress the others in this thread; or lend(…) them to lanes
    load_many(…)               gather, check and restore in one step, if no page is in the file
    to_file, to_pool, take     change the entries, if they are still the gathered ones

No other thread waits for a codec or a file. The copies were current when the mutex was held, and
the verified bytes are the ones that are decompressed. Bytes from the backing file may be newer than
their entry: before the read, the page may be stored again and its place in the file may be reused.
The checksum reveals this. The caller then looks at the entry again: only an unchanged entry is
damaged.

Checksums are verified before decompression, because codecs miss most damage: of 20,000 single-bit
flips, lz4 decoded 80.6 % and zstd 70.7 % to wrong data of the right length. The checksum covers the
number of the codec, so no codec decodes the output of another.

Rejected: decompressing from the pool itself. Objects could then neither move nor be freed until the
last lane is done. A copy costs 0.1 µs per page, and the checksum reads the bytes anyway.

`load_many` gives up the GIL once, not three times: taking it again can take longer than a step, if
other threads use the store.

A Gathered belongs to one thread at a time.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.errno cimport EBADMSG, EIO
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from batchzip.core.batch cimport Pointers
from batchzip.core.coder cimport (
    ABORT, DECOMPRESS, Coder, Coders, CoderState, Tally, hash_output, raise_callback_error,
    restore_page,
)
from batchzip.core.entries cimport (
    Entries, EntriesState, Objects, entries_count, entries_forget, entries_remove,
)
from batchzip.core.latency cimport TIMED_LOAD, timer_end, timer_start
from batchzip.core.libraries cimport find_xxh3
from batchzip.core.lru cimport lru_use
from batchzip.core.memory cimport bz_calloc, bz_malloc
from batchzip.core.pool cimport (
    pool_allocate, pool_bytes, pool_free, pool_lock, pool_settle, pool_unlock,
)
from batchzip.core.table cimport (
    ABSENT, BACKED, COMPRESSED, LARGE, RAW, SAME_FILLED, SLICED, Entry, is_in_file, is_in_pool,
    kind_in_file, table_find, table_put,
)
from batchzip.core.zones cimport ZoneReservation, zones_free

from batchzip.arguments.checks import as_index
from batchzip.errors import BadArgument, CorruptPage, PageError, PageNotStored

cdef extern from "native.h" nogil:
    """
    /* Prefetch all cache lines of an object at once. The hardware would fetch them one by one. */
    static inline void bz_prefetch(const uint8_t *data, size_t length) {
        for (size_t at = 0; at < length; at += 64) __builtin_prefetch(data + at);
    }
    """
    void bz_prefetch(const uint8_t *, size_t)
    void bz_count(uint64_t *, uint64_t)
    int64_t bz_now_ns()

cdef enum:
    MOMENT_NS = 50_000_000  # time between two checks for signals

cdef CoderState _hasher
_hasher.xxh3 = find_xxh3()


cdef uint32_t checksum_of(const uint8_t *data, size_t length, uint8_t codec) noexcept nogil:
    return <uint32_t>(hash_output(&_hasher, data, length) ^ codec)


def checksum(data, uint8_t codec) -> int:
    """Return the checksum over an entry's stored bytes and its codec's number."""
    cdef Py_buffer view
    cdef uint32_t found
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    found = checksum_of(<const uint8_t *>view.buf, view.len, codec)
    PyBuffer_Release(&view)
    return found


cdef inline void fill_page(uint8_t *page, uint64_t word, size_t size) noexcept nogil:
    cdef size_t at
    for at in range(0, size, 8):
        memcpy(page + at, &word, 8)  # the page may be unaligned


# One page, the most frequent operation: a single call without a Gathered.

cdef int load_page(
    EntriesState *entries, uint64_t index, int number, uint64_t reused, CoderState *coder,
    uint8_t *page, bint exclusive,
) noexcept nogil:
    cdef Entry *entry
    cdef Entry found
    cdef const uint8_t *data
    cdef uint32_t length = 0
    cdef int64_t restored
    cdef size_t size = coder.page_size
    while True:
        pool_lock(entries.objects.pool)
        entry = table_find(&entries.table, index)
        if (
            entries.closed or entry is NULL or entry.kind == ABSENT
            or entries.objects.reused != reused
        ):
            restored = IS_CLOSED if entries.closed else (
                NOT_STORED if entry is NULL or entry.kind == ABSENT else CHANGED
            )
            pool_unlock(entries.objects.pool)
            return restored
        if entry.kind == BACKED or (entry.kind == COMPRESSED and entry.codec != number):
            pool_unlock(entries.objects.pool)
            return ELSEWHERE
        entry.epoch = lru_use(&entries.lru, &entries.table, 1, entries.pages)
        entries.page_loads += 1
        found = entry[0]
        if found.kind != SAME_FILLED:
            data = pool_bytes(entries.objects.pool, found.value, &length)
            if data is not NULL:
                bz_prefetch(data, length)
                memcpy(coder.output, data, length)
        pool_unlock(entries.objects.pool)
        if found.kind == SAME_FILLED:
            fill_page(page, found.value, size)
        elif not length or checksum_of(coder.output, length, found.codec) != found.checksum:
            return -EBADMSG
        elif found.kind == RAW:
            if length != size:
                return -EBADMSG
            memcpy(page, coder.output, size)
        else:
            restored = restore_page(coder, coder.output, length, page, True)
            bz_count(&coder.tallies[DECOMPRESS].pages, 1)
            bz_count(&coder.tallies[DECOMPRESS].bytes_in, length)
            if restored < 0:
                return <int>restored
            bz_count(&coder.tallies[DECOMPRESS].bytes_out, size)
        if not exclusive or _take(entries, index, &found):
            return LOADED


cdef bint _take(EntriesState *entries, uint64_t index, const Entry *found) noexcept nogil:
    """Remove a page if its entry is still `found`. Return whether it was."""
    cdef Entry *entry
    pool_lock(entries.objects.pool)
    entry = entry_if_still(&entries.table, index, found)
    if entry is not NULL:
        entries_remove(entries, entry)
        pool_settle(entries.objects.pool)
    pool_unlock(entries.objects.pool)
    return entry is not NULL


def load(Entries entries not None, index, out=None, bint exclusive=False):
    """Restore one page to `out`, a writable buffer of a page, or to new bytes. Return them.

    Return a Gathered instead if the page lies in the backing file, or if its codec is not the
    current one or does not run in this process. With `exclusive`, remove the page once it is
    restored. Raise PageNotStored, CorruptPage or PageError; the entry then stays.
    """
    cdef Objects objects = entries.objects
    cdef Coders coders
    cdef Coder coder
    cdef int overflow = 0, number, found = CHANGED
    cdef int64_t where
    cdef uint64_t reused
    cdef uint8_t *room
    cdef Py_buffer view
    cdef int64_t started = timer_start(&entries.timers[TIMED_LOAD])
    entries.refuse()
    if type(index) is not int:
        index = as_index(index)
    where = PyLong_AsLongLongAndOverflow(index, &overflow)
    if overflow or where < 0:
        raise PageNotStored(index)
    while found == CHANGED:
        number = objects.current
        reused = objects.state.reused
        made = objects.coders[number]
        if made is None:
            return _started(gather(entries, index, use=True), started)
        coders = <Coders>made
        if out is None:
            page = PyBytes_FromStringAndSize(NULL, objects.page_size)
            room = <uint8_t *>PyBytes_AS_STRING(page)
        else:
            page = out
            PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
            room = <uint8_t *>view.buf
            if <size_t>view.len != objects.page_size:
                PyBuffer_Release(&view)
                raise BadArgument(f"out must have {objects.page_size} bytes, not {view.len}")
        coder = None
        try:
            coder = coders.take()
            with nogil:
                found = load_page(
                    &entries.state, where, number, reused, &coder.state, room, exclusive
                )
            if found == ABORT:
                raise_callback_error(&coder.state)
        finally:
            if coder is not None:
                coders.give(coder)
            if out is not None:
                PyBuffer_Release(&view)
        if found == LOADED:
            if started:
                timer_end(&entries.timers[TIMED_LOAD], started)
            return page
    if found == NOT_STORED:
        raise PageNotStored(index)
    if found == IS_CLOSED:
        entries.refuse()
    if found == ELSEWHERE:
        return _started(gather(entries, index, use=True), started)
    coders.add_errors([found])
    entries.count_event("decompress_fail")
    raise CorruptPage(index) if found == -EBADMSG else PageError(index, found)


cdef Gathered _started(Gathered gathered, int64_t started):
    gathered.started = started
    return gathered


# Several pages.

cdef int64_t _gather(EntriesState *entries, Gathered gathered, bint use) noexcept nogil:
    """Copy entries and objects.

    Return 0, or −1 if there is no memory. With `use`, return 1 + the number of the first row whose
    index holds nothing. The caller holds the pool's mutex.
    """
    cdef Row *row
    cdef Entry *entry
    cdef uint64_t total = 0
    cdef uint32_t number
    cdef uint16_t stamp
    cdef uint8_t *room
    for number in range(gathered.count):
        row = &gathered.rows[number]
        entry = table_find(&entries.table, row.index)
        if entry is not NULL:
            row.entry = entry[0]
        if row.entry.kind == ABSENT:
            if use:
                return number + 1
            continue
        if is_in_pool(&row.entry):
            row.data = pool_bytes(entries.objects.pool, row.entry.value, &row.length)
            total += row.length
    if total:
        gathered.copies = <uint8_t *>bz_malloc(total)
        if gathered.copies is NULL:
            return -1
    room = gathered.copies
    for number in range(gathered.count):
        row = &gathered.rows[number]
        if row.data is not NULL:
            memcpy(room, row.data, row.length)
            row.data = room
            room += row.length
    if use:
        stamp = lru_use(&entries.lru, &entries.table, gathered.count, entries.pages)
        entries.page_loads += gathered.count
        for number in range(gathered.count):
            table_find(&entries.table, gathered.rows[number].index).epoch = stamp
    return 0


def gather(Entries entries not None, indices, *, bint use=False) -> Gathered:
    """Copy the entries of some indices, and their objects in the pool.

    `indices`  an index, or a contiguous buffer of int64 or uint64.
    `use`      whether this counts as a use of the pages. All of them must then be stored: raise
               PageNotStored otherwise.
    """
    cdef Gathered gathered = _begin(entries, indices)
    cdef int64_t outcome
    with nogil:
        outcome = _gather_locked(&entries.state, gathered, use)
    _end(gathered, outcome)
    return gathered


def load_many(
    Entries entries not None, indices, pages, Coders coders, uint8_t number
) -> Gathered:
    """Gather pages for use, as `gather` does, and restore them to the rows of `pages`.

    Pages that need no codec are restored, and those of the codec `number` if its `coders` are
    given, in this thread. No page is if one of them is in the backing file: `is_checked` is False
    then. Signal handlers run every 50 ms.
    """
    cdef Gathered gathered = _begin(entries, indices)
    cdef Coder coder = None
    cdef CoderState *state = NULL
    cdef Py_buffer view
    cdef int64_t outcome
    cdef uint32_t at
    gathered.get_room(pages, &view)
    try:
        if coders is not None:
            coder = coders.take()
            state = &coder.state
        at = gathered.count
        with nogil:
            outcome = _gather_locked(&entries.state, gathered, True)
            if outcome == 0 and not _is_any_in_file(gathered):
                gathered.is_checked = True
                if _check(gathered, <uint8_t *>view.buf) and state is not NULL:
                    at = _restore(gathered, 0, number, state, <uint8_t *>view.buf)
        _end(gathered, outcome)
        if coders is not None:
            gathered.restore_from(at, number, coders, coder, <uint8_t *>view.buf)
    finally:
        PyBuffer_Release(&view)
        if coder is not None:
            coders.give(coder)
    return gathered


cdef Gathered _begin(Entries entries, indices):
    """Return a Gathered with the indices. Raise ClosedError or MemoryError."""
    cdef Gathered gathered = Gathered.__new__(Gathered)
    cdef Py_buffer view
    cdef uint32_t number
    gathered.entries = entries
    entries.refuse()
    if type(indices) is int:
        gathered.make_rows(1)
        gathered.rows[0].index = indices
    else:
        PyObject_GetBuffer(indices, &view, PyBUF_C_CONTIGUOUS)
        try:
            gathered.make_rows(view.len // 8)
            for number in range(gathered.count):
                memcpy(&gathered.rows[number].index, <const uint8_t *>view.buf + 8 * number, 8)
        finally:
            PyBuffer_Release(&view)
    gathered.reused = entries.objects.state.reused
    return gathered


cdef int _end(Gathered gathered, int64_t outcome) except -1:
    """Raise the error of an outcome of `_gather`."""
    gathered.entries.refuse()
    if outcome < 0:
        raise MemoryError("no memory for copies of stored objects")
    if outcome:
        raise PageNotStored(<int64_t>gathered.rows[outcome - 1].index)
    return 0


cdef int64_t _gather_locked(EntriesState *entries, Gathered gathered, bint use) noexcept nogil:
    """Take the pool's mutex for `_gather`."""
    cdef int64_t outcome
    pool_lock(entries.objects.pool)
    outcome = _gather(entries, gathered, use)
    pool_unlock(entries.objects.pool)
    return outcome


cdef bint _is_any_in_file(Gathered gathered) noexcept nogil:
    cdef uint32_t number
    for number in range(gathered.count):
        if is_in_file(&gathered.rows[number].entry):
            return True
    return False


cdef class Gathered:
    """Copies of entries and their objects. The rows are in the order of the indices."""

    def __dealloc__(self):
        free(self.rows)
        free(self.copies)

    cdef int make_rows(self, size_t count) except -1:
        cdef Row *rows
        if count > 0xFFFFFFFF:
            raise MemoryError(f"cannot gather {count} entries at once: the limit is 2³² − 1")
        rows = <Row *>bz_calloc(count + 1, sizeof(Row))
        if rows is NULL:
            raise MemoryError("no memory to gather entries")
        self.rows = rows
        self.count = <uint32_t>count
        return 0

    cdef int get_room(self, pages, Py_buffer *view) except -1:
        """Get the buffer of an array with a page for each row. Raise BadArgument for others."""
        cdef size_t wanted = self.count * self.entries.objects.page_size
        PyObject_GetBuffer(pages, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        if <size_t>view.len == wanted:
            return 0
        found = view.len
        PyBuffer_Release(view)
        raise BadArgument(f"the pages must have {wanted} bytes, not {found}")

    def __len__(self) -> int:
        return self.count

    def index(self, uint32_t row) -> int:
        """Return the index of a row."""
        return self.rows[row].index

    def kind(self, uint32_t row) -> int:
        """Return the kind of a row's entry."""
        return self.rows[row].entry.kind

    def value(self, uint32_t row) -> int:
        """Return a row's handle in the pool, position in the backing file, or word."""
        return self.rows[row].entry.value

    def codec(self, uint32_t row) -> int:
        """Return the codec number of a row."""
        return self.rows[row].entry.codec

    def length(self, uint32_t row) -> int:
        """Return the length of a row's object in bytes."""
        return self.rows[row].length

    def stored(self, uint32_t row) -> bytes:
        """Return a copy of a row's object."""
        return PyBytes_FromStringAndSize(<const char *>self.rows[row].data, self.rows[row].length)

    def rows_of(self, *kinds) -> list[int]:
        """Return the rows whose entries are of these kinds."""
        cdef uint32_t row
        return [row for row in range(self.count) if self.rows[row].entry.kind in kinds]

    @property
    def is_current(self) -> bool:
        """Whether no codec number was given to another codec since the entries were gathered."""
        return self.reused == self.entries.objects.state.reused

    def has_changed(self, uint32_t row) -> bool:
        """Return whether a row's index has another entry by now."""
        cdef EntriesState *entries = &self.entries.state
        cdef Row *found = &self.rows[row]
        cdef bint changed
        with nogil:
            pool_lock(entries.objects.pool)
            changed = entry_if_still(&entries.table, found.index, &found.entry) is NULL
            pool_unlock(entries.objects.pool)
        return changed

    def supply(self, uint32_t row, bytes data) -> None:
        """Set a row's object to bytes that the caller read from the backing file."""
        if self.given is None:
            self.given = []
        self.given.append(data)
        self.rows[row].data = <const uint8_t *>PyBytes_AS_STRING(data)
        self.rows[row].length = len(data)

    def fail(self, uint32_t row, int code) -> None:
        """Record the negative errno of reading a row's object from the backing file."""
        self.rows[row].failure = code

    # Pages.

    def damaged(self) -> list[int]:
        """Verify all objects. Return the rows that are damaged or could not be read."""
        cdef uint32_t number
        with nogil:
            for number in range(self.count):
                _verify(&self.rows[number])
        return [number for number in range(self.count) if self.rows[number].outcome < 0]

    def check(self, pages) -> int:
        """Verify every checksum, and restore pages that need no codec to the rows of `pages`.

        Return the number of rows that wait for a codec.
        """
        cdef Py_buffer view
        cdef uint32_t pending
        self.get_room(pages, &view)
        with nogil:
            pending = _check(self, <uint8_t *>view.buf)
        PyBuffer_Release(&view)
        self.is_checked = True
        return pending

    def pending(self) -> dict[int, int]:
        """Return the number of rows that wait for each codec, by codec number."""
        cdef uint32_t number
        found: dict[int, int] = {}
        for number in range(self.count):
            if self.rows[number].outcome == PENDING:
                codec = self.rows[number].entry.codec
                found[codec] = found.get(codec, 0) + 1
        return found

    def restore(self, Coders coders not None, uint8_t number, pages) -> None:
        """Restore the rows that wait for a codec, in this thread, and run signal handlers."""
        cdef Py_buffer view
        cdef Coder coder
        self.get_room(pages, &view)
        try:
            coder = coders.take()
            try:
                self.restore_from(0, number, coders, coder, <uint8_t *>view.buf)
            finally:
                coders.give(coder)
        finally:
            PyBuffer_Release(&view)

    cdef int restore_from(
        self, uint32_t at, uint8_t number, Coders coders, Coder coder, uint8_t *pages
    ) except -1:
        """Restore the rows from `at` on that wait for a codec. Note the errors of all rows."""
        raise_callback_error(&coder.state)
        while at < self.count:
            PyErr_CheckSignals()
            with nogil:
                at = _restore(self, at, number, &coder.state, pages)
            raise_callback_error(&coder.state)
        for at in range(self.count):
            if self.rows[at].outcome < 0 and self.rows[at].entry.codec == number:
                coders.add_errors([self.rows[at].outcome])
        return 0

    def lend(self, uint8_t number, pages, Pointers pointers not None, lengths) -> list[int]:
        """Set a batch's inputs to the rows that wait for a codec, and its outputs to their pages.

        `lengths` is a uint32 array with room for the rows' lengths. Return these rows. The batch
        holds no references: the caller keeps `self` and `pages` alive until it has run.
        """
        cdef Py_buffer view
        cdef size_t size = self.entries.objects.page_size
        cdef uint32_t at
        rows = [
            at for at in range(self.count)
            if self.rows[at].outcome == PENDING and self.rows[at].entry.codec == number
        ]
        self.get_room(pages, &view)
        try:
            pointers.make_tables(len(rows), lengths, True)
            for position, at in enumerate(rows):
                pointers.set_row(
                    position, self.rows[at].data, self.rows[at].length,
                    <uint8_t *>view.buf + at * size,
                )
        finally:
            PyBuffer_Release(&view)
        return rows

    def note(self, list rows, Pointers pointers not None) -> None:
        """Record the results of rows that were lent."""
        cdef uint32_t position
        for position in range(len(rows)):
            self.rows[<uint32_t>rows[position]].outcome = pointers.state.errors[position]

    def first_failed(self) -> tuple[int, int] | None:
        """Return the first row that could not be restored, and its negative errno."""
        cdef uint32_t number
        for number in range(self.count):
            if self.rows[number].outcome:
                return number, self.outcome(number)
        return None

    def outcome(self, uint32_t row) -> int:
        """Return 0 for a row that was restored, or its negative errno."""
        return -EIO if self.rows[row].outcome == PENDING else self.rows[row].outcome

    # Changing the entries.

    def take(self) -> bool:
        """Remove all pages if every entry is still the gathered one. Return whether they were."""
        cdef EntriesState *entries = &self.entries.state
        cdef Entry *entry
        cdef Row *row
        cdef uint32_t number
        cdef bint same = True
        with nogil:
            pool_lock(entries.objects.pool)
            for number in range(self.count):
                row = &self.rows[number]
                same = same and entry_if_still(&entries.table, row.index, &row.entry) is not NULL
            if same:
                for number in range(self.count):
                    entry = table_find(&entries.table, self.rows[number].index)
                    if entry is not NULL and entry.kind != ABSENT:  # an index may come twice
                        entries_remove(entries, entry)
                pool_settle(entries.objects.pool)
            pool_unlock(entries.objects.pool)
        return same

    def to_file(self, list rows, ZoneReservation reservation not None) -> int:
        """Point entries to their copies in the backing file, if they are still the gathered ones.

        Return the number of entries that were changed. Free the room of the others in the file.
        """
        cdef EntriesState *entries = &self.entries.state
        cdef uint32_t count = len(rows), at, moved = 0
        cdef uint32_t *which = <uint32_t *>bz_calloc(count + 1, sizeof(uint32_t))
        cdef Row *row
        cdef Entry *entry
        cdef Entry new
        if which is NULL:
            reservation.undo()  # at once, because a traceback may keep the reservation alive
            raise MemoryError("no memory to move pages")
        for at in range(count):
            which[at] = rows[at]
        reservation.commit()
        with nogil:
            pool_lock(entries.objects.pool)
            for at in range(count):
                row = &self.rows[which[at]]
                entry = entry_if_still(&entries.table, row.index, &row.entry)
                if entry is NULL:
                    zones_free(entries.objects.zones, &reservation.positions[at], 1)
                    continue
                new = entry[0]
                new.value = reservation.positions[at]
                new.kind = kind_in_file(entry)
                _replace(entries, entry, &new, 0)
                moved += 1
            pool_settle(entries.objects.pool)
            pool_unlock(entries.objects.pool)
        free(which)
        return moved

    def to_pool(self, list rows, list outputs, uint8_t number) -> tuple[int, int]:
        """Replace objects by outputs of the codec `number`, if their entries are unchanged.

        Return the number of entries that were changed, and the bytes saved. A page keeps its object
        if the pool has no room for the new one.
        """
        cdef uint32_t at
        cdef int64_t saved, total = 0, moved = 0
        for at in range(len(rows)):
            saved = self._exchange(rows[at], outputs[at], number)
            if saved >= 0:
                moved += 1
                total += saved
        return moved, total

    cdef int64_t _exchange(self, uint32_t row, bytes output, uint8_t number):
        cdef EntriesState *entries = &self.entries.state
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(output)
        cdef uint32_t length = len(output)
        cdef uint32_t unused = 0
        cdef int64_t saved = -1
        cdef Entry *entry
        cdef Entry new
        with nogil:
            pool_lock(entries.objects.pool)
            entry = entry_if_still(&entries.table, self.rows[row].index, &self.rows[row].entry)
            if entry is not NULL:
                new = entry[0]
                if pool_allocate(entries.objects.pool, 1, &length, &new.value) == 0:
                    memcpy(pool_bytes(entries.objects.pool, new.value, &unused), data, length)
                    new.kind = COMPRESSED
                    new.codec = number
                    new.checksum = checksum_of(data, length, number)
                    _replace(entries, entry, &new, length)
                    saved = <int64_t>self.rows[row].length - length
            pool_settle(entries.objects.pool)
            pool_unlock(entries.objects.pool)
        return saved


cdef void _replace(
    EntriesState *entries, Entry *entry, const Entry *new, uint32_t length
) noexcept nogil:
    """Replace an entry, and free the object of the old one."""
    cdef Entry old = entry[0]
    table_put(&entries.table, entry, new)
    entries_forget(entries, &old)
    entries_count(entries, new, length)


cdef void _verify(Row *row) noexcept nogil:
    """Verify a row's object, and record the outcome: RESTORED or a negative errno."""
    row.outcome = RESTORED
    if row.entry.kind in (ABSENT, SAME_FILLED, LARGE, SLICED):
        return
    if row.failure:
        row.outcome = row.failure
    elif row.data is NULL:
        row.outcome = -EIO if is_in_file(&row.entry) else -EBADMSG
    elif checksum_of(row.data, row.length, row.entry.codec) != row.entry.checksum:
        row.outcome = -EBADMSG


cdef uint32_t _check(Gathered gathered, uint8_t *pages) noexcept nogil:
    """Verify all rows, restore those that need no codec, and return the number of the others."""
    cdef size_t size = gathered.entries.objects.state.pool.page_size
    cdef uint32_t number, pending = 0
    cdef Row *row
    cdef uint8_t *page
    for number in range(gathered.count):
        row = &gathered.rows[number]
        page = pages + number * size
        _verify(row)
        if row.outcome < 0:
            continue
        if row.entry.kind == SAME_FILLED:
            fill_page(page, row.entry.value, size)
        elif row.entry.kind != ABSENT and row.entry.codec == 0:
            if row.length == size:
                memcpy(page, row.data, size)
            else:
                row.outcome = -EBADMSG
        elif row.entry.kind != ABSENT:
            row.outcome = PENDING
            pending += 1
    return pending


cdef uint32_t _restore(
    Gathered gathered, uint32_t at, uint8_t number, CoderState *coder, uint8_t *pages
) noexcept nogil:
    """Restore rows from `at` on, for up to 50 ms. Return the next row."""
    cdef uint32_t count = gathered.count
    cdef Tally *tally = &coder.tallies[DECOMPRESS]
    cdef size_t size = coder.page_size
    cdef int64_t restored, now = bz_now_ns(), started = now
    cdef Row *row
    while at < count:
        row = &gathered.rows[at]
        if row.outcome == PENDING and row.entry.codec == number:
            restored = restore_page(coder, row.data, row.length, pages + at * size, True)
            if restored == ABORT:
                return count
            bz_count(&tally.pages, 1)
            bz_count(&tally.bytes_in, row.length)
            row.outcome = RESTORED
            if restored < 0:
                row.outcome = <int32_t>restored
            else:
                bz_count(&tally.bytes_out, size)
        at += 1
        if at % 16 == 0:
            now = bz_now_ns()
            if now - started > MOMENT_NS:
                break
    bz_count(&tally.busy_ns, bz_now_ns() - started)
    return at
