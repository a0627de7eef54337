"""compare: what got slower between two results, spread taken into account.

A figure is divided by its baseline of the same run (bare codec calls; a dict of bytes): what the machine did
in those minutes, and a good part of what machine it is, drops out. It got slower if it is worse by more
than 5 % and the quartiles of the two runs do not overlap, quicker likewise. Of two runs of the
same code few figures are either; look again before believing a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.bench.figure import Figure, Result

LEAST_CHANGE = 0.05
"""What two quiet runs of the same code differ by at most, beyond their quartiles."""

LEAST_ROUNDS = 3
"""Fewer values have no quartiles worth the name; such figures are not compared."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both results. `change` is new ÷ old − 1, each in terms of its baseline."""

    old: Figure
    new: Figure
    change: float
    verdict: str
    """"slower", "quicker" or "same"."""


def compare(old: Result, new: Result) -> list[Change]:
    """Compare what is in both results, the worst first. Raises BadArgument if nothing is.

    Baselines themselves are left out, if both results have them.
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
            verdict = "quicker"
        changes.append(Change(before, figure, change, verdict))
    if not changes:
        raise BadArgument(
            "the two results have no figure in common: measure with equal options, and at least "
            f"{LEAST_ROUNDS} rounds"
        )
    return sorted(changes, key=lambda one: -one.change)
