"""The common style of all pictures: width, fonts, lines and greys.

Pictures are as wide as a README shows them, with letters of the README's size. They are readable
without colour: each line has a marker, a dash pattern and its name at its end. Bars differ in
brightness and have their values next to them. batchzip's own lines and bars are black.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

WIDTH = 9.0
"""Width in inches. A README shows 100 dots per inch, so that 10 points are 14 dots."""

_DPI = 160
"""Dots per inch in the file, which keep pictures sharp on screens of high resolution."""

_RC: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.markersize": 5,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.titlesize": 11.5,
    "hatch.linewidth": 0.8,
}

OWN: Sequence[dict[str, Any]] = (
    {"color": "black", "marker": "o", "linewidth": 2.6, "linestyle": "-"},
    {"color": "black", "marker": "d", "linewidth": 2.2, "linestyle": (0, (8, 1))},
    {"color": "black", "marker": "s", "linewidth": 1.8, "linestyle": "--"},
    {"color": "black", "marker": "x", "linewidth": 1.4, "linestyle": (0, (1, 1))},
)
"""Lines of batchzip, the most important one first."""

OTHERS: Sequence[dict[str, Any]] = (
    {"color": "#b2182b", "marker": "^", "linestyle": "-."},
    {"color": "#2166ac", "marker": "*", "linestyle": "-"},
    {"color": "#1b7837", "marker": "D", "linestyle": (0, (5, 2))},
    {"color": "#b35806", "marker": "v", "linestyle": (0, (1, 1))},
    {"color": "#542788", "marker": "P", "linestyle": (0, (6, 2))},
    {"color": "#3a7ca5", "marker": "x", "linestyle": "--"},
    {"color": "#756bb1", "marker": "+", "linestyle": (0, (4, 1, 1, 1))},
)
"""Lines of the peers."""

REFERENCE: dict[str, Any] = {"color": "0.4", "marker": "", "linewidth": 1.2, "linestyle": ":"}
"""The line of a reference."""

BARS: Sequence[dict[str, Any]] = (
    {"color": "white", "hatch": "", "edgecolor": "black", "linewidth": 0.7},
    {"color": "0.75", "hatch": "//", "edgecolor": "black", "linewidth": 0.7},
    {"color": "0.15", "hatch": "", "edgecolor": "black", "linewidth": 0.7},
)
"""Bars of a group. The last one is batchzip's."""

OWN_BAR, OTHER_BAR = "0.2", "0.72"
"""Brightness of single bars: batchzip's, and those of peers."""

_LETTER = 13.5
"""Minimum distance in points between the names of two lines."""


def require_matplotlib() -> None:
    """Raise MissingExtra if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("a plot", "matplotlib", "bench")


@contextlib.contextmanager
def drawing(path: Path, height: float, title: str | None = None) -> Iterator[Picture]:
    """Yield an empty picture of `height` inches. Write it to `path` at the end of the statement.

    The names of lines are written at their ends. Raise MissingExtra, and OSError if the file cannot
    be written.
    """
    require_matplotlib()
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415 - an extra

    settings: Any = _RC
    with mpl.rc_context(settings):
        picture = Picture(figsize=(WIDTH, height), layout="constrained", dpi=_DPI)
        yield picture
        if title is not None:
            picture.suptitle(title, x=0.01, ha="left")
        # The places of names depend on the final layout of the axes.
        picture.draw_without_rendering()
        for axes in picture.axes:
            _name_lines(axes)
        picture.savefig(path, dpi=_DPI, facecolor="white")


def _name_lines(axes: Axes) -> None:
    """Write the name of each line next to its end, and move names that would overlap."""
    ends = []
    for line in axes.get_lines():
        name, (x, y) = str(line.get_label()), np.asarray(line.get_xydata())[-1]
        if not name.startswith("_"):
            ends.append((name, float(x), float(y), line.get_color()))
    low, high = (
        axes.transData.transform((axes.get_xlim()[1], limit))[1] for limit in axes.get_ylim()
    )
    ends.sort(key=lambda end: -end[2])
    places = [float((axes.transData.transform(end[1:3])[1] - low) / (high - low)) for end in ends]
    gap = _LETTER / 72 * axes.figure.dpi / (high - low)
    # Move names down in a pass from the top, then up in a pass from the axis.
    for at in range(1, len(places)):
        places[at] = min(places[at], places[at - 1] - gap)
    floor = 0.0
    for at in reversed(range(len(places))):
        places[at] = floor = max(places[at], floor)
        floor += gap
    for (name, x, y, color), free in zip(ends, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.03, free),
            xycoords="data",
            textcoords="axes fraction",
            color=color,
            fontsize=9.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "0.75",
                "linewidth": 0.6,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def write_values(axes: Axes, values: Sequence[float], places: Any, texts: Sequence[str]) -> None:
    """Write a text at the end of each horizontal bar."""
    for value, place, text in zip(values, places, texts, strict=True):
        axes.annotate(
            text, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
