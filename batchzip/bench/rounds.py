"""Rounds: contenders take turns, in a new random order each round.

Disturbances then affect all contenders alike. Ratios are reliable even if absolute times are not.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

BLOCK = 3
"""Rounds of `in_pieces` that make one value."""


def in_turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name) for each name in each round. Round 0 is a warm-up and must not count."""
    everybody = list(names)
    for turn in range(rounds + 1):
        for name in random.sample(everybody, len(everybody)):
            yield turn, name


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a callable that does the work and returns the seconds it took."""

    def call() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return call


def seconds(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each contender's call returned in each round."""
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
    """Return each contender's seconds per piece, as an array (rounds, pieces).

    A contender is called with the number of a piece. Contenders take turns in random order. With
    `apart`, each works on another piece, so that none benefits from the cache contents of the one
    before it. `begin` is called before each round and is not timed. The first round is a warm-up
    and is not counted. `clock` returns seconds.
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


def us_per_page(seconds: NDArray[np.float64], pages: int) -> list[float]:
    """Return the µs per page from the times of `in_pieces`: a value for each BLOCK rounds.

    Within a block, a piece counts with the median of its rounds. A disturbance of a piece in one
    round then changes nothing.
    """
    blocks = np.array_split(seconds, max(1, len(seconds) // BLOCK))
    return [float(np.median(block, axis=0).sum()) / pages * 1e6 for block in blocks]
