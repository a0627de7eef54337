"""Rounds: contenders take turns, in an order drawn anew each round.

What else the machine does then hits all of them alike: ratios mean something where absolute times do not.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchzip.bench.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from batchzip.bench.figure import Labels


def in_turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name) for each name in each round; round 0 warms up and is not to count."""
    everybody = list(names)
    for turn in range(rounds + 1):
        for name in random.sample(everybody, len(everybody)):
            yield turn, name


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Make a callable that does the work and returns the seconds it took."""

    def call() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return call


def seconds(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Give the seconds that each contender's call returns in each round."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn, name in in_turns(contenders, rounds):
        value = contenders[name]()
        if turn:
            spent[name].append(value)
    return spent


def in_pieces(
    contenders: Mapping[str, Callable[[int], object]],
    pieces: int,
    rounds: int,
    begin: Callable[[], object] = lambda: None,
    *,
    apart: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Give the seconds of each contender's call with each of `pieces` numbers, by round and piece.

    Contenders take turns at each piece, in random order. With `apart` each is at another piece: none
    finds what the one before it has brought to the cache. `begin` is called before each round, off the
    clock; a round that is not counted comes first. `clock` gives seconds.
    """
    names = list(contenders)
    spent = {name: np.zeros((rounds, pieces)) for name in names}
    for turn in range(rounds + 1):
        begin()
        for step in range(pieces):
            for place in random.sample(range(len(names)), len(names)):
                name = names[place]
                piece = (step + apart * place * pieces // len(names)) % pieces
                call = contenders[name]
                started = clock()
                call(piece)
                taken = clock() - started
                if turn:
                    spent[name][turn - 1, piece] = taken
    return spent


def of_pages(seconds: NDArray[np.float64], pages: int) -> float:
    """Give the µs per page of what `in_pieces` found: each piece by its median over the rounds."""
    return float(np.median(seconds, axis=0).sum()) / pages * 1e6


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds between their quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Give median and quartiles of at least one value."""
    middle = statistics.median(values)
    if len(values) == 1:
        return Spread(middle, middle, middle)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, min(low, middle), max(high, middle))


def speed(base: Sequence[float], values: Sequence[float]) -> Spread:
    """How many times as fast as `base` something is, each round on its own."""
    return spread([other / value for other, value in zip(base, values, strict=True)])


def figure(
    labels: Labels,
    contender: str,
    quantity: str,
    values: Sequence[float],
    ratio: float | None = None,
) -> Figure:
    """Make the figure of one contender from its values in the rounds, at least one."""
    found = spread(values)
    return Figure(
        labels, contender, quantity, found.median, found.low, found.high, len(values), ratio
    )
