"""Zones: which bytes of a backing file are in use, and where the next go.

Positions are uint64: offset << 21 | length − 1. Whoever gives up an entry gives up its position in
the same step, by the C function `zones_free`; from Python `Zones.free` does it.

A ZoneReservation owns positions until they are committed, and an Emptied owns zones until they are put
back. What either still has when it is dropped is given back.
"""

from collections.abc import Container
from typing import Protocol, Self, final

import numpy as np
import numpy.typing as npt

class _Lock(Protocol):
    """One that its holder may take again, as threading.RLock."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...

class _Storage(Protocol):
    @property
    def lock(self) -> _Lock: ...
    def sync(self) -> None: ...
    def truncate(self, size: int, /) -> None: ...

@final
class ZoneReservation:
    """Where the objects of one batch go. Dropped before it is committed, it has never been."""

    def __len__(self) -> int: ...
    def to_array(self) -> npt.NDArray[np.uint64]:
        """Return the position of each object, in a new array."""

    def runs(self) -> list[tuple[int, int, int]]:
        """Return (first, last, offset): objects [first, last) lie side by side from byte `offset` on."""

    def keep(self) -> npt.NDArray[np.uint64]:
        """Commit. Return the positions, which are the caller's to free from now on."""

    def undo(self) -> None:
        """Give up everything, unless it was committed."""

@final
class Emptied:
    """Zones that nothing lives in, while their bytes are discarded.

    Nobody writes there before `put_back`. If it is dropped instead, they are still to be discarded.
    """

    def runs(self) -> list[tuple[int, int]]:
        """Return (offset, length) of what is to be discarded, neighbours as one, by offset."""

    def give_up(self) -> None:
        """Leave the zones to the next who looks for emptied ones, unless they were put back."""

    def put_back(self) -> None:
        """Have the zones used again."""

@final
class Zones:
    """Bookkeeping of a file whose zones begin at byte `base`. Thread-safe.

    `max_bytes` limits what may be held; None: no limit. Raise ForkedProcess in a child.
    """

    def __new__(cls, page_size: int, base: int, max_bytes: int | None = None) -> Self: ...
    @property
    def zone_size(self) -> int:
        """Bytes of a zone: a power of two."""

    @property
    def base(self) -> int:
        """Where zone 0 begins in the file."""

    @property
    def spare(self) -> int:
        """Bytes below the limit that only cleaning may write to; 0 where there is no limit."""

    @property
    def figures(self) -> tuple[int, int, int]:
        """Bytes held, bytes that live, and objects; what is being written counts."""

    @property
    def max_bytes(self) -> int | None:
        """Most bytes that may be held; None for no limit. May be set, and counts for what comes."""

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
        """Find room for a batch of objects of these lengths, each of 1 byte to a page.

        `spare` bytes below the limit are left free, unless this is `cleaning`.

        Raise OSError, with nothing reserved: ENOSPC beyond a limit; EAGAIN if there is only room
        where the file's end is being cut off, by this very thread or, without `wait`, for more than a
        second by another one, which has the storage's `lock` meanwhile.
        """

    def free(self, positions: npt.NDArray[np.uint64]) -> None:
        """Give up objects, each of them once."""

    def sync(self, storage: _Storage, reservation: ZoneReservation, *, wait: bool = True) -> None:
        """Have what was written to a reservation synced, and raise what `storage.sync()` raises.

        Raise OSError if any sync has failed since the reservation was made: the system tells each
        failure once, and it may have been told another about these bytes. Without `wait` raise
        OSError (EAGAIN) if another thread has the storage's lock for more than a second.
        """

    @property
    def unsettled(self) -> bool:
        """Whether there are zones to be discarded, or the file's end could be cut off."""

    def emptied(self) -> Emptied:
        """Return the zones that nothing lives in any more and that nobody discards yet."""

    def cut(self, storage: _Storage) -> None:
        """Cut the file's end off where it is free, unless another thread has the storage's lock.

        An OSError is no harm: the room is used again all the same.
        """

    def sparse(
        self, passed: Container[int] = (), eighths: int = 4, most: int = ...
    ) -> dict[int, int]:
        """Return `most` full zones of which less than `eighths` of 8 lives, but those `passed`.

        By number, with their `uses`, the emptiest first; as many as `spare` has room for what lives
        in them.
        """

    def uses(self, number: int) -> int:
        """Return how many times a zone was opened: it is another one then."""

    def check(self, live: npt.NDArray[np.uint64]) -> None:
        """Raise AssertionError where an invariant does not hold.

        `live` has all positions that were committed and not freed, sorted; nothing may be under way.
        """
