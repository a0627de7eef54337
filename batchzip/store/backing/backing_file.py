"""BackingFile: where a store puts compressed pages that nobody has asked for lately.

    write(buffers) ─▶ room in the zones ─▶ pwrite, one for each zone touched ─▶ fdatasync ─▶ ZoneReservation
    ZoneReservation.commit ─▶ zones_free: both in the core, in the steps in which entries come and go
    settle() ─▶ zones that nothing lives in: hole punched ─▶ they are free again, the file's end is cut off
    read(positions) ─▶ sorted, announced ─▶ one pread for neighbours ─▶ bytes, as asked for

A log in zones (core/zones.pyx) on a descriptor or an object (file_io.py). Kernel counterpart: the swap device,
with the clusters of zram's writeback. Rejected: O_DIRECT (compressed pages are not aligned, and what was
just written is what is read back first); mmap (an I/O error would be a SIGBUS).

fdatasync is not for what a crash of the machine leaves: contents do not survive their owner. It is
when the system says that bytes could not be written, and the last moment at which memory still has them.

The kernel tells each failure once, to whoever asks first. So syncs are made one after the other, and a
failure fails every batch that was being written at the time. It is never asked again about the same
bytes: the second answer would be "all well". Their zones are not written to any more; what else
lives there was synced before, and stays readable.

A sync within a sync, by a signal handler or a finalizer of the same thread, is made at once: what its caller
wrote was written while the outer one could not be told anything. What it is told of fails the outer one, too.

Invariants
* A ZoneReservation is returned only after its bytes were written and synced.
* Whatever cuts a call short, nothing is lost and nothing counted twice: what is reserved, and which zones are
  being discarded, belongs to objects that give it back when they are dropped.

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
"""Bytes between two objects that are read rather than skipped: copying them from the page cache takes
about as long as another pread, and a disk's block is no smaller than half of it."""


class BackingFile(Closing):
    """Compressed pages in a file, by position. Thread-safe, also in signal handlers and finalizers.

    `target` is what `SwapStore` calls `backing`; see file_io.py. `page_size`, in bytes, is the longest object
    there can be. `max_bytes` limits `held_bytes`; None: no limit but the file system's.

    Raises BadArgument for a target that cannot be one, or is in use, and OSError where it cannot be
    opened.
    """

    def __init__(self, target: object, *, page_size: int, max_bytes: int | None = None) -> None:
        self._page_size = check_page_size(page_size)
        limit = as_limit(max_bytes, "max_bytes")
        storage = open_storage(target)
        self.descriptor = storage.descriptor
        """Descriptor of the file; None where it is an object."""
        self.name = storage.name
        """Where the file can be looked at (/proc/PID/fd/N), or what object it is."""
        try:
            self.zones = Zones(page_size, storage.base, limit)
        except BaseException:
            storage.close()
            raise
        self._lock, self._has_locks = storage.lock, storage.has_locks
        self._calls: Calls[Storage] = Calls(storage, "BackingFile")

    def write(self, buffers: Sequence[Flat], *, cleaning: bool = False) -> ZoneReservation:
        """Append n buffers of 1 … page_size bytes. Return where they are, once they are safely written.

        Some room below the limit is only for `cleaning`: at most an eighth of it.

        They are gone again if the ZoneReservation is dropped before it is committed. Raises OSError, and has
        kept none of them then: ENOSPC beyond `max_bytes`; EAGAIN in the middle of a call of a storage
        object that cuts the file's end off, or where another thread is in such a call, or in a sync, for more
        than a second: it may be waiting for this one. They are read during the call only.
        """
        lengths = np.fromiter(map(len, buffers), np.int64, len(buffers))
        if len(lengths) and (lengths.min() < 1 or lengths.max() > self._page_size):
            raise BadArgument(f"what is written must have 1 to {self._page_size} bytes")
        self.settle()  # a ZoneReservation may have been dropped, or a call cut short
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
                reservation.undo()  # now, though the traceback still has it
                self.settle()
                raise
        return reservation

    def read(self, positions: Positions) -> list[bytes]:
        """Read n objects, in the order asked for.

        A position that was freed, or a file that was cut, gives other bytes or fewer, and no error: the
        caller has a checksum. Raises OSError where the file does.
        """
        if not len(positions):
            return []
        order = np.argsort(positions, kind="stable")
        offsets, lengths = offsets_of(positions[order]), lengths_of(positions[order])
        ends = np.maximum.accumulate(offsets + lengths)
        zones = self.zone_of(positions[order])
        # A run ends with its zone, so that what is read at once has a bound.
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
        """Give back to the system what was freed; called after objects were. Nothing to do costs next to nothing.

        What another call is giving back is left to it, and what cannot be given back is just reused. May be
        called in finalizers, and after `close`. An interrupt comes through; the next call goes on then.
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
                emptied.give_up()  # now, though a traceback may still have it
            self.zones.cut(storage)

    @property
    def live_bytes(self) -> int:
        """Bytes of the objects that are kept, or being written."""
        return self.zones.figures[1]

    @property
    def objects(self) -> int:
        """Number of the objects that are kept, or being written."""
        return self.zones.figures[2]

    @property
    def held_bytes(self) -> int:
        """Bytes of the file in use: `live_bytes`, and what was freed in zones where others still live."""
        return self.zones.figures[0]

    @property
    def max_bytes(self) -> int | None:
        """Most bytes the file may hold; None for no limit. May be set, and then counts for new writes."""
        return self.zones.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self.zones.max_bytes = as_limit(value, "max_bytes")

    @property
    def is_locked_here(self) -> bool:
        """Whether this thread is in the middle of a call that others may be waiting for."""
        held: bool = self._lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001 - as Condition does
        return held or (self._has_locks and self._calls.used_here)

    def room_for(self, length: int) -> tuple[bool, bool]:
        """Return whether `length` bytes fit below the limit, and whether they do after cleaning."""
        limit = self.max_bytes
        if limit is None:
            return True, False
        held, live, _ = self.zones.figures
        most = limit - self.zones.spare - length
        return held <= most, live <= most

    def zone_of(self, positions: Positions) -> Numbers:
        """Tell in which zone each of n objects lies, by number."""
        return (offsets_of(positions) - self.zones.base) // self.zones.zone_size

    def check_invariants(self, live: Positions) -> None:
        """Raise AssertionError where an invariant does not hold.

        `live` are all positions that were committed and not freed, each once; nothing may be under way.
        """
        self.zones.check(np.sort(live))

    def close(self) -> None:
        """Let go of the file, which is gone if it was made here; calls under way end first."""
        self._calls.close()


def _write_all(storage: Storage, data: bytes, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(data):
        written = storage.pwrite(view[done:], offset + done)
        if not 0 < written <= len(data) - done:
            raise OSError(errno.EIO, f"the backing file took {written} of {len(data) - done} bytes")
        done += written


def _read_all(storage: Storage, offset: int, length: int) -> bytes:
    data = storage.pread(length, offset)
    while len(data) < length:
        more = storage.pread(length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
