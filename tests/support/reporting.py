"""The types of fixtures of conftest.py: how often a test repeats, and what it tells at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

Turns = Callable[[int], Iterator[int]]
"""Yields turn numbers. Takes their minimum; a stress test gets more until --stress-s is over."""


class Report(Protocol):
    """Takes a line to show at the end of the run, and counts for the record of a campaign."""

    def __call__(self, line: str, **counts: int) -> None: ...
