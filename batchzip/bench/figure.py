"""Figure and Result: the figures of a run, with the machine, as one JSON document.

For every figure, less is better: time or bytes per page, never a throughput. So two results can be
compared without knowing their contents. Existing keys never change, but new ones may be added.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import batchzip
import batchzip.system.cpus
from batchzip.errors import BadArgument
from batchzip.system.cpus import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterable

Labels: TypeAlias = dict[str, str | int]
Key: TypeAlias = tuple[tuple[tuple[str, str | int], ...], str, str]

_FORMAT = 1
"""Version of the document. Other versions are rejected."""

_LIBRARIES = ("numpy", "zstandard", "lz4", "xxhash", "loky", "blosc2")


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of several rounds, with the quartiles `low` and `high` as its spread.

    `labels` describe the case ("benchmark": "compress", "algorithm": "lz4", "batch": 64, …).
    `quantity` names what was measured, with its unit. `ratio` is the bytes of the pages ÷ their
    compressed bytes with this contender. It shows if contenders compress to different sizes.
    """

    labels: Labels
    contender: str
    quantity: str
    median: float
    low: float
    high: float
    rounds: int
    ratio: float | None = None

    @property
    def key(self) -> Key:
        """The identity of the figure: equal figures in two results have equal keys."""
        return tuple(sorted(self.labels.items())), self.contender, self.quantity


@dataclass(slots=True)
class Result:
    """The figures of one run.

    `settings` are the options of the run. `notes` say what is missing, and why. `baselines` maps a
    benchmark to the contender by which its figures are divided, so that they can be compared with
    those of another machine or another time.
    """

    settings: dict[str, Any]
    baselines: dict[str, str]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(
        default_factory=lambda: describe_machine()  # noqa: PLW0108 - defined below
    )

    def note(self, text: str) -> None:
        """Add a remark unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def of(self, **labels: str | int) -> list[Figure]:
        """Return the figures with these labels."""
        wanted = labels.items()
        return [figure for figure in self.figures if wanted <= figure.labels.items()]

    def relative(self) -> dict[Key, float]:
        """Return the median of each figure's baseline. Figures without a baseline are left out."""
        by_key = {figure.key: figure for figure in self.figures}
        found = {}
        for labels, contender, quantity in by_key:
            baseline = self.baselines.get(str(dict(labels).get("benchmark")))
            other = by_key.get((labels, baseline or "", quantity))
            if other is not None and other.median > 0:
                found[labels, contender, quantity] = other.median
        return found

    def as_document(self) -> dict[str, Any]:
        """Return the result as plain dicts for JSON."""
        return {
            "format": _FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "baselines": self.baselines,
            "notes": self.notes,
            "figures": [asdict(figure) for figure in self.figures],
        }

    def save(self, path: Path) -> None:
        """Write the result to a file as JSON."""
        path.write_text(json.dumps(self.as_document(), indent=1) + "\n", encoding="utf-8")


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result. Raise OSError, or BadArgument if the file is not a result."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise BadArgument(
                f"{os.fspath(path)} has format {document['format']!r}, not {_FORMAT}: measure again"
            )
        return Result(
            dict(document["settings"]),
            dict(document["baselines"]),
            list(_figures(document["figures"])),
            list(document["notes"]),
            dict(document["machine"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadArgument):
            raise
        raise BadArgument(
            f"{os.fspath(path)} is not a benchmark result: name a file that --json wrote"
        ) from None


def _figures(documents: Iterable[dict[str, Any]]) -> Iterable[Figure]:
    for document in documents:
        figure = Figure(**document)
        if not figure.low <= figure.median <= figure.high:
            raise ValueError(figure)
        yield figure


def describe_machine() -> dict[str, Any]:
    """Return the platform, the processor, the number of CPUs and the versions of libraries."""
    versions = {"batchzip": batchzip.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": usable_cpus(),
        "machine_cpus": os.cpu_count(),
        "versions": versions,
    }


def default_lanes() -> int:
    """Return the number of lanes of a default engine: the caller and the default workers."""
    return 1 + batchzip.system.cpus.default_lanes()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
