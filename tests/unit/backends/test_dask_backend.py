"""The dask backend keeps the contract on a cluster over TCP, and when parts of the cluster die."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import dask
import numpy as np
import pytest
from distributed import Client
from distributed.protocol import serialize
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test
from support.cluster.process import SCHEDULER_VARIABLE, dask_cluster
from support.codecs.faulty import KILL, KILL_ONCE, FaultyCodec
from support.codecs.slow import SlowCodec

from batchzip import (
    BackendUnavailable,
    BadArgument,
    ClusterLost,
    CompressBatch,
    DecompressBatch,
    Engine,
    MissingExtra,
)
from batchzip.codecs import make_codec
from batchzip.request import Request
from batchzip.testing import BackendContract, LeakCheck
from batchzip.testing.plain import (
    SLACK_S,
    Plain,
    check_round_trip,
    make_pages,
)
from batchzip_dask import DaskBackend
from batchzip_dask.flight import Flight, Parcel
from batchzip_dask.task_pages import as_task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchzip import Backend


pytestmark = pytest.mark.slow


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
        return DaskBackend(os.environ[SCHEDULER_VARIABLE], local="never")


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
        return DaskBackend(os.environ[SCHEDULER_VARIABLE])


def test_the_clients_of_others_are_used_and_left_open(cluster: str) -> None:
    with Client(cluster, set_as_default=False) as client:
        for _ in range(2):
            with Engine("lz4", backend=DaskBackend(client, local="never")) as engine:
                check_round_trip(engine, make_pages(100))
        assert client.submit(sum, [1, 2]).result(SLACK_S) == 3


def test_the_backend_named_dask_takes_the_current_cluster(cluster: str) -> None:
    with dask.config.set({"scheduler-address": cluster}), Engine("lz4", backend="dask") as engine:
        check_round_trip(engine, make_pages(100))
    with Client(cluster), Engine("lz4", backend="dask") as engine:
        check_round_trip(engine, make_pages(100))


def test_the_dask_backend_refuses_missing_clusters_and_bad_arguments() -> None:
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


def test_pages_not_done_by_the_deadline_time_out_and_the_rest_are_right(cluster: str) -> None:
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
