"""Zones: the space allocator of a backing file. All I/O goes through the caller's storage object.

    zone 0            zone 1            zone 2            zone 3
    [obj obj obj obj ][obj  ·   ·  obj ][                ][obj obj ─▶      ]
     full              sparse            free              open: objects are appended

Rejected:

* An allocator of exact sizes. It writes at random offsets, and a fault can damage its free lists.
* One log around the file. It must clean in order, whether the data is live or not.

A zone is freed as a whole, when its last object is freed. The lowest free zone is taken first, so
that the file's end can be cut off.

    position (uint64) = offset << 21 | (length - 1)      offset 43 bits: 8 TiB; length up to 2 MiB

          reserve            last object freed          emptied()               put_back
    FREE ─────────▶ IN_USE ───────────────────▶ EMPTIED ─────────▶ DISCARDING ──────────▶ FREE, or
                                                   ▲                   │      POISONED if poisoned
                                                   └───────────────────┘
                                                    Emptied is dropped

An interrupt cannot leak space. A ZoneReservation owns what was reserved until it is committed. An
Emptied owns zones while their bytes are discarded. The destructor of each returns what it still
owns, so dropping the last reference suffices, for whatever reason it happens. `zones_free` is
called in the step that removes the entries with these positions.

Cutting. While the file's end is cut off, a fence keeps the zones there from being taken. A thread
that needs such a zone waits for the storage's lock, which the cutting thread holds. If it is the
cutting thread itself, in a signal handler or a finalizer, the reservation fails with EAGAIN. That
cannot happen if `truncate` is a C function, as it is for descriptors.

Spare space. Cleaning rewrites the live objects of some zones before it frees them, so it needs
space in a file that is at its limit. Some space is reserved for it, and one round rewrites no more
than that.

Waiting. A signal handler or finalizer that interrupts a call of a user's object may delay the
release of that object's lock. A thread in another call of the object may wait for that lock. `wait`
is False in such a handler or finalizer; it then waits for the storage's lock for a second at most.

Invariants
* live, objects: sums over the positions reserved in the zone and not freed since. A batch that is
  being written counts, so its zone can be neither discarded nor reused.
* IN_USE ⇔ objects > 0. Only such a zone is open, and only if it is not poisoned.
* No object straddles two zones. filled ≤ zone size is the end of the last object, and 0 unless the
  zone is IN_USE.
* held = Σ filled. Every zone at or above `end` is free. No zone below `hint` is free.

Locks: `mutex`, only within nogil code and never during I/O. It is innermost: a thread that takes it
may hold the pool's mutex.
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.errno cimport EAGAIN, EFBIG, EIO, ENOMEM, ENOSPC
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_realloc
from batchzip.core.ring cimport forks

import numpy as np

from batchzip.errors import ForkedProcess

cdef extern from "pthread.h" nogil:
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef enum:
    NO_ZONE = 0xFFFFFFFF
    FIRST_ROOM = 64  # zones
    ZONE_BYTES = 1 << 20  # a few written batches of 256 pages, and small relative to a useful file
    ZONE_PAGES = 64  # minimum; the loss at a zone's end, less than a page, is below 1/64 of it
    LIMIT_ZONES = 16  # with a limit, a zone takes at most 1/16 of it
    LEAST_ZONE_PAGES = 8  # the least size of a zone, with a limit
    LEAST_SPARE = 32  # at least 1/32 of the limit is reserved for cleaning
    MOST_SPARE = 8  # at most 1/8 of the limit is reserved for cleaning
    NESTED_WAIT_S = 1  # a sync or a cut rarely takes longer

cdef enum:
    FREE = 0
    IN_USE = 1
    EMPTIED = 2  # has to be discarded
    DISCARDING = 3  # an Emptied owns it
    POISONED = 4  # was poisoned; never used again

cdef uint64_t MAX_OFFSET = <uint64_t>1 << (64 - LENGTH_BITS)


cdef inline void _lock(ZonesState *zones) noexcept nogil:
    pthread_mutex_lock(&zones.mutex)


cdef inline void _unlock(ZonesState *zones) noexcept nogil:
    pthread_mutex_unlock(&zones.mutex)


cdef inline uint64_t _start_of(const ZonesState *zones, uint64_t number) noexcept nogil:
    return zones.base + (number << zones.zone_bits)


cdef inline uint64_t _spare(const ZonesState *zones) noexcept nogil:
    """Return the bytes below the limit that are reserved for cleaning."""
    cdef uint64_t size = <uint64_t>1 << zones.zone_bits
    if zones.limit == UINT64_MAX:
        return 0
    return min(max(size, zones.limit // LEAST_SPARE), zones.limit // MOST_SPARE)


# Reserving. The caller holds the mutex.

cdef int _take(ZonesState *zones) noexcept nogil:
    """Open the lowest free zone. Return 0, or a negative errno if none is available."""
    cdef Zone *grown
    while zones.hint < zones.room and zones.table[zones.hint].state != FREE:
        zones.hint += 1
    if _start_of(zones, <uint64_t>zones.hint + 1) > MAX_OFFSET:
        return -EFBIG
    if zones.hint >= zones.fence:
        return -EAGAIN
    if zones.hint == zones.room:
        grown = <Zone *>bz_realloc(zones.table, 2 * <size_t>zones.room * sizeof(Zone))
        if grown is NULL:
            return -ENOMEM
        memset(grown + zones.room, 0, zones.room * sizeof(Zone))
        zones.table = grown
        zones.room *= 2
    zones.open = zones.hint
    zones.table[zones.open].state = IN_USE
    zones.table[zones.open].uses += 1
    zones.hint += 1
    zones.end = max(zones.end, zones.hint)
    return 0


cdef int _reserve(
    ZonesState *zones, const uint32_t *lengths, ZoneReservation reservation, bint cleaning
) noexcept nogil:
    """Reserve space for objects of these lengths, all or none. Return 0 or a negative errno."""
    cdef uint32_t count = reservation.count, first = 0, last, length
    cdef uint32_t zone_size = <uint32_t>1 << zones.zone_bits
    cdef uint64_t total = 0, offset
    cdef Zone *zone
    cdef Piece *piece
    cdef int code = 0
    for last in range(count):
        total += lengths[last]
    # If the limit was lowered and the file is beyond it, cleaning may go on: it shortens the file.
    if not (cleaning and zones.held > zones.limit) and (
        zones.held + total + (0 if cleaning else _spare(zones)) > zones.limit
    ):
        return -ENOSPC
    while first < count:
        # After the first round, the open zone is one that this batch has filled.
        if first or zones.open == NO_ZONE or (
            zones.table[zones.open].filled + lengths[0] > zone_size
        ):
            code = _take(zones)
            if code:
                reservation.count = first
                _give_up(zones, reservation)
                return code
        zone = &zones.table[zones.open]
        offset = _start_of(zones, zones.open) + zone.filled
        last, length = first, 0
        while last < count and zone.filled + length + lengths[last] <= zone_size:
            reservation.positions[last] = (offset + length) << LENGTH_BITS | (lengths[last] - 1)
            length += lengths[last]
            last += 1
        piece = &reservation.pieces[reservation.piece_count]
        piece.first, piece.last, piece.zone = first, last, zones.open
        piece.offset, piece.length = offset, length
        reservation.piece_count += 1
        zone.filled += length
        zone.live += length
        zone.objects += last - first
        zone.pending += 1
        zones.held += length
        zones.live += length
        zones.objects += last - first
        first = last
    return 0


cdef void _give_up(ZonesState *zones, ZoneReservation reservation) noexcept nogil:
    """Free a batch. Its space is reused if nothing was appended after it."""
    cdef uint32_t at, reopened = NO_ZONE
    cdef Piece *piece
    cdef Zone *zone
    for at in range(reservation.piece_count):
        piece = &reservation.pieces[reservation.piece_count - 1 - at]
        zone = &zones.table[piece.zone]
        zone.pending -= 1
        if _start_of(zones, piece.zone) + zone.filled == piece.offset + piece.length:
            zone.filled -= piece.length
            zones.held -= piece.length
            reopened = NO_ZONE if zone.poisoned else piece.zone
    for at in range(reservation.count):
        _free(zones, reservation.positions[at])
    if zones.open == NO_ZONE and reopened != NO_ZONE and zones.table[reopened].state == IN_USE:
        zones.open = reopened


cdef void _poison(ZonesState *zones, const Piece *pieces, uint32_t count) noexcept nogil:
    """Mark the zones of a batch so that nothing is written to them again."""
    cdef uint32_t at
    for at in range(count):
        zones.table[pieces[at].zone].poisoned = True
        if zones.open == pieces[at].zone:
            zones.open = NO_ZONE


# Freeing.

cdef void _free(ZonesState *zones, uint64_t position) noexcept nogil:
    """Free an object. Ignore a value that cannot be a position. The caller holds the mutex."""
    cdef uint64_t offset = position_offset(position)
    cdef uint64_t number = (offset - zones.base) >> zones.zone_bits
    cdef uint64_t length = position_length(position)
    cdef Zone *zone
    if offset < zones.base or number >= zones.room or not zones.table[number].objects:
        return
    zone = &zones.table[number]
    zone.live -= <uint32_t>length
    zone.objects -= 1
    zones.live -= length
    zones.objects -= 1
    if not zone.objects:
        if zones.open == number:
            zones.open = NO_ZONE
        zones.held -= zone.filled
        zone.filled = 0
        zone.state = EMPTIED
        zone.next = zones.emptied
        zones.emptied = <uint32_t>number


cdef void zones_free(ZonesState *zones, const uint64_t *positions, uint32_t count) noexcept nogil:
    """Free objects, each of them once. Take the mutex. This cannot fail."""
    cdef uint32_t at
    if not count:
        return
    _lock(zones)
    for at in range(count):
        _free(zones, positions[at])
    _unlock(zones)


@cython.no_gc  # it cannot be part of a cycle, and __dealloc__ needs the objects it refers to
cdef class ZoneReservation:
    """The positions for the objects of one batch."""

    def __dealloc__(self):
        self.undo()
        free(self.positions)
        free(self.pieces)

    def __len__(self) -> int:
        return self.count

    def to_array(self):
        """Return the position of each object, in a new array."""
        found = np.empty(self.count, np.uint64)
        if self.count:
            memcpy(_address(found), self.positions, self.count * sizeof(uint64_t))
        return found

    def runs(self) -> list:
        """Return a list of (first, last, offset).

        Objects [first, last) are contiguous in the file, from byte `offset` on.
        """
        cdef uint32_t at
        return [
            (self.pieces[at].first, self.pieces[at].last, self.pieces[at].offset)
            for at in range(self.piece_count)
        ]

    cdef void commit(self) noexcept nogil:
        """Transfer the positions to the entries that refer to them."""
        cdef ZonesState *zones = &self.zones.state
        cdef uint32_t at
        self.settled = True
        _lock(zones)
        for at in range(self.piece_count):
            zones.table[self.pieces[at].zone].pending -= 1
        _unlock(zones)

    def keep(self):
        """Commit, and return the positions. The caller owns them and frees them later."""
        found = self.to_array()
        self.commit()
        return found

    cpdef void undo(self) noexcept:
        """Free all positions, unless they were committed."""
        cdef ZonesState *zones
        if self.settled or self.zones is None or self.zones.state.forks != forks():
            return
        self.settled = True
        zones = &self.zones.state
        with nogil:
            _lock(zones)
            _give_up(zones, self)
            _unlock(zones)


@cython.no_gc
cdef class Emptied:
    """Zones without live objects, while their bytes are discarded."""

    def __dealloc__(self):
        self._end(EMPTIED)

    def runs(self) -> list:
        """Return (offset, length) of each range to discard, by offset, with neighbours merged."""
        cdef ZonesState *zones = &self.zones.state
        cdef uint32_t at, number
        self.zones.refuse()
        found = np.empty(self.count, np.uint32)
        cdef uint32_t *numbers = <uint32_t *>_address(found)
        with nogil:
            _lock(zones)
            number = self.first
            for at in range(self.count):
                numbers[at] = number
                number = zones.table[number].next
            _unlock(zones)
        found.sort()
        breaks = np.flatnonzero(np.diff(found) != 1) + 1
        size = 1 << zones.zone_bits
        return [
            (_start_of(zones, run[0]), len(run) * size)
            for run in np.split(found, breaks)
            if len(run)
        ]

    def put_back(self) -> None:
        """Make the zones available for writing again."""
        self.zones.refuse()
        self._end(FREE)

    def give_up(self) -> None:
        """Return the zones to the list of emptied zones, unless they were put back."""
        self._end(EMPTIED)

    cdef void _end(self, int state) noexcept:
        cdef ZonesState *zones
        cdef uint32_t at, number = self.first, count = self.count
        cdef Zone *zone
        if not count or self.zones.state.forks != forks():
            return
        self.count = 0
        zones = &self.zones.state
        with nogil:
            _lock(zones)
            for at in range(count):
                zone = &zones.table[number]
                if state == EMPTIED:
                    zone.state = EMPTIED
                    number, zone.next, zones.emptied = zone.next, zones.emptied, number
                else:
                    zone.state = POISONED if zone.poisoned else FREE
                    if not zone.poisoned:
                        zones.hint = min(zones.hint, number)
                    number = zone.next
            _unlock(zones)


cdef class Zones:
    """The zones of a file, which begin at byte `base`. Thread-safe."""

    def __cinit__(self, size_t page_size, uint64_t base, max_bytes=None):
        cdef ZonesState *zones = &self.state
        cdef uint64_t size = max(<size_t>ZONE_BYTES, ZONE_PAGES * page_size)
        pthread_mutex_init(&zones.mutex, NULL)
        zones.forks = forks()
        zones.base = base
        if max_bytes is not None:
            size = min(size, max(max_bytes // LIMIT_ZONES, LEAST_ZONE_PAGES * page_size))
        while <uint64_t>2 << zones.zone_bits <= size:
            zones.zone_bits += 1
        zones.open = zones.emptied = zones.fence = NO_ZONE
        self.max_bytes = max_bytes
        zones.table = <Zone *>bz_calloc(FIRST_ROOM, sizeof(Zone))
        if zones.table is NULL:
            raise MemoryError("no memory for the zones of a backing file")
        zones.room = FIRST_ROOM

    def __dealloc__(self):
        free(self.state.table)
        pthread_mutex_destroy(&self.state.mutex)

    cdef int refuse(self) except -1:
        """Raise ForkedProcess in a forked child: a thread of the parent may hold the mutex."""
        if self.state.forks != forks():
            raise ForkedProcess("a backing file belongs to the process that opened it")
        return 0

    @property
    def zone_size(self) -> int:
        """Size of a zone in bytes, a power of two."""
        return 1 << self.state.zone_bits

    @property
    def base(self) -> int:
        """Offset of zone 0 in the file, in bytes."""
        return self.state.base

    @property
    def spare(self) -> int:
        """Bytes below the limit that are reserved for cleaning; 0 without a limit."""
        cdef uint64_t spare
        self.refuse()
        with nogil:
            _lock(&self.state)
            spare = _spare(&self.state)
            _unlock(&self.state)
        return spare

    @property
    def figures(self) -> tuple:
        """Bytes held, live bytes and live objects. Objects that are being written count."""
        cdef uint64_t held, live, objects
        self.refuse()
        with nogil:
            _lock(&self.state)
            held, live, objects = self.state.held, self.state.live, self.state.objects
            _unlock(&self.state)
        return held, live, objects

    @property
    def max_bytes(self) -> int | None:
        """Maximum bytes held, or None for no limit. A new value applies to later reservations."""
        return None if self.state.limit == UINT64_MAX else self.state.limit

    @max_bytes.setter
    def max_bytes(self, value):
        cdef uint64_t limit = UINT64_MAX if value is None else min(value, UINT64_MAX - 1)
        self.refuse()
        with nogil:
            _lock(&self.state)
            self.state.limit = limit
            _unlock(&self.state)

    def reserve(self, lengths, lock, *, bint wait=True, bint cleaning=False) -> ZoneReservation:
        """Reserve space for a batch of objects. `lengths` is a uint32 array of their lengths."""
        cdef ZoneReservation reservation = ZoneReservation.__new__(ZoneReservation)
        cdef ZonesState *zones = &self.state
        cdef const uint32_t *wanted = <const uint32_t *>_address(lengths)
        cdef uint32_t count = len(lengths)
        cdef int code
        self.refuse()
        reservation.positions = <uint64_t *>bz_malloc(max(count, <uint32_t>1) * sizeof(uint64_t))
        # Each zone takes at least one object. In all but the first and the last zone, less space
        # than the longest object is left.
        reservation.pieces = <Piece *>bz_malloc(_most_pieces(zones, wanted, count) * sizeof(Piece))
        if reservation.positions is NULL or reservation.pieces is NULL:
            raise MemoryError("no memory to write to the backing file")
        reservation.zones = self
        reservation.failures = self.failures
        code = self._reserve(wanted, count, reservation, cleaning)
        if code == -EAGAIN and lock.acquire(timeout=-1 if wait else NESTED_WAIT_S):
            try:
                code = self._reserve(wanted, count, reservation, cleaning)
            finally:
                lock.release()
        if code == -ENOMEM:
            raise MemoryError("no memory for the zones of a backing file")
        if code == -ENOSPC:
            raise OSError(
                ENOSPC,
                f"the backing file is at its limit of {self.max_bytes} bytes, "
                f"{self.spare} of which are reserved for cleaning it",
            )
        if code == -EFBIG:
            raise OSError(ENOSPC, f"a backing file can have at most {MAX_OFFSET} bytes")
        if code:
            raise OSError(
                EAGAIN, "the backing file's end is being cut off, and this call cannot wait for it"
            )
        return reservation

    cdef int _reserve(
        self, const uint32_t *lengths, uint32_t count, ZoneReservation reservation, bint cleaning
    ) noexcept:
        cdef int code
        with nogil:
            _lock(&self.state)
            reservation.count = count
            reservation.piece_count = 0
            code = _reserve(&self.state, lengths, reservation, cleaning)
            if code:
                reservation.count = reservation.piece_count = 0
            _unlock(&self.state)
        return code

    def free(self, positions) -> None:
        """Free objects, each of them once. `positions` is a uint64 array."""
        positions = np.ascontiguousarray(positions, np.uint64)
        cdef const uint64_t *gone = <const uint64_t *>_address(positions)
        cdef uint32_t count = len(positions)
        self.refuse()
        with nogil:
            zones_free(&self.state, gone, count)

    def sync(self, storage, ZoneReservation reservation not None, *, bint wait=True) -> None:
        """Sync what was written to a reservation. Raise OSError if that fails.

        The call holds the storage's lock. No Python code runs between the result of
        `storage.sync()` and its recording, so a failure is never lost. An interrupt counts as a
        failure, because the kernel's answer may be lost with it.
        """
        self.refuse()
        if not storage.lock.acquire(timeout=-1 if wait else NESTED_WAIT_S):
            raise OSError(
                EAGAIN, "the backing file is being synced, and this call cannot wait for it"
            )
        try:
            if self.failures == reservation.failures:
                try:
                    storage.sync()
                except BaseException as error:
                    self.failures += 1
                    if isinstance(error, OSError):
                        self._poison(reservation)
                    raise
            # Check again: a handler that ran meanwhile may have synced and received the failure.
            if self.failures != reservation.failures:
                self._poison(reservation)
                raise OSError(EIO, "a sync of the backing file failed while this was being written")
        finally:
            storage.lock.release()

    cdef void _poison(self, ZoneReservation reservation) noexcept:
        cdef ZonesState *zones = &self.state
        with nogil:
            _lock(zones)
            _poison(zones, reservation.pieces, reservation.piece_count)
            _unlock(zones)

    @property
    def unsettled(self) -> bool:
        """Return whether zones have to be discarded, or the file's end could be cut off."""
        cdef bint found
        cdef ZonesState *zones = &self.state
        self.refuse()
        with nogil:
            _lock(zones)
            found = zones.emptied != NO_ZONE or (
                zones.end and zones.table[zones.end - 1].state == FREE
            )
            _unlock(zones)
        return found

    def emptied(self) -> Emptied:
        """Take the zones that have no live object and that no thread discards yet."""
        cdef Emptied claim = Emptied.__new__(Emptied)
        cdef ZonesState *zones = &self.state
        cdef uint32_t number
        self.refuse()
        claim.zones = self
        with nogil:
            _lock(zones)
            claim.first = number = zones.emptied
            while number != NO_ZONE:
                claim.count += 1
                zones.table[number].state = DISCARDING
                number = zones.table[number].next
            zones.emptied = NO_ZONE
            _unlock(zones)
        return claim

    def cut(self, storage) -> None:
        """Cut the file's free end off, unless another thread holds the storage's lock.

        An OSError does no harm: the space is reused in any case.
        """
        cdef ZonesState *zones = &self.state
        cdef uint32_t end
        self.refuse()
        if not storage.lock.acquire(blocking=False):
            return
        try:
            if zones.fence != NO_ZONE:
                return  # this thread is cutting already
            with nogil:
                _lock(zones)
                end = zones.end
                while end and zones.table[end - 1].state == FREE:
                    end -= 1
                if end < zones.end:
                    zones.fence = end
                _unlock(zones)
            if zones.fence == NO_ZONE:
                return
            try:
                storage.truncate(_start_of(zones, end))
                self._lower_fence(end)
            except OSError:
                self._lower_fence(end)
            except BaseException:
                self._lower_fence(zones.end)
                raise
        finally:
            storage.lock.release()

    cdef void _lower_fence(self, uint32_t end) noexcept:
        cdef ZonesState *zones = &self.state
        with nogil:
            _lock(zones)
            zones.fence = NO_ZONE
            zones.end = end
            _unlock(zones)

    # Snapshots.

    cdef uint32_t _copy(self, Zone **table, ZonesState *state) except? 0:
        """Take a snapshot of the table and the state. Return the number of zones in the table."""
        cdef ZonesState *zones = &self.state
        cdef Zone *copy = NULL
        self.refuse()
        with nogil:
            _lock(zones)
            state[0] = zones[0]
            copy = <Zone *>bz_malloc(zones.room * sizeof(Zone))
            if copy is not NULL:
                memcpy(copy, zones.table, zones.room * sizeof(Zone))
            _unlock(zones)
        if copy is NULL:
            raise MemoryError("no memory to copy the zones of a backing file")
        table[0] = copy
        return state.room

    def sparse(self, passed=(), int eighths=4, Py_ssize_t most=PY_SSIZE_T_MAX) -> dict:
        """Return up to `most` full zones whose live part is below `eighths` / 8.

        Exclude the zones in `passed`. Return each zone's number with its `uses`, the emptiest zone
        first, and only as many zones as have live objects that fit in `spare` together.
        """
        cdef ZonesState state
        cdef Zone *table
        cdef uint32_t at, room = self._copy(&table, &state)
        cdef list found = []
        cdef dict fitting = {}
        cdef uint64_t left = UINT64_MAX
        if state.limit != UINT64_MAX:
            left = max(_spare(&state), <uint64_t>1 << state.zone_bits)
        if state.held <= state.limit:
            # An interrupted round may have used spare space: it rewrote objects but freed none.
            left = min(left, state.limit - state.held)
        try:
            for at in range(room):
                if at == state.open or not table[at].live or table[at].pending:
                    continue
                if 8 * <uint64_t>table[at].live < eighths * <uint64_t>table[at].filled:
                    found.append((table[at].live / <double>table[at].filled, at))
            for _, number in sorted(found):
                at = number
                if at in passed:
                    continue
                if table[at].live > left or len(fitting) >= most:
                    break
                left -= table[at].live
                fitting[at] = table[at].uses
        finally:
            free(table)
        return fitting

    def uses(self, uint32_t number) -> int:
        """Return the number of times a zone was opened. A changed number means new contents."""
        cdef uint32_t found = 0
        cdef ZonesState *zones = &self.state
        self.refuse()
        with nogil:
            _lock(zones)
            if number < zones.room:
                found = zones.table[number].uses
            _unlock(zones)
        return found

    def check(self, live) -> None:
        """Raise AssertionError if an invariant does not hold.

        `live` is a uint64 array of all positions that were committed and not freed, sorted. Nothing
        may be under way.
        """
        cdef ZonesState state
        cdef Zone *table
        cdef Zone *zone
        live = np.ascontiguousarray(live, np.uint64)
        cdef const uint64_t *positions = <const uint64_t *>_address(live)
        cdef uint32_t at, count = len(live), number, room = self._copy(&table, &state)
        cdef uint64_t offset, length, before = 0, held = 0, bytes = 0, objects = 0
        cdef Zone *seen = <Zone *>bz_calloc(room, sizeof(Zone))
        cdef set wrong = set()
        try:
            if seen is NULL:
                raise MemoryError("no memory to check the zones of a backing file")
            for at in range(count):
                offset, length = position_offset(positions[at]), position_length(positions[at])
                if offset < before:
                    wrong.add("overlapping objects")
                before = offset + length
                number = <uint32_t>((offset - state.base) >> state.zone_bits)
                if offset < state.base or number >= room or (
                    before > _start_of(&state, <uint64_t>number + 1)
                ):
                    wrong.add("objects beyond their zone")
                    continue
                seen[number].live += <uint32_t>length
                seen[number].objects += 1
                seen[number].filled = <uint32_t>(before - _start_of(&state, number))
            for at in range(room):
                zone = &table[at]
                held += zone.filled
                bytes += zone.live
                objects += zone.objects
                if zone.live != seen[at].live:
                    wrong.add("bytes")
                if zone.objects != seen[at].objects:
                    wrong.add("objects")
                if zone.filled < seen[at].filled or zone.filled > <uint32_t>1 << state.zone_bits:
                    wrong.add("ends")
                if (zone.state == IN_USE) != (zone.objects > 0) or (
                    zone.state in (FREE, POISONED) and (zone.state == POISONED) != zone.poisoned
                ):
                    wrong.add("states")
                if zone.filled and zone.state != IN_USE:
                    wrong.add("filled bytes of unused zones")
                if at >= state.end and zone.state != FREE:
                    wrong.add("end")
                if at < state.hint and zone.state == FREE:
                    wrong.add("hint")
            if state.open != NO_ZONE and (
                table[state.open].state != IN_USE or table[state.open].poisoned
            ):
                wrong.add("open")
            if (state.held, state.live, state.objects) != (held, bytes, objects):
                wrong.add("sums")
            number = state.emptied
            while number != NO_ZONE:
                seen[number].state = EMPTIED
                number = table[number].next
            for at in range(room):
                if (table[at].state == EMPTIED) != (seen[at].state == EMPTIED):
                    wrong.add("zones to discard")
                if table[at].state == DISCARDING:
                    wrong.add("zones being discarded")
            if state.fence != NO_ZONE:
                wrong.add("fence")
        finally:
            free(table)
            free(seen)
        if wrong:
            raise AssertionError(
                f"the zones of the backing file are inconsistent in: {', '.join(sorted(wrong))}"
            )


cdef size_t _most_pieces(const ZonesState *zones, const uint32_t *lengths, uint32_t count) noexcept:
    cdef uint64_t total = 0, longest = 1
    cdef uint32_t at
    for at in range(count):
        total += lengths[at]
        longest = max(longest, <uint64_t>lengths[at])
    return min(<uint64_t>count, 1 + total // ((<uint64_t>1 << zones.zone_bits) - longest)) + 1


cdef void *_address(array) except? NULL:
    """Return the address of a contiguous array. The caller keeps the array alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
    cdef void *address = view.buf
    PyBuffer_Release(&view)
    return address
