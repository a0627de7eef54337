"""Records: the values of one mapping by their keys, and what a cache does with them."""

from typing import Any, Self, final

from batchzip.arguments.buffers import Buffer
from batchzip.core.coder import Coders
from batchzip.core.division import Divider
from batchzip.core.entries import Entries
from batchzip.core.gather import Gathered
from batchzip.core.indices import IndexReservation
from batchzip.core.ring import Ring

MISSING: object
"""What `get` returns for a key that is not there."""

def shift_clock(seconds: float) -> None:
    """Move the clock of deadlines forward by `seconds`: for tests."""

def now_ns() -> int:
    """Return the time by which deadlines are told, in nanoseconds."""

class LargeValue:
    """Where a value is that lies on pages: lengths of its parts in bytes, and its indices."""

    def __init__(self, lengths: list[int], reservation: IndexReservation | None) -> None: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def reservation(self) -> IndexReservation | None: ...

class Found:
    """A value as it was found: `data`, its bytes; or None: gather `indices`, uint64s, for `finish`."""

    @property
    def indices(self) -> bytes: ...
    @property
    def data(self) -> bytes | None: ...

class Timed:
    """What `look_up` found, of a call that is timed, and when that began."""

    @property
    def found(self) -> bytes | LargeValue | Found: ...
    @property
    def started(self) -> int: ...

@final
class Records:
    """The values of one mapping, by key.

    Keys are those that core/keys.pyx encodes; others raise NotPlain. `name` is what messages call the
    mapping. Threads may share it. Raise ClosedError once it or the entries is closed, and ForkedProcess in a
    forked child.
    """

    def __new__(cls, entries: Entries, name: str) -> Self: ...
    @property
    def entries(self) -> Entries: ...
    @property
    def number(self) -> int:
        """The number of the codec that compresses what comes."""

    @property
    def most_bytes(self) -> int:
        """Bytes that a value has at most which that codec compresses in one call."""

    @property
    def divider(self) -> Divider:
        """What divides batches of values between their callers and lanes."""

    def require_open(self) -> None:
        """Raise what every call raises once the mapping is closed, or in a forked child."""

    def start_put(self) -> int:
        """Return when a put began, if it is to be timed, or 0. Raise as `require_open`."""

    def use_codec(self, number: int, coders: Coders) -> None:
        """Compress values that come with the codec of a number, which the caller holds, from now on."""

    def look_up(self, key: Any) -> bytes | LargeValue | Found | Timed | object:
        """Return what `get` does; a few that are there as Timed, whose end the caller tells the entries."""

    def get(self, key: Any, peek: bool = False) -> bytes | LargeValue | Found | object:
        """Return a value's bytes; MISSING; its LargeValue; or Found, where it lies in the file.

        With `peek`, the value does not count as used, and bytes are returned as Found, too. Raise PageError: −EBADMSG where
        what is stored is damaged.
        """

    def finish(self, where: Found, gathered: Gathered) -> bytes | None:
        """Return the bytes of a value that was read from the file; None: it has changed, get it again."""

    def put(
        self,
        key: Any,
        value: Buffer,
        *,
        deadline: int = 0,
        if_absent: bool = False,
        limit: int = 0,
    ) -> int:
        """Store a value of up to `most_bytes`. Return 0, or a negative errno; then the key has what it had.

        `deadline` is the time until which it is good, as `now_ns` has it; 0: for ever. −EEXIST where the
        key is there and `if_absent`; −EDQUOT: the entries would have more than `limit` bytes in the pool;
        −ENOSPC: the pool's limit; −ENOMEM.
        """

    def put_large(
        self, key: Any, value: LargeValue, *, deadline: int = 0, if_absent: bool = False
    ) -> int:
        """Have a key lead to a value that lies on pages. Return as `put`."""

    def remove(self, key: Any, expected: LargeValue | Found | None = None) -> bool:
        """Take a key out with its value. Return whether it was there.

        `expected`: only if it is still the key's value.
        """

    def get_many(self, keys: list[Any], *, rings: tuple[Ring, ...] = ()) -> list[Any]:
        """Return what `get` does for each of these keys; a value that fails is its PageError.

        `rings` are those of lanes that help, if they are threads.
        """

    def put_many(
        self,
        keys: list[Any],
        values: list[Any],
        start: int,
        *,
        deadline: int = 0,
        limit: int = 0,
        most: int = 0,
        rings: tuple[Ring, ...] = (),
    ) -> tuple[int, int]:
        """Store values of up to `most_bytes`, from number `start` on; `most` bytes of them or so, if it is not 0.

        `rings` are those of lanes that help, if they are threads.

        Return how many are stored, those before `start` included, and why not more: 0, or the negative
        errno of the next one.
        """

    def contains(self, key: Any) -> bool:
        """Return whether a key is there; that is no use of its value."""

    def __len__(self) -> int: ...
    def keys(self) -> list[Any]:
        """Return all keys in the order in which they were put in first, as they are at one moment."""

    def last(self) -> list[Any]:
        """Return a list of the key that was put in last, or an empty one."""

    def clear(self) -> None:
        """Take all values out."""

    def shrink(self, target: int) -> int:
        """Take out the coldest values until `target` bytes of the entries are left in the pool.

        Return how many went; fewer bytes are left than `target`, or no value is.
        """

    def coldest(self) -> list[Any]:
        """Return a list of the key of the value that was not used for longest, or an empty one."""

    def count_eviction(self) -> None:
        """Count a value that `remove` took out to make room."""

    def expire(self) -> int:
        """Take out all values whose time is over. Return how many went."""

    def coder_bytes(self) -> int:
        """Return the bytes of memory of the coders that are not the engine's: those with a dictionary."""

    def figures(self) -> dict[str, int]:
        """Return the figures of one moment.

        "values", "raw_bytes" (of those that lie on no pages), "index_bytes", "key_bytes" (with
        room for more), and "hits", "misses", "evictions" and "expirations" so far.
        """

    def large_values(self) -> list[LargeValue]:
        """Return the objects of the values that lie on pages."""

    def close(self) -> None:
        """Forget all keys: the group frees its entries itself."""

    def fault(self) -> str | None:
        """Return what is wrong, or None. No other thread may be changing anything."""
