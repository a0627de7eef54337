"""aload: the event loop restores a small page that is in memory; threads do what takes longer."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from support.forked import in_forked_child
from support.store_pages import noise, text

from batchzip import ClosedError, Engine, ForkedProcess, SwapStore

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 32 << 10


def new_threads(store: SwapStore, index: int) -> set[str]:
    """Load a page in an event loop. Return the names of the threads that this started."""
    before = set(threading.enumerate())
    assert asyncio.run(store.aload(index)) == store.load(index)
    return {thread.name for thread in set(threading.enumerate()) - before}


@pytest.mark.parametrize(("page_size", "count"), [(4 << 10, 0), (16 << 10, 0), (LARGE, 1)])
def test_the_loop_restores_pages_of_up_to_16_kib(page_size: int, count: int) -> None:
    with (
        Engine("lz4", backend="sequential", page_size=page_size) as engine,
        SwapStore(engine) as store,
    ):
        store.store(0, text(0, page_size))
        assert len(new_threads(store, 0)) == count


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 1), (2, 0)])
def test_a_thread_reads_a_page_in_the_file(
    engine: Engine, tmp_path: Path, index: int, count: int
) -> None:
    with SwapStore(engine, backing=tmp_path) as store:
        store.store(0, [noise(0), noise(1), noise(2)])
        store.writeback([0, 1])
        assert len(new_threads(store, index)) == count


def test_a_task_that_only_loads_lets_others_run(store: SwapStore) -> None:
    store.store(0, text(0))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def load() -> None:
        counting = asyncio.create_task(count())
        for _ in range(20):
            await store.aload(0)
        counting.cancel()

    asyncio.run(load())
    assert turns >= 20


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [4 << 10, LARGE])
def test_it_is_refused_after_close_and_in_a_forked_child(page_size: int) -> None:
    with Engine("lz4", backend="sequential", page_size=page_size) as engine:
        with SwapStore(engine) as store:
            store.store(0, text(0, page_size))

            def use() -> None:
                for call in (store.aload(0), store.aload_many([0]), store.astore(0, b"")):
                    with pytest.raises(ForkedProcess):
                        asyncio.run(call)

            in_forked_child(use, timeout_s=20)
        for call in (store.aload(0), store.aload_many([0]), store.astore(0, b"")):
            with pytest.raises(ClosedError):
                asyncio.run(call)
