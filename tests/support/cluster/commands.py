"""Dask's commands as processes over TCP, also where batchzip is another version or missing.

environment = other_environment("missing", tmp_path)
with scheduler_command() as address, worker_command(address, **environment):
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Literal

from support.paths import TESTS, python_path

import batchzip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Other = Literal["missing", "folder", "older", "protocol", "no core", "exits"]

_FILES: dict[str, dict[str, str]] = {
    "missing": {},
    "folder": {"batchzip/README": "no package\n"},
    "older": {"batchzip/__init__.py": '__version__ = "0.0.1"\n'},
    "protocol": {
        "batchzip/__init__.py": f'__version__ = "{batchzip.__version__}"\n',
        "batchzip/dask/__init__.py": "",
        "batchzip/dask/probe.py": "PROTOCOL = 0\n",
    },
    "no core": {
        "batchzip/__init__.py": f'__version__ = "{batchzip.__version__}"\n',
        "batchzip/dask/__init__.py": 'raise ImportError("libc.so.6: version not found")\n',
    },
    "exits": {"batchzip/__init__.py": "raise SystemExit(3)\n"},
}

_FINDER = """
import sys
from importlib.machinery import PathFinder

class Other:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "batchzip":
            return None
        spec = PathFinder.find_spec(name, [{folder!r}])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return spec

sys.meta_path.insert(0, Other)
"""


def other_environment(kind: Other, folder: Path) -> dict[str, str]:
    """Return variables with which Python finds another batchzip, or none, whatever is installed."""
    files = {"sitecustomize.py": _FINDER.format(folder=str(folder)), **_FILES[kind]}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"PYTHONPATH": str(folder)}


@contextlib.contextmanager
def scheduler_command(*arguments: str, **environment: str) -> Iterator[str]:
    """Run `dask scheduler` on a free port of this host; give its address."""
    options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    with _command("scheduler", [*options, *arguments], environment) as (_, lines):
        yield lines.find(r"Scheduler at:\s*(\S+)")


@contextlib.contextmanager
def worker_command(
    scheduler: str, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run `dask worker` with a thread and a nanny. Yield the process once the worker runs."""
    options = ["--host", "127.0.0.1", "--nthreads", "1", "--dashboard-address", "127.0.0.1:0"]
    with _command("worker", [scheduler, *options, *arguments], environment) as (process, lines):
        lines.find(r"Starting established connection to (\S+)")
        yield process


class _Lines:
    """What a process says; read to its end, so that it never waits for its reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._said: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._said.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def find(self, pattern: str) -> str:
        """Wait for a line; return what the pattern's group has of it."""
        at = 0
        with self._changed:
            while True:
                for line in self._said[at:]:
                    if found := re.search(pattern, line):
                        return found[1]
                at = len(self._said)
                assert not self._ended, "".join(self._said)
                assert self._changed.wait(60), "".join(self._said)


@contextlib.contextmanager
def _command(
    name: str, arguments: list[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], _Lines]]:
    # Workers import the tests' modules, too, for the functions that they run.
    path = python_path(environment.get("PYTHONPATH", ""), str(TESTS / "unit" / "dask"))
    environment = {**environment, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", name, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    lines = _Lines(process)
    try:
        yield process, lines
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # of a nanny that left its worker, too
            process.wait()
            lines.thread.join()
            assert process.stderr is not None
            process.stderr.close()
