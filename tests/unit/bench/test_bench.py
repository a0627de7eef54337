"""`batchzip bench` as its users meet it, and what two results are said to differ in."""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import assert_one_clear_line, assert_refused, cli

from batchzip import Engine, backends
from batchzip.bench.ahead import ahead
from batchzip.bench.algorithm import Algorithm, parse_algorithms
from batchzip.bench.compare import compare
from batchzip.bench.compressors import Load
from batchzip.bench.figure import Figure, Result, load
from batchzip.bench.lanes import cpu_seconds, hand_over, idle
from batchzip.bench.limit import Limit
from batchzip.bench.pages import KINDS, PAGE, Source, for_codecs
from batchzip.bench.rounds import in_turns
from batchzip.bench.spread import Spread, speed, spread
from batchzip.errors import BadArgument, UnknownAlgorithm

SHORT = ["--pages", "64", "--rounds", "3", "--batches", "1,8", "--algorithms", "lz4,zstd:1"]
SHORTER = ["--pages", "64", "--rounds", "3", "--batches", "8", "--algorithms", "lz4"]

PNG_BEGINS = b"\x89PNG\r\n\x1a\n"


bench = partial(cli, "bench", timeout=120)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("bench") / "pages.bin"
    rng = np.random.default_rng(7)
    pages = rng.integers(97, 105, (200, PAGE), np.uint8)
    pages[::4] = 5
    path.write_bytes(pages.tobytes())
    return path


@pytest.fixture(scope="module")
def measured(file: Path) -> tuple[dict[str, Any], Path]:
    """One real run in short, with pictures."""
    picture = file.with_name("bench.png")
    result = bench("--file", file, *SHORT, "--json", "--plot", picture)
    assert (result.returncode, result.stderr) == (0, ""), result
    document: dict[str, Any] = json.loads(result.stdout)
    return document, picture


@pytest.fixture
def saved(measured: tuple[dict[str, Any], Path], tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(measured[0]))
    return path


@pytest.mark.slow
def test_a_result_is_kept_in_a_file_and_shown(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    result = bench("--file", file, *SHORTER, "--json", kept)
    assert (result.returncode, result.stderr) == (0, "")
    assert "µs per page" in result.stdout
    assert load(kept).settings["pages"] == 64
    refused = bench("--json", tmp_path / "none" / "a.json")
    assert_one_clear_line(refused, "a.json", "no directory")


@pytest.mark.slow
def test_everybody_is_measured_at_every_batch(measured: tuple[dict[str, Any], Path]) -> None:
    document, _ = measured
    of: dict[tuple[Any, ...], set[str]] = {}
    for one in document["figures"]:
        if one["labels"]["benchmark"] == "compress":
            labels = one["labels"]
            case = labels["algorithm"], labels["operation"], labels["batch"]
            of.setdefault(case, set()).add(one["contender"])
            assert one["ratio"] > 1
    everybody = {
        "bare",
        "sequential",
        "workers",
        "thread pool",
        "loky submit",
        "blosc2 page",
        "blosc2 1 MiB",
        *({"threads"} & {*backends()}),
    }
    assert of == {
        (algorithm, operation, batch): everybody
        | ({"zstandard multi"} if algorithm == "zstd 1" else set())
        for algorithm in ("lz4", "zstd 1")
        for operation in ("compress", "decompress")
        for batch in (1, 8)
    }
    stores = {
        one["contender"] for one in document["figures"] if one["labels"]["benchmark"] == "swap"
    }
    assert stores == {
        "dict",
        "zict",
        "sequential",
        "threads",
        "workers",
        "workers, 1 MiB folios",
        "workers, half in file",
        "blosc2 page",
        "blosc2 1 MiB",
        "SQLite",
        "LMDB",
        "diskcache",
    }


@pytest.mark.slow
def test_a_result_says_where_and_how_it_was_made(measured: tuple[dict[str, Any], Path]) -> None:
    document, _ = measured
    assert document["machine"]["cpus"] >= 1
    assert document["machine"]["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert document["settings"]["pages"] == 64
    assert document["settings"]["rounds"] == 3
    for one in document["figures"]:
        assert len(one["values"]) == 3
        assert all(value > 0 for value in one["values"])
    assert document["command"].startswith("batchzip bench --file ")
    assert "--json" not in document["command"]
    assert datetime.fromisoformat(document["date"]).tzinfo is not None


@pytest.mark.slow
def test_pictures_are_drawn(measured: tuple[dict[str, Any], Path]) -> None:
    _, picture = measured
    for path in (picture, picture.with_name("bench-swap.png")):
        assert path.read_bytes().startswith(PNG_BEGINS)
        assert path.stat().st_size > 10_000  # an empty picture has 3 kB


@pytest.mark.slow
def test_a_result_compared_with_itself_is_the_same(saved: Path) -> None:
    result = bench("--compare", saved, saved)
    assert (result.returncode, result.stderr) == (0, "")
    assert "0 slower, 0 faster" in result.stdout


@pytest.mark.slow
def test_a_slower_one_is_named_and_told_by_the_exit_code(saved: Path, tmp_path: Path) -> None:
    document = json.loads(saved.read_text())
    slowed = next(
        one
        for one in document["figures"]
        if one["contender"] == "workers" and one["labels"].get("batch") == 8
    )
    slowed["values"] = [50 * value for value in slowed["values"]]
    new = tmp_path / "new.json"
    new.write_text(json.dumps(document))
    result = bench("--compare", saved, new)
    assert result.returncode == 1
    assert "1 slower, 0 faster" in result.stdout
    assert "workers" in result.stdout
    assert bench("--compare", new, saved).returncode == 0, "faster is no failure"


@pytest.mark.slow
def test_compare_with_one_result_measures_anew_and_shows_it(saved: Path, file: Path) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    result = bench("--file", file, *SHORTER, "--compare", saved, env=environment)
    assert (result.returncode, result.stderr) == (3, ""), "the old result has more batches"
    assert "not measured, but in the old result: compress lz4 compress 1 bare" in result.stdout
    for words in ("bare", "workers", "decompress", "ratio", "held ÷ size", "source", "figures:"):
        assert words in result.stdout
    figures = [line[len("workers, 1 MiB folios") :] for line in result.stdout.splitlines()]
    assert not [line for line in figures if "…" in line], "a name may be cut, but no figure"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--file", "/nowhere/at-all"], ["/nowhere/at-all", "No such file"]),
        (["--algorithms", "lzma"], ["lzma", "lz4"]),
        (["--algorithms", "zstd:fast"], ["zstd:fast", "zstd:3"]),
        (["--algorithms", "zstd:99"], ["99"]),
        (["--batches", "8,0"], ["'0'", "--batches"]),
        (["--batches", "1024", "--pages", "64", "--workload", "random"], ["1024"]),
        (["--rounds", "0"], ["--rounds"]),
        (["--workload", "easy"], ["--workload"]),
        (["--plot", "picture.jpg"], [".png"]),
        (["--compare", "/nowhere/old.json"], ["/nowhere/old.json"]),
        (["--compare", "a", "b", "c"], ["--compare", "one or two"]),
        (["--pid", "1", "--file", "x"], ["--pid", "--file"]),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capfd, ["bench", *arguments], *words)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 99}', '{"format": 1}'])
def test_a_file_without_a_result_is_refused(
    text: str, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(text)
    assert_refused(capfd, ["bench", "--compare", saved, wrong], "wrong.json")


@pytest.mark.slow
def test_a_picture_that_cannot_be_written(file: Path, saved: Path) -> None:
    result = bench("--compare", saved, saved, "--plot", file.parent / "none" / "a.png")
    assert_one_clear_line(result, "a.png")


def a_result(**medians: float) -> Result:
    result = Result({}, {"compress": "bare"})
    for contender, median in medians.items():
        values = [median * 0.99, median, median * 1.01]
        result.add({"benchmark": "compress"}, contender, "µs", values)
    return result


def test_a_machine_that_is_slower_altogether_changes_nothing() -> None:
    (change,) = compare(a_result(bare=5, workers=4), a_result(bare=10, workers=8)).changes
    assert change.verdict == "same"
    assert change.change == pytest.approx(0)


def test_only_contenders_ahead_of_batchzip_are_named() -> None:
    result = a_result(bare=5, sequential=6, workers=4, peer=2, **{"workers, half in file": 1})
    assert ahead(result) == ["ahead of batchzip, compress µs: peer 2.00×"]
    assert ahead(a_result(workers=4, peer=4.01)) == []
    assert ahead(a_result(workers=4, peer=3.99)) == [], "within the spread"
    assert ahead(a_result(peer=3)) == [], "nobody to be ahead of"


def test_a_change_within_the_spread_is_none() -> None:
    old, new = a_result(workers=10), a_result(workers=10)
    noisy = Figure({"benchmark": "compress"}, "workers", "µs", (8, 12, 14))
    new.figures[0] = noisy
    assert compare(old, new).changes[0].verdict == "same"
    assert compare(old, a_result(workers=12)).changes[0].verdict == "slower"
    assert compare(old, a_result(workers=8)).changes[0].verdict == "faster"
    assert compare(old, a_result(workers=10.4)).changes[0].verdict == "same", "less than 5 %"


def test_a_single_round_says_nothing() -> None:
    single = Result({}, {"compress": "bare"})
    single.add({"benchmark": "compress"}, "workers", "µs", [10])
    with pytest.raises(BadArgument, match="3 rounds"):
        compare(a_result(workers=1), single)


@pytest.mark.slow
def test_zram_is_measured_or_said_to_be_missing(file: Path) -> None:
    before = set(Path("/sys/block").iterdir())
    result = bench("--file", file, *SHORTER, "--zram", "--json")
    assert (result.returncode, result.stderr) == (0, ""), result
    document = json.loads(result.stdout)
    named = {one["contender"] for one in document["figures"] if "zram" in one["contender"]}
    if named:
        assert named == {"zram", "zram, 1 thread", "zram, 2 threads"}
    else:
        assert any("zram" in note for note in document["notes"])
    assert set(Path("/sys/block").iterdir()) <= before, "a device was left"


def test_rounds_are_divided_by_the_baseline_of_the_same_round() -> None:
    old, new = Result({}, {"compress": "bare"}), Result({}, {"compress": "bare"})
    for result, values in ((old, [4, 40, 400]), (new, [8, 80, 800])):
        result.add({"benchmark": "compress"}, "bare", "µs", [10, 100, 1000])
        result.add({"benchmark": "compress"}, "workers", "µs", values)
    (change,) = compare(old, new).changes
    assert change.verdict == "slower"
    assert change.change == pytest.approx(1)


def test_figures_that_were_not_measured_again_are_named() -> None:
    compared = compare(a_result(workers=4, threads=5), a_result(workers=4, sequential=3))
    assert [one.contender for one in compared.missing] == ["threads"]
    assert [one.figure.contender for one in compared.changes] == ["workers"]


def test_results_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(BadArgument, match="in common"):
        compare(a_result(workers=1), a_result(sequential=1))


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    result = a_result(bare=5, workers=4)
    result.note("x is missing")
    result.note("x is missing")
    path = tmp_path / "result.json"
    result.save(path)
    assert load(path) == result
    assert load(path).notes == ["x is missing"]


def test_everybody_has_a_turn_in_each_round() -> None:
    turns = list(in_turns("abc", 3))
    assert [turn for turn, _ in turns] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for turn in range(4):
        assert sorted(name for at, name in turns if at == turn) == ["a", "b", "c"]


def test_a_list_of_algorithms_with_levels_is_parsed() -> None:
    assert parse_algorithms("lz4, zstd:-1") == [Algorithm("lz4"), Algorithm("zstd", -1)]
    with pytest.raises(UnknownAlgorithm):
        parse_algorithms("lz4,,")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pages_is_what_it_says(kind: str) -> None:
    pages = Source(kind).take(100)
    assert pages.shape == (100, PAGE)
    again = copy.copy(pages)
    if kind == "zeros":
        assert not pages.any()
        assert np.array_equal(for_codecs(pages), again), "there are no others"
    else:
        assert len(for_codecs(pages)) <= 100
    if kind in {"random", "zeros"}:
        assert np.array_equal(Source(kind).take(100), again)


def test_a_speed_is_a_ratio_of_each_round_on_its_own() -> None:
    found = speed([1.0, 20.0, 300.0], [2.0, 20.0, 100.0])
    assert (found.low, found.median, found.high) == (0.75, 1.0, 2.0)
    assert spread([3.0]) == Spread(3.0, 3.0, 3.0)


@pytest.mark.slow
def test_the_limit_is_of_all_its_processes_at_once(file: Path) -> None:
    pages = for_codecs(Source(file=str(file)).take(64))
    with Limit(Load(Algorithm("lz4"), pages, lanes=2)) as limit:
        assert limit.seconds("compress", len(pages)) > 0
        assert limit.seconds("decompress", len(pages)) > 0
        assert len(limit.cpu_s) == 2


@pytest.mark.slow
def test_a_hand_over_is_timed_awake_and_asleep(file: Path) -> None:
    pages = for_codecs(Source(file=str(file)).take(64))
    with (
        Engine("lz4", backend="sequential") as sequential,
        Engine("lz4", backend="workers", workers=1) as workers,
    ):
        assert workers.wait_ready()
        found = hand_over({"sequential": sequential, "workers": workers}, pages, 1)
        assert set(idle([sequential, workers], 0.01)) == {"owner", "workers"}
    for one in found.values():
        assert {state: len(values) for state, values in one.seconds.items()} == {
            "awake": 1,
            "asleep": 1,
        }
        assert one.pages["awake"] > one.pages["asleep"] > 0
    assert found["sequential"].share("awake") == 0


@pytest.mark.slow
def test_cpu_seconds_are_those_of_all_threads() -> None:
    before, begun = cpu_seconds(os.getpid()), time.process_time()

    def work() -> None:
        while time.process_time() - begun < 0.2:
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_seconds(os.getpid()) - before > 0.1
