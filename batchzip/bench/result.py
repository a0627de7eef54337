"""Result: figures with the machine and versions they are of, as a document; and two of them compared.

A row is one contender in one situation. What it is beside its figures is its key: rows of two results
with the same key can be compared. Its `spread` is what it varied by itself, so that a difference
smaller than the spreads of both is none.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import batchzip
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = 1

_PACKAGES = ("numpy", "lz4", "zstandard", "blosc2", "loky")

LEAST_CHANGE = 0.1
"""Share by which a figure must differ, and be beyond the spreads: on a machine that others use, too, less
comes and goes."""

_LOOPS = ("bare", "dict")
"""Contenders that have nothing of batchzip."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one situation."""

    benchmark: str
    """compress, or swap."""
    operation: str
    algorithm: str
    batch: int
    contender: str
    us: float
    """Median of the µs a page took."""
    low: float
    high: float
    """Its quartiles."""
    ratio: float | None = None
    """Uncompressed bytes ÷ what they became."""
    more: dict[str, float] = field(default_factory=dict)
    """Further figures, each with its unit in its name."""

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What it is that was measured."""
        return self.benchmark, self.operation, self.algorithm, self.batch, self.contender


@dataclass(frozen=True, slots=True)
class Result:
    """Everything one run measured."""

    source: str
    pages: int
    rounds: int
    rows: list[Row]
    machine: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Make a document of it, ready for JSON."""
        return {"format": _FORMAT, **asdict(self)}


def machine() -> dict[str, Any]:
    """Say what this was measured on."""
    versions = {"python": platform.python_version(), "batchzip": batchzip.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "versions": versions,
    }


def from_json(path: Path) -> Result:
    """Read a document. Raises BadArgument for what is none, OSError where it cannot be read."""
    try:
        found = json.loads(path.read_text())
        {_FORMAT: None}[found.pop("format")]
        rows = [Row(**row) for row in found.pop("rows")]
        return Result(rows=rows, **found)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadArgument(
            f"{path} is no result of `batchzip bench --json` of this version"
        ) from None


@dataclass(frozen=True, slots=True)
class Change:
    """How one figure differs between two results."""

    row: Row
    before: float
    """µs."""
    now: float
    share: float
    """now ÷ before − 1."""
    certain: bool
    """Whether it is more than both spreads explain, and worth telling."""


def compare(old: Result, new: Result) -> list[Change]:
    """Compare rows that both have, the worst first. Raises BadArgument where there is none.

    Each figure is first divided by the bare loop, or dict, that took turns with it: what made the machine
    slower as a whole is no change.
    """
    before = {row.key: row for row in old.rows}
    changes = []
    for row in new.rows:
        was = before.get(row.key)
        if was is None or row.contender in _LOOPS:
            continue
        scale = _scale(old, was) / _scale(new, row)
        share = row.us * scale / was.us - 1
        apart = row.low * scale > was.high or row.high * scale < was.low
        changes.append(Change(row, was.us, row.us, share, apart and abs(share) > LEAST_CHANGE))
    if not changes:
        raise BadArgument("the two results have nothing in common that could be compared")
    return sorted(changes, key=lambda change: -change.share)


def _scale(result: Result, row: Row) -> float:
    """Give what the machine's own speed is told by: the loop that shared the row's rounds."""
    for other in result.rows:
        if other.contender in _LOOPS and other.key[:4] == row.key[:4]:
            return other.us
    return 1.0
