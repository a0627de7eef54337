"""Workload: a child process with data like a Python service's, whose memory can be read.

    with Workload(64) as workload:      # the child has built its data and waits
        workload.pid

The data consists in equal parts of records as dicts, parsed source code, JSON text, and NumPy
arrays of floats and integers. The values are the same in every run. The system chooses the
addresses, and so the pointers in the pages. The child ends when its stdin closes, and therefore
with its parent, however that ends.
"""

from __future__ import annotations

import ast
import contextlib
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from batchzip.errors import BatchzipError
from batchzip.system.interpreter import command_for
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_READY = b"ready\n"
_SEED = 20240601
_START_TIMEOUT_S = 120.0
"""Time limit for building the data, which takes 1 s per 64 MiB on an idle machine of 2020."""


class Workload(Closing):
    """A child process with about `mib` MiB of data. Entering waits until the data is built.

    Raises BatchzipError if no Python can be started, or if the child fails. The child has ended
    then.
    """

    def __init__(self, mib: int = 64) -> None:
        start = "from batchzip.sources.workload import hold; hold(int(sys.argv[1]))"
        self._child = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [*command_for(start, "the workload"), str(mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            process_group=0,  # Ctrl-C reaches only the parent, which ends the child
        )
        self.pid = self._child.pid

    def __enter__(self) -> Self:
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def _wait_ready(self) -> None:
        ready = self._child.stdout
        assert ready is not None  # noqa: S101 - narrows a type
        if not select.select([ready], [], [], _START_TIMEOUT_S)[0]:
            raise BatchzipError(
                f"the workload process {self.pid} was not ready within {_START_TIMEOUT_S:.0f} s"
            )
        if ready.readline() != _READY:
            _, stderr = self._child.communicate()
            lines = stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"exit code {self._child.returncode}"
            raise BatchzipError(f"the workload process {self.pid} ended early: {why}")

    def close(self) -> None:
        """Kill the child and wait for its end. Further calls do nothing."""
        self._child.kill()  # it has nothing to clean up
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()


def _records(rng: random.Random) -> Iterator[object]:
    cities = ["Lisbon", "Osaka", "Quito", "Tromsø", "Windhoek"]
    for number in range(sys.maxsize):
        yield {
            "id": number,
            "name": f"user-{rng.randrange(10**6):06d}",
            "city": rng.choice(cities),
            "balance": round(rng.gauss(1000, 300), 2),
            "active": rng.random() < 0.9,
            "tags": [rng.choice(cities).lower() for _ in range(rng.randrange(4))],
        }


def _parsed_source(rng: random.Random) -> Iterator[object]:
    # Modules of the standard library: real code that always exists.
    paths = sorted(Path(ast.__file__).parent.glob("*.py"))
    while True:
        rng.shuffle(paths)
        for path in paths:
            with contextlib.suppress(SyntaxError, ValueError, OSError):
                yield ast.parse(path.read_bytes())


def _json_text(rng: random.Random) -> Iterator[object]:
    records = _records(rng)
    while True:
        yield json.dumps([next(records) for _ in range(100)], indent=rng.choice([None, 2]))


def _arrays(rng: random.Random) -> Iterator[object]:
    numbers = np.random.default_rng(rng.randrange(2**32))
    count = 1 << 14
    while True:
        yield numbers.normal(size=count)
        yield np.round(numbers.normal(20, 5, size=count).cumsum(), 2)
        yield numbers.normal(size=count).astype(np.float32)
        yield numbers.integers(0, 1000, size=count)
        yield np.sort(numbers.integers(0, 2**31, size=count))
        yield np.full(count, 0, np.int32)
        yield numbers.integers(0, 256, size=(count // 4, 3), dtype=np.uint8)


def _resident_bytes() -> int:
    resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(resident) * mmap.PAGESIZE


def build(mib: int) -> list[object]:
    """Return objects that take about `mib` MiB, a quarter of it per kind."""
    kinds: list[Callable[[random.Random], Iterator[object]]]
    kinds = [_records, _parsed_source, _json_text, _arrays]
    rng = random.Random(_SEED)  # noqa: S311 - test data, not secrets
    start = _resident_bytes()
    held: list[object] = []
    for done, kind in enumerate(kinds, start=1):
        goal = start + done * (mib << 20) // len(kinds)
        for item in kind(rng):
            held.append(item)
            # Reading statm costs more than making one record.
            if (kind is not _records or len(held) % 256 == 0) and _resident_bytes() >= goal:
                break
    return held


def hold(mib: int) -> None:
    """Build the data in this process and keep it until stdin closes."""
    # A thread watches stdin, so that the child ends even if the parent dies during building.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    held = build(mib)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, _READY)
    while held:
        signal.pause()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)
