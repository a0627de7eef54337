"""Scripts for processes of their own: how they are run, and what they all begin with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from support.batch_load import HANG_LIMIT_S
from support.paths import TESTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BEGIN = """
import os, signal, sys, threading, time, warnings
import numpy as np
import batchzip
from batchzip import CompressBatch, DecompressBatch, Engine
from batchzip.lanes import backend as lanes
make = lanes.Divider
lanes.Divider = lambda *arguments, **options: make_generous(make(*arguments, **options))
def make_generous(divider):
    divider.generous = True
    return divider
pages = np.random.default_rng(0).integers(0, 6, (500, 4096), np.uint8)

def round_trip(engine):
    batch = CompressBatch(pages)
    engine.compress(batch)
    back = DecompressBatch(batch.outputs())
    engine.submit(back).wait()
    assert not batch.errors.any() and (back.pages == pages).all()
"""


def run(
    arguments: Sequence[str | Path], source: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and a script on stdin, to an end that must come."""
    return subprocess.run(
        [sys.executable, *arguments],
        input=source,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *_given_path()])},
        **options,
    )


def _given_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")
    return [path] if path else []


def check_ended_well(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, "")


ELSEWHERE = ("unshare", "--mount", "sh", "-c")
"""Runs a shell command in which one can mount."""


@cache
def can_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    tried = [*ELSEWHERE, "mount -t tmpfs none /dev/shm"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
