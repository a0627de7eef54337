"""Pictures of the results of `bench`, in the common style (style.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.bench import compress, swap
from batchzip.bench.ahead import OWN as OWN_NAMES
from batchzip.bench.style import OTHER_BAR, OTHERS, OWN, OWN_BAR, REFERENCE, drawing, write_values
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from batchzip.bench.figure import Figure, Result

_LINES: dict[str, dict[str, Any]] = {
    "workers": OWN[0],
    "threads": OWN[1],
    "sequential": OWN[2],
    "bare": REFERENCE,
    "thread pool": OTHERS[0],
    "blosc2 1 MiB": OTHERS[1],
    "zstandard multi": OTHERS[2],
    "loky submit": OTHERS[3],
    "zram, 2 threads": OTHERS[4],
    "blosc2 page": OTHERS[5],
    "zram, 1 thread": OTHERS[6],
}


def plot_compress(result: Result, path: Path) -> None:
    """Draw the speed as a share of the limit (CPUs × bare) against the batch size."""
    figures = result.of(benchmark="compress")
    if not figures:
        raise BadArgument("the result has no figures of compress to draw: measure compress")
    algorithms = list(dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures))
    operations = ("compress", "decompress")
    cpus = int(result.machine["cpus"])
    title = f"Speed as a share of the limit, {cpus} × a bare loop of codec calls (higher is better)"
    with drawing(path, 0.5 + 3.2 * len(algorithms), title) as picture:
        grid = picture.subplots(len(algorithms), len(operations), squeeze=False)
        for row, algorithm in zip(grid, algorithms, strict=True):
            for axes, operation in zip(row, operations, strict=True):
                of = result.of(benchmark="compress", algorithm=algorithm, operation=operation)
                _speeds(axes, of, cpus)
                axes.set_title(f"{algorithm}, {operation}")


def _speeds(axes: Axes, figures: Sequence[Figure], cpus: int) -> None:
    bare = {f.labels["batch"]: f.median for f in figures if f.contender == compress.BASELINE}
    sizes = list(bare)
    axes.set_xscale("log", base=2)
    ratios = {figure.contender: figure.ratio for figure in figures if figure.ratio is not None}
    usual = ratios.get(compress.BASELINE)
    for name in dict.fromkeys(figure.contender for figure in figures):
        mine = [figure for figure in figures if figure.contender == name]
        values = [bare[f.labels["batch"]] / f.median / cpus for f in mine]
        ratio = ratios.get(name)
        # Most contenders have the ratio of the bare loop, whose label shows it.
        differs = ratio is not None and (name == compress.BASELINE or ratio != usual)
        style = _LINES.get(name, REFERENCE)
        axes.plot(sizes, values, label=f"{name} ({ratio:.2f}×)" if differs else name, **style)
    axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("pages per batch")
    axes.axhline(1, color="0.25", linewidth=1.2)
    axes.annotate("limit", (0.01, 1), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    axes.grid(visible=True, axis="y")


def plot_swap(result: Result, path: Path) -> None:
    """Draw store, load, single loads and memory of each contender, per algorithm."""
    figures = result.of(benchmark="swap")
    if not figures:
        raise BadArgument("the result has no figures of swap to draw: measure swap")
    algorithms = list(dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures))
    contenders = len({figure.contender for figure in figures})
    height = 0.5 + (0.6 + 0.24 * contenders) * 2 * len(algorithms)
    with drawing(path, height, "A working set stored and loaded again (less is better)") as picture:
        grid = picture.subplots(2 * len(algorithms), 2, squeeze=False, sharey="row")
        for number, algorithm in enumerate(algorithms):
            of = {
                (f.contender, f.quantity): f for f in figures if f.labels["algorithm"] == algorithm
            }
            names = list(dict.fromkeys(name for name, _ in of))[::-1]
            above, below = grid[2 * number], grid[2 * number + 1]
            for axes, quantity in zip(above, (swap.STORE, swap.LOAD), strict=True):
                shown = [of[name, quantity] for name in names]
                _bars(axes, names, shown, f"{algorithm}: {quantity}", "{:.1f}")
            _percentiles(below[0], names, of)
            below[0].set_title(f"{algorithm}: single load, µs\n● p50  ■ p99  ◆ p99.9")
            shown = [of[name, swap.HELD] for name in names]
            _bars(below[1], names, shown, f"{algorithm}: {swap.HELD}", "{:.2f}")


def _bars(axes: Axes, names: list[str], figures: Sequence[Figure], title: str, text: str) -> None:
    values = [figure.median for figure in figures]
    errors = [[f.median - f.low for f in figures], [f.high - f.median for f in figures]]
    colors = [OWN_BAR if name.startswith(OWN_NAMES) else OTHER_BAR for name in names]
    axes.barh(names, values, color=colors, xerr=errors, ecolor="0.45", height=0.66)
    highs = [figure.high for figure in figures]
    write_values(axes, highs, range(len(names)), [text.format(value) for value in values])
    axes.set_xlim(0, max(highs) * 1.22)
    axes.set_title(title)


def _percentiles(axes: Axes, names: list[str], of: dict[tuple[str, str], Figure]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415 - an extra

    for place, name in enumerate(names):
        values = [of[name, quantity].median for quantity in swap.PERCENTILES]
        axes.plot(values, [place] * len(values), color="0.6", linewidth=1.5, zorder=1)
        for value, marker in zip(values, "osD", strict=True):
            axes.plot([value], [place], marker=marker, color="black", markersize=6)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Three labels in each of many decades would overlap.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, axis="x", which="both")
