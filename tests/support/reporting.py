"""The types of fixtures of conftest.py: how often a test repeats, and what it tells at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

Turns = Callable[[int], Iterator[int]]
"""Counts turns: at least so many, and in a stress test for as long as --stress-s says."""


class Report(Protocol):
    """Takes a line to show at the end of the run, and counts for the record of a campaign."""

    def __call__(self, line: str, **counts: int) -> None: ...
