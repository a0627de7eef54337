"""The judgement: the Pareto front of the options, and the recommendation.

An option is on the front unless another one is at least as good in memory saved, time per store and
time per load, and better in one of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.advice.option import Option

_NEAR = 0.02
"""Difference in saved memory (a fraction) that does not justify a slower algorithm. Among settings
this close to the best one, the fastest is recommended."""

_ALIKE = 1.1
"""Ratio of costs that is still noise. Among such settings, the simplest is recommended."""

_WORTH = 0.1
"""Fraction of memory that compression must save to be recommended."""


def with_front(options: Sequence[Option]) -> list[Option]:
    """Return the options, with those on the front marked."""
    costs = np.array([(-o.saved_share, o.store_us, o.load_us) for o in options])
    front = [not ((costs <= mine).all(axis=1) & (costs < mine).any(axis=1)).any() for mine in costs]
    return [replace(o, on_front=best) for o, best in zip(options, front, strict=True)]


def recommend(
    options: Sequence[Option], total: int, max_load_us: float
) -> tuple[Option | None, str]:
    """Return the recommended option, or None if compression does not pay, and a sentence."""
    most = max(options, key=lambda option: option.saved_share)
    if most.saved_share < _WORTH:
        return None, (
            f"Leave it uncompressed: {most.name} with pages of {most.page_size >> 10} KiB saves "
            f"the most of all settings, {most.saved_share:.1%}."
        )
    quick = [option for option in options if option.load_us <= max_load_us]
    if not quick:
        quickest = min(options, key=lambda option: option.load_us)
        return None, (
            f"Nothing loads a page within {max_load_us:g} µs here; the fastest, {quickest.name} "
            f"with pages of {quickest.page_size >> 10} KiB, takes {quickest.load_us:.1f} µs."
        )
    best = max(option.saved_share for option in quick)
    if best < _WORTH:
        return None, (
            f"Nothing that loads a page within {max_load_us:g} µs saves {_WORTH:.0%}; {most.name} "
            f"with pages of {most.page_size >> 10} KiB saves {most.saved_share:.1%} and takes "
            f"{most.load_us:.1f} µs."
        )
    # The option in `quick` that saves the most is on the front: one that beats it is quick, too.
    near = [option for option in quick if option.on_front and option.saved_share >= best - _NEAR]
    least = min(map(_cost, near))
    cheap = [option for option in near if _cost(option) <= least * _ALIKE]
    chosen = min(cheap, key=lambda o: (o.dictionary + (o.shuffle is not None), -o.saved_share))
    left = total - chosen.saved_bytes
    return chosen, (
        f"Use {chosen.name} with pages of {chosen.page_size >> 10} KiB: {size_text(total)} would "
        f"take {size_text(left)} of RAM ({chosen.saved_share:.0%} less), a page takes "
        f"{chosen.store_us:.1f} µs to store and {chosen.load_us:.1f} µs to load."
    )


def _cost(option: Option) -> float:
    """Return the time to store and load a byte, in microseconds."""
    return (option.store_us + option.load_us) / option.page_size
