"""Goals of compress.py: minimum speeds relative to contenders measured in the same rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from batchzip.bench.spread import speed

if TYPE_CHECKING:
    from batchzip.bench.spread import Spread

_SEQUENTIAL = {1: 0.85, 8: 0.97, 64: 1.02, 256: 1.02}
_THREADS_LZ4 = {8: 0.90, 64: 0.97, 256: 0.98}
_THREADS_ZSTD = {8: 0.95, 64: 0.98, 256: 0.99}

GOALS: dict[tuple[str, str], tuple[str, dict[int, float]]] = {
    ("lz4", "sequential"): ("bare", _SEQUENTIAL),
    ("zstd 1", "sequential"): ("bare", _SEQUENTIAL),
    ("lz4", "threads"): ("limit", _THREADS_LZ4),
    ("zstd 1", "threads"): ("limit", _THREADS_ZSTD),
    ("lz4", "workers"): ("limit", {8: 0.78, 64: 0.90, 256: 0.92}),
    ("zstd 1", "workers"): ("limit", {8: 0.92, 64: 0.97, 256: 0.98}),
    ("lz4", "workers, arena"): ("limit", _THREADS_LZ4),
    ("zstd 1", "workers, arena"): ("limit", _THREADS_ZSTD),
}
"""For compressing, by algorithm and contender: the base, and the minimum ratio per batch size."""

RESTORING = (64, 256, 1024)
"""Batch sizes at which threads must restore at least as fast as the best of RIVALS."""
RIVALS = ("blosc2 1 MiB", "zstandard multi", "thread pool")

PEERS_FROM = 2
"""Smallest batch size at which no peer may be faster."""


class Outcome(StrEnum):
    """The outcome of a goal."""

    MET = "met"
    SPREAD = "spread"
    """Missed by the median, but reached within the quartiles."""
    MISSED = "MISSED"


@dataclass(frozen=True)
class Verdict:
    """The speed of a contender relative to a base, what is wanted, and the outcome."""

    base: str
    wanted: str
    ratio: Spread
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.ratio.median:.2f} {self.wanted} {self.outcome}"


@dataclass
class Cell:
    """All contenders of one algorithm, operation and batch size."""

    algorithm: str
    operation: str
    batch: int
    own: list[str]
    """Names of batchzip's contenders."""
    us: dict[str, list[float]]
    """µs per page in each round."""

    @property
    def best(self) -> str:
        """The name of the fastest of batchzip's contenders."""
        return min(self.own, key=lambda name: statistics.median(self.us[name]))

    @property
    def peers(self) -> list[str]:
        """The names of contenders that are neither batchzip nor a base."""
        return [name for name in self.us if name not in {"bare", "limit", *self.own}]

    def speed(self, name: str, base: str) -> Spread:
        """Return the speed of a contender relative to `base`."""
        return speed(self.us[base], self.us[name])

    def verdict(self, name: str) -> Verdict | None:
        """Return the outcome of a contender's goal, or None if it has no goal."""
        if name in self.peers:
            if self.batch < PEERS_FROM:
                return None
            found = self.speed(name, self.best)
            return Verdict(self.best, "≤ 1", found, _outcome(1 - found.median, 1 - found.low))
        if self.operation == "compress":
            base, least_by_batch = GOALS.get((self.algorithm, name), ("", {}))
            if self.batch not in least_by_batch:
                return None
        else:
            rivals = [rival for rival in RIVALS if rival in self.us]
            if name != "threads" or self.batch not in RESTORING or not rivals:
                return None
            base = min(rivals, key=lambda rival: statistics.median(self.us[rival]))
            least_by_batch = {self.batch: 1.0}
        least, found = least_by_batch[self.batch], self.speed(name, base)
        outcome = _outcome(found.median - least, found.high - least)
        return Verdict(base, f"≥ {least:g}", found, outcome)


def _outcome(beyond: float, at_best: float) -> Outcome:
    """Return the outcome from the margins of the median and of the better quartile."""
    if beyond >= 0:
        return Outcome.MET
    return Outcome.SPREAD if at_best >= 0 else Outcome.MISSED
