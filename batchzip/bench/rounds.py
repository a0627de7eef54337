"""Rounds: contenders take turns, in an order drawn anew each round.

What else the machine does then hits all of them alike: ratios mean something where absolute times do not.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING

from batchzip.bench.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from batchzip.bench.figure import Labels


def in_turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name) for each name in each round; round 0 warms up and is not to count."""
    everybody = list(names)
    for turn in range(rounds + 1):
        for name in random.sample(everybody, len(everybody)):
            yield turn, name


def seconds(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Give the seconds of each contender's call in each round."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn, name in in_turns(contenders, rounds):
        started = time.perf_counter()
        contenders[name]()
        if turn:
            spent[name].append(time.perf_counter() - started)
    return spent


def figure(
    labels: Labels,
    contender: str,
    quantity: str,
    values: Sequence[float],
    ratio: float | None = None,
) -> Figure:
    """Make the figure of one contender from its values in the rounds, at least one."""
    middle = statistics.median(values)
    low = high = middle
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(
        labels,
        contender,
        quantity,
        middle,
        min(low, middle),
        max(high, middle),
        len(values),
        ratio,
    )
