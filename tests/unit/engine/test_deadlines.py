"""Deadlines: when they pass, the request is done; what was done stays, nothing is written after."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.codecs.faulty import KILL, STOP_ONCE, FaultyCodec
from support.codecs.slow import SlowCodec
from support.dividing import divide_never
from support.waiting import await_true

from batchzip import CompressBatch, DecompressBatch, Engine
from batchzip.core import division
from batchzip.lanes import RequestQueue, watch
from batchzip.lanes import backend as lanes_backend
from batchzip.lanes.backend import LanesBackend
from batchzip.testing.leaks import is_alive
from batchzip.testing.plain import PAGE, SLACK_S, check_compressed, check_round_trip

if TYPE_CHECKING:
    from support.held_lane import Hold

    from batchzip.arguments.buffers import Bytes
    from batchzip.batch import Batch

pytestmark = pytest.mark.usefixtures("always_hand_over")


SOON_S = 0.3
"""A deadline that passes while a worker hangs."""


def some_pages(count: int, mark: bytes = b"", *indices: int) -> Bytes:
    pages = np.random.default_rng(count).integers(0, 6, (count, PAGE), np.uint8)
    pages[:, :4] = 0
    for index in indices:
        pages[index, :4] = np.frombuffer(mark, np.uint8)
    return pages


def check_timed_out(engine: Engine, batch: CompressBatch, pages: Bytes) -> int:
    """Each page is right or -ETIMEDOUT without output; how many are right."""
    assert set(batch.errors.tolist()) <= {0, -errno.ETIMEDOUT}
    assert not batch.dlens[batch.errors != 0].any()
    compress = engine.codec.compressor(PAGE)
    done = np.flatnonzero(batch.errors == 0).tolist()
    for index in done:
        assert batch.output(index) == compress(bytes(pages[index])), index
    return len(done)


def check_usable(engine: Engine) -> None:
    check_round_trip(engine, some_pages(100))
    pages = some_pages(90)
    check_compressed(engine, engine.submit(CompressBatch(pages)).wait(SLACK_S), pages)
    assert isinstance(engine.backend, LanesBackend)
    queue = engine.backend._queue
    await_true(lambda: queue._pages == 0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threads", "workers"])
@pytest.mark.parametrize("divided", [True, False])
def test_a_deadline_of_none_left_times_every_page_out(
    backend: str, divided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine("lz4", backend=backend, workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        if not divided:
            divide_never(monkeypatch)
        ready = CompressBatch(some_pages(100))
        engine.compress(ready)
        batches: list[Batch] = [
            CompressBatch(some_pages(1)),
            CompressBatch(some_pages(1000)),
            CompressBatch(some_pages(9), dsts=engine.arena(9, PAGE)),
            DecompressBatch(ready.outputs()),
            DecompressBatch(ready.outputs(), pages=engine.arena(100)),
        ]
        requests = [engine.submit(batch, deadline_s=0) for batch in batches]
        for request in requests:
            batch = request.wait(SLACK_S)
            assert (batch.errors == -errno.ETIMEDOUT).all()
            assert not batch.dlens.any()
            assert batch.has_errors
        check_usable(engine)


@pytest.mark.slow
@pytest.mark.parametrize("deadline_s", [1000, 1e12, math.inf])
def test_a_deadline_that_is_not_reached_changes_nothing(deadline_s: float) -> None:
    pages = some_pages(300)
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        request = engine.submit(CompressBatch(pages), deadline_s=deadline_s)
        check_compressed(engine, request.wait(SLACK_S), pages)


@pytest.mark.slow
def test_a_hung_worker_costs_the_page_it_is_at_and_no_other(
    stopping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pid,) = stopping.worker_pids
    assert isinstance(stopping.backend, LanesBackend)
    stopping.backend.divider.generous = False  # callers take back what a lane does not begin
    pages = some_pages(64, STOP_ONCE, 0)
    flag = Path(stopping.codec.flag)  # type: ignore[attr-defined]
    while flag.exists():  # until the worker came to the page before the caller did
        batch = stopping.submit(CompressBatch(pages), deadline_s=SOON_S).wait(SLACK_S)
    assert check_timed_out(stopping, batch, pages) == 63
    assert batch.errors[0] == -errno.ETIMEDOUT
    # Whoever comes later works without it, and has it replaced when it hung for long enough.
    check_usable(stopping)
    assert is_alive(pid)
    monkeypatch.setattr(division, "NEGLECT_S", 0.1)
    monkeypatch.setattr(watch, "HANG_S", 0.1)

    def is_replaced() -> bool:
        check_round_trip(stopping, pages)
        return not is_alive(pid)

    await_true(is_replaced)
    check_usable(stopping)


@pytest.mark.slow
def test_a_deadline_passes_in_the_queue_while_a_worker_hangs(
    stopping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = Path(stopping.codec.flag)  # type: ignore[attr-defined]
    hanging = stopping.submit(CompressBatch(some_pages(8, STOP_ONCE, 1)))
    await_true(lambda: not flag.exists())
    waiting = stopping.submit(CompressBatch(some_pages(8)))
    pages = some_pages(100)
    late = stopping.submit(CompressBatch(pages), deadline_s=SOON_S)
    assert check_timed_out(stopping, late.wait(SLACK_S), pages) < 100
    assert not hanging.done()
    assert not waiting.done()
    monkeypatch.setattr(watch, "HANG_S", 0.1)
    assert not hanging.wait(SLACK_S).errors.any()
    assert not waiting.wait(SLACK_S).errors.any()
    check_usable(stopping)


@pytest.mark.slow
def test_requests_behind_one_that_hangs_are_done_and_do_not_wait_for_it(
    stopping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = Path(stopping.codec.flag)  # type: ignore[attr-defined]
    pages = some_pages(8)
    assert isinstance(stopping.backend, LanesBackend)
    hanging = stopping.submit(CompressBatch(some_pages(8, STOP_ONCE, 0)))
    await_true(lambda: not flag.exists())
    # From here on callers take back what a lane does not begin, as they do outside of tests.
    stopping.backend.divider.generous = False
    for _ in range(12):
        check_compressed(stopping, stopping.submit(CompressBatch(pages)).wait(SLACK_S), pages)
        check_round_trip(stopping, pages)
    assert not hanging.done()
    monkeypatch.setattr(watch, "HANG_S", 0.1)
    assert not hanging.wait(SLACK_S).errors.any()
    check_usable(stopping)


@pytest.mark.slow
def test_a_lane_that_is_slow_costs_nobody_a_wait_for_what_it_has_not_begun() -> None:
    """The caller takes pages back from the end of a share, one codec call after the other."""
    with Engine(SlowCodec(0.02), backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        assert isinstance(engine.backend, LanesBackend)
        pages = some_pages(12)
        engine.compress(CompressBatch(pages))
        engine.backend.divider.generous = False
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGSTOP)
        try:
            batch = CompressBatch(pages)
            engine.compress(batch)
        finally:
            os.kill(pid, signal.SIGCONT)
        check_compressed(engine, batch, pages)
        assert engine.worker_pids == (pid,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compress", "decompress"])
def test_nothing_is_written_to_an_arena_after_the_deadline(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GRACE_S", 0.02)
    pages = some_pages(64)
    with Engine(SlowCodec(0.005), backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        dsts = engine.arena(64, 2 * PAGE)
        batch: Batch = CompressBatch(pages, dsts=dsts)
        if kind == "decompress":
            ready = CompressBatch(pages)
            engine.compress(ready)
            dsts = engine.arena(64)
            batch = DecompressBatch(ready.outputs(), pages=dsts)
        engine.submit(batch, deadline_s=0.04).wait(SLACK_S)
        dsts.fill(0xA5)
        dlens, errors = batch.dlens.copy(), batch.errors.copy()
        assert np.count_nonzero(errors == -errno.ETIMEDOUT)
        time.sleep(0.3)
        assert (dsts == 0xA5).all()
        np.testing.assert_array_equal(batch.dlens, dlens)
        np.testing.assert_array_equal(batch.errors, errors)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sequential", "workers"])
def test_a_deadline_passes_during_the_work_of_the_caller_alone(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    divide_never(monkeypatch)
    pages = some_pages(300)
    with Engine(SlowCodec(0.002), backend=backend) as engine:
        batch = engine.submit(CompressBatch(pages), deadline_s=0.15).wait(SLACK_S)
        done = check_timed_out(engine, batch, pages)
        assert 0 < done < 300
        assert not batch.errors[:done].any()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.05, 0.2])
def test_a_page_that_kills_every_worker_does_not_outlast_the_deadline_of_its_batch(
    seconds: float, tmp_path: Path
) -> None:
    with Engine(FaultyCodec(os.getpid(), str(tmp_path)), backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        pages = some_pages(64, KILL, 1)  # the worker's
        batch = engine.submit(CompressBatch(pages), deadline_s=seconds).wait(SLACK_S)
        assert set(batch.errors.tolist()) <= {0, -errno.ETIMEDOUT, -errno.EOWNERDEAD}
        assert batch.errors[1]
        assert set(np.flatnonzero(batch.errors == -errno.EOWNERDEAD)) <= {1}
        check_usable(engine)


@pytest.mark.slow
def test_a_deadline_passes_while_submit_waits_for_room(
    hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_backend, "RequestQueue", lambda _: RequestQueue(128))
    with Engine("lz4", backend="workers", workers=1) as engine:
        hold.stop(engine)
        engine.submit(CompressBatch(some_pages(100)))
        begun = threading.Event()
        timed_out: list[CompressBatch] = []

        def submit() -> None:
            request = engine.submit(CompressBatch(some_pages(100)), deadline_s=0.05)
            begun.set()
            timed_out.append(request.wait(SLACK_S))

        thread = threading.Thread(target=submit)
        thread.start()
        assert begun.wait(SLACK_S), "it waits for room beyond its deadline"
        hold.release()
        thread.join(SLACK_S)
        assert (timed_out[0].errors == -errno.ETIMEDOUT).all()
        check_usable(engine)
