"""Let a store and a mapping grow in all directions: cost and memory must stay constant.

    python examples/benchmarks/growth.py [--parts pages,page-size,groups,clients,readers,values]
                                         [--largest 1000000] [--rounds 5]
                                         [--json FILE | --show FILE] [--plot PNG]

pages      A store of 10⁴ to --largest pages. They are synthetic, so that ten million fit: one in
           four is same-filled, and lz4 compresses each of the others to about 30 bytes. The store
           is filled to each size in turn. The cost of a store is that of the last pages. Random
           pages of the whole store give the costs of single loads, of loads in batches of 256, and
           of replacing pages, in place or after invalidating them.
page-size  64 MiB of real pages in pages of 4 KiB to 2 MiB, in µs per MiB.
groups     Folios of 16 real pages in 1 to 10⁴ groups of one store.
clients    1 to 64 threads that store folios of 16 into one store and load single pages, in µs per
           page of all threads together.
readers    1 to 32 processes that attach to a store and load single pages at the same time.
values     A mapping of 10³ to --largest values of 200 bytes: put, get, and batches of 256.

The backend is sequential, because the store grows and the codec does not matter. `memory only` is
the cost of memory accesses: the entry, the handle's word and the object's bytes of random pages are
read, singly or 256 at a time, and nothing else is done. The memory is as large as the store's
tables and objects. Entries are in private memory, words and objects in shared memory. The growth of
a load beyond that of its memory accesses is not caused by cache misses.

`exponent` is that of a power law fitted to cost and size: 0 is constant, 1 is proportional to the
size. `tables` and `pool` are the store's own figures. `process` is the growth of the process since
the store got its first folio, including the pool's shared memory.
"""

from __future__ import annotations

from contextlib import closing
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
from growing import Grouped, Growing, Memory, Sized, Values, clients
from usemem import READ_TIME, Processes

import batchzip
from batchzip.bench.algorithm import Algorithm
from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE, Source, work_pages
from batchzip.bench.script import Script, chosen, progress
from batchzip.bench.style import OTHERS, OWN, REFERENCE, drawing
from batchzip.bench.table import with_spread
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from batchzip.bench.figure import Figure, Labels
    from batchzip.bench.pages import Pages

MEMORY_ONLY = "memory only"

UNITS = {
    "pages": ("pages stored", "µs per page", "bytes per page"),
    "page-size": ("bytes of a page", "µs per MiB", "bytes held per byte"),
    "groups": ("groups", "µs", ""),
    "clients": ("threads", "µs per page", ""),
    "readers": ("processes", "µs per page", ""),
    "values": ("values", "µs per value", "bytes per value"),
}
"""By part: what grows, and the units of costs and of sizes."""

PAGE_SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20)
GROUPS = (1, 10, 100, 1_000, 10_000)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
READERS = (1, 2, 4, 8, 16, 32)


class Part:
    """A part of the result while it is measured."""

    def __init__(self, result: Result, name: str, rounds: int) -> None:
        self._result, self._name, self._rounds = result, name, rounds

    def add(self, size: int, measure: Callable[[], dict[str, float]]) -> None:
        """Measure the costs at a size in each round, and add them."""
        progress(f"{self._name}: {size:,}")
        rounds = [measure() for _ in range(self._rounds)]
        for name in rounds[0]:
            self._keep(size, name, UNITS[self._name][1], [one[name] for one in rounds])

    def add_sizes(self, size: int, held: dict[str, float]) -> None:
        """Add the memory at a size."""
        for name, value in held.items():
            self._keep(size, name, UNITS[self._name][2], [value])

    def add_once(self, size: int, name: str, value: float) -> None:
        """Add a cost that can be measured only once."""
        self._keep(size, name, UNITS[self._name][1], [value])

    def _keep(self, size: int, name: str, quantity: str, values: list[float]) -> None:
        labels: Labels = {"benchmark": "growth", "part": self._name, "size": size}
        self._result.add(labels, name, quantity, values)


def powers_of_ten(first: int, largest: int) -> Iterable[int]:
    """Yield first, 10 × first, … up to `largest`."""
    for power in count():
        if (size := first * 10**power) > largest:
            return
        yield size


def grow_pages(part: Part, options: argparse.Namespace) -> None:
    """Measure a store of 10⁴ to 10⁷ pages."""
    with (
        batchzip.Engine("lz4", backend="sequential") as engine,
        batchzip.SwapStore(engine) as store,
    ):
        growing = Growing(store)
        for size in powers_of_ten(10_000, options.largest):
            part.add_once(size, "store", growing.fill(size))
            with closing(Memory(size)) as memory:
                part.add(
                    size,
                    lambda memory=memory: {  # type: ignore[misc]
                        "single load": growing.load(),
                        "load_many": growing.load_many(),
                        "replace": growing.replace(invalidate=False),
                        "invalidate and store": growing.replace(invalidate=True),
                        f"single load, {MEMORY_ONLY}": memory.read(),
                        f"load_many, {MEMORY_ONLY}": memory.read_many(),
                    },
                )
            part.add_sizes(size, growing.held())


def grow_page_size(part: Part, options: argparse.Namespace) -> None:
    """Measure pages of 4 KiB to 2 MiB."""
    pages = _some_pages(options)
    whole = len(pages) * PAGE // (2 << 20) * (2 << 20) // PAGE
    for size in PAGE_SIZES if whole else ():
        with Sized(size, pages[:whole]) as sized:
            part.add(size, sized.measure)
            part.add_sizes(size, {"store": sized.held})


def grow_groups(part: Part, options: argparse.Namespace) -> None:
    """Measure 1 to 10⁴ groups."""
    pages = _some_pages(options)
    for groups in GROUPS:
        with Grouped(groups, pages) as grouped:
            part.add(groups, grouped.measure)


def grow_clients(part: Part, options: argparse.Namespace) -> None:
    """Measure 1 to 64 threads."""
    pages = _some_pages(options)
    for number in CLIENTS:
        part.add(number, lambda number=number: clients(number, pages))  # type: ignore[misc]


def grow_readers(part: Part, options: argparse.Namespace) -> None:
    """Measure 1 to 32 processes that read."""
    pages = _some_pages(options)
    with (
        batchzip.Engine("lz4", backend="sequential") as engine,
        batchzip.SwapStore(engine) as store,
    ):
        store.store(0, pages)
        address = store.share().address
        for number in READERS:
            with Processes(Algorithm("lz4"), [pages[: 4 * 1024]] * number) as processes:

                def measure(processes: Processes = processes) -> dict[str, float]:
                    return {"attached load": processes.load(address, len(pages))[READ_TIME]}

                part.add(number, measure)


def grow_values(part: Part, options: argparse.Namespace) -> None:
    """Measure a mapping of 10³ to 10⁷ values."""
    with Values() as values:
        for size in powers_of_ten(1_000, options.largest):
            part.add_once(size, "update", values.fill(size))
            part.add(size, values.measure)
            part.add_sizes(size, values.held())


PARTS = {
    "pages": grow_pages,
    "page-size": grow_page_size,
    "groups": grow_groups,
    "clients": grow_clients,
    "readers": grow_readers,
    "values": grow_values,
}


def _some_pages(options: argparse.Namespace) -> Pages:
    """Return real pages, 64 MiB at most and fewer if --largest is smaller."""
    return work_pages(Source(), min(16_384, options.largest))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--parts", type=chosen(PARTS), default=list(PARTS), help="with commas")
    parser.add_argument(
        "--largest", type=int, default=1_000_000, help="pages, and values (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5)


def measure(options: argparse.Namespace) -> Result:
    """Measure the parts."""
    result = Result({"largest": options.largest, "rounds": options.rounds}, {})
    for name in options.parts:
        PARTS[name](Part(result, name, options.rounds), options)
    return result


def exponent(figures: list[Figure]) -> float | None:
    """Return the exponent of the power law that fits best. Two sizes or more are needed."""
    points = [(int(one.labels["size"]), one.median) for one in figures if one.median > 0]
    if len(points) < 2:
        return None
    sizes, costs = np.log(np.array(points, float)).T
    return float(np.polyfit(sizes, costs, 1)[0])


def tables(result: Result) -> Iterator[Table]:
    """Yield a table of costs and one of sizes for each part, with a column per size."""
    for part in result.names("part"):
        what, *units = UNITS[str(part)]
        sizes = result.names("size", part=part)
        for unit in filter(None, units):
            of: dict[str, dict[int | str, Figure]] = {}
            for one in result.of(part=part):
                if one.quantity == unit:
                    of.setdefault(one.contender, {})[one.labels["size"]] = one
            if not of:
                continue
            table = Table(f"{unit}, by {what}")
            table.add_column(what)
            for size in sizes:
                table.add_column(f"{size:,}")
            table.add_column("exponent", rank=0)
            for name, by_size in of.items():
                power = exponent(list(by_size.values()))
                table.add_row(
                    name,
                    *(_cell(by_size[at]) if at in by_size else "" for at in sizes),
                    "" if power is None else f"{power:+.2f}",
                )
            yield table


def _cell(one: Figure) -> str:
    return with_spread(one.spread, 0 if one.median >= 100 else 2)


def draw(result: Result, path: Path) -> None:
    """Draw the costs of each part against what grows."""
    parts = result.names("part")
    rows = -(-len(parts) // 2)
    with drawing(path, 0.5 + 3.0 * rows, "Growth: flat is good (less is better)") as picture:
        panels = picture.subplots(rows, 2, squeeze=False).flat
        for axes, part in zip(panels, parts, strict=False):
            what, unit, _ = UNITS[str(part)]
            styles = chain(OWN, OTHERS)
            figures = [one for one in result.of(part=part) if one.quantity == unit]
            for name in dict.fromkeys(one.contender for one in figures):
                mine = [one for one in figures if one.contender == name]
                style = REFERENCE if name.endswith(MEMORY_ONLY) else next(styles)
                sizes = [int(one.labels["size"]) for one in mine]
                axes.plot(sizes, [one.median for one in mine], label=name, **style)
            axes.set_xscale("log")
            axes.set_ylim(0)
            axes.set_xlabel(what)
            axes.set_title(unit)
            axes.grid(visible=True, axis="y")
        for axes in list(panels):
            axes.set_axis_off()


SCRIPT = Script(__doc__, add_options, measure, tables, draw=draw)

if __name__ == "__main__":
    SCRIPT.main()
