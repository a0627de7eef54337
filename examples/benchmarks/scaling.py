"""Measure how lanes scale, and the owner's serial part of a page, which limits their number.

    python examples/benchmarks/scaling.py [--lanes 1,2,4,8,15] [--rounds 9] [--pages 8192]
                                          [--batch 1024] [--algorithms lz4,zstd:1]
                                          [--pid N | --file PATH | --compile ARGS | --workload KIND]
                                          [--json FILE | --show FILE] [--plot PNG]

A lane compresses or restores pages. The caller is one lane, and each of the engine's workers is
another. `bare` is a loop of codec calls on one core. The limit consists of as many such loops as
there are lanes, each in a process of its own. Both are measured in the same rounds. Descriptors are
reused, as in compress.py. There may be more lanes than CPUs.

The serial part is the owner's work for a page that it hands over: staging (only with workers, for
pages in the caller's own memory), deciding, posting and collecting. More lanes cannot take over
this work. It is computed from the caller's time in a round by two subtractions:

1. The waits, which the engine counts. If the caller was preempted, its CPU time is less than the
   remainder, and is used instead.
2. The pages that the caller processed itself. Each counts with the CPU time of a page on
   `sequential`, times the ratio of a page's cost in the limit to its cost in `bare`.

The result is a small difference of large numbers, and includes the fixed cost of a batch. It is
most precise if most pages are handed over, that is, with many lanes.

The simulation (simulation.py) uses the cost of a page and the serial part measured with the most
lanes. Numbers in parentheses were measured with the same number of lanes.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from simulation import simulate

import batchzip
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.compress import BASELINE, QUANTITY
from batchzip.bench.compressors import Bare, InArena, Load, OfEngine
from batchzip.bench.figure import Result
from batchzip.bench.limit import Limit
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.peers import available
from batchzip.bench.rounds import seconds, timed
from batchzip.bench.script import Script, integers, progress
from batchzip.bench.spread import speed, spread
from batchzip.bench.style import OWN, REFERENCE, drawing
from batchzip.bench.table import LIMIT
from batchzip.system.cpus import usable_cpus
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.compressors import Compressor, Work
    from batchzip.bench.figure import Labels
    from batchzip.bench.pages import Pages
    from batchzip.bench.spread import Spread

OPERATIONS = ("compress", "decompress")

ENGINES = ("threads", "workers", "workers, arena")
"""Contenders with lanes."""

SIMULATED_LANES = 16

CPU = "CPU µs per page"
BUSY, INLINE, HANDED = "caller busy, s", "pages that the caller did", "pages handed over"


@dataclass
class Owner:
    """The work of an engine's caller in each round."""

    busy_s: list[float] = field(default_factory=list)
    """Seconds without waits, limited to the CPU time."""
    inline: list[int] = field(default_factory=list)
    """Pages that the caller processed itself."""
    handed: list[int] = field(default_factory=list)


@dataclass
class Step:
    """The results with one number of lanes. Times are µs per page in each round."""

    algorithm: str
    operation: str
    lanes: int
    us: dict[str, list[float]]
    cpu_us: dict[str, list[float]]
    """CPU times of `bare`, of `sequential` and of one loop of `limit` while all loops run."""
    owners: dict[str, Owner]

    def speed(self, name: str, base: str) -> Spread:
        """Return the speed of a contender relative to `base`."""
        return speed(self.us[base], self.us[name])

    def page_us(self) -> float:
        """Return the time of a lane for a page while all lanes are busy."""
        cpu_us = {name: statistics.median(values) for name, values in self.cpu_us.items()}
        return cpu_us["sequential"] * cpu_us[LIMIT] / cpu_us[BASELINE]

    def serial(self, name: str) -> Spread | None:
        """Return the owner's serial part of a page. Return None if it handed over no page."""
        owner, page_us = self.owners[name], self.page_us()
        found = [
            (busy_s * 1e6 - inline * page_us) / handed
            for busy_s, inline, handed in zip(owner.busy_s, owner.inline, owner.handed, strict=True)
            if handed
        ]
        return spread(found) if found else None

    def handed_share(self, name: str) -> float:
        """Return the share of pages that the owner handed over."""
        owner = self.owners[name]
        return sum(owner.handed) / (sum(owner.handed) + sum(owner.inline))


def contenders(load: Load, note: Callable[[str], object]) -> Iterator[Compressor]:
    """Return the bare loop and the engines with as many lanes as `load`."""
    makers: list[Callable[[], Compressor]] = [
        partial(Bare, load),
        partial(OfEngine, load, "sequential"),
    ]
    if load.lanes > 1:
        backends = [name for name in ("threads", "workers") if name in batchzip.backends()]
        makers += [partial(OfEngine, load, name) for name in backends]
        makers.append(partial(InArena, load))
    return available(makers, note)


def on_cpu(work: Work, pages: int, cpu_s: list[float]) -> Callable[[], float]:
    """Return a callable that does the work, records CPU seconds per page, and returns seconds."""
    call = timed(work)

    def observed_call() -> float:
        before = time.thread_time()
        spent = call()
        cpu_s.append((time.thread_time() - before) / pages)
        return spent

    return observed_call


def observed(one: OfEngine, operation: str, work: Work, owner: Owner) -> Callable[[], float]:
    """Return a callable that does the work, records the owner's work, and returns seconds."""

    def call() -> float:
        before = getattr(one.engine.statistics, operation)
        started, cpu_s = time.perf_counter(), time.thread_time()
        work()
        spent, cpu_s = time.perf_counter() - started, time.thread_time() - cpu_s
        after = getattr(one.engine.statistics, operation)
        inline = after.inline_pages - before.inline_pages
        owner.busy_s.append(min(cpu_s, spent - (after.wait_s - before.wait_s)))
        owner.inline.append(inline)
        owner.handed.append(after.pages - before.pages - inline)
        return spent

    return call


def step(
    algorithm: Algorithm,
    pages: Pages,
    lanes: int,
    options: argparse.Namespace,
    note: Callable[[str], object],
) -> Iterator[Step]:
    """Measure one number of lanes, compress and then decompress."""
    load, size = Load(algorithm, pages, lanes), min(options.batch, len(pages))
    with contextlib.ExitStack() as stack:
        limit = stack.enter_context(Limit(load))
        everybody = [stack.enter_context(one) for one in contenders(load, note)]
        for operation in OPERATIONS:
            limit.cpu_s.clear()
            calls: dict[str, Callable[[], float]] = {
                LIMIT: partial(limit.seconds, operation, len(pages))
            }
            cpu_s: dict[str, list[float]] = {LIMIT: limit.cpu_s}
            owners: dict[str, Owner] = {}
            for one in everybody:
                work = one.compressing(size) if operation == "compress" else one.restoring(size)
                if isinstance(one, OfEngine) and one.name in ENGINES:
                    owners[one.name] = Owner()
                    calls[one.name] = observed(one, operation, work, owners[one.name])
                else:
                    cpu_s[one.name] = []
                    calls[one.name] = on_cpu(work, len(pages), cpu_s[one.name])
            found = seconds(calls, options.rounds)
            for owner in owners.values():
                for values in (owner.busy_s, owner.inline, owner.handed):
                    del values[0]  # the warm-up round
            us = {name: [s / len(pages) * 1e6 for s in values] for name, values in found.items()}
            cpu_us = {name: [s * 1e6 for s in values[1:]] for name, values in cpu_s.items()}
            yield Step(algorithm.label, operation, lanes, us, cpu_us, owners)


def add_step(result: Result, one: Step) -> None:
    """Add the figures of a step."""
    labels: Labels = {"benchmark": "scaling", "algorithm": one.algorithm}
    labels |= {"operation": one.operation, "lanes": one.lanes}
    for quantity, of in ((QUANTITY, one.us), (CPU, one.cpu_us)):
        for name, values in of.items():
            result.add(labels, name, quantity, values)
    for name, owner in one.owners.items():
        result.add(labels, name, BUSY, owner.busy_s)
        result.add(labels, name, INLINE, owner.inline)
        result.add(labels, name, HANDED, owner.handed)


def steps_of(result: Result) -> list[Step]:
    """Return the steps of a result, sorted."""
    found: dict[tuple[str, str, int], Step] = {}
    for one in result.figures:
        labels, name = one.labels, one.contender
        key = str(labels["algorithm"]), str(labels["operation"]), int(labels["lanes"])
        step = found.setdefault(key, Step(*key, {}, {}, {}))
        if one.quantity == QUANTITY:
            step.us[name] = list(one.values)
        elif one.quantity == CPU:
            step.cpu_us[name] = list(one.values)
        else:
            owner = step.owners.setdefault(name, Owner())
            if one.quantity == BUSY:
                owner.busy_s = list(one.values)
            else:
                pages = [int(value) for value in one.values]
                if one.quantity == INLINE:
                    owner.inline = pages
                else:
                    owner.handed = pages
    return [found[key] for key in sorted(found)]


def steps_table(steps: list[Step]) -> Table:
    """Return the table of throughput by lanes."""
    table = Table("times as fast as bare, and ÷ limit")
    names = [name for name in ENGINES if any(name in one.us for one in steps)]
    for heading in ("", "", "lanes", "bare µs", LIMIT, "sequential"):
        table.add_column(heading, left=not heading)
    for name in names:
        table.add_column(name)
        table.add_column("÷ limit")
    for one in steps:
        cells = [one.algorithm, one.operation, str(one.lanes)]
        cells.append(f"{statistics.median(one.us['bare']):.2f}")
        cells += [f"{one.speed(name, 'bare').median:.2f}" for name in (LIMIT, "sequential")]
        for name in names:
            bases = (BASELINE, LIMIT) if name in one.us else ()
            cells += [f"{one.speed(name, base).median:.2f}" for base in bases] or ["", ""]
        table.add_row(*cells)
    return table


def serial_table(steps: list[Step]) -> Table:
    """Return the table of the owner's serial parts."""
    table = Table(
        "the owner's serial part: µs per page handed over (quartiles), and their share",
    )
    names = [name for name in ENGINES if any(name in one.owners for one in steps)]
    for heading in ("", "", "lanes", "a lane's page"):
        table.add_column(heading, left=not heading)
    for name in names:
        table.add_column(f"{name}{', staged' if name == 'workers' else ''}")
        table.add_column("handed")
    for one in steps:
        if one.owners:
            cells = [f"{one.page_us():.2f}"]
            for name in names:
                found = one.serial(name) if name in one.owners else None
                if found is None:
                    cells += ["", ""]
                    continue
                cells.append(f"{found.median:.2f} ({found.low:.2f} … {found.high:.2f})")
                cells.append(f"{one.handed_share(name):.0%}")
            table.add_row(one.algorithm, one.operation, str(one.lanes), *cells)
    return table


@dataclass
class Simulated:
    """The simulated speed of an engine relative to one bare loop, by lanes."""

    algorithm: str
    operation: str
    engine: str
    serial_us: float
    page_us: float
    measured: dict[int, float]
    simulated: dict[int, float]


def simulations(steps: list[Step], batch: int) -> Iterator[Simulated]:
    """Simulate the measured numbers of lanes and SIMULATED_LANES."""
    for algorithm, operation in dict.fromkeys((one.algorithm, one.operation) for one in steps):
        mine = [one for one in steps if (one.algorithm, one.operation) == (algorithm, operation)]
        most = max(mine, key=lambda one: one.lanes)
        bare_us = statistics.median(most.cpu_us[BASELINE])
        page_us = most.page_us()
        for name in most.owners:
            serial = most.serial(name)
            if serial is None:
                continue
            measured = {
                one.lanes: one.speed(name, BASELINE).median for one in mine if name in one.us
            }
            simulated = {
                lanes: bare_us / simulate(lanes, batch, page_us, serial.median)
                for lanes in sorted({*measured, SIMULATED_LANES})
            }
            yield Simulated(algorithm, operation, name, serial.median, page_us, measured, simulated)


def simulated_table(found: list[Simulated]) -> Table:
    """Return the table of simulated speeds, with measured ones in parentheses."""
    table = Table(
        "SIMULATION: times as fast as bare, simulated (measured)",
    )
    lanes = sorted({number for one in found for number in one.simulated})
    for heading in ("", "", "", "serial µs", "page µs"):
        table.add_column(heading, left=not heading)
    for number in lanes:
        table.add_column(f"{number} lanes")
    for one in found:
        cells = []
        for number in lanes:
            text = f"{one.simulated[number]:.2f}" if number in one.simulated else ""
            beside = f" ({one.measured[number]:.2f})" if number in one.measured else ""
            cells.append(text + beside)
        figures = (f"{one.serial_us:.2f}", f"{one.page_us:.2f}")
        table.add_row(one.algorithm, one.operation, one.engine, *figures, *cells)
    return table


_LINES = {LIMIT: REFERENCE, "threads": OWN[0], "workers": OWN[2], "workers, arena": OWN[3]}


def draw(steps: list[Step], path: Path) -> None:
    """Draw the speed of compressing relative to one bare loop against the number of lanes."""
    algorithms = list(dict.fromkeys(one.algorithm for one in steps))
    with drawing(path, 4.2, "Compressing: times as fast as one bare loop") as picture:
        row = picture.subplots(1, len(algorithms), squeeze=False)[0]
        for axes, algorithm in zip(row, algorithms, strict=True):
            mine = [
                one for one in steps if one.algorithm == algorithm and one.operation == "compress"
            ]
            for name, style in _LINES.items():
                # With one lane, the caller works alone with any backend.
                points = [
                    (
                        one.lanes,
                        one.speed(name if name in one.us else "sequential", BASELINE).median,
                    )
                    for one in mine
                ]
                if any(name in one.us for one in mine):
                    axes.plot(*zip(*points, strict=True), label=name, **style)
            axes.set_xticks([one.lanes for one in mine])
            axes.set_ylim(0)
            axes.set_xlabel("lanes: the caller and its workers")
            axes.set_title(algorithm)
            axes.grid(visible=True, axis="y")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    lanes = list(range(1, usable_cpus() + 1))
    parser.add_argument(
        "--lanes", type=integers, default=lanes, help="with commas (all up to the CPUs)"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    pages = work_pages(source_of(options), options.pages)
    settings = {"source": source_of(options).name, "pages": len(pages), "batch": options.batch}
    lanes = sorted(set(options.lanes))
    result = Result({**settings, "rounds": options.rounds, "lanes": lanes}, {"scaling": BASELINE})
    for algorithm in parse_algorithms(options.algorithms):
        for number in lanes:
            progress(f"{algorithm.label}, {number} lanes")
            for one in step(algorithm, pages, number, options, result.note):
                add_step(result, one)
    return result


def tables(result: Result) -> Iterator[Table]:
    """Yield the tables of speeds, of serial parts, and of the simulation."""
    steps = steps_of(result)
    yield steps_table(steps)
    if any(one.owners for one in steps):
        yield serial_table(steps)
    if found := list(simulations(steps, result.settings["batch"])):
        yield simulated_table(found)


def remarks(result: Result) -> Iterator[str]:
    """Yield a line if there is nothing to simulate from."""
    if not list(simulations(steps_of(result), result.settings["batch"])):
        yield "no simulation: nothing was handed over, or there was only one lane"


def draw_result(result: Result, path: Path) -> None:
    """Draw the picture of a result."""
    draw(steps_of(result), path)


SCRIPT = Script(__doc__, add_options, measure, tables, remarks, draw_result)

if __name__ == "__main__":
    SCRIPT.main()
