"""Codecs and backends of others are found by name, and the example packages fulfil the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.command import COMMAND, absolute_path
from support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EXAMPLES = ROOT / "examples"


def run(arguments: Sequence[object], installed: Path) -> str:
    """Run Python with the packages in `installed`; what it printed."""
    environment = absolute_path()
    environment["PYTHONPATH"] = os.pathsep.join([str(installed), environment["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, built and installed as pip does it, without looking at any index."""
    target = tmp_path_factory.mktemp("installed")
    sources = tmp_path_factory.mktemp("sources")
    for name in ("custom_codec", "custom_backend"):
        # A copy: building may leave files beside the source.
        subprocess.run(["cp", "-r", EXAMPLES / name, sources / name], check=True)
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target]
        command = [sys.executable, "-m", "pip", "install", *options, sources / name]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_they_are_found_by_their_entry_points(installed: Path) -> None:
    script = "import batchzip; print(batchzip.algorithms(), batchzip.backends())"
    found = run(["-c", script], installed)
    assert "'zlib'" in found
    assert "'thread'" in found
    listed = run([*COMMAND[1:], "algorithms"], installed)
    assert re.search(
        r"^zlib +Python +level=6 +zlib at `level` 1 \(fastest\) … 9", listed, re.MULTILINE
    )


@pytest.mark.slow
def test_they_work_together_in_a_store(installed: Path) -> None:
    script = """
import batchzip
with (
    batchzip.Engine("zlib", backend="thread", level=1) as engine,
    batchzip.SwapStore(engine) as store,
):
    pages = [bytes([n]) * 2048 + bytes(range(256)) * 8 for n in range(100)]
    store.store(0, pages)
    assert [store.load(n) for n in range(100)] == pages
    print(engine.codec, engine.backend.name, store.counters.stored_pages)
"""
    assert run(["-c", script], installed) == "Zlib(level=1) thread 100\n"


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["custom_codec/test_codec.py", "custom_backend/test_backend.py"])
def test_each_passes_the_contract_by_its_own_tests(installed: Path, tests: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "-n", "0"]
    found = run(["-m", "pytest", *options, EXAMPLES / tests], installed)
    passed = re.search(r"(\d+) passed", found)
    assert passed, found
    assert int(passed[1]) >= 80
    assert "failed" not in found
    assert "skipped" not in found
