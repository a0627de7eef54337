"""`batchzip swap` as its users meet it: a process with arguments, output and an exit code."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.command import (
    assert_refused,
    cli,
    document,
)
from support.unreadable import unreadable_process

from batchzip.cli import swap
from batchzip.cli.main import main
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.slow
def test_a_file_goes_through_and_comes_back(result: dict[str, Any]) -> None:
    path = result["source"]["path"]
    assert Path(path).name == "pages.bin"
    assert result["source"] == {
        "kind": "file",
        "name": path,
        "path": path,
        "file_bytes": 600 * 4096,
        "pages": 600,
        "page_bytes": 4096,
        "padded_bytes": 0,
    }
    assert result["all_equal"] is True
    assert result["first_difference"] is None
    assert list(result["backends"]) == ["sequential", "threads", "workers"]
    assert result["left_out"] == {}
    for name, of in result["backends"].items():
        assert of["workers"] == (0 if name == "sequential" else result["settings"]["workers"])
        assert of["stored_pages"] == of["compared_pages"] == of["single_loads"] == 600
        assert of["same_filled_pages"] == 200
        assert of["incompressible_pages"] == 200
        assert of["rejected_pages"] == of["differing_pages"] == 0
        assert of["rejected_folios"] == {}
        assert of["compression_ratio"] == pytest.approx(600 * 4096 / of["compressed_bytes"])
        assert of["pool_overhead"] == pytest.approx(of["pool_held_bytes"] / of["compressed_bytes"])
        assert of["pool_overhead"] >= 1
        assert of["store_us_per_page"] == pytest.approx(of["store_s"] / 600 * 1e6)
        assert of["store_mb_per_s"] == pytest.approx(600 * 4096 / 1e6 / of["store_s"])
        assert of["load_mb_per_s"] == pytest.approx(600 * 4096 / 1e6 / of["load_s"])
        assert 0 < of["load_p50_us"] <= of["load_p99_us"]
        assert of["cpu_s"] == pytest.approx(of["own_cpu_s"] + of["worker_cpu_s"])
    sequential, threads, workers = result["backends"].values()
    assert threads["worker_cpu_s"] == 0
    for of in threads, workers:
        assert of["compressed_bytes"] == sequential["compressed_bytes"]
        assert set(of["ratios"]) == {
            "store_mb_per_s",
            "store_us_per_page",
            "load_mb_per_s",
            "load_us_per_page",
            "load_p50_us",
            "load_p99_us",
            "cpu_s",
        }
        for key, ratio in of["ratios"].items():
            assert ratio == pytest.approx(of[key] / sequential[key])
    assert result["ratios"] == workers["ratios"]


@pytest.mark.slow
def test_people_get_a_table_and_no_bars(file: Path) -> None:
    result = cli("swap", "--file", file, "--algorithm", "lz4", env={**os.environ, "COLUMNS": "80"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if str(file) not in line)
    assert "size classes" not in result.stdout
    for words in (
        "600 pages of 4,096 bytes (2.3 MiB)",
        "same-filled",
        "incompressible",
        "compression ratio",
        "held ÷ stored",
        "store, MB/s",
        "load, µs per page",
        "single load p99, µs",
        "CPU time",
        "600 pages compared byte for byte: all equal",
    ):
        assert words in " ".join(result.stdout.split())
    lines = result.stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if line.split()[:1] == ["sequential"])
    heading, lanes = lines[at - 1 : at + 1]
    assert heading.split() == ["threads", "÷", "workers", "÷"]
    assert re.fullmatch(r" +sequential( +\d+ \+ caller +seq\.){2}", lanes)


@pytest.mark.slow
def test_threads_are_left_out_for_a_codec_in_python_and_said_so(file: Path) -> None:
    result = document("--file", file, "--algorithm", "brotli")
    assert list(result["backends"]) == ["sequential", "workers"]
    reason = result["left_out"].pop("threads")
    assert result["left_out"] == {}
    assert reason.startswith("brotli runs in Python here")
    shown = cli("swap", "--file", file, "--algorithm", "brotli").stdout
    assert f"threads are left out: {reason}" in " ".join(shown.split())


@pytest.mark.slow
def test_the_class_table_is_there_as_data_and_for_people(
    result: dict[str, Any], file: Path
) -> None:
    for of in result["backends"].values():
        lines = of["classes"]
        assert [line["size"] for line in lines] == sorted(line["size"] for line in lines)
        # Each page that is not same-filled is an object; nothing was freed.
        assert sum(line["objects"] for line in lines) == 400
        held = sum(line["bytes"] for line in lines)
        assert held <= of["pool_held_bytes"] <= 1.02 * held + 2 * mmap.PAGESIZE
        for line in lines:
            assert set(line) == {"size", "zspages", "room", "objects", "bytes", "freeable"}
            assert line["zspages"] <= line["objects"] <= line["room"]
            assert 0 <= line["freeable"] < line["bytes"]
    shown = cli("swap", "--file", file, "--classes").stdout
    for name in ("sequential", "threads", "workers"):
        table = shown.split(f"size classes of the pool, {name}\n")[1].split("\n\n")[0]
        heading, *rows = (line.split() for line in table.splitlines() if line.strip())
        assert heading == ["object", "bytes", "zspages", "room", "objects", "bytes", "freeable"]
        assert (rows[-2][0], rows[-2][3]) == ("4,096", "200")  # the incompressible pages
        assert (rows[-1][0], rows[-1][3]) == ("all", "400")


@pytest.mark.slow
def test_without_a_source_a_workload_is_taken() -> None:
    result = document("--workload-mib", 2, "--algorithm", "lz4")
    assert result["source"]["kind"] == "process"
    assert result["source"]["pages"] * 4096 > 2 << 20
    assert result["all_equal"] is True
    assert not Path(f"/proc/{result['source']['pid']}").exists()


@pytest.mark.slow
def test_a_running_process_is_taken_and_left_alone() -> None:
    script = "held = list(range(100_000)); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        result = document("--pid", child.pid)
        assert result["source"]["pid"] == child.pid
        assert result["source"]["pages"] > 500
        assert result["all_equal"] is True
        assert child.poll() is None
        child.communicate(b"\n")
        assert child.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [2, "f4"])
def test_options_reach_the_engine(file: Path, shuffle: int | str) -> None:
    options = [
        "--algorithm",
        "zstd",
        "--level",
        5,
        "--shuffle",
        shuffle,
        "--batch",
        8,
        "--folio",
        3,
        "--seed",
        9,
    ]
    result = document("--file", file, *options, "--workers", 2, "--page-size", 1024)
    assert result["source"]["pages"] == 2400
    assert [of["workers"] for of in result["backends"].values()] == [0, 2, 2]
    assert result["settings"] == {
        "algorithm": "zstd",
        "level": 5,
        "shuffle": shuffle,
        "batch_pages": 8,
        "folio_pages": 3,
        "workers": 2,
        "limit_bytes": None,
        "seed": 9,
    }


@pytest.mark.slow
def test_the_last_page_is_padded_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "odd.bin"
    path.write_bytes(b"x" * 5000)
    assert document("--file", path)["source"]["padded_bytes"] == 3192
    result = cli("swap", "--file", path)
    assert "the last page was padded with 3,192 zero bytes" in result.stdout
    assert "2 pages compared byte for byte: all equal" in result.stdout


@pytest.mark.slow
def test_a_small_limit_rejects_and_reports(file: Path) -> None:
    result = document("--file", file, "--limit", "512K")
    for of in result["backends"].values():
        assert of["rejected_pages"] > 0
        assert sum(of["rejected_folios"].values()) > 0
        assert of["compared_pages"] == 600 - of["rejected_pages"] == of["stored_pages"]
        assert of["pool_held_bytes"] <= 512 << 10
    text = cli("swap", "--file", file, "--limit", "512K")
    assert text.returncode == 0
    assert "folios rejected within 512.0 KiB: " in text.stdout


@pytest.mark.slow
def test_a_limit_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    path = tmp_path / "noise.bin"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    result = cli("swap", "--file", path, "--limit", "4K")
    assert result.returncode == 0, result
    assert "no page was kept" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--file", "missing.bin"], ["missing.bin", "No such file"]),
        (["--file", "."], [". is a directory"]),
        (["--file", "empty.bin"], ["empty.bin is empty"]),
        (["--pid", "0"], ["--pid", "above 0"]),
        (["--pid", "4194305"], ["no process 4194305"]),
        (["--pid", "1", "--file", "x"], ["not allowed with"]),
        (["--algorithm", "zip"], ["'zip'", "zstd", "lz4"]),
        (["--algorithm", "lz4", "--level", "3", "--file", "one.bin"], ["level"]),
        (["--algorithm", "zstd", "--level", "999", "--file", "one.bin"], ["level"]),
        (["--shuffle", "3"], ["--shuffle", "2, 4, 8", "f2"]),
        (["--page-size", "4097"], ["4097", "power of two"]),
        (["--page-size", "256"], ["256", "power of two"]),
        (["--page-size", "4194304"], ["4194304", "power of two"]),
        (["--batch", "0"], ["--batch", "above 0"]),
        (["--folio", "-1"], ["--folio"]),
        (["--folio", "99999999"], ["folio of 99999999 pages", "too large"]),
        (["--limit", "much"], ["'much' is not a size"]),
        (["--limit", "0"], ["'0' is not a size"]),
        (["--seed", "x"], ["--seed"]),
        (["--bogus"], ["--bogus"]),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.bin").touch()
    (tmp_path / "one.bin").write_bytes(bytes(4096))
    monkeypatch.chdir(tmp_path)
    assert_refused(capfd, ["swap", *arguments, "--workload-mib", "1"], *words)


@pytest.fixture
def opening_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open sources as an unprivileged user.

    Only that: where the interpreter lies in root's home, another user could not even run it.
    """

    def as_nobody(source: Callable[..., Any]) -> Callable[..., Any]:
        def open_source(*arguments: Any, **options: Any) -> Any:
            os.seteuid(65534)
            try:
                return source(*arguments, **options)
            finally:
                os.seteuid(0)

        return open_source

    if os.geteuid() == 0:
        monkeypatch.setattr(swap, "ProcessMemory", as_nobody(ProcessMemory))
        monkeypatch.setattr(swap, "FilePages", as_nobody(FilePages))


@pytest.mark.usefixtures("opening_as_nobody")
def test_a_process_that_may_not_be_read_is_one_clear_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with unreadable_process() as pid:
        code = main(["swap", "--pid", str(pid)])
    assert code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"batchzip: process {pid} may not be read: run as the user .*\n", err)


@pytest.mark.usefixtures("opening_as_nobody")
def test_an_unreadable_file_is_one_clear_line(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.chmod(0)
    assert main(["swap", "--file", str(file)]) == 2
    assert capfd.readouterr() == ("", f"batchzip: {file}: Permission denied\n")


@pytest.mark.slow
def test_help_shows_examples_of_each_command() -> None:
    for arguments, example in (
        ([], "batchzip algorithms  "),
        (["swap"], "batchzip swap --pid 4711 --algorithm lz4"),
        (["algorithms"], "batchzip algorithms --json"),
    ):
        result = cli(*arguments, "--help")
        assert (result.returncode, result.stderr) == (0, "")
        assert example in result.stdout
        assert "\nexit codes:\n  0    success\n" in result.stdout
