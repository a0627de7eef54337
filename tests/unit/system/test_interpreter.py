"""Which Python workers run, and what of the system batchzip can do without."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchzip import BackendUnavailable, BatchzipError, Engine
from batchzip.plugins import plugin_entry_points
from batchzip.sources.workload import Workload
from batchzip.system.cpus import usable_cpus
from batchzip.system.interpreter import why_no_python

PYTHON = shlex.quote(sys.executable)

# Where there is no Python to start


APPLICATION = """
import os, sys
sys.executable = os.environ["APPLICATION"]
with open(os.environ["LOG"], "a") as log:
    print("begun", file=log)
import batchzip
with batchzip.Engine("zstd") as engine:
    batch = batchzip.CompressBatch([bytes(4096)] * 8)
    engine.compress(batch)
    assert not batch.has_errors
try:
    batchzip.Engine("zstd", backend="workers")
except batchzip.BackendUnavailable as error:
    print(error)
"""


@pytest.mark.slow
def test_an_application_with_python_in_it_is_not_begun_once_more(tmp_path: Path) -> None:
    """Though nothing says that it is frozen."""
    program, application, log = (tmp_path / name for name in ("code.py", "application", "log"))
    program.write_text(APPLICATION)
    application.write_text(f'#!/bin/sh\nexec {PYTHON} "{program}" "$@"\n')
    application.chmod(0o755)
    done = subprocess.run(
        [application],
        env=os.environ | {"APPLICATION": str(application), "LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "an application that is not called python: use backend='threads'" in done.stdout
    assert log.read_text() == "begun\n"


@pytest.mark.parametrize(
    ("executable", "reason"),
    [
        (None, "frozen or embedded"),
        ("", "frozen or embedded"),
        (5, "frozen or embedded"),
        ("FOLDER/missing/python", "cannot run"),
        ("FOLDER", "cannot run"),
        ("FOLDER/python", "cannot run"),
        ("/bin/cat", "not called python"),
        (sys.executable, None),
        (os.fsencode(sys.executable), None),
        ("FOLDER/tool", None),
        ("FOLDER/mayapy", None),
    ],
)
def test_only_executables_that_are_python_are_started(
    executable: object, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").touch(0o600)
    (tmp_path / "tool").symlink_to(sys.executable)
    (tmp_path / "mayapy").touch(0o700)
    if isinstance(executable, str):
        executable = executable.replace("FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "executable", executable)
    found = why_no_python()
    assert found is reason is None or (found and reason and reason in found)
    if reason is not None:
        with pytest.raises(BackendUnavailable, match=reason):
            Engine("lz4", backend="workers")
        with pytest.raises(
            BatchzipError, match=f"the workload needs a Python process, but .*{reason}"
        ):
            Workload()
        with Engine("deflate") as engine:  # in Python: it would be for workers
            assert engine.worker_pids == ()


# What is looked for outside batchzip


def test_damaged_metadata_of_others_hurt_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("one", b"\xff\xfe["), ("two", b"[batchzip.codecs]\nno point\n= x\n")):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "entry_points.txt").write_bytes(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, None, b"bytes"])
    found = plugin_entry_points.__wrapped__("batchzip.codecs")
    assert {"lz4", "zstd"} <= set(found)


@pytest.mark.slow
def test_no_figures_about_memory_and_processors_are_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> Any:
        raise PermissionError(1, "as a filter says")

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert usable_cpus() == os.cpu_count()
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.arena(1 << 15).nbytes == 128 << 20
