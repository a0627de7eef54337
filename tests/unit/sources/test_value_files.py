"""Values in files: which are taken, under which keys, and what is told of all of them."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.errors import BadArgument
from batchzip.sources import value_files
from batchzip.sources.value_files import open_values

if TYPE_CHECKING:
    from pathlib import Path

LINES = [json.dumps({"number": number, "text": "x" * (number % 50)}) for number in range(4000)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "values.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def runs_of_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample is taken from as many places of a small file as else of one of gigabytes."""
    monkeypatch.setattr(value_files, "_RUN_BYTES", 1000)


def table(path: Path, columns: str, *rows: tuple[Any, ...]) -> str:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE t ({columns})")
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO t VALUES ({marks})", rows)
    return f"{path}:t"


# Lines


def test_the_key_of_a_line_is_its_number_and_empty_lines_are_no_values(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_text('\n  [1, 2]  \n\n"b"\r\n3')
    source = open_values(str(path), 100, 0)
    assert list(source.pairs) == [("2", b"[1, 2]"), ("4", b'"b"'), ("5", b"3")]
    assert (source.total_bytes, source.total_values) == (path.stat().st_size, None)
    assert (source.is_sample, source.is_json) == (False, True)
    parsed = open_values(str(path), 100, 0, is_parsed=True)
    assert list(parsed.pairs) == [("2", [1, 2]), ("4", "b"), ("5", 3)]
    assert (parsed.total_bytes, parsed.is_sample, parsed.is_json) == (None, False, False)
    assert (source.notes, parsed.notes) == (
        ("A value is a line of JSON, as bytes.",),
        ("A value is a line of JSON, parsed.",),
    )


@pytest.mark.parametrize(("parsed", "factor"), [(False, 1), (True, 2)])
def test_a_file_as_large_as_the_sample_is_read_whole(
    lines: Path, parsed: bool, factor: int
) -> None:
    size = lines.stat().st_size * factor
    assert not open_values(str(lines), size, 0, is_parsed=parsed).is_sample
    assert len([*open_values(str(lines), size, 0, is_parsed=parsed).pairs]) == len(LINES)
    assert open_values(str(lines), size - factor, 0, is_parsed=parsed).is_sample


@pytest.mark.usefixtures("runs_of_1000")
def test_lines_of_a_sample_are_named_by_their_places_and_come_from_everywhere(lines: Path) -> None:
    content = lines.read_bytes()
    sample = 20_000
    found = list(open_values(str(lines), sample, 0).pairs)
    places = [int(key) for key, _ in found]
    assert places == sorted(set(places))
    for place, line in zip(places, (line for _, line in found), strict=True):
        assert content[: place + len(line) + 1].endswith(b"\n" + line + b"\n")
    stretch = len(content) // 20
    runs = [[at for at in places if at // stretch == number] for number in range(20)]
    longest = max(map(len, LINES))
    for run in runs:
        assert run[-1] - run[0] + longest + 1 >= 1000
        assert run[-1] - run[0] <= 1000, "no more than its part of the sample"
    starts = {run[0] - number * stretch for number, run in enumerate(runs)}
    assert max(starts) - min(starts) > stretch // 4, "places are random"
    assert places != [int(key) for key, _ in open_values(str(lines), sample, 1).pairs]
    assert found == list(open_values(str(lines), sample, 0).pairs)


@pytest.mark.usefixtures("runs_of_1000")
def test_the_number_of_all_lines_is_estimated_from_those_of_a_sample(lines: Path) -> None:
    source = open_values(str(lines), 40_000, 0, is_parsed=True)
    found = list(source.pairs)
    assert source.is_sample
    assert 300 < len(found) < 500
    assert source.total_values == pytest.approx(len(LINES), rel=0.05)
    assert all(json.dumps(value) in LINES for _, value in found)


def test_a_line_that_is_no_json_is_named_by_its_number_or_place(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_text("1\n\nnone\n")
    with pytest.raises(BadArgument, match=r"values, line 3, is not a JSON value"):
        list(open_values(str(path), 100, 0).pairs)
    path.write_text("none\n" * 100)
    with pytest.raises(BadArgument, match=r"values, at byte \d+, is not a JSON value"):
        list(open_values(str(path), 100, 0).pairs)
    path.write_text("[" * 100_000)
    with pytest.raises(BadArgument, match=r"values, line 1, is not a JSON value"):
        list(open_values(str(path), 1 << 20, 0).pairs)


@pytest.mark.parametrize(
    "start", [b"\x80", b"\x80\x01", bytes([0x80, pickle.HIGHEST_PROTOCOL + 1])]
)
def test_only_what_begins_as_a_pickle_does_is_called_one(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "values").write_bytes(start)
    is_pickle = start == b"\x80\x01"
    with pytest.raises(BadArgument, match="is a pickle" if is_pickle else "is not a JSON value"):
        list(open_values(str(tmp_path / "values"), 100, 0).pairs)


def test_a_file_whose_name_has_a_colon_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n")
    (tmp_path / "a:b").write_text("2\n")
    assert list(open_values(f"{tmp_path}/a:b", 100, 0).pairs) == [("1", b"2")]
    with pytest.raises(BadArgument, match="a is not an SQLite file and has no table 'c'"):
        open_values(f"{tmp_path}/a:c", 100, 0)


# Folders


def test_all_files_of_a_folder_are_values_in_an_order_that_the_seed_gives(tmp_path: Path) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    for number in range(20):
        folder = tmp_path / ("", "one", "one/two")[number % 3]
        (folder / str(number)).write_bytes(b"v" * number)
    (tmp_path / "one/link").symlink_to("1")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    source = open_values(str(tmp_path), 1, 5)
    found = list(source.pairs)
    names = {("", "one/", "one/two/")[number % 3] + str(number) for number in range(20)}
    assert {key for key, _ in found} == names
    assert all(value == b"v" * int(key.rpartition("/")[2]) for key, value in found)
    assert (source.total_values, source.total_bytes) == (20, sum(range(20)))
    assert found == list(open_values(str(tmp_path), 1, 5).pairs)
    assert found != list(open_values(str(tmp_path), 1, 6).pairs)


# Tables


@pytest.mark.parametrize(
    ("columns", "rows", "pairs", "note"),
    [
        ("k TEXT PRIMARY KEY, v", [("a", 1.5)], [("a", 1.5)], "column 'v'"),
        ("k INTEGER PRIMARY KEY, v", [(7, b"x")], [(7, b"x")], "column 'v'"),
        ("k BLOB PRIMARY KEY, v", [(b"k", None)], [(b"k", None)], "column 'v'"),
        ("k REAL PRIMARY KEY, v", [(0.5, "x")], [((0.5,), "x")], "column 'v'"),
        ("k PRIMARY KEY, v", [(None, "x")], [((None,), "x")], "column 'v'"),
        (
            "v, j, k, w, PRIMARY KEY (k, j)",
            [(1, "j", "k", 2)],
            [(("j", "k"), (1, 2))],
            "a tuple of 2 columns",
        ),
        ("k TEXT PRIMARY KEY", [("a",)], [("a", "a")], "column 'k'"),
        ("v, w", [(1, 2), (3, 4)], [(0, (1, 2)), (1, (3, 4))], "a tuple of 2 columns"),
        ('"a ""b", c', [(1, 2)], [(0, (1, 2))], "a tuple of 2 columns"),
    ],
)
def test_a_row_has_its_key_and_its_other_columns_as_value(
    tmp_path: Path, columns: str, rows: list[Any], pairs: list[Any], note: str
) -> None:
    source = open_values(table(tmp_path / "a.sqlite", columns, *rows), 1 << 20, 0)
    assert list(source.pairs) == pairs
    assert (source.total_values, source.total_bytes, source.is_sample) == (len(rows), None, False)
    assert source.notes == (f"A value is {note} of a row.",)


def test_text_that_is_no_utf_8_is_read(tmp_path: Path) -> None:
    name = table(tmp_path / "a.sqlite", "v", (1,))
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as connection, connection:
        connection.execute("UPDATE t SET v = CAST(x'61ff' AS TEXT)")
    assert list(open_values(name, 100, 0).pairs) == [(0, "a\udcff")]


@pytest.mark.slow
def test_of_a_large_table_as_many_rows_are_taken_as_fill_the_sample_and_at_least_1000(
    tmp_path: Path,
) -> None:
    rows = [(number, bytes(500)) for number in range(20_000)]
    name = table(tmp_path / "a.sqlite", "k INTEGER PRIMARY KEY, v", *rows)
    size = (tmp_path / "a.sqlite").stat().st_size
    for sample, expected in ((size // 4, 5000), (size // 1000, 1000)):
        source = open_values(name, sample, 0)
        assert source.is_sample
        assert source.total_values == 20_000
        keys = [key for key, _ in source.pairs]
        assert len(keys) == pytest.approx(expected, rel=0.15)
        assert keys == [key for key, _ in open_values(name, sample, 0).pairs]
        assert keys != [key for key, _ in open_values(name, sample, 1).pairs]
    assert not open_values(name, size, 0).is_sample


def test_a_table_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    name = table(path, "v", *((bytes(5000),) for _ in range(50)))
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 4000 + content[4100:])
    with pytest.raises(BadArgument, match=r"a\.sqlite cannot be read as an SQLite file: "):
        open_values(name, 1 << 20, 0)
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(BadArgument, match=r"a\.sqlite, table .*t"):
        list(open_values(name, 1 << 20, 0).pairs)
