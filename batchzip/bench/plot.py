"""Plots: PNG pictures of results, to be read at a glance and in grey.

Every line has a marker and a style of its own and its name at its end; batchzip's own are black and thick.
matplotlib is an extra; without it there is one clear error before anything is measured.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.bench import compress, swap
from batchzip.errors import BadArgument, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

    from batchzip.bench.figure import Figure, Result

_DPI = 110
"""Dots an inch: a picture of 13 inches is as wide as a page of the web shows it."""

_STYLES: dict[str, dict[str, Any]] = {
    "workers": {"color": "black", "marker": "o", "linewidth": 2.6},
    "threads": {"color": "black", "marker": "d", "linewidth": 2.6, "linestyle": (0, (8, 1))},
    "sequential": {"color": "black", "marker": "s", "linewidth": 1.8, "linestyle": "--"},
    "bare": {"color": "0.25", "marker": "", "linewidth": 1.2, "linestyle": ":"},
    "thread pool": {"color": "#b2182b", "marker": "^", "linestyle": "-."},
    "loky submit": {"color": "#d95f02", "marker": "v", "linestyle": (0, (1, 1))},
    "zstandard multi": {"color": "#1b7837", "marker": "D", "linestyle": "-"},
    "blosc2 page": {"color": "#4393c3", "marker": "x", "linestyle": "--"},
    "blosc2 1 MiB": {"color": "#2166ac", "marker": "*", "linestyle": "-"},
    "zram, 1 thread": {"color": "#8073ac", "marker": "+", "linestyle": (0, (4, 1, 1, 1))},
    "zram, 2 threads": {"color": "#542788", "marker": "P", "linestyle": (0, (6, 2))},
}

_LABEL_GAP = 0.062
"""Share of the axis between two names at the ends of lines: the height of their letters."""


def require_matplotlib() -> None:
    """Raise MissingExtra if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("a plot", "matplotlib", "bench")


def new_picture(width: float, height: float) -> Picture:
    """Make an empty picture of that many inches, of no window system."""
    require_matplotlib()
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415 - an extra

    return Picture(figsize=(width, height), layout="constrained", dpi=_DPI)


def save(picture: Picture, path: Path) -> None:
    """Write a picture as PNG."""
    picture.savefig(path, format="png", dpi=_DPI, facecolor="white")


def tidy(axes: Axes) -> None:
    """Take away what is not read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, Any]]) -> None:
    """Write each (name, x, y, colour) right of its line's end, moved so that none covers another."""
    low, high = axes.transData.transform(
        [(0 if axes.get_xscale() == "linear" else 1, limit) for limit in axes.get_ylim()]
    )[:, 1]
    highest = sorted(ends, key=lambda end: -end[2])
    places = [
        float((axes.transData.transform(end[1:3])[1] - low) / (high - low)) for end in highest
    ]
    # Down from the top, then up from the axis: whoever is in the way gives way.
    for at in range(1, len(places)):
        places[at] = min(places[at], places[at - 1] - _LABEL_GAP)
    floor = 0.0
    for at in reversed(range(len(places))):
        places[at] = floor = max(places[at], floor)
        floor += _LABEL_GAP
    for (name, x, y, color), free in zip(highest, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.02, free),
            xycoords="data",
            textcoords="axes fraction",
            color=color,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkB": 3},
        )


def ends_of(axes: Axes) -> list[tuple[str, float, float, Any]]:
    """Give what `label_ends` takes, of all lines that have a name."""
    found = []
    for line in axes.get_lines():
        name, (x, y) = str(line.get_label()), np.asarray(line.get_xydata())[-1]
        if not name.startswith("_"):
            found.append((name, float(x), float(y), line.get_color()))
    return found


def plot_compress(result: Result, path: Path) -> None:
    """Draw speed as a share of the limit (CPUs × bare) over the batch size."""
    figures = result.of(benchmark="compress")
    if not figures:
        raise BadArgument("the result has nothing of compress: there is nothing to draw")
    algorithms = list(dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures))
    operations = ("compress", "decompress")
    picture = new_picture(13, 3.9 * len(algorithms))
    grid = picture.subplots(len(algorithms), len(operations), squeeze=False)
    cpus = int(result.machine["cpus"])
    for row, algorithm in zip(grid, algorithms, strict=True):
        for axes, operation in zip(row, operations, strict=True):
            of = result.of(benchmark="compress", algorithm=algorithm, operation=operation)
            _speeds(axes, of, cpus)
            axes.set_title(f"{algorithm}, {operation}", loc="left", fontweight="bold")
    picture.suptitle(
        f"Speed as a share of the limit, {cpus} × a bare loop of codec calls (higher is better)"
    )
    # Where names go depends on the final places of the axes.
    picture.draw_without_rendering()
    for axes in grid.flat:
        label_ends(axes, ends_of(axes))
    save(picture, path)


def _speeds(axes: Axes, figures: Sequence[Figure], cpus: int) -> None:
    bare = {f.labels["batch"]: f.median for f in figures if f.contender == compress.BASELINE}
    sizes = list(bare)
    axes.set_xscale("log", base=2)
    for name in dict.fromkeys(figure.contender for figure in figures):
        mine = [figure for figure in figures if figure.contender == name]
        values = [bare[f.labels["batch"]] / f.median / cpus for f in mine]
        ratio = "" if mine[0].ratio is None else f" ({mine[0].ratio:.2f}×)"
        style = {"color": "0.5", "marker": "."} | _STYLES.get(name, {})
        axes.plot(sizes, values, label=f"{name}{ratio}", markersize=5, **style)
    axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("pages in a batch")
    axes.axhline(1, color="0.25", linewidth=1.2)
    axes.annotate("limit", (0.01, 1), xycoords=("axes fraction", "data"), va="bottom", fontsize=8.5)
    tidy(axes)


def plot_swap(result: Result, path: Path) -> None:
    """Draw store, load, single loads and memory of each contender, an algorithm a line."""
    figures = result.of(benchmark="swap")
    if not figures:
        raise BadArgument("the result has nothing of swap: there is nothing to draw")
    algorithms = list(dict.fromkeys(str(figure.labels["algorithm"]) for figure in figures))
    picture = new_picture(14, 0.9 + 3.0 * len(algorithms))
    grid = picture.subplots(len(algorithms), 4, squeeze=False, sharey="row")
    for row, algorithm in zip(grid, algorithms, strict=True):
        of = {(f.contender, f.quantity): f for f in figures if f.labels["algorithm"] == algorithm}
        names = list(dict.fromkeys(name for name, _ in of))[::-1]
        for axes, quantity in zip(row, (swap.STORE, swap.LOAD), strict=False):
            _bars(axes, names, [of[name, quantity] for name in names], quantity, "{:.1f}")
        _percentiles(row[2], names, of)
        _bars(row[3], names, [of[name, swap.HELD] for name in names], swap.HELD, "{:.2f}")
        row[0].set_ylabel(algorithm, fontweight="bold", fontsize=12)
    picture.suptitle("A working set stored and loaded again (less is better everywhere)")
    save(picture, path)


def _bars(axes: Axes, names: list[str], figures: Sequence[Figure], title: str, text: str) -> None:
    values = [figure.median for figure in figures]
    errors = [[f.median - f.low for f in figures], [f.high - f.median for f in figures]]
    own = ("threads", "workers", "sequential")
    colors = ["0.2" if name.startswith(own) else "0.72" for name in names]
    axes.barh(names, values, color=colors, xerr=errors, ecolor="0.45", height=0.66)
    for place, figure in enumerate(figures):
        axes.annotate(
            text.format(figure.median),
            (figure.high, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max(figure.high for figure in figures) * 1.22)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _percentiles(axes: Axes, names: list[str], of: dict[tuple[str, str], Figure]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415 - an extra

    for place, name in enumerate(names):
        values = [of[name, quantity].median for quantity in swap.PERCENTILES]
        axes.plot(values, [place] * len(values), color="0.6", linewidth=1.5, zorder=1)
        for value, marker in zip(values, "osD", strict=True):
            axes.plot([value], [place], marker=marker, color="black", markersize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("single load, µs: ● p50  ■ p99  ◆ p99.9", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="x", color="0.88", which="both", linewidth=0.7)
    axes.set_axisbelow(True)
