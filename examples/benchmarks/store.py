"""Compare the store with bare codec calls and with its alternatives, and judge goals.

    python examples/benchmarks/store.py [--parts store,load,many,clients,rivals] [--rounds 15]
                                        [--folios 1,8,64,256] [--batches 8,64,256,1024]
                                        [--algorithms lz4,zstd:1] [--backends sequential,threads]
                                        [--pages 8192] [--threads 8] [--cpu]
                                        [--json FILE | --show FILE]
                                        [--pid N | --file PATH | --compile ARGS | --workload KIND]

Pages are those of a real process, shuffled, without same-filled ones. `bare` is a Python loop of
codec calls. Contenders run in the same rounds and take turns at pieces of 256 pages. None works on
a piece that another one has just brought into the cache. A value is that of three rounds, in which
each piece counts with its median.

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
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
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
from batchzip.bench.rounds import in_pieces, seconds, us_per_page
from batchzip.bench.script import Script, chosen, integers, progress
from batchzip.bench.spread import speed, spread
from batchzip.bench.stores import FOLIO_PAGES
from batchzip.errors import BadArgument
from batchzip.system.segment import Segment
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Figure, Labels
    from batchzip.bench.pages import Pages
    from batchzip.bench.spread import Spread
    from batchzip.bench.stores import Store

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
US, HELD = "µs per page", "held ÷ size"
CLIENTS, PROCESSES = "store and load", "processes"
MACHINE_PAGE = mmap.PAGESIZE
_OUTPUT_BYTES = PAGE + 64
_HELD_COPIES = 4
"""Times that the pages are stored to measure memory, because 8,192 pages are too few."""


class Bench:
    """An algorithm, an engine with one backend, and the pages in all needed forms."""

    def __init__(
        self,
        result: Result,
        algorithm: Algorithm,
        backend: str,
        load: Load,
        clock: Callable[[], float],
    ) -> None:
        self.result, self.algorithm, self.backend, self.clock = result, algorithm, backend, clock
        self.engine = batchzip.Engine(algorithm.name, backend=backend, **algorithm.parameters)
        self.engine.wait_ready(60)
        self.load = load
        self.pages, self.views, self.outputs = load.pages, load.views, load.outputs
        self.pieces = len(self.pages) // PIECE
        self.compress, self.decompress = bare_calls(algorithm)

    def add(self, part: str, batch: int, us: dict[str, list[float]]) -> None:
        """Add the figures of a case."""
        labels: Labels = {"benchmark": "store", "part": part, "algorithm": self.algorithm.label}
        labels |= {"backend": self.backend, "batch": batch}
        for name, values in us.items():
            self.result.add(labels, name, US, values)

    def add_pieces(self, part: str, batch: int, found: dict[str, NDArray[np.float64]]) -> None:
        """Add the figures of a case from the seconds of `in_pieces`."""
        count = next(iter(found.values())).shape[1] * (batch if part == "many" else PIECE)
        us = {name: us_per_page(spent, count) for name, spent in found.items()}
        self.add(part, batch, us)

    def of(self, piece: int) -> range:
        """Return the numbers of a piece's pages."""
        return range(piece * PIECE, (piece + 1) * PIECE)

    # Parts.

    def store_folios(self, size: int, rounds: int) -> None:
        """Measure stores of new and of replaced folios of `size`."""
        engine, pages = self.engine, self.pages
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
        self.add_pieces("store", size, found)

    def load_pages(self, rounds: int) -> None:
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
        self.add_pieces("load", 1, found)

    def load_batches(self, size: int, rounds: int) -> None:
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
        self.add_pieces("many", size, found)

    def clients(self, threads: int, rounds: int) -> None:
        """Measure several threads and one, with the store and with its parts."""
        ways: dict[str, Callable[[], Callable[[range], None]]] = {
            CLIENTS: self._storing,
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
                    calls[f"{name}, {_threads(number)}"] = partial(
                        _at_once, pool, parts, number, make
                    )
            with ExitStack() as stack:
                if self.backend == "sequential":
                    # All CPUs ÷ one: all processes run at the same time, each over all pages.
                    limit = stack.enter_context(Limit(self.load))
                    calls[f"{PROCESSES}, {_threads(1)}"] = self._bare_loop
                    calls[f"{PROCESSES}, {_threads(threads)}"] = partial(self._limit_loop, limit)
                found = seconds(calls, rounds)
        count = len(self.pages)
        us = {name: [value / count * 1e6 for value in values] for name, values in found.items()}
        self.add("clients", FOLIO_PAGES, us)

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

    def measure(self, result: Result, algorithm: Algorithm, rounds: int) -> None:
        """Measure all stores."""
        labels: Labels = {"benchmark": "store", "part": "rivals", "algorithm": algorithm.label}

        def add(what: str, work: Callable[[Store, int], None], **options: Any) -> None:
            calls = {name: partial(work, one) for name, one in self.everybody.items()}
            found = in_pieces(calls, self.pieces, rounds, **options)
            for name, spent in found.items():
                us = us_per_page(spent, self.pieces * PIECE)
                result.add({**labels, "what": what}, name, US, us)

        # Some stores only append, so that all must work on the same piece.
        add("store", self._fill, begin=self._open, apart=False)
        for name, one in self.everybody.items():
            one.load_many(self._wanted[0], self._out)
            assert np.array_equal(self._out, self.pages[self._wanted[0]]), (
                f"{name} gave other pages"
            )
        add("load one", self._load)
        add("load many", self._load_many)
        many = np.concatenate([self.pages] * _HELD_COPIES)
        for name in self.everybody:
            held = pss_growth(algorithm, name, many) / many.nbytes
            result.add({**labels, "what": "memory"}, name, HELD, [held])

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


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


# Output.


def tables(result: Result) -> Iterator[Table]:
    """Yield a table per part."""
    for part, title, heading, cells in (
        ("store", "µs per page; `on top` of the work itself", "on top", _store_cells),
        ("load", "µs per page; one load ÷ the bare call", "÷ bare", _load_cells),
        ("many", "µs per page; load_many ÷ bare calls", "÷ bare", _load_cells),
    ):
        figures = result.of(part=part)
        if not figures:
            continue
        names = list(dict.fromkeys(one.contender for one in figures))
        table = Table(title)
        for head in ("", "pages", *names):
            table.add_column(head)
        for head in (heading, "goal"):
            table.add_column(head, left=True)
        for labels in _cases(figures):
            of = {one.contender: one for one in result.of(**labels)}
            us = [f"{of[name].median:.2f}" for name in names]
            for what, found, goal in cells(labels, of):
                row = f"{labels['algorithm']}, {labels['backend']}: {what}"
                table.add_row(row, str(labels["batch"]), *us, *_judged(found, goal))
        yield table
    if result.of(part="clients"):
        yield _clients_table(result)
    if result.of(part="rivals"):
        yield _rivals_table(result)


def _cases(figures: list[Figure]) -> list[Labels]:
    found: list[Labels] = []
    for one in figures:
        if one.labels not in found:
            found.append(one.labels)
    return found


def _store_cells(labels: Labels, of: dict[str, Figure]) -> Iterator[tuple[str, Spread, str]]:
    base = of["bare" if labels["backend"] == "sequential" else "engine"].values
    most = STORE_GOALS.get(int(labels["batch"]))
    for name in ("new", "again"):
        more = [a - b for a, b in zip(of[name].values, base, strict=True)]
        yield f"store {name}", spread(more), "" if most is None else f"≤ {most:g}"


def _load_cells(labels: Labels, of: dict[str, Figure]) -> Iterator[tuple[str, Spread, str]]:
    for name in (name for name in of if name.startswith("load")):
        goal = f"≤ {LOAD_GOAL:g}" if name == "load" and labels["part"] == "load" else ""
        # The time relative to the bare call's, not the speed.
        yield name, speed(of[name].values, of["bare"].values), goal


def _judged(found: Spread, goal: str) -> tuple[str, str]:
    """Return the cells of a ratio or an excess and its goal, judged by median, else quartile."""
    text = f"{found.median:.2f} ({found.low:.2f} … {found.high:.2f})"
    if not goal:
        return text, ""
    most = float(goal.split()[1])
    sign = 1 if goal.startswith("≤") else -1
    if sign * found.median <= sign * most:
        return text, f"{goal} met"
    better = found.low if sign > 0 else found.high
    return text, f"{goal} {'spread' if sign * better <= sign * most else 'MISSED'}"


def _clients_table(result: Result) -> Table:
    figures = result.of(part="clients")
    threads = f"{result.settings['threads']} threads"
    table = Table("µs per page stored and loaded; several threads relative to one")
    for head in ("", "pages", "1 thread", threads):
        table.add_column(head)
    for head in ("times as fast", "goal"):
        table.add_column(head, left=True)
    for labels in _cases(figures):
        of = {one.contender: one for one in result.of(**labels)}
        for name in dict.fromkeys(name.rpartition(", ")[0] for name in of):
            one, several = of[f"{name}, 1 thread"], of[f"{name}, {threads}"]
            found = speed(one.values, several.values)
            table.add_row(
                f"{labels['algorithm']}, {labels['backend']}: {name}",
                str(labels["batch"]),
                f"{one.median:.2f}",
                f"{several.median:.2f}",
                *_judged(found, f"≥ {CLIENTS_GOAL:g}" if name == CLIENTS else ""),
            )
    return table


def _rivals_table(result: Result) -> Table:
    table = Table("µs per page; * is the least of a column")
    whats = result.names("what", part="rivals")
    for head in ("", *whats):
        table.add_column(str(head))
    for algorithm in result.names("algorithm", part="rivals"):
        figures = result.of(part="rivals", algorithm=algorithm)
        of = {(one.contender, one.labels["what"]): one.median for one in figures}
        names = list(dict.fromkeys(name for name, _ in of))
        least = {what: min(of[name, what] for name in names) for what in whats}
        for name in names:
            cells = (
                f"{'*' * (of[name, what] == least[what])}{of[name, what]:.3f}" for what in whats
            )
            table.add_row(f"{algorithm}: {name}", *cells)
        table.add_section()
    return table


def _several(text: str) -> int:
    """Parse a number of threads that is greater than one."""
    if (found := int(text)) < 2:
        raise argparse.ArgumentTypeError("several are measured beside one; give 2 or more")
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--parts", type=chosen(PARTS), default=PARTS, help="with commas")
    parser.add_argument("--pages", type=int, default=8192, help="at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--folios", type=integers, default=[1, 8, 64, 256], help="pages of a folio, with commas"
    )
    parser.add_argument(
        "--batches", type=integers, default=[8, 64, 256, 1024], help="pages loaded together"
    )
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument("--backends", type=chosen(OWN), default=OWN, help="with commas")
    parser.add_argument("--threads", type=_several, default=8, help="of clients (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="CPU time of the calling thread")


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    if options.cpu and list(options.backends) != ["sequential"]:
        raise BadArgument("--cpu needs --backends sequential")
    if not all(PIECE % size == 0 for size in options.folios):
        raise BadArgument(f"--folios has sizes that divide {PIECE}")
    clock = time.thread_time if options.cpu else time.perf_counter
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % PIECE]
    if not len(pages):
        raise BadArgument(f"there are fewer than {PIECE} pages: at least {PIECE} are needed")
    settings = {"source": source_of(options).name, "pages": len(pages), "rounds": options.rounds}
    settings |= {"threads": options.threads, "clock": "CPU" if options.cpu else "wall"}
    result = Result(settings, {"store": "bare"})
    for algorithm in parse_algorithms(options.algorithms):
        load = Load(algorithm, pages)
        for backend in options.backends:
            progress(f"{algorithm.label}, {backend}")
            bench = Bench(result, algorithm, backend, load, clock)
            with bench.engine:
                _measure(bench, options)
        if "rivals" in options.parts:
            progress(f"{algorithm.label}, rivals")
            with ExitStack() as stack:
                everybody = {
                    one.name: stack.enter_context(one) for one in _chosen(algorithm, pages, result)
                }
                Rivals(everybody, pages).measure(result, algorithm, options.rounds)
    return result


def _measure(bench: Bench, options: argparse.Namespace) -> None:
    parts, rounds = options.parts, options.rounds
    for size in options.folios if "store" in parts else []:
        bench.store_folios(size, rounds)
    if "load" in parts:
        bench.load_pages(rounds)
    for size in options.batches if "many" in parts else []:
        if size <= len(bench.pages):
            bench.load_batches(size, rounds)
    if "clients" in parts:
        bench.clients(options.threads, rounds)


SCRIPT = Script(__doc__, add_options, measure, tables)

if __name__ == "__main__":
    SCRIPT.main()
