"""BackingFile: the file to which a store writes compressed pages that were not used lately.

    write(buffers) ─▶ space in zones ─▶ one pwrite per zone ─▶ fdatasync ─▶ ZoneReservation
    ZoneReservation.commit, zones_free: the core calls them in the step that changes the entries
    settle() ─▶ empty zones: a hole is punched, they are free again, the end of the file is cut off
    read(positions) ─▶ sorted, announced ─▶ one pread per run of neighbours ─▶ bytes, in given order

The file is a log in zones (core/zones.pyx) on a descriptor or an object (file_io.py). Kernel
counterpart: the swap device, with the clusters of zram's writeback. Rejected: O_DIRECT, because
compressed pages are not aligned, and the bytes just written are those that are read back first;
mmap, because an I/O error would be a SIGBUS.

fdatasync does not prepare for a crash of the machine: contents do not survive their owner. It makes
the system report bytes that could not be written, at the last moment when memory still has them.

The kernel reports each failure once, to the first caller that asks. So syncs run one after the
other, and a failure fails every batch that was being written at the time. A failed sync is never
repeated for the same bytes: the second one would succeed without having written them. Nothing more
is written to their zones. Other objects in these zones were synced before, and stay readable.

A signal handler or finalizer may sync while a sync of its own thread is running. It runs at once,
because its caller wrote its bytes while the outer sync could not be told of a failure. A failure of
the inner sync fails the outer one, too.

Invariants
* A ZoneReservation is returned only after its bytes were written and synced.
* An interrupted call loses nothing and counts nothing twice. Reserved space, and zones that are
  being discarded, belong to objects that give them back when they are dropped.

Locks: the storage's (file_io.py), within the core's `sync` and `cut`.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments.buffers import check_page_size
from batchzip.arguments.checks import as_limit
from batchzip.core.calls import Calls
from batchzip.core.zones import Zones
from batchzip.errors import BadArgument, ClosedError
from batchzip.store.backing.file_io import Storage, open_storage
from batchzip.store.backing.positions import lengths_of, offsets_of
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.core.zones import ZoneReservation
    from batchzip.store.backing.positions import Numbers, Positions

_GAP = 8192
"""Largest gap between two objects, in bytes, that is read rather than skipped. Copying 8 KiB from
the page cache takes about as long as another pread."""


class BackingFile(Closing):
    """Compressed pages in a file, by position. Thread-safe, also in signal handlers and finalizers.

    `target` is the `backing` argument of `SwapStore`; see file_io.py. `page_size` is the length of
    the longest object, in bytes. `max_bytes` limits `held_bytes`; None leaves it to the file
    system.

    Raises BadArgument if `target` cannot be a backing file or is in use, and OSError if it cannot
    be opened.
    """

    def __init__(self, target: object, *, page_size: int, max_bytes: int | None = None) -> None:
        self._page_size = check_page_size(page_size)
        limit = as_limit(max_bytes, "max_bytes")
        storage = open_storage(target)
        self.descriptor = storage.descriptor
        """Descriptor of the file; None if it is an object."""
        self.name = storage.name
        """The path by which the file can be opened (/proc/PID/fd/N), or what object it is."""
        try:
            self.zones = Zones(page_size, storage.base, limit)
        except BaseException:
            storage.close()
            raise
        self._lock, self._has_locks = storage.lock, storage.has_locks
        self._calls: Calls[Storage] = Calls(storage, "BackingFile")

    def write(self, buffers: Sequence[Flat], *, cleaning: bool = False) -> ZoneReservation:
        """Append n buffers of 1 … page_size bytes. Return their positions once they are synced.

        Up to an eighth of the limit is reserved for `cleaning`. The buffers are read only during
        the call. Dropping the ZoneReservation before it is committed frees their space again.

        Raise OSError if the file fails; none of them is kept then. Its errno is ENOSPC beyond
        `max_bytes`. It is EAGAIN inside a call of a storage object that cuts off the end of the
        file, or if another thread takes more than a second in such a call or in a sync, because
        that thread may be waiting for this one.
        """
        lengths = np.fromiter(map(len, buffers), np.int64, len(buffers))
        if len(lengths) and (lengths.min() < 1 or lengths.max() > self._page_size):
            raise BadArgument(f"each buffer must have 1 to {self._page_size} bytes")
        self.settle()  # a ZoneReservation may have been dropped, or a call interrupted
        with (call := self._calls.enter()) as storage:
            wait = not (call.nested and storage.has_locks)
            sizes = lengths.astype(np.uint32)
            reservation = self.zones.reserve(sizes, storage.lock, wait=wait, cleaning=cleaning)
            try:
                for first, last, offset in reservation.runs():
                    _write_all(storage, b"".join(buffers[first:last]), offset)
                if len(reservation):
                    self.zones.sync(storage, reservation, wait=wait)
            except BaseException:
                reservation.undo()  # now, because the traceback still refers to it
                self.settle()
                raise
        return reservation

    def read(self, positions: Positions) -> list[bytes]:
        """Return the bytes of n objects, in the order of `positions`.

        A position that was freed, or a file that was cut, yields other or fewer bytes without an
        error: the caller verifies the checksum. Raise OSError if the file fails.
        """
        if not len(positions):
            return []
        order = np.argsort(positions, kind="stable")
        offsets, lengths = offsets_of(positions[order]), lengths_of(positions[order])
        ends = np.maximum.accumulate(offsets + lengths)
        zones = self.zone_of(positions[order])
        # A run ends with its zone, which bounds the length of a read.
        breaks = (offsets[1:] - ends[:-1] > _GAP) | (zones[1:] != zones[:-1])
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        starts = offsets[firsts].tolist()
        sizes = (np.maximum.reduceat(ends, firsts) - offsets[firsts]).tolist()
        lasts = [*firsts[1:].tolist(), len(order)]
        found: list[bytes] = []
        with self._calls.enter() as storage:
            if len(starts) > 1:
                for start, size in zip(starts, sizes, strict=True):
                    storage.announce(start, size)
            for first, last, start, size in zip(firsts.tolist(), lasts, starts, sizes, strict=True):
                data = _read_all(storage, start, size)
                begins = offsets[first:last] - start
                stops = (begins + lengths[first:last]).tolist()
                found += [data[a:b] for a, b in zip(begins.tolist(), stops, strict=True)]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return [found[at] for at in back.tolist()]

    def settle(self) -> None:
        """Return freed zones to the system. Call it after freeing objects; otherwise it is cheap.

        Zones that another call is returning are left to that call. Zones that cannot be returned
        are reused. Finalizers may call this, also after `close`. An interrupt passes through, and
        the next call completes the work.
        """
        if not self.zones.unsettled:
            return
        try:
            call = self._calls.enter()
        except ClosedError:
            return
        with call as storage:
            emptied = self.zones.emptied()
            try:
                for offset, length in emptied.runs():
                    with contextlib.suppress(OSError):
                        storage.discard(offset, length)
                emptied.put_back()
            finally:
                emptied.give_up()  # now, because a traceback may still refer to it
            self.zones.cut(storage)

    @property
    def live_bytes(self) -> int:
        """Bytes of the objects that are kept or being written."""
        return self.zones.figures[1]

    @property
    def objects(self) -> int:
        """Number of objects that are kept or being written."""
        return self.zones.figures[2]

    @property
    def held_bytes(self) -> int:
        """Bytes of the file in use: `live_bytes`, and freed bytes in zones that are not empty."""
        return self.zones.figures[0]

    @property
    def max_bytes(self) -> int | None:
        """Limit of the file in bytes; None for no limit. A new limit applies to later writes."""
        return self.zones.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self.zones.max_bytes = as_limit(value, "max_bytes")

    @property
    def is_locked_here(self) -> bool:
        """Whether this thread is inside a call that other threads may be waiting for."""
        # As threading.Condition does.
        held: bool = self._lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001
        return held or (self._has_locks and self._calls.used_here)

    def room_for(self, length: int) -> tuple[bool, bool]:
        """Return whether `length` bytes fit below the limit now, and whether after cleaning."""
        limit = self.max_bytes
        if limit is None:
            return True, False
        held, live, _ = self.zones.figures
        most = limit - self.zones.spare - length
        return held <= most, live <= most

    def zone_of(self, positions: Positions) -> Numbers:
        """Return the number of the zone of each of n objects."""
        return (offsets_of(positions) - self.zones.base) // self.zones.zone_size

    def check_invariants(self, live: Positions) -> None:
        """Raise AssertionError if an invariant does not hold.

        `live` has each position that was committed and not freed, once. No other call may be
        running.
        """
        self.zones.check(np.sort(live))

    def close(self) -> None:
        """Close the file after all running calls. A file that was created here disappears."""
        self._calls.close()


def _write_all(storage: Storage, data: bytes, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(data):
        written = storage.pwrite(view[done:], offset + done)
        if not 0 < written <= len(data) - done:
            raise OSError(
                errno.EIO, f"the backing file wrote {written} of {len(data) - done} bytes"
            )
        done += written


def _read_all(storage: Storage, offset: int, length: int) -> bytes:
    data = storage.pread(length, offset)
    while len(data) < length:
        more = storage.pread(length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
