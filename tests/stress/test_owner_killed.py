"""An owner that is killed at any moment leaves nothing: no process, no memory, no file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.batch_load import is_alive
from support.owners import engine as owner
from support.owners import store as store_owner
from support.waiting import await_true

from batchzip import Engine, SwapStore, attach

if TYPE_CHECKING:
    from support.reporting import Report, Turns

_TOKEN = "BATCHZIP_OWNER"
"""In the environment of an owner and of every process that it or its workers start."""


def family(token: str) -> set[int]:
    """Find the living processes of one owner, whoever is their parent by now."""
    wanted = f"{_TOKEN}={token}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # ended meanwhile
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return {pid for pid in found if is_alive(pid)}


def shared_memory(pids: list[int]) -> set[tuple[int, int]]:
    """Find the segments that these processes have descriptors of."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if "memfd:batchzip" in str(fd.readlink()):
                        status = fd.stat()
                        found.add((status.st_dev, status.st_ino))
    return found


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def kill_an_owner(tmp_path: Path, after_s: float) -> tuple[int, float]:
    """Kill an owner. Return its number of processes, and the seconds until all were gone."""
    token = uuid.uuid4().hex
    files_before = set(os.listdir("/dev/shm"))  # noqa: PTH208
    with subprocess.Popen(
        [sys.executable, owner.__file__],
        env={**os.environ, _TOKEN: token, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"under load\n"
        time.sleep(after_s)
        segments = shared_memory([process.pid])
        pids = family(token)
        process.kill()
        process.wait()
        # A worker in the middle of its exec has no readable environment and so does not count as
        # family yet. The descriptors that it holds tell of it.
        gone_s = await_true(
            lambda: not family(token) and not segments & shared_memory(all_pids()),
            "the end of all that an owner started",
        )
    assert segments
    left = set(os.listdir("/dev/shm")) - files_before  # noqa: PTH208
    assert not [name for name in left if str(process.pid) in name or "batchzip" in name]
    assert not list(tmp_path.iterdir())
    return len(pids), gone_s


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(3), pytest.param(50, marks=pytest.mark.stress, id="stress")]
)
def test_nothing_is_left_of_a_killed_owner(
    times: int, tmp_path: Path, report: Report, turns: Turns, seed: int
) -> None:
    rng = np.random.default_rng((seed, times))
    killed, processes, slowest_s = 0, 0, 0.0
    for _ in turns(times):
        # In the first 0.2 s workers are still starting.
        count, gone_s = kill_an_owner(tmp_path, rng.exponential(0.15))
        killed += 1
        processes += count
        slowest_s = max(slowest_s, gone_s)
    report(
        f"owner killed: {killed} times with {processes} processes, "
        f"all gone within {slowest_s:.3f} s",
        owners_killed=killed,
    )


def kill_a_stores_owner(path: Path, after_s: float) -> int:
    """Kill one that readers load from; how many loads they made."""
    with subprocess.Popen(
        [sys.executable, store_owner.__file__, path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        with attach(process.stdout.readline().strip()) as view:
            loads = 0
            until = time.monotonic() + after_s
            while time.monotonic() < until:
                assert view.load((1 << 20) + loads % 64) == store_owner.PAGES[loads % 64].tobytes()
                loads += 1
            segments = shared_memory([process.pid])
            process.kill()
            process.wait()
            # What it had stored stays readable, for those who have it open.
            assert view.load(1 << 20) == store_owner.PAGES[0].tobytes()
            assert segments & shared_memory([os.getpid()])
        await_true(lambda: not segments & shared_memory(all_pids()), "the end of its memory")
    assert segments
    return loads


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(2), pytest.param(40, marks=pytest.mark.stress, id="stress")]
)
@pytest.mark.parametrize("was_there", [False, True])
def test_a_killed_owners_file_is_gone_or_taken_over_and_its_memory_goes_with_the_last_reader(
    times: int,
    was_there: bool,
    tmp_path: Path,
    report: Report,
    turns: Turns,
    seed: int,
) -> None:
    rng = np.random.default_rng((seed, times))
    path, killed, loads = tmp_path / "swap", 0, 0
    if was_there:
        path.touch()
    left = list(tmp_path.iterdir())
    for _ in turns(times):
        killed += 1
        loads += kill_a_stores_owner(path, rng.exponential(0.15))
        assert list(tmp_path.iterdir()) == left
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine, backing=path) as store:
        store.store(0, store_owner.PAGES)
        assert store.writeback(64) == 64
        assert store.load_many(range(64)).tobytes() == store_owner.PAGES.tobytes()
        store.check_invariants()
    assert list(tmp_path.iterdir()) == left
    assert not was_there or path.read_bytes() == b""
    report(
        f"owner killed: {killed} stores with a file, after {loads} loads of a reader, "
        "0 left behind",
        owners_killed=killed,
    )
