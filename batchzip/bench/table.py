"""Tables: results for people, on a terminal or in a text file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from batchzip.bench import compress, swap
from batchzip.bench.ahead import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchzip.bench.compare import Change
    from batchzip.bench.figure import Figure, Result
    from batchzip.bench.rounds import Spread

_WIDTH = 140
"""Columns, where the output is no terminal or a narrow one: figures must not be cut."""


class _Output(Console):
    """A console that leaves a closed pipe to its caller instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Make the console for tables."""
    found = _Output()
    return found if found.width >= _WIDTH else _Output(width=_WIDTH)


def grid(
    title: str,
    rows: Iterable[tuple[Sequence[str], Sequence[Figure]]],
    cell: Callable[[Figure], str],
    heads: Sequence[str],
) -> Table:
    """Make a table with a column for each contender; a row is its heads and its figures."""
    content = list(rows)
    names = list(dict.fromkeys(figure.contender for _, row in content for figure in row))
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for head_cells, row in content:
        by_name = {figure.contender: cell(figure) for figure in row}
        table.add_row(*head_cells, *(by_name.get(name, "") for name in names))
    return table


def spread_percent(figure: Figure | Spread) -> float:
    """Half of what lies between the quartiles, in percent of the median."""
    return (figure.high - figure.low) / 2 / figure.median * 100 if figure.median else 0.0


def compress_tables(result: Result) -> Iterable[Table]:
    """Give a table for each algorithm: µs per page, the best batchzip or peer marked by a *."""
    figures = result.of(benchmark="compress")
    for algorithm in dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures):
        mine = [figure for figure in figures if figure.labels["algorithm"] == algorithm]
        ratios = {figure.contender: figure.ratio for figure in mine if figure.ratio}
        rows: list[tuple[list[str], list[Figure]]] = []
        for operation in ("compress", "decompress"):
            sizes = dict.fromkeys(
                f.labels["batch"] for f in mine if f.labels["operation"] == operation
            )
            for size in sizes:
                row = result.of(
                    benchmark="compress", algorithm=algorithm, operation=operation, batch=size
                )
                rows.append(([operation, str(size)], row))
        best = {min(row, key=lambda figure: figure.median).key for _, row in rows if len(row) > 1}
        table = grid(
            f"{algorithm}: {compress.QUANTITY}, medians ± half the quartiles' distance in %; * is the quickest",
            rows,
            lambda figure, best=best: (  # type: ignore[misc] # bound now
                f"{'*' if figure.key in best else ''}{figure.median:.2f} ±{spread_percent(figure):.0f}"
            ),
            ("", "batch"),
        )
        names = list(dict.fromkeys(figure.contender for _, row in rows for figure in row))
        table.add_section()
        table.add_row("ratio", "", *(f"{ratios.get(name, 0):.2f}" for name in names))
        yield table


def swap_tables(result: Result) -> Iterable[Table]:
    """Give a table for each algorithm: a line for each contender."""
    figures = result.of(benchmark="swap")
    for algorithm in dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures):
        mine = [figure for figure in figures if figure.labels["algorithm"] == algorithm]
        by = {(figure.contender, figure.quantity): figure for figure in mine}
        table = Table(
            title=f"{algorithm}: medians ± half the quartiles' distance in %", title_justify="left"
        )
        table.add_column("")
        for quantity in swap.QUANTITIES:
            table.add_column(quantity, justify="right")
        for name in dict.fromkeys(figure.contender for figure in mine):
            cells = []
            for quantity in swap.QUANTITIES:
                figure = by[name, quantity]
                text = f"{figure.median:.3f}" if quantity == swap.HELD else f"{figure.median:.2f}"
                spread = "" if quantity == swap.HELD else f" ±{spread_percent(figure):.0f}"
                cells.append(text + spread)
            table.add_row(name, *cells)
        yield table


def print_result(result: Result) -> None:
    """Print where it was measured, the tables, and what is missing."""
    out = console()
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    for line in (
        f"{machine['platform']}, {machine['processor']}, {machine['cpus']} CPUs",
        versions,
        ", ".join(f"{name} {value}" for name, value in result.settings.items()),
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for table in (*compress_tables(result), *swap_tables(result)):
        out.print(table)
    for line in ahead(result):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in result.notes:
        out.print(f"missing: {note}", markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()


def print_changes(changes: Sequence[Change]) -> None:
    """Print what got slower and what got quicker, and how many figures there were."""
    out = console()
    table = Table(title="in terms of its baseline in the same run", title_justify="left")
    for head in ("", "contender", "figure"):
        table.add_column(head)
    for head in ("old", "new", "change"):
        table.add_column(head, justify="right")
    counts = {"slower": 0, "quicker": 0, "same": 0}
    for change in changes:
        counts[change.verdict] += 1
        if change.verdict == "same":
            continue
        what = " ".join(str(value) for value in change.new.labels.values())
        table.add_row(
            f"{change.verdict}: {what}",
            change.new.contender,
            change.new.quantity,
            f"{change.old.median:.3f}",
            f"{change.new.median:.3f}",
            f"{change.change:+.1%}",
        )
    if table.row_count:
        out.print(table)
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    out.print(f"{len(changes)} figures: {text}", markup=False, highlight=False)
    sys.stdout.flush()
