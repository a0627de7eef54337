"""A lost worker loses its own pages, by name; one that comes or goes loses none."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cluster.commands import scheduler_command, worker_command
from support.cluster.process import dask_cluster
from support.waiting import await_true

from batchzip import (
    PageNotStored,
    PagesLost,
)
from batchzip.dask import ShardedStore
from batchzip.dask.members import Members
from batchzip.dask.record import STRIPE
from batchzip.testing.plain import SLACK_S, in_threads, make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


pytestmark = pytest.mark.slow


@contextmanager
def doomed_store(**options: Any) -> Iterator[ShardedStore]:
    """Yield a store on its own cluster, whose dead workers are missed before they are replaced."""
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
        before = {shard.worker for shard in store.shards}
        stack.enter_context(worker_command(address))
        client.wait_for_workers(3, timeout=SLACK_S)
        moved = store.rebalance()
        assert len(store.shards) == 3
        assert all(shard.pages for shard in store.shards)
        (new,) = (shard for shard in store.shards if shard.worker not in before)
        assert moved <= new.pages, "no page moves but to the new one"
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
            await_true(lambda: client.status == "running" and client.nthreads())
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
