"""The probe names workers that have another batchzip or none, and they live on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client
from support.cluster.commands import other_environment, scheduler_command, worker_command
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test

import batchzip
from batchzip import BackendUnavailable, BadArgument, ClusterLost
from batchzip.dask import ShardedStore
from batchzip.dask.probe import (
    PROTOCOL,
    Answer,
    acheck_scheduler,
    acheck_workers,
    check_scheduler,
    check_workers,
    probe,
    why_unfit,
)
from batchzip.testing import LeakCheck
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Scheduler
    from support.cluster.commands import Other

pytestmark = pytest.mark.slow

COMMAND = f"pip install 'batchzip[dask]=={batchzip.__version__}'"
FIT: Answer = {
    "python": "3.13.1",
    "executable": "/opt/python",
    "version": batchzip.__version__,
    "protocol": PROTOCOL,
    "error": None,
}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with scheduler_command() as address, worker_command(address, "--name", "fit"):
        yield address


@pytest.fixture(scope="module")
def client(scheduler: str) -> Iterator[Client]:
    with LeakCheck(), Client(scheduler, set_as_default=False) as client:
        yield client


@pytest.fixture(scope="module")
def fit(client: Client) -> str:
    return str(next(iter(client.nthreads())))


def test_workers_that_have_it_pass(client: Client, fit: str) -> None:
    check_workers(client)
    check_workers(client, [fit, fit])
    check_workers(client, iter([]))
    check_scheduler(client)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", r"cannot be imported \(ModuleNotFoundError: No module named 'batchzip'\)"),
        ("folder", "only a folder of that name exists"),
        ("older", r"it has batchzip 0\.0\.1, but 0\.\d+ is needed"),
        ("protocol", f"speaks protocol 0, but {PROTOCOL} is needed"),
        ("no core", r"cannot be used \(ImportError: libc\.so\.6: version not found\)"),
        ("exits", r"cannot be imported \(SystemExit: 3\)"),
    ],
)
def test_a_worker_that_lacks_it_is_named_and_keeps_its_futures(
    scheduler: str, client: Client, fit: str, tmp_path: Path, kind: Other, words: str
) -> None:
    environment = other_environment(kind, tmp_path)
    with worker_command(scheduler, "--name", "odd one", **environment):
        (odd,) = set(client.nthreads()) - {fit}
        kept = client.scatter({"kept": [1, 2, 3]}, workers=[odd])["kept"]
        pid = client.submit(os.getpid, workers=[odd]).result()
        for _ in range(2):  # a failed import leaves nothing that the next one finds
            with pytest.raises(BackendUnavailable) as refused:
                check_workers(client)
            lines = str(refused.value).splitlines()
            assert COMMAND in lines[0]
            assert len(lines) == 2, "one worker of two"
            assert lines[1].startswith(f"  {odd} (named odd one): ")
            assert re.search(words, lines[1])
            assert "; Python 3." in lines[1]
        check_workers(client, [fit])
        assert client.gather(kept) == [1, 2, 3]
        assert client.submit(os.getpid, pure=False, workers=[odd]).result() == pid
        kept.release()


@pytest.mark.parametrize("kind", ["missing", "older"])
def test_no_shard_is_placed_on_a_worker_that_lacks_it(
    scheduler: str, client: Client, fit: str, tmp_path: Path, kind: Other
) -> None:
    with ShardedStore(client) as store:
        store.store(0, make_pages(600))
        environment = other_environment(kind, tmp_path)
        with worker_command(scheduler, "--name", "odd one", **environment):
            (odd,) = set(client.nthreads()) - {fit}
            kept = client.scatter({"kept": 1}, workers=[odd])["kept"]
            for make in (store.rebalance, lambda: ShardedStore(client)):
                with pytest.raises(
                    BackendUnavailable, match=r"\(named odd one\): .*batchzip"
                ) as no:
                    make()
                assert COMMAND in str(no.value)
            with ShardedStore(client, workers=[fit]) as other:
                other.store(0, make_pages(1))
            assert [shard.worker for shard in store.shards] == [fit]
            assert store.load(599) == make_pages(600)[599].tobytes()
            assert client.gather(kept) == 1
            kept.release()


def test_a_scheduler_that_lacks_it_is_named(tmp_path: Path) -> None:
    with (
        scheduler_command(**other_environment("missing", tmp_path)) as address,
        Client(address, set_as_default=False) as client,
    ):
        check_workers(client)  # there is none
        with pytest.raises(
            BackendUnavailable, match=r"the scheduler at tcp:\S+: batchzip cannot"
        ) as no:
            check_scheduler(client)
        assert COMMAND in str(no.value)
        with pytest.raises(BackendUnavailable, match=r"the scheduler at tcp:\S+: batchzip cannot"):
            ShardedStore(client)


def test_a_worker_that_hangs_or_is_gone_is_named_soon(
    scheduler: str, client: Client, fit: str
) -> None:
    with worker_command(scheduler, "--name", "deaf"):
        (deaf,) = set(client.nthreads()) - {fit}
        pid = client.submit(os.getpid, workers=[deaf]).result()
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BackendUnavailable, match=r"named deaf\): no answer in 0\.5 s"):
                check_workers(client, timeout_s=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        check_workers(client)
    with pytest.raises(BackendUnavailable, match="knows no such worker"):
        check_workers(client, [deaf])


def test_coroutines_ask_from_any_loop_with_any_client(client: Client, scheduler: str) -> None:
    async def with_its_own() -> None:
        async with Client(scheduler, asynchronous=True, set_as_default=False) as own:
            await acheck_workers(own)
            await acheck_scheduler(own)
            with pytest.raises(BackendUnavailable, match="no such worker"):
                await acheck_workers(own, ["tcp://127.0.0.1:1"])
            with pytest.raises(BadArgument, match="await acheck_workers"):
                check_workers(own)

    async def with_another_loops() -> None:
        await asyncio.gather(acheck_workers(client), acheck_scheduler(client))
        with pytest.raises(BackendUnavailable, match="no such worker"):
            await acheck_workers(client, ["tcp://127.0.0.1:1"])

    asyncio.run(with_its_own())
    asyncio.run(with_another_loops())


async def _asks(dask_scheduler: Scheduler) -> str:
    gone = "tcp://127.0.0.1:1"
    reasons = await probe(dask_scheduler.rpc, [*dask_scheduler.workers, gone], 2.0)
    assert list(reasons) == [gone]
    return reasons[gone]


def test_the_scheduler_asks_too(client: Client, fit: str) -> None:
    said: Any = client.run_on_scheduler(_asks)
    assert said.startswith("no answer")
    assert client.sync(probe, client.rpc, [fit]) == {}


def test_a_client_that_is_closed_or_none_is_refused(scheduler: str) -> None:
    with Client(scheduler, set_as_default=False) as client:
        pass
    for check in (check_workers, check_scheduler):
        with pytest.raises(ClusterLost):
            check(client)
        with pytest.raises(BadArgument, match="client"):
            check(scheduler)  # type: ignore[arg-type] # that is the question


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        (batchzip.__version__, True),
        (batchzip.__version__.rpartition(".")[0] + ".77", True),
        (batchzip.__version__ + "+local", True),
        ("0.0.9", False),
        ("1.0.0", False),
        ("0", False),
        ("unknown", False),
    ],
)
def test_until_1_0_the_first_two_numbers_of_a_version_count(version: str, fits: bool) -> None:
    reason = why_unfit({**FIT, "version": version})
    assert (reason is None) == fits
    assert why_unfit({**FIT, "protocol": PROTOCOL + 1}) is not None
