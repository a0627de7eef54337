"""Break down the time of one load and one store into steps, in ns.

    python examples/benchmarks/steps.py [--algorithm lz4] [--pages 4096] [--rounds 25] [--cpu]
                                        [--folios 1,256] [--pid N | --file PATH | --workload KIND]
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

import argparse
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip import Engine, SwapStore
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.compressors import bare_calls, each
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.rounds import in_pieces, of_pages
from batchzip.core.folio import Folio
from batchzip.core.gather import gather
from batchzip.core.gather import load as core_load
from batchzip.store.arguments import as_pages, as_range
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages
    from batchzip.core.gather import Gathered

PIECE = 256
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

    def measured(self, rounds: int, calls: dict[str, Callable[[int], object]]) -> dict[str, float]:
        """Time each call with each piece. Return ns per page."""
        found = in_pieces(calls, self.pieces, rounds, clock=self.clock)
        return {name: of_pages(spent, self.pieces * PIECE) * 1e3 for name, spent in found.items()}

    # One load.

    def load(self, rounds: int) -> tuple[dict[str, float], float, float]:
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
        found = {
            "call": ns["kind"] - ns["loop"],
            "arguments": ns["filled"] - ns["core"],
            "lookup": ns["look up"],
            "copy": ns["gather"] - ns["look up"],
            **{name: float(np.median(values)) for name, values in steps.items()},
            "result": ns["core"] - ns["core to"],
        }
        return found, ns["load"], ns["bare"]

    def by_length(self, rounds: int) -> list[tuple[str, float, float | None]]:
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
        return [(name, ns[name], ns.get(f"bare {name}")) for name in firsts]

    # A folio.

    def folio(self, size: int, rounds: int) -> tuple[dict[str, float], float, float]:
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
        medians = {name: float(np.median(some)) - ns["clock"] for name, some in steps.items()}
        published = medians.pop("published")
        found = {
            "arguments": ns["arguments"],
            **medians,
            "  of which copy and test": ns["filled"],
            "  of which codec": ns["bare"],
            "published": published,
        }
        return found, ns["whole"], ns["bare"]

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


def show(title: str, steps: dict[str, float], whole: float, bare: float) -> None:
    """Print the steps and the unexplained rest."""
    table = Table(title)
    table.add_column("")
    table.add_column("ns per page")
    for name, ns in steps.items():
        table.add_row(name, f"{ns:.0f}")
    told = sum(ns for name, ns in steps.items() if not name.startswith(" "))
    table.add_row("rest", f"{whole - told:.0f}")
    table.add_section()
    table.add_row("whole", f"{whole:.0f}")
    table.add_row("bare call", f"{bare:.0f}")
    make_console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--algorithm", default="lz4", help="(%(default)s)")
    parser.add_argument("--folios", default="1,256", help="pages stored together, with commas")
    parser.add_argument("--pages", type=int, default=4096, help="at most so many")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--cpu", action="store_true", help="time of CPU, of this thread")
    parser.add_argument("--repeat", choices=("load", "store"), help="only this, for a profiler")
    options = parser.parse_args()
    (algorithm,) = parse_algorithms(options.algorithm)
    folios = [int(size) for size in options.folios.split(",")]
    if not all(PIECE % size == 0 for size in folios):
        parser.error(f"the sizes of folios divide {PIECE}")
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % PIECE]
    if not len(pages):
        parser.error(f"at least {PIECE} pages are needed")
    clock = time.thread_time if options.cpu else time.perf_counter
    with Engine(algorithm.name, backend="sequential", **algorithm.parameters) as engine:
        steps = Steps(engine, algorithm, pages, clock)
        with steps.store:
            if options.repeat:
                steps.repeat(options.repeat)
                return
            name = f"{algorithm.label}, {steps.mean:.0f} bytes stored"
            show(f"one load, {name}", *steps.load(options.rounds))
            table = Table("one load, by what is stored")
            for head in ("", "load, ns", "bare call, ns"):
                table.add_column(head, left=not head)
            for kind, ns, bare in steps.by_length(options.rounds):
                table.add_row(kind, f"{ns:.0f}", "" if bare is None else f"{bare:.0f}")
            make_console().print(table)
            for size in folios:
                show(
                    f"stored again in folios of {size}, {name}", *steps.folio(size, options.rounds)
                )


if __name__ == "__main__":
    main()
