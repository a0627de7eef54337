"""What every command does alike: help, exit codes, colours, Ctrl-C, pipes, completion."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.command import (
    COMMAND,
    Terminal,
    assert_one_clear_line,
    children,
    cli,
    commands,
    has_gone,
)

from batchzip.cli.commands import make_parser
from batchzip.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pages.bin"
    path.write_bytes(np.random.default_rng(7).integers(97, 105, 1 << 20, np.uint8).tobytes())
    return path


# Help


def examples() -> list[str]:
    texts = [str(parser.epilog) for parser in (make_parser(), *commands().values())]
    lines = (line for text in texts for line in text.split("\n\n")[0].splitlines()[1:])
    return [re.sub(r"^.*?(?=batchzip )", "", line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *commands()])
def test_help_has_examples_and_exit_codes(command: str) -> None:
    result = cli(*command.split(), "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(rf"^examples:\n  .*batchzip {command}", result.stdout, re.MULTILINE)
    assert "\nexit codes:\n  0    success\n" in result.stdout


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("command", ["", *commands()])
def test_help_fits_its_width(
    command: str, width: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    for line in capfd.readouterr().out.splitlines():
        # A command to copy stays in one line.
        assert len(line) <= min(width, 100) or line.startswith("  batchzip "), line
        assert line == line.rstrip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_help_is_coloured_on_a_terminal_that_takes_colours(
    settings: dict[str, str], coloured: bool
) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", **settings}
    try:
        with subprocess.Popen(
            [*COMMAND, "top", "--help"], stdin=slave, stdout=slave, stderr=slave, env=environment
        ) as process:
            os.close(slave)
            seen = b""
            with contextlib.suppress(OSError):  # EIO at its end
                while more := os.read(master, 65536):
                    seen += more
        assert process.returncode == 0
    finally:
        os.close(master)
    assert b"--interval" in seen
    assert (b"\x1b[" in seen) is coloured
    assert bool(COLOUR.search(seen)) is coloured


@pytest.mark.parametrize("example", [line for line in examples() if "--help" not in line])
def test_every_example_is_a_command_that_parses(example: str) -> None:
    line = re.split(r'  +|\||\)"| > ', example)[0]
    arguments = make_parser().parse_args(shlex.split(line)[1:])
    assert arguments.command in commands()


def test_every_command_is_in_the_examples_and_says_what_its_options_are() -> None:
    for name, parser in commands().items():
        assert any(example.startswith(f"batchzip {name}") for example in examples())
        assert all(action.help for action in parser._actions)


@pytest.mark.slow
def test_without_a_command_it_helps() -> None:
    bare, helped = cli(), cli("--help")
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout == helped.stdout


# Exit codes that no other test has: 0, 1, 2 and 130 of each command have theirs


@pytest.mark.parametrize("arguments", [["nothing"], ["--bogus"], ["completion"]])
def test_arguments_that_are_wrong_are_one_line_and_2(arguments: list[str]) -> None:
    assert_one_clear_line(cli(*arguments), "--help")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["algorithms"],
        ["algorithms", "--json"],
        ["completion", "bash"],
        ["advise", "--algorithm", "lz4"],
        ["--help"],
    ],
)
def test_a_reader_that_goes_away_is_no_error(arguments: list[str], file: Path) -> None:
    source = ["--file", str(file)] if arguments[0] == "advise" else []
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        result = subprocess.run(
            [*COMMAND, *arguments, *source],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            env=buffered,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        result = subprocess.run(
            [*COMMAND, "algorithms", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == b"batchzip: No space left on device\n"


# Ctrl-C


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_advise_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(np.random.default_rng(1).bytes(8 << 20))
    shown = Terminal(["advise", "--file", path, "--sample", "8M"])
    try:
        shown.read_until(b"storing and loading")
        os.kill(shown.process.pid, signal.SIGINT)
        shown.read_until(None)
        assert shown.process.wait(timeout=30) == 130
        assert b"Traceback" not in shown.seen
        assert shown.seen.endswith(b"batchzip: interrupted\r\n")
        assert shown.seen.count(b"batchzip: ") == 1
    finally:
        shown.close()


@pytest.mark.slow
def test_ctrl_c_while_the_workload_of_advise_is_built_leaves_no_process() -> None:
    with subprocess.Popen(
        [*COMMAND, "advise"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        deadline = time.monotonic() + 30
        while not (started := children(process.pid)):
            assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"batchzip: interrupted\n")
    # One that was just being started ends by itself, as its parent is gone.
    while not all(map(has_gone, started)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Colours

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


@pytest.mark.slow
@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals_without_no_color(file: Path, no_color: str) -> None:
    shown = Terminal(["swap", "--file", file], NO_COLOR=no_color)
    try:
        shown.read_until(None)
        assert shown.process.wait(timeout=30) == 0
        assert b"storing" in shown.seen
        assert bool(COLOUR.search(shown.seen)) is not bool(no_color)
    finally:
        shown.close()


# Completion, in shells as they are


class Bash:
    """An interactive bash on a terminal of its own, with the completion script loaded."""

    def __init__(self, script: Path, folder: Path) -> None:
        self.master, slave = pty.openpty()
        try:
            self.process = subprocess.Popen(
                ["bash", "--norc", "--noprofile", "-i"],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                cwd=folder,
                env={**os.environ, "PS1": "ready> ", "TERM": "dumb", "INPUTRC": "/dev/null"},
                start_new_session=True,
            )
        finally:
            os.close(slave)
        self.seen = ""
        self.read_until("ready> ")
        self.type(f"bind 'set bell-style none'; source {script}; PS1='do''ne> '\n", "done> ")

    def read_until(self, words: str) -> str:
        deadline = time.monotonic() + 30
        while words not in self.seen:
            left = deadline - time.monotonic()
            assert select.select([self.master], [], [], max(0, left))[0], self.seen
            self.seen += os.read(self.master, 4096).decode()
        seen, self.seen = self.seen, ""
        return seen

    def type(self, keys: str, until: str) -> str:
        os.write(self.master, keys.encode())
        return self.read_until(until)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    script = tmp_path / "completion.bash"
    made = cli("completion", "bash")
    assert (made.returncode, made.stderr) == (0, "")
    script.write_text(made.stdout)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a dump.bin").touch()
    (folder / "dump-of-memory.bin").touch()
    shell = Bash(script, folder)
    yield shell
    shell.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("batchzip alg\t", "batchzip algorithms "),
        ("batchzip swap --alg\t", "batchzip swap --algorithm "),
        ("batchzip swap --algorithm sna\t", "batchzip swap --algorithm snappy "),
        ("batchzip advise --algorithm lz4 --algorithm zs\t", "--algorithm zstd "),
        ("batchzip swap --shuffle 4 --fi\t", "batchzip swap --shuffle 4 --file "),
        ("batchzip advise --file dump\t", "batchzip advise --file dump-of-memory.bin"),
        ("batchzip advise --values dump\t", "batchzip advise --values dump-of-memory.bin"),
        ("batchzip completion z\t", "batchzip completion zsh "),
    ],
)
def test_bash_completes_commands_and_options(bash: Bash, typed: str, completed: str) -> None:
    bash.type(typed, completed)


@pytest.mark.slow
def test_bash_lists_the_commands(bash: Bash) -> None:
    seen = bash.type("batchzip \t\t", "done> batchzip ")
    assert set(commands()) <= set(seen.split())


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_script_for_each_shell_names_every_command(shell: str) -> None:
    made = cli("completion", shell)
    assert (made.returncode, made.stderr) == (0, "")
    assert all(name in made.stdout for name in commands())


@pytest.mark.slow
def test_without_shtab_the_command_to_install_it_is_given() -> None:
    script = (
        "import sys; sys.modules['shtab'] = None\n"
        "from batchzip.cli.main import main; raise SystemExit(main(['completion', 'bash']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert_one_clear_line(result, "shtab", "pip install 'shtab>=1.6'")


# Defaults


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (
            "swap",
            {
                "pid": None,
                "file": None,
                "algorithm": "zstd",
                "level": None,
                "shuffle": None,
                "batch": 256,
                "folio": 256,
                "workers": None,
                "limit": None,
                "page_size": 4096,
                "seed": 0,
                "workload_mib": 64,
                "classes": False,
                "json": False,
            },
        ),
        (
            "advise",
            {
                "pid": None,
                "file": None,
                "values": None,
                "pickle": False,
                "parsed": False,
                "sample": None,
                "algorithms": None,
                "max_load_us": None,
                "all": False,
                "json": False,
                "plot": None,
                "seed": 0,
            },
        ),
        (
            "bench",
            {
                "pid": None,
                "file": None,
                "workload": "captured",
                "algorithms": "lz4,zstd:1",
                "batches": [8, 64, 256],
                "pages": 2048,
                "rounds": 5,
                "zram": False,
                "json": None,
                "plot": None,
                "compare": None,
            },
        ),
        ("top", {"address": None, "dask": None, "interval": 1.0, "once": False}),
        ("algorithms", {"json": False}),
    ],
)
def test_a_command_without_options_has_its_defaults(
    command: str, defaults: dict[str, object]
) -> None:
    found = vars(make_parser().parse_args([command]))
    assert found.pop("command") == command
    assert found == defaults
