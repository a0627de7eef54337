"""Bars, letters and Ctrl-C on a terminal; a reader that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.command import (
    COMMAND,
    Terminal,
    children,
    cli,
    has_gone,
    resident_bytes,
)
from support.waiting import await_true

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.mark.slow
def test_a_terminal_without_the_letters_gets_its_report(file: Path) -> None:
    result = cli("swap", "--file", file, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "600 pages compared byte for byte: all equal" in result.stdout


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(file: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [*COMMAND, "swap", "--file", file],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened = []

    def start(*arguments: object) -> Terminal:
        opened.append(Terminal(arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.slow
def test_bars_are_drawn_on_a_terminal(terminal: Callable[..., Terminal], file: Path) -> None:
    shown = terminal("swap", "--file", file)
    shown.read_until(None)
    assert shown.process.wait(timeout=10) == 0
    assert b"storing" in shown.seen
    assert b"600/600" in shown.seen
    assert b"loading and comparing" in shown.seen


@pytest.mark.slow
def test_json_draws_no_bars(terminal: Callable[..., Terminal], file: Path) -> None:
    shown = terminal("swap", "--file", file, "--json")
    shown.read_until(None)
    assert shown.process.wait(timeout=10) == 0
    assert shown.seen == b""


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["one process", "whole group"])
@pytest.mark.parametrize("stage", [b"storing", b"loading"])
def test_ctrl_c_leaves_one_line_and_no_process(
    terminal: Callable[..., Terminal], tmp_path: Path, stage: bytes, whole_group: bool
) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(1 << 28 if stage == b"loading" else 1 << 40)
    shown = terminal("swap", "--file", path)
    shown.read_until(stage)
    started = children(shown.process.pid)
    assert started
    (os.killpg if whole_group else os.kill)(shown.process.pid, signal.SIGINT)
    shown.read_until(None)
    assert shown.process.wait(timeout=10) == 130
    assert b"Traceback" not in shown.seen
    assert shown.seen.count(b"batchzip: ") == 1
    assert shown.seen.endswith(b"batchzip: interrupted\r\n")
    await_true(lambda: all(map(has_gone, started)))


@pytest.mark.slow
def test_ctrl_c_while_the_workload_is_built_leaves_no_process() -> None:
    with subprocess.Popen(
        [*COMMAND, "swap", "--workload-mib", "4096"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        await_true(lambda: any(resident_bytes(child) > 64 << 20 for child in children(process.pid)))
        started = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"batchzip: interrupted\n")
    assert all(map(has_gone, started))
