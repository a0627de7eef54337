"""Spread: the median of several values, and their quartiles."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, and their quartiles."""

    median: float
    low: float
    high: float

    @property
    def percent(self) -> float:
        """Half the distance between the quartiles, in percent of the median."""
        return (self.high - self.low) / 2 / self.median * 100 if self.median else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of at least one value."""
    middle = statistics.median(values)
    if len(values) == 1:
        return Spread(middle, middle, middle)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, min(low, middle), max(high, middle))


def speed(base: Sequence[float], values: Sequence[float]) -> Spread:
    """Return the speed relative to `base`, computed round by round."""
    return spread([other / value for other, value in zip(base, values, strict=True)])
