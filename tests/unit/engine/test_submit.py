"""Submitting: at once, bounded, in a fair order, from anywhere; many at once keep apart."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.dividing import divide_always, divide_never
from support.waiting import await_true

from batchzip import (
    ClosedError,
    CompressBatch,
    DecompressBatch,
    Engine,
    EngineBusy,
    Request,
    RequestCancelled,
)
from batchzip.lanes import RequestQueue
from batchzip.lanes import backend as lanes_backend
from batchzip.testing.plain import (
    SLACK_S,
    check_compressed,
    check_restored,
    in_threads,
    make_pages,
)
from batchzip_workers.backend import WorkersBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.held_lane import Hold

    from batchzip.arguments.buffers import Bytes
    from batchzip.batch import Batch

ROOM = 128
"""Pages that a small engine has room for."""


@pytest.fixture(params=[True, False], ids=["divided", "alone"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are divided whatever it costs, or never."""
    (divide_always if request.param else divide_never)(monkeypatch)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        yield engine
        assert pages_in(engine) == 0, "room for pages that are gone"


@pytest.fixture
def small(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine with room for 128 pages, one of which is there and stays until `hold.release()`."""
    make_queues_small(monkeypatch)
    with Engine("lz4", backend="workers", workers=1) as engine:
        first = hold.stop(engine)
        yield engine
        hold.release()
        if not engine.closed:
            first.wait(SLACK_S)
            await_true(lambda: pages_in(engine) == 0)


def make_queues_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_backend, "RequestQueue", lambda _: RequestQueue(ROOM))


def pages_in(engine: Engine) -> int:
    assert isinstance(engine.backend, WorkersBackend)
    return engine.backend._queue._pages


def waiting_in(engine: Engine) -> int:
    assert isinstance(engine.backend, WorkersBackend)
    return len(engine.backend._queue._waiting)


def in_a_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# Room


def test_submit_returns_while_others_are_under_way(small: Engine, hold: Hold) -> None:
    work = [make_pages(20, seed=seed) for seed in range(6)]
    requests = [small.submit(CompressBatch(pages)) for pages in work]
    assert not any(request.done() for request in requests)
    hold.release()
    for pages, request in zip(work, requests, strict=True):
        check_compressed(small, request.wait(SLACK_S), pages)


def test_submit_without_room_fails_at_once_or_on_time_and_begins_nothing(
    small: Engine, hold: Hold
) -> None:
    small.submit(CompressBatch(make_pages(100)))
    batch = CompressBatch(make_pages(40))
    with pytest.raises(EngineBusy, match="101 pages"):
        small.submit(batch, block=False)
    for timeout_s in (0, 0.05):
        with pytest.raises(EngineBusy, match=f"after {timeout_s} s, 101 pages"):
            small.submit(batch, timeout_s=timeout_s)
    assert pages_in(small) == 101
    request = small.submit(CompressBatch(make_pages(27)), block=False)
    hold.release()
    request.wait(SLACK_S)
    assert not batch.dlens.any()
    check_compressed(small, small.submit(batch, timeout_s=SLACK_S).wait(SLACK_S), make_pages(40))


@pytest.mark.parametrize("timeout_s", [None, SLACK_S, 1e12, math.inf])
def test_submit_waits_for_room(small: Engine, hold: Hold, timeout_s: float | None) -> None:
    pages = make_pages(100)
    small.submit(CompressBatch(pages))
    requests: list[Request[CompressBatch]] = []
    thread = in_a_thread(
        lambda: requests.append(small.submit(CompressBatch(pages), timeout_s=timeout_s))
    )
    await_true(lambda: waiting_in(small) == 1)
    with pytest.raises(EngineBusy):
        small.submit(CompressBatch(make_pages(1)), block=False)  # it would overtake
    hold.release()
    thread.join(SLACK_S)
    check_compressed(small, requests[0].wait(SLACK_S), pages)


def test_a_batch_larger_than_all_the_room_is_taken_when_it_is_alone(
    small: Engine, hold: Hold
) -> None:
    pages = make_pages(10 * ROOM)
    with pytest.raises(EngineBusy):
        small.submit(CompressBatch(pages), block=False)
    hold.release()
    await_true(lambda: pages_in(small) == 0)
    request = small.submit(CompressBatch(pages), block=False)
    check_compressed(small, request.wait(SLACK_S), pages)


# Order


def test_a_flood_of_requests_delays_another_thread_by_one_only(
    engine: Engine, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hold.stop(engine)
    flood = [engine.submit(CompressBatch(make_pages(20))) for _ in range(60)]
    others: list[Request[CompressBatch]] = []
    in_a_thread(lambda: others.append(engine.submit(CompressBatch(make_pages(20))))).join(SLACK_S)
    order: list[object] = []
    take_up = Request.take_up

    def note(request: Request[Batch]) -> bool:
        order.append(request)
        return take_up(request)

    with monkeypatch.context() as patch:
        patch.setattr(Request, "take_up", note)
        hold.release()
        for request in (*flood, *others):
            request.wait(SLACK_S)
    assert order == [first, flood[0], *others, *flood[1:]]


def test_threads_that_wait_for_room_take_turns(small: Engine, hold: Hold) -> None:
    done: list[int] = []
    first_is_in = threading.Event()

    def work(number: int) -> None:
        for _ in range(20 if number else 1):
            request = small.submit(CompressBatch(make_pages(100)))
            if number == 0:
                first_is_in.set()
            request.add_done_callback(lambda _: done.append(number))

    def release(number: int) -> None:
        if number == 3:  # there is room for one request; the two others wait, thread 0 or not
            await_true(lambda: waiting_in(small) == 2 + (not first_is_in.is_set()))
            hold.release()
        else:
            work(number)

    in_threads(4, release)
    await_true(lambda: len(done) == 41)
    assert done.index(0) <= 6


# Callbacks


@pytest.mark.slow
@pytest.mark.usefixtures("both_ways")
def test_a_callback_may_submit_however_full_it_is(small: Engine, hold: Hold) -> None:
    done = threading.Event()
    left = 100

    def again(_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()
        elif left > 0:
            for block in (True, False) if left > 50 else (True,):
                batch = CompressBatch(make_pages(60))
                small.submit(batch, block=block).add_done_callback(again)

    small.submit(CompressBatch(make_pages(120))).add_done_callback(again)
    hold.release()
    assert done.wait(SLACK_S)


@pytest.mark.slow
def test_callbacks_of_two_engines_may_submit_to_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_queues_small(monkeypatch)
    finished = threading.Semaphore(0)
    with (
        Engine("lz4", backend="workers", workers=1) as one,
        Engine("lz4", backend="workers", workers=1) as other,
    ):

        def pass_on(to: Engine, back: Engine, turns: int) -> None:
            request = to.submit(CompressBatch(make_pages(100)))
            if turns:
                request.add_done_callback(lambda _: pass_on(back, to, turns - 1))
            else:
                request.add_done_callback(lambda _: finished.release())

        for _ in range(8):
            pass_on(one, other, 10)
            pass_on(other, one, 10)
        for _ in range(16):
            assert finished.acquire(timeout=SLACK_S)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_error_in_one_callback_stops_neither_the_others_nor_the_engine(
    small: Engine, hold: Hold, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise error

    called: list[int] = []

    def note(number: int, _: object) -> None:
        called.append(number)

    request = small.submit(CompressBatch(make_pages(8)))
    for number in range(3):
        request.add_done_callback(fail)
        request.add_done_callback(partial(note, number))
    with caplog.at_level(logging.CRITICAL):
        hold.release()
        request.wait(SLACK_S)
        small.submit(CompressBatch(make_pages(8))).wait(SLACK_S)
    assert called == [0, 1, 2]


# Many at once


@pytest.mark.slow
@pytest.mark.usefixtures("both_ways")
def test_hundreds_of_requests_of_both_kinds_from_several_threads_keep_apart(
    engine: Engine,
) -> None:
    calls: dict[int, int] = {}

    def note(request: Request[Any]) -> None:
        calls[id(request)] = calls.get(id(request), 0) + 1

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        requests: list[tuple[Request[Any], Bytes]] = []
        for number in range(100):
            pages = make_pages(int(rng.integers(1, 40)), seed=100 * seed + number)
            ready = CompressBatch(pages)
            batch: Batch = ready
            if number % 2:
                engine.compress(ready)
                batch = DecompressBatch(ready.outputs())
            elif number % 3 == 0:
                array = engine.arena(*pages.shape)
                array[:] = pages
                batch = CompressBatch(array, dsts=engine.arena(len(pages), 6000))
            request = engine.submit(batch)
            request.add_done_callback(note)
            requests.append((request, pages))
        rng.shuffle(requests)
        for request, pages in requests:
            done = request.wait(SLACK_S)
            if isinstance(done, CompressBatch):
                check_compressed(engine, done, pages)
            else:
                assert isinstance(done, DecompressBatch)
                check_restored(done, pages)
        await_true(lambda: all(id(request) in calls for request, _ in requests))
        assert all(calls.pop(id(request)) == 1 for request, _ in requests)

    in_threads(3, work)
    await_true(lambda: pages_in(engine) == 0)


@pytest.mark.slow
def test_hundreds_of_tasks_await_without_a_thread_each(engine: Engine) -> None:
    engine.submit(CompressBatch(make_pages(1))).wait(SLACK_S)  # starts the lane
    before = threading.active_count()
    most = 0

    async def one(seed: int) -> None:
        nonlocal most
        pages = make_pages(8, seed=seed)
        batch = await engine.submit(CompressBatch(pages))
        most = max(most, threading.active_count())
        check_compressed(engine, batch, pages)
        check_restored(await engine.submit(DecompressBatch(batch.outputs())), pages)

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*map(one, range(500))), SLACK_S)

    asyncio.run(all_of_them())
    assert most == before
    await_true(lambda: pages_in(engine) == 0)


# Cancelling


def test_a_cancelled_task_cancels_what_was_not_taken_up(small: Engine, hold: Hold) -> None:
    batch = CompressBatch(make_pages(20))

    async def begin_and_cancel() -> None:
        request = small.submit(batch)

        async def wait() -> CompressBatch:
            return await request

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RequestCancelled):
            request.wait(0)

    asyncio.run(begin_and_cancel())
    assert (batch.errors == -errno.ECANCELED).all()
    hold.release()
    small.submit(CompressBatch(make_pages(1))).wait(SLACK_S)
    assert (batch.errors == -errno.ECANCELED).all(), "worked on after it was cancelled"
    assert not batch.dlens.any()


def test_a_cancelled_task_leaves_what_was_taken_up(small: Engine, hold: Hold) -> None:
    hold.release()
    pages = make_pages(100)

    async def begin_and_cancel() -> Request[CompressBatch]:
        request = small.submit(CompressBatch(pages))

        async def wait() -> CompressBatch:
            return await request

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        request.wait(SLACK_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return request

    check_compressed(small, asyncio.run(begin_and_cancel()).wait(0), pages)


def test_a_cancelled_request_frees_its_room_after_its_batch_was_refilled(
    small: Engine, hold: Hold
) -> None:
    batch = CompressBatch(make_pages(100))
    request = small.submit(batch)
    assert request.cancel()
    batch.refill(make_pages(3))
    again = small.submit(batch)
    hold.release()
    check_compressed(small, again.wait(SLACK_S), make_pages(3))
    await_true(lambda: pages_in(small) == 0)


# The end


def test_close_finishes_queued_requests_and_refuses_waiters(small: Engine, hold: Hold) -> None:
    pages = make_pages(100)
    request = small.submit(CompressBatch(pages))
    refused: list[BaseException] = []

    def wait_for_room() -> None:
        try:
            small.submit(CompressBatch(pages))
        except ClosedError as error:
            refused.append(error)

    waiter = in_a_thread(wait_for_room)
    await_true(lambda: waiting_in(small) == 1)
    closer = in_a_thread(small.close)
    waiter.join(SLACK_S)
    assert len(refused) == 1
    hold.release()
    closer.join(SLACK_S)
    check_compressed(small, request.wait(0), pages)


@pytest.mark.usefixtures("both_ways")
def test_a_callback_may_close_the_engine_and_all_that_was_queued_is_done(
    engine: Engine, hold: Hold
) -> None:
    hold.stop(engine)
    work = [make_pages(30, seed=seed) for seed in range(20)]
    requests = [engine.submit(CompressBatch(pages)) for pages in work]
    requests[3].add_done_callback(lambda _: engine.close())
    hold.release()
    for pages, request in zip(work, requests, strict=True):
        check_compressed(engine, request.wait(SLACK_S), pages)
    await_true(lambda: engine.closed)
    with pytest.raises(ClosedError):
        engine.submit(CompressBatch(work[0]))
    await_true(lambda: threading.active_count() == 1)
