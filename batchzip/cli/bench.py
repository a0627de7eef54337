"""`batchzip bench`: batchzip beside its alternatives, on any pages."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batchzip.bench import compress, plot, swap
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.compare import compare
from batchzip.bench.figure import Result, load
from batchzip.bench.pages import Source, for_codecs
from batchzip.bench.style import require_matplotlib
from batchzip.bench.table import print_changes, print_result
from batchzip.bench.zram import end_orderly
from batchzip.errors import BadArgument
from batchzip.terminal.console import progress_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.bench.compare import Comparison

SLOWER = 1
"""Exit code of a comparison in which a figure became slower."""

INCOMPLETE = 3
"""Exit code of a comparison in which figures of the old result are missing from the new one."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; `batches` in pages."""

    pid: int | None
    file: str | None
    workload: str
    algorithms: str
    batches: list[int]
    pages: int
    rounds: int
    zram: bool
    json: str | None
    """A file, or "-" for stdout."""
    plot: str | None
    compare: list[str] | None


def run(options: Options) -> int:
    """Measure or read results, and show them. Return 0, SLOWER or INCOMPLETE.

    Raise BatchzipError or OSError for errors that the user can correct.
    """
    if options.zram:
        end_orderly()
    given = [load(path) for path in options.compare or []]
    old = given[0] if given else None
    picture = _new_file(options.plot)
    if picture is not None:
        require_matplotlib()
    kept = None if options.json == "-" else _new_file(options.json)
    measured = len(given) < 2
    result = _measured(options) if measured else given[1]
    if kept is not None:
        result.save(kept)
    compared = compare(old, result) if old is not None else None
    if picture is not None:
        plot.plot_compress(result, picture)
        plot.plot_swap(result, picture.with_stem(f"{picture.stem}-swap"))
    if options.json == "-":
        sys.stdout.write(result.as_text())
        sys.stdout.flush()
    elif measured:
        print_result(result)
    return 0 if compared is None else _judged(compared, shown=options.json != "-")


def _judged(compared: Comparison, *, shown: bool) -> int:
    """Show a comparison, and return its exit code."""
    if shown:
        print_changes(compared)
    if compared.missing:
        return INCOMPLETE
    return SLOWER if any(change.verdict == "slower" for change in compared.changes) else 0


def _new_file(name: str | None) -> Path | None:
    """Return the path of a file to write, and check it before a minute is spent on measuring."""
    if name is None:
        return None
    path = Path(name)
    if not path.parent.is_dir():
        raise BadArgument(f"{path} cannot be written: there is no directory {path.parent}")
    return path


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Keep processes that loky starts from importing from the current directory."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _measured(options: Options) -> Result:
    algorithms = parse_algorithms(options.algorithms)
    source = Source(options.workload, options.pid, options.file)
    pages = source.take(options.pages)
    work = for_codecs(pages)
    result = Result(
        {
            "source": source.name,
            "pages": len(pages),
            "batches": options.batches,
            "rounds": options.rounds,
            "algorithms": options.algorithms,
        },
        {"compress": compress.BASELINE, "swap": swap.BASELINE},
    )
    steps = len(algorithms) * (2 * len(options.batches) + 1)
    with _safe_path(), progress_bars("steps", shown=options.json != "-") as bar:
        advance = partial(bar("measuring", steps), 1)
        zram = options.zram
        compress.compress(
            result, work, algorithms, options.batches, options.rounds, zram=zram, advance=advance
        )
        swap.swap(result, pages, algorithms, options.rounds, zram=zram, advance=advance)
    return result
