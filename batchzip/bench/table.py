"""Tables of results, with one line per contender, so that they fit a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from batchzip.bench import compress, swap
from batchzip.bench.ahead import ahead
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table
from batchzip.terminal.text import paragraph_columns, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchzip.bench.compare import Comparison
    from batchzip.bench.figure import Figure, Result
    from batchzip.bench.spread import Spread

LIMIT = "limit"
"""The name of the bound that no contender reaches, which is not marked as the fastest."""

_ABOUT = "medians ± % (half the distance of the quartiles)"


def with_spread(found: Spread, digits: int = 2) -> str:
    """Return a median, and ± half the distance between the quartiles in percent of it."""
    return f"{found.median:,.{digits}f} ±{found.percent:.0f}"


def compress_tables(result: Result) -> Iterable[Table]:
    """Yield a table of µs per page for each algorithm and operation. A * marks the fastest."""
    figures = result.of(benchmark="compress")
    for algorithm in dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures):
        for operation in ("compress", "decompress"):
            mine = result.of(benchmark="compress", algorithm=algorithm, operation=operation)
            if mine:
                yield _batches(f"{algorithm}, {operation}: {compress.QUANTITY}, {_ABOUT}", mine)


def _batches(title: str, figures: Sequence[Figure]) -> Table:
    by = {(figure.contender, figure.labels["batch"]): figure for figure in figures}
    batches = list(dict.fromkeys(figure.labels["batch"] for figure in figures))
    fastest = {
        min(
            (f for f in figures if f.labels["batch"] == batch and f.contender != LIMIT),
            key=lambda f: f.median,
        ).key
        for batch in batches
    }
    table = Table(title)
    table.add_column("pages per batch", rank=0)
    for batch in batches:
        table.add_column(str(batch), rank=1)
    ratios = {one.contender: one.ratio for one in figures if one.ratio is not None}
    if ratios:
        table.add_column("ratio", rank=2)
    for name in dict.fromkeys(figure.contender for figure in figures):
        cells = []
        for batch in batches:
            figure = by.get((name, batch))
            if figure is None:
                cells.append("")
                continue
            star = "*" if figure.key in fastest and len(by) > len(batches) else ""
            cells.append(star + with_spread(figure.spread))
        ratio = [f"{ratios[name]:.2f}" if name in ratios else "-"] * bool(ratios)
        table.add_row(name, *cells, *ratio)
    return table


_RANKS = dict(zip(swap.QUANTITIES, (1, 1, 5, 3, 6, 2), strict=True))


def swap_tables(result: Result) -> Iterable[Table]:
    """Yield a table for each algorithm."""
    figures = result.of(benchmark="swap")
    for algorithm in dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures):
        mine = [figure for figure in figures if figure.labels["algorithm"] == algorithm]
        by = {(figure.contender, figure.quantity): figure for figure in mine}
        table = Table(f"{algorithm}, stored and loaded: µs per page, {_ABOUT}")
        table.add_column("")
        for quantity, rank in _RANKS.items():
            table.add_column(_heading(quantity), rank=rank)
        for name in dict.fromkeys(figure.contender for figure in mine):
            cells = []
            for quantity in swap.QUANTITIES:
                figure = by[name, quantity]
                held = f"{figure.median:.3f}"
                cells.append(held if quantity == swap.HELD else with_spread(figure.spread))
            table.add_row(name, *cells)
        yield table


def _heading(quantity: str) -> str:
    """Return a quantity in lines of one or two words, without its unit, which the title shows."""
    return quantity.partition(",")[0].replace("single ", "single\n").replace(" ÷ ", "\n÷ ")


def heading(result: Result) -> list[str]:
    """Return lines that tell machine, versions and settings."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    names = [str(machine[key]) for key in ("platform", "processor") if key in machine]
    load = [f"load {machine['load']:.1f}"] if "load" in machine else []
    return [
        ", ".join([*names, f"{machine['cpus']} CPUs", *load]),
        versions,
        ", ".join(f"{name} {_setting(value)}" for name, value in result.settings.items()),
    ]


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {of}" for name, of in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def bench_tables(result: Result) -> Iterable[Table]:
    """Yield the tables of a result of `batchzip bench`."""
    yield from compress_tables(result)
    yield from swap_tables(result)


def print_result(
    result: Result,
    tables: Callable[[Result], Iterable[Table]] = bench_tables,
    remarks: Callable[[Result], Iterable[str]] = ahead,
) -> None:
    """Print the machine and settings, the tables, the remarks, and the notes."""
    out = make_console()
    width = paragraph_columns()
    for line in heading(result):
        out.write_line(wrapped(line, width, indent="  "))
    for table in tables(result):
        out.print(table)
    out.write_line()
    for line in (*remarks(result), *(f"note: {note}" for note in result.notes)):
        out.write_line(wrapped(line, width, indent="  "))
    sys.stdout.flush()


def print_changes(compared: Comparison) -> None:
    """Print the figures that became slower or faster, and the number of all figures."""
    changes = compared.changes
    out = make_console()
    table = Table("figures ÷ their baselines of the same rounds, medians ± %")
    table.add_column("", wraps=True)
    for rank, head in ((0, "contender"), (3, "figure")):
        table.add_column(head, rank=rank, left=True)
    for rank, head in ((2, "old"), (1, "new"), (0, "change")):
        table.add_column(head, rank=rank)
    counts = {"slower": 0, "faster": 0, "same": 0}
    for change in changes:
        counts[change.verdict] += 1
        if change.verdict == "same":
            continue
        what = " ".join(str(value) for value in change.figure.labels.values())
        table.add_row(
            f"{change.verdict}: {what}",
            change.figure.contender,
            change.figure.quantity,
            with_spread(change.old),
            with_spread(change.new),
            f"{change.change:+.1%}",
        )
    if table.row_count:
        out.print(table)
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    out.write_line(f"{len(changes)} figures: {text}")
    if compared.missing:
        names = [
            " ".join(map(str, (*one.labels.values(), one.contender, one.quantity)))
            for one in compared.missing
        ]
        line = f"not measured, but in the old result: {'; '.join(names)}"
        out.write_line(wrapped(line, paragraph_columns(), indent="  "))
    sys.stdout.flush()
