"""Limits of a shard: its worker goes on; what has no room is spilled or refused."""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest
from distributed import Client, Scheduler, Worker
from distributed.system import MEMORY_LIMIT
from support.cluster.commands import scheduler_command, worker_command
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test

from batchzip import BadArgument, StoreRejected
from batchzip.dask import ShardedStore
from batchzip.dask.shard_limits import store_options

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
PAGES = 51_200  # 200 MiB
FOLIO = 2048
MEMORY = "distributed.worker.memory"


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.slow
@pytest.mark.parametrize("spill", [True, False])
def test_a_full_shard_neither_pauses_nor_ends_its_worker(spill: bool) -> None:
    pages = np.random.default_rng(1).integers(0, 256, (PAGES, 4096), np.uint8)
    pages[:, :512] = 0
    with (
        scheduler_command() as address,
        worker_command(address, "--memory-limit", "256MiB"),
        Client(address, set_as_default=False) as client,
        ShardedStore(client, spill=spill) as store,
    ):
        (pid,) = client.run(os.getpid).values()
        stored = 0
        with suppress(StoreRejected) if not spill else nullcontext():
            for first in range(0, PAGES, FOLIO):
                store.store(first, pages[first : first + FOLIO])
                stored += FOLIO
        some = np.arange(0, stored, 11)
        np.testing.assert_array_equal(store.load_many(some), pages[some])
        (shard,) = store.shards
        assert shard.pid == pid
        assert shard.pages == stored
        assert shard.counters is not None
        assert shard.max_pool_bytes is not None
        assert shard.max_pool_bytes > 32 * MIB, "a fair part"
        assert shard.counters.pool_total_size <= shard.max_pool_bytes
        assert shard.counters.pool_limit_hit > 0
        if spill:
            assert stored == PAGES
            assert shard.counters.backing_file_size > 64 * MIB
        else:
            assert 0 < stored < PAGES
            assert shard.counters.backing_file_size == 0
        assert peak_bytes(pid) < 0.8 * 256 * MIB, "Dask would pause the worker"
        (lines,) = client.get_worker_logs().values()
        assert not [line for _, line in lines if "% memory usage" in line]
        assert client.submit(os.getpid).result() == pid


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
