"""Zones: the space allocator of a backing file.

A position is a uint64: offset << 21 | length − 1. The step that removes an entry frees its position
in the same step, with the C function `zones_free`. Python code frees positions with `Zones.free`.

A ZoneReservation owns positions until they are committed. An Emptied owns zones until they are put
back. The destructor of each returns what it still owns.
"""

from collections.abc import Container
from typing import Protocol, Self, final

import numpy as np
import numpy.typing as npt

class _Lock(Protocol):
    """A reentrant lock, such as threading.RLock."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...

class _Storage(Protocol):
    @property
    def lock(self) -> _Lock: ...
    def sync(self) -> None: ...
    def truncate(self, size: int, /) -> None: ...

@final
class ZoneReservation:
    """The positions for the objects of one batch.

    If it is dropped before it is committed, the positions are free again.
    """

    def __len__(self) -> int: ...
    def to_array(self) -> npt.NDArray[np.uint64]:
        """Return the position of each object, in a new array."""

    def runs(self) -> list[tuple[int, int, int]]:
        """Return a list of (first, last, offset).

        Objects [first, last) are contiguous in the file, from byte `offset` on.
        """

    def keep(self) -> npt.NDArray[np.uint64]:
        """Commit, and return the positions. The caller owns them and frees them later."""

    def undo(self) -> None:
        """Free all positions, unless they were committed."""

@final
class Emptied:
    """Zones without live objects, while their bytes are discarded.

    Nothing is written there before `put_back`. If it is dropped instead, the zones still have to be
    discarded.
    """

    def runs(self) -> list[tuple[int, int]]:
        """Return (offset, length) of each range to discard, by offset, with neighbours merged."""

    def give_up(self) -> None:
        """Return the zones to the list of emptied zones, unless they were put back."""

    def put_back(self) -> None:
        """Make the zones available for writing again."""

@final
class Zones:
    """The zones of a file, which begin at byte `base`. Thread-safe.

    `max_bytes` limits the bytes held; None means no limit. Calls raise ForkedProcess in a forked
    child.
    """

    def __new__(cls, page_size: int, base: int, max_bytes: int | None = None) -> Self: ...
    @property
    def zone_size(self) -> int:
        """Size of a zone in bytes, a power of two."""

    @property
    def base(self) -> int:
        """Offset of zone 0 in the file, in bytes."""

    @property
    def spare(self) -> int:
        """Bytes below the limit that are reserved for cleaning; 0 without a limit."""

    @property
    def figures(self) -> tuple[int, int, int]:
        """Bytes held, live bytes and live objects. Objects that are being written count."""

    @property
    def max_bytes(self) -> int | None:
        """Maximum bytes held, or None for no limit. A new value applies to later reservations."""

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None: ...
    def reserve(
        self,
        lengths: npt.NDArray[np.uint32],
        lock: _Lock,
        *,
        wait: bool = True,
        cleaning: bool = False,
    ) -> ZoneReservation:
        """Reserve space for a batch of objects of these lengths, each of 1 byte to a page.

        Only `cleaning` may use the last `spare` bytes below the limit.

        Raise OSError, with nothing reserved: ENOSPC beyond a limit, or EAGAIN if the only space is
        where the file's end is being cut off. EAGAIN is raised if this thread itself is cutting, or
        if, without `wait`, another thread cuts for more than a second. The cutting thread holds
        the storage's `lock`.
        """

    def free(self, positions: npt.NDArray[np.uint64]) -> None:
        """Free objects. Each position is freed once."""

    def sync(self, storage: _Storage, reservation: ZoneReservation, *, wait: bool = True) -> None:
        """Sync what was written to a reservation. Raise what `storage.sync()` raises.

        Raise OSError if any sync has failed since the reservation was made. The system reports each
        failure once, so another sync may have received the failure of these bytes. Without `wait`,
        raise OSError (EAGAIN) if another thread holds the storage's lock for more than a second.
        """

    @property
    def unsettled(self) -> bool:
        """Return whether zones have to be discarded, or the file's end could be cut off."""

    def emptied(self) -> Emptied:
        """Take the zones that have no live object and that no thread discards yet."""

    def cut(self, storage: _Storage) -> None:
        """Cut the file's free end off, unless another thread holds the storage's lock.

        An OSError does no harm: the space is reused in any case.
        """

    def sparse(
        self, passed: Container[int] = (), eighths: int = 4, most: int = ...
    ) -> dict[int, int]:
        """Return up to `most` full zones whose live part is below `eighths` / 8.

        Exclude the zones in `passed`. Return each zone's number with its `uses`, the emptiest zone
        first, and only as many zones as have live objects that fit in `spare` together.
        """

    def uses(self, number: int) -> int:
        """Return the number of times a zone was opened. A changed number means new contents."""

    def check(self, live: npt.NDArray[np.uint64]) -> None:
        """Raise AssertionError if an invariant does not hold.

        `live` has all positions that were committed and not freed, sorted. Nothing may be under
        way.
        """
