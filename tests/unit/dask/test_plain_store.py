"""ShardedStore on stand-ins of scheduler and workers: what it keeps, and what is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.cluster.plain import PlainClient, PlainCluster, on_a_cluster, until

from batchzip import (
    BackendUnavailable,
    BadArgument,
    BatchzipError,
    ClosedError,
    ClusterLost,
    PageNotStored,
    PagesLost,
    StoreRejected,
)
from batchzip.dask import ShardedStore
from batchzip.dask.record import STRIPE
from batchzip.dask.survey import ask_store
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = 512
PAGES = make_pages(4 * STRIPE)[:, :PAGE].copy()


@asynccontextmanager
async def opened(cluster: PlainCluster, **options: Any) -> AsyncIterator[ShardedStore]:
    options.setdefault("timeout_s", 10)
    engine = {"algorithm": "lz4", "page_size": PAGE}
    client = PlainClient(cluster)
    async with await ShardedStore.acreate(client, engine=engine, spill=False, **options) as store:
        yield store


MANY = 40
"""Stripes of `fill`. Each of a few shards has some of them, whatever their names are."""


async def fill(store: ShardedStore) -> int:
    """Store ten pages in each of many stripes. Return their number."""
    for stripe in range(MANY):
        await store.astore(stripe * STRIPE, PAGES[:10])
    return 10 * MANY


def owners(store: ShardedStore, stripe: int) -> list[str]:
    return [owner.address for owner in store._session._members.owners(stripe)]


def held(cluster: PlainCluster) -> int:
    """Return the pages in all shards, copies included."""
    services = [worker.service for worker in cluster.workers.values()]
    return sum(len(shard.pages) for service in services for shard in service.shards.values())


def stripes_of(store: ShardedStore, address: str, count: int) -> list[int]:
    """Return the first stripes whose primary is at an address."""
    return [at for at in range(200) if owners(store, at)[0] == address][:count]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
@on_a_cluster(3)
async def test_a_store_is_a_dict_of_pages_whoever_uses_it(
    cluster: PlainCluster, replicas: int
) -> None:
    rng = random.Random(replicas)
    model: dict[int, bytes] = {}
    async with (
        opened(cluster, replicas=replicas) as one,
        await ShardedStore.aattach(one.address, PlainClient(cluster), timeout_s=10) as other,
    ):
        assert one.page_size == other.page_size == PAGE
        for _ in range(60):
            store = rng.choice([one, other])
            first = rng.choice([rng.randrange(5 * STRIPE), rng.randrange(5) * STRIPE])
            count = rng.choice([1, 2, 7, 40, STRIPE + 3, 2 * STRIPE])
            part = range(first, first + count)
            action = rng.randrange(4)
            if action < 2:
                at = rng.randrange(len(PAGES) - count)
                await store.astore(first, PAGES[at : at + count])
                model.update(zip(part, map(bytes, PAGES[at : at + count]), strict=True))
            elif action == 2:
                had = model.keys() & part
                assert await store.ainvalidate(first, count) == len(had)
                for index in had:
                    del model[index]
            stored = rng.sample(sorted(model), min(30, len(model)))
            found = await store.aload_many(stored)
            assert list(map(bytes, found)) == [model[index] for index in stored]
            for index in (*stored[:2], *rng.sample(part, 1)):
                assert await store.acontains(index) == (index in model)
                if index in model:
                    assert await store.aload(index) == model[index]
                else:
                    with pytest.raises(PageNotStored, match=str(index)):
                        await store.aload(index)
            assert await store.alen() == len(model)
        assert await one.ainvalidate(0, 1 << 40) == len(model)
        assert await other.alen() == 0


@on_a_cluster(2)
async def test_every_page_stands_in_one_shard_and_is_counted_there(cluster: PlainCluster) -> None:
    async with opened(cluster, store={"max_pool_bytes": 1 << 30}) as store:
        pages = await fill(store)
        await store.aload_many(np.arange(10))
        shards = await store.ashards()
        assert {shard.worker for shard in shards} == set(cluster.workers)
        assert [shard.lost for shard in shards] == [None, None]
        assert [shard.max_pool_bytes for shard in shards] == [1 << 30] * 2
        assert sum(shard.pages for shard in shards) == pages
        assert all(shard.pages == shard.page_stores > 0 for shard in shards)
        assert sum(shard.page_loads for shard in shards) == 10
        assert not any(shard.moving for shard in shards)
        counters = await store._session.counters()
        assert counters.stored_pages == pages
        name = store.address.rpartition("/")[2]
        figures = await ask_store(store._session._scheduler, name)
        assert (figures.page_size, figures.replicas, figures.clients) == (PAGE, 1, 1)
        assert [shard.name for shard in figures.shards] == ["worker-0", "worker-1"]
        assert [shard.pages for shard in figures.shards] == [shard.pages for shard in shards]
        with pytest.raises(ClusterLost, match="no longer exists"):
            await ask_store(store._session._scheduler, "another")


@pytest.mark.slow
@on_a_cluster(2)
async def test_pages_of_a_lost_worker_are_named_until_they_are_forgotten(
    cluster: PlainCluster,
) -> None:
    async with opened(cluster) as store:
        gone, stays = list(cluster.workers)
        first, second, third = stripes_of(store, gone, 3)
        (safe,) = stripes_of(store, stays, 1)
        lost = [range(at * STRIPE + 5, at * STRIPE + 15) for at in (first, second)]
        for part in (*lost, range(safe * STRIPE, safe * STRIPE + 10)):
            await store.astore(part.start, PAGES[:10])
        cluster.lose(cluster.workers[gone])
        for ask in (
            store.aload(lost[0].start),
            store.aload_many([safe * STRIPE, lost[1].start]),
            store.acontains(lost[0].start),
            store.alen(),
            store.astore(first * STRIPE, PAGES[:1]),
        ):
            with pytest.raises(PagesLost, match=gone) as caught:
                await ask
            assert list(caught.value.indices) == lost
        assert await store.aload(safe * STRIPE + 9) == PAGES[9].tobytes()
        with pytest.raises(PageNotStored):
            await store.aload(first * STRIPE)
        assert not await store.acontains(first * STRIPE)
        await store.astore(third * STRIPE, PAGES[:1])  # nobody had stored there
        shards = await store.ashards()
        assert [(shard.worker, shard.pages) for shard in shards] == [(stays, 11), (gone, 20)]
        assert shards[1].lost in ("the worker was lost", f"OSError: {gone} is gone")
        assert await store.ainvalidate(lost[0].start - 1, 3) == 2
        with pytest.raises(PageNotStored):
            await store.aload(lost[0].start)
        rest = [range(lost[0].start + 2, lost[0].stop), lost[1]]
        assert await store.arecover() == rest
        with pytest.raises(PageNotStored):
            await store.aload(lost[1].start)
        assert await store.alen() == 11
        assert await store.arecover() == []
        await store.astore(lost[1].start, PAGES[:1])
        assert await store.aload(lost[1].start) == PAGES[0].tobytes()


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_stripe_that_others_stored_in_is_lost_as_a_whole(cluster: PlainCluster) -> None:
    async with (
        opened(cluster) as one,
        await ShardedStore.aattach(one.address, PlainClient(cluster)) as other,
    ):
        gone, _ = list(cluster.workers)
        mine, shared = stripes_of(one, gone, 2)
        await one.astore(mine * STRIPE + 1, PAGES[:1])
        await one.astore(shared * STRIPE + 1, PAGES[:1])
        await other.astore(shared * STRIPE + 2, PAGES[:1])
        cluster.lose(cluster.workers[gone])
        whole = range(shared * STRIPE, (shared + 1) * STRIPE)
        with pytest.raises(PagesLost) as caught:
            await one.alen()
        assert list(caught.value.indices) == [range(mine * STRIPE + 1, mine * STRIPE + 2), whole]
        assert await other.ainvalidate(whole.start, STRIPE) == STRIPE
        await other.astore(whole.start, PAGES[:1])  # none of its pages is lost any more
        assert await other.ainvalidate(whole.start) == 1
        with pytest.raises(PageNotStored):
            await one.aload(whole.start + 1)
        assert await other.arecover() == [range(mine * STRIPE, (mine + 1) * STRIPE)]
        assert await one.alen() == 0


@pytest.mark.slow
@on_a_cluster(3)
async def test_with_two_copies_no_page_is_lost_with_a_worker(cluster: PlainCluster) -> None:
    async with opened(cluster, replicas=2) as store:
        await store.astore(0, PAGES)
        for number in range(5, 8):
            cluster.lose(next(iter(cluster.workers.values())))
            np.testing.assert_array_equal(await store.aload_many(range(len(PAGES))), PAGES)
            assert await store.alen() == len(PAGES)
            cluster.add(number)
            await store.arebalance()
            assert not any(shard.moving for shard in await store.ashards())
            # Former owners drop theirs.
            await until(lambda: held(cluster) == 2 * len(PAGES))


@pytest.mark.slow
@on_a_cluster(1)
async def test_a_worker_that_comes_gets_its_part_and_one_that_leaves_gives_it_back(
    cluster: PlainCluster,
) -> None:
    async with opened(cluster) as store:
        pages = await fill(store)
        cluster.add(1)
        moved = await store.arebalance()
        shards = {shard.worker: shard.pages for shard in await store.ashards()}
        assert 0 < moved == shards["plain://1"] < pages
        assert sum(shards.values()) == pages == await store.alen()
        retire = cluster.handlers["retire_workers"]
        forms: list[dict[str, Any]] = [
            {"workers": ["plain://1"]},
            {"names": ["worker-2"]},
            {"n": 1, "remove": True},
        ]
        for number, options in enumerate(forms, 1):
            assert await retire(**options) == "retired"
            (arguments, given) = cluster.retired[-1]
            assert not arguments
            assert given.get("workers", ["plain://1"]) == [f"plain://{number}"] or "names" in given
            assert given.get("remove") == options.get("remove")
            (shard,) = await store.ashards()
            assert (shard.worker, shard.pages) == ("plain://0", pages)
            del cluster.workers[f"plain://{number}"]
            cluster.add(number + 1)
            await store.arebalance()
            assert len(await store.ashards()) == 2
        assert await retire(["plain://4"]) == "retired"
        assert cluster.retired[-1] == ((["plain://4"],), {})
        last = (MANY - 1) * STRIPE
        np.testing.assert_array_equal(await store.aload_many(range(last, last + 10)), PAGES[:10])
        assert await store.arebalance() > 0, "a worker that was not closed after all gets its part"


@on_a_cluster(2)
async def test_workers_that_are_given_are_all_that_are_used(cluster: PlainCluster) -> None:
    async with opened(cluster, workers=["plain://1"]) as store:
        await store.astore(0, PAGES[:10])
        cluster.add(2)
        assert await store.arebalance() == 0
        assert [shard.worker for shard in await store.ashards()] == ["plain://1"]
        with pytest.raises(ClusterLost, match=r"no workers at plain://7, plain://8$"):
            async with opened(cluster, workers=["plain://8", "plain://1", "plain://7"]):
                pass
    with pytest.raises(BadArgument, match="at least one address"):
        async with opened(cluster, workers=[]):
            pass


@on_a_cluster(0)
async def test_without_workers_there_is_no_store(cluster: PlainCluster) -> None:
    with pytest.raises(ClusterLost, match="the cluster has no workers"):
        async with opened(cluster):
            pass
    cluster.add(0)
    cluster.add(1)
    with pytest.raises(BatchzipError, match=r"worker plain://0: TypeError: .*'nosuch'"):
        async with opened(cluster, store={"nosuch": 1}):
            pass
    for worker in cluster.workers.values():
        assert not worker.service.shards
    cluster.workers["plain://1"].lacks = "it is not here"
    with pytest.raises(BackendUnavailable, match=r"plain://1 \(named worker-1\).*it is not here"):
        async with opened(cluster):
            pass


@pytest.mark.slow
@on_a_cluster(1)
async def test_a_worker_without_batchzip_gets_no_pages_until_it_has_it(
    cluster: PlainCluster,
) -> None:
    async with opened(cluster) as store:
        cluster.add(1).lacks = "it is not here"
        with pytest.raises(BackendUnavailable, match="it is not here"):
            await store.arebalance()
        await fill(store)
        assert [shard.worker for shard in await store.ashards()] == ["plain://0"]
        cluster.workers["plain://1"].lacks = ""
        assert await store.arebalance() > 0
        assert len(await store.ashards()) == 2


@on_a_cluster(3)
async def test_a_folio_that_one_shard_rejects_is_kept_by_none(cluster: PlainCluster) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, PAGE), np.uint8)
    for replicas in (1, 2):
        async with opened(
            cluster, store={"keep_incompressible": False}, replicas=replicas
        ) as store:
            await store.astore(0, PAGES[:1])
            folio = np.concatenate([PAGES[: 3 * STRIPE], noise])
            with pytest.raises(StoreRejected):
                await store.astore(0, folio)
            assert await store.alen() == 0
            assert held(cluster) == 0


@on_a_cluster(2)
async def test_a_store_that_is_cancelled_keeps_nothing(cluster: PlainCluster) -> None:
    async with opened(cluster) as store:
        slow = cluster.workers["plain://0"]
        slow.deaf_to.add("put")
        (stripe,) = stripes_of(store, slow.address, 1)
        storing = asyncio.ensure_future(store.astore(stripe * STRIPE, PAGES))
        await until(lambda: "put" in slow.asked)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        slow.deaf_to.clear()
        assert await store.alen() == 0


@on_a_cluster(1)
async def test_large_folios_travel_in_messages_of_a_mebibyte(cluster: PlainCluster) -> None:
    page = 4096
    engine = {"algorithm": "lz4", "page_size": page}
    client = PlainClient(cluster)
    async with await ShardedStore.acreate(client, engine=engine, spill=False) as store:
        worker = cluster.workers["plain://0"]
        await store.astore(0, make_pages(STRIPE))
        assert worker.asked.count("put") == STRIPE * page >> 20
        await store.aload_many(range(STRIPE))
        assert worker.asked.count("get") == STRIPE * page >> 20


@pytest.mark.slow
@on_a_cluster(1)
async def test_the_last_client_that_goes_ends_the_store(
    cluster: PlainCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchzip.dask.directory._ABSENT_S", 0.05)
    worker = cluster.workers["plain://0"]
    async with opened(cluster) as store:
        other = await ShardedStore.aattach(store.address, PlainClient(cluster))
        await store.astore(0, PAGES[:1])
        await store.aclose()
        assert await other.aload(0) == PAGES[0].tobytes()
        with pytest.raises(ClosedError):
            await store.aload(0)
    directory: Any = cluster.directory
    client = cluster.clients.pop(other._client.id)
    directory.remove_client(cluster, client.id)
    cluster.clients[client.id] = client  # it has reconnected in time
    await asyncio.sleep(0.1)
    assert await other.aload(0) == PAGES[0].tobytes()
    del cluster.clients[client.id]
    directory.remove_client(cluster, client.id)
    await until(lambda: not worker.service.shards)
    assert not directory.stores
    with pytest.raises(ClusterLost, match="no longer exists"):
        await other.alen()
    await other.aclose()
    with pytest.raises(ClusterLost, match="its last client closed it"):
        await ShardedStore.aattach(store.address, PlainClient(cluster))


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_scheduler_that_was_restarted_has_lost_all_pages_and_recover_names_them(
    cluster: PlainCluster,
) -> None:
    async with opened(cluster) as store:
        await store.astore(3, PAGES[:4])
        await store.astore(STRIPE, PAGES[:1])
        cluster.restart()
        own = [range(3, 7), range(STRIPE, STRIPE + 1)]
        with pytest.raises(ClusterLost):
            await store.alen()
        for index in (3, STRIPE):
            with pytest.raises(PagesLost) as caught:
                await store.aload(index)
            assert list(caught.value.indices) == own
        with pytest.raises(ClusterLost, match="call recover"):
            await store.aload(100)
        assert await store.ainvalidate(6, 3) == 1
        assert await store.arecover() == [range(3, 6), own[1]]
        with pytest.raises(PageNotStored):
            await store.aload(3)
        await store.astore(3, PAGES[1:2])
        assert await store.aload(3) == PAGES[1].tobytes()
        assert {shard.worker for shard in await store.ashards()} == set(cluster.workers)
        for worker in cluster.workers.values():
            assert len(worker.service.shards) == 1, "those of the former scheduler are closed"


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_worker_that_is_silent_is_given_up_and_one_that_is_slow_is_not(
    cluster: PlainCluster,
) -> None:
    async with opened(cluster, timeout_s=0.3) as store:
        silent, other = cluster.workers.values()
        (stripe,) = stripes_of(store, silent.address, 1)
        (safe,) = stripes_of(store, other.address, 1)
        await store.astore(stripe * STRIPE, PAGES[:1])
        await store.astore(safe * STRIPE, PAGES[:1])
        silent.deaf_to.add("get")
        with pytest.raises(ClusterLost, match=f"{silent.address} does not answer.*scheduler reach"):
            await store.aload(stripe * STRIPE)
        silent.deaf_to.clear()
        assert await store.aload(stripe * STRIPE) == PAGES[0].tobytes()
        cluster.end(silent)
        with pytest.raises(PagesLost, match=silent.address):
            await store.aload(stripe * STRIPE)
        assert await store.aload(safe * STRIPE) == PAGES[0].tobytes()
