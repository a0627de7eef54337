"""Break down the time of one load and one store into steps, in ns.

    python examples/benchmarks/steps.py [--algorithm lz4] [--pages 4096] [--rounds 25] [--cpu]
                                        [--folios 1,256] [--json FILE | --show FILE]
                                        [--pid N | --file PATH | --compile ARGS | --workload KIND]
    perf record -e cpu-clock -D 3000 python examples/benchmarks/steps.py --repeat load
                                        # or store; runs for 10 s

The time of a step is the difference of two calls of which one does the step and the other does not,
on the same pages in the same rounds:

call       a call of the core that looks up an absent index, minus the Python loop: Cython's
           arguments, releasing and taking the GIL, the mutex
arguments  `store.load` minus the core's load, both of same-filled pages: the Python part
lookup     gathering same-filled entries, per page: hash table, entry, LRU
copy       gathering compressed entries minus gathering same-filled ones: the object's word, and its
           bytes, which are not in a cache. The bare call has these misses, too, while it decodes.
checksum   verifying the gathered bytes, which are in the cache by then
decode     the codec on the verified bytes
result     same-filled pages as new bytes, minus into a buffer of the caller: allocating and freeing
           memory for a page
rest       the remainder: taking a coder from its list, counters, misses that do not overlap

The steps of a store are those of a folio: taken, compressed (a private copy, the same-filled test,
the codec, checksums), published (freeing old objects, room, copies, entries). `copy and test` is
compressing same-filled pages minus filling nothing. `codec` is the bare call. The rest of
`compressed` is checksums and bookkeeping.

The second table compares single loads with the bare call, by kind and length of the stored bytes.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip import Engine, SwapStore
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.compressors import bare_calls, each
from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.rounds import BLOCK, in_pieces, us_per_page
from batchzip.bench.script import Script, integers, progress
from batchzip.core.folio import Folio
from batchzip.core.gather import gather
from batchzip.core.gather import load as core_load
from batchzip.errors import BadArgument
from batchzip.store.arguments import as_pages, as_range
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Labels
    from batchzip.bench.pages import Pages
    from batchzip.core.gather import Gathered

    Times = dict[str, NDArray[np.float64]]
    """ns per page by step: a value for each block of rounds."""

PIECE = 256
NS = "ns per page"
WHOLE, BARE = "whole", "bare call"
PART_OF = "of which "
_GROUPS = 5
"""Pages per group of similar output lengths."""

_REPEAT_S = 10.0
_FAR = 1 << 40
"""Indices from here on are not stored. Indices from half of it on are same-filled."""


class Steps:
    """A store with pages from index 0 on, and as many same-filled pages at far higher indices."""

    def __init__(
        self, engine: Engine, algorithm: Algorithm, pages: Pages, clock: Callable[[], float]
    ) -> None:
        self.engine, self.pages, self.clock = engine, pages, clock
        self.pieces = len(pages) // PIECE
        self.store = SwapStore(engine)
        self.store.store(0, pages)
        self.same = np.full((PIECE, PAGE), 7, np.uint8)
        for at in range(0, len(pages), PIECE):
            self.store.store(_FAR // 2 + at, self.same)
        self._views = [page.data for page in pages]
        self._compress, self._decompress = bare_calls(algorithm)
        self._outputs = outputs = [self._compress(view) for view in self._views]
        self.mean = sum(map(len, outputs)) / len(outputs)
        order = np.random.default_rng(1).permutation(len(pages))
        self._order = np.split(order, self.pieces)
        self._indices = [some.tolist() for some in self._order]
        self._sources = [[outputs[index] for index in some] for some in self._indices]
        self._entries = self.store._entries  # noqa: SLF001 - measures internal steps
        self._room = np.zeros((PIECE, PAGE), np.uint8)
        self._out = memoryview(bytearray(PAGE))

    def measured(self, rounds: int, calls: dict[str, Callable[[int], object]]) -> Times:
        """Time each call with each piece. Return ns per page, a value for each block of rounds."""
        found = in_pieces(calls, self.pieces, rounds, clock=self.clock)
        count = self.pieces * PIECE
        return {name: np.array(us_per_page(spent, count)) * 1e3 for name, spent in found.items()}

    def _median(self, values: list[float], rounds: int) -> NDArray[np.float64]:
        """Return the median of all pieces for each block of rounds, without the warm-up round."""
        by_round = np.array(values[self.pieces :]).reshape(rounds, self.pieces)
        blocks = np.array_split(by_round, max(1, rounds // BLOCK))
        return np.array([np.median(block) for block in blocks])

    # One load.

    def load(self, rounds: int) -> Times:
        """Return the times of a load's steps, of a load, and of the bare call on the same bytes."""
        entries, out = self._entries, self._out
        coders = self.engine.backend.coders
        number = self.store._resources.writer.number  # noqa: SLF001 - as above
        far = _FAR // 2
        filled = [[far + index for index in some] for some in self._indices]
        absent = [[_FAR + index for index in some] for some in self._indices]
        gathered: list[Gathered] = []

        def core(piece: int) -> None:
            for index in filled[piece]:
                core_load(entries, index, None, exclusive=False)

        def core_to(piece: int) -> None:
            for index in filled[piece]:
                core_load(entries, index, out, exclusive=False)

        def keep(piece: int) -> None:
            gathered[:] = [gather(entries, self._order[piece], use=True)]

        steps: dict[str, list[float]] = {"checksum": [], "decode": []}

        def finish(piece: int) -> None:
            found = gather(entries, self._order[piece], use=True)
            begun = self.clock()
            found.check(self._room)
            checked = self.clock()
            found.restore(coders, number, self._room)
            steps["decode"].append((self.clock() - checked) / PIECE * 1e9)
            steps["checksum"].append((checked - begun) / PIECE * 1e9)

        far_order = [some + far for some in self._order]
        ns = self.measured(
            rounds,
            {
                "loop": lambda piece: each(abs, self._indices[piece]),
                "kind": lambda piece: each(entries.kind, absent[piece]),
                "filled": lambda piece: each(self.store.load, filled[piece]),
                "core": core,
                "core to": core_to,
                "look up": lambda piece: gather(entries, far_order[piece], use=True),
                "gather": keep,
                "finish": finish,
                "load": lambda piece: each(self.store.load, self._indices[piece]),
                "bare": lambda piece: each(self._decompress, self._sources[piece]),
            },
        )
        return {
            "call": ns["kind"] - ns["loop"],
            "arguments": ns["filled"] - ns["core"],
            "lookup": ns["look up"],
            "copy": ns["gather"] - ns["look up"],
            **{name: self._median(values, rounds) for name, values in steps.items()},
            "result": ns["core"] - ns["core to"],
            WHOLE: ns["load"],
            BARE: ns["bare"],
        }

    def by_length(self, rounds: int) -> dict[str, Times]:
        """Return the kind and length of the stored bytes, and the ns of a load and a bare call."""
        noise = np.random.default_rng(3).integers(0, 256, (PIECE, PAGE), np.uint8)
        by_length = np.argsort([len(output) for output in self._outputs])
        firsts = {"same-filled": _FAR // 2}
        sources: dict[str, list[bytes]] = {}
        for number, some in enumerate([*np.array_split(by_length, _GROUPS), None]):
            first = _FAR // 4 + (number << 30)
            if some is None:
                name, firsts["raw"] = "raw", first
            else:
                rows = np.resize(some, len(self.pages))
                # Copies, so that the bare call has as many cache misses as the load.
                outputs = [bytes(bytearray(self._outputs[row])) for row in rows.tolist()]
                name = f"{np.median([len(output) for output in outputs]):.0f} bytes"
                firsts[name], sources[name] = first, outputs
            for at in range(0, len(self.pages), PIECE):
                pages = noise if some is None else self.pages[rows[at : at + PIECE]]
                self.store.store(first + at, pages)
        calls: dict[str, Callable[[int], object]] = {}
        for name, first in firsts.items():
            where = [[first + index for index in some] for some in self._indices]
            calls[name] = partial(_each_of, self.store.load, where)
            if name in sources:
                own = [[sources[name][index] for index in some] for some in self._indices]
                calls[f"bare {name}"] = partial(_each_of, self._decompress, own)
        ns = self.measured(rounds, calls)
        return {
            name: {"load": ns[name]} | ({BARE: ns[f"bare {name}"]} if f"bare {name}" in ns else {})
            for name in firsts
        }

    # A folio.

    def folio(self, size: int, rounds: int) -> Times:
        """Return ns per page of the steps of replacing a folio, of the whole, and the bare call."""
        folios = [
            page.reshape(-1) if size == 1 else page
            for page in np.split(self.pages, len(self.pages) // size)
        ]
        matrices = np.split(self.pages, len(self.pages) // size)
        count = PIECE // size
        coders = self.engine.backend.coders
        number = self.store._resources.writer.number  # noqa: SLF001 - as above
        folio, other, same = Folio(PAGE), Folio(PAGE), self.same[:size]
        steps: dict[str, list[float]] = {name: [] for name in ("taken", "compressed", "published")}
        kinds = {"keep_poor": True, "keep_failed": False}

        def apart(piece: int) -> None:
            clock = self.clock
            spent = [0.0, 0.0, 0.0]
            for at in range(piece * count, (piece + 1) * count):
                times = [clock()]
                folio.take_matrix(matrices[at])
                times.append(clock())
                folio.compress(coders, number, **kinds)
                times.append(clock())
                folio.publish(self._entries, at * size)
                times.append(clock())
                folio.clear()
                spent = [
                    a + end - start for a, (start, end) in zip(spent, pairwise(times), strict=True)
                ]
            for values, seconds in zip(steps.values(), spent, strict=True):
                values.append(seconds / PIECE * 1e9)

        def filled(piece: int) -> None:
            del piece
            for _ in range(count):
                other.take_matrix(same)
                other.compress(coders, number, **kinds)
                other.clear()

        def arguments(piece: int) -> None:
            for at in range(piece * count, (piece + 1) * count):
                as_pages(folios[at], PAGE)
                as_range(at, size)

        def whole(piece: int) -> None:
            for at in range(piece * count, (piece + 1) * count):
                self.store.store(at * size, folios[at])

        ns = self.measured(
            rounds,
            {
                "apart": apart,
                "filled": filled,
                "arguments": arguments,
                "whole": whole,
                "bare": lambda piece: each(
                    self._compress, self._views[piece * PIECE : (piece + 1) * PIECE]
                ),
                "clock": lambda _: [self.clock() for _ in range(count)],
            },
        )
        # Between two steps the clock itself is read once.
        medians = {name: self._median(some, rounds) - ns["clock"] for name, some in steps.items()}
        published = medians.pop("published")
        return {
            "arguments": ns["arguments"],
            **medians,
            f"{PART_OF}copy and test": ns["filled"],
            f"{PART_OF}codec": ns["bare"],
            "published": published,
            WHOLE: ns["whole"],
            BARE: ns["bare"],
        }

    def repeat(self, what: str) -> None:
        """Repeat one operation, for a profiler."""
        until = time.perf_counter() + _REPEAT_S
        while time.perf_counter() < until:
            if what == "load":
                for some in self._indices:
                    each(self.store.load, some)
            else:
                for at in range(0, len(self.pages), 16):
                    self.store.store(at, self.pages[at : at + 16])


def _each_of(call: Callable[[Any], object], arguments: list[list[Any]], piece: int) -> None:
    each(call, arguments[piece])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--algorithm", default="lz4", help="(%(default)s)")
    parser.add_argument(
        "--folios", type=integers, default=[1, 256], help="pages stored together, with commas"
    )
    parser.add_argument("--pages", type=int, default=4096, help="at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--cpu", action="store_true", help="CPU time of the calling thread")
    parser.add_argument("--repeat", choices=("load", "store"), help="only this, for a profiler")


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    (algorithm,) = parse_algorithms(options.algorithm)
    if not all(PIECE % size == 0 for size in options.folios):
        raise BadArgument(f"--folios has sizes that divide {PIECE}")
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % PIECE]
    if not len(pages):
        raise BadArgument(f"there are fewer than {PIECE} pages: at least {PIECE} are needed")
    settings = {"source": source_of(options).name, "pages": len(pages), "rounds": options.rounds}
    result = Result({**settings, "clock": "CPU" if options.cpu else "wall"}, {"steps": BARE})
    clock = time.thread_time if options.cpu else time.perf_counter
    with Engine(algorithm.name, backend="sequential", **algorithm.parameters) as engine:
        steps = Steps(engine, algorithm, pages, clock)
        with steps.store:
            if options.repeat:
                steps.repeat(options.repeat)
                return result
            labels: Labels = {"benchmark": "steps", "algorithm": algorithm.label}

            def add(operation: str, part: str, times: Times) -> None:
                for name, values in times.items():
                    where = {**labels, "operation": operation, "part": part}
                    result.add(where, name, NS, values.tolist())

            progress("one load")
            stored = f"{steps.mean:.0f} bytes stored"
            add("one load", stored, steps.load(options.rounds))
            for kind, times in steps.by_length(options.rounds).items():
                add(BY_LENGTH, kind, times)
            for size in options.folios:
                progress(f"folios of {size}")
                times = steps.folio(size, options.rounds)
                add(f"stored again in folios of {size}", stored, times)
    return result


BY_LENGTH = "one load, by what is stored"


def tables(result: Result) -> Iterator[Table]:
    """Yield a table of the steps of each operation, and of loads by length."""
    for operation in result.names("operation"):
        figures = result.of(operation=operation)
        if operation == BY_LENGTH:
            yield _by_length_table(result)
            continue
        labels = figures[0].labels
        table = Table(f"{operation}, {labels['algorithm']}, {labels['part']}: {NS}")
        table.add_column("step")
        table.add_column("ns")
        of = {one.contender: one.median for one in figures}
        whole, bare = of.pop(WHOLE), of.pop(BARE)
        for name, ns in of.items():
            table.add_row(name, f"{ns:.0f}")
        told = sum(ns for name, ns in of.items() if not name.startswith(PART_OF))
        table.add_row("rest", f"{whole - told:.0f}")
        table.add_section()
        table.add_row(WHOLE, f"{whole:.0f}")
        table.add_row(BARE, f"{bare:.0f}")
        yield table


def _by_length_table(result: Result) -> Table:
    table = Table(f"{BY_LENGTH}: {NS}")
    for head in ("", "load", BARE):
        table.add_column(head)
    for kind in result.names("part", operation=BY_LENGTH):
        of = {one.contender: one for one in result.of(operation=BY_LENGTH, part=kind)}
        cells = (f"{of[name].median:.0f}" if name in of else "" for name in ("load", BARE))
        table.add_row(str(kind), *cells)
    return table


SCRIPT = Script(__doc__, add_options, measure, tables)

if __name__ == "__main__":
    SCRIPT.main()
