"""`batchzip advise --values` reads each kind of file, and reports for people and for programs."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.advised_values import LINES, RECORDS, run_code
from support.command import COMMAND, assert_refused, children, cli

from batchzip.advice.holder import process_memory
from batchzip.cli.main import main
from batchzip.sources.value_files import open_values

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["missing.sqlite:table"], ["missing.sqlite:table", "No such file"]),
        (["empty"], ["empty is empty", "one JSON value per line"]),
        (["text.txt"], ["text.txt, line 1, is not a JSON value", "a folder of files"]),
        (["fifo"], ["fifo is neither a file nor a folder"]),
        (["hollow"], ["hollow has no files"]),
        (["values.sqlite"], ["is an SQLite file", "values.sqlite:entries", "entries, hollow, log"]),
        (["bare.sqlite"], ["bare.sqlite is an SQLite file without tables"]),
        (["values.sqlite:nothing"], ["no table 'nothing'", "entries, hollow, log"]),
        (["values.sqlite:hollow"], ["table 'hollow' has no rows"]),
        (["values.jsonl:table"], ["values.jsonl is not an SQLite file"]),
        (["values.sqlite:log", "--pickle"], ["log is a table: leave --pickle out"]),
        (["values.sqlite:log", "--parsed"], ["log is a table: leave --parsed out"]),
        (["tree", "--pickle"], ["tree is a folder: leave --pickle out"]),
        (["tree", "--parsed"], ["tree is a folder: leave --parsed out"]),
        (["values.pickle", "--parsed"], ["is a pickle", "--pickle"]),
        (["values.pickle", "--parsed", "--pickle"], ["--parsed is for lines of JSON", "leave one"]),
        (["text.txt", "--parsed"], ["text.txt, line 1, is not a JSON value"]),
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
    assert_refused(capfd, ["advise", option], f"{option} describes the FILE of --values FILE")


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


@pytest.mark.slow
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
    assert re.search(r"^→  (dict|dict of lz4\.block) ", out, re.MULTILINE)
    assert list(own.iterdir()) == []


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_run_leaves_no_process_or_file(
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


@pytest.mark.slow
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
