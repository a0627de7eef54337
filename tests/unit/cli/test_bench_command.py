"""`batchzip bench` with given figures: what is measured, shown and told."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip.bench import compress, plot, swap
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.figure import Result, load
from batchzip.cli import bench
from batchzip.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def a_result(workers: float) -> Result:
    result = Result({"rounds": 3}, {"compress": "bare", "swap": "dict"})
    for contender, median in (("bare", 5.0), ("workers", workers)):
        labels: dict[str, Any] = {
            "benchmark": "compress",
            "algorithm": "lz4",
            "operation": "compress",
            "batch": 8,
        }
        values = [median * 0.99, median, median * 1.01]
        result.add(labels, contender, "µs", values, 2.0)
    return result


def take(count: int) -> NDArray[np.uint8]:
    """Return pages, half of them same-filled."""
    pages = np.ones((count, 4096), np.uint8)
    pages[::2, ::5] = 2
    return pages


class Measuring:
    """Stands in for the measurements, and keeps what they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self.workers = 4.0
        self.drawn: list[str] = []
        monkeypatch.setattr(bench, "Source", self.source)
        monkeypatch.setattr(compress, "compress", self.compress)
        monkeypatch.setattr(swap, "swap", self.swap)
        monkeypatch.setattr(plot, "plot_compress", self.plot)
        monkeypatch.setattr(plot, "plot_swap", self.plot)

    def source(self, workload: str, pid: int | None, file: str | None) -> Any:
        self.asked.append((workload, pid, file))
        return SimpleNamespace(name="the source", take=take)

    def compress(self, result: Result, pages: Any, *arguments: Any, **options: Any) -> None:
        self.asked.append((len(pages), *arguments, options["zram"], os.environ["PYTHONSAFEPATH"]))
        result.figures += a_result(self.workers).figures
        options["advance"]()

    def swap(self, result: Result, pages: Any, *arguments: Any, **options: Any) -> None:
        del result
        self.asked.append((len(pages), *arguments, options["zram"], os.environ["PYTHONSAFEPATH"]))
        options["advance"]()

    def plot(self, result: Result, path: Path) -> None:
        assert result.figures
        self.drawn.append(path.name)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    return Measuring(monkeypatch)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    a_result(4.0).save(path)
    return path


@pytest.mark.parametrize("before", [None, "0"])
def test_bench_measures_as_asked_and_leaves_the_environment_unchanged(
    measuring: Measuring,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: str | None,
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    options = "--pages 10 --rounds 3 --batches 2,4 --algorithms lz4 --workload random --json"
    assert main(["bench", *options.split()]) == 0
    assert os.environ.get("PYTHONSAFEPATH") == before
    source, compressed, swapped = measuring.asked
    assert source == ("random", None, None)
    algorithms = parse_algorithms("lz4")
    assert compressed == (5, algorithms, [2, 4], 3, False, "1"), "same-filled pages have no codec"
    assert swapped == (10, algorithms, 3, False, "1")
    document = json.loads(capsys.readouterr().out)
    assert document["settings"] == {
        "source": "the source",
        "pages": 10,
        "batches": [2, 4],
        "rounds": 3,
        "algorithms": "lz4",
    }
    assert len(document["figures"]) == 2


@pytest.mark.parametrize(("workers", "code"), [(4.0, 0), (8.0, 1), (2.0, 0)])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_figure_that_became_slower_is_told_by_the_exit_code(
    measuring: Measuring,
    old: Path,
    capsys: pytest.CaptureFixture[str],
    workers: float,
    code: int,
    as_json: bool,
) -> None:
    measuring.workers = workers
    assert main(["bench", "--compare", str(old), *["--json"] * as_json]) == code
    out = capsys.readouterr().out
    assert len(measuring.asked) == 3
    if as_json:
        assert len(json.loads(out)["figures"]) == 2
    else:
        assert "decompress" not in out
        assert "bare" in out, "what was measured is shown"
        assert f"{int(workers > 4)} slower, {int(workers < 4)} faster" in out


def test_two_results_are_compared_without_measuring(
    measuring: Measuring, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.json"
    a_result(8.0).save(new)
    assert main(["bench", "--compare", str(old), str(new)]) == 1
    assert "1 slower, 0 faster" in capsys.readouterr().out
    assert main(["bench", "--compare", str(new), str(old)]) == 0
    assert "0 slower, 1 faster" in capsys.readouterr().out
    assert main(["bench", "--compare", str(old), str(new), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["figures"][1]["values"] == [7.92, 8.0, 8.08]
    assert measuring.asked == []


def test_a_figure_that_was_not_measured_is_told_by_the_exit_code(
    measuring: Measuring, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, new = a_result(4.0), tmp_path / "new.json"
    labels: dict[str, Any] = {**more.figures[0].labels, "batch": 64}
    more.add(labels, "workers", "µs", [1.0, 1.0, 1.0])
    more.save(new)
    assert main(["bench", "--compare", str(new), str(old)]) == 3
    assert "not measured, but in the old result: " in capsys.readouterr().out
    assert main(["bench", "--compare", str(old), str(new)]) == 0
    assert measuring.asked == []


def test_a_result_is_kept_in_a_file_and_shown(
    measuring: Measuring, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    assert main(["bench", "--json", str(path)]) == 0
    assert "bare" in capsys.readouterr().out
    assert [one.contender for one in load(path).figures] == ["bare", "workers"]
    measuring.asked.clear()
    assert main(["bench", "--json", str(tmp_path / "none/result.json")]) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert measuring.asked == [], "that is known before a minute is spent"


def test_two_pictures_are_drawn_of_what_is_shown(
    measuring: Measuring, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--compare", str(old), str(old), "--plot", str(tmp_path / "a.png")]) == 0
    assert measuring.drawn == ["a.png", "a-swap.png"]
    assert main(["bench", "--plot", str(tmp_path / "none" / "a.png")]) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert measuring.asked == [], "that is known before a minute is spent"


def test_the_bar_has_a_step_for_each_measurement(
    measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def bars(unit: str, *, shown: bool) -> Any:
        assert (unit, shown) == ("steps", True)

        def bar(what: str, total: int) -> Any:
            steps.append((what, total))
            return steps.append

        return nullcontext(bar)

    monkeypatch.setattr(bench, "progress_bars", bars)
    assert main(["bench", "--algorithms", "lz4,zstd", "--batches", "1,2,4", "--pages", "8"]) == 0
    assert steps == [("measuring", 14), 1, 1]
    assert len(measuring.asked) == 3
