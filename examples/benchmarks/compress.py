"""Compare the µs per page of batchzip with bare codec calls, its limit and its peers.

    python examples/benchmarks/compress.py [--rounds 15] [--pages 8192]
                                           [--batches 1,8,64,256,1024] [--algorithms lz4,zstd:1]
                                           [--lanes N] [--json FILE]
                                           [--pid N | --file PATH | --workload KIND]

The pages are those of a real process (Python objects, parsed source, JSON text, NumPy arrays) or
your own. They are shuffled, and same-filled ones are left out. In a round, every contender
processes all pages, one batch at a time. Contenders take turns in a new random order each round, so
that no batch is in a cache because another contender has just used it.

bare             a loop of calls of lz4.block or zstandard, on one core
limit            such loops in as many processes as there are lanes, all at once
sequential, threads, workers
                 the engine with that backend. A lane is the caller or one of its workers. One
                 descriptor is refilled for each batch, and pages are restored to the same memory.
arena            workers, with pages, sources and destinations in the engine's arena
threads anew     threads (or workers, if there is no such backend) with a new descriptor for each
                 batch, which allocates its pages on decompress (`pages=None`)
thread pool, zstandard multi, blosc2
                 peers with as many threads as there are lanes: see batchzip/bench/peers.py

`÷ bare`, `÷ limit` and `÷ best` are the speeds relative to these. `best` is batchzip's fastest. A
ratio is the median of the ratios of the rounds. ± is half the distance between the quartiles. A
goal is `met` if the median reaches it, and `spread` if only the better quartile does. The goals of
engines are for compressing with two lanes. From batches of two pages on, no peer may be faster than
batchzip's best.

The last tables show the extra time of a batch of two pages if lanes are awake and if they sleep
(see batchzip/bench/lanes.py), and the CPU time of idle engines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goals import Cell, Outcome

import batchzip
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.compressors import Anew, Bare, InArena, Load, OfEngine, ThreadPoolLoop
from batchzip.bench.figure import default_lanes, describe_machine
from batchzip.bench.lanes import HandOver, hand_over, idle
from batchzip.bench.limit import Limit
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.peers import CHUNK_PAGES, Blosc2, MultiZstd, available
from batchzip.bench.rounds import seconds, spread, timed
from batchzip.bench.table import spread_percent
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.bench.compressors import Compressor
    from batchzip.bench.pages import Pages

OPERATIONS = ("compress", "decompress")


def contenders(load: Load, note: Callable[[str], object]) -> Iterator[Compressor]:
    """Yield all contenders available for an algorithm, without the limit."""
    backends = [name for name in ("threads", "workers") if name in batchzip.backends()]
    makers: list[Callable[[], Compressor]] = [
        partial(Bare, load),
        partial(OfEngine, load, "sequential"),
        *(partial(OfEngine, load, name) for name in backends),
        partial(InArena, load),
        *(partial(Anew, load, name) for name in backends[:1]),
        partial(ThreadPoolLoop, load),
        *([partial(MultiZstd, load)] if load.algorithm.name == "zstd" else []),
        partial(Blosc2, load, CHUNK_PAGES),
        partial(Blosc2, load, 1),
    ]
    return available(makers, note)


class Bench:
    """The contenders of one algorithm."""

    def __init__(self, load: Load, note: Callable[[str], object]) -> None:
        self.load = load
        with contextlib.ExitStack() as stack:
            self.limit = stack.enter_context(Limit(load))
            self.everybody = [stack.enter_context(one) for one in contenders(load, note)]
            self._stack = stack.pop_all()

    @property
    def own(self) -> list[OfEngine]:
        """The contenders of batchzip."""
        return [one for one in self.everybody if isinstance(one, OfEngine)]

    def cell(self, operation: str, size: int, rounds: int) -> Cell:
        """Measure all contenders at one batch size."""
        count = len(self.load.pages)
        work = {
            one.name: timed(
                one.compressing(size) if operation == "compress" else one.restoring(size)
            )
            for one in self.everybody
        }
        limit = partial(self.limit.seconds, operation, count)
        work = {"bare": work.pop("bare"), "limit": limit, **work}
        us = {
            name: [value / count * 1e6 for value in values]
            for name, values in seconds(work, rounds).items()
        }
        own = [one.name for one in self.own]
        return Cell(self.load.algorithm.label, operation, size, own, us)

    def engines(self) -> dict[str, batchzip.Engine]:
        """Return one engine per backend."""
        return {one.name: one.engine for one in self.own if type(one) is OfEngine}

    def close(self) -> None:
        """Close all contenders."""
        self._stack.close()


class Report:
    """The results, which are written as JSON at the end."""

    def __init__(self, options: argparse.Namespace, pages: Pages) -> None:
        self.settings: dict[str, Any] = {
            "source": source_of(options).name,
            "pages": len(pages),
            "rounds": options.rounds,
            "lanes": options.lanes,
            "load": round(os.getloadavg()[0], 2),
            "arguments": sys.argv[1:],
        }
        self.machine = describe_machine()
        self.cells: list[Cell] = []
        self.hand_over: dict[str, dict[str, HandOver]] = {}
        self.idle: dict[str, float] = {}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Add a remark unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def save(self, path: Path) -> None:
        """Write all results, with the values of each round."""
        document = {
            "machine": self.machine,
            "settings": self.settings,
            "notes": self.notes,
            "cells": [asdict(cell) for cell in self.cells],
            "hand_over": {
                algorithm: {name: asdict(one) for name, one in by_name.items()}
                for algorithm, by_name in self.hand_over.items()
            },
            "idle": self.idle,
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def cells_table(cells: list[Cell]) -> Table:
    """Return the table of one algorithm and operation, with a section per batch size."""
    table = Table(
        f"{cells[0].algorithm}, {cells[0].operation}: µs per page of 4 KiB",
    )
    for heading in ("batch", "", "µs", "±%", "÷ bare", "÷ limit", "÷ best"):
        table.add_column(heading, left=not heading)
    for heading in ("goal", "", ""):
        table.add_column(heading, left=True)
    for cell in cells:
        for number, (name, us) in enumerate(cell.us.items()):
            found, verdict = spread(us), cell.verdict(name)
            ratios = [f"{cell.speed(name, base).median:.2f}" for base in ("bare", "limit")]
            judged = ("", "", "")
            if verdict is not None:
                ratio = f"{verdict.ratio.median:.3f} ±{spread_percent(verdict.ratio):.0f}%"
                judged = (verdict.goal, ratio, verdict.outcome)
            table.add_row(
                "" if number else str(cell.batch),
                f"{name} *" if name == cell.best else name,
                f"{found.median:.2f}",
                f"{spread_percent(found):.0f}",
                *ratios,
                f"{cell.speed(name, cell.best).median:.2f}",
                *judged,
            )
        table.add_section()
    return table


def summary(cells: list[Cell]) -> Iterator[str]:
    """Yield lines that count the outcomes and name the missed goals and the peers ahead."""
    verdicts = [
        (cell, name, verdict)
        for cell in cells
        for name in cell.us
        if (verdict := cell.verdict(name)) is not None
    ]
    counts = Counter(verdict.outcome for *_, verdict in verdicts)
    yield (
        f"{len(verdicts)} goals: {counts[Outcome.MET]} met, "
        f"{counts[Outcome.SPREAD]} within the spread, {counts[Outcome.MISSED]} missed"
    )
    for cell, name, verdict in verdicts:
        if verdict.outcome is Outcome.MISSED:
            what = f"{cell.algorithm} {cell.operation} {cell.batch}"
            if name in cell.peers:
                yield f"ahead: {what}: {name} {verdict.ratio.median:.2f} × {cell.best}"
            else:
                yield f"missed: {what}: {name} {verdict.goal}: {verdict.ratio.median:.3f}"


def hand_over_table(found: dict[str, dict[str, HandOver]]) -> Table:
    """Return the table of batches of two pages."""
    table = Table(
        "a batch of two pages: µs until the caller has it, and more than sequential",
    )
    for heading in ("", "", "awake", "more", "by lanes", "asleep", "more", "by lanes"):
        table.add_column(heading, left=not heading)
    for algorithm, by_name in found.items():
        for name, one in by_name.items():
            cells = []
            for state, values in one.seconds.items():
                base = statistics.median(by_name["sequential"].seconds[state])
                value = statistics.median(values)
                more = f"{(value - base) * 1e6:+.2f}" if name != "sequential" else ""
                cells += [f"{value * 1e6:.2f}", more, f"{one.share(state):.0%}"]
            table.add_row(algorithm, name, *cells)
    return table


def measure(options: argparse.Namespace, pages: Pages, report: Report) -> None:
    """Measure all algorithms and print each table as soon as it is complete."""
    out = make_console()
    sizes = [int(size) for size in options.batches.split(",")]
    if max(sizes) > len(pages):
        report.note(f"batches of more than {len(pages)} pages: there are no more pages")
    for algorithm in parse_algorithms(options.algorithms):
        load = Load(algorithm, pages, options.lanes)
        with contextlib.closing(Bench(load, report.note)) as bench:
            for operation in OPERATIONS:
                cells = [
                    bench.cell(operation, size, options.rounds)
                    for size in sizes
                    if size <= len(pages)
                ]
                out.print(cells_table(cells))
                report.cells += cells
            report.hand_over[algorithm.label] = hand_over(bench.engines(), pages, options.rounds)
            if not report.idle:
                duration_s = 1.0 if options.rounds == 1 else 5.0
                report.idle = {
                    "engines": len(bench.own),
                    "seconds": duration_s,
                    **idle([one.engine for one in bench.own], duration_s),
                }
    out.print(hand_over_table(report.hand_over))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument(
        "--batches", default="1,8,64,256,1024", help="pages of a batch, with commas"
    )
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument(
        "--lanes", type=int, default=default_lanes(), help="the caller included (%(default)s)"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.lanes < 2:
        parser.error("--lanes: the caller and at least one more")
    pages = work_pages(source_of(options), options.pages)
    report = Report(options, pages)
    machine = report.machine
    print(f"{machine['platform']}, {machine['processor']}, {machine['cpus']} CPUs")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(", ".join(f"{name} {value}" for name, value in report.settings.items()), flush=True)
    measure(options, pages, report)
    spent = report.idle
    print(
        f"{spent['engines']:.0f} idle engines, {spent['seconds']:.0f} s: "
        f"{spent['owner'] * 1e3:.2f} ms of CPU in the owner, "
        f"{spent['workers'] * 1e3:.2f} in workers"
    )
    for line in summary(report.cells):
        print(line)
    for text in report.notes:
        print(f"missing: {text}")
    if options.json:
        report.save(options.json)


if __name__ == "__main__":
    main()
