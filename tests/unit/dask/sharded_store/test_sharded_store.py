"""ShardedStore: pages spread over the workers of a cluster over TCP; what a lost one means."""

from __future__ import annotations

import errno
import os
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cluster.process import dask_cluster
from support.waiting import await_true

import batchzip
from batchzip import (
    BadArgument,
    BadBatch,
    ClosedError,
    ClusterLost,
    CorruptPage,
    PageError,
    PageNotStored,
    PagesLost,
    StoreRejected,
    UnknownAlgorithm,
)
from batchzip.dask import ShardedStore
from batchzip.dask.record import STRIPE, Record, cut
from batchzip.testing.plain import in_threads, make_pages

pytestmark = pytest.mark.slow


PAGE = 4096


def test_pages_come_back_from_every_shard_byte_for_byte(store: ShardedStore) -> None:
    pages = make_pages(5 * STRIPE // 2)
    first = STRIPE - 7  # four stripes, on two shards
    store.store(first, pages)
    assert len(store) == len(pages)
    assert len({shard.pid for shard in store.shards} | {os.getpid()}) == 3
    rng = np.random.default_rng(1)
    for where in rng.permutation(len(pages))[:5].tolist():
        assert store.load(first + where) == pages[where].tobytes()
    order = rng.integers(0, len(pages), 300)
    np.testing.assert_array_equal(store.load_many(first + order), pages[order])
    out = np.empty((300, PAGE), np.uint8)
    assert store.load_many((first + order).tolist(), out=out) is out
    np.testing.assert_array_equal(out, pages[order])
    buffer = bytearray(PAGE)
    assert store.load(first, out=buffer) is buffer
    assert buffer == pages[0].tobytes()


def test_pages_may_be_any_buffers(store: ShardedStore) -> None:
    pages = make_pages(3 * STRIPE)
    store.store(0, [memoryview(page.tobytes()) for page in pages])
    np.testing.assert_array_equal(store.load_many(range(3 * STRIPE)), pages)
    store.store(5, [bytearray(pages[9])])
    assert store.load(5) == pages[9].tobytes()


def test_counters_are_those_of_all_shards_together(store: ShardedStore) -> None:
    pages = make_pages(8 * STRIPE)
    pages[:] = pages[0]
    pages[3] = 7
    store.store(0, pages)
    counters = store.counters
    assert counters.stored_pages == 8 * STRIPE
    assert counters.same_filled_pages == 1
    shards = store.shards
    assert sum(shard.pages for shard in shards) == 8 * STRIPE
    assert sum(shard.page_stores for shard in shards) == 8 * STRIPE
    parts = [shard.counters for shard in shards]
    assert counters.pool_total_size == sum(part.pool_total_size for part in parts if part)
    store.load_many(range(100))
    assert sum(shard.page_loads for shard in store.shards) == 100


def test_invalidated_overwritten_and_absent_pages_are_told_apart(store: ShardedStore) -> None:
    pages = make_pages(2 * STRIPE)
    store.store(0, pages)
    assert store.invalidate(STRIPE - 2, 5) == 5
    assert store.invalidate(STRIPE - 2, 1 << 40) == STRIPE - 3
    assert len(store) == STRIPE - 2
    assert 0 in store
    assert STRIPE not in store
    assert -1 not in store
    store.store(0, pages[5:7])
    assert store.load(1) == pages[6].tobytes()
    for index in (STRIPE, -1, 1 << 70):
        with pytest.raises(PageNotStored) as missing:
            store.load(index)
        assert missing.value.index == index
    with pytest.raises(PageNotStored, match=f" {STRIPE}$"):
        store.load_many([0, STRIPE])
    assert store.load_many([]).shape == (0, PAGE)


def test_a_folio_that_one_shard_rejects_is_kept_by_none(client: Client) -> None:
    rng = np.random.default_rng(0)
    pages = rng.integers(0, 256, (2 * STRIPE, PAGE), np.uint8)
    pages[:STRIPE] = make_pages(1)
    with ShardedStore(client, store={"keep_incompressible": False}, spill=False) as store:
        store.store(STRIPE - 1, pages[:2])  # stale after what comes
        with pytest.raises(StoreRejected) as rejected:
            store.store(0, pages)
        assert rejected.value.reason == "reject_compress_poor" or rejected.value.errors is not None
        assert len(store) == 0
        store.store(0, pages[:STRIPE])
        assert len(store) == STRIPE


def test_bad_arguments_are_named_and_change_nothing(client: Client, store: ShardedStore) -> None:
    store.store(0, make_pages(2))
    for pages in ([b"x"], make_pages(3, page_size=2048), b"x" * 100):
        with pytest.raises(BadBatch):
            store.store(0, pages)
    for index in (-1, 1 << 63):
        with pytest.raises(BadArgument, match="must be from 0"):
            store.store(index, make_pages(1))
    with pytest.raises(BadArgument):
        store.load_many([0.5])  # type: ignore[list-item] # that is the question
    with pytest.raises(BadBatch, match="out must have 4096 bytes, not 1"):
        store.load(0, out=bytearray(1))
    assert len(store) == 2
    options: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"engine": {"algorithm": "gzip9"}}, UnknownAlgorithm),
        ({"engine": {"level": 99}}, BadArgument),
        ({"engine": {"nonsense": 1}}, Exception),
        ({"store": {"max_batch": 0}}, BadArgument),
        ({"replicas": 0}, BadArgument),
        ({"workers": []}, BadArgument),
        ({"workers": ["tcp://127.0.0.1:1"]}, ClusterLost),
        ({"memory_fraction": 2}, BadArgument),
        ({"timeout_s": 0}, BadArgument),
    ]
    for wrong, kind in options:
        with pytest.raises(kind):
            ShardedStore(client, **wrong)
    with pytest.raises(BadArgument, match=r"distributed\.Client"):
        ShardedStore("tcp://127.0.0.1:9")  # type: ignore[arg-type] # that is the question


def test_several_threads_use_one_store(store: ShardedStore) -> None:
    def work(number: int) -> None:
        pages = make_pages(40, seed=number)
        for turn in range(5):
            first = STRIPE * (1 + number) - 20 + 5000 * turn
            store.store(first, pages)
            np.testing.assert_array_equal(store.load_many(range(first, first + 40)), pages)

    in_threads(4, work)
    assert len(store) == 4 * 5 * 40


def test_a_scheduler_that_is_gone_is_a_clear_error() -> None:
    with dask_cluster(1) as address:
        client = Client(address, set_as_default=False)
        store = ShardedStore(client)
        store.store(0, make_pages(3))
    with client, store:
        with pytest.raises(PagesLost, match="0…2"):
            store.load(0)
        with pytest.raises(ClusterLost):
            store.recover()
        with pytest.raises(ClusterLost):
            ShardedStore(client)


def test_a_cluster_without_workers_is_said_so() -> None:
    with (
        dask_cluster(0) as address,
        Client(address, set_as_default=False) as client,
        pytest.raises(ClusterLost, match="no workers"),
    ):
        ShardedStore(client)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3 * STRIPE), st.integers(1, 2 * STRIPE))),
    st.integers(1, 3),
)
def test_a_record_agrees_with_a_set_of_indices(
    steps: list[tuple[bool, int, int]], shards: int
) -> None:
    record = Record()
    model: set[int] = set()
    for adds, first, count in steps:
        if adds:
            record.add(first, count)
            model |= set(range(first, first + count))
        else:
            record.discard(first, count)
            model -= set(range(first, first + count))
        assert sum(number for _, _, number in cut(first, count)) == count
    assert all((index in record) == (index in model) for index in range(0, 5 * STRIPE, 37))
    for shard in range(shards):

        def mine(stripe: int, shard: int = shard) -> bool:
            return stripe % shards == shard

        ranges = record.ranges(mine)
        named = [index for part in ranges for index in part]
        assert named == sorted(index for index in model if mine(index // STRIPE))
        assert all(a.stop < b.start for a, b in pairwise(ranges))
        assert record.forget(mine) == ranges
    assert record.ranges(lambda _: True) == []


@pytest.mark.parametrize(
    "error",
    [
        PageNotStored(7),
        CorruptPage(7),
        PageError(7, -errno.EIO),
        StoreRejected("pool_limit_hit", "full"),
        UnknownAlgorithm("x", ["lz4"]),
        batchzip.MissingExtra("this", "that", "dask"),
        batchzip.PoolFull("full", at_limit=True),
        PagesLost("tcp://x", "why", [range(3)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_from_other_processes_as_they_were(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def test_the_names_of_nine_lost_ranges_are_eight_and_one_more() -> None:
    ranges = [range(10 * number, 10 * number + 2) for number in range(9)]
    assert str(PagesLost("tcp://x", "why", ranges)).endswith("70…71 and 1 more ranges")
    assert str(PagesLost("tcp://x", "why", ranges[:8])).endswith("70…71")


def test_shards_of_two_stores_do_not_mix(client: Client) -> None:
    with ShardedStore(client) as one, ShardedStore(client, replicas=2) as other:
        pages = make_pages(4 * STRIPE)
        one.store(0, pages)
        other.store(0, pages[::-1].copy())
        assert one.load(3 * STRIPE) == pages[3 * STRIPE].tobytes()
        assert other.load(0) == pages[-1].tobytes()
        assert len(one) == len(other) == 4 * STRIPE


def test_a_closed_store_refuses_and_its_workers_keep_nothing(client: Client) -> None:
    with ShardedStore(client) as store:
        store.store(0, make_pages(10))
        address = store.address
    for use in (lambda: store.load(0), lambda: len(store), lambda: store.counters):
        with pytest.raises(ClosedError):
            use()
    store.close()

    def shards_of(dask_worker: Any) -> int:
        return len(dask_worker.handlers["batchzip_shard"].__self__.shards)

    await_true(lambda: set(client.run(shards_of).values()) == {0})
    with pytest.raises(ClusterLost, match="no store at this address"):
        ShardedStore.attach(address, client)
