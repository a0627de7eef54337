"""compare: find the figures that became slower or faster between two results.

Each figure is divided by its baseline in the same run (bare codec calls, or a dict of bytes). This
removes disturbances during the run, and much of the difference between machines. A figure is slower
if it is worse by more than 5 % and the quartiles of the two runs do not overlap. Faster is defined
in the same way. Two runs of the same code differ in few figures: repeat the measurement before you
trust a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.bench.figure import Figure, Result

LEAST_CHANGE = 0.05
"""Relative change that two quiet runs of the same code do not exceed, beyond their quartiles."""

LEAST_ROUNDS = 3
"""Minimum rounds of a figure to be compared. Quartiles of fewer values are meaningless."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both results. `change` is new ÷ old − 1, each divided by its baseline."""

    old: Figure
    new: Figure
    change: float
    verdict: str
    """"slower", "faster" or "same"."""


def compare(old: Result, new: Result) -> list[Change]:
    """Compare the figures that are in both results. Return the worst first.

    Baselines that both results have are left out. Raise BadArgument if no figure is in both.
    """
    earlier = {figure.key: figure for figure in old.figures}
    by_old, by_new = old.relative(), new.relative()
    changes = []
    for figure in new.figures:
        key = figure.key
        before = earlier.get(key)
        if before is None or before.median <= 0:
            continue
        if min(before.rounds, figure.rounds) < LEAST_ROUNDS:
            continue
        both = key in by_old and key in by_new
        if both and figure.contender == new.baselines.get(str(figure.labels.get("benchmark"))):
            continue
        scale_old, scale_new = (by_old[key], by_new[key]) if both else (1.0, 1.0)
        change = (figure.median / scale_new) / (before.median / scale_old) - 1
        verdict = "same"
        if change > LEAST_CHANGE and figure.low / scale_new > before.high / scale_old:
            verdict = "slower"
        elif change < -LEAST_CHANGE and figure.high / scale_new < before.low / scale_old:
            verdict = "faster"
        changes.append(Change(before, figure, change, verdict))
    if not changes:
        raise BadArgument(
            "the two results have no figures in common: measure with the same options and at least "
            f"{LEAST_ROUNDS} rounds"
        )
    return sorted(changes, key=lambda one: -one.change)
