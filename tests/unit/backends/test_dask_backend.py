"""The dask backend, held to the contract on a cluster over TCP; and when parts of the cluster die."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import dask
import numpy as np
import pytest
from distributed import Client, Future
from distributed.protocol import serialize
from support.cluster.commands import other_environment, scheduler_command, worker_command
from support.cluster.process import dask_cluster, offload_thread
from support.codecs.faulty import KILL, KILL_ONCE, FaultyCodec
from support.codecs.slow import SlowCodec
from support.codecs.unshowable import UnshowableCodec
from support.interrupt_lines import interrupted_at

from batchzip import (
    BackendUnavailable,
    BadArgument,
    ClosedError,
    ClusterLost,
    CompressBatch,
    DecompressBatch,
    Engine,
    MissingExtra,
    RequestCancelled,
)
from batchzip.codecs import make_codec
from batchzip.lanes import RequestQueue
from batchzip.lanes import backend as lanes_backend
from batchzip.request import Request
from batchzip.testing import BackendContract, LeakCheck
from batchzip.testing.plain import (
    SLACK_S,
    Plain,
    check_round_trip,
    in_threads,
    make_pages,
)
from batchzip_dask import DaskBackend
from batchzip_dask import backend as dask_backend
from batchzip_dask import lane as dask_lane
from batchzip_dask.flight import Flight, Parcel
from batchzip_dask.lane import Lane
from batchzip_dask.task_pages import as_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip import Backend
    from batchzip.batch import Batch

pytestmark = pytest.mark.slow

DASK_BACKEND, DASK_LANE = (Path(str(module.__file__)) for module in (dask_backend, dask_lane))

_ADDRESS = "BATCHZIP_TEST_SCHEDULER"
"""Environment variable with the cluster's address: the contract also uses backends in subprocesses."""


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """As everywhere, but for sockets: a client opens them as it needs them, and closes them at its end.

    That it does is checked by the contract's `engine`, which looks for everything when it was closed.
    """
    with LeakCheck(ignore="socket:"):
        yield


@pytest.fixture(scope="module", autouse=True)
def offloading() -> Iterator[None]:
    with offload_thread():
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with dask_cluster(2) as address:
        os.environ[_ADDRESS] = address
        yield address
        del os.environ[_ADDRESS]


@pytest.mark.usefixtures("cluster")
class TestDask(BackendContract):
    codecs = ("lz4",)  # a share is the same whatever the codec, and takes 10 ms

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, request: pytest.FixtureRequest) -> Iterator[Engine]:
        """As the contract's; the processes of Dask's workers are no business of the engine."""
        with LeakCheck(), cls.make_engine(request.param) as engine:
            engine.compress(CompressBatch(make_pages(2)))  # what starts with the first batch
            yield engine

    @classmethod
    def make_backend(cls) -> Backend:
        return DaskBackend(os.environ[_ADDRESS], local="never")


@pytest.mark.usefixtures("cluster")
class TestDaskOrLocal(BackendContract):
    """The same where the backend chooses, with trials that come often."""

    codecs = ("zstd",)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, request: pytest.FixtureRequest) -> Iterator[Engine]:
        """As above."""
        with LeakCheck(), cls.make_engine(request.param) as engine:
            for operation in (CompressBatch, DecompressBatch):
                engine.run(operation(list(make_pages(2))))  # what starts with the first batch
            while not any(one.name == "batchzip-requests" for one in threading.enumerate()):
                engine.submit(CompressBatch(make_pages(300))).wait(SLACK_S)  # and with one here
            yield engine
            places = engine.statistics.placements
            assert any(one.local_bytes for one in places)
            assert any(one.sent_bytes for one in places)

    @classmethod
    def make_backend(cls) -> Backend:
        return DaskBackend(os.environ[_ADDRESS])


def test_the_clients_of_others_are_used_and_left_open(cluster: str) -> None:
    with Client(cluster, set_as_default=False) as client:
        for _ in range(2):
            with Engine("lz4", backend=DaskBackend(client, local="never")) as engine:
                check_round_trip(engine, make_pages(100))
        assert client.submit(sum, [1, 2]).result(SLACK_S) == 3


def test_by_name_it_takes_the_current_cluster(cluster: str) -> None:
    with dask.config.set({"scheduler-address": cluster}), Engine("lz4", backend="dask") as engine:
        check_round_trip(engine, make_pages(100))
    with Client(cluster), Engine("lz4", backend="dask") as engine:
        check_round_trip(engine, make_pages(100))


def test_what_is_no_cluster_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match=r"make a distributed\.Client first"):
        Engine("lz4", backend="dask")
    with pytest.raises(BackendUnavailable, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9"):
        Engine("lz4", backend=DaskBackend("tcp://127.0.0.1:9", connect_timeout_s=0.2))
    with pytest.raises(BadArgument, match="not 8786"):
        DaskBackend(8786)  # type: ignore[arg-type] # that is the question
    with pytest.raises(BadArgument, match="leave workers= out"):
        Engine("lz4", backend="dask", workers=2)
    with pytest.raises(BadArgument, match=r"^workerless_s must be seconds"):
        DaskBackend("tcp://127.0.0.1:9", workerless_s=-1)


def test_without_the_extra_the_error_has_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "batchzip_dask.connection", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"pip install 'distributed>=[0-9.]+'$"):
        Engine("lz4", backend="dask")


@pytest.mark.parametrize("count", [10, 1000])
def test_a_share_is_a_few_buffers_whatever_its_number_of_pages(count: int) -> None:
    pages = make_pages(count)
    batch = CompressBatch([bytes(page) for page in pages])
    share = Parcel([(Flight(Request(batch)), range(count))]).pack(dask_codec())
    for message in (as_task(share), as_task(share)()):
        header, frames = serialize(message)
        beside = sorted(memoryview(frame).nbytes for frame in frames)
        assert len(frames) <= 3
        assert beside[0] + len(repr(header)) < 2000, "nothing of the pages is in the pickle"


def test_only_pages_that_were_done_count_as_bytes_out(cluster: str) -> None:
    pages = make_pages(50)
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        batch = CompressBatch([*(bytes(page) for page in pages), b"odd"], page_size=4096)
        engine.compress(batch)
        done = engine.statistics
        assert (done.compress.pages, done.errors) == (51, {-errno.EINVAL: 1})
        assert done.compress.bytes_out == int(batch.dlens.sum())
        srcs = [bytes(output) for output in batch.outputs()[:50]]
        srcs[7] = b"bad"
        back = DecompressBatch(srcs)
        engine.decompress(back)
        done = engine.statistics
        assert (done.decompress.pages, done.decompress.bytes_out) == (50, 49 * 4096)
        assert done.decompress.bytes_in == sum(map(len, srcs))
        # What an earlier run has left is no result of the next.
        engine.compress(batch)
        assert np.flatnonzero(batch.errors).tolist() == [50]


def dask_codec() -> bytes:
    from distributed.protocol import pickle  # noqa: PLC0415 - as the backend does

    dumped: bytes = pickle.dumps(make_codec("lz4"))
    return dumped


def test_what_is_not_done_at_the_deadline_timed_out_and_the_rest_is_right(cluster: str) -> None:
    pages = make_pages(100)
    with Engine(SlowCodec(0.02), backend=DaskBackend(cluster, local="never")) as engine:
        check_round_trip(engine, pages[:4])
        batch = engine.submit(CompressBatch(pages), deadline_s=0.6).wait(SLACK_S)
        assert set(batch.errors.tolist()) <= {0, -errno.ETIMEDOUT}
        assert np.count_nonzero(batch.errors)
        plain = Plain(engine)
        for index in np.flatnonzero(batch.errors == 0).tolist()[:3]:
            assert [batch.output(index)] == plain.compress(pages[index : index + 1])
        check_round_trip(engine, pages[:4])


def test_an_interrupt_ends_a_batch_and_the_engine_goes_on(cluster: str) -> None:
    pages = make_pages(200)
    with Engine(SlowCodec(0.02), backend=DaskBackend(cluster, local="never")) as engine:
        check_round_trip(engine, pages[:4])
        batch = CompressBatch(pages)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            engine.compress(batch)
        timer.join()
        assert set(batch.errors.tolist()) <= {0, -errno.ETIMEDOUT}
        assert np.count_nonzero(batch.errors)
        check_round_trip(engine, pages[:4])


def test_bytes_of_pages_that_failed_are_not_counted(cluster: str) -> None:
    pages = make_pages(100)
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        batch = CompressBatch(pages)
        engine.compress(batch)
        sources = [bytes(output) for output in batch.outputs()]
        sources[7] = b"bad"
        engine.decompress(DecompressBatch(sources))
        done = engine.statistics.decompress
    assert (done.pages, done.inline_pages) == (100, 0)
    assert (done.bytes_in, done.bytes_out) == (sum(map(len, sources)), 99 * 4096)


def marked(pages: np.ndarray, mark: bytes, index: int) -> np.ndarray:
    pages[index, :4] = np.frombuffer(mark, np.uint8)
    return pages


def test_a_worker_killed_in_the_middle_changes_no_result(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    codec = FaultyCodec(os.getpid(), str(flag))
    pages = marked(make_pages(5000), KILL_ONCE, 777)
    with (
        dask_cluster(2) as address,
        Engine(codec, backend=DaskBackend(address, local="never")) as engine,
    ):
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert not flag.exists(), "a worker was killed"
        done = engine.statistics.compress
        assert (done.batches, done.divided, done.inline_pages) == (1, 1, 0)
        assert not batch.errors.any()
        assert batch.outputs() == Plain(engine).compress(pages)
        back = DecompressBatch(batch.outputs())
        engine.decompress(back)
        np.testing.assert_array_equal(back.pages, pages)


def test_pages_that_kill_every_worker_are_eownerdead_and_the_engine_goes_on() -> None:
    codec = FaultyCodec(os.getpid())
    with (
        dask_cluster(1, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as address,
        Engine(codec, backend=DaskBackend(address, local="never")) as engine,
    ):
        batch = CompressBatch(marked(make_pages(16), KILL, 7))
        engine.compress(batch)
        assert batch.errors.tolist() == [-errno.EOWNERDEAD] * 16
        check_round_trip(engine, make_pages(100))


def test_a_scheduler_that_is_gone_and_workers_that_never_come_are_said_so() -> None:
    with dask_cluster(0) as address:
        with Engine("lz4", backend=DaskBackend(address, local="never", workerless_s=0.5)) as engine:
            assert not engine.wait_ready(0.1)
            with pytest.raises(ClusterLost, match=f"{address} has had no workers for 0.5 s"):
                engine.compress(CompressBatch(make_pages(100)))
        engine = Engine("lz4", backend=DaskBackend(address, local="never"))
        request = engine.submit(CompressBatch(make_pages(100)))
    with engine:
        for _ in range(2):
            with pytest.raises(ClusterLost, match=f"{address} is gone"):
                request.wait(SLACK_S)
            request = engine.submit(CompressBatch(make_pages(100)))
        with pytest.raises(ClusterLost):
            engine.compress(CompressBatch(make_pages(100)))


# Several requests in one task.


@pytest.fixture
def parcels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each task had pages of, in the order they were handed out."""
    sizes: list[int] = []
    pack = Parcel.pack

    def note(parcel: Parcel, codec: bytes) -> object:
        sizes.append(len(parcel.parts))
        return pack(parcel, codec)

    monkeypatch.setattr(Parcel, "pack", note)
    return sizes


def test_a_batch_alone_goes_at_once_and_many_go_together(cluster: str, parcels: list[int]) -> None:
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        pages = make_pages(16)
        engine.compress(CompressBatch(pages))
        assert parcels == [1]
        requests = [engine.submit(CompressBatch(pages)) for _ in range(200)]
        expected = Plain(engine).compress(pages)
        for request in requests:
            assert request.wait(SLACK_S).outputs() == expected
        assert sum(parcels) < 300, "few were divided"
        assert len(parcels) < 60
        done = engine.statistics.compress
        assert (done.batches, done.divided, done.pages) == (201, 201, 201 * 16)
        assert done.bytes_out == 201 * sum(map(len, expected))


class Submitted(NamedTuple):
    """A request, and what must become of it."""

    request: Request[Any]
    expected: Batch
    """The same batch, done by the sequential backend."""
    may_end: bool
    """Whether it has a deadline, or is cancelled."""


def submit_some(engine: Engine, plain: Engine, seed: int) -> list[Submitted]:
    """Submit batches of all kinds, some of which end early."""
    rng = random.Random(seed)
    submitted = []
    for number in range(30):
        pages = [bytes(page) for page in make_pages(rng.choice([2, 3, 16, 40, 700]), seed=number)]
        capacity = rng.choice([2 * 4096, 2 * 4096, 1500, 3])
        if rng.random() < 0.3:
            pages[rng.randrange(len(pages))] = b"of another size"
        twins: list[Batch] = [
            CompressBatch(pages, page_size=4096, capacity=capacity) for _ in range(2)
        ]
        if rng.random() < 0.5:
            packed = CompressBatch(make_pages(len(pages), seed=number))
            plain.compress(packed)
            srcs = [bytes(output) for output in packed.outputs()]
            for bad in (b"", b"bad", bytes(9000)):
                srcs[rng.randrange(len(srcs))] = bad
            twins = [DecompressBatch(srcs) for _ in range(2)]
        plain.run(twins[1])
        ends = rng.random() < 0.3
        deadline_s = rng.choice([0, 0.005, 0.02]) if ends and rng.random() < 0.6 else None
        request = engine.submit(twins[0], deadline_s=deadline_s)
        if ends and deadline_s is None:
            request.cancel()
        submitted.append(Submitted(request, twins[1], ends))
    return submitted


def outputs_of(batch: Batch) -> list[bytes]:
    if isinstance(batch, DecompressBatch):
        return [bytes(page) for page in batch.pages]
    assert isinstance(batch, CompressBatch)
    return [bytes(output) for output in batch.outputs()]


@pytest.mark.parametrize("local", ["never", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_travels_together_each_batch_has_what_the_sequential_backend_gives(
    cluster: str, seed: int, local: Literal["never", "auto"]
) -> None:
    ended: list[Submitted] = []

    def work(thread: int) -> None:
        ended.extend(submit_some(engine, plain, 10 * seed + thread))

    with (
        Engine("lz4", backend=DaskBackend(cluster, local=local)) as engine,
        Engine("lz4", backend="sequential") as plain,
    ):
        in_threads(3, work)
        for request, expected, may_end in ended:
            with contextlib.suppress(RequestCancelled):
                request.wait(SLACK_S)
            batch = request.batch
            done = ~np.isin(batch.errors, [-errno.ETIMEDOUT, -errno.ECANCELED])
            assert may_end or done.all()
            np.testing.assert_array_equal(batch.errors[done], expected.errors[done])
            np.testing.assert_array_equal(batch.dlens[done], expected.dlens[done])
            assert not batch.dlens[~done].any()
            results = zip(outputs_of(batch), outputs_of(expected), batch.errors, strict=True)
            assert all(output == other for output, other, error in results if not error)
        statistics = engine.statistics
    for operation, kind in ((CompressBatch, "compress"), (DecompressBatch, "decompress")):
        certain = [one.expected for one in ended if not one.may_end]
        least = sum(len(batch) for batch in certain if isinstance(batch, operation))
        assert getattr(statistics, kind).pages >= least


def test_a_worker_killed_with_pages_of_many_batches_changes_no_result(
    tmp_path: Path, parcels: list[int]
) -> None:
    flag = tmp_path / "flag"
    codec = FaultyCodec(os.getpid(), str(flag))
    with (
        dask_cluster(2) as address,
        Engine(codec, backend=DaskBackend(address, local="never")) as engine,
    ):
        engine.compress(CompressBatch(make_pages(4)))
        flag.touch()
        work = [make_pages(16, seed=seed) for seed in range(100)]
        marked(work[50], KILL_ONCE, 7)
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        plain = Plain(engine)
        for pages, request in zip(work, requests, strict=True):
            assert request.wait(SLACK_S).outputs() == plain.compress(pages)
        assert not flag.exists(), "a worker was killed"
        assert max(parcels) > 1
        assert engine.statistics.compress.pages == 4 + 100 * 16


def test_a_page_that_kills_every_worker_fails_its_own_batch_and_no_other() -> None:
    codec = FaultyCodec(os.getpid())
    with (
        dask_cluster(1, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as address,
        Engine(codec, backend=DaskBackend(address, local="never")) as engine,
    ):
        work = [make_pages(16, seed=seed) for seed in range(20)]
        marked(work[10], KILL, 7)
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        errors = [set(request.wait(SLACK_S).errors.tolist()) for request in requests]
        assert errors == [{0}] * 10 + [{-errno.EOWNERDEAD}] + [{0}] * 9


# Workers that cannot.


def test_a_worker_without_batchzip_is_named_when_the_engine_opens_and_when_it_joins_later(
    tmp_path: Path,
) -> None:
    with (
        scheduler_command() as address,
        Client(address, set_as_default=False) as client,
        Engine("lz4", backend=DaskBackend(client, local="never")) as engine,
        worker_command(address, "--name", "odd one", **other_environment("missing", tmp_path)),
    ):
        pid = client.submit(os.getpid).result(SLACK_S)
        command = r"pip install 'batchzip\[dask\]==.*(?s:.)*named odd one"
        with pytest.raises(BackendUnavailable, match=command):
            Engine("lz4", backend=DaskBackend(client))
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match=command):
                engine.compress(CompressBatch(make_pages(100)))
        assert client.submit(os.getpid, pure=False).result(SLACK_S) == pid, "it lives on"


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
            until = time.monotonic() + 3
            while backend._requests.pages:
                assert time.monotonic() < until, place
                time.sleep(0.001)
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
                with pytest.raises(BackendUnavailable, match="cannot do a share"):
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
