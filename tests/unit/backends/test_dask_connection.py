"""ClusterConnection: questions to a cluster and their answers, with a client that is a stand-in."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pytest
from support.cluster.plain import PlainClient, PlainCluster

from batchzip import BackendUnavailable, BadArgument, ClusterLost
from batchzip_dask.connection import ClusterConnection, pickled
from batchzip_dask.task_pages import TaskPages

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 15.0
SHARE = TaskPages(b"codec", 4096, (), np.zeros(0, np.uint8), np.zeros(0, np.uint32))


class Future:
    """A task's future. Its outcome is what the test says."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.releases = 0

    async def _result(self) -> Any:
        if self.outcome is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def release(self) -> None:
        self.releases += 1


class TaskClient(PlainClient):
    """A client whose tasks have the outcome that the test says."""

    outcome: Any = None

    def submit(self, *_: Any, **options: Any) -> Any:
        if isinstance(self.outcome, TypeError):
            raise self.outcome
        assert options["pure"] is False
        self.keys = [*getattr(self, "keys", []), options["key"]]
        self.future = Future(self.outcome)
        return self.future


@pytest.fixture
def client() -> Iterator[TaskClient]:
    """A synchronous client of a cluster with two workers, whose event loop is another thread's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> TaskClient:
        cluster = PlainCluster()

        async def ncores() -> dict[str, int]:
            return {"plain://0": 3, "plain://1": 4}

        cluster.handlers["ncores"] = ncores
        for number in range(2):
            cluster.add(number)
        return TaskClient(cluster, asynchronous=False)

    made = asyncio.run_coroutine_threadsafe(make(), loop).result(LIMIT_S)
    try:
        yield made
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(LIMIT_S)
            loop.close()


@pytest.fixture
def connection(client: TaskClient) -> Iterator[ClusterConnection]:
    made = ClusterConnection(client, connect_timeout_s=5.0)
    made.open()
    yield made
    made.close()
    assert client.status != "closed", "whoever made it closes it"


def test_a_task_is_told_by_its_outcome_or_its_error(
    client: TaskClient, connection: ClusterConnection
) -> None:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for outcome in ("done", ValueError("no"), CancelledError("restarted")):
        client.outcome = outcome
        connection.hand_out(SHARE, told.put)
        assert told.get(timeout=LIMIT_S) is outcome
    client.outcome = asyncio.CancelledError()
    connection.hand_out(SHARE, told.put)
    assert isinstance(told.get(timeout=LIMIT_S), asyncio.CancelledError)
    assert len(set(client.keys)) == 4, "no task takes another one's result"
    client.outcome = None
    drop = connection.hand_out(SHARE, told.put)
    assert connection._waiting
    drop()
    assert client.future.releases == 1
    connection.hand_out(SHARE, told.put)
    connection.close()
    for _ in range(2):  # the event loop has ended what was cancelled
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), client.loop.asyncio_loop).result(LIMIT_S)
    assert not connection._waiting
    assert told.empty()


def test_a_task_that_cannot_be_sent_says_why(
    client: TaskClient, connection: ClusterConnection
) -> None:
    client.outcome = TypeError("cannot pickle it")
    with pytest.raises(
        BackendUnavailable, match=r"plain://scheduler cannot run its task: .*pickle"
    ):
        connection.hand_out(SHARE, print)
    client.status = "connecting"
    with pytest.raises(ClusterLost, match=r"plain://scheduler is gone .the client is connecting"):
        connection.hand_out(SHARE, print)


def test_threads_and_what_workers_lack_are_asked_without_waiting(
    client: TaskClient, connection: ClusterConnection
) -> None:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    connection.count_threads(told.put)
    assert told.get(timeout=LIMIT_S) == 7
    connection.check_workers()
    connection.ask_workers(told.put)
    assert told.get(timeout=LIMIT_S) is None
    client._cluster.workers["plain://1"].lacks = "it is not here"
    with pytest.raises(BackendUnavailable, match="plain://1"):
        connection.check_workers()
    connection.ask_workers(told.put)
    assert "it is not here" in str(told.get(timeout=LIMIT_S))
    client._cluster.is_gone = True
    connection.count_threads(told.put)
    assert told.get(timeout=LIMIT_S) is None
    connection.ask_workers(told.put)
    assert told.get(timeout=LIMIT_S) is None, "a scheduler that is gone is no fault of workers"


def test_a_connection_is_checked(client: TaskClient, connection: ClusterConnection) -> None:
    states = [connection.is_connected]
    assert connection.address == "plain://scheduler"
    connection.check()
    error = ClusterLost("it is")
    assert connection.named(error) is error
    named = connection.named(ZeroDivisionError("by zero"))
    assert isinstance(named, BackendUnavailable)
    assert isinstance(named.__cause__, ZeroDivisionError)
    assert "by zero" in str(named)
    client.status = "closing"
    states.append(connection.is_connected)
    assert states == [True, False]
    for check in (connection.check, ClusterConnection(client, connect_timeout_s=1.0).open):
        with pytest.raises(ClusterLost, match="the client is closing"):
            check()
    client.status = "running"
    loop = client.loop.asyncio_loop
    loop.call_soon_threadsafe(loop.stop)
    while loop.is_running():
        threading.Event().wait(0.001)
    loop.close()
    with pytest.raises(ClusterLost, match="the client of plain://scheduler is closed"):
        connection.count_threads(print)


def test_a_cluster_is_a_client_an_address_or_what_dask_says() -> None:
    with pytest.raises(
        BadArgument, match=r"must be a distributed\.Client or a scheduler's address, not 7"
    ):
        ClusterConnection(7, connect_timeout_s=1.0)  # type: ignore[arg-type] # that is the question
    with pytest.raises(
        BackendUnavailable, match=r"needs a cluster: make a distributed\.Client first"
    ):
        ClusterConnection(None, connect_timeout_s=1.0)
    with dask.config.set({"scheduler-address": "tcp://127.0.0.1:9"}):
        found = ClusterConnection(None, connect_timeout_s=0.05)
    with pytest.raises(BackendUnavailable, match=r"^no Dask scheduler at tcp://127\.0\.0\.1:9: "):
        found.open()
    found.close()

    async def refuse() -> None:
        client = PlainClient(PlainCluster())
        with pytest.raises(BadArgument, match="threads cannot wait for an asynchronous Client"):
            ClusterConnection(client, connect_timeout_s=1.0)

    asyncio.run(refuse())
    odd: Any = threading.Lock()
    with pytest.raises(BadArgument, match="cannot be pickled for workers"):
        pickled(odd)
