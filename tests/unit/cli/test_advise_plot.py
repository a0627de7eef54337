"""The picture of an advice: what is drawn, where, and how it is named."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.advice import Advice, Option
from batchzip.bench.style import drawing
from batchzip.cli import plot as module
from batchzip.cli.plot import check_plot, plot
from batchzip.errors import BadArgument
from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


def option(
    name: str, page_size: int, saved: float, load_us: float, *, front: bool = False
) -> Option:
    return Option(name, {}, page_size, None, False, 0, 0, 2.0, saved, 1, 1.0, load_us, front)


BEST = option("zstd", 16384, 0.5, 8.0, front=True)
ADVICE = Advice(
    1 << 20,
    1 << 20,
    (
        option("snappy", 4096, 0.1, 3.0),
        option("lz4", 4096, 0.3, 2.0, front=True),
        BEST,
        option("brotli", 16384, 0.4, 9.0),
    ),
    BEST,
    "",
    (),
)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """As everywhere, but for fonts, which matplotlib keeps open."""
    with LeakCheck(ignore="/mpl-data/fonts/"):
        yield


@pytest.fixture
def axes(tmp_path: Path) -> Any:
    """The axes of a picture that was written."""
    kept = []

    @contextlib.contextmanager
    def drawn(*arguments: Any) -> Iterator[Any]:
        with drawing(*arguments) as picture:
            kept.append(picture)
            yield picture

    path = tmp_path / "a.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "drawing", drawn)
        plot(ADVICE, "a title", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    (found,) = kept[0].axes
    return found


def test_every_option_is_a_point_and_those_of_the_front_are_filled(axes: Any) -> None:
    groups = [
        (
            [tuple(map(float, point)) for point in group.get_offsets()],
            bool(len(group.get_facecolor())),
            group.get_edgecolor()[0][0] == 0,
            group.get_label(),
        )
        for group in axes.collections
    ]
    assert [group[:3] for group in groups] == [
        ([(3.0, 10.0)], False, False),
        ([(2.0, 30.0)], True, True),
        ([(9.0, 40.0)], False, False),
        ([(8.0, 50.0)], True, True),
    ]
    labels = [group[3] for group in groups]
    assert (labels[1], labels[3]) == ("pages of 4 KiB", "pages of 16 KiB")
    assert all(label.startswith("_") for label in labels[::2]), "no entry in the legend"
    outlines = [group.get_paths()[0].vertices.shape for group in axes.collections]
    assert outlines[0] == outlines[1] != outlines[2] == outlines[3], "a marker for each page size"
    assert axes.collections[1].get_zorder() > axes.collections[0].get_zorder()


def test_the_front_is_named_from_the_lowest_to_the_highest(axes: Any) -> None:
    names = [(text.get_text(), text.xy, text.xyann, text.get_fontweight()) for text in axes.texts]
    assert names == [
        ("lz4, 4 KiB", (2.0, 30.0), (1.02, 0.25), "normal"),
        ("zstd, 16 KiB (recommended)", (8.0, 50.0), (1.02, 0.75), "bold"),
    ]


def test_axes_and_title_say_what_is_shown(axes: Any) -> None:
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel().startswith("µs to load a page")
    assert axes.get_ylabel() == "RAM saved, %"
    assert axes.get_title(loc="left") == "a title"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["pages of 4 KiB", "pages of 16 KiB"]
    assert axes.xaxis.get_gridlines()[0].get_visible()
    assert axes.xaxis.get_major_formatter()(12.0) == "12"


def test_a_picture_without_a_front_has_no_legend(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    plot(Advice(1, 1, (option("lz4", 4096, -0.1, 2.0),), None, "", ()), "a title", path)
    assert b"<svg" in path.read_bytes()


def test_the_kind_of_picture_is_that_of_its_name(tmp_path: Path) -> None:
    for name in ("a.png", "a.b.PDF", "a.svg"):
        check_plot(tmp_path / name)
    for name in ("png", "a.word", "a.png.txt"):
        with pytest.raises(BadArgument, match=r"is not a picture: end its name in one of .*\.png"):
            check_plot(tmp_path / name)
    with pytest.raises(BadArgument, match="nowhere is not a directory"):
        check_plot(tmp_path / "nowhere/a.png")
