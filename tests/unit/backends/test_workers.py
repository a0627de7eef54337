"""Workers that die, hang or raise change no result, and new ones take their place."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.codecs.faulty import HUNGRY, KILL, KILL_ONCE, RAISE, STOP_ONCE, FaultyCodec
from support.waiting import await_true
from support.workers import check_round_trip, cpu_ticks, some_pages

import batchzip
from batchzip import CompressBatch, Engine
from batchzip.lanes import watch
from batchzip.testing.leaks import is_alive
from batchzip_workers import supervisor as supervisor_module
from batchzip_workers import worker_slot as place_module
from batchzip_workers.backend import WorkersBackend
from batchzip_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from batchzip_workers.worker_slot import WorkerSlot


def marked(pages: npt.NDArray[np.uint8], mark: bytes, *indices: int) -> npt.NDArray[np.uint8]:
    for index in indices:
        pages[index, :4] = np.frombuffer(mark, np.uint8)
    return pages


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready()
        yield engine


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose marked pages do harm; the flag for those that do so once is set."""
    flag = tmp_path / "flag"
    flag.touch()
    with Engine(FaultyCodec(os.getpid(), str(flag)), backend="workers", workers=1) as engine:
        assert engine.wait_ready()
        yield engine


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await_true(lambda: not is_alive(pid), "its end")


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_workers_do_a_share_of_a_batch(engine: Engine) -> None:
    (pid,) = engine.worker_pids
    before = cpu_ticks(pid)
    for _ in range(200):
        check_round_trip(engine, some_pages(64))
        if cpu_ticks(pid) > before + 3:
            return
    pytest.fail("the worker used no CPU")


@pytest.mark.slow
def test_a_killed_worker_changes_no_result_and_is_replaced(engine: Engine) -> None:
    (first,) = engine.worker_pids
    os.kill(first, signal.SIGKILL)
    check_round_trip(engine, some_pages(300))
    await_true(lambda: engine.worker_pids not in ((), (first,)), "another worker")
    assert engine.wait_ready()
    check_round_trip(engine, some_pages(300))


@pytest.mark.slow
def test_wait_ready_waits_for_the_successor_of_a_worker_that_died(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody has noticed yet that it did."""
    notice = threading.Event()
    bury = Supervisor._bury

    def bury_later(self: Supervisor, place: WorkerSlot) -> None:
        notice.wait(60)
        bury(self, place)

    monkeypatch.setattr(Supervisor, "_bury", bury_later)
    (first,) = engine.worker_pids
    end(first)
    assert not engine.wait_ready(0)
    assert engine.worker_pids == (first,)
    notice.set()
    assert engine.wait_ready(60)
    assert engine.worker_pids not in ((), (first,))


@pytest.mark.slow
def test_a_loss_of_workers_is_told_and_so_is_their_recovery(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with Engine("lz4", backend="workers", workers=2) as engine:
        for _ in range(2):
            assert engine.wait_ready(60)
            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "Popen", refuse)
                (pid, _) = engine.worker_pids
                end(pid)
                with pytest.warns(batchzip.WorkerWarning, match="could not be started"):
                    assert not engine.wait_ready(60)
                check_round_trip(engine, some_pages(20))
                assert not caplog.records
            await_true(lambda: engine.wait_ready(60), "workers")
            check_round_trip(engine, some_pages(20))
            assert [one.getMessage() for one in caplog.records] == [
                "batchzip: all workers work again"
            ]
            assert caplog.records[0].name == "batchzip"
            caplog.clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::batchzip.WorkerWarning")  # some die while they start
def test_workers_killed_at_random_moments_change_no_result() -> None:
    stop = threading.Event()
    kills = 0

    def kill_now_and_then(engine: Engine) -> None:
        nonlocal kills
        rng = np.random.default_rng(1)
        while not stop.wait(rng.uniform(0.0, 0.1)):
            if rng.random() < 0.7:  # else some die as they start, but not all of them for ever
                engine.wait_ready(1)
            for pid in engine.worker_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1

    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready()
        killer = threading.Thread(target=kill_now_and_then, args=(engine,))
        killer.start()
        try:
            deadline = time.monotonic() + 5
            size = 0
            while time.monotonic() < deadline:
                size = size % 400 + 7
                check_round_trip(engine, some_pages(size, seed=size))
        finally:
            stop.set()
            killer.join()
    assert kills


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_a_page_that_kills_twice_gets_eownerdead_and_its_mates_succeed(faulty: Engine) -> None:
    # The first four go to the worker.
    batch = check_round_trip(faulty, marked(some_pages(8), KILL, 1), failed=(1,))
    assert batch.errors[1] == -errno.EOWNERDEAD
    with pytest.raises(batchzip.PageError, match="Owner died"):
        batch.output(1)


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_a_page_that_kills_once_is_run_again(faulty: Engine) -> None:
    (first,) = faulty.worker_pids
    check_round_trip(faulty, marked(some_pages(8), KILL_ONCE, 0))
    assert not is_alive(first)


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_pages_that_met_a_kill_wait_for_workers_that_die_as_they_start(
    faulty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being killed while it starts says nothing of the pages that an earlier worker died on."""
    monkeypatch.setattr(place_module, "LAST_RETRY_S", 0.05)
    start, starts = supervisor_module.Supervisor._start, 0

    def start_and_kill(self: Any, place: Any) -> None:
        nonlocal starts
        starts += 1
        start(self, place)
        if starts <= 6:
            os.kill(place.process.pid, signal.SIGKILL)

    monkeypatch.setattr(supervisor_module.Supervisor, "_start", start_and_kill)
    with pytest.warns(batchzip.WorkerWarning):
        check_round_trip(faulty, marked(some_pages(8), KILL_ONCE, 0))
    assert starts > 6


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_a_worker_that_hangs_is_killed_and_its_share_run_again(
    faulty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HANG_S", 0.3)
    (first,) = faulty.worker_pids
    check_round_trip(faulty, marked(some_pages(8), STOP_ONCE, 0))
    await_true(lambda: not is_alive(first), "the stopped worker's end")


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_several_workers_that_hang_cost_one_patience_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are killed at the same look: none of them gets the other's pages first."""
    monkeypatch.setattr(watch, "HANG_S", 0.5)
    codec = FaultyCodec(os.getpid(), str(tmp_path / "flag"))
    with Engine(codec, backend="workers", workers=2) as engine:
        assert engine.wait_ready()
        pids = engine.worker_pids
        killed: list[tuple[float, int]] = []
        kill = WorkersBackend.kill

        def note(backend: WorkersBackend, ring: Any) -> None:
            killed.append((time.monotonic(), ring.number))
            kill(backend, ring)

        monkeypatch.setattr(WorkersBackend, "kill", note)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        check_round_trip(engine, some_pages(60))
        await_true(lambda: not any(map(is_alive, pids)), "the stopped workers' end")
        assert sorted(number for _, number in killed[:2]) == [0, 1]
        assert killed[1][0] - killed[0][0] < watch.HANG_S


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_an_exception_in_a_worker_is_its_pages_error(faulty: Engine) -> None:
    pages = marked(marked(some_pages(8), RAISE, 1, 2), HUNGRY, 3, 4)
    batch = check_round_trip(faulty, pages, failed=(1, 2, 3, 4))
    assert batch.errors[1:5].tolist() == [-errno.EIO, -errno.EIO, -errno.ENOMEM, -errno.ENOMEM]


@pytest.mark.slow
def test_a_damaged_descriptor_costs_a_worker_and_no_result(engine: Engine) -> None:
    assert isinstance(engine.backend, WorkersBackend)
    (pid,) = engine.worker_pids
    (place,) = engine.backend._supervisor._workers
    assert place.ring is not None
    engine.backend.divider.generous = True
    os.kill(pid, signal.SIGSTOP)
    pages = some_pages(100)
    request = engine.submit(CompressBatch(pages))
    await_true(lambda: engine.backend.rings[0].posted, "a share")
    # The first slot lies behind a page of control words: its claim, then its descriptor.
    descriptor = slice(4096 + 64, 4096 + 64 + 32)
    place.ring._segment.memory[descriptor] = bytes(range(32))
    os.kill(pid, signal.SIGCONT)
    batch = request.wait(60)
    assert not batch.errors.any()
    await_true(lambda: not is_alive(pid), "the worker refusing the descriptor")
    check_round_trip(engine, pages)


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_a_full_ring_and_batches_larger_than_it() -> None:
    with Engine("lz4", backend="workers", workers=3) as engine:
        assert engine.wait_ready()
        check_round_trip(engine, some_pages(3000))


@pytest.mark.slow
def test_batches_are_right_before_any_worker_is_ready() -> None:
    with Engine("lz4", backend="workers", workers=2) as engine:
        check_round_trip(engine, some_pages(100))


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_several_threads_share_the_workers(engine: Engine) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(15):
                check_round_trip(engine, some_pages(20 + 31 * turn, seed=seed))
        except BaseException as error:  # noqa: BLE001 - reported in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.slow
@pytest.mark.usefixtures("always_hand_over")
def test_an_interrupted_batch_leaves_the_engine_usable(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the core has come back to Python because there is nothing to do but wait."""
    (pid,) = engine.worker_pids

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(6):  # more than a ring has slots
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(watch.Watch, "_look_after", interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.compress(CompressBatch(some_pages(8)))
        os.kill(pid, signal.SIGCONT)
        check_round_trip(engine, some_pages(64))
    assert engine.worker_pids == (pid,)
