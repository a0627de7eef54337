"""Advice on data whose answer is known, and `batchzip advise` as its users meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import assert_fits, assert_one_clear_line, assert_refused, cli
from support.sample_pages import arrays, json_pages
from support.unreadable import unreadable_process

from batchzip import BadArgument, BadBatch, UnknownAlgorithm, UnreadableProcess
from batchzip.advice import BLOCK_BYTES, TABLE_BYTES, Advice, Option, advise
from batchzip.advice.judgement import recommend, with_front
from batchzip.cli.advise import report
from batchzip.cli.main import main
from batchzip.codecs import make_codec
from batchzip.pool import Pool
from batchzip.sources import sampling
from batchzip.sources.process_memory import ProcessMemory
from batchzip.sources.sampling import sample_file, sample_process
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


def blocks_of(data: bytes) -> NDArray[np.uint8]:
    whole = len(data) // BLOCK_BYTES * BLOCK_BYTES
    return np.frombuffer(data[:whole], np.uint8).reshape(-1, BLOCK_BYTES)


def text(count: int = 42) -> NDArray[np.uint8]:
    return blocks_of(b"".join(json_pages()))[:count]


@pytest.fixture(scope="module")
def text_advice() -> Advice:
    return advise(text(), total_bytes=1 << 30, max_load_us=1e9)


def by_name(advice: Advice) -> dict[tuple[str, int], Any]:
    return {(option.name, option.page_size): option for option in advice.options}


def test_ratio_and_memory_are_those_of_the_codec_and_the_pools_classes() -> None:
    blocks = text(5).copy()  # too few to put any aside: all are measured
    blocks[0, : 3 * 16384] = 7
    blocks[1] = np.frombuffer(np.random.default_rng(1).bytes(BLOCK_BYTES), np.uint8)
    found = by_name(advise(blocks, total_bytes=100 * blocks.nbytes, algorithms=["lz4"]))
    for size in (4096, 16384, 65536):
        option = found["lz4", size]
        compress = make_codec("lz4").compressor(size)
        lengths, filled, raw = [], 0, 0
        pages = [page.tobytes() for page in blocks.reshape(-1, size)]
        for page in pages:
            if page == page[:8] * (size // 8):
                filled += 1
                continue
            length = len(compress(page))
            raw += length >= size
            lengths.append(min(length, size))
        with Pool(page_size=size) as pool:
            memory = sum(map(pool.class_size, lengths))
        saved = 1 - (memory + TABLE_BYTES * len(pages)) / blocks.nbytes
        assert option.same_filled_share == filled / len(pages)
        assert option.incompressible_share == raw / len(pages)
        assert option.ratio == pytest.approx(blocks.nbytes / sum(lengths))
        assert option.saved_share == pytest.approx(saved)
        assert option.saved_bytes == round(saved * 100 * blocks.nbytes)
        assert option.store_us > 0
        assert option.load_us > 0
    assert found["lz4", 4096].same_filled_share == 12 / 80


@pytest.mark.slow
def test_every_algorithm_page_size_filter_and_dictionary_is_tried(text_advice: Advice) -> None:
    found = by_name(text_advice)
    assert len(found) == len(text_advice.options)
    for size in (4096, 16384, 65536):
        names = {name for name, page_size in found if page_size == size}
        shuffle = next(word for name in names for word in name.split() if word in ("2", "4", "8"))
        for name in ("brotli", "deflate", "lz4", "lz4hc", "snappy", "zstd level 1", "zstd level 3"):
            assert {name, f"{name} shuffle {shuffle}"} <= names
        assert {"zstd level 1 dictionary", f"zstd level 3 shuffle {shuffle} dictionary"} <= names
    assert text_advice.notes == ()
    assert text_advice.total_bytes == 1 << 30
    assert text_advice.sample_bytes == text().nbytes - text()[::5].nbytes, "a fifth trains"


@pytest.mark.slow
def test_the_front_holds_exactly_the_unbeaten_options(text_advice: Advice) -> None:
    def beats(a: Any, b: Any) -> bool:
        mine = (a.saved_share, -a.store_us, -a.load_us)
        other = (b.saved_share, -b.store_us, -b.load_us)
        return all(x >= y for x, y in zip(mine, other, strict=True)) and mine != other

    options = text_advice.options
    assert any(option.on_front for option in options)
    for option in options:
        assert option.on_front is not any(beats(other, option) for other in options)


@pytest.mark.slow
def test_the_recommendation_is_on_the_front_and_near_the_best(text_advice: Advice) -> None:
    chosen = text_advice.recommended
    assert chosen is not None
    assert chosen.on_front
    assert chosen.saved_share >= max(o.saved_share for o in text_advice.options) - 0.02
    assert text_advice.sentence.startswith(f"Use {chosen.name} with pages of ")
    assert size_text(1 << 30) in text_advice.sentence
    assert size_text((1 << 30) - chosen.saved_bytes) in text_advice.sentence


@pytest.mark.slow
@given(
    figures=st.lists(
        st.tuples(
            st.sampled_from([4096, 16384, 65536]),
            st.integers(0, 20),  # few values: ties are what is easily wrong
            st.integers(1, 20),
            st.integers(1, 20),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    limit=st.integers(1, 21),
)
def test_any_recommendation_keeps_the_limit_and_is_near_the_best(
    figures: list[tuple[int, int, int, int, bool]], limit: int
) -> None:
    options = with_front(
        [
            Option(
                "zstd", {}, size, None, dictionary, 0.0, 0.0, 2.0, saved / 20, 0, store_us, load_us
            )
            for size, saved, store_us, load_us, dictionary in figures
        ]
    )
    chosen, sentence = recommend(options, 1 << 30, limit)
    quick = [option.saved_share for option in options if option.load_us <= limit]
    assert sentence.endswith(".")
    if chosen is None:
        assert max(quick, default=0) < 0.1
    else:
        assert chosen.on_front
        assert chosen.load_us <= limit
        assert chosen.saved_share >= max(quick) - 0.02


@pytest.mark.slow
def test_the_call_that_is_recommended_runs_as_it_stands(text_advice: Advice) -> None:
    import batchzip  # noqa: PLC0415 - the name that the call has

    pages = text().reshape(-1, 4096)
    for option in text_advice.options[:18]:
        assert option.page_size == 4096
        with eval(option.call, {"batchzip": batchzip, "pages": pages}) as engine:
            page = pages[3].tobytes()
            assert engine.decompress_page(engine.compress_page(page)) == page


@pytest.mark.slow
def test_a_dictionary_is_judged_by_pages_it_was_not_trained_on(text_advice: Advice) -> None:
    found = by_name(text_advice)
    # Text that is all of a kind: 6.03 against 5.07 for 4 KiB, see the README.
    with_one, without = found["zstd level 1 dictionary", 4096], found["zstd level 1", 4096]
    assert 1.05 < with_one.ratio / without.ratio < 1.5


def test_numbers_are_told_to_be_shuffled_by_the_bytes_of_their_elements() -> None:
    size, walk = arrays()["int32 random walk"]
    found = by_name(advise(blocks_of(walk), algorithms=["lz4"]))
    assert found[f"lz4 shuffle {size}", 4096].ratio > 1.5 * found["lz4", 4096].ratio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shuffle"), [("bfloat16 weights", "f2"), ("float32 weights", "f4")]
)
def test_floats_are_told_to_be_shuffled_as_such(kind: str, shuffle: str) -> None:
    advice = advise(blocks_of(arrays()[kind][1]))
    assert advice.recommended is not None
    assert advice.recommended.shuffle == shuffle
    assert f"shuffle='{shuffle}'" in advice.recommended.call
    assert not any(
        option.algorithm == "lz4" for option in advice.options if option.shuffle == shuffle
    )


@pytest.mark.slow
def test_noise_is_left_alone() -> None:
    noise = blocks_of(np.random.default_rng(2).bytes(3 * BLOCK_BYTES))
    advice = advise(noise)
    assert advice.recommended is None
    assert advice.sentence.startswith("Leave it uncompressed: ")
    assert {option.incompressible_share for option in advice.options} == {1.0}
    assert advice.notes == ("no dictionary was tried: the sample has fewer than 10 blocks",)


def test_zeros_have_no_ratio_and_take_the_tables_only() -> None:
    advice = advise(np.zeros((12, BLOCK_BYTES), np.uint8), algorithms=["zstd"])
    for option in advice.options:
        assert option.ratio is None
        assert option.same_filled_share == 1
        assert option.saved_share == 1 - TABLE_BYTES / option.page_size
    assert [note.partition(":")[0] for note in advice.notes] == [
        f"no dictionary for pages of {size} bytes" for size in (4096, 16384, 65536)
    ]


def test_a_limit_that_nothing_keeps_is_said() -> None:
    advice = advise(text(2), algorithms=["lz4"], max_load_us=1e-6)
    assert advice.recommended is None
    assert advice.sentence.startswith("Nothing loads a page within 1e-06 µs here; the fastest, ")


def test_bad_arguments_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(BadBatch):
        advise(bytes(BLOCK_BYTES - 1))
    with pytest.raises(UnknownAlgorithm, match="'lzo'"):
        advise(text(1), algorithms=["lzo"])
    with pytest.raises(BadArgument, match="at least one"):
        advise(text(1), algorithms=[])
    for limit in (0, -1.0, float("nan")):
        with pytest.raises(BadArgument, match="max_load_us must be a number above 0"):
            advise(text(1), max_load_us=limit)


def test_progress_goes_up_to_all() -> None:
    seen: list[tuple[int, int]] = []
    advise(text(4), algorithms=["lz4"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 24) for done in range(1, 25)]


# Samples


@pytest.mark.slow
def test_a_sample_is_blocks_from_all_over_each_once(tmp_path: Path) -> None:
    path = tmp_path / "numbered.bin"
    numbers = np.repeat(np.arange(1000, dtype=np.uint64), BLOCK_BYTES // 8)
    path.write_bytes(numbers.tobytes() + b"rest")
    sample = sample_file(path, 100 * BLOCK_BYTES, seed=1)
    assert sample.total_bytes == 1000 * BLOCK_BYTES + 4
    places = sample.blocks.view(np.uint64)[:, 0].tolist()
    assert [place // 10 for place in places] == list(range(100)), "one of each ten"
    assert places != list(range(places[0], places[0] + 1000, 10)), "not at even distances"
    assert (sample.blocks.view(np.uint64) == np.array(places)[:, None]).all()
    again = sample_file(path, 100 * BLOCK_BYTES, seed=1)
    assert np.array_equal(again.blocks, sample.blocks)
    whole = sample_file(path, 1 << 40, seed=1).blocks.view(np.uint64)[:, 0]
    assert whole.tolist() == list(range(1000))


HOLDING = """
import sys
held = bytearray(b"\\xa5held\\x5a!!") * (1 << 20)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holding() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def test_a_sample_of_a_process_is_its_memory(holding: subprocess.Popen[bytes]) -> None:
    sample = sample_process(holding.pid, 1 << 40, seed=0)
    pages = sample.blocks.reshape(-1, 4096)
    mine = (pages == np.frombuffer(b"\xa5held\x5a!!" * 512, np.uint8)).all(axis=1)
    assert mine.sum() * 4096 == pytest.approx(8 << 20, abs=BLOCK_BYTES)
    assert 8 << 20 < sample.total_bytes < 64 << 20
    assert sample.blocks.nbytes == sample.total_bytes // BLOCK_BYTES * BLOCK_BYTES
    assert holding.poll() is None


def test_a_process_that_ends_while_it_is_read_is_told_so(
    holding: subprocess.Popen[bytes],
) -> None:
    out = np.empty(BLOCK_BYTES, np.uint8)
    with ProcessMemory(holding.pid, page_size=BLOCK_BYTES) as memory:
        assert memory.read_packed(0, out)
        holding.send_signal(signal.SIGKILL)
        holding.wait()
        with pytest.raises(UnreadableProcess, match="ended while it was read"):
            memory.read_packed(BLOCK_BYTES, out)


def test_memory_behind_the_end_is_no_block(holding: subprocess.Popen[bytes]) -> None:
    out = np.empty(BLOCK_BYTES, np.uint8)
    with ProcessMemory(holding.pid, page_size=BLOCK_BYTES) as memory:
        end = memory.found_bytes
        assert not memory.read_packed(end - 4096, out)
        assert not memory.read_packed(end, out)
        assert memory.read_packed(end - BLOCK_BYTES, out)


# The command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.bin"
    path.write_bytes(text(12).tobytes())
    return path


@pytest.mark.slow
def test_one_json_document_has_all_of_it(file: Path) -> None:
    result = cli("advise", "--file", file, "--algorithm", "lz4", "--algorithm", "zstd", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["source"] == {
        "kind": "file",
        "name": str(file),
        "path": str(file),
        "file_bytes": 12 * BLOCK_BYTES,
        "total_bytes": 12 * BLOCK_BYTES,
        "read_bytes": 12 * BLOCK_BYTES,
        "sample_bytes": 9 * BLOCK_BYTES,
    }
    assert {option["algorithm"] for option in document["options"]} == {"lz4", "zstd"}
    chosen = document["options"][document["recommended"]]
    assert chosen["on_front"] is True
    assert chosen["call"].startswith(f"batchzip.Engine('{chosen['algorithm']}'")
    assert document["recommendation"].startswith(f"Use {chosen['name']} with pages of ")


@pytest.mark.slow
def test_people_get_tables_a_mark_and_a_sentence(file: Path) -> None:
    few = cli("advise", "--file", file, "--algorithm", "lz4", env={**os.environ, "COLUMNS": "80"})
    assert (few.returncode, few.stderr) == (0, "")
    assert "\x1b" not in few.stdout
    lines = few.stdout.splitlines()
    assert [line for line in lines if line.startswith("pages of ")] == [
        f"pages of {size} KiB: 0.0% same-filled; times are µs per page" for size in (4, 16, 64)
    ]
    assert sum(line.startswith("→") for line in lines) == 1
    assert lines[0].startswith("This is about memory pages: what zswap, a SwapStore or")
    assert any(line.startswith("Use lz4") for line in lines)
    assert lines[-1].startswith("batchzip.Engine('lz4'")
    every = cli("advise", "--file", file, "--algorithm", "lz4", "--all").stdout.splitlines()
    assert sum("lz4 shuffle" in line and "%" in line for line in every) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_report_fits_its_width_and_breaks_no_word(text_advice: Advice, width: int) -> None:
    blocks = text(2)
    sample = sampling.Sample("file", "text.bin", {}, blocks.nbytes, blocks)
    assert_fits(lambda columns: report(sample, text_advice, columns, every=True), width)


@pytest.mark.slow
def test_without_a_source_a_workload_is_taken() -> None:
    result = cli("advise", "--algorithm", "snappy", "--sample", "1M", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["source"]["kind"] == "process"
    assert document["source"]["total_bytes"] > 64 << 20
    assert document["source"]["read_bytes"] == 1 << 20
    assert not os.path.exists(f"/proc/{document['source']['pid']}")  # noqa: PTH110 - not a file


@pytest.mark.slow
def test_a_running_process_is_looked_at_and_left_alone(
    holding: subprocess.Popen[bytes],
) -> None:
    result = cli("advise", "--pid", holding.pid, "--algorithm", "lz4", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["options"][0]["same_filled_share"] > 0.3
    assert holding.poll() is None


@pytest.mark.slow
def test_a_picture_is_drawn(file: Path, tmp_path: Path) -> None:
    from matplotlib import image  # noqa: PLC0415 - slow, for this test only

    path = tmp_path / "advice.png"
    result = cli("advise", "--file", file, "--algorithm", "lz4", "--plot", path)
    assert (result.returncode, result.stderr) == (0, "")
    pixels = image.imread(path)[:, :, :3]
    assert pixels.shape[0] > 500
    assert np.ptp(pixels, axis=2).max() == 0, "to be read in grey"
    assert 0.01 < (pixels < 0.5).mean() < 0.2
    vector = tmp_path / "advice.svg"
    assert cli("advise", "--file", file, "--algorithm", "lz4", "--plot", vector).returncode == 0
    assert b"<svg" in vector.read_bytes()


@pytest.mark.slow
def test_without_matplotlib_the_command_to_install_it_is_given(file: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from batchzip.cli.main import main; raise SystemExit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "advise", "--file", file, "--plot", "x.png"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert_one_clear_line(result, "matplotlib", "pip install 'matplotlib>=3.8'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--file", "missing.bin"], ["missing.bin", "No such file"]),
        (["--file", "."], [". is a directory"]),
        (["--file", "empty.bin"], ["empty.bin is empty"]),
        (["--file", "small.bin"], ["small.bin has 5,000 bytes", "at least 64.0 KiB"]),
        (["--file", "/proc/self/status"], ["/proc/self/status"]),
        (["--pid", "0"], ["--pid", "above 0"]),
        (["--pid", "4194305"], ["no process 4194305"]),
        (["--pid", "1", "--file", "x"], ["not allowed with"]),
        (["--algorithm", "zip"], ["'zip'", "zstd", "lz4"]),
        (["--sample", "1K"], ["sample of 1024 bytes", "64K"]),
        (["--sample", "much"], ["'much' is not a size"]),
        (["--max-load-us", "0"], ["'0' is not a time"]),
        (["--max-load-us", "inf"], ["'inf' is not a time"]),
        (["--plot", "x.word"], ["x.word is not a picture", ".png"]),
        (["--plot", "nowhere/x.png"], ["nowhere is not a directory"]),
        (["--seed", "-1"], ["--seed"]),
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
    (tmp_path / "small.bin").write_bytes(b"x" * 5000)
    monkeypatch.chdir(tmp_path)
    assert_refused(capfd, ["advise", *arguments], *words)


def test_a_process_that_may_not_be_read_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def as_nobody(*arguments: Any, **options: Any) -> ProcessMemory:
        os.seteuid(65534)
        try:
            return ProcessMemory(*arguments, **options)
        finally:
            os.seteuid(0)

    if os.geteuid() == 0:
        monkeypatch.setattr(sampling, "ProcessMemory", as_nobody)
    with unreadable_process() as pid:
        assert main(["advise", "--pid", str(pid)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"batchzip: process {pid} may not be read: run as the user ")
    assert err.count("\n") == 1


def test_the_smallest_sample_is_one_block(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["advise", "--file", str(file), "--sample", "64K", "--algorithm", "lz4", "--json"])
        == 0
    )
    assert json.loads(capfd.readouterr().out)["source"]["read_bytes"] == BLOCK_BYTES
