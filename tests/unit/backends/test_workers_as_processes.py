"""Idle workers use no CPU, none outlives its owner, and signals and forks do no harm."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import await_true
from support.workers import check_round_trip, cpu_ticks, some_pages

import batchzip
from batchzip import CompressBatch, Engine
from batchzip.testing.leaks import is_alive
from batchzip_workers import backend as backend_module
from batchzip_workers.backend import WorkersBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready()
        yield engine


def run_script(source: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.slow
def test_an_idle_engine_uses_no_cpu(engine: Engine) -> None:
    check_round_trip(engine, some_pages(64))
    (pid,) = engine.worker_pids
    time.sleep(0.05)  # what it may spin
    before = cpu_ticks(pid)
    time.sleep(1.0)
    assert cpu_ticks(pid) == before


@pytest.mark.slow
def test_workers_ignore_ctrl_c(engine: Engine) -> None:
    (pid,) = engine.worker_pids
    os.kill(pid, signal.SIGINT)
    check_round_trip(engine, some_pages(64))
    assert engine.worker_pids == (pid,)
    assert is_alive(pid)


@pytest.mark.slow
def test_descriptors_are_not_inherited_by_others(engine: Engine) -> None:
    assert isinstance(engine.backend, WorkersBackend)
    (place,) = engine.backend._supervisor._workers
    assert place.ring is not None
    assert place.process is not None
    for fd in (*place.ring.descriptors, engine.backend._arena.fd, place.process.sentinel):
        assert not os.get_inheritable(fd)


@pytest.mark.slow
def test_where_workers_cannot_start_it_says_so_once_and_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backend_module, "WorkerRing", no_memory)
    with Engine("lz4", backend="workers", workers=2) as engine:
        with pytest.warns(batchzip.WorkerWarning, match="No space left"):
            assert not engine.wait_ready()
        check_round_trip(engine, some_pages(100))


OWNER = """
import os, signal, sys
import numpy as np, batchzip
engine = batchzip.Engine("lz4", backend="workers", workers=2)
engine.wait_ready()
pages = np.zeros((500, 4096), np.uint8)
engine.compress(batchzip.CompressBatch(pages))
print(*engine.worker_pids, flush=True)
"""


@pytest.mark.slow
def test_workers_of_a_killed_owner_are_gone() -> None:
    done = run_script(OWNER + "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    await_true(lambda: not any(map(is_alive, pids)), "the workers' end", timeout_s=2.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("", id="at the end of the script"),
        pytest.param("sys.exit(0)", id="by sys.exit"),
        pytest.param(
            "requests = [engine.submit(batchzip.CompressBatch(pages)) for _ in range(20)]",
            id="with requests in flight",
        ),
        pytest.param("engine.close(); engine.close()", id="closed twice"),
        pytest.param("del engine", id="dropped"),
    ],
)
def test_an_interpreter_ends_quietly_and_takes_its_workers_along(ending: str) -> None:
    done = run_script(OWNER + ending)
    assert (done.returncode, done.stderr) == (0, "")
    await_true(lambda: not any(is_alive(int(p)) for p in done.stdout.split()), "the workers' end")


@pytest.mark.slow
def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OWNER + "print('once')")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("once") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_neither_uses_nor_harms_the_workers(engine: Engine) -> None:
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        status = 1
        try:
            engine.compress(CompressBatch(some_pages(8)))
        except batchzip.ForkedProcess:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    script = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + OWNER
    script += (
        "pid = os.fork()\n"
        "if pid == 0: sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "for p in engine.worker_pids: os.kill(p, 0)\n"
        "engine.compress(batchzip.CompressBatch(pages))\n"
        "print(engine.backend._supervisor.restarts)"
    )
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == "0"


@pytest.mark.slow
def test_in_a_daemonic_process_workers_work_and_end_with_it() -> None:
    source = """
import multiprocessing, os, time
def child(queue):
    import numpy as np, batchzip
    engine = batchzip.Engine("lz4", backend="workers", workers=1)
    assert engine.wait_ready()
    batch = batchzip.CompressBatch(np.zeros((100, 4096), np.uint8))
    engine.compress(batch)
    assert not batch.errors.any()
    queue.put(engine.worker_pids)
    time.sleep(60)
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    print(*queue.get(timeout=30))
"""
    done = run_script(source)
    assert (done.returncode, done.stderr) == (0, "")
    (pid,) = map(int, done.stdout.split())
    await_true(lambda: not is_alive(pid), "the end of a terminated daemon's worker")


def test_ready_is_the_workers_word(engine: Engine) -> None:
    assert isinstance(engine.backend, WorkersBackend)
    (ring,) = engine.backend.rings
    assert ring.ready
    ring.check_invariants()
