"""`batchzip swap` as its users meet it: a process with arguments, output and an exit code."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.command import (
    COMMAND,
    Terminal,
    assert_refused,
    children,
    cli,
    has_gone,
    resident_bytes,
)

import batchzip
from batchzip.cli import swap
from batchzip.cli.main import main
from batchzip.core import build
from batchzip.core.libraries import libraries
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run with some pages says, for the tests that look at it."""
    path = tmp_path_factory.mktemp("swap") / "pages.bin"
    path.write_bytes(some_pages().tobytes())
    return document("--file", path)


def document(*arguments: object) -> dict[str, Any]:
    result = cli("swap", "--json", *arguments)
    assert (result.returncode, result.stderr) == (0, ""), result
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def some_pages(count: int = 600, page_size: int = 4096) -> NDArray[np.uint8]:
    """Text-like, same-filled and random pages in turn."""
    rng = np.random.default_rng(7)
    pages = rng.integers(97, 105, (count, page_size), np.uint8)
    pages[1::3] = 5
    pages[2::3] = rng.integers(0, 256, pages[2::3].shape, np.uint8)
    return pages


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pages.bin"
    path.write_bytes(some_pages().tobytes())
    return path


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
    heading, lanes = result.stdout.splitlines()[3:5]
    assert heading.split() == ["threads", "÷", "workers", "÷"]
    assert re.fullmatch(r" +sequential( +\d+ \+ caller +seq\.){2}", lanes)


def test_threads_are_left_out_for_a_codec_in_python_and_said_so(file: Path) -> None:
    result = document("--file", file, "--algorithm", "brotli")
    assert list(result["backends"]) == ["sequential", "workers"]
    reason = result["left_out"].pop("threads")
    assert result["left_out"] == {}
    assert reason.startswith("brotli runs in Python here")
    shown = cli("swap", "--file", file, "--algorithm", "brotli").stdout
    assert f"threads are left out: {reason}" in " ".join(shown.split())


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


def test_without_a_source_a_workload_is_taken() -> None:
    result = document("--workload-mib", 2, "--algorithm", "lz4")
    assert result["source"]["kind"] == "process"
    assert result["source"]["pages"] * 4096 > 2 << 20
    assert result["all_equal"] is True
    assert not Path(f"/proc/{result['source']['pid']}").exists()


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


def test_the_last_page_is_padded_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "odd.bin"
    path.write_bytes(b"x" * 5000)
    assert document("--file", path)["source"]["padded_bytes"] == 3192
    result = cli("swap", "--file", path)
    assert "the last page was padded with 3,192 zero bytes" in result.stdout
    assert "2 pages compared byte for byte: all equal" in result.stdout


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
    script = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as child:
        pid = child.pid if os.geteuid() == 0 else 1
        code = main(["swap", "--pid", str(pid)])
        child.communicate()
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


def test_the_version_names_the_libraries_and_how_the_core_was_built() -> None:
    result = cli("--version")
    assert (result.returncode, result.stderr) == (0, "")
    version, *others = result.stdout.splitlines()
    assert version == f"batchzip {batchzip.__version__}"
    found = ", ".join(f"{library.name} {library.version}" for library in libraries())
    assert others == [
        f"C libraries: {found}",
        f"core: {build.PROFILE}, Cython {build.CYTHON}, {build.COMPILER}",
    ]


def test_algorithms_say_what_is_native_and_where_its_library_is() -> None:
    found = {line["algorithm"]: line for line in json.loads(cli("algorithms", "--json").stdout)}
    there = {library.name: library._asdict() for library in libraries()}
    for name, library in (("lz4", "lz4"), ("lz4hc", "lz4"), ("zstd", "zstd")):
        assert (found[name]["native"], found[name]["library"]) == (True, there[library])
    for name in ("brotli", "deflate", "snappy"):
        assert (found[name]["native"], found[name]["library"]) == (False, None)
    shown = cli("algorithms").stdout.splitlines()
    assert {"lz4 C", "zstd C", "brotli Python"} <= {" ".join(line.split()[:2]) for line in shown}
    for each in libraries():
        assert [each.name, each.version, each.path] in [line.split() for line in shown]


WITHOUT_LZ4 = """
from batchzip.core import libraries
libraries._PLACES["lz4"] = ("lz4", ("nowhere",))
from batchzip.cli.main import main
main({arguments})
"""


def test_a_library_that_is_not_used_is_named_with_the_reason() -> None:
    def said(*arguments: str) -> str:
        code = WITHOUT_LZ4.format(arguments=list(arguments))
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    reason = "not used: lz4 has no nowhere for this Python"
    assert f"lz4   -       {reason}" in said("algorithms").splitlines()
    assert f"lz4 is {reason}" in said("--version").splitlines()
    found = {line["algorithm"]: line for line in json.loads(said("algorithms", "--json"))}
    assert found["lz4"]["native"] is False
    assert found["lz4"]["usable"] is True
    assert found["lz4"]["library"]["problem"] == "lz4 has no nowhere for this Python"
    assert found["zstd"]["native"] is True


def test_help() -> None:
    for arguments, example in (
        ([], "batchzip algorithms  "),
        (["swap"], "batchzip swap --pid 4711 --algorithm lz4"),
        (["algorithms"], "batchzip algorithms --json"),
    ):
        result = cli(*arguments, "--help")
        assert (result.returncode, result.stderr) == (0, "")
        assert example in result.stdout
        assert "\nexit codes:\n  0    success\n" in result.stdout


class _Wrong(batchzip.SwapStore):
    """A store that changes one byte of every page from the 100th on."""

    def load(self, index: Any, *args: Any, **kwargs: Any) -> Any:
        page = bytearray(super().load(index, *args, **kwargs))
        if index >= 100:
            page[17] ^= 1
        return bytes(page)

    def load_many(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        pages = super().load_many(indices, *args, **kwargs)
        pages[np.asarray(indices) >= 100, 17] ^= 1
        return pages


class _Corrupt(batchzip.SwapStore):
    """A store that finds page 42 damaged, alone and in a batch."""

    def load(self, index: Any, *args: Any, **kwargs: Any) -> Any:
        if index == 42:
            raise batchzip.CorruptPage(42)
        return super().load(index, *args, **kwargs)

    def load_many(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        if 42 in indices:
            raise batchzip.CorruptPage(42)
        return super().load_many(indices, *args, **kwargs)


def swap_in_process(
    monkeypatch: pytest.MonkeyPatch, store: type, *arguments: object
) -> Callable[[], int]:
    monkeypatch.setattr(swap, "SwapStore", store)
    return lambda: main(["swap", *map(str, arguments)])


def test_a_mismatch_exits_1_and_names_the_first_page(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert swap_in_process(monkeypatch, _Wrong, "--file", file, "--json")() == 1
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert result["all_equal"] is False
    assert result["first_difference"]["page"] == 100
    assert {of["differing_pages"] for of in result["backends"].values()} == {500}
    want = int(some_pages()[100, 17])
    assert err.startswith("batchzip: first difference: page 100 (file offset 409600), backend ")
    assert err.endswith(f": byte 17 is {want ^ 1:#04x} instead of {want:#04x}\n")


def test_a_damaged_page_is_named_and_hides_no_other(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert swap_in_process(monkeypatch, _Corrupt, "--file", file)() == 1
    out, err = capfd.readouterr()
    assert "600 pages compared byte for byte: 3 DIFFER" in out
    assert "page 42 (file offset 172032)" in err
    assert "damaged" in err


def test_a_page_of_zeros_that_cannot_be_loaded_is_no_page_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zeros.bin"
    path.write_bytes(bytes(100 * 4096))
    assert swap_in_process(monkeypatch, _Corrupt, "--file", path)() == 1
    assert "100 pages compared byte for byte: 3 DIFFER" in capfd.readouterr().out


def test_a_file_that_changes_meanwhile_is_no_mismatch(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Meddling(batchzip.SwapStore):
        def store(self, index: Any, pages: Any) -> None:
            super().store(index, pages)
            if index > 500:
                file.write_bytes(bytes(600 * 4096))

    assert swap_in_process(monkeypatch, Meddling, "--file", file)() == 2
    assert "was changed while it was read" in capfd.readouterr().err


def test_a_terminal_without_the_letters_gets_its_report(file: Path) -> None:
    result = cli("swap", "--file", file, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "600 pages compared byte for byte: all equal" in result.stdout


def test_a_reader_that_goes_away_is_no_error(file: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [*COMMAND, "swap", "--file", file],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened = []

    def start(*arguments: object) -> Terminal:
        opened.append(Terminal(arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_bars_are_drawn_on_a_terminal(terminal: Callable[..., Terminal], file: Path) -> None:
    shown = terminal("swap", "--file", file)
    shown.read_until(None)
    assert shown.process.wait(timeout=10) == 0
    assert b"storing" in shown.seen
    assert b"600/600" in shown.seen
    assert b"loading and comparing" in shown.seen


def test_json_draws_no_bars(terminal: Callable[..., Terminal], file: Path) -> None:
    shown = terminal("swap", "--file", file, "--json")
    shown.read_until(None)
    assert shown.process.wait(timeout=10) == 0
    assert shown.seen == b""


@pytest.mark.parametrize("whole_group", [False, True], ids=["one process", "whole group"])
@pytest.mark.parametrize("stage", [b"storing", b"loading"])
def test_ctrl_c_leaves_one_line_and_no_process(
    terminal: Callable[..., Terminal], tmp_path: Path, stage: bytes, whole_group: bool
) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(1 << 28 if stage == b"loading" else 1 << 40)
    shown = terminal("swap", "--file", path)
    shown.read_until(stage)
    started = children(shown.process.pid)
    assert started
    (os.killpg if whole_group else os.kill)(shown.process.pid, signal.SIGINT)
    shown.read_until(None)
    assert shown.process.wait(timeout=10) == 130
    assert b"Traceback" not in shown.seen
    assert shown.seen.count(b"batchzip: ") == 1
    assert shown.seen.endswith(b"batchzip: interrupted\r\n")
    deadline = time.monotonic() + 10
    while not all(map(has_gone, started)):
        assert time.monotonic() < deadline, started
        time.sleep(0.01)


def test_ctrl_c_while_the_workload_is_built_leaves_no_process() -> None:
    with subprocess.Popen(
        [*COMMAND, "swap", "--workload-mib", "4096"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        deadline = time.monotonic() + 30
        while not any(resident_bytes(child) > 64 << 20 for child in children(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"batchzip: interrupted\n")
    assert all(map(has_gone, started))
