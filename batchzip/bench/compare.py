"""Find the figures that became slower or faster between two results.

Each figure is divided by its baseline in the same round (bare codec calls, or a dict of bytes).
This removes disturbances during the run, and much of the difference between machines. A figure is
slower if it is worse by more than 5 % and the quartiles of the two runs do not overlap. Faster is
defined in the same way. Two runs of the same code differ in few figures: repeat the measurement
before you trust a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.bench.figure import Figure, Result
    from batchzip.bench.spread import Spread

LEAST_CHANGE = 0.05
"""Relative change that two quiet runs of the same code do not exceed, beyond their quartiles."""

LEAST_ROUNDS = 3
"""Minimum rounds of a figure to be compared. Quartiles of fewer values are meaningless."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both results, each divided by its baseline, if there is one in both."""

    figure: Figure
    old: Spread
    new: Spread
    change: float
    """New ÷ old − 1, of the medians."""
    verdict: str
    """"slower", "faster" or "same"."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two results say together."""

    changes: list[Change]
    """The figures in both results, the worst first."""
    missing: list[Figure]
    """Figures of the old result that the new one lacks."""


def compare(old: Result, new: Result) -> Comparison:
    """Compare the figures of two results, without the baselines that both have.

    Raise BadArgument if no figure can be compared.
    """
    later = {one.key: one for one in new.figures}
    by_old, by_new = old.relative(), new.relative()
    changes, missing = [], []
    for before in old.figures:
        key = before.key
        after = later.get(key)
        if after is None:
            missing.append(before)
            continue
        both = key in by_old and key in by_new
        if before.median <= 0 or min(before.rounds, after.rounds) < LEAST_ROUNDS:
            continue
        if both and before.contender == old.baselines.get(str(before.labels.get("benchmark"))):
            continue
        was = by_old[key] if both else before.spread
        now = by_new[key] if both else after.spread
        change = now.median / was.median - 1
        verdict = "same"
        if change > LEAST_CHANGE and now.low > was.high:
            verdict = "slower"
        elif change < -LEAST_CHANGE and now.high < was.low:
            verdict = "faster"
        changes.append(Change(after, was, now, change, verdict))
    if not changes:
        raise BadArgument(
            "the two results have no figures in common: measure with the same options and at least "
            f"{LEAST_ROUNDS} rounds"
        )
    return Comparison(sorted(changes, key=lambda one: -one.change), missing)
