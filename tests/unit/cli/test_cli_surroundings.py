"""A command ends as it should whatever its streams, directory and characters are."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.command import assert_refused, commands
from support.paths import SUPPORT
from support.scripts import ELSEWHERE, can_mount, run_python

from batchzip.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

LIFE = SUPPORT / "whole_life.py"

PYTHON = shlex.quote(sys.executable)

needs_mounts = pytest.mark.skipif(not can_mount(), reason="nothing can be mounted here")


def in_shell(line: str) -> tuple[str, ...]:
    return "sh", "-c", line.replace("LIFE", f"{PYTHON} {shlex.quote(str(LIFE))}")


def mounted(line: str) -> tuple[str, ...]:
    return *ELSEWHERE, in_shell(f"set -e; {line}")[-1]


# The command


CLOSED = [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1"]


@pytest.mark.slow
@pytest.mark.parametrize("streams", CLOSED)
@pytest.mark.parametrize(("arguments", "code"), [("--help", 0), ("bogus", 2), ("algorithms", 0)])
def test_a_command_ends_as_it_should_whatever_its_streams(
    arguments: str, code: int, streams: str
) -> None:
    """A report that cannot be written is an error; one that nobody wants is none."""
    command = f"exec {PYTHON} -X dev -m batchzip.cli.main {arguments} {streams}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    full = "> /dev/full" in streams.replace("2> /dev/full", "")
    assert done.returncode == (2 if full else code)
    said = [] if "2>" in streams else done.stderr.splitlines()
    assert len(said) == ("2>" not in streams and done.returncode == 2)
    assert all(line.startswith("batchzip: ") for line in said)


@pytest.mark.slow
@needs_mounts
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("swap --file data --workers 1", 0, ""),
        ("swap --workload-mib 1", 2, ".* '/proc/self/statm'"),
        ("top /proc/1/fd/1", 2, "/proc/1/fd/1: .*, because /proc is not mounted"),
    ],
)
def test_a_command_without_proc_works_or_names_it(
    arguments: str, code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(bytes(range(256)) * 256)
    line = f"umount -l /proc; exec {PYTHON} -m batchzip.cli.main {arguments}"
    done = subprocess.run(
        [*ELSEWHERE, line], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert re.fullmatch(f"batchzip: {said}\n" if said else "", done.stderr)


@pytest.mark.slow
def test_help_is_written_with_the_characters_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("", *commands()):
        written = io.BytesIO()
        with io.TextIOWrapper(written, "ascii") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit, match="0"):
                main([*command.split(), "--help"])
            assert b"\nexit codes:\n" in written.getvalue()


def test_an_empty_file_name_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(capfd, ["swap", "--file", ""], "'': No such file or directory")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["swap", "--workload-mib", "1", "--json"],
        [
            "bench",
            *[
                "--file",
                "data",
                "--pages",
                "8",
                "--rounds",
                "1",
                "--batches",
                "8",
                "--algorithms",
                "lz4",
                "--json",
            ],
        ],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_runs_what_lies_in_the_current_directory(
    arguments: list[str], tmp_path: Path
) -> None:
    """Nor do the processes that it starts, as loky's."""
    command, folder = tmp_path / "batchzip-command", tmp_path / "folder"
    command.write_text("import sys\nfrom batchzip.cli.main import main\nsys.exit(main())\n")
    folder.mkdir()
    (folder / "data").write_bytes(bytes(range(256)) * 256)
    for name in (*sys.stdlib_module_names, "numpy", "lz4", "loky", "batchzip", "sitecustomize"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nraise ImportError('planted')\n"
        )
    done = run_python(str(command), *arguments, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "EXECUTED").exists()
