"""`batchzip top` before it shows anything: which store is meant, and if there is a screen."""

from __future__ import annotations

import errno
import importlib.util
import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.cli import top, top_app
from batchzip.cli.look import Column, Look, Section, name_column, number
from batchzip.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS: Any = [(f"group {at:02}", at) for at in range(30)]
GROUPS = Section("Groups", (name_column("group"), Column("pages")), ROWS, order=1)


class Stores:
    """Stands in for stores, terminals and the screen, and keeps what happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attached: list[str] = []
        self.closed: list[str] = []
        self.watched: list[Any] = []
        self.ended = True
        monkeypatch.setattr(top, "attach", self.attach)
        monkeypatch.setattr(top, "take_snapshot", lambda view: view)
        monkeypatch.setattr(top, "store_look", self.look)
        monkeypatch.setattr(top_app, "watch", self.watch)

    @contextmanager
    def attach(self, address: str) -> Iterator[str]:
        self.attached.append(address)
        yield address
        self.closed.append(address)

    def look(self, now: str, before: str | None) -> Look:
        return Look(f"{now} after {before}", sections=[GROUPS])

    def watch(self, look: Any, interval: float) -> bool:
        self.watched.append((interval, look().title, look().title))
        return self.ended


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Stores:
    return Stores(monkeypatch)


class Stream:
    """A stream that says whether it is a terminal."""

    def __init__(self) -> None:
        self.is_terminal = True

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def terminals(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stream]:
    """The three streams. All are terminals that can do everything."""
    streams = {name: Stream() for name in ("stdin", "stdout", "stderr")}
    monkeypatch.setattr(top, "sys", SimpleNamespace(**streams))
    monkeypatch.setenv("TERM", "xterm")
    return streams


@pytest.mark.usefixtures("terminals")
def test_the_screen_shows_looks_until_it_is_left(
    stores: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "/proc/1/fd/2", "--interval", "0.5"]) == 0
    assert stores.watched == [
        (0.5, "/proc/1/fd/2 after None", "/proc/1/fd/2 after /proc/1/fd/2"),
    ]
    assert capsys.readouterr() == ("", "")
    assert stores.closed == stores.attached == ["/proc/1/fd/2"]


@pytest.mark.usefixtures("terminals")
def test_a_view_that_waits_for_an_answer_is_left_open(stores: Stores) -> None:
    stores.ended = False
    assert main(["top", "/proc/1/fd/2"]) == 0
    assert (stores.attached, stores.closed) == (["/proc/1/fd/2"], [])


@pytest.mark.usefixtures("terminals")
def test_one_look_on_a_terminal_has_20_rows(
    stores: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "/proc/1/fd/2", "--once"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("/proc/1/fd/2 after None\n\ngroup")
    assert out.count("\ngroup ") == 1 + 20
    assert out.endswith("\ngroups left out: 10 more\n")
    assert stores.watched == []


PLAIN = "batchzip: this is one look; for the full view"


@pytest.mark.parametrize("piped", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_no_terminal_gives_one_look(
    stores: Stores,
    terminals: dict[str, Stream],
    capsys: pytest.CaptureFixture[str],
    piped: str,
) -> None:
    terminals[piped].is_terminal = False
    assert main(["top", "/proc/1/fd/2"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\ngroup ") == 1 + (30 if piped == "stdout" else 20)
    assert err == f"{PLAIN}, run it on a terminal without redirection\n"
    assert stores.watched == []


@pytest.mark.usefixtures("terminals")
@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_a_terminal_that_can_do_nothing_gives_one_look(
    stores: Stores,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    term: str | None,
) -> None:
    monkeypatch.delenv("TERM")
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert main(["top", "/proc/1/fd/2"]) == 0
    assert capsys.readouterr().err.startswith(f"{PLAIN}, set TERM to the kind of your terminal")
    assert stores.watched == []


@pytest.mark.usefixtures("terminals")
def test_without_textual_it_is_one_look(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "textual" else 1)
    assert main(["top", "/proc/1/fd/2"]) == 0
    assert capsys.readouterr().err.startswith(f"{PLAIN}: pip install 'textual")
    assert stores.watched == []


# Which store


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Processes with the targets of their descriptors; an int is the error of listing them."""
    there: dict[str, Any] = {}

    def listdir(path: str) -> list[str]:
        if path == "/proc":
            return ["self", *there, "meminfo"]
        pid = path.split("/")[2]
        if pid not in there:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if isinstance(there[pid], int):
            raise OSError(there[pid], "refused", path)
        return [*there[pid]]

    def readlink(path: str) -> str:
        _, _, pid, _, fd = path.split("/")
        if there[pid][fd] is None:
            raise FileNotFoundError(path)
        target: str = there[pid][fd]
        return target

    fake = SimpleNamespace(listdir=listdir, readlink=readlink, environ=os.environ)
    monkeypatch.setattr(top, "os", fake)
    return there


SHARED = "/tmp/batchzip-x1/socket (deleted)"


def test_stores_are_found_by_the_targets_of_descriptors_in_order(proc: dict[str, Any]) -> None:
    proc.update(
        {
            "10": {"11": SHARED, "9": SHARED, "3": None},
            "9": {"1": "/dev/null", "2": SHARED.replace(" (deleted)", "")},
            "2": {
                "7": "/run/batchzip-x/y/socket (deleted)",
                "8": "/run/batchzip-/socket (deleted)",
            },
            "5": errno.EACCES,
        }
    )
    assert top.shared_stores() == ["/proc/2/fd/8", "/proc/10/fd/9", "/proc/10/fd/11"]
    assert top.shared_stores(10) == ["/proc/10/fd/9", "/proc/10/fd/11"]
    assert top.shared_stores(9) == top.shared_stores(5) == top.shared_stores(77) == []


@pytest.mark.parametrize(
    ("given", "found"), [([], "/proc/7/fd/3"), (["7"], "/proc/7/fd/3"), (["x/7"], "x/7")]
)
def test_the_only_store_is_meant(
    stores: Stores, proc: dict[str, Any], given: list[str], found: str
) -> None:
    proc.update({"7": {"3": SHARED}, "8": {"4": "pipe:[1]"}})
    assert main(["top", *given, "--once"]) == 0
    assert stores.attached == [found]


@pytest.mark.parametrize(
    ("given", "processes", "said"),
    [
        ([], {"7": {}}, "this user shares no store: call store.share() in the process that has it"),
        (["7"], {"7": {}}, "this user shares no store in process 7: call store.share()"),
        (["6"], {"7": {}}, "this user shares no store in process 6: call store.share()"),
        (["7"], {"7": errno.EACCES}, "/proc/7/fd: "),
        (
            [],
            {"7": {"3": SHARED}, "8": {"5": SHARED}},
            "several stores are shared, name one: /proc/7/fd/3 /proc/8/fd/5",
        ),
        (
            ["7"],
            {"7": {"3": SHARED, "5": SHARED}},
            "several stores are shared in process 7, name one: /proc/7/fd/3 /proc/7/fd/5",
        ),
    ],
)
def test_none_and_several_stores_are_clear_errors(
    stores: Stores,
    proc: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    processes: dict[str, Any],
    said: str,
) -> None:
    proc.update(processes)
    assert main(["top", *given]) == 2
    assert capsys.readouterr().err.startswith(f"batchzip: {said}")
    assert stores.attached == []


# Rows and columns


def test_rows_are_sorted_by_any_column_and_none_is_the_smallest() -> None:
    rows: Any = [("b", 2, None), ("a", None, 5), ("c", 10, 1)]
    columns = (name_column("name"), Column("x"), Column("y"))
    section = Section("Some", columns, rows)
    assert section.ordered(None) == rows
    assert section.ordered(None, largest_first=False) == rows[::-1]
    assert section.ordered(1) == [rows[2], rows[0], rows[1]]
    assert section.ordered(1, largest_first=False) == [rows[1], rows[0], rows[2]]
    assert section.ordered(0) == [rows[2], rows[0], rows[1]]
    assert section.cells(rows[0]) == ["b", "2", "-"]
    assert Section("Some", (Column("x"),), []).cells(("all",)) == ["all"], "of a total"
    assert [number(value) for value in (None, 0, 1234.5, 1_000_000)] == [
        "-",
        "0",
        "1,234",
        "1,000,000",
    ]
