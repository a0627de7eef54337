"""Latency: how long calls of one operation took, as far as they were timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.core.latency import BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Latency:
    """How long calls took: of a random one in 64, so that the others pay nothing for it; or faults, all of them.

    A call is one of `load`, of `store` with its whole folio, of a mapping's `get` that finds its value, or of
    its putting one value in: all that the caller waits for, serializers and the backing file included. Calls that
    raise and batches (`load_many`, `get_many`, `set_many` …) are not timed.

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
    """What was timed, by bucket: `BOUNDS_S` has the longest time of each; what took longer is in the last."""
    total_s: float = 0.0
    """Seconds that all of them took together."""

    @classmethod
    def of(cls, counted: tuple[Iterable[int], int]) -> Latency:
        """Return what the core counted: by bucket, and the nanoseconds."""
        calls, total_ns = counted
        return cls(tuple(calls), total_ns / 1e9)

    @property
    def count(self) -> int:
        """How many calls were timed."""
        return sum(self.calls)

    @property
    def mean_s(self) -> float | None:
        """Seconds of a call on average. None: no call was timed."""
        return self.total_s / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which a share of the calls ended, 0.99 of them for instance.

        Buckets double in width; what lies within one is taken to be spread evenly. None: no call was timed.
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
        """Return both together."""
        both = zip(self.calls, other.calls, strict=True)
        return Latency(tuple(mine + its for mine, its in both), self.total_s + other.total_s)

    def __sub__(self, before: Latency) -> Latency:
        """Return what came after `before`: all, if that is of a group that is gone."""
        calls = tuple(mine - its for mine, its in zip(self.calls, before.calls, strict=True))
        return self if min(calls) < 0 else Latency(calls, self.total_s - before.total_s)
