"""The command line as users meet it: a process with arguments, streams and an exit code."""

from __future__ import annotations

import argparse
import fcntl
import json
import mmap
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from batchzip.cli.commands import make_parser
from batchzip.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest
    from numpy.typing import NDArray

COMMAND = [sys.executable, "-m", "batchzip.cli.main"]


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = make_parser()._actions
    choices = next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))
    assert isinstance(choices, dict)
    return choices


def cli(
    *arguments: object, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def assert_one_clear_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert re.fullmatch(r"batchzip: [^\n]+\n", result.stderr), result.stderr
    for word in words:
        assert word in result.stderr


def assert_refused(
    capfd: pytest.CaptureFixture[str], arguments: Sequence[object], *words: str
) -> None:
    """Run the command in this process, which takes a tenth of the time of one of its own."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as end:  # of argparse
        code = cast("int", end.code)
    out, err = capfd.readouterr()
    assert_one_clear_line(subprocess.CompletedProcess([], code, out, err), *words)


def assert_fits(report: Callable[[int], str], width: int) -> None:
    """Check that no line is wider than `width`, but for a long word, and that every word is whole.

    In less than 80 columns, columns may be left out, if that is told.
    """

    def words_of(text: str) -> set[str]:
        return {word.strip(",") for word in text.split()}

    narrow = report(width)
    for line in narrow.splitlines():
        assert len(line) <= width or len(line.split()) == 1, line
    told = words_of(" ".join(re.findall("left out for lack of room: [^→*]*?\n\n", narrow)))
    assert not told or width < 80
    for word in words_of(report(1000)) - words_of(narrow):
        assert told, word
        assert re.fullmatch(r"[-\d.,%]+|[KMG]iB", word) or word in told, word


def absolute_path() -> dict[str, str]:
    """Return an environment in which imports do not depend on the working directory."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path))),
    }


class Terminal:
    """The command with its stderr on a terminal of its own."""

    def __init__(self, arguments: Sequence[object], **environment: str) -> None:
        self.master, slave = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=slave,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
                process_group=0,
            )
        finally:
            os.close(slave)
        self.seen = b""

    def read_until(self, words: bytes | None, timeout_s: float = 60) -> None:
        """Read the terminal until `words` were seen; None: until its end."""
        deadline = time.monotonic() + timeout_s
        while words is None or words not in self.seen:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], self.seen
            try:
                more = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                more = b""
            if not more:
                assert words is None, self.seen
                return
            self.seen += more

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self.master)


class Screen:
    """`batchzip top` on a terminal of its own, with all three of its streams."""

    def __init__(
        self, *arguments: object, rows: int = 50, columns: int = 100, term: str = "xterm-256color"
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        others = {"NO_COLOR", "COLUMNS", "LINES"}  # the terminal says how large it is
        environment = {name: os.environ[name] for name in os.environ if name not in others}
        self.process = subprocess.Popen(
            [*COMMAND, "top", "--interval", "0.1", *map(str, arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**environment, "TERM": term},
            start_new_session=True,
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, words: bytes) -> bytes:
        """Read until `words` come after what was read before; what came."""
        deadline = time.monotonic() + 60
        start = len(self.seen)
        while words not in self.seen[start:]:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.master], [], [], left)[0], self.seen[start:]
            self.seen += os.read(self.master, 65536)
        return self.seen[start:]

    def end(self, code: int) -> str:
        """Wait for its end; what was left on the terminal, which must be as it was."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            assert time.monotonic() < deadline
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        assert self.process.returncode == code, self.seen[-500:]
        assert termios.tcgetattr(self.slave) == self.before
        shown, _, left = self.seen.rpartition(b"\x1b[?1049l")
        assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") + 1
        assert self.seen.rindex(b"\x1b[?25h") > self.seen.rindex(b"\x1b[?25l")
        assert b"Traceback" not in self.seen
        return re.sub(r"\x1b\[[<>?0-9;]*[a-zA-Z]", "", left.decode()).replace("\r\n", "\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def resident_bytes(pid: int) -> int:
    """Return how much memory the process has, 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def has_gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"  # nobody's child any more, init is slow


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
