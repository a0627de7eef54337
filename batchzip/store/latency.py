"""Latency: a histogram of how long the timed calls of one operation took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.core.latency import BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Latency:
    """How long calls took: one in 64 calls, chosen at random, or every page fault.

    Timing only a sample keeps the cost off the other calls. A call is one `load`, one `store` of a
    whole folio, one `get` of a mapping that finds its value, or one value put into a mapping. Its
    time is all that the caller waits for, serializers and the backing file included. Calls that
    raise, and batches (`load_many`, `get_many`, `set_many` …), are not timed.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [bytes(range(256)) * 16])
        ...     for _ in range(10_000):
        ...         _ = store.load(0)
        ...     loads = store.latencies["load"]
        >>> loads.count > 50, loads.quantile(0.5) <= loads.quantile(0.99)
        (True, True)
    """

    calls: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    """Timed calls per bucket: `BOUNDS_S` has their upper bounds; the last bucket has none."""
    total_s: float = 0.0
    """Total seconds of all timed calls."""

    @classmethod
    def of(cls, counted: tuple[Iterable[int], int]) -> Latency:
        """Return a Latency of what the core counted: calls per bucket, and total nanoseconds."""
        calls, total_ns = counted
        return cls(tuple(calls), total_ns / 1e9)

    @property
    def count(self) -> int:
        """Number of timed calls."""
        return sum(self.calls)

    @property
    def mean_s(self) -> float | None:
        """Mean seconds per call. None: no call was timed."""
        return self.total_s / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which a share of the calls ended, for example 0.99 of them.

        Each bucket is twice as wide as the one before. Calls are taken to be spread evenly within
        their bucket. None: no call was timed.
        """
        left = share * self.count
        if not self.count:
            return None
        shortest = 0.0
        for calls, longest in zip(self.calls, BOUNDS_S, strict=False):
            if calls and left <= calls:
                return shortest + (longest - shortest) * max(left, 0.0) / calls
            left -= calls
            shortest = longest
        return shortest

    def __add__(self, other: Latency) -> Latency:
        """Return the sum of both."""
        both = zip(self.calls, other.calls, strict=True)
        return Latency(tuple(mine + its for mine, its in both), self.total_s + other.total_s)

    def __sub__(self, before: Latency) -> Latency:
        """Return the calls since `before`; all of them if `before` is of a dropped group."""
        calls = tuple(mine - its for mine, its in zip(self.calls, before.calls, strict=True))
        return self if min(calls) < 0 else Latency(calls, self.total_s - before.total_s)
