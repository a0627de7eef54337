"""A worker that hangs where no request waits for it is killed all the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.batch_load import KINDS, Load, is_alive, state
from support.waiting import await_true

from batchzip import CompressBatch, Engine
from batchzip.lanes import watch
from batchzip.lanes.watch import Watch
from batchzip_workers import supervisor as supervisor_module
from batchzip_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from batchzip_workers.worker_slot import WorkerSlot


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await_true(lambda: state(pid) == "T", "the worker's stop")


@pytest.mark.slow
def test_an_engine_with_a_hung_worker_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_STOP_S", 0.3)
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready()
        pids = engine.worker_pids
        stop(pids[0])
    assert not any(map(is_alive, pids))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::batchzip.WorkerWarning")
def test_a_worker_that_hangs_while_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []
    start = Supervisor._start

    def start_one_that_hangs(self: Supervisor, place: WorkerSlot) -> None:
        start(self, place)
        if not stopped and place.process is not None:
            stop(place.process.pid)
            stopped.append(place.process.pid)

    monkeypatch.setattr(Supervisor, "_start", start_one_that_hangs)
    monkeypatch.setattr(supervisor_module, "START_S", 1.0)
    with Engine("lz4", backend="workers", workers=1) as engine:
        load = Load(engine.codec, 64)
        load.run(engine, KINDS[0], 0, 64)
        assert engine.wait_ready(60)
        assert stopped
        assert not is_alive(stopped[0])
        load.run(engine, KINDS[0], 0, 64)


@pytest.mark.slow
def test_asking_for_workers_never_fails_while_they_die() -> None:
    """The supervisor takes a dead worker away at any moment."""
    over = threading.Event()
    failures: list[BaseException] = []

    def ask(engine: Engine) -> None:
        try:
            while not over.is_set():
                _ = engine.worker_pids, engine.statistics, engine.wait_ready(0)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            failures.append(error)

    with Engine("lz4", backend="workers", workers=2) as engine:
        thread = threading.Thread(target=ask, args=(engine,))
        thread.start()
        for turn in range(6):
            assert engine.wait_ready()
            os.kill(engine.worker_pids[0], signal.SIGKILL)
            while engine.statistics.restarts <= turn:
                pass  # asking
        over.set()
        thread.join()
    for failure in failures:
        raise failure


@pytest.mark.slow
def test_a_worker_that_hangs_on_an_interrupted_share_is_killed_by_a_later_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "HANG_S", 0.2)
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready()
        load = Load(engine.codec, 64)
        (pid,) = engine.worker_pids
        stop(pid)
        with monkeypatch.context() as patch:
            patch.setattr(Watch, "_look_after", _interrupt)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    engine.compress(CompressBatch(load.pages[:8]))
        deadline = time.monotonic() + 10
        while engine.worker_pids == (pid,):
            assert time.monotonic() < deadline
            load.run(engine, KINDS[-1], 0, 64)
        await_true(lambda: not is_alive(pid), "the hung worker's end")
        assert engine.wait_ready()
        load.run(engine, KINDS[-1], 0, 64)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_workers_that_work_are_not_taken_for_ones_that_never_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody ever asks here whether they are ready."""
    monkeypatch.setattr(supervisor_module, "START_S", 3.0)
    with Engine("lz4", backend="workers", workers=1) as engine:
        load = Load(engine.codec, 64)
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            load.run(engine, KINDS[0], 0, 64)
            time.sleep(0.01)
        assert engine.statistics.restarts == 0
        assert engine.statistics.workers[0].shares
