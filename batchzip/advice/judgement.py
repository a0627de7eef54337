"""The judgement: which options are on the Pareto front, and which one is recommended.

An option is on the front where no other is at least as good in memory saved, time of a store and
time of a load, and better in one of them.
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
"""Share of memory that is not worth a slower algorithm: of settings so near to the best one, the
quickest is recommended."""

_ALIKE = 1.1
"""Costs within so much of each other are noise: the simpler setting is recommended then."""

_WORTH = 0.1
"""Share of memory that has to be saved for compression to be recommended at all."""


def with_front(options: Sequence[Option]) -> list[Option]:
    """Mark those on the front."""
    costs = np.array([(-o.saved_share, o.store_us, o.load_us) for o in options])
    front = [not ((costs <= mine).all(axis=1) & (costs < mine).any(axis=1)).any() for mine in costs]
    return [replace(o, on_front=best) for o, best in zip(options, front, strict=True)]


def recommend(
    options: Sequence[Option], total: int, max_load_us: float
) -> tuple[Option | None, str]:
    """Choose the one to use, if any is worth it, and say it in a sentence."""
    most = max(options, key=lambda option: option.saved_share)
    if most.saved_share < _WORTH:
        return None, (
            f"Leave it uncompressed: {most.name} with pages of {most.page_size >> 10} KiB, the most "
            f"of what was tried, would save {most.saved_share:.1%}."
        )
    quick = [option for option in options if option.load_us <= max_load_us]
    if not quick:
        quickest = min(options, key=lambda option: option.load_us)
        return None, (
            f"Nothing loads a page within {max_load_us:g} µs here; the quickest, {quickest.name} "
            f"with pages of {quickest.page_size >> 10} KiB, takes {quickest.load_us:.1f} µs."
        )
    best = max(option.saved_share for option in quick)
    if best < _WORTH:
        return None, (
            f"Nothing that loads a page within {max_load_us:g} µs saves {_WORTH:.0%}; {most.name} "
            f"with pages of {most.page_size >> 10} KiB saves {most.saved_share:.1%} and takes "
            f"{most.load_us:.1f} µs."
        )
    # One that saves the most of the quick ones is on the front: what is as good in all is quick, too.
    near = [option for option in quick if option.on_front and option.saved_share >= best - _NEAR]
    least = min(map(_cost, near))
    cheap = [option for option in near if _cost(option) <= least * _ALIKE]
    chosen = min(cheap, key=lambda o: (o.dictionary + (o.shuffle is not None), -o.saved_share))
    left = total - chosen.saved_bytes
    return chosen, (
        f"Use {chosen.name} with pages of {chosen.page_size >> 10} KiB: {size_text(total)} would take "
        f"{size_text(left)} of RAM ({chosen.saved_share:.0%} less), a page takes {chosen.store_us:.1f} µs "
        f"to store and {chosen.load_us:.1f} µs to load."
    )


def _cost(option: Option) -> float:
    """Time to store and load a byte."""
    return (option.store_us + option.load_us) / option.page_size
