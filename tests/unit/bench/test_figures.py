"""Results of benchmarks: what is saved is read again, and what cannot be right is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from batchzip.bench.figure import Figure, Result, load
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from pathlib import Path


def figure(low: float, median: float, high: float, contender: str = "lz4") -> Figure:
    labels: dict[str, str | int] = {"benchmark": "compress", "batch": 64}
    return Figure(labels, contender, "us_per_page", median, low, high, 5)


def saved(path: Path, *figures: Figure) -> Path:
    result = Result({"pages": 64}, {"compress": "bare"}, list(figures), ["a note"], {"cpus": 2})
    result.save(path)
    return path


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    figures = [figure(1, 2, 3), figure(2, 2, 2, "zstd")]
    found = load(saved(tmp_path / "result.json", *figures))
    assert found.figures == figures
    assert (found.settings, found.baselines) == ({"pages": 64}, {"compress": "bare"})
    assert (found.notes, found.machine) == (["a note"], {"cpus": 2})


@pytest.mark.parametrize(("low", "median", "high"), [(3, 2, 4), (1, 5, 4), (2, 2, 1)])
def test_a_median_outside_its_quartiles_is_refused(
    tmp_path: Path, low: float, median: float, high: float
) -> None:
    path = saved(tmp_path / "result.json", figure(low, median, high))
    with pytest.raises(BadArgument, match="not a benchmark result"):
        load(path)


def test_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    path = saved(tmp_path / "result.json", figure(1, 2, 3))
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": document["format"] + 1}))
    with pytest.raises(BadArgument, match="measure again"):
        load(path)


def test_figures_are_set_against_their_benchmark_s_baseline(tmp_path: Path) -> None:
    figures = [figure(1, 2, 3), figure(4, 5, 6, "bare"), figure(0, 0, 0, "zstd")]
    found = load(saved(tmp_path / "result.json", *figures)).relative()
    assert set(found.values()) == {5}
    assert {key[1] for key in found} == {"lz4", "bare", "zstd"}
