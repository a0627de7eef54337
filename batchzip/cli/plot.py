"""The picture of an advice: memory saved over the time of a load. Needs matplotlib, extra `bench`.

It is grey. Page sizes differ by marker. Settings on the Pareto front are filled and named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.bench.style import drawing
from batchzip.errors import BadArgument
from batchzip.extras import load_extra

if TYPE_CHECKING:
    from pathlib import Path

    from batchzip.advice import Advice

_MARKERS = ("o", "s", "^")


def check_plot(path: Path) -> None:
    """Raise BadArgument or MissingExtra if `plot` could not write to `path`."""
    kinds = _canvas()().get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise BadArgument(
            f"{path} is not a picture: end its name in one of .{', .'.join(sorted(kinds))}"
        )
    if not path.parent.is_dir():
        raise BadArgument(f"{path.parent} is not a directory: name a file in one that exists")


def plot(advice: Advice, title: str, path: Path) -> None:
    """Write the picture to `path`, replacing an existing file. Raise OSError if that fails."""
    with drawing(path, 5.2) as picture:
        axes = picture.add_subplot()
        sizes = dict.fromkeys(option.page_size for option in advice.options)
        for marker, size in zip(_MARKERS, sizes, strict=False):
            for on_front in (False, True):
                group = [o for o in advice.options if (o.page_size, o.on_front) == (size, on_front)]
                axes.scatter(
                    [o.load_us for o in group],
                    [100 * o.saved_share for o in group],
                    marker=marker,
                    s=45,
                    facecolors="black" if on_front else "none",
                    edgecolors="black" if on_front else "0.6",
                    linewidths=0.8,
                    label=f"pages of {size >> 10} KiB" if on_front else None,
                    zorder=3 if on_front else 2,
                )
        axes.set_xscale("log")
        _name_front(axes, advice)
        axes.set_xlabel("µs to load a page (filled and named: no other is better in all)")
        axes.set_ylabel("RAM saved, %")
        axes.set_title(title, pad=28)
        axes.grid(visible=True, which="both")
        axes.xaxis.set_major_formatter("{x:g}")
        if handles := axes.get_legend_handles_labels()[0]:
            axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def _name_front(axes: Any, advice: Advice) -> None:
    """Write the names of the front beside the picture, sorted by height, each with a line."""
    front = sorted((o for o in advice.options if o.on_front), key=lambda o: o.saved_share)
    for number, option in enumerate(front):
        chosen = option is advice.recommended
        name = f"{option.name}, {option.page_size >> 10} KiB"
        axes.annotate(
            f"{name} (recommended)" if chosen else name,
            xy=(option.load_us, 100 * option.saved_share),
            xytext=(1.02, (number + 0.5) / len(front)),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            fontweight="bold" if chosen else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": "0.3" if chosen else "0.75",
                "linewidth": 1.2 if chosen else 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 4,
            },
        )


def _canvas() -> Any:
    return load_extra(
        "matplotlib.backends.backend_agg", extra="bench", needed_by="--plot"
    ).FigureCanvasAgg
