"""All benchmarks have one command line: measure, keep a result, show a kept one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.paths import ROOT

from batchzip.bench.figure import Result, load
from batchzip.bench.script import Script, chosen, integers
from batchzip.errors import BadArgument
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=integers, default=[1])
    parser.add_argument("--parts", type=chosen(["store", "load"]), default=["store"])


def measure(options: argparse.Namespace) -> Result:
    if options.sizes == [13]:
        raise BadArgument("13 is not measured: choose another size")
    result = Result({"sizes": options.sizes}, {})
    for size in options.sizes:
        result.add({"benchmark": "test", "size": size}, "threads", "µs", [2.0 * size, 3.0 * size])
    result.note("zram: only root may make a device")
    return result


def tables(result: Result) -> Iterator[Table]:
    table = Table("µs by size")
    table.add_column("size")
    table.add_column("threads")
    for one in result.figures:
        table.add_row(str(one.labels["size"]), f"{one.median:.1f}")
    yield table


def draw(result: Result, path: Path) -> None:
    path.write_text(f"{len(result.figures)} figures")


SCRIPT = Script("Measure.", add_options, measure, tables, lambda _: ["all goals met"], draw)


def test_nothing_is_written_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SCRIPT.main(["--sizes", "4,8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line[:1].isdigit()] == [["4", "10.0"], ["8", "20.0"]]
    assert "all goals met" in lines
    assert "note: zram: only root may make a device" in lines
    assert not list(tmp_path.iterdir())


def test_a_kept_result_is_shown_and_drawn_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    SCRIPT.main(["--sizes", "4", "--json", str(kept)])
    shown = capsys.readouterr().out
    assert load(kept).figures[0].values == (8.0, 12.0)
    SCRIPT.main(["--show", str(kept), "--plot", str(tmp_path / "kept.png")])
    assert capsys.readouterr().out == shown
    assert (tmp_path / "kept.png").read_text() == "1 figures"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "13"], "13 is not measured: choose another size"),
        (["--sizes", "4,0"], "4,0 has a number below 1"),
        (["--parts", "store,free"], "free is none of store, load"),
        (["--json", "/nowhere/kept.json"], "/nowhere is no folder"),
        (["--plot", "/nowhere/kept.png"], "/nowhere is no folder"),
        (["--show", "/nowhere/kept.json"], "No such file"),
    ],
)
def test_bad_options_are_refused_in_a_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        SCRIPT.main(arguments)
    assert refused.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_a_script_quietly() -> None:
    benchmarks = ROOT / "examples/benchmarks"
    kept = benchmarks / "results/peers.json"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        shown = subprocess.run(
            [sys.executable, benchmarks / "peers.py", "--show", kept],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (shown.returncode, shown.stderr) == (141, "")
