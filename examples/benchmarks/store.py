"""Compare the store with bare codec calls and with its alternatives, and judge goals.

    python examples/benchmarks/store.py [--parts store,load,many,clients,rivals] [--rounds 15]
                                        [--folios 1,8,64,256] [--batches 8,64,256,1024]
                                        [--algorithms lz4,zstd:1] [--backends sequential,threads]
                                        [--pages 8192] [--threads 8] [--cpu] [--json FILE]
                                        [--pid N | --file PATH | --workload KIND]

Pages are those of a real process, shuffled, without same-filled ones. `bare` is a Python loop of
codec calls. Contenders run in the same rounds and take turns at pieces of 256 pages. None works on
a piece that another one has just brought into the cache. A piece counts with its median over the
rounds.

With --cpu, the seconds of store, load and many are CPU times of the calling thread. This helps on a
machine that is busy with other work. It is correct only with the sequential backend, which does all
work in that thread.

store    `store(index, pages)` of new pages, in a new store per round, and of pages that replace
         older ones. `on top` is the excess over bare calls on the same pages. With threads, it is
         the excess over `engine.compress` of the same folio, because lanes share that work. `fresh`
         is the kernel's time to allocate the memory of a piece at once, which new pages need.
load     `load(index)` of random pages ÷ the bare decompress call on the same stored bytes, also
         with out=, and with exclusive=True (of a store that is filled again for each round).
many     `load_many(indices, out)` ÷ a loop of bare calls. `engine` is `engine.decompress` with
         descriptors made beforehand.
clients  Speed of --threads threads that store and load folios of 16 ÷ speed of one thread. Three
         bounds are shown, too: as many threads with bare calls, which release the GIL per page, as
         many threads with a batch of 16 of their own, which is one call of the core without the
         GIL, and as many processes with bare loops as there are CPUs.
rivals   a dict of compressed bytes, zict.Func over a dict, and blosc2 (batchzip/bench/stores.py,
         peer_stores.py). Pages are stored in folios of 16, and loaded singly and in batches of 256.
         `held` is the growth of a fresh process's PSS per byte of the pages.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import batchzip
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.compressors import Load, bare_calls, each
from batchzip.bench.figure import Result
from batchzip.bench.held import pss_growth
from batchzip.bench.limit import Limit
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.peer_stores import contenders
from batchzip.bench.rounds import in_pieces, of_pages, seconds, spread
from batchzip.bench.stores import FOLIO_PAGES
from batchzip.system.cpus import usable_cpus
from batchzip.system.segment import Segment
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages
    from batchzip.bench.stores import Store

    Row = dict[str, Any]

PARTS = ("store", "load", "many", "clients", "rivals")

STORE_GOALS = {1: 3.0, 8: 1.0, 64: 0.5, 256: 0.4}
"""Maximum excess in µs per page, by the number of pages in a folio."""
LOAD_GOAL = 1.0
"""Maximum of one load ÷ the bare call."""
CLIENTS_GOAL = 1.7
"""Minimum of several threads ÷ one thread, with 2 CPUs."""
RIVALS = ("dict", "zict", "blosc2 page", "blosc2 1 MiB")
OWN = ("sequential", "threads")

PIECE = 256
MACHINE_PAGE = mmap.PAGESIZE
_OUTPUT_BYTES = PAGE + 64
_HELD_COPIES = 4
"""Times that the pages are stored to measure memory, because 8,192 pages are too few."""


class Bench:
    """An algorithm, an engine with one backend, and the pages in all needed forms."""

    def __init__(
        self, algorithm: Algorithm, backend: str, load: Load, clock: Callable[[], float]
    ) -> None:
        self.algorithm, self.backend, self.clock = algorithm, backend, clock
        self.engine = batchzip.Engine(algorithm.name, backend=backend, **algorithm.parameters)
        self.engine.wait_ready(60)
        self.load = load
        self.pages, self.views, self.outputs = load.pages, load.views, load.outputs
        self.pieces = len(self.pages) // PIECE
        self.compress, self.decompress = bare_calls(algorithm)

    def row(self, what: str, batch: int, us: dict[str, float], **more: Any) -> Row:
        """Return a row of the report."""
        labels = {"algorithm": self.algorithm.label, "backend": self.backend}
        return {**labels, "what": what, "batch": batch, "us": us, **more}

    def of(self, piece: int) -> range:
        """Return the numbers of a piece's pages."""
        return range(piece * PIECE, (piece + 1) * PIECE)

    # Parts.

    def store_rows(self, size: int, rounds: int) -> list[Row]:
        """Measure stores of new and of replaced folios of `size`."""
        engine, pages = self.engine, self.pages
        size = min(size, PIECE)
        batch = batchzip.CompressBatch(engine.arena(size), dsts=engine.arena(size, _OUTPUT_BYTES))
        # As callers pass them: a single page as such, several as an array.
        folios = [
            page.reshape(-1) if size == 1 else page for page in np.split(pages, len(pages) // size)
        ]
        per_piece = PIECE // size
        new: list[batchzip.SwapStore] = []
        memory: list[Segment] = []
        stored = -(-sum(map(len, self.outputs)) // self.pieces // MACHINE_PAGE) * MACHINE_PAGE

        def keep(store: batchzip.SwapStore, piece: int) -> None:
            at, put = piece * PIECE, store.store
            for folio in folios[piece * per_piece : (piece + 1) * per_piece]:
                put(at, folio)
                at += size

        def use_engine(piece: int) -> None:
            for at in range(piece * PIECE, (piece + 1) * PIECE, size):
                batch.refill(pages[at : at + size])
                engine.compress(batch)

        def give_memory(piece: int) -> None:
            memory[0].reserve(piece * stored, stored)
            memory[0].populate(piece * stored, stored)

        def end() -> None:
            for used in (new, memory):
                while used:
                    used.pop().close()

        def begin() -> None:
            end()
            new.append(batchzip.SwapStore(engine))
            memory.append(Segment(stored * self.pieces))

        with batchzip.SwapStore(engine) as old:
            old.store(0, pages)
            found = in_pieces(
                {
                    "bare": lambda piece: each(self.compress, self._views(piece)),
                    "engine": use_engine,
                    "new": lambda piece: keep(new[0], piece),
                    "again": partial(keep, old),
                    "fresh": give_memory,
                },
                self.pieces,
                rounds,
                begin,
                clock=self.clock,
            )
        end()
        base = "bare" if self.backend == "sequential" else "engine"
        count = self.pieces * PIECE
        us = {name: of_pages(spent, count) for name, spent in found.items()}
        return [
            self.row(
                f"store {name}",
                size,
                us,
                value=us[name] - us[base],
                spread=_quartiles((found[name] - found[base]).sum(axis=1) / count * 1e6),
                goal=STORE_GOALS.get(size),
            )
            for name in ("new", "again")
        ]

    def load_rows(self, rounds: int) -> list[Row]:
        """Measure single loads."""
        order: list[list[int]] = []
        sources: list[list[bytes]] = []
        room = bytearray(PAGE)
        random = np.random.default_rng(2)
        with batchzip.SwapStore(self.engine) as store, batchzip.SwapStore(self.engine) as taken:
            load, take = store.load, taken.load
            store.store(0, self.pages)

            def begin() -> None:
                numbers = random.permutation(self.pieces * PIECE).tolist()
                order[:] = [numbers[at : at + PIECE] for at in range(0, len(numbers), PIECE)]
                sources[:] = [[self.outputs[index] for index in some] for some in order]
                taken.store(0, self.pages)

            def to_room(piece: int) -> None:
                for index in order[piece]:
                    load(index, room)

            def exclusive(piece: int) -> None:
                for index in order[piece]:
                    take(index, exclusive=True)

            found = in_pieces(
                {
                    "bare": lambda piece: each(self.decompress, sources[piece]),
                    "load": lambda piece: each(load, order[piece]),
                    "load, out=": to_room,
                    "load, exclusive": exclusive,
                },
                self.pieces,
                rounds,
                begin,
                clock=self.clock,
            )
        count = self.pieces * PIECE
        us = {name: of_pages(spent, count) for name, spent in found.items()}
        return [
            self.row(
                name,
                1,
                us,
                value=us[name] / us["bare"],
                spread=_quartiles(found[name].sum(axis=1) / found["bare"].sum(axis=1)),
                goal=LOAD_GOAL if name == "load" else None,
            )
            for name in ("load", "load, out=", "load, exclusive")
        ]

    def many_rows(self, size: int, rounds: int) -> list[Row]:
        """Measure loads in batches of `size`."""
        count = len(self.pages) - len(self.pages) % size
        pieces = count // size
        order: list[Any] = []
        sources: list[list[bytes]] = []
        batches: list[batchzip.DecompressBatch] = []
        out, room = np.zeros((size, PAGE), np.uint8), np.zeros((size, PAGE), np.uint8)
        random = np.random.default_rng(3)
        with batchzip.SwapStore(self.engine) as store:
            store.store(0, self.pages)

            def begin() -> None:
                order[:] = np.split(random.permutation(count), pieces)
                sources[:] = [[self.outputs[i] for i in some.tolist()] for some in order]
                batches[:] = [batchzip.DecompressBatch(some, room) for some in sources]

            found = in_pieces(
                {
                    "bare": lambda piece: each(self.decompress, sources[piece]),
                    "engine": lambda piece: self.engine.decompress(batches[piece]),
                    "load many": lambda piece: store.load_many(order[piece], out),
                },
                pieces,
                rounds,
                begin,
                clock=self.clock,
            )
        us = {name: of_pages(spent, count) for name, spent in found.items()}
        ratios = found["load many"].sum(axis=1) / found["bare"].sum(axis=1)
        value = us["load many"] / us["bare"]
        return [self.row("load many", size, us, value=value, spread=_quartiles(ratios), goal=None)]

    def client_rows(self, threads: int, rounds: int) -> list[Row]:
        """Measure several threads and one, with the store and with its parts."""
        ways: dict[str, Callable[[], Callable[[range], None]]] = {
            "store and load": self._storing,
            "bare calls": self._bare_calling,
            "engine's batches": self._batching,
        }
        parts = [
            range(at, at + FOLIO_PAGES)
            for at in range(0, len(self.pages) - FOLIO_PAGES + 1, FOLIO_PAGES)
        ]
        with batchzip.SwapStore(self.engine) as self._shared, ThreadPoolExecutor(threads) as pool:
            calls: dict[str, Callable[[], float]] = {}
            for name, make in ways.items():
                for number in (1, threads):
                    calls[f"{name}, {number}"] = partial(_at_once, pool, parts, number, make)
            with ExitStack() as stack:
                if self.backend == "sequential":
                    # All CPUs ÷ one: all processes run at the same time, each over all pages.
                    limit = stack.enter_context(Limit(self.load))
                    calls["processes, 1"] = self._bare_loop
                    calls[f"processes, {threads}"] = partial(self._limit_loop, limit)
                found = seconds(calls, rounds)
        rows = []
        for name in [*ways, *(["processes"] if "processes, 1" in found else [])]:
            one, several = found[f"{name}, 1"], found[f"{name}, {threads}"]
            ratio = spread([a / b for a, b in zip(one, several, strict=True)])
            us = {"1 thread": _us(one, len(self.pages))}
            us[f"{threads} threads"] = _us(several, len(self.pages))
            goal = CLIENTS_GOAL if name == "store and load" else None
            row = self.row(name, FOLIO_PAGES, us, value=ratio.median, goal=goal)
            rows.append({**row, "spread": (ratio.low, ratio.high)})
        return rows

    def _views(self, piece: int) -> list[memoryview]:
        return self.views[piece * PIECE : (piece + 1) * PIECE]

    def _storing(self) -> Callable[[range], None]:
        store, pages = self._shared, self.pages
        room = np.zeros((FOLIO_PAGES, PAGE), np.uint8)

        def work(part: range) -> None:
            store.store(part.start, pages[part.start : part.stop])
            store.load_many(part, room)

        return work

    def _bare_calling(self) -> Callable[[range], None]:
        compress, decompress = bare_calls(self.algorithm)  # per thread, as zstandard requires

        def work(part: range) -> None:
            each(compress, self.views[part.start : part.stop])
            each(decompress, self.outputs[part.start : part.stop])

        return work

    def _batching(self) -> Callable[[range], None]:
        engine, pages = self.engine, self.pages
        room = np.zeros((FOLIO_PAGES, PAGE), np.uint8)
        batch = batchzip.CompressBatch(pages[:FOLIO_PAGES])

        def work(part: range) -> None:
            batch.refill(pages[part.start : part.stop])
            engine.compress(batch)
            engine.decompress(batchzip.DecompressBatch(self.outputs[part.start : part.stop], room))

        return work

    def _bare_loop(self) -> float:
        started = time.perf_counter()
        each(self.compress, self.views)
        each(self.decompress, self.outputs)
        return time.perf_counter() - started

    def _limit_loop(self, limit: Limit) -> float:
        count = len(self.pages)
        return limit.seconds("compress", count) + limit.seconds("decompress", count)


def _at_once(
    pool: ThreadPoolExecutor,
    parts: list[range],
    threads: int,
    make: Callable[[], Callable[[range], None]],
) -> float:
    """Return the seconds in which a thread per part does all parts."""
    works = [make() for _ in range(threads)]
    shares = [parts[number::threads] for number in range(threads)]
    started = time.perf_counter()
    list(pool.map(each, works, shares))
    return time.perf_counter() - started


class Rivals:
    """Stores of the same pages, and their times. `begin` opens all of them."""

    def __init__(self, everybody: dict[str, Store], pages: Pages) -> None:
        self.everybody, self.pages = everybody, pages
        self.pieces = len(pages) // PIECE
        self._wanted = np.split(
            np.random.default_rng(4).permutation(self.pieces * PIECE), self.pieces
        )
        self._singles = [some.tolist() for some in self._wanted]
        self._out = np.zeros((PIECE, PAGE), np.uint8)

    def rows(self, algorithm: Algorithm, rounds: int) -> list[Row]:
        """Measure all stores."""
        us: dict[str, dict[str, float]] = {name: {} for name in self.everybody}
        # Some stores only append, so that all must work on the same piece.
        self._note(us, "store", self._fill, rounds, begin=self._open, apart=False)
        for name, one in self.everybody.items():
            one.load_many(self._wanted[0], self._out)
            assert np.array_equal(self._out, self.pages[self._wanted[0]]), (
                f"{name} gave other pages"
            )
        self._note(us, "load one", self._load, rounds)
        self._note(us, "load many", self._load_many, rounds)
        many = np.concatenate([self.pages] * _HELD_COPIES)
        for name, values in us.items():
            values["held"] = pss_growth(algorithm, name, many) / many.nbytes
        return [
            {"algorithm": algorithm.label, "what": "rival", "name": name, "us": values}
            for name, values in us.items()
        ]

    def _note(
        self,
        us: dict[str, dict[str, float]],
        what: str,
        work: Callable[[Store, int], None],
        rounds: int,
        **options: Any,
    ) -> None:
        calls = {name: partial(work, one) for name, one in self.everybody.items()}
        found = in_pieces(calls, self.pieces, rounds, **options)
        for name, spent in found.items():
            us[name][what] = of_pages(spent, self.pieces * PIECE)

    def _open(self) -> None:
        for one in self.everybody.values():
            one.open()

    def _fill(self, one: Store, piece: int) -> None:
        for at in range(piece * PIECE, (piece + 1) * PIECE, FOLIO_PAGES):
            one.store(at, self.pages[at : at + FOLIO_PAGES])

    def _load(self, one: Store, piece: int) -> None:
        load = one.load
        for index in self._singles[piece]:
            load(index)

    def _load_many(self, one: Store, piece: int) -> None:
        one.load_many(self._wanted[piece], self._out)


def _chosen(algorithm: Algorithm, pages: Pages, result: Result) -> Iterator[Store]:
    for one in contenders(algorithm, pages, result, zram=False):
        if one.name in OWN + RIVALS:
            yield one
        else:
            one.close()


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float]:
    found = spread(values.tolist())
    return found.low, found.high


def _us(spent: list[float], pages: int) -> float:
    return statistics.median(spent) / pages * 1e6


# Output.


def show(rows: list[Row]) -> None:
    """Print a table per part."""
    kinds = {
        "store": ("µs per page; on top of the work itself", "on top", "≤"),
        "load": ("µs per page; one load ÷ the bare call", "÷ bare", "≤"),
        "many": ("µs per page; load_many ÷ bare calls", "÷ bare", "≤"),
        "clients": ("µs per page stored and loaded; threads ÷ one", "times", "≥"),
    }
    for part, (title, heading, relation) in kinds.items():
        some = [row for row in rows if row["part"] == part]
        if not some:
            continue
        names = list(dict.fromkeys(name for row in some for name in row["us"]))
        table = Table(title)
        for head in ("", "pages", *names, heading, "quartiles", "goal"):
            table.add_column(head, left=not head)
        for row in some:
            low, high = row["spread"]
            goal = (
                ""
                if row["goal"] is None
                else f"{relation} {row['goal']:g} {_judged(row, relation)}"
            )
            table.add_row(
                f"{row['algorithm']}, {row['backend']}: {row['what']}",
                str(row["batch"]),
                *(f"{row['us'][name]:.2f}" if name in row["us"] else "" for name in names),
                f"{row['value']:.2f}",
                f"{low:.2f} … {high:.2f}",
                goal,
            )
        make_console().print(table)
    rivals = [row for row in rows if row["part"] == "rivals"]
    if rivals:
        table = Table("µs per page; * is the least of a column")
        names = list(rivals[0]["us"])
        for head in ("", *names):
            table.add_column(head, left=not head)
        for algorithm in dict.fromkeys(row["algorithm"] for row in rivals):
            some = [row for row in rivals if row["algorithm"] == algorithm]
            least = {name: min(row["us"][name] for row in some) for name in names}
            for row in some:
                cells = [
                    f"{'*' if row['us'][name] == least[name] else ''}{row['us'][name]:.3f}"
                    for name in names
                ]
                table.add_row(f"{algorithm}: {row['name']}", *cells)
            table.add_section()
        make_console().print(table)


def _judged(row: Row, relation: str) -> str:
    """Return the outcome of a row's goal: by the median, otherwise by the better quartile."""
    sign = 1 if relation == "≤" else -1
    low, high = row["spread"]
    if sign * row["value"] <= sign * row["goal"]:
        return "met"
    return "spread" if sign * (low if sign > 0 else high) <= sign * row["goal"] else "MISSED"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas (%(default)s)")
    parser.add_argument("--pages", type=int, default=8192, help="at most so many")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folios", default="1,8,64,256", help="pages of a folio, with commas")
    parser.add_argument("--batches", default="8,64,256,1024", help="pages loaded together")
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument("--backends", default=",".join(OWN), help="with commas (%(default)s)")
    parser.add_argument("--threads", type=_several, default=8, help="of clients (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="seconds of CPU, of the calling thread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.cpu and options.backends != "sequential":
        parser.error("--cpu goes with --backends sequential")
    clock = time.thread_time if options.cpu else time.perf_counter
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    folios = [int(size) for size in options.folios.split(",")]
    batches = [int(size) for size in options.batches.split(",")]
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % PIECE]
    if not len(pages):
        parser.error(f"at least {PIECE} pages are needed")
    if not all(PIECE % size == 0 for size in folios):
        parser.error(f"the sizes of folios divide {PIECE}")
    print(f"{platform.platform()}, Python {platform.python_version()}, {usable_cpus()} CPUs")
    print(f"load {os.getloadavg()[0]:.1f}, {len(pages)} pages, {options.rounds} rounds", flush=True)
    rows: list[Row] = []
    result = Result({}, {})
    for algorithm in parse_algorithms(options.algorithms):
        load = Load(algorithm, pages)
        for backend in options.backends.split(","):
            bench = Bench(algorithm, backend, load, clock)
            with bench.engine:
                rows += _measured(bench, options, parts, folios, batches)
        if "rivals" in parts:
            with ExitStack() as stack:
                everybody = {
                    one.name: stack.enter_context(one) for one in _chosen(algorithm, pages, result)
                }
                found = Rivals(everybody, pages).rows(algorithm, options.rounds)
            rows += [{**row, "part": "rivals"} for row in found]
    show(rows)
    for note in result.notes:
        print(f"missing: {note}")
    if options.json:
        options.json.write_text(json.dumps({"machine": result.machine, "rows": rows}, indent=2))


def _several(text: str) -> int:
    """Parse a number of threads that is greater than one."""
    if (found := int(text)) < 2:
        raise argparse.ArgumentTypeError("several are measured beside one; give 2 or more")
    return found


def _measured(
    bench: Bench,
    options: argparse.Namespace,
    parts: list[str],
    folios: list[int],
    batches: list[int],
) -> list[Row]:
    rounds = options.rounds
    found: list[Row] = []
    for size in folios if "store" in parts else []:
        found += [{**row, "part": "store"} for row in bench.store_rows(size, rounds)]
    if "load" in parts:
        found += [{**row, "part": "load"} for row in bench.load_rows(rounds)]
    for size in batches if "many" in parts else []:
        if size <= len(bench.pages):
            found += [{**row, "part": "many"} for row in bench.many_rows(size, rounds)]
    if "clients" in parts:
        found += [{**row, "part": "clients"} for row in bench.client_rows(options.threads, rounds)]
    return found


if __name__ == "__main__":
    main()
