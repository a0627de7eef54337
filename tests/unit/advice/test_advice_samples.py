"""Which values advice looks at, which it refuses, and how it chooses."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.advised_values import LINES, held
from support.command import absolute_path

from batchzip import BadArgument, BatchzipError, NotStorable, advise_values
from batchzip.advice import spool
from batchzip.advice.holder import Holder, process_memory, weigh
from batchzip.advice.values import recommend

if TYPE_CHECKING:
    from batchzip.advice.weighing import Held


# What is looked at


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_of_more_than_the_sample_a_random_part_is_measured() -> None:
    found = advise_values(LINES, sample_bytes=1 << 20, seed=3)
    assert found.measured_bytes == pytest.approx(1 << 20, rel=0.01)
    assert found.total_values == 8000
    assert found.total_bytes == pytest.approx(sum(map(len, LINES)), rel=0.05)
    in_dict = found.held[0]
    assert in_dict.total_bytes == pytest.approx(
        in_dict.bytes * 8000 / found.measured_values, rel=0.01
    )
    assert "a sample of " in found.report()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_of_an_iterator_the_first_ones_are_measured() -> None:
    endless = (bytes([number % 256]) * 1000 for number in itertools.count())
    found = advise_values(endless, sample_bytes=100_000)
    assert found.measured_values == found.total_values == 100
    assert "There are more values: the first 100 were measured." in found.notes


class Forgetful(dict[str, bytes]):
    def __getitem__(self, key: str) -> bytes:
        if key == "gone":
            raise KeyError(key)
        return super().__getitem__(key)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_values_that_a_cache_evicts_meanwhile_are_left_out() -> None:
    assert advise_values(Forgetful(a=b"1", gone=b"2", b=b"3")).measured_values == 2


@pytest.mark.parametrize("values", [5, None, "text", b"bytes", [], {}, iter(())])
def test_advice_refuses_arguments_without_values(values: Any) -> None:
    with pytest.raises(BadArgument, match="values"):
        advise_values(values)


def test_odd_arguments_are_refused() -> None:
    with pytest.raises(BadArgument, match="sample_bytes"):
        advise_values([b"1"], sample_bytes=0)
    with pytest.raises(BadArgument, match="seed"):
        advise_values([b"1"], seed=-1)


def test_an_unpicklable_value_is_refused_and_its_key_named() -> None:
    with pytest.raises(NotStorable, match=r"the value, of function, .*\(key 'f'\)"):
        advise_values({"f": lambda: None})


@pytest.mark.slow
def test_classes_of_a_script_are_refused_with_what_would_be_right(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import batchzip\nclass Mine: pass\n"
        "try: batchzip.advise_values([Mine()])\n"
        "except batchzip.BatchzipError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "a fresh process cannot restore the values: AttributeError: " in done.stdout
    assert "must be in importable modules" in done.stdout


@pytest.mark.slow
def test_classes_of_what_a_session_imported_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine: pass\n")
    script = "import batchzip, mine; print(batchzip.advise_values([mine.Mine()]).serializer)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
        env=absolute_path(),
    )
    assert done.stdout == "pickle\n"


@pytest.mark.slow
def test_keys_that_no_mapping_takes_are_said() -> None:
    said = pytest.raises(
        BatchzipError, match=r"lz4 could not be measured: a key must be .*not float"
    )
    with tempfile.TemporaryFile() as file, said:
        spool.write(file, [(1.5, b"value")], 100)
        weigh(Holder("mapping", algorithm="lz4"), file.fileno(), 1)


def test_values_come_out_of_the_spool_as_they_went_in(tmp_path: Path) -> None:
    pairs = [("a", b"1"), (b"b", [2, 3]), (("c", 1), b""), (4, None), (None, bytes(70000))]
    path = tmp_path / "spool"
    with path.open("wb") as file:
        written = spool.write(file, pairs, 1 << 20)
    assert list(spool.read(path)) == pairs
    assert list(spool.read_keys(path)) == [key for key, _ in pairs]
    assert (written.values, written.all_bytes, written.complete) == (5, False, True)
    assert written.suiting.names == ["msgpack", "pickle"], "JSON has no bytes"
    assert written.short_bytes == written.value_bytes - 70000


def test_without_pss_memory_is_rss_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def without_rollup(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == "smaps_rollup":
            raise FileNotFoundError(path)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", without_rollup)
    held = np.ones(8 << 20, np.uint8)
    measure, size = process_memory()
    assert measure == "RSS"
    assert size > held.nbytes


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([held("lz4", 95), held("zstd", 91)], "dict"),
        ([held("lz4", 120)], "dict"),
        ([held("lz4", 60), held("zstd", 40, 9)], "zstd"),
        ([held("lz4", 41), held("zstd", 40, 9)], "lz4"),
        ([held("lz4", 41, 1.05), held("zstd", 40, 1)], "lz4"),
        ([held("lz4.block", 30), held("zstd", 40)], "dict of lz4.block"),
        ([held("pickles", 30), held("zstd", 29, 9)], "dict of pickles"),
        ([held("parsed", 10), held("zstd", 40)], "zstd"),
    ],
)
def test_the_least_memory_wins_and_of_what_is_near_the_quickest(
    others: list[Held], chosen: str
) -> None:
    found, sentence = recommend([held("dict", 100, 0.1), *others], is_sample=False)
    assert found.name == chosen
    assert sentence.startswith("Keep the dict: " if chosen == "dict" else "Use a ")
    assert "about" in recommend([held("dict", 100, 0.1), *others], is_sample=True)[1]


@pytest.mark.slow
def test_process_memory_does_not_depend_on_sharing_with_others() -> None:
    """The share of a library's pages changes as others start and end."""
    if "Pss_File" not in Path("/proc/self/smaps_rollup").read_text("ascii"):
        pytest.skip("this kernel does not tell files apart")
    before = process_memory()[1]
    program = "import numpy, batchzip.core.records; print(1, flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        beside = process_memory()[1]
        other.communicate(b"\n")
    assert abs(beside - before) < 512 << 10
