"""Directory: what shards and clients are told when workers come, go, are late or refuse."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from distributed.core import Status
from support.cluster.plain import PlainClient, PlainCluster, on_a_cluster, until

from batchzip import BackendUnavailable, BadArgument, BatchzipError, ClusterLost
from batchzip.dask import ShardedStore, directory, service
from batchzip.dask.probe import acheck_scheduler, acheck_workers, check_scheduler, check_workers
from batchzip.dask.record import STRIPE
from batchzip.dask.wire import SHARD, failed
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from batchzip.dask.stripe_map import StripeMap

PAGE = 512
PAGES = make_pages(STRIPE)[:, :PAGE].copy()


async def make_store(cluster: PlainCluster, **options: Any) -> ShardedStore:
    engine = {"algorithm": "lz4", "page_size": PAGE}
    options = {"spill": False, "timeout_s": 10, **options}
    return await ShardedStore.acreate(PlainClient(cluster), engine=engine, **options)


def state(cluster: PlainCluster) -> StripeMap:
    """Return what the directory knows of the only store."""
    assert cluster.directory is not None
    (found,) = cluster.directory.stores.values()
    return found


async def ask(cluster: PlainCluster, method: str, **what: Any) -> Any:
    """Ask the directory about the only store."""
    return await cluster.answer(
        "batchzip_directory", {"method": method, "store": state(cluster).name, **what}
    )


@on_a_cluster(2)
async def test_each_change_reaches_all_shards_before_their_leases_end(
    cluster: PlainCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_RENEW_S", 60.0)
    monkeypatch.setattr(directory, "LEASE_S", 60.0)
    async with await make_store(cluster) as store:
        first, second = cluster.workers.values()
        (shard,) = first.service.shards.values()

        async def told() -> None:
            await until(lambda: shard.epoch == state(cluster).epoch)

        await told()
        assert shard.epoch == 1
        await store.astore(0, PAGES)
        cluster.add(2)
        await store.arebalance()
        await told()
        assert [member.address for member in shard.members.members] == [
            "plain://0",
            "plain://1",
            "plain://2",
        ]
        await cluster.handlers["retire_workers"](["plain://2"])
        await told()
        assert len(shard.members.members) == 2
        epoch = shard.epoch
        for lease in state(cluster).shards.values():
            lease.lease_until = 0.0
        cluster.lose(second)
        await until(lambda: len(state(cluster).shards) == 1)
        await told()
        assert shard.epoch == epoch + 1
        await store.arecover()
        await told()


@on_a_cluster(2)
async def test_a_worker_that_refuses_a_shard_is_named_and_the_others_close_theirs(
    cluster: PlainCluster,
) -> None:
    first, second = cluster.workers.values()
    second.status = Status.closing
    with pytest.raises(ClusterLost, match="worker plain://1 is closing"):
        await make_store(cluster)
    await until(lambda: not first.service.shards)
    assert first.asked.count("close") == 1
    second.status = Status.running
    async with await make_store(cluster) as store:
        third = cluster.add(2)
        third.status = Status.closing
        await store.arebalance()
        assert len(await store.ashards()) == 2, "a worker that closes is not asked"
        third.status = Status.running
        third.deaf_to.add("open")
        joining = asyncio.ensure_future(store.arebalance())
        await until(lambda: "open" in third.asked)
        third.is_gone = True
        del cluster.workers[third.address]
        joining.cancel()
        await asyncio.wait([joining])
        await store.astore(0, PAGES)


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_worker_that_just_died_is_no_reason_against_a_store(
    cluster: PlainCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_GONE_S", 0.3)
    gone = cluster.workers["plain://1"]
    cluster.end(gone)
    asyncio.get_running_loop().call_later(0.1, cluster.workers.pop, gone.address)
    async with await make_store(cluster) as store:
        assert [shard.worker for shard in await store.ashards()] == ["plain://0"]
    other = cluster.add(2)
    cluster.end(other)
    with pytest.raises(BackendUnavailable, match=r"plain://2.*no answer .OSError"):
        await make_store(cluster)


@on_a_cluster(1)
async def test_a_worker_that_refused_is_asked_again_when_it_is_wanted(
    cluster: PlainCluster,
) -> None:
    async with await make_store(cluster) as store:
        worker = cluster.add(1)
        worker.lacks = "it is not here"
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="it is not here"):
                await store.arebalance()
        assert list(state(cluster).refused) == [worker.address]
        runs = worker.asked.count("run")
        assert cluster.directory is not None
        cluster.directory.add_worker(cluster, worker.address)  # type: ignore[arg-type] # a stand-in
        await asyncio.sleep(0)
        assert worker.asked.count("run") == runs, "it would refuse again"
        cluster.lose(worker)
        assert not state(cluster).refused
        cluster.add(1)
        await until(lambda: len(state(cluster).shards) == 2)


@on_a_cluster(1)
async def test_why_a_worker_could_not_have_a_shard_is_told(cluster: PlainCluster) -> None:
    async def refuse(**_: Any) -> Any:
        return failed(BatchzipError("there is no memory"))

    async with await make_store(cluster) as store:
        cluster.add(1).handlers[SHARD] = refuse
        with pytest.raises(BatchzipError, match="there is no memory"):
            await store.arebalance()
        assert [shard.worker for shard in await store.ashards()] == ["plain://0"]


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_shard_that_answers_is_not_given_up_whatever_is_reported(
    cluster: PlainCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_PING_S", 0.1)
    async with await make_store(cluster):
        known = state(cluster)
        first, second = known.shards
        epoch = known.epoch
        answer = await ask(cluster, "report", shard=first, reason="somebody says so", since=0)
        assert answer["epoch"] == epoch
        assert set(known.shards) == {first, second}
        await ask(cluster, "report", shard="nobody", reason="somebody says so", since=0)
        assert known.epoch == epoch
        worker = cluster.workers[known.shards[first].address]
        worker.deaf_to.add("ping")
        reporting = asyncio.ensure_future(
            ask(cluster, "report", shard=first, reason="it is silent", since=0)
        )
        await asyncio.wait([reporting], timeout=0.3)
        assert not reporting.done(), "it renews its lease, so it may still serve"
        worker.deaf_to.clear()
        await reporting
        assert set(known.shards) == {first, second}
        worker.service.shards.clear()  # its process was restarted
        await ask(cluster, "report", shard=first, reason="it has no such shard", since=0)
        assert first not in known.shards
        assert known.epoch > epoch


@on_a_cluster(2)
async def test_other_epochs_and_other_shards_change_nothing(cluster: PlainCluster) -> None:
    async with await make_store(cluster) as store:
        await store.astore(0, PAGES)
        known = state(cluster)
        shard = known.stripes[0].holders[0]
        note = {"attachment": "me", "stripes": [0, 7]}
        pulled = {"stripe": 0, "pages": 5}
        synced = {**pulled, "other": "another"}
        for method, what in (("note", note), ("pulled", pulled), ("synced", synced)):
            for wrong in ({"epoch": known.epoch - 1}, {"shard": "nobody"}, {"epoch": 99}):
                question = {"shard": shard, "epoch": known.epoch, **what, **wrong}
                assert await ask(cluster, method, **question) == {"status": "stale"}
        for method, what in (("pulled", pulled), ("synced", synced)):
            question = {"shard": shard, "epoch": known.epoch, **what, "stripe": 7}
            assert await ask(cluster, method, **question) == {"status": "stale"}
        assert known.moved_pages == 0
        assert 7 not in known.stripes
        assert await ask(cluster, "note", shard=shard, epoch=known.epoch, **note) == {
            "status": "OK"
        }
        assert known.stripes[7].clients == {"me"}
        assert len(known.stripes[0].clients) == 2
        assert known.stripes[7].holders == (known.members.owners(7)[0].name,)


@on_a_cluster(1)
async def test_a_client_that_was_away_is_attached_again(cluster: PlainCluster) -> None:
    async with await make_store(cluster) as store:
        known = state(cluster)
        client = known.clients.popitem()
        assert known.clients == {}
        await store.astore(0, PAGES)
        await store.ashards()
        assert known.clients == {client[0]: client[1]}
        assert (
            await cluster.answer("batchzip_directory", {"method": "fetch", "store": "none"})
        ) == {"status": "gone"}


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_worker_that_closes_by_itself_moves_its_pages_first(cluster: PlainCluster) -> None:
    async with await make_store(cluster) as store:
        for stripe in range(40):
            await store.astore(stripe * STRIPE, PAGES[:10])
        leaving = cluster.workers["plain://1"]
        await leaving.close()
        del cluster.workers[leaving.address]
        (shard,) = await store.ashards()
        assert (shard.worker, shard.pages) == ("plain://0", 400)
        assert (await store.aload_many([7 * STRIPE])).tobytes() == PAGES[0].tobytes()
        last = cluster.workers["plain://0"]
        await last.close()
        del cluster.workers[last.address]
        lost = (await ask(cluster, "losses"))["losses"]
        assert {loss[2] for loss in lost} == {"the worker was retired, and no other is left"}
        assert len(lost) == 40


@pytest.mark.slow
@on_a_cluster(2)
async def test_a_worker_that_has_no_time_to_move_its_pages_loses_them(
    cluster: PlainCluster,
) -> None:
    async with await make_store(cluster) as store:
        for stripe in range(40):
            await store.astore(stripe * STRIPE, PAGES[:10])
        cluster.workers["plain://1"].deaf_to.add("give")
        cluster.workers["plain://1"].status = Status.closing  # or it may get another shard
        answer = await cluster.answer(
            "batchzip_directory", {"method": "leave", "address": "plain://1", "timeout_s": 0.05}
        )
        assert answer == {"status": "OK"}
        lost = (await ask(cluster, "losses"))["losses"]
        assert {loss[2] for loss in lost} == {"the worker was retired before its pages were moved"}
        assert {loss[1] for loss in lost} == {"plain://1"}
        await until(lambda: not cluster.workers["plain://1"].service.shards)


@on_a_cluster(1)
async def test_a_store_is_asked_for_twice_and_made_once(cluster: PlainCluster) -> None:
    async with await make_store(cluster) as store:
        known = state(cluster)
        options = {"replicas": 1, "elastic": True, "pickled": b""}
        question = {
            "client": "c",
            "attachment": "a",
            "options": options,
            "workers": None,
            "epoch": 0,
        }
        answer = await ask(cluster, "create", **question)
        assert (answer["status"], answer["incarnation"]) == ("OK", known.incarnation)
        assert known.clients["a"] == "c"
        assert len(known.clients) == 2
        assert await ask(cluster, "detach", attachment="a") == {"status": "OK"}
        assert len(known.clients) == 1
        assert not known.ended
        assert (await store.ashards())[0].worker == "plain://0"


@pytest.mark.slow
@on_a_cluster(2)
async def test_pages_are_named_although_news_of_their_recovery_came_first(
    cluster: PlainCluster,
) -> None:
    async with await make_store(cluster) as store:
        gone = cluster.workers["plain://1"]
        owners = store._session._members.owners
        stripe = next(at for at in range(99) if owners(at)[0].address == gone.address)
        lost = range(stripe * STRIPE + 3, stripe * STRIPE + 8)
        await store.astore(lost.start, PAGES[:5])
        cluster.lose(gone)
        await store.ashards()
        cluster.late["recover"] = asyncio.Event()
        recovering = asyncio.ensure_future(store.arecover())
        await until(lambda: not state(cluster).lost)
        await store.ashards()
        assert not store._session._lost
        cluster.late["recover"].set()
        assert await recovering == [lost]


@pytest.mark.slow
@on_a_cluster(3)
async def test_workers_are_checked_by_any_client(cluster: PlainCluster) -> None:
    one, two, three = cluster.workers.values()
    client = PlainClient(cluster)
    await acheck_workers(client)
    await acheck_scheduler(client)
    assert [worker.asked.count("run") for worker in (one, two, three)] == [1, 1, 1]
    await acheck_workers(client, [two.address])
    assert [worker.asked.count("run") for worker in (one, two, three)] == [1, 2, 1]
    one.lacks = "it is not here"
    await acheck_workers(client, [two.address])
    with pytest.raises(BackendUnavailable, match=r"plain://0 .named worker-0.: .*it is not here"):
        await acheck_workers(client)
    with pytest.raises(BackendUnavailable, match="tcp://9: the scheduler knows no such worker"):
        await acheck_workers(client, ["tcp://9"])
    one.lacks = ""
    two.deaf_to.add("run")
    await acheck_workers(client, timeout_s=0.05, must_answer=False)
    with pytest.raises(BackendUnavailable, match=r"plain://1.*no answer in 0\.05 s"):
        await acheck_workers(client, timeout_s=0.05)
    for check in (check_workers, check_scheduler):
        with pytest.raises(BadArgument, match="an asynchronous Client cannot be used here"):
            check(client)
    waiting = PlainClient(cluster, asynchronous=False)
    await asyncio.to_thread(check_scheduler, waiting)
    await asyncio.to_thread(check_workers, waiting, [one.address])
    await asyncio.to_thread(check_workers, waiting, None, 0.05, must_answer=False)
    with pytest.raises(BackendUnavailable, match="plain://1"):
        await asyncio.to_thread(check_workers, waiting, None, 0.05)
    cluster.deaf_to.add("identity")
    with pytest.raises(
        ClusterLost, match=r"plain://scheduler does not answer .no answer in 0\.05 s"
    ):
        await acheck_workers(client, timeout_s=0.05)
    cluster.is_gone = True
    with pytest.raises(ClusterLost, match=r"does not answer .OSError: plain://scheduler is gone"):
        await acheck_scheduler(client)
    client.status = "closed"
    with pytest.raises(ClusterLost, match=r"not connected to a Dask scheduler .it is closed"):
        await acheck_workers(client)
    with pytest.raises(BadArgument, match="client"):
        await acheck_workers("tcp://1")  # type: ignore[arg-type] # that is the question
