"""Records: the values of one mapping by key, with the operations of a cache."""

from collections.abc import Sequence
from typing import Any, Self, final

from batchzip.arguments.buffers import Buffer
from batchzip.core.chunks import Chunked
from batchzip.core.coder import Coders
from batchzip.core.division import Divider
from batchzip.core.entries import Entries
from batchzip.core.gather import Gathered
from batchzip.core.indices import IndexReservation
from batchzip.core.ring import Ring

MISSING: object
"""The result of `get` for an absent key."""

def shift_clock(seconds: float) -> None:
    """Move the clock of deadlines forward by `seconds`. Only tests use it."""

def now_ns() -> int:
    """Return the current time on the clock of deadlines, in nanoseconds."""

class LargeValue:
    """A value that is stored as pages: the lengths of its parts in bytes, and its indices."""

    def __init__(self, lengths: list[int], reservation: IndexReservation | None) -> None: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def reservation(self) -> IndexReservation | None: ...

class Found:
    """A value that a look-up found.

    `data` holds its bytes. If `data` is None, pass it to `finish`, with the gathered objects at
    `indices`, an array of uint64, if there are any.
    """

    @property
    def indices(self) -> bytes: ...
    @property
    def data(self) -> bytes | None: ...

class Timed:
    """The result of a `look_up` whose latency is measured, and when the call began."""

    @property
    def found(self) -> bytes | LargeValue | Found: ...
    @property
    def started(self) -> int: ...

@final
class Records:
    """The values of one mapping, by key.

    Keys are those that core/keys.pyx encodes; others raise NotPlain. Messages call the mapping
    `name`. Threads may share it. Calls raise ClosedError once it or its entries are closed, and
    ForkedProcess in a forked child.
    """

    def __new__(cls, entries: Entries, name: str) -> Self: ...
    @property
    def entries(self) -> Entries: ...
    @property
    def number(self) -> int:
        """The number of the codec that compresses new values."""

    @property
    def most_bytes(self) -> int:
        """The largest value, in bytes, that the codec compresses in one call."""

    @property
    def takes_chunks(self) -> bool:
        """Whether larger values are compressed in chunks: `compress` and `put_chunked`."""

    @property
    def divider(self) -> Divider:
        """The Divider that divides batches of values between their callers and the lanes."""

    @property
    def chunk_divider(self) -> Divider:
        """The Divider that divides the chunks of one value between its caller and the lanes."""

    def require_open(self) -> None:
        """Raise ClosedError if the mapping is closed, or ForkedProcess in a forked child."""

    def start_put(self) -> int:
        """Return the start time of a put whose latency is to be measured, or 0 otherwise.

        Raise as `require_open`.
        """

    def use_codec(self, number: int, coders: Coders) -> None:
        """Compress new values with the codec of that number. The caller holds the number."""

    def look_up(self, key: Any) -> bytes | LargeValue | Found | Timed | object:
        """Return the result of `get`.

        The results of a few calls are returned as Timed. The caller then reports the end of the
        call to the entries.
        """

    def get(self, key: Any, peek: bool = False) -> bytes | LargeValue | Found | object:
        """Return a value's bytes, MISSING, its LargeValue, or a Found that `finish` takes.

        With `peek`, the value does not count as used, and its bytes are returned as a Found, too.
        Raise PageError with EBADMSG if the stored value is damaged.
        """

    def finish(
        self, where: Found, gathered: Gathered | None = None, *, rings: tuple[Ring, ...] = ()
    ) -> bytes | list[memoryview] | None:
        """Return the value that `get` found: bytes, or a list of its parts in new memory.

        `gathered` has the objects at its `indices`, read from the backing file if necessary.
        `rings` are those of the lanes, which help with a value in chunks if they are threads.

        Return None if the value has changed meanwhile; call `get` again then.
        """

    def put(
        self,
        key: Any,
        value: Buffer,
        *,
        deadline: int = 0,
        if_absent: bool = False,
        limit: int = 0,
    ) -> int:
        """Store a value of up to `most_bytes`. Return 0, or a negative errno.

        On failure the key keeps its old value. `deadline` is the time at which the value expires,
        on the clock of `now_ns`, or 0 for never. The errors are −EEXIST if the key exists and
        `if_absent` is set, −EDQUOT if the entries would have more than `limit` bytes in the pool,
        −ENOSPC if the pool is at its limit, and −ENOMEM.
        """

    def put_large(
        self, key: Any, value: LargeValue, *, deadline: int = 0, if_absent: bool = False
    ) -> int:
        """Assign to a key a value that is stored as pages. Return as `put`."""

    def compress(self, parts: Sequence[Buffer], *, rings: tuple[Ring, ...] = ()) -> Chunked:
        """Compress the parts of a value that is larger than `most_bytes`, for `put_chunked`.

        `rings` are those of the lanes. Lanes help only if they are threads. Raise MemoryError.
        """

    def put_chunked(
        self,
        key: Any,
        value: Chunked,
        *,
        deadline: int = 0,
        if_absent: bool = False,
        limit: int = 0,
    ) -> int:
        """Store a value that was compressed in chunks. Return as `put`."""

    def remove(self, key: Any, expected: LargeValue | Found | None = None) -> bool:
        """Remove a key and its value. Return whether a value was removed.

        With `expected`, remove the key only if that is still its value.
        """

    def get_many(self, keys: list[Any], *, rings: tuple[Ring, ...] = ()) -> list[Any]:
        """Return the result of `get` for each key. A value that fails yields its PageError.

        `rings` are those of the lanes. Lanes help only if they are threads.
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
        """Store values of up to `most_bytes` each, from number `start` on.

        If `most` is not 0, stop after about `most` bytes. `rings` are those of the lanes. Lanes
        help only if they are threads.

        Return the number of values stored, including those before `start`, and 0 or the negative
        errno of the first value that was not stored. Raise BadArgument if there are not as many
        values as keys, or if `start` is not among them.
        """

    def contains(self, key: Any) -> bool:
        """Return whether a key exists. This does not count as a use of its value."""

    def __len__(self) -> int: ...
    def keys(self) -> list[Any]:
        """Return a snapshot of all keys, in the order in which they were inserted."""

    def last(self) -> list[Any]:
        """Return a list that holds the key inserted last, or an empty list."""

    def clear(self) -> None:
        """Remove all values."""

    def shrink(self, target: int) -> int:
        """Remove the coldest values until at most `target` bytes of the entries are in the pool.

        Return the number of values removed. The usage stays above `target` only if no value is
        left.
        """

    def coldest(self) -> list[Any]:
        """Return a list that holds the key of the coldest value, or an empty list."""

    def count_eviction(self) -> None:
        """Count one eviction: `remove` took a value out to make room."""

    def expire(self) -> int:
        """Remove all expired values. Return the number of values removed."""

    def coder_bytes(self) -> int:
        """Return the memory, in bytes, of coders with a dictionary. The engine owns the others."""

    def figures(self) -> dict[str, int]:
        """Return a snapshot of the figures.

        They are "values", "raw_bytes" (of values not stored as pages), "index_bytes", "key_bytes"
        (allocated, including spare capacity), and "hits", "misses", "evictions" and "expirations"
        so far.
        """

    def large_values(self) -> list[LargeValue]:
        """Return the objects of the values that are stored as pages."""

    def close(self) -> None:
        """Drop all keys. The group frees its entries itself."""

    def fault(self) -> str | None:
        """Return what is wrong, or None. No other thread may change anything during the call."""
