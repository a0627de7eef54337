"""Limits of a shard: whatever is stored, its worker goes on; what has no room spills, or is refused."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest
from dask_cluster import offload_thread
from dask_commands import scheduler_command, worker_command
from distributed import Client, Scheduler, Worker, get_worker
from distributed.system import MEMORY_LIMIT

from batchzip import BadArgument, Engine, StoreRejected, SwapStore
from batchzip.dask.shard_limits import store_options
from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
PAGES = 51_200  # 200 MiB
MEMORY = "distributed.worker.memory"


@pytest.fixture(scope="module", autouse=True)
def offloading() -> Iterator[None]:
    with offload_thread():
        yield


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    with LeakCheck(ignore="socket:"):
        yield


def fill(*, spill: bool) -> dict[str, Any]:
    """Store pages that hardly compress in this worker, until they are in or one is refused."""
    worker = get_worker()
    options = store_options(worker, 0.4, spill=spill)
    rng = np.random.default_rng(1)
    peak, stored, reason = 0, 0, ""
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, **options) as store,
    ):
        for first in range(0, PAGES, 256):
            pages = rng.integers(0, 256, (256, 4096), np.uint8)
            pages[:, :512] = 0
            try:
                store.store(first, pages)
            except StoreRejected as rejected:
                reason = rejected.reason
                break
            stored += 256
            peak = max(peak, worker.monitor.get_process_memory())
        counters = store.counters
        for index in range(0, stored, 1009):
            store.load(index)
    return {
        "pid": os.getpid(),
        "limit": options["max_pool_bytes"],
        "peak": peak,
        "stored": stored,
        "reason": reason,
        "in pool": counters.pool_total_size,
        "in file": counters.backing_file_size,
        "limit hit": counters.pool_limit_hit,
    }


@pytest.mark.slow
def test_a_full_shard_neither_pauses_nor_ends_its_worker() -> None:
    with (
        scheduler_command() as address,
        worker_command(address, "--memory-limit", "256MiB"),
        Client(address, set_as_default=False) as client,
    ):
        spilt = client.submit(fill, spill=True).result()
        assert spilt["stored"] == PAGES
        assert spilt["in file"] > 100 * MIB
        refused = client.submit(fill, spill=False).result()
        assert refused["reason"] == "pool_limit_hit"
        assert refused["limit hit"] == 1
        assert 0 < refused["stored"] < PAGES
        assert refused["in file"] == 0
        for one in (spilt, refused):
            assert one["in pool"] <= one["limit"]
            assert one["limit"] > 32 * MIB, "a fair part"
            assert one["peak"] < 0.8 * 256 * MIB, "Dask would pause the worker"
        assert spilt["pid"] == refused["pid"] == client.submit(os.getpid).result()
        (lines,) = client.get_worker_logs().values()
        assert not [line for _, line in lines if "% memory usage" in line]


def with_worker(limit: int, use: Callable[[Worker], object]) -> None:
    async def run() -> None:
        async with (
            Scheduler(dashboard_address="127.0.0.1:0", port=0, protocol="inproc") as scheduler,
            Worker(scheduler.address, nthreads=1, memory_limit=limit) as worker,
        ):
            use(worker)

    asyncio.run(run())


def test_the_fraction_counts_where_there_is_room() -> None:
    def use(worker: Worker) -> None:
        assert store_options(worker, 0.25, spill=False) == {"max_pool_bytes": 1 << 30}
        assert store_options(worker, 0.0, spill=True) == {
            "max_pool_bytes": 0,
            "backing": worker.local_directory,
        }
        with pytest.raises(BadArgument, match="memory_fraction"):
            store_options(worker, 1.5, spill=True)

    with_worker(4 << 30, use)


def test_other_shards_of_the_process_may_become_full_too() -> None:
    def use(worker: Worker) -> None:
        other: Any = SimpleNamespace(
            max_pool_bytes=MIB, counters=SimpleNamespace(pool_total_size=MIB)
        )
        free = store_options(worker, 1.0, spill=False, others=[other])["max_pool_bytes"]
        other.max_pool_bytes += 300 * MIB
        less = store_options(worker, 1.0, spill=False, others=[other])["max_pool_bytes"]
        assert free - less == pytest.approx(300 * MIB, abs=32 * MIB)

    with_worker(4 << 30, use)


def test_a_worker_without_room_has_a_small_pool() -> None:
    def use(worker: Worker) -> None:
        assert store_options(worker, 0.4, spill=True)["max_pool_bytes"] == int(0.02 * 64 * MIB)
        with dask.config.set(
            {f"{MEMORY}.{name}": False for name in ("spill", "pause", "terminate")}
        ):
            assert store_options(worker, 0.4, spill=True)["max_pool_bytes"] == int(0.4 * 64 * MIB)

    with_worker(64 * MIB, use)


def test_a_worker_without_limit_has_its_share_of_the_machine() -> None:
    def use(worker: Worker) -> None:
        most = store_options(worker, 0.5, spill=False)["max_pool_bytes"]
        assert 0 < most <= MEMORY_LIMIT // 2

    with_worker(0, use)
