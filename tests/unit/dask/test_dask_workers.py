"""Workers whose data is a WorkerData, in this process: they come, go, and leave nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, Scheduler, Worker, wait
from distributed.core import Status
from distributed.http.worker.prometheus.core import WorkerMetricCollector
from distributed.spill import SpillBuffer
from distributed.system_monitor import SystemMonitor
from support.cluster.fixtures import offloading  # noqa: F401 - used by every test

from batchzip import PagesLost
from batchzip.dask import ShardedStore, WorkerData
from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MIB = 1 << 20
PART = MIB // 4
SMALL = (WorkerData, {"memory_limit": 4 * MIB, "live": 0.25, "compressed": 0.1})
"""Not the workers' own limit: this process has more, and they would not work."""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path) -> Iterator[None]:
    """Nothing is left in /tmp, and nobody spills but who is told to."""
    interval = "distributed.worker.memory.monitor-interval"
    with dask.config.set({"temporary-directory": str(tmp_path), interval: "1h"}):
        yield


@asynccontextmanager
async def a_cluster() -> AsyncIterator[tuple[Scheduler, Client]]:
    async with (
        Scheduler(dashboard_address="127.0.0.1:0", port=0, protocol="inproc") as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        yield scheduler, client


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, MIB, np.uint8)


def held() -> list[str]:
    """What of a store's there is in this process: threads, mappings, descriptors."""
    names = [thread.name for thread in threading.enumerate()]
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them
            lines.append(str(fd.readlink()))
    ours = re.compile(r"(/memfd:batchzip|/worker-).*\(deleted\)$")
    return [one for one in names if one.startswith("batchzip")] + list(filter(ours.search, lines))


def is_ours(worker: Worker) -> WorkerData:
    assert isinstance(worker.data, WorkerData)
    return worker.data


@pytest.mark.slow
def test_workers_that_end_leave_nothing_while_the_process_goes_on() -> None:
    async def run() -> None:
        async with a_cluster() as (scheduler, client):
            at_first = held()
            for _ in range(3):
                async with (
                    Worker(scheduler.address, nthreads=1, data=SMALL) as one,
                    Worker(scheduler.address, nthreads=1, data=SMALL) as other,
                ):
                    both = [one.address, other.address]
                    work = [
                        client.submit(noise, seed, workers=[both[seed % 2]], pure=False)
                        for seed in range(12)
                    ]
                    await wait(work)
                    assert is_ours(one).spilled_total.disk > 0
                    assert is_ours(other).spilled_total.disk > 0
                    assert held() != at_first
                    for seed, value in enumerate(await client.gather(work)):
                        np.testing.assert_array_equal(value, noise(seed))
                    await one.close()
                    assert len(one.data) == 0
                    assert held() != at_first, "the other one goes on"
                    await one.close()
                assert held() == at_first
                del work

    asyncio.run(run())


def test_workers_that_never_had_a_value_leave_nothing() -> None:
    async def run() -> None:
        async with a_cluster() as (scheduler, _):
            at_first = held()
            async with Worker(scheduler.address, data=WorkerData):
                pass  # started, and had nothing to do
            worker = Worker(scheduler.address, data=WorkerData)
            await worker.close()  # never started
            assert worker.status is Status.closed
            lost = Worker("inproc://nobody/1/1", death_timeout=0.01, data=WorkerData)
            with pytest.raises((asyncio.TimeoutError, RuntimeError)):
                await lost
            Worker(scheduler.address, data=WorkerData)  # neither started nor closed
            assert held() == at_first

    asyncio.run(run())


class Closes:
    """A value that has its worker closed as it is pickled."""

    worker: Worker | None = None
    closing: asyncio.Task[Any] | None = None

    def __reduce__(self) -> Any:
        if Closes.worker is not None and Closes.closing is None:
            Closes.closing = asyncio.ensure_future(Closes.worker.close())
        return Closes, ()


@pytest.mark.slow
def test_a_worker_that_is_closed_while_it_spills_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with a_cluster() as (scheduler, client):
            at_first = held()
            async with Worker(
                scheduler.address, nthreads=1, memory_limit="1 GiB", data=WorkerData
            ) as worker:
                await wait(client.map(lambda _: Closes(), range(3), pure=False))
                seconds = itertools.count()
                # Spilling lets others work after half a second.
                monkeypatch.setattr("distributed.worker_memory.monotonic", lambda: next(seconds))
                monkeypatch.setattr(worker.monitor, "get_process_memory", lambda: 1 << 30)
                monkeypatch.setattr(Closes, "worker", worker)
                monkeypatch.setattr(Closes, "closing", None)
                await worker.memory_manager.memory_monitor(worker)
                assert Closes.closing is not None
                await Closes.closing
                assert is_ours(worker).evict() == -1
            assert held() == at_first

    asyncio.run(run())


def test_a_value_that_comes_as_the_worker_ends_makes_nothing() -> None:
    async def run() -> None:
        async with a_cluster() as (scheduler, _):
            at_first = held()
            async with Worker(scheduler.address, data=(WorkerData, {"live": 0.0})) as worker:
                await worker.close()
                with pytest.raises(ValueError, match="is closed"):
                    is_ours(worker)["late"] = noise(1)
                assert held() == at_first

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limit", "options", "live"),
    [
        ("64 MiB", {}, 64 * MIB * 6 // 10),
        ("64 MiB", {"memory_limit": "32 MiB", "live": 0.5}, 16 * MIB),
        (0, {}, None),
        ("64 MiB", {"memory_limit": None}, None),
    ],
    ids=str,
)
def test_the_workers_own_limit_counts_unless_another_is_given(
    limit: Any, options: dict[str, Any], live: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemMonitor, "get_process_memory", lambda _: MIB)

    async def run() -> None:
        async with (
            a_cluster() as (scheduler, client),
            Worker(scheduler.address, memory_limit=limit, data=(WorkerData, options)) as worker,
        ):
            await client.scatter({"a": 1})
            data = is_ours(worker)
            assert data.n == (live or sys.maxsize)
            assert data.evict() > 0
            assert await client.gather(await client.scatter({"b": 2})) == {"b": 2}

    asyncio.run(run())


def test_the_figures_dask_shows_of_a_worker_count_its_values() -> None:
    pytest.importorskip("prometheus_client")

    async def run() -> None:
        async with (
            a_cluster() as (scheduler, client),
            Worker(
                scheduler.address,
                nthreads=1,
                data=(WorkerData, {"memory_limit": 4 * MIB, "compressed": 0.0}),
            ) as worker,
        ):
            work = client.map(noise, range(8), pure=False)
            await wait(work)
            data = is_ours(worker)
            await worker.heartbeat()
            state = scheduler.workers[worker.address]
            assert state.metrics["spilled_bytes"] == data.spilled_total._asdict()
            assert state.memory.spilled == data.spilled_total.disk > 0
            assert state.memory.managed == sum(map(sizeof, data.memory.values()))
            told = {
                (sample.name, *sample.labels.values()): sample.value
                for family in WorkerMetricCollector(worker).collect()
                for sample in family.samples
            }
            assert told["dask_worker_tasks", "memory"] == len(data.memory)
            assert told["dask_worker_tasks", "disk"] == len(data.disk)
            assert told["dask_worker_memory_bytes", "spilled"] == data.spilled_total.disk
            assert told["dask_worker_spill_count_total", "disk-write"] >= len(data.disk)
            assert told["dask_worker_spill_time_seconds_total", "compress"] > 0
            assert set(worker._to_dict()["data"]) == set(data)

    asyncio.run(run())


@pytest.mark.slow
def test_workers_of_a_local_cluster_that_are_threads_leave_nothing() -> None:
    at_first = held()
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            data=SMALL,
        ) as cluster,
        Client(cluster) as client,
    ):
        workers = list(cluster.workers.values())
        chunks = client.map(noise, range(16), pure=False)
        sums = client.gather(client.map(np.sum, chunks))
        assert sums == [noise(seed).sum() for seed in range(16)]
        assert any(is_ours(worker).spilled_total.disk > 0 for worker in workers)
        cluster.scale(1)
        client.run_on_scheduler(_one_worker)
        assert client.gather(client.map(np.sum, chunks)) == sums
    assert held() == at_first


@pytest.mark.slow
def test_a_shard_ends_with_its_worker_though_its_store_does_not() -> None:
    at_first = held()
    with (
        LocalCluster(
            n_workers=1, processes=False, dashboard_address="127.0.0.1:0", protocol="inproc"
        ) as cluster,
        Client(cluster) as client,
    ):
        store = ShardedStore(client)
        store.store(0, np.ones((4, store.page_size), np.uint8))
        assert held() != at_first
        (worker,) = cluster.workers.values()
        client.sync(worker.close)
        assert held() == at_first
        with pytest.raises(PagesLost):
            store.load(0)
    store.close()


async def _one_worker(dask_scheduler: Scheduler) -> None:
    while len(dask_scheduler.workers) > 1:  # noqa: ASYNC110 - Dask has no event for it
        await asyncio.sleep(0.01)


def test_data_that_a_worker_is_given_ends_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        data = WorkerData(tmp_path, memory_limit=MIB)
        async with (
            a_cluster() as (scheduler, client),
            Worker(scheduler.address, nthreads=1, data=data),
        ):
            work = client.map(noise, range(3), pure=False)
            await wait(work)
            assert len(data.disk) == 3
        assert len(data) == 0

    with LeakCheck():
        asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": {"algorithm": "nix"}}, "UnknownAlgorithm: unknown algorithm 'nix'"),
        ({"much": 1}, "unexpected keyword argument 'much'"),
        ([1], "batchzip.worker-data must map names to values, not be [1]"),
    ],
    ids=str,
)
def test_a_preload_that_fails_leaves_a_worker_dasks_own_data(
    settings: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with a_cluster() as (scheduler, client):
            with dask.config.set({"batchzip.worker-data": settings}):
                async with Worker(scheduler.address, preload=["batchzip.dask.preload"]) as worker:
                    assert type(worker.data) is SpillBuffer
                    assert await client.submit(sum, [1, 2]) == 3

    with caplog.at_level("ERROR", "distributed.worker.memory"):
        asyncio.run(run())
    assert "WorkerData cannot be used; this worker spills with Dask's own buffer" in caplog.text
    assert said in caplog.text


def test_a_preload_replaces_a_workers_data_wherever_dask_has_it() -> None:
    async def run() -> None:
        at_first = held()
        async with a_cluster() as (scheduler, client):
            settings = {"live": 0.5, "max-disk-bytes": 10**9, "engine": {"algorithm": "zstd"}}
            with dask.config.set({"batchzip.worker-data": settings}):
                async with Worker(
                    scheduler.address, preload=["batchzip.dask.preload"], memory_limit="1 GiB"
                ) as worker:
                    data = is_ours(worker)
                    assert worker.state.data is worker.memory_manager.data is data
                    value = await client.submit(noise, 1, key="a")
                    assert list(data) == ["a"]
                    assert data.evict() >= MIB
                    np.testing.assert_array_equal(
                        await client.gather(client.submit(abs, value)), value
                    )
                    assert held() != at_first
            assert held() == at_first

    asyncio.run(run())


@pytest.mark.slow
def test_a_process_that_is_too_large_makes_the_pool_smaller_then_lets_it_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = 100 * PART

    async def run() -> None:
        async with (
            a_cluster() as (scheduler, client),
            Worker(scheduler.address, memory_limit=200 * PART, data=WorkerData) as worker,
        ):
            data = is_ours(worker)

            def process_memory(_: object) -> int:
                return int(others + data.fast.total_weight + data.counters.pool_total_size)

            monkeypatch.setattr(SystemMonitor, "get_process_memory", process_memory)
            monkeypatch.setattr("batchzip.dask.memory_limits._ASKED_S", -1.0)
            work = client.map(counts, range(64), pure=False)
            await wait(work)
            assert data.disk, "with the others there is room for 40 parts of 64"
            assert process_memory(None) <= 140 * PART
            held = data.counters.pool_total_size
            assert 0 < held <= 10 * PART, "half of what the others leave of 120 parts"
            assert data.spilled_total.disk == 0

            nonlocal others
            others = 130 * PART  # then nothing is left, and Dask has values evicted
            while data.fast and data.evict() > 0:
                pass
            assert len(data.fast) == 0
            assert data.counters.pool_total_size <= PART
            assert data.spilled_total.disk > 2 * PART
            assert not data.fast, "nothing makes room any more, and Dask says so"

            others = 50 * PART
            sums = await client.gather(client.map(np.sum, work, pure=False))
            assert sums == [counts(seed).sum() for seed in range(64)]
            del work
            work = client.map(counts, range(128), pure=False)
            await wait(work)
            assert data.counters.pool_total_size > 2 * PART, "it may grow again"

    asyncio.run(run())


def counts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, PART // 8)
