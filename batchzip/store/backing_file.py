"""BackingFile: where a store puts compressed pages that nobody has asked for lately.

    write(buffers) ─▶ lock: room in the zones ─▶ pwrite, one for each zone touched ─▶ fdatasync ─▶ positions
    read(positions) ─▶ sorted, announced ─▶ one pread for neighbours ─▶ bytes, as asked for
    free(positions) ─▶ lock: counts ─▶ empty zones: hole punched ─▶ lock: they are free again

A log in zones (zones.py) on a descriptor or an object (file_io.py). Kernel counterpart: the swap device, with
the clusters of zram's writeback. Rejected: O_DIRECT (compressed pages are not aligned, and what was
just written is what is read back first); mmap (an I/O error would be a SIGBUS).

fdatasync is not for what a crash of the machine leaves: contents do not survive their owner. It is
when the system says that bytes could not be written, and the last moment at which memory still has them.

The kernel tells each failure once, to whoever asks first. So syncs are made one after the other, and a
failure fails every batch that was being written at the time. It is never asked again about the same
bytes: the second answer would be "all well". Their zones are not written to any more; what else
lives there was synced before, and stays readable.

Invariants
* A position is returned only after its bytes were written and synced.
* No lock is held during I/O, but for cutting off the file's end, behind which nobody may begin to write
  meanwhile, and syncs among themselves.
* After a call that an interrupt cut short, too much may count as in use, never too little; `recount` finds it.

Lock order: the sync lock, then the lock. Neither is held when anything of the caller's runs, save its
own storage object's truncate() and sync().
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np

from batchzip.buffers import check_page_size
from batchzip.checks import check_limit
from batchzip.errors import BadArgument, ClosedError
from batchzip.lifetime import Closing
from batchzip.store.file_io import Storage, open_storage
from batchzip.store.zones import Zones, lengths_of, offsets_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchzip.buffers import Flat
    from batchzip.store.zones import Numbers, Positions, Reservation

_GAP = 8192
"""Bytes between two objects that are read rather than skipped: copying them from the page cache takes
about as long as another pread, and a disk's block is no smaller than half of it."""


class BackingFile(Closing):
    """Compressed pages in a file, by position. Thread-safe.

    `target` is a path (the file is made, 0600, and removed by `close`; one that a killed owner left is taken
    over), a directory (for a file without a name), or a file object, which stays the user's and whose
    content is overwritten; see file_io.py. `page_size`, in bytes, is the longest object there can be.
    `max_bytes` limits `held_bytes`; None: no limit but the file system's.

    Raises BadArgument for a target that cannot be one, or is in use, and OSError where it cannot be
    opened.
    """

    def __init__(self, target: object, *, page_size: int, max_bytes: int | None = None) -> None:
        self._page_size = check_page_size(page_size)
        limit = check_limit(max_bytes, "max_bytes")
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._sync_failures = 0
        self._callers: set[int] = set()
        self._closed = False
        self._storage: Storage = open_storage(target)
        self._zones = Zones(page_size, self._storage.base, limit)

    def write(self, buffers: Sequence[Flat]) -> Positions:
        """Append n buffers of 1 … page_size bytes; their n positions, once they are safely written.

        Raises OSError, ENOSPC beyond `max_bytes`, and has kept none of them then. They are read
        during the call only.
        """
        lengths = np.fromiter(map(len, buffers), np.int64, len(buffers))
        if not len(lengths):
            return np.zeros(0, np.uint64)
        if lengths.min() < 1 or lengths.max() > self._page_size:
            raise BadArgument(f"what is written must have 1 to {self._page_size} bytes")
        with self._call():
            failures = self._sync_failures
            with self._lock:
                reservation = self._zones.reserve(lengths)
            try:
                for piece in reservation.pieces:
                    self._write_all(b"".join(buffers[piece.first : piece.last]), piece.offset)
                self._sync(failures, reservation)
            except BaseException:
                with self._lock:
                    emptied = self._zones.undo(reservation)
                self._give_back(emptied)
                raise
        return reservation.positions

    def _write_all(self, data: bytes, offset: int) -> None:
        view, done = memoryview(data), 0
        while done < len(data):
            written = self._storage.pwrite(view[done:], offset + done)
            if not 0 < written <= len(data) - done:
                raise OSError(
                    errno.EIO, f"the backing file took {written} of {len(data) - done} bytes"
                )
            done += written

    def _sync(self, failures: int, reservation: Reservation) -> None:
        """Sync what was written since there had been so many failures."""
        with self._sync_lock:
            self._sync_alone(failures, reservation)

    def _sync_alone(self, failures: int, reservation: Reservation) -> None:
        if self._sync_failures != failures:
            with self._lock:
                self._zones.poison(reservation)
            raise OSError(errno.EIO, "the backing file failed to sync while this was being written")
        try:
            self._storage.sync()
        except OSError:
            self._sync_failures += 1
            with self._lock:
                self._zones.poison(reservation)
            raise

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
        zones = self._zones.zone_of(positions[order])
        # A run ends with its zone, so that what is read at once has a bound.
        breaks = (offsets[1:] - ends[:-1] > _GAP) | (zones[1:] != zones[:-1])
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        starts = offsets[firsts].tolist()
        sizes = np.maximum.reduceat(ends, firsts) - offsets[firsts]
        found: list[bytes] = []
        with self._call():
            if len(starts) > 1:
                for start, size in zip(starts, sizes.tolist(), strict=True):
                    self._storage.announce(start, size)
            lasts = [*firsts[1:].tolist(), len(order)]
            runs = zip(firsts.tolist(), lasts, starts, sizes.tolist(), strict=True)
            for first, last, start, size in runs:
                data = self._read_all(start, size)
                begins = offsets[first:last] - start
                stops = (begins + lengths[first:last]).tolist()
                found += [data[a:b] for a, b in zip(begins.tolist(), stops, strict=True)]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return [found[at] for at in back.tolist()]

    def _read_all(self, offset: int, length: int) -> bytes:
        data = self._storage.pread(length, offset)
        while len(data) < length:
            more = self._storage.pread(length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def free(self, positions: Positions) -> None:
        """Give up n objects, each of them once. What cannot be given back to the system is just reused."""
        with self._call():
            with self._lock:
                emptied = self._zones.free(positions)
            self._give_back(emptied)

    def recount(self, live: Positions) -> None:
        """Put the bookkeeping right after a call was cut short.

        `live` are all positions that `write` has returned and `free` not been given, each once. Nobody else may
        write, free or recount meanwhile, nor hold positions that are not among them.
        """
        with self._call():
            with self._lock:
                emptied = self._zones.recount(live)
            self._give_back(emptied)

    def _give_back(self, zones: Numbers) -> None:
        """Discard zones that nothing lives in, and have them used again."""
        if not len(zones):
            return
        size = self._zones.zone_size
        for run in np.split(zones, np.flatnonzero(np.diff(zones) > 1) + 1):
            with contextlib.suppress(OSError):  # the room is reused all the same
                self._storage.discard(self._zones.start_of(int(run[0])), len(run) * size)
        with self._lock:
            cut = self._zones.put_back(zones)
            if cut is not None:
                with contextlib.suppress(OSError):
                    self._storage.truncate(cut)

    @property
    def live_bytes(self) -> int:
        """Bytes of the objects that are kept, or being written."""
        with self._lock:
            return self._zones.live

    @property
    def objects(self) -> int:
        """Number of the objects that are kept, or being written."""
        with self._lock:
            return self._zones.objects

    @property
    def held_bytes(self) -> int:
        """Bytes of the file in use: `live_bytes`, and what was freed in zones where others still live."""
        return self._zones.held

    @property
    def max_bytes(self) -> int | None:
        """Most bytes the file may hold; None for no limit. May be set, and then counts for new writes."""
        return self._zones.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self._zones.max_bytes = check_limit(value, "max_bytes")

    @property
    def descriptor(self) -> int | None:
        """Descriptor of the file, which stays its owner's; None where it is an object."""
        return self._storage.descriptor

    def sparse_zones(self) -> Numbers:
        """Zones less than half of which lives, the emptiest first: worth writing their objects anew."""
        with self._lock:
            return self._zones.sparse()

    def zone_of(self, positions: Positions) -> Numbers:
        """Tell in which zone each of n objects lies, by number."""
        return self._zones.zone_of(positions)

    def check_invariants(self, live: Positions) -> None:
        """Raise AssertionError where an invariant does not hold; `live` as for `recount`, with nothing under way."""
        with self._lock:
            self._zones.check(live)

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Keep the file open: a descriptor closed under a write could be another file's by then."""
        with self._lock:
            closed = self._closed
            if closed:
                raise ClosedError("this BackingFile is closed")
            self._callers.add(threading.get_ident())
        try:
            yield
        finally:
            with self._lock:
                self._callers.discard(threading.get_ident())
                last = self._closed and not self._callers
            if last:
                self._storage.close()

    def close(self) -> None:
        """Let go of the file, and remove it if it was made here; calls under way end first."""
        with self._lock:
            # A call of this thread, or of one that has ended, was cut short: nobody is in it.
            alive = sys._current_frames().keys()  # noqa: SLF001 - as the ledger does
            self._callers &= alive - {threading.get_ident()}
            last = not self._callers
            self._closed = True
        if last:
            self._storage.close()
