"""ShardedStore called from threads that are not its client's event loop; without a cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import pickle
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.cluster.plain import PlainClient, PlainCluster, a_cluster

from batchzip import (
    BadArgument,
    ClosedError,
    ClusterLost,
    PageNotStored,
)
from batchzip.dask import ShardedStore, sharded_store
from batchzip.store.arguments import MAX_INDEX
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 512
PAGES = make_pages(40)[:, :PAGE].copy()
ENGINE = {"algorithm": "lz4", "page_size": PAGE}
_LIMIT_S = 30.0


class Cluster:
    """A cluster whose event loop runs in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cluster: PlainCluster) -> None:
        self.loop = loop
        self.cluster = cluster

    def do(self, what: Callable[[], Any]) -> Any:
        """Call something in the event loop."""

        async def call() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(_LIMIT_S)

    def client(self, *, asynchronous: bool = False) -> PlainClient:
        made: PlainClient = self.do(lambda: PlainClient(self.cluster, asynchronous=asynchronous))
        return made

    def store(self, **options: Any) -> ShardedStore:
        options = {"engine": ENGINE, "spill": False, "timeout_s": 5.0, **options}
        return ShardedStore(self.client(), **options)

    @property
    def stores(self) -> int:
        """Return how many stores the directory has."""
        directory: Any = self.cluster.directory
        return int(self.do(lambda: len(directory.stores)))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with in_a_thread() as made:
        yield made


@contextmanager
def in_a_thread() -> Iterator[Cluster]:
    made: concurrent.futures.Future[Cluster] = concurrent.futures.Future()

    async def run() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with a_cluster(2) as cluster:
            ends.append(lambda: loop.call_soon_threadsafe(end.set))
            made.set_result(Cluster(loop, cluster))
            await end.wait()

    ends: list[Callable[[], object]] = []
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield made.result(_LIMIT_S)
    finally:
        ends[0]()
        thread.join(_LIMIT_S)


def test_calls_from_a_thread_do_what_their_twins_for_asyncio_do(cluster: Cluster) -> None:
    with cluster.store() as store:
        assert store.page_size == PAGE
        assert bool(store)
        assert len(store) == 0
        store.store(5, PAGES)
        store.store(100, [bytes(page) for page in PAGES[:3]])
        assert len(store) == 43
        assert store.load(6) == PAGES[1].tobytes()
        out = bytearray(PAGE)
        assert store.load(7, out) is out
        assert out == PAGES[2].tobytes()
        np.testing.assert_array_equal(store.load_many([44, 5, 102]), PAGES[[39, 0, 2]])
        many = np.zeros((2, PAGE), np.uint8)
        assert store.load_many(np.array([5, 6]), many) is not None
        np.testing.assert_array_equal(many, PAGES[:2])
        assert store.load_many([]).shape == (0, PAGE)
        assert 5 in store
        assert 4 not in store
        assert -1 not in store
        assert MAX_INDEX + 1 not in store
        assert store.invalidate(5) == 1
        assert store.invalidate(5, 3) == 2
        assert store.counters.stored_pages == 40
        assert sum(shard.pages for shard in store.shards) == 40
        assert store.recover() == []
        assert store.rebalance() == 0
        assert store._survey().page_size == PAGE
        for index in (5, -1, MAX_INDEX + 1):
            with pytest.raises(PageNotStored, match=str(index)):
                store.load(index)
        with pytest.raises(PageNotStored, match="-7"):
            store.load_many([100, -7, -8])
        with pytest.raises(PageNotStored, match="5"):
            store.load_many([100, 5])
    uses: list[Callable[[], Any]] = [
        lambda: store.page_size,
        lambda: store.store(0, PAGES),
        lambda: store.load(6),
        lambda: store.load_many([6]),
        lambda: store.load_many([]),
        lambda: store.invalidate(6),
        lambda: 6 in store,
        lambda: len(store),
        lambda: store.counters,
        lambda: store.shards,
        store.recover,
        store.rebalance,
        lambda: pickle.dumps(store),
    ]
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    assert cluster.stores == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_twins_for_asyncio_may_be_awaited_in_any_event_loop(
    cluster: Cluster, asynchronous: bool
) -> None:
    async def run() -> None:
        if asynchronous:
            client = cluster.client(asynchronous=True)
            store = await ShardedStore.acreate(client, engine=ENGINE, spill=False)
        else:
            store = cluster.store()
        async with store:
            await store.astore(0, PAGES)
            assert await store.aload(1) == PAGES[1].tobytes()
            out = bytearray(PAGE)
            assert await store.aload(2, out) is out
            assert out == PAGES[2].tobytes()
            np.testing.assert_array_equal(await store.aload_many([3, 1]), PAGES[[3, 1]])
            assert (await store.aload_many([])).shape == (0, PAGE)
            assert await store.acontains(0)
            assert not await store.acontains(-1)
            assert await store.alen() == len(PAGES)
            assert await store.ainvalidate(0) == 1
            assert len(await store.ashards()) == 2
            assert await store.arecover() == []
            assert await store.arebalance() == 0
            with pytest.raises(PageNotStored):
                await store.aload(0)
            with pytest.raises(PageNotStored):
                await store.aload(-1)
            slow = list(cluster.cluster.workers.values())
            for worker in slow:
                worker.deaf_to.add("put")
            storing = asyncio.ensure_future(store.astore(0, PAGES[:1]))
            while not any("put" in worker.asked[-1:] for worker in slow):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            storing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await storing
            for worker in slow:
                worker.deaf_to.clear()
            assert not await store.acontains(0), "the work has ended in the other event loop, too"
        await store.aclose()
        for late in (
            store.astore(0, PAGES),
            store.aload(1),
            store.aload_many([1]),
            store.ainvalidate(1),
            store.acontains(1),
            store.alen(),
            store.ashards(),
            store.arecover(),
            store.arebalance(),
        ):
            with pytest.raises(ClosedError):
                await late

    asyncio.run(run())
    assert cluster.stores == 0


def test_the_clients_own_event_loop_must_not_wait(cluster: Cluster) -> None:
    with cluster.store() as store:
        store.store(0, PAGES)
        with pytest.raises(BadArgument, match="own event loop, which must not wait: await aload"):
            cluster.do(lambda: store.load(0))
        assert store.load(0) == PAGES[0].tobytes()


def test_a_copy_attaches_when_it_is_first_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[Any] = []

    def connect(address: str, timeout_s: float) -> PlainClient:
        assert (address, timeout_s) == ("plain://scheduler", 5.0)
        client = cluster.client()
        clients.append(client)
        return client

    async def aconnect(address: str, timeout_s: float) -> PlainClient:
        return connect(address, timeout_s)

    monkeypatch.setattr(sharded_store, "connect", connect)
    monkeypatch.setattr(sharded_store, "aconnect", aconnect)
    with cluster.store() as store:
        store.store(0, PAGES)
        assert store.address == f"plain://scheduler/batchzip/{store._session.name}"
        copy = pickle.loads(pickle.dumps(store))
        again = pickle.loads(pickle.dumps(copy))
        unused = pickle.loads(pickle.dumps(copy))
        assert copy.address == again.address == store.address
        assert not clients
        assert copy.load(3) == PAGES[3].tobytes()
        assert again.page_size == PAGE
        assert len(clients) == 2
        unused.close()
        unused.close()
        again.close()
        assert [client.status for client in clients] == ["running", "closed"]

        async def use() -> None:
            async with pickle.loads(pickle.dumps(copy)) as third:
                assert await third.aload(4) == PAGES[4].tobytes()
            assert clients[2].status == "closed", "it was made for this store"

        asyncio.run(use())
    assert cluster.stores == 1
    assert copy.load(3) == PAGES[3].tobytes(), "the last one to close it ends it"
    given = cluster.client()
    with ShardedStore.attach(copy.address, given, timeout_s=5.0) as attached:
        assert attached.load(3) == PAGES[3].tobytes()
    assert given.status == "running", "whoever made it closes it"
    address = copy.address
    copy.close()
    assert cluster.stores == 0
    with pytest.raises(ClusterLost, match="its last client closed it"):
        ShardedStore.attach(address, timeout_s=5.0)
    assert clients[-1].status == "closed"
    for odd in ("", "tcp://1", "/batchzip/name", "tcp://1/batchzip/"):
        with pytest.raises(BadArgument, match="must be that of a ShardedStore, not"):
            ShardedStore.attach(odd)


@pytest.mark.slow
def test_a_store_that_is_collected_is_detached(cluster: Cluster) -> None:
    store = cluster.store()
    store.store(0, PAGES)
    assert cluster.stores == 1
    del store
    gc.collect()
    limit = threading.Event()
    for _ in range(1000):
        if cluster.stores == 0:
            break
        limit.wait(0.005)
    assert cluster.stores == 0


def test_a_client_that_is_closed_ends_every_call(cluster: Cluster) -> None:
    store = cluster.store()
    store.store(0, PAGES)
    client: Any = store._client
    client.status = "closed"
    with pytest.raises(ClusterLost, match="the client is closed"):
        store.load(0)
    with pytest.raises(ClusterLost, match="the client is closed"):
        asyncio.run(store.aload(0))
    store.close()
    for status in ("closed", "connecting"):
        other = cluster.client()
        other.status = status
        with pytest.raises(ClusterLost, match=f"not connected to a scheduler .it is {status}"):
            ShardedStore(other)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"workers": []}, "workers must have at least one address"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 9}, "replicas"),
        ({"memory_fraction": 1.5}, "memory_fraction"),
        ({"timeout_s": 0.0001}, "timeout_s"),
    ],
)
def test_wrong_arguments_are_named(cluster: Cluster, options: Any, match: str) -> None:
    with pytest.raises(BadArgument, match=match):
        cluster.store(**options)
    with pytest.raises(BadArgument, match=r"must be a synchronous distributed\.Client, not"):
        ShardedStore("tcp://1")  # type: ignore[arg-type] # that is the question
    with pytest.raises(BadArgument, match="must be a synchronous"):
        ShardedStore(cluster.client(asynchronous=True))
    with pytest.raises(BadArgument, match="must be an asynchronous Client, not"):
        asyncio.run(ShardedStore.acreate(cluster.client()))


def test_options_reach_the_shards(cluster: Cluster) -> None:
    options: dict[str, Any] = {"store": {"max_pool_bytes": 1 << 20}, "timeout_s": 7.0}
    with cluster.store(replicas=2, memory_fraction=0.25, **options) as store:
        for worker in cluster.cluster.workers.values():
            (shard,) = worker.service.shards.values()
            assert shard.pages.max_pool_bytes == 1 << 20
            assert shard.members.replicas == 2
            assert shard._timeout_s == 7.0
        assert store._session.timeout_s == 7.0
