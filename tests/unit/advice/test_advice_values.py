"""Advice on values: what they take, what is recommended, and `batchzip advise --values`."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import random
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.command import COMMAND, absolute_path, assert_fits, assert_refused, children, cli

import batchzip
from batchzip import BadArgument, BatchzipError, NotStorable, ValuesAdvice, advise_values
from batchzip.advice import spool, weighing
from batchzip.advice.holder import Holder, process_memory, weigh
from batchzip.advice.suiting import Suiting
from batchzip.advice.values import recommend, weigh_all
from batchzip.advice.weighing import Held
from batchzip.cli.main import main
from batchzip.sources.value_files import open_values

if TYPE_CHECKING:
    from collections.abc import Iterator


def dicts_of(serializer: str) -> list[Holder]:
    return [Holder("dict", serializer), Holder("lz4.block", serializer)]


DICTS = dicts_of("bytes")


def record(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    return {
        "id": number,
        "name": f"user-{rng.randrange(10**6)}",
        "city": rng.choice(["Lisbon", "Osaka", "Quito"]),
        "balances": [round(rng.gauss(1000, 300), 2) for _ in range(60)],
    }


RECORDS = [record(number) for number in range(8000)]
LINES = [json.dumps(each).encode() for each in RECORDS]


@pytest.fixture(scope="module")
def advice() -> ValuesAdvice:
    done = []
    found = advise_values(
        {f"key-{number}": line for number, line in enumerate(LINES)},
        progress=lambda number, total: done.append((number, total)),
    )
    assert done == [(number, len(done)) for number in range(1, len(done) + 1)]
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only dicts are measured: what is tested is not which holders there are."""
    monkeypatch.setattr(weighing, "_dicts", lambda serializer, **_: dicts_of(serializer))
    monkeypatch.setattr(weighing, "_worth_trying", lambda *_: [])
    monkeypatch.setattr(Suiting, "names", ["pickle"])


def run_code(code: str, value: object) -> None:
    """Paste the code in a fresh interpreter, and put a value in and get it."""
    script = f"""
import sys, pickle, numpy
{code}
value = pickle.load(sys.stdin.buffer)
if "put" not in globals():
    put, get = cache.__setitem__, cache.__getitem__
for number in range(3):
    put(str(number), value)
assert len(cache) == 3 and numpy.array_equal(get("2"), value)
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=pickle.dumps(value),
        timeout=60,
        check=True,
    )


# What is measured


def test_memory_is_that_of_the_process(advice: ValuesAdvice) -> None:
    assert (advice.measured_values, advice.total_values) == (8000, 8000)
    assert advice.measured_bytes == advice.total_bytes == sum(map(len, LINES))
    assert advice.serializer == "bytes"
    assert advice.measure == process_memory()[0]
    by_name = {held.name: held for held in advice.held}
    assert list(by_name)[:5] == ["dict", "dict of lz4.block", "lz4", "zstd 1", "zstd 1, dictionary"]
    keys = [f"key-{number}" for number in range(8000)]
    held = sum(map(sys.getsizeof, [*LINES, *keys])) + sys.getsizeof(dict.fromkeys(keys))
    assert by_name["dict"].bytes == pytest.approx(held, rel=0.15)
    assert by_name["zstd 1"].bytes < by_name["dict"].bytes * 0.7
    for each in advice.held:
        assert each.total_bytes == each.bytes
        assert each.of_dict == pytest.approx(each.bytes / by_name["dict"].bytes)
        assert each.put_us > 0
        assert each.get_us > 0
    assert by_name["dict"].put_us < by_name["zstd 1"].put_us


def test_the_recommendation_runs_where_it_is_pasted(advice: ValuesAdvice) -> None:
    chosen = advice.recommended
    assert chosen.holder.kind == "mapping"
    assert chosen.total_bytes <= min(held.total_bytes for held in advice.held) * 1.05
    assert advice.sentence.startswith(
        f"Use a CompressedMapping with {chosen.name}: the values take "
    )
    assert str(advice).endswith(f"\n\n{advice.code}")
    run_code(advice.code, LINES[0])


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_report_fits_its_width_and_breaks_no_word(advice: ValuesAdvice, width: int) -> None:
    assert_fits(lambda columns: advice.report(columns, name="values.jsonl"), width)
    assert "→" in advice.report(width)


@pytest.mark.parametrize("serializer", ["bytes", "pickle", "json", "msgpack"])
@pytest.mark.parametrize(
    "holder",
    [
        *DICTS,
        Holder("pickles"),
        Holder("mapping", algorithm="lz4"),
        Holder("mapping", algorithm="lz4", page_size=65536),
        Holder("mapping", "", "zstd", 3, 16384, dictionary=True),
    ],
    ids=lambda holder: holder.name,
)
def test_any_code_runs_and_is_narrow(holder: Holder, serializer: str) -> None:
    code = replace(holder, serializer=serializer).code
    assert max(map(len, code.splitlines())) <= 40
    run_code(code, LINES[0] if serializer == "bytes" else RECORDS[0])


def test_code_and_measured_mapping_are_the_same_one() -> None:
    holder = Holder("mapping", "msgpack", "zstd", 3, 16384, dictionary=True)
    made = holder.make()
    names: dict[str, Any] = {}
    exec(holder.code, names)
    pasted = names["cache"]
    assert isinstance(made, batchzip.CompressedMapping)
    try:
        assert made._options == pasted._options
        assert made._store.page_size == pasted._store.page_size == 16384
        assert made._store.engine.codec == pasted._store.engine.codec
    finally:
        for mapping in (made, pasted):
            store = mapping._store
            mapping.close()
            store.close()
            store.engine.close()


def few_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mappings, only those are measured that are tried for their serializers."""

    def worth_trying(_: object, serializer: str) -> list[Holder]:
        return [Holder("mapping", serializer, "zstd", 1)]

    monkeypatch.setattr(weighing, "_worth_trying", worth_trying)


def test_serializers_that_suit_objects_are_tried_and_the_best_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_mappings(monkeypatch)
    done = []
    found = advise_values(RECORDS[:4000], progress=lambda *step: done.append(step))
    assert done == [(number, 6) for number in range(1, 7)]
    assert [each.name for each in found.held] == [
        "dict of objects",
        "dict of pickles",
        "dict of lz4.block",
        "zstd 1, msgpack",
        "zstd 1, json",
        "zstd 1, pickle",
    ]
    in_dict, pickles, compressed, *tried = found.held
    assert in_dict.bytes > pickles.bytes * 2, "60 floats, each an object"
    assert compressed.bytes < in_dict.bytes / 2
    best = next(each for each in tried if each.holder.serializer == found.serializer)
    assert best.bytes <= min(each.bytes for each in tried) * 1.05
    assert any(note.startswith("Values are objects") for note in found.notes)
    run_code(found.code, RECORDS[0])


def test_arrays_are_kept_without_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    few_mappings(monkeypatch)
    monkeypatch.setattr(weighing, "_dicts", lambda serializer, **_: [Holder("dict", serializer)])
    steps = np.random.default_rng(17).integers(0, 3, (4000, 1000), np.int32)
    arrays = list(np.cumsum(steps, axis=1, dtype=np.int32))
    found = advise_values(arrays)
    assert found.serializer == "numpy"
    assert found.recommended.holder.serializer == "numpy"
    assert 'serializer="numpy"' in found.code
    assert "zstd 1, pickle" in [each.name for each in found.held]
    run_code(found.code, arrays[7])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([{"a": [1, 2.5, None]}, "text", 7], ["msgpack", "json"]),
        ([{"a": float("nan")}], ["msgpack"]),
        ([{"a": b"bytes"}], ["msgpack"]),
        ([{"a": 1 << 70}], ["json"]),
        ([{"a": 1}, ("a", 1)], []),
        ([{"a": 1}, np.ones(3)], []),
        ([np.ones(3), np.float32(1)], ["numpy"]),
        ([np.array([{}])], []),
        ([RuntimeError()], []),
        ([pa.table({"a": [1]})], ["arrow"]),
    ],
)
def test_only_serializers_that_take_every_value_are_tried(
    given: list[Any], names: list[str]
) -> None:
    suiting = Suiting()
    for value in given:
        suiting.note(value)
    assert suiting.names == [*names, "pickle"]
    assert suiting.missing == []


@pytest.mark.usefixtures("quick")
def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    notes = advise_values(RECORDS[:10]).notes
    assert any(
        "serializer='json' needs msgspec" in note and "pip install" in note for note in notes
    )


def test_what_objects_share_is_there_once_for_each_few_of_them() -> None:
    shared = "x" * 10_000
    values = [[number, shared] for number in range(6400)]
    with tempfile.TemporaryFile() as file:
        spool.write(file, enumerate(values), 1 << 30)
        found = weigh(Holder("dict", "pickle"), file.fileno(), len(values))
    assert 100 * 10_000 < found.bytes < 400 * 10_000, "64 objects are written together"


def test_lines_are_measured_parsed_too_but_are_what_is_to_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few_mappings(monkeypatch)
    path = tmp_path / "values.jsonl"
    path.write_bytes(b"\n".join(LINES[:4000]))
    found = weigh_all(open_values(str(path), 1 << 30, 0), 1 << 30)
    names = ["dict", "dict of objects", "dict of lz4.block", "zstd 1"]
    assert [each.name for each in found.held] == names
    in_dict, parsed, *_ = found.held
    assert parsed.bytes > in_dict.bytes * 1.5
    assert parsed.of_dict == pytest.approx(parsed.bytes / in_dict.bytes)
    assert found.recommended is not parsed
    assert any("--parsed" in note for note in found.notes)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sample", [1 << 20, 1 << 30])
def test_parsed_lines_are_the_objects_that_they_say(tmp_path: Path, sample: int) -> None:
    path = tmp_path / "values.jsonl"
    path.write_bytes(b"\n".join(LINES))
    source = open_values(str(path), sample, 0, is_parsed=True)
    found = weigh_all(source, sample)
    assert found.serializer == "pickle"
    assert found.total_values == pytest.approx(8000, rel=0.05)
    mean = np.mean([len(pickle.dumps(each, 5)) for each in RECORDS])
    assert found.total_bytes == pytest.approx(8000 * mean, rel=0.05)
    assert (found.measured_values == 8000) is (sample > 1 << 20)
    assert found.measured_bytes <= 1.01 * sample
    assert found.held[0].name == "dict of objects"


def test_larger_pages_are_tried_for_larger_values() -> None:
    def tried(*lengths: int) -> set[tuple[int, bool]]:
        pairs = ((str(number), bytes(length)) for number, length in enumerate(lengths))
        spooled = spool.write(io.BytesIO(), pairs, 1 << 30)
        holders = weighing._worth_trying(spooled, "bytes")
        return {(holder.page_size, holder.dictionary) for holder in holders}

    small = {(4096, False), (4096, True)}
    large = {(size, False) for size in (4096, 16384, 65536)}
    assert tried(300, 65536) == small
    assert tried(300, 65537) == large
    assert tried(60_000, 70_000) == large | {(size, True) for size, _ in large}


def test_what_cannot_be_learnt_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    zstd = Holder("mapping", "bytes", "zstd", 1, dictionary=True)
    monkeypatch.setattr(weighing, "_worth_trying", lambda *_: [zstd])
    found = advise_values(LINES[:20])
    assert [held.holder for held in found.held] == DICTS
    assert any("a dictionary that was not learnt" in note for note in found.notes)
    assert any("few values" in note for note in found.notes)
    assert found.sentence.startswith("Keep the dict: ")
    assert "give some MiB of values" in found.sentence
    assert found.code == "cache = {}"


# What is looked at


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


@pytest.mark.usefixtures("quick")
def test_of_an_iterator_the_first_ones_are_measured() -> None:
    endless = (bytes([number % 256]) * 1000 for number in itertools.count())
    found = advise_values(endless, sample_bytes=100_000)
    assert found.measured_values == found.total_values == 100
    assert "There are more values: the first 100 were looked at." in found.notes


class Forgetful(dict[str, bytes]):
    def __getitem__(self, key: str) -> bytes:
        if key == "gone":
            raise KeyError(key)
        return super().__getitem__(key)


@pytest.mark.usefixtures("quick")
def test_what_a_cache_forgets_meanwhile_is_left_out() -> None:
    assert advise_values(Forgetful(a=b"1", gone=b"2", b=b"3")).measured_values == 2


@pytest.mark.parametrize("values", [5, None, "text", b"bytes", [], {}, iter(())])
def test_what_has_no_values_is_refused(values: Any) -> None:
    with pytest.raises(BadArgument, match="values"):
        advise_values(values)


def test_odd_arguments_are_refused() -> None:
    with pytest.raises(BadArgument, match="sample_bytes"):
        advise_values([b"1"], sample_bytes=0)
    with pytest.raises(BadArgument, match="seed"):
        advise_values([b"1"], seed=-1)


def test_what_cannot_be_pickled_names_the_key() -> None:
    with pytest.raises(NotStorable, match=r"the value, of function, .*\(key 'f'\)"):
        advise_values({"f": lambda: None})


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
    assert "have to be in modules that can be imported" in done.stdout


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


def test_keys_that_no_mapping_takes_are_said() -> None:
    said = pytest.raises(BatchzipError, match=r"lz4 could not be measured: a key is .*not float")
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


# What is recommended


def held(name: str, size: int, cost: float = 1.0, *, of: int = 100 << 20) -> Held:
    kinds = {each: Holder(each) for each in ("dict", "parsed", "pickles", "lz4.block")}
    holder = kinds.get(name, Holder("mapping", algorithm=name))
    return Held(holder, size << 20, size << 20, cost, cost, (size << 20) / of)


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


def test_a_table_that_is_too_wide_becomes_paragraphs() -> None:
    rows = [("* one name", "1.0 MiB"), ("  another-one", "")]
    assert table(("", "memory"), rows, 40).splitlines() == [
        "                memory",
        "* one name     1.0 MiB",
        "  another-one",
    ]
    assert table(("", "memory"), rows, 13).splitlines() == [
        "* one name",
        "  memory 1.0",
        "  MiB",
        "  another-one",
    ]


# Files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("values.jsonl").write_bytes(b"\n".join([*LINES, b""]))
    Path("values.pickle").write_bytes(pickle.dumps({"one": RECORDS[0], "two": RECORDS[1]}))
    Path("list.pickle").write_bytes(pickle.dumps(LINES[:3]))
    Path("set.pickle").write_bytes(pickle.dumps({1, 2}))
    Path("broken.pickle").write_bytes(pickle.dumps(LINES[:3])[:-5])
    Path("text.txt").write_text("no JSON\n")
    Path("empty").touch()
    Path("tree/below").mkdir(parents=True)
    Path("tree/a").write_bytes(b"first")
    Path("tree/below/b").write_bytes(b"second")
    Path("tree/link").symlink_to("a")
    Path("hollow/below").mkdir(parents=True)
    os.mkfifo("fifo")
    with closing(sqlite3.connect("values.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE entries (name TEXT PRIMARY KEY, value BLOB)")
        connection.executemany(
            "INSERT INTO entries VALUES (?, ?)",
            [(f"k{number}", line) for number, line in enumerate(LINES[:2000])],
        )
        connection.execute('CREATE TABLE "odd ""name" (a REAL PRIMARY KEY, b TEXT, c INTEGER)')
        connection.execute('INSERT INTO "odd ""name" VALUES (1.5, ?, 7)', ("text",))
        connection.execute("CREATE TABLE log (line TEXT)")
        connection.execute("INSERT INTO log VALUES ('hello')")
        connection.execute("CREATE TABLE hollow (line TEXT)")
    with closing(sqlite3.connect("bare.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE gone (line TEXT)")
        connection.execute("DROP TABLE gone")
    return tmp_path


def pairs_of(name: str, sample: int = 1 << 30, *, is_pickle: bool = False) -> dict[Any, Any]:
    return dict(open_values(name, sample, 0, is_pickle=is_pickle).pairs)


@pytest.mark.usefixtures("folder")
def test_each_kind_of_file_has_its_keys_and_values() -> None:
    assert list(pairs_of("values.jsonl").values()) == LINES
    assert pairs_of("values.pickle", is_pickle=True) == {"one": RECORDS[0], "two": RECORDS[1]}
    assert pairs_of("list.pickle", is_pickle=True) == dict(zip("012", LINES[:3], strict=True))
    assert pairs_of("tree") == {"a": b"first", "below/b": b"second"}
    assert pairs_of("values.sqlite:entries") == {
        f"k{number}": line for number, line in enumerate(LINES[:2000])
    }
    assert pairs_of('values.sqlite:odd "name') == {(1.5,): ("text", 7)}
    assert pairs_of("values.sqlite:log") == {0: "hello"}


@pytest.mark.usefixtures("folder")
def test_of_a_large_file_lines_from_all_over_it_are_taken() -> None:
    source = open_values("values.jsonl", 2 << 20, 0)
    found = list(source.pairs)
    assert source.is_sample
    assert source.total_bytes == Path("values.jsonl").stat().st_size
    taken = [value for _, value in found]
    assert set(taken) < set(LINES)
    assert len(set(taken)) == len(taken)
    assert sum(map(len, taken)) == pytest.approx(min(2 << 20, source.total_bytes), rel=0.02)
    assert LINES.index(taken[-1]) > 4000


def test_of_a_large_table_rows_are_picked_at_random(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "large.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE entries (name TEXT PRIMARY KEY, value BLOB)")
        connection.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(LINES))
    source = open_values("large.sqlite:entries", 1 << 20, 0)
    numbers = [LINES.index(value) for _, value in source.pairs]
    assert source.is_sample
    assert source.total_values == 8000
    assert 800 < len(numbers) < 3000
    assert 3000 < np.mean(numbers) < 5000


def test_a_file_is_not_changed_and_may_be_read_only(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in folder.glob("*.sqlite"):
        path.chmod(0o400)
    assert len(pairs_of("values.sqlite:entries")) == 2000
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_is_read_without_consent(
    protocol: int, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol).dump([Harmful()])
    Path("harm.pickle").write_bytes(stream.getvalue())
    assert_refused(capfd, ["advise", "--values", "harm.pickle"], "is a pickle", "runs", "--pickle")
    assert not Path("harm").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["missing.sqlite:table"], ["missing.sqlite:table", "No such file"]),
        (["empty"], ["empty is empty", "one JSON value a line"]),
        (["text.txt"], ["text.txt, line 1, is no JSON value", "a folder of files"]),
        (["fifo"], ["fifo is neither a file nor a folder"]),
        (["hollow"], ["hollow has no files"]),
        (["values.sqlite"], ["is an SQLite file", "values.sqlite:entries", "entries, hollow, log"]),
        (["bare.sqlite"], ["bare.sqlite is an SQLite file without tables"]),
        (["values.sqlite:nothing"], ["no table 'nothing'", "entries, hollow, log"]),
        (["values.sqlite:hollow"], ["table 'hollow' has no rows"]),
        (["values.jsonl:table"], ["values.jsonl is no SQLite file"]),
        (["values.sqlite:log", "--pickle"], ["log is a table: leave --pickle out"]),
        (["values.sqlite:log", "--parsed"], ["log is a table: leave --parsed out"]),
        (["tree", "--pickle"], ["tree is a folder: leave --pickle out"]),
        (["tree", "--parsed"], ["tree is a folder: leave --parsed out"]),
        (["values.pickle", "--parsed"], ["is a pickle", "--pickle"]),
        (["values.pickle", "--parsed", "--pickle"], ["--parsed is for lines of JSON", "leave one"]),
        (["text.txt", "--parsed"], ["text.txt, line 1, is no JSON value"]),
        (["set.pickle", "--pickle"], ["a pickled set", "a dict or a list"]),
        (["broken.pickle", "--pickle"], ["broken.pickle cannot be unpickled"]),
        (["text.txt", "--pickle"], ["text.txt cannot be unpickled"]),
        (["tree", "--algorithm", "lz4"], ["--algorithm is for memory pages"]),
        (["tree", "--all"], ["--all is for memory pages"]),
        (["tree", "--plot", "x.png"], ["--plot is for memory pages"]),
        (["tree", "--max-load-us", "3"], ["--max-load-us is for memory pages"]),
        (["tree", "--pid", "1"], ["not allowed with"]),
    ],
)
def test_odd_input_is_one_clear_line(
    arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capfd, ["advise", "--values", *arguments], *words)


@pytest.mark.parametrize("option", ["--pickle", "--parsed"])
def test_an_option_of_values_alone_is_refused(
    option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capfd, ["advise", option], f"{option} says what --values FILE is")


# The command


@pytest.mark.slow
def test_one_json_document_has_all_of_it(folder: Path) -> None:
    result = cli("advise", "--values", "values.jsonl", "--sample", "2M", "--json", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["source"]["kind"] == "values"
    assert document["source"]["total_values"] == pytest.approx(8000, rel=0.05)
    assert document["source"]["sample_bytes"] == pytest.approx(2 << 20, rel=0.05)
    assert document["memory"] == process_memory()[0]
    assert document["options"][0]["name"] == "dict"
    chosen = document["options"][document["recommended"]]
    assert chosen["code"] == document["code"]
    run_code(document["code"], LINES[0])


@pytest.mark.usefixtures("quick", "folder")
def test_people_get_a_report_in_the_columns_there_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = tmp_path / "tmp"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["advise", "--values", "values.jsonl"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith("values.jsonl: 8,000 values, ")
    assert max(map(len, out.splitlines())) <= 40
    assert re.search(r"^→ (dict|dict of lz4\.block)$", out, re.MULTILINE)
    assert list(own.iterdir()) == []


@pytest.mark.usefixtures("quick", "folder")
@pytest.mark.parametrize("kind", ["--values", "--file"])
@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("length", [70, 200])
def test_long_paths_stay_whole_and_nothing_else_is_too_wide(
    kind: str,
    width: int,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = Path("a-b.c/" + "d-" * 50) / "e,f" if length == 200 else Path("a" * (length - 8))
    path = path.with_name(path.name + "-x.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(LINES[:500]))
    monkeypatch.setenv("COLUMNS", str(width))
    more = ["--algorithm", "lz4"] if kind == "--file" else []
    assert main(["advise", kind, str(path), *more]) == 0
    out, _ = capfd.readouterr()
    assert f"{path}:" in out.split()
    for line in out.splitlines():
        assert len(line) <= width or line == f"{path}:", line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_no_process_and_no_file_is_left(
    number: signal.Signals, tmp_path: Path
) -> None:
    own = tmp_path / "tmp"
    own.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "advise", "--values", "values.jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(own)},
        process_group=0,
    )
    try:
        child = next(found for found in children_of(process) if found)[0]
        watched = os.pidfd_open(child)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert select.select([watched], [], [], 60)[0], "the child has ended, too"
        os.close(watched)
    finally:
        process.kill()
        process.wait()
    interrupted = number is signal.SIGINT
    assert process.returncode == (130 if interrupted else -number)
    assert (out, err) == ("", "batchzip: interrupted\n" if interrupted else "")
    assert list(own.iterdir()) == []


def children_of(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    while process.poll() is None:
        yield children(process.pid)


@pytest.mark.usefixtures("folder")
def test_standard_descriptors_may_be_closed() -> None:
    """The spool must not become what its reader has as stdin."""
    done = subprocess.run(
        f"exec <&- {shlex.join([*COMMAND, 'advise', '--values', 'tree'])}",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tree: 2 values" in done.stdout


def test_a_line_longer_than_the_sample_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(json.dumps(["word"] * 1000).encode())
    assert list(pairs_of(str(path), sample=500).values()) == [path.read_bytes()]
