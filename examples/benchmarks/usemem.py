"""Repeat the experiment of zswap's batching patch at a small scale: many clients and one store.

    python examples/benchmarks/usemem.py [--pid N | --file PATH | --compile ARGS | --workload KIND]
                                         [--clients 30] [--mib 8] [--rounds 3]
                                         [--algorithms lz4,zstd:1]
                                         [--json FILE | --show FILE] [--plot PNG]

Clients are threads first. Each has --mib MiB of its own. All of them store their pages at the same
time, folio by folio. Then each loads a quarter as many pages, singly and at random. After that, the
same number of processes attach to the store for reading (store.share()) and load as many pages at
the same time. Only the owner of a store can store pages. Therefore, with the sequential engine,
each process also stores pages in a store of its own. Folios have 64 KiB or 2 MiB. Three ways are
measured in interleaved rounds:

each page alone   a store() per page: a batch, a lock and a publication per page
page by page      a store() per folio with max_batch=1: all or nothing, but the engine gets single
                  pages
batched           a store() per folio with max_batch=256

The patch's experiment is usemem with 30 processes of 10 GiB in a cgroup of 150 GiB, on 2 × 56 cores
with 8 hardware compressors. Its claims (cover letter of v10) compare batching with page by page.
They are printed next to the figures measured here with the same algorithm, zstd. The claim for
hardware compressors is printed next to the workers' figures, as there is no such hardware here.

With --compile "-O2 module.c", the pages are those of a C compiler at work, when it is largest.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loky.backend import get_context

import batchzip
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE, add_source, source_of
from batchzip.bench.rounds import in_turns
from batchzip.bench.script import Script, progress
from batchzip.bench.style import BARS, drawing, write_values
from batchzip.cli.side import WorkerCpu
from batchzip.system.lifetime import Closing
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Figure, Labels
    from batchzip.bench.pages import Pages

ALONE, BY_PAGE, BATCHED = "each page alone", "page by page", "batched"
WAYS = (ALONE, BY_PAGE, BATCHED)
FOLIOS = {16: "64 KiB", 512: "2 MiB"}
LOADED_SHARE = 4
"""One page in this many is loaded again."""

TIME, CPU = "store, µs per page", "CPU, µs per page"
TAIL_50, TAIL_99 = "folio p50, µs per page", "folio p99, µs per page"
LOAD_99 = "single load p99, µs"
READ_50, READ_99 = "attached load p50, µs", "attached load p99, µs"
READ_TIME = "attached, all: µs per page"
OWN_TIME = "own stores, all: µs per page"
QUANTITIES = (TIME, CPU, TAIL_50, TAIL_99, LOAD_99, READ_50, READ_99, READ_TIME, OWN_TIME)

CLAIMS = {
    ("sequential", TIME): "zstd: MB/s −1 … +1 %",
    ("sequential", CPU): "zstd: sys time −3 … −13 %",
    ("workers", TIME): "iaa: MB/s +62 … +78 %",
    ("workers", CPU): "iaa: sys time −23 … −34 %",
}


@dataclass
class Client:
    """A client as a thread: its pages, and the durations of its calls in ns."""

    first: int
    pages: Pages
    stores: list[int] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)

    def store(self, store: batchzip.SwapStore, folio: int, *, alone: bool) -> None:
        """Store all pages in folios. Time each folio, whatever the number of its calls."""
        clock = time.perf_counter_ns
        for at in range(0, len(self.pages), folio):
            part = self.pages[at : at + folio]
            begun = clock()
            if alone:
                for index, page in enumerate(part, start=self.first + at):
                    store.store(index, page)
            else:
                store.store(self.first + at, part)
            self.stores.append((clock() - begun) // len(part))

    def load(self, store: batchzip.SwapStore) -> None:
        """Load some of the pages and compare one in a hundred."""
        rng = np.random.default_rng(self.first)
        clock, load = time.perf_counter_ns, store.load
        for row in rng.integers(0, len(self.pages), len(self.pages) // LOADED_SHARE).tolist():
            begun = clock()
            page = load(self.first + row)
            self.loads.append(clock() - begun)
            if row % 100 == 0:
                assert page == self.pages[row].tobytes(), "another page came back"


def at_once(calls: list[Callable[[], None]]) -> None:
    """Run each call in a thread of its own. Raise the error of one of them."""
    failed: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


class Processes(Closing):
    """Clients as processes, which load from an attached store, or use stores of their own."""

    def __init__(self, algorithm: Algorithm, parts: list[Pages]) -> None:
        context = get_context("loky")
        self.pipes: list[Connection] = []
        self.processes = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pages"
            for seed, part in enumerate(parts):
                part.tofile(path)
                here, there = context.Pipe()
                arguments = (there, seed, algorithm, str(path))
                process = context.Process(target=_client, args=arguments, daemon=True)
                process.start()
                there.close()
                self.pipes.append(here)
                self.processes.append(process)
                here.recv()  # the process has read its pages

    def _at_once(self, what: str, *arguments: object) -> tuple[list[Any], float]:
        """Start all processes at once. Return their results and the seconds of the slowest."""
        for pipe in self.pipes:
            pipe.send((what, arguments))
        for pipe in self.pipes:
            pipe.recv()
        begun = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(None)
        found = [pipe.recv() for pipe in self.pipes]
        return found, time.perf_counter() - begun

    def load(self, address: str, pages: int) -> dict[str, float]:
        """Let all processes load pages of one store. Return the figures."""
        found, wall = self._at_once("load", address, pages)
        loads = np.concatenate(found) / 1e3
        return {
            READ_50: float(np.percentile(loads, 50)),
            READ_99: float(np.percentile(loads, 99)),
            READ_TIME: wall / len(loads) * 1e6,
        }

    def store(self, way: str, folio: int) -> dict[str, float]:
        """Let each process store its pages in a store of its own. Return the figure."""
        stored, wall = self._at_once("store", way, folio)
        return {OWN_TIME: wall / sum(stored) * 1e6}

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.join()


def _client(pipe: Connection, seed: int, algorithm: Algorithm, path: str) -> None:
    pages = np.fromfile(path, np.uint8).reshape(-1, PAGE)
    pipe.send(True)
    with (
        batchzip.Engine(algorithm.name, backend="sequential", **algorithm.parameters) as engine,
        contextlib.suppress(EOFError),  # the parent closed its end
    ):
        while True:
            what, arguments = pipe.recv()
            if what == "load":
                _load_attached(pipe, seed, pages, *arguments)
            else:
                _store_own(pipe, engine, pages, *arguments)


def _load_attached(pipe: Connection, seed: int, pages: Pages, address: str, stored: int) -> None:
    clock = time.perf_counter_ns
    indices = np.random.default_rng(seed).integers(0, stored, len(pages) // LOADED_SHARE).tolist()
    taken = []
    with batchzip.attach(address) as view:
        pipe.send(True)
        pipe.recv()
        for index in indices:
            begun = clock()
            view.load(index)
            taken.append(clock() - begun)
        pipe.send(np.array(taken))


def _store_own(
    pipe: Connection, engine: batchzip.Engine, pages: Pages, way: str, folio: int
) -> None:
    with batchzip.SwapStore(engine, max_batch=most_batch(way)) as store:
        pipe.send(True)
        pipe.recv()
        Client(0, pages).store(store, folio, alone=way == ALONE)
        pipe.send(len(pages))


def most_batch(way: str) -> int:
    """Return a store's max_batch for a way."""
    return 1 if way == BY_PAGE else 256


def one_round(
    engine: batchzip.Engine, way: str, parts: list[Pages], folio: int, processes: Processes
) -> dict[str, float]:
    """Let all threads store and load, then let processes load. Return the figures."""
    clients = [Client(at * len(part), part) for at, part in enumerate(parts)]
    pages = sum(map(len, parts))
    with batchzip.SwapStore(engine, max_batch=most_batch(way)) as store:
        workers = WorkerCpu(engine.worker_pids)
        cpu, wall = time.process_time(), time.perf_counter()
        at_once([partial(client.store, store, folio, alone=way == ALONE) for client in clients])
        wall = time.perf_counter() - wall
        cpu = time.process_time() - cpu + workers.spent_s(engine.worker_pids)
        at_once([partial(client.load, store) for client in clients])
        others = processes.load(store.share().address, pages)
    if engine.backend.name == "sequential":
        others |= processes.store(way, folio)
    stores = np.concatenate([client.stores for client in clients]) / 1e3
    loads = np.concatenate([client.loads for client in clients]) / 1e3
    return {
        TIME: wall / pages * 1e6,
        CPU: cpu / pages * 1e6,
        TAIL_50: float(np.percentile(stores, 50)),
        TAIL_99: float(np.percentile(stores, 99)),
        LOAD_99: float(np.percentile(loads, 99)),
        **others,
    }


def run(
    result: Result, algorithm: Algorithm, parts: list[Pages], rounds: int, folios: list[int]
) -> None:
    """Measure all ways with both backends."""
    for backend in ("sequential", "workers"):
        with (
            batchzip.Engine(algorithm.name, backend=backend, **algorithm.parameters) as engine,
            Processes(algorithm, parts) as processes,
        ):
            engine.wait_ready(60)
            for folio in folios:
                progress(f"{algorithm.label}, {backend}, folios of {FOLIOS[folio]}")
                values: dict[tuple[str, str], list[float]] = {}
                for turn, way in in_turns(WAYS, rounds):
                    found = one_round(engine, way, parts, folio, processes)
                    for quantity, value in found.items():
                        if turn:
                            values.setdefault((way, quantity), []).append(value)
                labels: Labels = {
                    "benchmark": "usemem",
                    "algorithm": algorithm.label,
                    "backend": backend,
                    "folio": FOLIOS[folio],
                }
                for (way, quantity), numbers in values.items():
                    result.add(labels, way, quantity, numbers)


def by_case(result: Result) -> dict[tuple[str, str, str], dict[tuple[str, str], Figure]]:
    """Sort the figures: (algorithm, backend, folio) → (way, quantity) → figure."""
    cases: dict[tuple[str, str, str], dict[tuple[str, str], Figure]] = {}
    for one in result.figures:
        labels = one.labels
        case = (str(labels["algorithm"]), str(labels["backend"]), str(labels["folio"]))
        cases.setdefault(case, {})[one.contender, one.quantity] = one
    return cases


def change(of: dict[tuple[str, str], Figure], quantity: str) -> float:
    """Return the change by batching against page by page, in percent. For TIME, of throughput."""
    before, after = of[BY_PAGE, quantity].median, of[BATCHED, quantity].median
    return ((before / after if quantity == TIME else after / before) - 1) * 100


def claim_for(algorithm: str, backend: str, quantity: str) -> str:
    """Return the patch's claim for a figure, or an empty text."""
    same = backend == "workers" or algorithm.startswith("zstd")
    return CLAIMS.get((backend, quantity), "") if same else ""


def tables(result: Result) -> Iterator[Table]:
    """Yield a table in the format of the patch's for each algorithm and backend."""
    cases = by_case(result)
    for algorithm, backend in dict.fromkeys(case[:2] for case in cases):
        table = Table(f"{algorithm}, {backend}: the change is batched against page by page")
        for heading in ("folio", "medians"):
            table.add_column(heading, left=True)
        for heading in (*WAYS, "change"):
            table.add_column(heading)
        table.add_column("the patch's claim", left=True)
        for case, of in cases.items():
            if case[:2] != (algorithm, backend):
                continue
            for quantity in (name for name in QUANTITIES if (BATCHED, name) in of):
                throughput = quantity == TIME
                medians = [of[way, quantity].median for way in WAYS]
                table.add_row(
                    case[2],
                    "throughput, MB/s" if throughput else quantity,
                    *(f"{PAGE / median if throughput else median:.1f}" for median in medians),
                    f"{change(of, quantity):+.0f} %",
                    claim_for(algorithm, backend, quantity),
                )
            table.add_section()
        yield table


def draw(result: Result, path: Path) -> None:
    """Draw throughput and CPU time of the three ways."""
    cases = by_case(result)
    places = np.arange(len(cases))[::-1]
    title = f"{result.settings['clients']} clients store into one store"
    with drawing(path, 1.2 + 0.8 * len(cases), title) as picture:
        axes = picture.subplots(1, 2, sharey=True)
        for one, quantity, heading in zip(
            axes,
            (TIME, CPU),
            ("throughput, MB/s (more is better)", "CPU µs per page (less is better)"),
            strict=True,
        ):
            for row, (way, style) in enumerate(zip(WAYS, BARS, strict=True)):
                figures = [of[way, quantity] for of in cases.values()]
                values = [PAGE / f.median if quantity == TIME else f.median for f in figures]
                at = places + (1 - row) * 0.27
                one.barh(at, values, 0.25, **style)
                digits = 0 if quantity == TIME else 1
                texts = [f"{value:.{digits}f}" for value in values]
                texts[0] += f"  {way}"
                write_values(one, values, at, texts)
            one.set_title(heading)
            one.margins(y=0.02)
            one.set_xlim(0, one.get_xlim()[1] * 1.35)
        axes[0].set_yticks(places, [f"{a}, {b}\nfolios of {f}" for a, b, f in cases])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--mib", type=int, default=8, help="of each client (%(default)s)")
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    source = source_of(options)
    pages = source.take(1 << 16)
    rng = np.random.default_rng(4)
    wanted = (options.mib << 20) // PAGE
    # Clients may need more pages than there are: each draws its own.
    parts = [pages[rng.integers(0, len(pages), wanted)] for _ in range(options.clients)]
    settings = {
        "source": source.name,
        "clients": options.clients,
        "MiB each": options.mib,
        "rounds": options.rounds,
    }
    result = Result(settings, {"usemem": BY_PAGE})
    for algorithm in parse_algorithms(options.algorithms):
        run(result, algorithm, parts, options.rounds, list(FOLIOS))
    return result


SCRIPT = Script(__doc__, add_options, measure, tables, draw=draw)

if __name__ == "__main__":
    SCRIPT.main()
