"""ShardedStore: pages spread over the workers of a cluster over TCP; what a lost one means."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import signal
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cluster.commands import scheduler_command, worker_command
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test
from support.cluster.process import dask_cluster

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
from batchzip.dask.members import Members
from batchzip.dask.record import STRIPE, Record, cut
from batchzip.testing import LeakCheck
from batchzip.testing.plain import SLACK_S, in_threads, make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

pytestmark = pytest.mark.slow

PAGE = 4096


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LeakCheck(), dask_cluster(2) as address, Client(address, set_as_default=False) as client:
        yield client


@pytest.fixture
def store(client: Client) -> Iterator[ShardedStore]:
    with ShardedStore(client, engine={"algorithm": "lz4"}, timeout_s=SLACK_S) as store:
        yield store


@contextmanager
def doomed_store(**options: Any) -> Iterator[ShardedStore]:
    """A store on a cluster of its own; workers that die are not replaced by the time they are missed."""
    with (
        dask_cluster(2) as address,
        Client(address, set_as_default=False) as client,
        ShardedStore(client, engine={"algorithm": "lz4"}, **options) as store,
    ):
        yield store


def scattered(store: ShardedStore) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Store three pages in each of 64 stripes, so that every shard has some; where, and which."""
    pages = make_pages(3 * 64)
    for stripe in range(64):
        store.store(stripe * STRIPE, pages[3 * stripe : 3 * stripe + 3])
    where = np.arange(64)[:, None] * STRIPE + np.arange(3)
    return where.reshape(-1), pages


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


def test_what_is_invalidated_stored_again_or_absent_is_told_apart(store: ShardedStore) -> None:
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
        with pytest.raises(BadArgument, match="indices lie in"):
            store.store(index, make_pages(1))
    with pytest.raises(BadArgument):
        store.load_many([0.5])  # type: ignore[list-item] # that is the question
    with pytest.raises(BadBatch, match="out has 1 bytes"):
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
def test_the_record_names_what_a_set_would(steps: list[tuple[bool, int, int]], shards: int) -> None:
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

    deadline = time.monotonic() + SLACK_S
    while set(client.run(shards_of).values()) != {0}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ClusterLost, match="no store of this address"):
        ShardedStore.attach(address, client)


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
            timer.start()
            try:
                store.store(7, pages)
                done = True
                timer.join()
            except KeyboardInterrupt:
                done = False
            assert len(store) == (4096 if done else 0)
            store.invalidate(0, 1 << 20)
    except KeyboardInterrupt:  # it came late
        pass
    finally:
        signal.signal(signal.SIGUSR1, handler)


# Losses.


def test_a_worker_killed_in_the_middle_loses_its_pages_by_name_and_no_others() -> None:
    with doomed_store() as store:
        where, pages = scattered(store)
        victim = min(store.shards, key=lambda shard: shard.pages)
        assert victim.pages
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(PagesLost) as gone:
            store.load_many(where)
        named = {index for part in gone.value.indices for index in part}
        assert len(named) == victim.pages
        assert gone.value.worker == victim.worker
        lost, kept = sorted(named), np.flatnonzero(~np.isin(where, sorted(named)))
        for _ in range(2):
            with pytest.raises(PagesLost):
                store.load(lost[0])
            with pytest.raises(PagesLost):
                lost[0] in store  # noqa: B015 - that it raises is the point
            with pytest.raises(PagesLost):
                store.counters  # noqa: B018
        with pytest.raises(PageNotStored):
            store.load(1 << 40)

        # Everything else goes on.
        np.testing.assert_array_equal(store.load_many(where[kept]), pages[kept])
        assert [shard.pages for shard in store.shards if shard.lost] == [victim.pages]
        with pytest.raises(PagesLost):
            store.store(lost[0], pages[:1])
        assert store.invalidate(lost[0], 2) == 2
        with pytest.raises(PageNotStored):
            store.load(lost[0])

        assert [index for part in store.recover() for index in part] == lost[2:]
        with pytest.raises(PageNotStored):
            store.load(lost[-1])
        store.store(lost[0], pages[0])
        assert store.load(lost[0]) == pages[0].tobytes()
        assert store.recover() == []


def test_a_worker_that_hangs_is_given_up_and_serves_nothing_when_it_wakes() -> None:
    with doomed_store(timeout_s=2.0) as store:
        where, pages = scattered(store)
        victim = store.shards[0]
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            with pytest.raises(PagesLost, match="no answer in 2 s") as gone:
                store.load_many(where)
        finally:
            os.kill(victim.pid, signal.SIGCONT)
        index = gone.value.indices[0].start
        with pytest.raises(PagesLost):
            store.load(index)
        lost = store.recover()
        assert sum(map(len, lost)) == victim.pages
        store.store(index, pages[1])
        assert store.load(index) == pages[1].tobytes()


def test_with_two_replicas_a_lost_worker_loses_nothing() -> None:
    with (
        dask_cluster(3) as address,
        Client(address, set_as_default=False) as client,
        ShardedStore(client, replicas=2, timeout_s=SLACK_S) as store,
    ):
        where, pages = scattered(store)
        for turn in range(2):  # the second one only loses nothing if there are two copies again
            os.kill(store.shards[turn].pid, signal.SIGKILL)
            np.testing.assert_array_equal(store.load_many(where), pages)
            store.rebalance()
        assert store.recover() == []
        assert len(store) == len(pages)


def test_pages_of_another_client_are_named_by_their_stripe() -> None:
    with doomed_store() as store:
        with ShardedStore.attach(store.address) as other:
            other.store(3, make_pages(1))
        stripe = range(STRIPE)
        os.kill(next(shard.pid for shard in store.shards if shard.pages), signal.SIGKILL)
        with pytest.raises(PagesLost) as gone:
            store.load(3)
        assert gone.value.indices == (stripe,)
        assert store.recover() == [stripe]


def test_threads_that_recover_at_once_lose_nothing_that_one_stores_then() -> None:
    pages = make_pages(4)
    with doomed_store() as store:
        store.store(0, pages)
        os.kill(next(shard.pid for shard in store.shards if shard.pages), signal.SIGKILL)
        lost: list[range] = []
        stored: list[int] = []

        def use(number: int) -> None:
            with contextlib.suppress(PagesLost, PageNotStored):
                store.load(number)
            lost.extend(store.recover())
            with contextlib.suppress(PagesLost):
                store.store(number, pages[number])
                stored.append(number)

        in_threads(4, use)
        assert sum(map(len, lost)) >= 4
        for number in stored:
            with contextlib.suppress(PagesLost):
                assert store.load(number) == pages[number].tobytes()


# Workers that come and go.


def test_a_worker_that_comes_takes_its_share_and_one_that_goes_leaves_nothing_behind() -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(scheduler_command())
        stack.enter_context(worker_command(address))
        stack.enter_context(worker_command(address))
        client = stack.enter_context(Client(address, set_as_default=False))
        store = stack.enter_context(ShardedStore(client, timeout_s=SLACK_S))
        where, pages = scattered(store)
        stack.enter_context(worker_command(address))
        client.wait_for_workers(3, timeout=SLACK_S)
        moved = store.rebalance()
        assert len(store.shards) == 3
        assert all(shard.pages for shard in store.shards)
        assert moved <= len(pages) // 2, "no page moves but to the new one"
        np.testing.assert_array_equal(store.load_many(where), pages)

        client.retire_workers([store.shards[0].worker])
        assert sum(shard.pages for shard in store.shards) == len(pages)
        np.testing.assert_array_equal(store.load_many(where), pages)
        assert store.recover() == []


def test_a_worker_that_comes_back_has_a_shard_again_though_nobody_asks() -> None:
    with (
        dask_cluster(1) as address,
        Client(address, set_as_default=False) as client,
        ShardedStore(client, timeout_s=SLACK_S) as store,
    ):
        first = store.shards[0]
        store.store(0, make_pages(2))
        os.kill(first.pid, signal.SIGKILL)
        deadline = time.monotonic() + SLACK_S
        lost: list[range] = []
        while not (lost and any(shard.lost is None for shard in store.shards)):
            assert time.monotonic() < deadline
            lost += store.recover()
        assert lost == [range(2)]
        store.store(0, make_pages(3))
        assert len(store) == 3


def test_a_worker_that_is_terminated_gives_its_pages_away_first() -> None:
    with (
        scheduler_command() as address,
        worker_command(address),
        worker_command(address) as doomed,
        Client(address, set_as_default=False) as client,
        ShardedStore(client, timeout_s=SLACK_S) as store,
    ):
        where, pages = scattered(store)
        assert all(shard.pages for shard in store.shards)
        doomed.terminate()
        deadline = time.monotonic() + SLACK_S
        while len(store.shards) > 1:
            assert time.monotonic() < deadline
            np.testing.assert_array_equal(store.load_many(where[::7]), pages[::7])
        np.testing.assert_array_equal(store.load_many(where), pages)


def test_a_scheduler_started_anew_loses_all_by_name() -> None:
    pages = make_pages(5)
    with contextlib.ExitStack() as stack:
        with scheduler_command() as address, worker_command(address):
            client = stack.enter_context(Client(address, set_as_default=False))
            store = stack.enter_context(ShardedStore(client, timeout_s=5.0))
            store.store(10, pages)
        port = address.rpartition(":")[2]
        with scheduler_command("--port", port), worker_command(address):
            deadline = time.monotonic() + SLACK_S
            while client.status != "running" or not client.nthreads():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(PagesLost, match="10…14"):
                store.load(12)
            assert store.recover() == [range(10, 15)]
            with pytest.raises(PageNotStored):
                store.load(12)
            store.store(12, pages[1])
            assert store.load(12) == pages[1].tobytes()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 3), st.lists(st.integers(0, 2**54 - 1), max_size=40))
def test_every_stripe_has_its_owners_and_keeps_them(
    count: int, replicas: int, stripes: list[int]
) -> None:
    members = [(f"shard {number}", f"tcp://{number}") for number in range(count)]
    all_of_them = Members(1, members, replicas)
    fewer = Members(2, members[1:], replicas)
    primaries = all_of_them.primaries(np.array(stripes, np.int64)).tolist()
    for stripe, primary in zip(stripes, primaries, strict=True):
        owners = all_of_them.owners(stripe)
        assert owners[0] == all_of_them.members[primary]
        assert len(set(owners)) == min(replicas, count)
        kept = [owner for owner in owners if owner != members[0]]
        assert list(fewer.owners(stripe)[: len(kept)]) == kept
