"""Figure and Result: the figures of a run, with the machine, as one JSON document.

docs/reference/benchmark-results.md describes the document. For every figure, less is better: time
or bytes per page, never a throughput. So two results can be compared without knowing their
contents. Existing keys never change, but new ones may be added.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import batchzip
import batchzip.system.cpus
from batchzip.bench.spread import speed, spread
from batchzip.errors import BadArgument
from batchzip.system.cpus import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchzip.bench.spread import Spread

Labels: TypeAlias = dict[str, str | int]
Key: TypeAlias = tuple[tuple[tuple[str, str | int], ...], str, str]

FORMAT = 2
"""Version of the document. Other versions are rejected."""

_LIBRARIES = ("numpy", "zstandard", "lz4", "xxhash", "loky", "blosc2")

_OUTPUTS = ("--json", "--plot")
"""Options that name a file to write. They are no part of the command that is kept."""


@dataclass(frozen=True)
class Figure:
    """What was measured of one contender in one case: a value per round.

    `labels` describe the case ("benchmark": "compress", "algorithm": "lz4", "batch": 64, …).
    `quantity` names what was measured, with its unit. `ratio` is the bytes of the pages ÷ their
    compressed bytes with this contender. It shows if contenders compress to different sizes.
    `remark` is what a table shows beside the value.
    """

    labels: Labels
    contender: str
    quantity: str
    values: tuple[float, ...]
    ratio: float | None = None
    remark: str = ""

    @property
    def key(self) -> Key:
        """The identity of the figure: equal figures in two results have equal keys."""
        return tuple(sorted(self.labels.items())), self.contender, self.quantity

    @cached_property
    def spread(self) -> Spread:
        """The median of the rounds, and their quartiles."""
        return spread(self.values)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return self.spread.median

    @property
    def low(self) -> float:
        """The lower quartile of the rounds."""
        return self.spread.low

    @property
    def high(self) -> float:
        """The upper quartile of the rounds."""
        return self.spread.high

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.values)


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
    command: str = field(default_factory=lambda: _command(sys.argv))
    date: str = field(default_factory=lambda: _now())  # noqa: PLW0108 - defined below

    def note(self, text: str) -> None:
        """Add a remark unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def add(
        self,
        labels: Labels,
        contender: str,
        quantity: str,
        values: Sequence[float],
        ratio: float | None = None,
        remark: str = "",
    ) -> None:
        """Add the figure of a contender from its values, one per round and at least one.

        Six digits are kept, which is more than any measurement has.
        """
        kept = tuple(float(f"{value:.6g}") for value in values)
        self.figures.append(Figure(dict(labels), contender, quantity, kept, ratio, remark))

    def of(self, **labels: str | int) -> list[Figure]:
        """Return the figures with these labels."""
        wanted = labels.items()
        return [figure for figure in self.figures if wanted <= figure.labels.items()]

    def names(self, label: str, **labels: str | int) -> list[str | int]:
        """Return the different values of a label among the figures with `labels`, in order."""
        return list(
            dict.fromkeys(one.labels[label] for one in self.of(**labels) if label in one.labels)
        )

    def relative(self) -> dict[Key, Spread]:
        """Return each figure relative to its baseline, computed round by round.

        Figures without a baseline of as many rounds, none of them zero, are left out.
        """
        by_key = {one.key: one for one in self.figures}
        found = {}
        for key, one in by_key.items():
            labels, _, quantity = key
            name = self.baselines.get(str(one.labels.get("benchmark")), "")
            base = by_key.get((labels, name, quantity))
            if base is not None and all(base.values) and base.rounds == one.rounds:
                found[key] = speed(one.values, base.values)
        return found

    def as_document(self) -> dict[str, Any]:
        """Return the result as plain dicts for JSON."""
        return {
            "format": FORMAT,
            "command": self.command,
            "date": self.date,
            "machine": self.machine,
            "settings": self.settings,
            "baselines": self.baselines,
            "notes": self.notes,
            "figures": [
                {key: value for key, value in asdict(one).items() if value not in (None, "")}
                for one in self.figures
            ],
        }

    def as_text(self) -> str:
        """Return the document as JSON, with a line per figure."""
        document = self.as_document()
        figures = document.pop("figures")
        head = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) for one in figures]
        body = ",\n".join(f"  {line}" for line in lines)
        return head.removesuffix("\n}") + f',\n "figures": [\n{body}\n ]\n}}\n'

    def save(self, path: Path) -> None:
        """Write the result to a file as JSON."""
        path.write_text(self.as_text(), encoding="utf-8")


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result. Raise OSError, or BadArgument if the file is not a result."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return parse(json.loads(text))
    except ValueError as error:
        name = os.fspath(path)
        raise BadArgument(f"{name} is not a benchmark result that --json wrote: {error}") from None


def parse(document: object) -> Result:
    """Return the result of a document. Raise ValueError with the place of what is wrong."""
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - as for all other faults
    if (version := document.get("format")) != FORMAT:
        raise ValueError(f"its format is {version!r}, not {FORMAT}: measure again")
    machine = _field(document, "machine", dict)
    _field(machine, "cpus", int, "machine.")
    _field(machine, "versions", dict, "machine.")
    notes = _field(document, "notes", list)
    for at, note in enumerate(notes):
        _check(note, str, f"notes[{at}]")
    baselines = _field(document, "baselines", dict)
    for name, contender in baselines.items():
        _check(contender, str, f"baselines.{name}")
    figures = list(_figures(_field(document, "figures", list)))
    return Result(
        _field(document, "settings", dict),
        baselines,
        figures,
        notes,
        machine,
        _field(document, "command", str),
        _date(_field(document, "date", str)),
    )


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number"}


def _check(value: Any, kind: type, where: str) -> Any:
    """Return a value of the given kind. Raise ValueError for any other."""
    wanted = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ValueError(f"{where} is {value!r}, not {_KINDS[kind]}")  # noqa: TRY004 - one kind
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value!r}, not a finite number")
    return value


def _field(document: dict[str, Any], name: str, kind: type, where: str = "") -> Any:
    if name not in document:
        raise ValueError(f"{where}{name} is missing")
    return _check(document[name], kind, f"{where}{name}")


def _date(text: str) -> str:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"date is {text!r}, not a time such as 2026-01-31T12:00:00+00:00")
    return text


def _figures(documents: list[Any]) -> Iterator[Figure]:
    seen: dict[Key, int] = {}
    for at, one in enumerate(documents):
        where = f"figures[{at}]"
        _check(one, dict, where)
        labels = _field(one, "labels", dict, f"{where}.")
        for name, value in labels.items():
            _check(value, int if isinstance(value, int) else str, f"{where}.labels.{name}")
        values = _field(one, "values", list, f"{where}.")
        if not values:
            raise ValueError(f"{where}.values is empty: it has the value of each round")
        for number, value in enumerate(values):
            _check(value, float, f"{where}.values[{number}]")
        ratio = None if one.get("ratio") is None else _check(one["ratio"], float, f"{where}.ratio")
        found = Figure(
            labels,
            _field(one, "contender", str, f"{where}."),
            _field(one, "quantity", str, f"{where}."),
            tuple(map(float, values)),
            ratio,
            _check(one.get("remark", ""), str, f"{where}.remark"),
        )
        first = seen.setdefault(found.key, at)
        if first != at:
            raise ValueError(f"{where} has the labels, contender and quantity of figures[{first}]")
        yield found


def describe_machine() -> dict[str, Any]:
    """Return the platform, the processor, the number of CPUs, the load and versions."""
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
        "load": round(os.getloadavg()[0], 2),
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


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _command(argv: Sequence[str]) -> str:
    """Return the command that measures this again, without the files that it writes."""
    script = Path(argv[0]).resolve()
    of_benchmarks = script.parent.name == "benchmarks"
    words = ["python", f"examples/benchmarks/{script.name}"] if of_benchmarks else ["batchzip"]
    before = ""
    for word in argv[1:]:
        file_name = before in _OUTPUTS and not word.startswith("-")
        if not file_name and word.partition("=")[0] not in _OUTPUTS:
            words.append(word)
        before = word
    return shlex.join(words)
