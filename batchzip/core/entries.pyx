"""Entries: the published entries of a group. Every object belongs to exactly one of them.

An object is the stored bytes of an entry, in the pool or in the backing file. An entry and its
object appear and disappear in one step, under the pool's mutex and without the interpreter, so no
signal handler or other thread comes in between.

    publish(index, folio)   remove old entries and objects ─▶ allocate ─▶ copy ─▶ add entries
    erase(index, count)     remove entries and objects
    gather(indices)         copy entries and objects (gather.pyx)
    to_file, to_pool        replace the objects of entries that are still the gathered ones

A folio is prepared without a lock (folio.pyx). The objects it replaces are freed first, so that
their room is reused while it is warm. If there is no room for the folio, its indices hold nothing:
the old pages are stale, because the caller has newer data than the store. There are two exceptions.
A folio that the pool refuses may still go to the backing file; the old pages then stay until it is
there. In a table that other processes read, an old object is freed after its entry names the new
one, so that an owner that is stopped in between blocks no reader.

Writeback and recompression move pages while others use the store. They work without the lock on
gathered copies. A page that is stored again in the meantime keeps its new entry (CVE-2023-53178 was
a writeback that did not compare the entries).

Rejected: publishing first and freeing afterwards. The state after an interrupt in between had to be
found and repaired, and a store that replaces pages would need room for both versions.

Invariants
* gauges[kind] is the number of entries of that kind. pool_bytes is the sum of the lengths of
  objects in the pool.
* entries_of[number] is the number of entries of that codec in all groups of the store.
* Every live object belongs to one entry, or to a reservation of the backing file.

    field                          writer
    tables, gauges, traffic        whoever holds the pool's mutex
    events, codecs, holds          whoever holds the GIL, within one call

Lock order: the pool's mutex, then the mutex of the zones. The GIL is never taken while one of them
is held. A thread that holds the GIL only tries to lock the pool's mutex (`figure`, records.pyx); it
never waits for it with the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EBADF, EDQUOT, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from batchzip.core.latency cimport (
    TIMED_OPERATIONS, histogram_of, timer_end, timer_open, timer_start,
)
from batchzip.core.lru cimport (
    OBJECTS, lru_age, lru_close, lru_coldest, lru_idle_age, lru_open, lru_use,
)
from batchzip.core.memory cimport Memory, bz_malloc, memory_close
from batchzip.core.pool cimport (
    pool_allocate, pool_bytes, pool_free, pool_lock, pool_settle, pool_try_lock, pool_unlock,
)
from batchzip.core.ring cimport forks
from batchzip.core.table cimport (
    ABSENT, BACKED, BACKED_RECORD, BACKED_SLICE, BLOCK, BLOCK_BITS, CODECS, COMPRESSED, LARGE, RAW,
    RECORD, SAME_FILLED, SLICE, SLICED, is_in_file, is_in_pool, table_bytes, table_clear,
    table_close, table_fault, table_find, table_index, table_new_memory, table_open, table_place,
    table_prepare, table_put, table_row, table_share,
)
from batchzip.core.zones cimport position_length, position_offset, zones_free

from batchzip.errors import BadArgument, ClosedError

EVENTS = (
    "pool_limit_hit",
    "reject_alloc_fail",
    "reject_compress_poor",
    "reject_compress_fail",
    "reject_reclaim_fail",
    "decompress_fail",
    "written_back_pages",
)
"""The names of the counters that only grow."""


# Steps. The caller holds the pool's mutex, except for `entries_publish`, which takes it.

cdef void entries_forget(EntriesState *entries, const Entry *entry) noexcept nogil:
    """Free an entry's object, and subtract the entry from the gauges."""
    entries.gauges[entry.kind] -= 1
    entries.objects.entries_of[entry.codec] -= 1
    if is_in_pool(entry):
        entries.pool_bytes -= pool_free(entries.objects.pool, entry.value)
    elif is_in_file(entry):
        zones_free(entries.objects.zones, &entry.value, 1)


cdef void entries_count(EntriesState *entries, const Entry *entry, uint32_t length) noexcept nogil:
    entries.gauges[entry.kind] += 1
    entries.objects.entries_of[entry.codec] += 1
    if is_in_pool(entry):
        entries.pool_bytes += length


cdef void entries_remove(EntriesState *entries, Entry *entry) noexcept nogil:
    """Remove an entry that is not ABSENT, and free its object."""
    entries_forget(entries, entry)
    entries.pages -= 1
    table_clear(&entries.table, entry)


cdef uint64_t _erase(EntriesState *entries, uint64_t first, uint64_t count) noexcept nogil:
    """Remove the pages at these indices. Return their number."""
    cdef TableState *table = &entries.table
    cdef uint64_t last = first + count - 1, block, row, before = entries.pages
    if entries.pages == 0:
        return 0
    if (last >> BLOCK_BITS) - (first >> BLOCK_BITS) < table.room:
        for block in range(first >> BLOCK_BITS, (last >> BLOCK_BITS) + 1):
            _erase_in_row(entries, table_row(table, block), first, last)
    else:
        for row in range(table.room):
            if table.live[row]:
                _erase_in_row(entries, row, first, last)
    return before - entries.pages


cdef void _erase_in_row(
    EntriesState *entries, int64_t row, uint64_t first, uint64_t last
) noexcept nogil:
    cdef uint64_t start, index
    cdef Entry *entry
    if row < 0:
        return
    start = <uint64_t>entries.table.block_of[row] << BLOCK_BITS
    for index in range(max(first, start), min(last, start + BLOCK - 1) + 1):
        entry = &entries.table.entries[(<uint64_t>row << BLOCK_BITS) + (index - start)]
        if entry.kind != ABSENT:
            entries_remove(entries, entry)


cdef inline Entry *_next_entry(TableState *table, uint64_t index, Entry *before) noexcept nogil:
    """Return the entry of an index, or NULL if no block has it. `before` is the preceding entry."""
    if index & (BLOCK - 1):
        return NULL if before is NULL else before + 1
    return table_find(table, index)


cdef void _free_stale(
    EntriesState *entries, uint64_t first, uint32_t count, bint clear
) noexcept nogil:
    """Free the objects at these indices. With `clear`, as a second step, clear their entries.

    Between the two steps the entries name freed objects. Readers in other processes take that for a
    change under way, and nobody else can read the entries.
    """
    cdef uint64_t index
    cdef Entry *entry = table_find(&entries.table, first)
    for index in range(first, first + count):
        if index > first:
            entry = _next_entry(&entries.table, index, entry)
        if entry is NULL or entry.kind == ABSENT:
            continue
        if clear:
            table_clear(&entries.table, entry)
        else:
            entries_forget(entries, entry)
            entries.pages -= 1


cdef bint _exceeds(
    EntriesState *entries, uint64_t first, const Prepared *folio, uint64_t limit, bint keeps
) noexcept nogil:
    """Return whether a folio would make the group exceed its limit.

    The objects that the folio replaces do not count. They are still there if `keeps` is set.
    """
    cdef uint64_t total = entries.pool_bytes, index
    cdef uint32_t number, length
    cdef Entry *entry = NULL
    for number in range(folio.object_count):
        total += folio.lengths[number]
    if total <= limit or not keeps:
        return total > limit
    entry = table_find(&entries.table, first)
    for index in range(first, first + folio.count):
        if index > first:
            entry = _next_entry(&entries.table, index, entry)
        if entry is not NULL and is_in_pool(entry):
            length = 0
            pool_bytes(entries.objects.pool, entry.value, &length)
            total -= length
    return total > limit


cdef int entries_publish(
    EntriesState *entries, uint64_t first, Prepared *folio, bint in_file, bint may_go_elsewhere,
    uint64_t limit,
) noexcept nogil:
    """Publish a folio as a whole, in place of the pages that its indices hold.

    `limit` is the group's limit of bytes in the pool. Return 0, −ENOMEM, −ENOSPC (the pool's
    limit), −EDQUOT (the group's limit) or −EBADF (closed). After an error the indices hold nothing,
    or, if the folio may go elsewhere, their old pages.
    """
    cdef ObjectsState *objects = entries.objects
    cdef uint32_t row, number = 0, length
    cdef uint16_t stamp
    cdef Entry entry, before
    cdef Entry *place = NULL
    cdef uint8_t *room
    cdef bint keeps, replaces
    cdef int code = 0
    pool_lock(objects.pool)
    if entries.closed:
        pool_unlock(objects.pool)
        return -EBADF
    # Readers of a shared table find the old pages or the new ones, wherever the owner is stopped:
    # the old objects are freed last, if there is room for both.
    keeps = may_go_elsewhere or entries.table.memory.fd >= 0
    replaces = entries.pages > 0
    if replaces and not keeps:
        _free_stale(entries, first, folio.count, False)
    if not in_file and _exceeds(entries, first, folio, limit, keeps and replaces):
        code = -EDQUOT
    elif table_prepare(&entries.table, first, folio.count) < 0:
        code = -ENOMEM
    elif not in_file:
        code = pool_allocate(objects.pool, folio.object_count, folio.lengths, folio.values)
        if code and replaces and keeps and not may_go_elsewhere:
            keeps = False
            _free_stale(entries, first, folio.count, False)
            code = pool_allocate(objects.pool, folio.object_count, folio.lengths, folio.values)
    if code:
        if replaces and not may_go_elsewhere:
            if keeps:
                _free_stale(entries, first, folio.count, False)
            _free_stale(entries, first, folio.count, True)
        pool_settle(objects.pool)
        pool_unlock(objects.pool)
        return code
    entries.pages += folio.count
    entries.page_stores += folio.count
    stamp = lru_use(&entries.lru, &entries.table, folio.count, entries.pages)
    for row in range(folio.count):
        entry = folio.entries[row]
        length = 0
        if entry.kind != SAME_FILLED:
            entry.value = folio.values[number]
            if in_file:
                entry.kind = BACKED
            else:
                room = pool_bytes(objects.pool, entry.value, &length)
                memcpy(room, folio.data[number], length)
            number += 1
        entry.epoch = stamp
        entries_count(entries, &entry, length)
        if row and (first + row) & (BLOCK - 1):
            place += 1
        else:
            place = table_place(&entries.table, first + row)
        before = place[0]
        table_put(&entries.table, place, &entry)
        if keeps and before.kind != ABSENT:
            entries_forget(entries, &before)
            entries.pages -= 1
    pool_settle(objects.pool)
    pool_unlock(objects.pool)
    return 0


cdef class Objects:
    """The pool, the backing file and the codecs that the groups of a store share.

    Each entry has the number of its codec, so its page is always restored with the right one,
    whatever the current setting is. Number 0 is no codec: the stored bytes are the page. Kernel
    counterpart: a zswap pool per compressor, in which old entries stay until they are gone.
    """

    def __init__(self, Allocator allocator not None, Zones zones, size_t page_size):
        self.allocator = allocator
        self.zones = zones
        self.page_size = page_size
        self.state.pool = &allocator.state
        self.state.zones = NULL if zones is None else &zones.state
        self.codecs = [None]
        self.coders = [None]

    def counted(self) -> dict[str, int]:
        """Return the sums of EVENTS over all groups, including closed ones."""
        return {name: self.events[number] for number, name in enumerate(EVENTS)}

    # Codecs by number.

    def codec(self, int number):
        """Return the codec with a number."""
        return self.codecs[number]

    @property
    def reused(self) -> int:
        """The number of times that a codec number was given to another codec."""
        return self.state.reused

    def numbered(self) -> list:
        """Return the list of codecs by number. Item 0 is None."""
        return list(self.codecs)

    def hold(self, int number, codec) -> bool:
        """Keep a codec's number until `let_go`. Return False if another codec has it by now."""
        if self.codecs[number] is not codec:
            return False
        self.holds[number] += 1
        return True

    def let_go(self, int number) -> None:
        """End one `hold`."""
        self.holds[number] -= 1

    def add_codec(self, codec) -> int:
        """Give a codec an unused number, and hold it. Raise BadArgument if there is none left."""
        cdef int number
        if len(self.codecs) < MOST_CODECS:
            self.codecs.append(codec)
            self.coders.append(None)
            number = len(self.codecs) - 1
            self.holds[number] += 1
        else:
            number = self._unused_number()
            self.codecs[number] = codec
            self.coders[number] = None
        self.given += 1
        return number

    cdef int _unused_number(self) except -1:
        cdef int number, found = 0
        with nogil:
            pool_lock(self.state.pool)
            for number in range(1, MOST_CODECS):
                if not self.holds[number] and not self.state.entries_of[number]:
                    found = number
                    self.holds[number] += 1  # the caller's hold: no other thread takes the number
                    self.state.reused += 1
                    break
            pool_unlock(self.state.pool)
        if not found:
            raise BadArgument(
                f"a store can hold pages of at most {MOST_CODECS - 1} codecs at a time"
            )
        return found

    def set_coders(self, int number, coders, *, bint current=False) -> None:
        """Set the coders for a codec number; None: pages are not restored in this process.

        `current` makes it the number that `load` tries first.
        """
        self.coders[number] = coders
        if current:
            self.current = number

    def coders_of(self, int number):
        """Return the coders of a codec number, or None."""
        return self.coders[number]


cdef class Entries:
    """The entries of one group. Thread-safe: other threads see each call as one step.

    Methods raise ClosedError after `close`, and ForkedProcess in a forked child.
    """

    def __cinit__(self, Objects objects not None, name):
        cdef int number
        self.objects = objects
        self.name = name
        self.state.objects = &objects.state
        table_open(&self.state.table)
        lru_open(&self.state.lru)
        for number in range(TIMED_OPERATIONS):
            timer_open(&self.timers[number])

    def __dealloc__(self):
        if self.objects is None:
            return
        # Free only what `close` has not. The pool may be closed, or belong to another process.
        table_close(&self.state.table)
        lru_close(&self.state.lru)

    cdef int refuse(self) except -1:
        if self.state.closed:
            raise ClosedError(f"this {self.name} is closed")
        return self.objects.allocator.refuse()

    # Changes.

    def erase(self, uint64_t first, uint64_t count) -> int:
        """Remove the pages at these indices. Return their number."""
        cdef uint64_t gone
        self.refuse()
        with nogil:
            pool_lock(self.state.objects.pool)
            gone = _erase(&self.state, first, count)
            pool_settle(self.state.objects.pool)
            pool_unlock(self.state.objects.pool)
        return gone

    def drop(self, uint64_t first, uint64_t count) -> int:
        """Erase as `erase` does. Do nothing after `close` or in a forked child. Cannot fail.

        A direct call in an `except` clause completes before another interrupt can occur.
        """
        return self.drop_pages(first, count)

    cdef uint64_t drop_pages(self, uint64_t first, uint64_t count) noexcept:
        cdef uint64_t gone = 0
        if not count or self.objects.allocator.made_in != forks():
            return 0
        with nogil:
            pool_lock(self.state.objects.pool)
            if not self.state.closed:
                gone = _erase(&self.state, first, count)
                pool_settle(self.state.objects.pool)
            pool_unlock(self.state.objects.pool)
        return gone

    def close(self) -> int:
        """Free all pages and the tables. Return the number of pages."""
        cdef uint64_t gone, row, number
        cdef Entry *entry
        if self.state.closed:
            return 0
        if self.objects.allocator.ended:  # the pool freed all pages; __dealloc__ frees the tables
            self.state.closed = True
            return 0
        self.objects.allocator.refuse()
        with nogil:
            pool_lock(self.state.objects.pool)
            gone = self.state.pages
            for row in range(self.state.table.room):
                if not self.state.table.live[row]:
                    continue
                for number in range(row << BLOCK_BITS, (row + 1) << BLOCK_BITS):
                    entry = &self.state.table.entries[number]
                    if entry.kind != ABSENT:
                        entries_forget(&self.state, entry)
            self.state.closed = True
            self.state.pages = self.state.record_bytes = 0
            table_close(&self.state.table)
            lru_close(&self.state.lru)
            pool_settle(self.state.objects.pool)
            pool_unlock(self.state.objects.pool)
        return gone

    def count_event(self, str name, uint64_t more=1) -> None:
        """Add to one of EVENTS, for the group and for the store."""
        cdef int number = EVENTS.index(name)
        self.events[number] += more
        self.objects.events[number] += more

    # Timing.

    def start(self, int operation) -> int:
        """Return the start time if this call of an operation is to be timed, otherwise 0."""
        return timer_start(&self.timers[operation])

    def end(self, int operation, int64_t started) -> None:
        """Count a call that began at `started` and ends now."""
        timer_end(&self.timers[operation], started)

    def latencies(self) -> list[tuple[list[int], int]]:
        """Return per operation the timed calls per bucket, and their total time in nanoseconds."""
        cdef int number
        return [histogram_of(&self.timers[number].timed) for number in range(TIMED_OPERATIONS)]

    # Reading.

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.state.closed

    def __len__(self) -> int:
        return self.figure(&self.state.pages)

    cdef uint64_t figure(self, const uint64_t *address) noexcept:
        """Return a figure as of between two changes, never from the middle of one."""
        cdef uint64_t found
        if pool_try_lock(self.state.objects.pool):  # the common case, without releasing the GIL
            found = address[0]
            pool_unlock(self.state.objects.pool)
            return found
        with nogil:
            pool_lock(self.state.objects.pool)
            found = address[0]
            pool_unlock(self.state.objects.pool)
        return found

    def kind(self, uint64_t index) -> int:
        """Return the kind of an index's entry; Kind.ABSENT if nothing is stored there."""
        cdef Entry *entry
        cdef int kind = ABSENT
        self.refuse()
        with nogil:
            pool_lock(self.state.objects.pool)
            entry = table_find(&self.state.table, index)
            if entry is not NULL:
                kind = entry.kind
            pool_unlock(self.state.objects.pool)
        return kind

    def figures(self) -> dict[str, int]:
        """Return EVENTS, entries per kind, pages, traffic and bytes, as of one moment."""
        cdef EntriesState *state = &self.state
        cdef uint64_t gauges[KINDS]
        cdef uint64_t pages, pool_bytes, stores, loads, tables, record_bytes
        with nogil:
            pool_lock(state.objects.pool)
            memcpy(gauges, state.gauges, sizeof(gauges))
            pages, pool_bytes = state.pages, state.pool_bytes
            stores, loads = state.page_stores, state.page_loads
            record_bytes = state.record_bytes
            tables = table_bytes(&state.table)
            pool_unlock(state.objects.pool)
        found = {name: self.events[number] for number, name in enumerate(EVENTS)}
        found.update(
            pages=pages, pool_bytes=pool_bytes, page_stores=stores, page_loads=loads,
            table_bytes=tables, compressed=gauges[COMPRESSED], raw=gauges[RAW],
            same_filled=gauges[SAME_FILLED], backed=gauges[BACKED], records=gauges[RECORD],
            backed_records=gauges[BACKED_RECORD], large=gauges[LARGE], record_bytes=record_bytes,
            sliced=gauges[SLICED], slices=gauges[SLICE], backed_slices=gauges[BACKED_SLICE],
        )
        return found

    @property
    def pool_bytes(self) -> int:
        """The bytes of this group's objects in the pool."""
        return self.figure(&self.state.pool_bytes)

    def backed_bytes(self) -> int:
        """Return the bytes of this group's objects in the backing file. Read every entry."""
        cdef uint64_t number, total = 0
        cdef const Entry *entry
        self.refuse()
        with nogil:
            pool_lock(self.state.objects.pool)
            for number in range(<uint64_t>self.state.table.room << BLOCK_BITS):
                entry = &self.state.table.entries[number]
                if is_in_file(entry):
                    total += position_length(entry.value)
            pool_unlock(self.state.objects.pool)
        return total

    # Selecting. Each method returns indices as the bytes of uint64 values.

    def coldest(self, uint64_t count) -> bytes:
        """Return up to `count` pages in the pool, the least recently used one first.

        The LRU returns each page once, until it has to make a new selection.
        """
        cdef int64_t found
        cdef bytes indices = PyBytes_FromStringAndSize(
            NULL, min(count, self.figure(&self.state.pages)) * 8
        )
        cdef uint64_t room = len(indices) // 8
        cdef uint64_t *start = <uint64_t *>PyBytes_AS_STRING(indices)
        self.refuse()
        if not room:
            return b""
        with nogil:
            pool_lock(self.state.objects.pool)
            found = lru_coldest(&self.state.lru, &self.state.table, OBJECTS, room, start)
            pool_unlock(self.state.objects.pool)
        if found < 0:
            raise MemoryError("no memory to choose the coldest pages")
        return indices[: found * 8]

    def choose(
        self, kinds, *, double idle_s=0, int not_codec=-1, uint32_t min_length=0, bytes zones=None
    ) -> bytes:
        """Return the pages of these kinds, in the order of rows.

        Select only pages that were unused for `idle_s` seconds, whose codec number is not
        `not_codec`, and whose object in the pool has at least `min_length` bytes. With `zones`,
        select objects in the backing file only if the byte of their zone is not 0.
        """
        cdef uint32_t wanted = 0, least_age
        cdef uint64_t found = 0, room
        cdef uint64_t *indices
        for kind in kinds:
            wanted |= 1 << <int>kind
        self.refuse()
        cdef const uint8_t *marks = NULL
        cdef uint64_t mark_count = 0
        if zones is not None:
            marks, mark_count = <const uint8_t *>PyBytes_AS_STRING(zones), len(zones)
        with nogil:
            pool_lock(self.state.objects.pool)
            room = self.state.pages
            indices = <uint64_t *>bz_malloc(room * 8 + 8)
            if indices is not NULL:
                least_age = lru_idle_age(&self.state.lru, <int64_t>(idle_s * 1e9))
                found = _choose(
                    &self.state, wanted, least_age, not_codec, min_length, marks, mark_count,
                    indices,
                )
            pool_unlock(self.state.objects.pool)
        if indices is NULL:
            raise MemoryError("no memory to choose pages")
        try:
            return PyBytes_FromStringAndSize(<const char *>indices, found * 8)
        finally:
            free(indices)

    # Sharing with other processes.

    def share(self) -> int:
        """Move the table to shared memory. Return its descriptor, which the entries keep owning."""
        cdef Memory memory
        cdef int code
        self.refuse()
        if self.state.table.memory.fd >= 0:
            return self.state.table.memory.fd
        table_new_memory(&memory)
        with nogil:
            pool_lock(self.state.objects.pool)
            code = -1
            if self.state.table.memory.fd < 0 and not self.state.closed:
                code = table_share(&self.state.table, &memory)
            pool_unlock(self.state.objects.pool)
        if code < 0:
            memory_close(&memory)
            self.refuse()
            if self.state.table.memory.fd < 0:
                raise MemoryError("no memory for a table in shared memory")
        self.note_codecs()
        return self.state.table.memory.fd

    def note_codecs(self) -> None:
        """Publish to readers how often a codec got a number."""
        cdef uint64_t given = self.objects.given
        with nogil:
            pool_lock(self.state.objects.pool)
            if self.state.table.header[CODECS] < given:  # another thread may have published more
                self.state.table.header[CODECS] = given
            pool_unlock(self.state.objects.pool)

    # Checking.

    def fault(self):
        """Return a violated invariant as text, or None. No other thread may change the entries."""
        cdef EntriesState *state = &self.state
        cdef uint64_t gauges[KINDS]
        cdef uint64_t number, pages = 0, stored = 0
        cdef uint32_t length
        cdef const Entry *entry
        found = table_fault(&state.table)
        if found is not None:
            return found
        for number in range(KINDS):
            gauges[number] = 0
        for number in range(<uint64_t>state.table.room << BLOCK_BITS):
            entry = &state.table.entries[number]
            if entry.kind == ABSENT:
                continue
            if entry.kind >= KINDS:
                return f"an entry has the unknown kind {entry.kind}"
            gauges[entry.kind] += 1
            pages += 1
            if is_in_pool(entry):
                if pool_bytes(state.objects.pool, entry.value, &length) is NULL:
                    return f"the object of index {table_index(&state.table, number)} is not live"
                stored += length
        if pages != state.pages or stored != state.pool_bytes:
            return (
                f"the table has {pages} pages of {stored} bytes, but the counters say "
                f"{state.pages} of {state.pool_bytes}"
            )
        for number in range(1, KINDS):
            if gauges[number] != state.gauges[number]:
                return (
                    f"the table has {gauges[number]} entries of kind {number}, but the counter "
                    f"says {state.gauges[number]}"
                )
        return None

    def values(self, int kind) -> bytes:
        """Return the values of all entries of a kind, as the bytes of uint64 values."""
        cdef uint64_t number, count = 0
        cdef bytes found = PyBytes_FromStringAndSize(
            NULL, self.figure(&self.state.gauges[kind]) * 8
        )
        cdef uint64_t *start = <uint64_t *>PyBytes_AS_STRING(found)
        cdef uint64_t room = len(found) // 8
        with nogil:
            pool_lock(self.state.objects.pool)
            for number in range(<uint64_t>self.state.table.room << BLOCK_BITS):
                if self.state.table.entries[number].kind == kind and count < room:
                    start[count] = self.state.table.entries[number].value
                    count += 1
            pool_unlock(self.state.objects.pool)
        return found[: count * 8]


cdef uint64_t _choose(
    EntriesState *entries, uint32_t wanted, uint32_t least_age, int not_codec, uint32_t min_length,
    const uint8_t *marks, uint64_t mark_count, uint64_t *indices,
) noexcept nogil:
    cdef uint64_t number, found = 0, zone
    cdef uint32_t length
    cdef const Entry *entry
    for number in range(<uint64_t>entries.table.room << BLOCK_BITS):
        entry = &entries.table.entries[number]
        if entry.kind == ABSENT or not wanted >> entry.kind & 1:
            continue
        if entry.codec == not_codec or lru_age(&entries.lru, entry.epoch) < least_age:
            continue
        if min_length and is_in_pool(entry):
            if pool_bytes(entries.objects.pool, entry.value, &length) is NULL:
                continue
            if length < min_length:
                continue
        if marks is not NULL and is_in_file(entry):
            zone = position_offset(entry.value) - entries.objects.zones.base
            zone >>= entries.objects.zones.zone_bits
            if zone >= mark_count or not marks[zone]:
                continue
        indices[found] = table_index(&entries.table, number)
        found += 1
    return found
