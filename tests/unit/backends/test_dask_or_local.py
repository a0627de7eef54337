"""Batches are done here or on the cluster, whichever is quicker; each of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client, Future
from support.cluster.commands import other_environment, scheduler_command, worker_command
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test
from support.cluster.process import dask_cluster
from support.codecs.slow import SlowCodec
from support.codecs.unshowable import UnshowableCodec
from support.interrupt_lines import interrupted_at
from support.waiting import await_true

from batchzip import (
    BackendUnavailable,
    BadArgument,
    ClosedError,
    ClusterLost,
    CompressBatch,
    Engine,
)
from batchzip.codecs import make_codec
from batchzip.lanes import RequestQueue
from batchzip.lanes import backend as lanes_backend
from batchzip.testing.plain import (
    SLACK_S,
    Plain,
    check_round_trip,
    make_pages,
)
from batchzip_dask import DaskBackend
from batchzip_dask import backend as dask_backend
from batchzip_dask import lane as dask_lane
from batchzip_dask.flight import Parcel
from batchzip_dask.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.slow


DASK_BACKEND, DASK_LANE = (Path(str(module.__file__)) for module in (dask_backend, dask_lane))


# Here or there.


def test_quick_codecs_stay_here_and_slow_ones_go(cluster: str) -> None:
    pages = make_pages(100)
    for codec, place in ((make_codec("lz4"), "local"), (SlowCodec(0.003), "sent")):
        with Engine(codec, backend=DaskBackend(cluster)) as engine:
            batches, placement = 0, None
            deadline = time.monotonic() + SLACK_S
            # The first trial may come to nothing, as it pays for imports, too.
            while not placement or placement.sent_speed is None or placement.place != place:
                assert time.monotonic() < deadline, placement
                engine.compress(CompressBatch(pages))
                batches += 1
                (placement,) = engine.statistics.placements
            assert placement.operation == "compress"
            assert placement.local_speed is not None
            assert (placement.local_speed > placement.sent_speed) == (place == "local")
            assert placement.local_bytes + placement.sent_bytes == batches * pages.nbytes
            assert engine.statistics.compress.pages == batches * len(pages)


def test_a_trial_that_fails_is_done_here(tmp_path: Path) -> None:
    with (
        scheduler_command() as address,
        Client(address, set_as_default=False) as client,
        Engine("lz4", backend=DaskBackend(client)) as engine,
        worker_command(address, "--name", "odd one", **other_environment("missing", tmp_path)),
    ):
        pages = make_pages(100)
        expected = Plain(engine).compress(pages)
        for number in range(1000):
            batch = CompressBatch(pages)
            if number % 2:
                engine.submit(batch).wait(SLACK_S)
            else:
                engine.compress(batch)
            assert batch.outputs() == expected
            (placement,) = engine.statistics.placements
            if placement.trials:
                break
            time.sleep(0.01)  # until the engine hears of the worker
        assert (placement.place, placement.sent_bytes) == ("local", 0)


def test_where_it_has_no_choice_it_sends(cluster: str) -> None:
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        check_round_trip(engine, make_pages(100))
        statistics = engine.statistics
        assert (statistics.compress.inline_pages, statistics.placements) == (0, ())
    with pytest.raises(BadArgument, match="local must be 'auto' or 'never', not 'always'"):
        DaskBackend(cluster, local="always")  # type: ignore[arg-type] # that is the question


def test_a_batch_within_a_callback_does_not_wait_for_its_own_thread(cluster: str) -> None:
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        batch = CompressBatch(make_pages(50))
        over = threading.Event()

        def again(_: object) -> None:
            engine.compress(batch)
            over.set()

        engine.submit(CompressBatch(make_pages(50))).add_done_callback(again)
        assert over.wait(SLACK_S)
        assert batch.outputs() == Plain(engine).compress(make_pages(50))


def test_asyncio_goes_on_while_batches_are_on_the_cluster(cluster: str) -> None:
    async def both(engine: Engine) -> int:
        doing = asyncio.ensure_future(engine.compress_async(CompressBatch(make_pages(50))))
        turns = 0
        while not doing.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert not (await doing).has_errors
        return turns

    with Engine(SlowCodec(0.01), backend=DaskBackend(cluster, local="never")) as engine:
        assert asyncio.run(both(engine)) > 10


# The thread of the engine goes on, or says why it does not.


def fails_once(error: Exception, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, whose first call raises."""
    errors = [error]

    def failing(*arguments: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return function(*arguments, **options)

    return failing


def test_an_error_of_a_worker_that_cannot_be_shown_fails_its_batch_alone(cluster: str) -> None:
    with Engine(UnshowableCodec(0), backend=DaskBackend(cluster, local="never")) as engine:
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="a value of UnshowableError"):
                engine.submit(CompressBatch(make_pages(10))).wait(SLACK_S)


@pytest.mark.parametrize("place", ["order", "parcel", "dropping"])
def test_where_memory_is_out_one_batch_fails_and_the_engine_goes_on(
    cluster: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = make_pages(10)
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        check_round_trip(engine, pages)
        kind, name = {
            "order": (CompressBatch, "order"),
            "parcel": (Parcel, "__init__"),
            "dropping": (Future, "release"),
        }[place]
        monkeypatch.setattr(kind, name, fails_once(MemoryError(), getattr(kind, name)))
        request = engine.submit(CompressBatch(pages))
        with pytest.raises((MemoryError, BackendUnavailable)):
            request.wait(SLACK_S)
        check_round_trip(engine, pages)


def test_where_memory_is_out_at_the_end_of_a_batch_it_ends_all_the_same(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = make_pages(10)
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        monkeypatch.setattr(Lane, "_end", fails_once(MemoryError(), Lane._end))
        batch = engine.submit(CompressBatch(pages)).wait(SLACK_S)
        assert batch.outputs() == Plain(engine).compress(pages)


def test_a_fault_of_the_engines_thread_ends_all_batches_and_those_to_come(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(SlowCodec(0.02), backend=DaskBackend(cluster, local="never")) as engine:
        requests = [engine.submit(CompressBatch(make_pages(40))) for _ in range(4)]
        monkeypatch.setattr(Lane, "_expire", fails_once(ValueError("odd"), Lane._expire))
        for request in requests[1:]:
            with pytest.raises(BackendUnavailable, match=r"the dask backend has failed: .*odd"):
                request.wait(SLACK_S)
        with pytest.raises(ClosedError):
            engine.compress(CompressBatch(make_pages(100)))


def test_callbacks_of_an_engine_here_and_one_on_the_cluster_do_not_wait_for_each_other(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (dask_backend, lanes_backend):
        monkeypatch.setattr(module, "RequestQueue", lambda _: RequestQueue(128))
    finished = threading.Semaphore(0)
    with (
        Engine("lz4", backend=DaskBackend(cluster, local="never")) as there,
        Engine("lz4", backend="threads", workers=1) as here,
    ):

        def do_there(_: object) -> None:
            there.compress(CompressBatch(make_pages(100)))
            finished.release()

        def submit_here(_: object) -> None:
            here.submit(CompressBatch(make_pages(100))).add_done_callback(do_there)

        def start(engine: Engine, then: Callable[[object], None]) -> None:
            for _ in range(20):
                engine.submit(CompressBatch(make_pages(100))).add_done_callback(then)

        works = ((there, submit_here), (here, do_there))
        threads = [threading.Thread(target=start, args=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for _ in range(40):
            assert finished.acquire(timeout=SLACK_S)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_an_interrupt_at_any_line_leaves_nothing_queued_and_the_engine_goes_on(
    cluster: str, how: str
) -> None:
    pages = make_pages(4)
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        backend = engine.backend
        assert isinstance(backend, DaskBackend)
        check_round_trip(engine, pages)
        seen: list[str] = []
        for step in range(1, 500):
            batch = CompressBatch(pages)

            def work(batch: CompressBatch = batch) -> None:
                if how == "execute":
                    engine.compress(batch)
                else:
                    engine.submit(batch).wait(SLACK_S)

            place = interrupted_at(step, work, lambda path: path in (DASK_BACKEND, DASK_LANE))
            if place is None:
                break
            seen.append(place)
            before = batch.dlens.tolist(), batch.errors.tolist()
            if how == "execute":  # nothing is written any more to what is the caller's again
                check_round_trip(engine, pages)
                assert (batch.dlens.tolist(), batch.errors.tolist()) == before
            await_true(lambda: not backend._requests.pages)
        assert len(seen) > 10


def test_a_trial_that_fails_is_not_done_by_the_thread_that_others_need(tmp_path: Path) -> None:
    """It may take minutes, and others' deadlines pass meanwhile."""
    threads: list[str] = []

    def note(request: object) -> None:
        assert request is not None
        threads.append(threading.current_thread().name)

    with (
        scheduler_command() as address,
        Client(address, set_as_default=False) as client,
        Engine("lz4", backend=DaskBackend(client)) as engine,
        worker_command(address, "--name", "odd one", **other_environment("missing", tmp_path)),
    ):
        pages = make_pages(100)
        expected = Plain(engine).compress(pages)
        placement = None
        for _ in range(1000):
            request = engine.submit(CompressBatch(pages))
            request.add_done_callback(note)
            assert request.wait(SLACK_S).outputs() == expected
            (placement,) = engine.statistics.placements
            if placement.trials:
                break
            time.sleep(0.01)  # until the engine hears of the worker
        assert placement is not None
        assert placement.trials
        assert threads[-1] != "batchzip-dask"


def test_a_handler_that_comes_while_the_engine_starts_its_thread_does_its_batch_itself(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Lane.__init__
    batches = [CompressBatch(make_pages(10)) for _ in range(2)]

    def interrupted(*arguments: Any) -> None:
        engine.compress(batches[0])
        engine.submit(batches[1]).wait(SLACK_S)
        start(*arguments)

    monkeypatch.setattr(Lane, "__init__", interrupted)
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        check_round_trip(engine, make_pages(10))
        for batch in batches:
            assert batch.outputs() == Plain(engine).compress(make_pages(10))


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_deadlines_are_kept_while_workers_are_asked_why_a_batch_failed() -> None:
    with dask_cluster(2) as address, Client(address, set_as_default=False) as client:
        pids = list(client.run(os.getpid).values())
        codec = UnshowableCodec(0)
        with Engine(codec, backend=DaskBackend(client, local="never")) as engine:
            with stopped(pids[0]):
                failing = [engine.submit(CompressBatch(make_pages(1000))) for _ in range(4)]
                late = engine.submit(CompressBatch(make_pages(10)), deadline_s=0.3)
                assert set(late.wait(5).errors.tolist()) == {-errno.ETIMEDOUT}
            for request in failing:
                with pytest.raises(BackendUnavailable, match="cannot run its task"):
                    request.wait(SLACK_S)


def test_a_scheduler_that_is_silent_is_lost_and_works_again_when_it_answers() -> None:
    with dask_cluster(1) as address, Client(address, set_as_default=False) as client:
        pid = client.run_on_scheduler(os.getpid)
        backend = DaskBackend(client, local="never", workerless_s=0.5)
        with Engine("lz4", backend=backend) as engine:
            check_round_trip(engine, make_pages(10))
            with (
                stopped(pid),
                pytest.raises(ClusterLost, match=f"{address} has not answered for 0.5 s"),
            ):
                engine.submit(CompressBatch(make_pages(10))).wait(SLACK_S)
            client.submit(int).result(SLACK_S)
            check_round_trip(engine, make_pages(10))
