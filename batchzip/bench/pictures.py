"""Pictures: the figures of a run as one PNG (or SVG, …). Needs matplotlib, extra `bench`.

To be read in grey and at a glance: batchzip is black and thick, the loop that nobody beats on one core is dashed,
everyone else is grey with a marker of its own and a name at the end of the line.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from batchzip.bench.peers import CPUS
from batchzip.bench.tables import OURS
from batchzip.extras import load_extra

if TYPE_CHECKING:
    from pathlib import Path

    from batchzip.bench.result import Result, Row

_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")

_OPERATIONS = ("compress", "decompress")


def picture(result: Result, path: Path) -> None:
    """Write throughput by size of batch, a panel for each algorithm and operation."""
    rows = [row for row in result.rows if row.benchmark == "compress"]
    algorithms = list(dict.fromkeys(row.algorithm for row in rows))
    figure = load_extra("matplotlib.figure", extra="bench", needed_by="--plot").Figure(
        figsize=(12, 3.6 * len(algorithms) + 0.8), layout="constrained"
    )
    peers = sorted({row.contender for row in rows} - {*OURS, "bare"})
    markers = dict(zip([*OURS, *peers], itertools.cycle(_MARKERS), strict=False))
    grid = figure.subplots(len(algorithms), 2, squeeze=False)
    for line, algorithm in zip(grid, algorithms, strict=True):
        for axes, operation in zip(line, _OPERATIONS, strict=True):
            chosen = [r for r in rows if (r.algorithm, r.operation) == (algorithm, operation)]
            _panel(axes, chosen, markers, f"{algorithm}: {operation}")
    figure.suptitle(
        f"{result.source}, {result.pages:,} pages of 4 KiB, {result.machine['cpus']} CPUs; "
        "MB/s by pages of a batch, medians and quartiles",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def _panel(axes: Any, rows: list[Row], markers: dict[str, str], title: str) -> None:
    names = sorted({row.contender for row in rows}, key=lambda name: (name in OURS, name))
    ends = []
    for name in names:
        points = sorted((row for row in rows if row.contender == name), key=lambda row: row.batch)
        ours, bare = name in OURS, name == "bare"
        batches = [row.batch for row in points]
        speeds = [4096 / row.us for row in points]
        axes.errorbar(
            batches,
            speeds,
            yerr=[
                [speed - 4096 / row.high for speed, row in zip(speeds, points, strict=True)],
                [4096 / row.low - speed for speed, row in zip(speeds, points, strict=True)],
            ],
            color="black" if ours or bare else "0.55",
            linestyle="--" if bare else (":" if name == "sequential" else "-"),
            linewidth=2.2 if ours else 1.0,
            marker=markers.get(name),
            markersize=6 if ours else 4,
            elinewidth=0.6,
            zorder=4 if ours else 2,
        )
        ends.append((speeds[-1], name, batches[-1]))
        if bare:
            axes.plot(batches, [CPUS * speed for speed in speeds], "--", color="0.8", linewidth=1)
            ends.append((CPUS * speeds[-1], f"limit: {CPUS} × bare", batches[-1]))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, color="0.93", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _name_ends(axes, ends)


def _name_ends(axes: Any, ends: list[tuple[float, str, int]]) -> None:
    """Name each line at its end, at least a line of text apart, joined to it by a thin line."""
    top = axes.get_ylim()[1]
    apart = top / 16
    heights: list[float] = []
    for speed, _, _ in sorted(ends):
        heights.append(max(speed, heights[-1] + apart) if heights else speed)
    over = max(0.0, heights[-1] - top)
    for height, (speed, name, batch) in zip(heights, sorted(ends), strict=True):
        axes.annotate(
            name,
            xy=(batch, speed),
            xytext=(1.04, (height - over) / top),
            textcoords=("axes fraction", "axes fraction"),
            va="center",
            fontsize=8,
            fontweight="bold" if name in OURS else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "relpos": (0, 0.5)},
        )
