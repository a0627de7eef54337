"""The ring keeps its promises under all interleavings up to a bound, and under random misuse."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hatch_build

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(
        hatch_build.find_compiler() is None or not shutil.which("bash"),
        reason="cores of other profiles need a C compiler",
    ),
]


def run(profile: str, script: str, *arguments: str) -> str:
    """Run a script with a core of a profile, and return what it prints."""
    command = [str(ROOT / ".ci/with_core.sh"), profile, f"tests/model/{script}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def test_every_interleaving_up_to_a_bound(report: Callable[[str], None]) -> None:
    said = run("explore", "explore.py")
    found = re.search(r"(\d+) schedules tried, .*", said)
    assert found
    assert int(found[1]) > 100_000, said
    assert "not all" not in said
    report(f"interleavings of the ring: {found[0]}")


@pytest.mark.parametrize(
    ("profile", "arguments"),
    [("asan", ("--seconds", "60")), ("tsan", ("--seconds", "20", "--only", "divided"))],
)
def test_random_use_and_misuse_of_the_core(
    profile: str, arguments: tuple[str, ...], tmp_path: Path, report: Callable[[str], None]
) -> None:
    """An address or thread sanitizer ends the process; the log then says what was tried last."""
    log = tmp_path / "last"
    try:
        said = run(profile, "fuzz.py", "--log", str(log), *arguments)
    except AssertionError as error:
        error.add_note(f"{profile}: {log.read_text() if log.exists() else 'nothing was tried'}")
        raise
    report(f"core fuzzed, {profile}: {' '.join(said.split())}")
