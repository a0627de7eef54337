"""Paged memory ends with its owner, at whatever moment: nothing is left, and nothing hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from stress.test_owner_killed import all_pids, shared_memory
from support.batch_load import is_alive
from support.owners import paged as paged_owner
from support.paged_region import HANG_LIMIT_S, Region, content, end_of, filled, needs_paging, opened
from support.paths import TESTS
from support.scripts import check_ended_well, run
from support.waiting import await_true

from batchzip import BatchzipError
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from support.reporting import Report, Turns


pytestmark = needs_paging


SIZE = 4096


def text(pages: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    return content("text", seed, pages * SIZE)


# Owner killed.


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(2), pytest.param(60, marks=pytest.mark.stress, id="stress")]
)
def test_nothing_is_left_of_a_killed_owner(
    times: int, tmp_path: Path, report: Report, turns: Turns, seed: int
) -> None:
    rng = np.random.default_rng((seed, times))
    killed = 0
    for _ in turns(times):
        killed += 1
        with subprocess.Popen(
            [sys.executable, paged_owner.__file__, tmp_path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"under load\n"
            time.sleep(rng.exponential(0.1))
            segments = shared_memory([process.pid])
            process.kill()
            process.wait(HANG_LIMIT_S)
        assert len(segments) >= 2  # objects and pages
        await_true(lambda: not segments & shared_memory(all_pids()), "the end of its memory")  # noqa: B023
        assert not list(tmp_path.iterdir())
    report(f"paged: {killed} owners killed, nothing left", owners_killed=killed)


OUTLIVED = """
import os, subprocess, sys, time
import numpy as np
from support.paged_region import opened
scope = opened(backing=sys.argv[1])
region = scope.__enter__()
array = region.array(200 * 4096)
array[:] = 3
child = os.fork()
if child == 0:
    time.sleep(600)
    os._exit(0)
other = subprocess.Popen(["sleep", "600"], close_fds=False)
print(child, other.pid, flush=True)
while True:
    array += 1
"""


@pytest.mark.slow
def test_children_that_outlive_their_owner_hold_none_of_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OUTLIVED, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    ) as owner:
        assert owner.stdout is not None
        children = [int(word) for word in owner.stdout.readline().split()]
        try:
            assert len(children) == 2
            owner.kill()
            owner.wait(HANG_LIMIT_S)
            assert all(map(is_alive, children))
            for child in children:
                held = [str(fd.readlink()) for fd in Path(f"/proc/{child}/fd").iterdir()]
                assert not any("paged" in one or "userfaultfd" in one for one in held), held
                assert "batchzip-paged" not in Path(f"/proc/{child}/maps").read_text()
            assert not list(tmp_path.iterdir())
        finally:
            owner.kill()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


# The interpreter's end.


BEGIN = """
import atexit, gc, os, sys, threading, time, warnings
import numpy as np
from support.paged_region import opened
scope = opened(pages=256, budget=16)
region = scope.__enter__()
rng = np.random.default_rng(1)
data = rng.integers(0, 6, 200 * 4096, np.uint8)
array = region.array(len(data))
array[:] = data
def touch(seconds=600):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert (array == data).all()
def start(daemon, *arguments):
    threads = [threading.Thread(target=touch, args=arguments, daemon=daemon) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
"""

EXITS = {
    "idle": "",
    "daemon threads": "start(True)",
    "threads that go on for a while": "start(False, 0.3)",
    "both": "start(True); start(False, 0.2)",
    "sys.exit": "start(True); sys.exit()",
    "os._exit": "start(True); os._exit(0)",
    "touched at exit": "atexit.register(touch, 0.05); start(True)",
    "a touch by a finalizer": """
class Late:
    def __init__(self, array): self.array = array
    def __del__(self): self.array[::4096] += 1; assert self.array[0] == data0 + 1
data0 = int(data[0]); late = Late(array)
""",
    "in a cycle": "cycle = [array, scope, region]; cycle.append(cycle); del array, scope, region",
    "prefetching": "region.evict(array); region.pager.prefetch(*region.pages_of(array))",
    "waiting for an event": """
threading.Thread(target=lambda: region.pager.await_event(600), daemon=True).start(); start(True)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("end", EXITS)
def test_a_program_ends_with_faults_in_flight(end: str) -> None:
    check_ended_well(run(["-c", BEGIN + EXITS[end]]))


# Close, while others touch.


def reading(_region: Region, array: npt.NDArray[np.uint8]) -> None:
    data = text(200)
    while True:
        assert (array == data).all()


def writing(_region: Region, array: npt.NDArray[np.uint8]) -> None:
    while True:
        array[::SIZE] += 1


def holding_the_gil(_region: Region, array: npt.NDArray[np.uint8]) -> None:
    view = array.data
    while True:
        view[: 50 * SIZE].tobytes()
        time.sleep(0)


@pytest.mark.slow
@pytest.mark.parametrize("touch", [reading, writing, holding_the_gil])
@pytest.mark.parametrize("after_s", [0.0, 0.03])
def test_close_while_threads_touch_is_a_sigbus_and_no_hang(
    touch: Callable[[Region, npt.NDArray[np.uint8]], None], after_s: float
) -> None:
    def work() -> None:
        with opened(budget=16) as region:
            array = filled(region, text(200))
            threads = [
                threading.Thread(target=touch, args=(region, array), daemon=True) for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            time.sleep(after_s)
            region.pager.close()
            for thread in threads:
                thread.join()

    end = end_of(work)
    assert end.signal == signal.SIGBUS, end
    assert len(end.lines) <= 1, end


def test_close_while_threads_call_is_an_error_of_ours_to_them() -> None:
    with opened(budget=16) as region:
        array = filled(region, text(200))
        pages = region.pages_of(array)
        begun = threading.Barrier(6)
        ended: list[BaseException] = []

        def pin_and_unpin() -> None:
            region.pager.pin(pages[0], 3)
            region.pager.unpin(pages[0], 3)

        def call(work: Callable[[], object]) -> None:
            begun.wait(HANG_LIMIT_S)
            try:
                while True:
                    work()
            except BatchzipError as error:
                ended.append(error)

        calls: list[Callable[[], object]] = [
            lambda: region.pager.evict(*pages),
            lambda: region.pager.prefetch(*pages),
            pin_and_unpin,
            lambda: region.pager.allocate(SIZE),
            lambda: setattr(region.pager, "budget", 8),
        ]

        def run_one(number: int) -> None:
            if number < len(calls):
                call(calls[number])
            else:
                begun.wait(HANG_LIMIT_S)
                time.sleep(0.02)
                region.pager.close()

        in_threads(6, run_one)
        assert len(ended) == len(calls)
        del array


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(3), pytest.param(60, marks=pytest.mark.stress, id="stress")]
)
def test_the_store_closed_while_threads_touch(times: int) -> None:
    def work() -> None:
        with opened(budget=16) as region:
            array = filled(region, text(200))
            threads = [
                threading.Thread(target=reading, args=(region, array), daemon=True)
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.02)
            region.store.close()
            for thread in threads:
                thread.join()

    for _ in range(times):
        end = end_of(work)
        assert end.signal == signal.SIGBUS, end
        # Several threads may touch pages that are lost at the same moment.
        assert end.lines, end
        assert all("store is closed" in line for line in end.lines), end
