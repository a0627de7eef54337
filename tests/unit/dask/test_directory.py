"""Directory: who holds a stripe while shards come and go, and what is lost, without a cluster."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from batchzip.dask.directory import Directory
from batchzip.dask.stripe_map import ShardLease, StripeHolders, StripeMap

if TYPE_CHECKING:
    from collections.abc import Sequence


def made(shards: Sequence[str], replicas: int, stripes: int = 64) -> StripeMap:
    store = StripeMap("store", {"replicas": replicas}, None, 4096, 0)
    for name in shards:
        add(store, name)
    for number in range(stripes):
        owners = tuple(owner.name for owner in store.members.owners(number))
        store.stripes[number] = StripeHolders(owners, {"me"})
    return store


def add(store: StripeMap, name: str) -> None:
    store.shards[name] = ShardLease(f"tcp://{name}", 0.0)
    store.advance()


async def move(store: StripeMap, most: int) -> int:
    """Have up to `most` stripes moved, as shards would; how many were."""
    directory = Directory()
    moved = 0
    for name in list(store.shards):
        for stripe in list(store.pulls.get(name, {})):
            if moved < most:
                await directory._pulled(store, name, store.epoch, stripe, 1)
                moved += 1
        for stripe, others in list(store.pushes.get(name, {}).items()):
            if stripe not in store.pulls.get(name, {}):
                for other, _ in list(others):
                    if moved < most:
                        await directory._synced(store, name, store.epoch, stripe, other, 1)
                        moved += 1
    return moved


@pytest.mark.parametrize("seed", range(30))
def test_with_two_copies_one_lost_shard_loses_nothing_at_any_moment(seed: int) -> None:
    """Also while stripes move to a shard that has just come, or from one that leaves."""
    rng = random.Random(seed)

    async def run() -> None:
        store = made(["a", "b", "c"], replicas=2)
        for turn in range(6):
            add(store, f"new {turn}")
            await move(store, rng.randrange(100))
            store.lose(rng.choice(list(store.shards)), "the test says so")
            assert not store.lost
            while await move(store, 1000):
                pass
            assert not store.is_moving()
            assert store.discards.keys() <= store.shards.keys(), "nobody asks for others"
            for number, stripe in store.stripes.items():
                owners = {owner.name for owner in store.members.owners(number)}
                assert set(stripe.holders) == owners

    asyncio.run(run())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_shard_is_needed_until_others_have_what_it_has(replicas: int) -> None:
    async def run() -> None:
        store = made(["a", "b", "c"], replicas)
        store.leaving["a"] = store.shards.pop("a")
        store.advance()
        assert store.holds("a")
        while await move(store, 1):
            assert all(stripe.holders for stripe in store.stripes.values())
        assert not store.holds("a")
        store.lose("a", "the test says so")
        assert not store.lost

    asyncio.run(run())


def test_losing_a_shard_loses_only_stripes_that_no_other_held() -> None:
    store = made(["a", "b"], replicas=1)
    had = {number for number, stripe in store.stripes.items() if stripe.holders == ("a",)}
    assert had
    store.lose("a", "the test says so")
    assert store.lost.keys() == had
    assert all(stripe.holders == ("b",) for stripe in store.stripes.values())
    seen = store.as_seen_by_client(0)
    assert seen["lost"] == [["tcp://a", "the test says so", sorted(had)]]
    assert set(store.as_seen_by_shard("b")["holds"]) == set(store.stripes)


def test_a_store_begins_with_nothing_moved_lost_or_forgotten() -> None:
    store = StripeMap("store", {"replicas": 1}, None, 4096, 0)
    assert (store.moved_pages, store.members.epoch, store.members.members) == (0, 0, ())
    assert store.members.owners(0) == ()
    store.shards["a"] = ShardLease("tcp://a", 0.0)
    store.advance()
    store.stripes[0] = StripeHolders(("a",), {"me"})
    assert store.holds("a")
    assert not store.is_moving()
    store.lose("nobody", "the test says so")
    assert store.epoch == 1
    store.lose("a", "the test says so")
    assert (store.epoch, store.lost[0].forgotten, store.lost[0].clients) == (2, 0, {"me"})
    assert store.members.members == ()
    seen = store.as_seen_by_client(0)
    assert (seen["epoch"], seen["page_size"], seen["replicas"]) == (2, 4096, 1)
