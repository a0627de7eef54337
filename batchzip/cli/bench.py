"""`batchzip bench`: batchzip beside what would be used instead, on the user's own pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchzip.bench.compress import compress
from batchzip.bench.inputs import file_pages, made_pages, process_pages, workload_pages
from batchzip.bench.peers import ALGORITHMS
from batchzip.bench.result import Result, compare, from_json, machine
from batchzip.bench.tables import change_table, compress_tables, swap_table
from batchzip.bench.working_set import FOLIO, working_set
from batchzip.cli.output import make_console, print_json, progress_bars
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from batchzip.buffers import Bytes

MOST_COMPARED = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    pid: int | None
    file: str | None
    made: str | None
    pages: int
    rounds: int
    algorithms: list[str] | None
    batches: list[int] | None
    compare: list[str] | None
    json: bool
    plot: str | None


def run(options: Options) -> int:
    """Measure or read, and report. Returns 1 where a comparison found something slower, else 0.

    Raises BatchzipError or OSError for what the user can put right.
    """
    compared = [from_json(Path(name)) for name in options.compare or []]
    if len(compared) > MOST_COMPARED:
        raise BadArgument("--compare takes one result, or two: OLD.json [NEW.json]")
    if options.plot is not None:
        from batchzip.cli.plot import check_plot  # noqa: PLC0415 - matplotlib is an extra, and slow

        check_plot(Path(options.plot))
    result = compared[1] if len(compared) == MOST_COMPARED else _measured(options)
    if options.plot is not None:
        from batchzip.bench.pictures import picture  # noqa: PLC0415 - as above

        picture(result, Path(options.plot))
    if options.json:
        print_json(result.document())
    console = make_console()
    if compared:
        return _tell_changes(compared[0], result, console, quiet=options.json)
    if not options.json:
        _tell(result, console)
    return 0


def _measured(options: Options) -> Result:
    batches = sorted(options.batches or [8, 64, 256])
    algorithms = options.algorithms or ["lz4", "zstd 1"]
    for name in algorithms:
        if name not in ALGORITHMS:
            raise BadArgument(f"--algorithm is one of {', '.join(ALGORITHMS)}, not {name!r}")
    source, pages = _pages(options)
    # Whole batches, of every size.
    pages = pages[: len(pages) - len(pages) % max(batches)]
    if not len(pages):
        raise BadArgument(
            f"{source} has too few pages that are not same-filled for a batch of {max(batches)}"
        )
    with progress_bars("situations", shown=not options.json) as bar:
        advance = bar("measuring", len(algorithms) * (len(batches) + 1))
        tell = _counting(advance)
        rows = compress(pages, algorithms, batches, options.rounds, tell=tell)
        rows += working_set(pages, algorithms, options.rounds, tell=tell)
    return Result(source, len(pages), options.rounds, rows, machine())


def _counting(advance: Callable[[int], None]) -> Callable[[str], None]:
    return lambda _: advance(1)


def _pages(options: Options) -> tuple[str, Bytes]:
    if options.pid is not None:
        return f"process {options.pid}", process_pages(options.pid, options.pages)
    if options.file is not None:
        return options.file, file_pages(options.file, options.pages)
    if options.made is not None:
        return f"made pages: {options.made}", made_pages(options.made, options.pages)
    return "a workload", workload_pages(options.pages)


def _tell(result: Result, console: Console) -> None:
    _tell_source(result, console)
    for table in compress_tables(result.rows):
        console.print(table)
    console.print(swap_table(result.rows))
    console.print(
        f"Folios of {FOLIO} pages are stored; medians of {result.rounds} rounds, contenders taking turns.",
        highlight=False,
    )


def _tell_source(result: Result, console: Console) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in result.machine["versions"].items())
    console.print(
        f"{result.source}: {result.pages:,} pages; {result.machine['platform']}, "
        f"{result.machine['cpus']} CPUs; {versions}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _tell_changes(old: Result, new: Result, console: Console, *, quiet: bool) -> int:
    changes = compare(old, new)
    certain = [change for change in changes if change.certain]
    slower = [change for change in certain if change.share > 0]
    if not quiet:
        if certain:
            console.print(change_table(certain))
        console.print(
            f"{len(changes)} figures compared: {len(slower)} slower, {len(certain) - len(slower)} "
            f"quicker, the others within their spread.",
            highlight=False,
        )
    return 1 if slower else 0
