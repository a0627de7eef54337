"""The tables of `batchzip bench` fit a terminal, whoever takes part."""

from __future__ import annotations

import re

import pytest

from batchzip.bench import compress, swap
from batchzip.bench.compare import compare
from batchzip.bench.figure import Result
from batchzip.bench.table import print_changes, print_result

NAMES = ["bare", "sequential", "threads", "workers", "workers, half in file", "blosc2 1 MiB"]
BATCHES = [1, 2, 8, 32, 64, 256, 1024]


def a_result(scale: float = 1.0) -> Result:
    result = Result({"source": "captured", "pages": 2048}, {"compress": "bare", "swap": "bare"})
    for at, name in enumerate(NAMES):
        factor = scale if name == "workers" else 1.0
        for operation in ("compress", "decompress"):
            for batch in BATCHES:
                labels: dict[str, str | int] = {
                    "benchmark": "compress",
                    "algorithm": "zstd 1",
                    "operation": operation,
                    "batch": batch,
                }
                values = [(10 + at + share) * factor for share in (0.0, 0.5, 1.0)]
                result.add(labels, name, compress.QUANTITY, values, 2.75)
        for quantity in swap.QUANTITIES:
            labels = {"benchmark": "swap", "algorithm": "zstd 1"}
            result.add(labels, name, quantity, [1234.5 + at])
    result.note("zram: only root may make a device")
    return result


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_result_fits_its_width_and_names_everybody(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_result(a_result())
    lines = printed(capsys)
    assert max(map(len, lines)) <= width
    for name in NAMES:
        assert sum(line.startswith(f"{name}  ") for line in lines) == 3
    assert any(line.startswith("note: zram") for line in lines)
    assert any("left out for lack of room" in line for line in lines) is (width < 200)
    compressed = next(line for line in lines if line.startswith("bare  "))
    assert re.fullmatch(r"bare( +\*10\.50 ±2)+( +2\.75)?", compressed), "the fastest is marked"


def test_a_pipe_has_whole_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_result(a_result())
    lines = printed(capsys)
    assert not any("left out" in line for line in lines)
    assert ["pages", "per", "batch", *map(str, BATCHES), "ratio"] in [
        line.split() for line in lines
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_changes_fit_their_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_changes(compare(a_result(), a_result(2.0)))
    lines = printed(capsys)
    assert max(map(len, lines)) <= width
    assert sum("+100.0%" in line for line in lines) == 2 * len(BATCHES)
    assert lines[-1].endswith(f"{2 * len(BATCHES)} slower, 0 faster, 56 same")
