"""The command line as its users meet it: a process with arguments, output, a terminal, an exit code."""

from __future__ import annotations

import mmap
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from batchzip.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

COMMAND = [sys.executable, "-m", "batchzip.cli.main"]


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
    """Check that a report has no line above `width`, but for a long word, and every word whole."""

    def words_of(text: str) -> set[str]:
        return {word.strip(",") for word in text.split()}

    narrow = report(width)
    assert words_of(narrow) == words_of(report(1000))
    for line in narrow.splitlines():
        assert len(line) <= width or len(line.split()) == 1, line


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
