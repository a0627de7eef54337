"""Rounds: contenders take turns, so that what disturbs a machine disturbs all of them alike.

    round 0 warms up │ round 1: b c a │ round 2: c a b │ …     ─▶ median and quartiles of each

Rejected: one contender after the other, each for its time. A neighbour on the same machine then makes one
of them slow by half, and nothing in the figures tells.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SEED = 20240601


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one contender's rounds."""

    median: float
    low: float
    """A quarter of the rounds took less."""
    high: float
    """A quarter of the rounds took more."""


def timing(seconds: list[float]) -> Timing:
    """Make the median and quartiles of rounds."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0])
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Call each contender once a round, in a new order each time; seconds a call."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    shuffled = random.Random(_SEED)  # noqa: S311 - an order, no secret
    for turn in range(rounds + 1):
        for name in shuffled.sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            contenders[name]()
            if turn:  # the first round only warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: timing(found) for name, found in seconds.items()}
