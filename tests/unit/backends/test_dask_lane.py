"""The dask backend on a stand-in of the cluster: what is sent when, and what becomes of it."""

from __future__ import annotations

import errno
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed.scheduler import KilledWorker
from support.cluster.plain_connection import LIMIT_S, PlainConnection

from batchzip import (
    BackendUnavailable,
    ClosedError,
    ClusterLost,
    CompressBatch,
    DecompressBatch,
    Engine,
    RequestCancelled,
)
from batchzip.testing.plain import Plain, make_pages
from batchzip_dask import DaskBackend, backend, choice, connection, lane
from batchzip_dask.connection import CancelledError
from batchzip_dask.task_pages import as_task

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = make_pages(1024)
DEATH = KilledWorker("task", None, 3)  # type: ignore[arg-type] # the worker does not matter
MOST = lane._LEAST_BYTES // 4096
"""Pages of the first parcel, before a time is known."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> PlainConnection:
    made = PlainConnection()
    monkeypatch.setattr(connection, "ClusterConnection", lambda *_, **__: made)
    monkeypatch.setattr(lane, "_LOOK_S", 0.01)
    return made


def make_engine(local: Any = "never", **options: Any) -> Engine:
    return Engine("lz4", backend=DaskBackend("plain://scheduler", local=local, **options))


@contextmanager
def opened(cluster: PlainConnection, *arguments: Any, **options: Any) -> Iterator[Engine]:
    with make_engine(*arguments, **options) as made:
        try:
            yield made
        finally:
            cluster.is_here = False  # ends whatever a test has left
    cluster.is_here = True


@pytest.fixture
def engine(cluster: PlainConnection) -> Iterator[Engine]:
    with opened(cluster) as made:
        yield made
    assert cluster.closes == 1


def same(batch: CompressBatch, engine: Engine, pages: Any) -> bool:
    return batch.outputs() == Plain(engine).compress(pages)


def test_batches_come_back_as_any_backend_gives_them_and_are_counted(
    cluster: PlainConnection, engine: Engine
) -> None:
    batch = CompressBatch(PAGES[:40])
    request = engine.submit(batch)
    assert cluster.work(40)[0] == MOST
    request.wait(LIMIT_S)
    assert same(batch, engine, PAGES[:40])
    back = DecompressBatch(batch.outputs())
    restoring = engine.submit(back)
    cluster.work(40)
    np.testing.assert_array_equal(restoring.wait(LIMIT_S).pages, PAGES[:40])
    found = engine.statistics
    assert (found.compress.pages, found.decompress.pages) == (40, 40)
    stored = int(batch.dlens.sum())
    assert (found.compress.bytes_in, found.compress.bytes_out) == (40 * 4096, stored)
    assert (found.decompress.bytes_in, found.decompress.bytes_out) == (stored, 40 * 4096)
    assert (found.compress.inline_pages, found.placements) == (0, ())
    single = CompressBatch(PAGES[:1])
    engine.compress(single)
    engine.submit(single).wait(LIMIT_S)
    assert engine.statistics.compress.inline_pages == 2, "one page is not worth a message"


def settle(engine: Engine) -> None:
    """Wait until the lane has handed out all that it may: it ends a late request after that."""
    late = engine.submit(CompressBatch(PAGES[:2]), deadline_s=1e-6).wait(LIMIT_S)
    assert late.errors.tolist() == [-errno.ETIMEDOUT] * 2


def test_two_tasks_are_out_for_each_thread_of_the_cluster(cluster: PlainConnection) -> None:
    cluster.worker_threads = 3
    with opened(cluster) as engine:
        requests = [engine.submit(CompressBatch(PAGES[:MOST])) for _ in range(20)]
        tasks = [cluster.next() for _ in range(6)]
        while tasks:
            if cluster.handed_out < len(requests):
                settle(engine)
            assert cluster.tasks.empty()
            tasks[0].busy_s = 100.0  # so no parcel takes more pages
            tasks.pop(0).do()
            if cluster.handed_out < len(requests):
                tasks.append(cluster.next())
        for request in requests:
            assert same(request.wait(LIMIT_S), engine, PAGES[:MOST])
        assert cluster.handed_out == len(requests)


def test_bytes_that_are_out_are_bounded(
    cluster: PlainConnection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "OUT_BYTES", MOST * 4096)
    requests = [engine.submit(CompressBatch(PAGES[:MOST])) for _ in range(3)]
    task = cluster.next()
    settle(engine)
    assert cluster.tasks.empty(), "there would be room for a second task, but not for its bytes"
    task.do()
    cluster.work(2 * MOST)
    for request in requests:
        request.wait(LIMIT_S)


def test_waiting_requests_travel_together_in_one_parcel(
    cluster: PlainConnection, engine: Engine
) -> None:
    first = engine.submit(CompressBatch(PAGES[:8]))
    assert cluster.next().pages == 8, "one request goes at once"
    first.cancel()
    second = engine.submit(CompressBatch(PAGES[:8]))
    blocking = cluster.next()
    requests = [engine.submit(CompressBatch(PAGES[:5])) for _ in range(40)]
    settle(engine)
    blocking.busy_s = 8 * 1e-6  # a page takes a microsecond
    blocking.do()
    second.wait(LIMIT_S)
    parcel = cluster.next()
    assert parcel.pages == 200, "all of them: one thread, and so little time"
    parcel.do()
    for request in requests:
        assert same(request.wait(LIMIT_S), engine, PAGES[:5])


@pytest.mark.parametrize(
    ("page_s", "pages"), [(1e-6, 1024), (1e-3, 200), (4e-3, 50), (0.02, MOST), (10.0, MOST)]
)
def test_a_parcel_takes_a_fifth_of_a_second_of_a_worker_at_most(
    cluster: PlainConnection, engine: Engine, page_s: float, pages: int
) -> None:
    first = engine.submit(CompressBatch(PAGES[:MOST]))
    task = cluster.next()
    task.busy_s = MOST * page_s
    task.do()
    first.wait(LIMIT_S)
    request = engine.submit(CompressBatch(PAGES))
    sizes = [task.pages for task in (cluster.next(),)]
    assert sizes == [pages]
    request.cancel()


@pytest.mark.parametrize(
    ("threads", "page_s", "pages"),
    [(2, 1e-5, 512), (4, 1e-5, 256), (64, 1e-5, 32), (64, 1e-3, MOST)],
)
def test_a_batch_is_divided_among_threads_but_not_into_crumbs(
    cluster: PlainConnection, threads: int, page_s: float, pages: int
) -> None:
    cluster.worker_threads = threads
    with opened(cluster) as engine:
        first = engine.submit(CompressBatch(PAGES[:MOST]))
        task = cluster.next()
        task.busy_s = MOST * page_s
        task.do()
        first.wait(LIMIT_S)
        engine.submit(CompressBatch(PAGES))
        assert cluster.next().pages == pages


def test_pages_that_killed_a_worker_go_alone_and_fail_the_second_time(
    cluster: PlainConnection, engine: Engine
) -> None:
    engine.submit(CompressBatch(PAGES[:MOST]))
    engine.submit(CompressBatch(PAGES[:MOST]))
    busy, other = cluster.next(), cluster.next()
    harmful = engine.submit(CompressBatch(PAGES[:6]))
    harmless = engine.submit(CompressBatch(PAGES[6:10]))
    settle(engine)
    busy.do()
    shared = cluster.next()
    assert shared.pages == 10
    shared.tell(DEATH)
    settle(engine)
    assert cluster.tasks.empty(), "suspects wait until nothing else is out"
    other.do()
    alone = cluster.next()
    assert alone.pages == 6
    later = engine.submit(CompressBatch(PAGES[:3]))
    settle(engine)
    assert cluster.tasks.empty(), "and nothing goes beside them"
    alone.tell(DEATH)
    assert harmful.wait(LIMIT_S).errors.tolist() == [-errno.EOWNERDEAD] * 6
    second = cluster.next()
    assert second.pages == 4
    second.do()
    assert same(harmless.wait(LIMIT_S), engine, PAGES[6:10])
    cluster.next().do()
    assert same(later.wait(LIMIT_S), engine, PAGES[:3])


def test_a_task_that_others_cancel_is_repeated_three_times(
    cluster: PlainConnection, engine: Engine
) -> None:
    request = engine.submit(CompressBatch(PAGES[:5]))
    for _ in range(3):
        cluster.next().tell(CancelledError("somebody restarted the cluster"))
    cluster.next().do()
    assert same(request.wait(LIMIT_S), engine, PAGES[:5])
    request = engine.submit(CompressBatch(PAGES[:5]))
    for _ in range(4):
        cluster.next().tell(CancelledError("somebody restarted the cluster"))
    with pytest.raises(ClusterLost, match="keeps cancelling its tasks: somebody restarted"):
        request.wait(LIMIT_S)
    assert request.batch.errors.tolist() == [-errno.EOWNERDEAD] * 5


@pytest.mark.parametrize(
    ("lack", "match"),
    [(None, "cannot run its task: .*sorry"), ("no batchzip there", "^no batchzip there$")],
)
def test_a_batch_that_fails_says_what_workers_lack_and_asks_them_once(
    cluster: PlainConnection, engine: Engine, lack: str | None, match: str
) -> None:
    cluster.lack = BackendUnavailable(lack) if lack else None
    for _ in range(3):
        request = engine.submit(CompressBatch(PAGES[:5]))
        cluster.next().tell(ValueError("sorry"))
        with pytest.raises(BackendUnavailable, match=match):
            request.wait(LIMIT_S)
        assert request.batch.errors.tolist() == [-errno.EOWNERDEAD] * 5
    assert cluster.asked == 1


def test_a_task_that_cannot_be_sent_fails_its_batch_and_no_other(
    cluster: PlainConnection, engine: Engine
) -> None:
    cluster.error = OSError("no room for a task")
    with pytest.raises(BackendUnavailable, match="no room for a task"):
        engine.compress(CompressBatch(PAGES[:5]))
    cluster.error = None
    batch = CompressBatch(PAGES[:5])
    request = engine.submit(batch)
    cluster.next().do()
    assert same(request.wait(LIMIT_S), engine, PAGES[:5])


@pytest.mark.slow
def test_a_deadline_ends_a_request_and_its_tasks(cluster: PlainConnection, engine: Engine) -> None:
    request = engine.submit(CompressBatch(PAGES[: 3 * MOST]), deadline_s=0.5)
    done, dropped = cluster.next(), cluster.next()
    done.do()
    late = cluster.next()
    errors = request.wait(LIMIT_S).errors
    assert errors.tolist() == [0] * MOST + [-errno.ETIMEDOUT] * 2 * MOST
    assert dropped.dropped.wait(LIMIT_S)
    assert late.dropped.wait(LIMIT_S)
    dropped.do()
    other = engine.submit(CompressBatch(PAGES[:5]))
    cluster.next().do()
    assert same(other.wait(LIMIT_S), engine, PAGES[:5])
    assert errors[-1] == -errno.ETIMEDOUT, "an answer that comes late changes nothing"


@pytest.mark.slow
def test_requests_wait_a_while_for_workers_or_for_the_scheduler(cluster: PlainConnection) -> None:
    with opened(cluster, workerless_s=0.2) as engine:
        cluster.worker_threads = 0
        request = engine.submit(CompressBatch(PAGES[:5]))
        with pytest.raises(ClusterLost, match=r"plain://scheduler has had no workers for 0\.2 s"):
            request.wait(LIMIT_S)
        cluster.worker_threads = 2
        cluster.next()
        request = engine.submit(CompressBatch(PAGES[:5]))
        cluster.next().do()
        assert same(request.wait(LIMIT_S), engine, PAGES[:5])
        cluster.answers = False
        request = engine.submit(CompressBatch(PAGES[:5]))
        with pytest.raises(ClusterLost, match=r"scheduler has not answered for 0\.2 s"):
            request.wait(LIMIT_S)
        cluster.is_here = False
        for batch in (CompressBatch(PAGES[:5]), DecompressBatch([b"", b""])):
            with pytest.raises(ClusterLost, match="the scheduler is gone"):
                engine.backend.run(batch)


def test_a_cluster_that_goes_ends_what_it_had(cluster: PlainConnection, engine: Engine) -> None:
    request = engine.submit(CompressBatch(PAGES[:5]))
    task = cluster.next()
    cluster.is_here = False
    with pytest.raises(ClusterLost, match="the scheduler is gone"):
        request.wait(LIMIT_S)
    assert task.dropped.wait(LIMIT_S)


def test_closing_finishes_every_request(cluster: PlainConnection) -> None:
    engine = make_engine()
    requests = [engine.submit(CompressBatch(PAGES[:MOST])) for _ in range(5)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    cluster.work(5 * MOST)
    closing.join(LIMIT_S)
    assert not closing.is_alive()
    assert all(request.done() for request in requests)
    assert cluster.closes == 1
    with pytest.raises(ClosedError):
        engine.compress(CompressBatch(PAGES[:5]))


def test_a_callback_may_close_the_engine(cluster: PlainConnection) -> None:
    engine = make_engine()
    request = engine.submit(CompressBatch(PAGES[:5]))
    closed = threading.Event()

    def close(_: object) -> None:
        engine.close()
        closed.set()

    request.add_done_callback(close)
    cluster.next().do()
    assert closed.wait(LIMIT_S)
    assert cluster.closes == 1


def test_a_request_that_waits_may_be_cancelled_and_one_under_way_may_not(
    cluster: PlainConnection, engine: Engine
) -> None:
    tasks = []
    for _ in range(2):
        engine.submit(CompressBatch(PAGES[:MOST]))
        tasks.append(cluster.next())
    waiting = engine.submit(CompressBatch(PAGES[:5]))
    assert waiting.cancel()
    with pytest.raises(RequestCancelled):
        waiting.wait(LIMIT_S)
    assert waiting.batch.errors.tolist() == [-errno.ECANCELED] * 5
    for task in tasks:
        task.do()
    batch = CompressBatch(PAGES[:5])
    request = engine.submit(batch)
    task = cluster.next()
    assert not request.cancel()
    task.do()
    assert same(request.wait(LIMIT_S), engine, PAGES[:5])


def test_lengths_that_do_not_fit_fail_the_batch(cluster: PlainConnection, engine: Engine) -> None:
    request = engine.submit(CompressBatch(PAGES[:5]))
    task = cluster.next()
    outcome = as_task(task.share)()
    outcome.results[0] += 1
    task.tell(outcome)
    with pytest.raises(BackendUnavailable, match="do not fit its data"):
        request.wait(LIMIT_S)


@pytest.mark.parametrize("how", ["run", "submit"])
def test_a_trial_that_fails_runs_here(
    cluster: PlainConnection, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(backend, "_FAST_S", 0.0)
    monkeypatch.setattr(choice, "_MEASURED_S", LIMIT_S)  # bytes end the trial, not a slow machine
    with opened(cluster, "auto") as engine:
        cluster.error = OSError("no room for a task")
        batch, batch_bytes = CompressBatch(PAGES[:50]), 50 * 4096
        if how == "run":
            engine.compress(batch)
        else:
            engine.submit(batch).wait(LIMIT_S)
        assert same(batch, engine, PAGES[:50])
        (placement,) = engine.statistics.placements
        assert (placement.place, placement.trials, placement.sent_bytes) == ("local", 1, 0)
        assert engine.statistics.compress.pages == 50
        for _ in range(60):  # the trial takes 8 MiB
            engine.compress(batch)
        (placement,) = engine.statistics.placements
        assert (placement.place, placement.trials, placement.sent_bytes) == ("local", 1, 0)
        assert 18 * batch_bytes < placement.local_bytes < 57 * batch_bytes
        assert engine.statistics.compress.pages == 61 * 50


def test_local_work_and_the_clusters_are_counted_together(
    cluster: PlainConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_FAST_S", 0.0)
    with opened(cluster, "auto") as engine:
        batch = CompressBatch(PAGES[:50])
        worker = threading.Thread(target=cluster.work, args=[50])
        worker.start()
        engine.compress(batch)  # the first is a trial
        worker.join(LIMIT_S)
        assert same(batch, engine, PAGES[:50])
        cluster.worker_threads = 0
        here: Any = engine.backend
        here.threads = 0
        for _ in range(3):
            engine.submit(CompressBatch(PAGES[:50])).wait(LIMIT_S)
        (placement,) = engine.statistics.placements
        assert placement.sent_bytes == 50 * 4096
        assert placement.local_bytes == 150 * 4096
        assert engine.statistics.compress.pages == 200
        assert engine.statistics.compress.bytes_in == 200 * 4096


def test_an_engine_says_at_once_what_its_workers_lack(cluster: PlainConnection) -> None:
    cluster.lack = BackendUnavailable("no batchzip there")
    with pytest.raises(BackendUnavailable, match="no batchzip there"):
        make_engine()
    assert cluster.closes == 1


def test_an_engine_is_ready_when_there_is_a_worker(cluster: PlainConnection) -> None:
    for local in ("never", "auto"):
        with opened(cluster, local) as engine:
            cluster.worker_threads = 0
            assert not engine.wait_ready(1.0)
            cluster.worker_threads = 1
            assert engine.wait_ready(LIMIT_S)


def test_a_short_batch_is_done_when_submit_returns(
    cluster: PlainConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_FAST_S", 1e9)
    cluster.worker_threads = 0
    with opened(cluster, "auto") as engine:
        for _ in range(5):
            request = engine.submit(CompressBatch(PAGES))
            assert request.done()
        assert same(request.wait(LIMIT_S), engine, PAGES)


def test_a_batch_with_a_close_deadline_is_no_trial(
    cluster: PlainConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_PATIENT_S", 100.0)
    with opened(cluster, "auto") as engine:
        for _ in range(3):
            engine.submit(CompressBatch(PAGES[:50]), deadline_s=90.0).wait(LIMIT_S)
        assert engine.statistics.placements[0].trials == 0
        request = engine.submit(CompressBatch(PAGES[:50]), deadline_s=1000.0)
        task = cluster.next()
        assert not request.cancel(), "it is under way"
        task.do()
        cluster.work(50 - task.pages)
        assert same(request.wait(LIMIT_S), engine, PAGES[:50])
        assert engine.statistics.placements[0].trials == 1


def test_a_sample_counts_the_pages_that_it_had_time_for(
    cluster: PlainConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        def __init__(self, begins: float) -> None:
            self.times = [begins, begins + 2.0]

        def monotonic(self) -> float:
            return self.times.pop(0)

    with opened(cluster, "auto") as engine:
        here: Any = engine.backend
        now = time.monotonic()
        for begins, pages in ((now + 1000, 16), (now - 1000, 1)):
            monkeypatch.setattr(backend, "time", Clock(begins))
            assert here._sample(CompressBatch(PAGES)) == pages * 4096 / 2.0
            monkeypatch.setattr(backend, "time", time)
        batch = CompressBatch(PAGES)
        here._sample(batch)
        assert not batch.dlens.any(), "its results are discarded"
