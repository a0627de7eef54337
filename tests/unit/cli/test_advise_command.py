"""`batchzip advise` with advice that is given: what is asked for, and what is shown."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip.advice import BLOCK_BYTES, MAX_LOAD_US, Advice, Option
from batchzip.advice.holder import Holder
from batchzip.advice.values import SAMPLE_BYTES, ValuesAdvice
from batchzip.advice.weighing import Held
from batchzip.cli import advise, plot
from batchzip.cli.main import main
from batchzip.sources.sampling import Sample

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LZ4 = Option("lz4", {}, 4096, None, False, 0, 0, 2.0, 0.5, MIB, 1.0, 2.0, True)
ADVICE = Advice(4 * MIB, MIB, (LZ4,), LZ4, "Use lz4.", ())
BLOCKS = np.zeros((2, BLOCK_BYTES), np.uint8)
IN_DICT = Held(Holder("dict"), 100, 1000, 0.5, 0.25, 1.0)
VALUES = ValuesAdvice(7, 7000, 7, 700, "PSS", "bytes", (IN_DICT,), IN_DICT, "Keep the dict.", ())


class Measuring:
    """Stands in for the samples and the measurements, and keeps what they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self.steps: list[Any] = []
        workload = SimpleNamespace(pid=4711)
        made = self.made
        monkeypatch.setattr(advise, "Workload", lambda mib: made(mib, nullcontext(workload)))
        monkeypatch.setattr(advise, "sample_file", self.sample)
        monkeypatch.setattr(advise, "sample_process", self.sample)
        monkeypatch.setattr(advise, "advise", self.advise)
        monkeypatch.setattr(advise, "open_values", lambda *given, **more: made((given, more), "s"))
        monkeypatch.setattr(advise, "weigh_all", self.weigh_all)
        monkeypatch.setattr(advise, "progress_bars", self.bars)

    def made(self, what: Any, result: Any) -> Any:
        self.asked.append(what)
        return result

    def sample(self, what: Any, size: int, seed: int, *, name: str = "") -> Sample:
        self.asked.append((what, size, seed))
        return Sample("kind", name or str(what), {}, 4 * MIB, BLOCKS)

    def advise(self, blocks: Any, *, progress: Any, **given: Any) -> Advice:
        assert blocks is BLOCKS
        self.asked.append(given)
        for done in (1, 2):
            progress(done, 2)
        return ADVICE

    def weigh_all(self, source: Any, sample: int, progress: Any) -> ValuesAdvice:
        self.asked.append((source, sample))
        for done in (1, 2):
            progress(done, 2)
        return VALUES

    def bars(self, unit: str, *, shown: bool) -> Any:
        self.steps.append((unit, shown))

        def bar(what: str, total: int) -> Any:
            self.steps.append((what, total))
            return self.steps.append

        return nullcontext(bar)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    return Measuring(monkeypatch)


DEFAULTS: dict[str, Any] = {
    "total_bytes": 4 * MIB,
    "algorithms": None,
    "max_load_us": MAX_LOAD_US,
}


@pytest.mark.parametrize(
    ("arguments", "sampled", "changed"),
    [
        ("--file a.bin", ["a.bin", 8 * MIB, 0], {}),
        ("--pid 12 --sample 64K --seed 3", [12, 65536, 3], {}),
        ("--file a.bin --max-load-us 7.5", ["a.bin", 8 * MIB, 0], {"max_load_us": 7.5}),
        (
            "--pid 5 --algorithm lz4 --algorithm zstd",
            [5, 8 * MIB, 0],
            {"algorithms": ["lz4", "zstd"]},
        ),
    ],
)
def test_options_reach_sample_and_advice(
    measuring: Measuring,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    sampled: list[Any],
    changed: dict[str, Any],
) -> None:
    assert main(["advise", *arguments.split()]) == 0
    assert measuring.asked == [tuple(sampled), DEFAULTS | changed]
    assert measuring.steps == [("trials", True), ("storing and loading", 2), 1, 1]
    out = capsys.readouterr().out
    assert out.endswith("\n\nUse lz4.\nbatchzip.Engine('lz4', page_size=4096)\n")


def test_without_a_source_a_workload_is_sampled(
    measuring: Measuring, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--json"]) == 0
    assert measuring.asked == [64, (4711, 8 * MIB, 0), DEFAULTS]
    assert measuring.steps[0] == ("trials", False)
    document = json.loads(capsys.readouterr().out)
    assert document["source"]["name"] == "workload process 4711"
    assert document["recommended"] == 0


def test_a_picture_has_the_source_as_its_title(
    measuring: Measuring,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plot, "plot", lambda *given: drawn.append(given))
    monkeypatch.setattr(plot, "check_plot", lambda path: drawn.append((path, *measuring.asked)))
    path = tmp_path / "a.png"
    assert main(["advise", "--file", "a.bin", "--plot", str(path)]) == 0
    assert drawn == [(path,), (ADVICE, "a.bin, 4.0 MiB", path)], "it is checked before measuring"
    assert "Use lz4." in capsys.readouterr().out


def test_impossible_options_are_refused_before_a_workload_is_made(
    measuring: Measuring, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["--algorithm", "lz4", "--algorithm", "lzma"],
        ["--sample", str(BLOCK_BYTES - 1)],
        ["--plot", "a.word"],
        ["--parsed"],
        ["--pickle"],
    ):
        assert main(["advise", *arguments]) == 2
        assert capsys.readouterr().err.startswith("batchzip: ")
    assert measuring.asked == []


@pytest.mark.parametrize(
    ("arguments", "size", "kind"),
    [
        ("", SAMPLE_BYTES, {"is_pickle": False, "is_parsed": False}),
        ("--pickle", SAMPLE_BYTES, {"is_pickle": True, "is_parsed": False}),
        ("--parsed --sample 1K --seed 4 --json", 1024, {"is_pickle": False, "is_parsed": True}),
    ],
)
def test_values_of_a_file_are_weighed(
    measuring: Measuring,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    size: int,
    kind: dict[str, bool],
) -> None:
    assert main(["advise", "--values", "a.jsonl", *arguments.split()]) == 0
    seed = 4 * ("--seed" in arguments)
    assert measuring.asked == [(("a.jsonl", size, seed), kind), ("s", size)]
    as_json = "--json" in arguments
    assert measuring.steps == [("measured", not as_json), ("putting and getting", 2), 1, 1]
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["source"]["name"] == "a.jsonl"
    else:
        assert out.startswith("a.jsonl: 7 values, 6.8 KiB\n\n")
        assert "Keep the dict." in out
