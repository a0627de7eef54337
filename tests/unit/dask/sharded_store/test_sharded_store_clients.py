"""A sharded store is open in every task, process and event loop that it is sent to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import Any

import numpy as np
import pytest
from distributed import Client

from batchzip import (
    BadArgument,
    ClusterLost,
)
from batchzip.dask import ShardedStore
from batchzip.testing.plain import SLACK_S, make_pages

pytestmark = pytest.mark.slow


PAGE = 4096


# Other processes, tasks and event loops.


def test_a_store_is_open_in_every_task_and_process_that_it_is_sent_to(client: Client) -> None:
    pages = make_pages(3)

    def add(store: ShardedStore, index: int) -> int:
        with store:
            store.store(index, pages[index % 3])
            return len(store)

    with ShardedStore(client, engine={"algorithm": "lz4"}, timeout_s=SLACK_S) as store:
        store.store(0, pages)
        assert max(client.gather(client.map(add, [store] * 4, range(3, 7), pure=False))) == 7
        assert store.load(5) == pages[2].tobytes()
        other = ShardedStore.attach(store.address)
        with other:
            assert other.page_size == PAGE
            np.testing.assert_array_equal(other.load_many([0, 1, 2]), pages)
            other.store(0, pages[1])
        assert store.load(0) == pages[1].tobytes(), "it lives while somebody has it open"


def test_it_outlives_the_client_that_made_it_and_ends_with_its_last(client: Client) -> None:
    first = ShardedStore(client)
    first.store(0, make_pages(2))
    with ShardedStore.attach(first.address, client) as second:
        first.close()
        assert second.load(1) == make_pages(2)[1].tobytes()
    with pytest.raises(ClusterLost):
        ShardedStore.attach(second_address(second), client)


def second_address(store: ShardedStore) -> str:
    scheduler: Any = store._client.scheduler
    return f"{scheduler.address}/batchzip/{store._session.name}"


def test_an_asyncio_program_has_thousands_of_calls_under_way(client: Client) -> None:
    pages = make_pages(2000)
    scheduler: Any = client.scheduler

    async def program() -> None:
        async with (
            Client(scheduler.address, asynchronous=True, set_as_default=False) as own,
            await ShardedStore.acreate(own, timeout_s=SLACK_S) as store,
        ):
            await asyncio.gather(*(store.astore(at, page) for at, page in enumerate(pages)))
            found = await asyncio.gather(*(store.aload(at) for at in range(2000)))
            assert found == [page.tobytes() for page in pages]
            assert await store.alen() == 2000
            assert sum(shard.page_stores for shard in await store.ashards()) == 2000
            assert await store.ainvalidate(0, 10) == 10
            assert not await store.acontains(3)
            assert await store.acontains(11)
            np.testing.assert_array_equal(await store.aload_many([11, 12]), pages[11:13])
            assert await store.arecover() == []
            assert await store.arebalance() == 0
            with pytest.raises(BadArgument, match="await aload"):
                store.load(11)
            async with await ShardedStore.aattach(store.address, own) as other:
                assert await other.aload(11) == pages[11].tobytes()

    asyncio.run(program())


def test_another_event_loop_than_the_clients_may_await_it(store: ShardedStore) -> None:
    pages = make_pages(50)

    async def program() -> None:
        await asyncio.gather(*(store.astore(at, page) for at, page in enumerate(pages)))
        assert await store.aload(49) == pages[49].tobytes()

    asyncio.run(program())
    assert len(store) == 50


@pytest.mark.parametrize("own_loop", [True, False])
def test_a_cancelled_store_undoes_nothing_that_is_stored_after_it(
    client: Client, store: ShardedStore, own_loop: bool
) -> None:
    pages = make_pages(2)
    scheduler: Any = client.scheduler

    async def use(used: ShardedStore) -> None:
        for turn in range(20):
            storing = asyncio.ensure_future(used.astore(turn, pages[0]))
            await asyncio.sleep(turn * 1e-4)
            storing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await storing
            await used.astore(turn, pages[1])
            assert await used.aload(turn) == pages[1].tobytes()

    async def program() -> None:
        if own_loop:
            async with (
                Client(scheduler.address, asynchronous=True, set_as_default=False) as own,
                await ShardedStore.aattach(store.address, own) as used,
            ):
                await use(used)
        else:
            await use(store)

    asyncio.run(program())
    assert len(store) == 20


def test_an_interrupted_store_leaves_nothing(store: ShardedStore) -> None:
    """The signal comes while the pages are under way."""
    pages = make_pages(4096)
    main = threading.main_thread().ident
    assert main is not None
    handler = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        for delay_s in (0.0, 0.003, 0.01):
            timer = threading.Timer(delay_s, signal.pthread_kill, (main, signal.SIGUSR1))
            done = False
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - wherever it comes
                timer.start()
                store.store(7, pages)
                done = True
                threading.Event().wait(60)
            timer.join()
            assert len(store) == (4096 if done else 0)
            store.invalidate(0, 1 << 20)
    finally:
        signal.signal(signal.SIGUSR1, handler)
