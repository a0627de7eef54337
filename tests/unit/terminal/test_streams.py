"""Standard streams that are closed or cannot be written to, and progress bars on them."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

import pytest

from batchzip.terminal.console import make_console, progress_bars
from batchzip.terminal.streams import abandon, open_streams, say

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def unread() -> Iterator[io.TextIOWrapper]:
    """A stream whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", encoding="utf-8")
    yield stream
    stream.close()


def test_closed_streams_are_opened_and_take_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    open_streams()
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    try:
        assert stdin.read() == ""
        for stream in (stdout, stderr):
            assert stream.write("25 µs") == 5
            stream.flush()
        assert [stream.encoding for stream in (stdin, stdout, stderr)] == ["utf-8"] * 3
    finally:
        for stream in (stdin, stdout, stderr):
            number = stream.fileno()
            stream.close()
            os.close(number)


def test_open_streams_are_kept_and_stdout_replaces_what_it_cannot_encode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    stdout, stderr = io.TextIOWrapper(written, "ascii"), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    open_streams()
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    sys.stdout.write("25 µs")
    sys.stdout.flush()
    assert written.getvalue() == b"25 ?s"


def test_a_line_that_nobody_reads_is_no_error(
    monkeypatch: pytest.MonkeyPatch, unread: io.TextIOWrapper
) -> None:
    monkeypatch.setattr(sys, "stderr", unread)
    say("first")
    say("second")
    assert os.path.samestat(os.fstat(unread.fileno()), os.stat(os.devnull))  # noqa: PTH116


def test_an_abandoned_stream_can_be_flushed(unread: io.TextIOWrapper) -> None:
    unread.write("x" * 100)
    abandon(unread)
    unread.flush()


def test_a_line_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        say("a line")
        assert reader.read() == b"a line\n"


# Bars


def drawn(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, *, shown: bool) -> str:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bars("pages", shown=shown) as bar:
        advance = bar("storing", 10)
        advance(3)
        advance(4)
        other = bar("loading", 20)
        other(5)
    return stderr.getvalue()


def test_bars_show_how_much_of_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = drawn(monkeypatch, Terminal(), shown=True)
    for words in ("storing", "3/10", "7/10", "loading", "5/20", "pages"):
        assert words in seen
    assert seen.endswith("\x1b[2K"), "bars are removed"


def test_no_bars_are_drawn_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, Terminal(), shown=False) == ""
    assert drawn(monkeypatch, io.StringIO(), shown=True) == ""


# The console


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_console_is_as_wide_as_the_terminal_and_coloured_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, term: str, no_color: str
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("COLUMNS", "73")
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    console = make_console()
    assert console.width == 73
    assert console.height > 1000, "no table is cut"
    console.write_line("text", style="bad")
    assert ("38;5;161" in stdout.getvalue()) is (term != "dumb" and not no_color)


def test_text_on_a_terminal_in_colour_is_neither_marked_up_nor_wrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("COLUMNS", "40")
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    console = make_console()
    console.print("12 [b]'text' :smile: /tmp")
    console.write_line("12 words " * 10)
    assert stdout.getvalue() == "12 [b]'text' :smile: /tmp\n" + "12 words " * 10 + "\n"


def test_a_console_whose_reader_has_gone_raises(
    monkeypatch: pytest.MonkeyPatch, unread: io.TextIOWrapper
) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    console = make_console()
    with pytest.raises(BrokenPipeError):
        console.write_line("a line")
    abandon(unread)
