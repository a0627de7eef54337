"""Compare the µs per page of batchzip with bare codec calls, its limit and its peers.

    python examples/benchmarks/compress.py [--rounds 15] [--pages 8192]
                                           [--batches 1,8,64,256,1024] [--algorithms lz4,zstd:1]
                                           [--pid N | --file PATH | --compile ARGS |
                                            --workload KIND]
                                           [--lanes N] [--json FILE | --show FILE]

The pages are those of a real process (Python objects, parsed source, JSON text, NumPy arrays) or
your own. They are shuffled, and same-filled ones are left out. In a round, every contender
processes all pages, one batch at a time. Contenders take turns in a new random order each round, so
that no batch is in a cache because another contender has just used it.

bare             a loop of calls of lz4.block or zstandard, on one core
limit            such loops in as many processes as there are lanes, all at once
sequential, threads, workers
                 the engine with that backend. A lane is the caller or one of its workers. One
                 descriptor is refilled for each batch, and pages are restored to the same memory.
workers, arena   workers, with pages, sources and destinations in the engine's arena
…, new descriptors
                 threads (or workers, if there is no such backend) with a new descriptor for each
                 batch, which allocates its pages on decompress (`pages=None`)
thread pool, zstandard multi, blosc2
                 peers with as many threads as there are lanes: see batchzip/bench/peers.py

The second table has the speeds of engines relative to `bare` and to the limit, the third those of
peers relative to batchzip's fastest. A ratio is the median of the ratios of the rounds. ± is half
the distance between the quartiles. A goal is `met` if the median reaches it, and `spread` if only
the better quartile does. The goals of engines are for compressing with two lanes. From batches of
two pages on, no peer may be faster than batchzip's best.

The last tables show the extra time of a batch of two pages if lanes are awake and if they sleep
(see batchzip/bench/lanes.py), and the CPU time of idle engines.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from goals import Cell, Outcome

import batchzip
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.compress import BASELINE, QUANTITY
from batchzip.bench.compressors import Bare, InArena, Load, NewDescriptors, OfEngine, ThreadPoolLoop
from batchzip.bench.figure import Result, default_lanes
from batchzip.bench.lanes import hand_over, idle
from batchzip.bench.limit import Limit
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.peers import CHUNK_PAGES, Blosc2, MultiZstd, available
from batchzip.bench.rounds import seconds, timed
from batchzip.bench.script import Script, integers, progress
from batchzip.bench.table import LIMIT, compress_tables
from batchzip.errors import BadArgument
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from batchzip.bench.compressors import Compressor
    from batchzip.bench.figure import Labels
    from batchzip.bench.pages import Pages

OPERATIONS = ("compress", "decompress")

BATCH_OF_2, BY_LANES = "µs per batch of 2 pages", "share of pages that lanes did"
IDLE = "CPU ms per second"


def contenders(load: Load, note: Callable[[str], object]) -> Iterator[Compressor]:
    """Yield all contenders available for an algorithm, without the limit."""
    backends = [name for name in ("threads", "workers") if name in batchzip.backends()]
    makers: list[Callable[[], Compressor]] = [
        partial(Bare, load),
        partial(OfEngine, load, "sequential"),
        *(partial(OfEngine, load, name) for name in backends),
        partial(InArena, load),
        *(partial(NewDescriptors, load, name) for name in backends[:1]),
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

    def batches(self, result: Result, operation: str, size: int, rounds: int) -> None:
        """Measure all contenders at one batch size."""
        count = len(self.load.pages)
        work = {
            one.name: timed(
                one.compressing(size) if operation == "compress" else one.restoring(size)
            )
            for one in self.everybody
        }
        limit = partial(self.limit.seconds, operation, count)
        work = {BASELINE: work.pop(BASELINE), LIMIT: limit, **work}
        ratios = {one.name: one.ratio for one in self.everybody}
        labels: Labels = {"benchmark": "compress", "algorithm": self.load.algorithm.label}
        labels |= {"operation": operation, "batch": size}
        for name, spent in seconds(work, rounds).items():
            values = [value / count * 1e6 for value in spent]
            result.add(labels, name, QUANTITY, values, ratios.get(name, self.load.ratio))

    def hand_over(self, result: Result, pages: Pages, rounds: int) -> None:
        """Measure batches of two pages with one engine per backend."""
        engines = {one.name: one.engine for one in self.own if type(one) is OfEngine}
        for name, one in hand_over(engines, pages, rounds).items():
            for state, spent in one.seconds.items():
                labels: Labels = {"benchmark": "hand over", "algorithm": self.load.algorithm.label}
                labels["lanes"] = state
                result.add(labels, name, BATCH_OF_2, [value * 1e6 for value in spent])
                result.add(labels, name, BY_LANES, [one.share(state)])

    def idle(self, result: Result, duration_s: float) -> None:
        """Measure the CPU time of all engines without work."""
        labels: Labels = {"benchmark": "idle", "engines": len(self.own)}
        for who, spent in idle([one.engine for one in self.own], duration_s).items():
            result.add(labels, who, IDLE, [spent / duration_s * 1e3])

    def close(self) -> None:
        """Close all contenders."""
        self._stack.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument(
        "--batches", type=integers, default=[1, 8, 64, 256, 1024], help="pages, with commas"
    )
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument(
        "--lanes", type=int, default=default_lanes(), help="the caller included (%(default)s)"
    )


def measure(options: argparse.Namespace) -> Result:
    """Measure all algorithms."""
    if options.lanes < 2:
        raise BadArgument("--lanes is 2 or more: the caller and at least one other")
    pages = work_pages(source_of(options), options.pages)
    settings = {"source": source_of(options).name, "pages": len(pages)}
    result = Result(
        {**settings, "rounds": options.rounds, "lanes": options.lanes}, {"compress": BASELINE}
    )
    if max(options.batches) > len(pages):
        result.note(f"batches of more than {len(pages)} pages: there are no more pages")
    for algorithm in parse_algorithms(options.algorithms):
        load = Load(algorithm, pages, options.lanes)
        with contextlib.closing(Bench(load, result.note)) as bench:
            for operation in OPERATIONS:
                for size in options.batches:
                    if size <= len(pages):
                        progress(f"{algorithm.label}, {operation}, batches of {size}")
                        bench.batches(result, operation, size, options.rounds)
            bench.hand_over(result, pages, options.rounds)
            if not result.of(benchmark="idle"):
                bench.idle(result, 1.0 if options.rounds == 1 else 5.0)
    return result


# Output.


def cells_of(result: Result) -> list[Cell]:
    """Return the contenders of each algorithm, operation and batch size."""
    found: dict[tuple[str, str, int], Cell] = {}
    for one in result.of(benchmark="compress"):
        labels = one.labels
        key = str(labels["algorithm"]), str(labels["operation"]), int(labels["batch"])
        cell = found.setdefault(key, Cell(*key, [], {}))
        cell.us[one.contender] = list(one.values)
        if one.contender.startswith(("sequential", "threads", "workers")):
            cell.own.append(one.contender)
    return list(found.values())


def tables(result: Result) -> Iterator[Table]:
    """Yield the tables of times, of speeds, of peers, of batches of two pages, and of idling."""
    yield from compress_tables(result)
    cells = cells_of(result)
    yield speeds_table(cells)
    yield peers_table(cells)
    if result.of(benchmark="hand over"):
        yield hand_over_table(result)
    if result.of(benchmark="idle"):
        table = Table("engines without work: CPU ms per second")
        for heading in ("", "owner", "workers"):
            table.add_column(heading)
        spent = {one.contender: f"{one.median:.3f}" for one in result.of(benchmark="idle")}
        (engines,) = result.names("engines")
        table.add_row(f"{engines} engines", spent["owner"], spent["workers"])
        yield table


def _by_batch(title: str, rows: dict[str, dict[int, str]], batches: list[int]) -> Table:
    table = Table(title)
    table.add_column("pages per batch")
    for batch in batches:
        table.add_column(str(batch))
    for name, of in rows.items():
        table.add_row(name, *(of.get(batch, "") for batch in batches))
    return table


def speeds_table(cells: list[Cell]) -> Table:
    """Return the table of speeds relative to `bare` and to the limit, with goals."""
    rows: dict[str, dict[int, str]] = {}
    for cell in cells:
        for name in cell.own:
            verdict = cell.verdict(name)
            for base in (BASELINE, LIMIT):
                ratio = cell.speed(name, base)
                text = f"{ratio.median:.2f} ±{ratio.percent:.0f}"
                if verdict is not None and verdict.base == base:
                    text = str(verdict)
                row = f"{cell.algorithm} {cell.operation}: {name} ÷ {base}"
                if (base == BASELINE) == (name == "sequential"):
                    rows.setdefault(row, {})[cell.batch] = text
            if verdict is not None and verdict.base not in {BASELINE, LIMIT}:
                row = f"{cell.algorithm} {cell.operation}: {name} ÷ best peer"
                rows.setdefault(row, {})[cell.batch] = str(verdict)
    return _by_batch("speeds of engines, with their goals", rows, _batches(cells))


def peers_table(cells: list[Cell]) -> Table:
    """Return the table of peers' speeds relative to batchzip's best."""
    rows: dict[str, dict[int, str]] = {}
    for cell in cells:
        for name in cell.peers:
            ratio = cell.speed(name, cell.best)
            row = f"{cell.algorithm} {cell.operation}: {name}"
            ahead = " ahead" if ratio.low > 1 else ""
            rows.setdefault(row, {})[cell.batch] = f"{ratio.median:.2f} ±{ratio.percent:.0f}{ahead}"
    title = "speeds of peers ÷ that of batchzip's fastest engine"
    return _by_batch(title, rows, _batches(cells))


def _batches(cells: list[Cell]) -> list[int]:
    return list(dict.fromkeys(cell.batch for cell in cells))


def summary(result: Result) -> Iterator[str]:
    """Yield lines that count the outcomes and name the missed goals and the peers ahead."""
    verdicts = [
        (cell, name, verdict)
        for cell in cells_of(result)
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
            what = f"{cell.algorithm}, {cell.operation}, batch {cell.batch}"
            verb = "ahead of batchzip" if name in cell.peers else "missed"
            yield f"{verb}, {what}: {name} ÷ {verdict.base} {verdict.ratio.median:.2f}"


def hand_over_table(result: Result) -> Table:
    """Return the table of batches of two pages."""
    table = Table("a batch of two pages: µs until the caller has it, and more than sequential")
    headings = ("", "", "awake", "more", "by lanes", "asleep", "more", "by lanes")
    for place, heading in enumerate(headings):
        table.add_column(heading, left=place < 2)
    for algorithm in result.names("algorithm", benchmark="hand over"):
        of = {
            (one.contender, one.labels["lanes"], one.quantity): one.median
            for one in result.of(benchmark="hand over", algorithm=algorithm)
        }
        for name in dict.fromkeys(name for name, *_ in of):
            cells = []
            for state in ("awake", "asleep"):
                us = of[name, state, BATCH_OF_2]
                more = us - of["sequential", state, BATCH_OF_2]
                cells += [f"{us:.2f}", f"{more:+.2f}" if name != "sequential" else ""]
                cells.append(f"{of[name, state, BY_LANES]:.0%}")
            table.add_row(str(algorithm), name, *cells)
    return table


SCRIPT = Script(__doc__, add_options, measure, tables, summary)

if __name__ == "__main__":
    SCRIPT.main()
