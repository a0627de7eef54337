"""ShardClient sends every request to its shard, whenever it comes, without a cluster."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip.dask.members import Member
from batchzip.dask.shard_client import ShardClient, Unanswered
from batchzip.dask.wire import SHARD

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PAGE = 4096
STORED = {"status": "OK", "errors": [None]}
LOADED = {"status": "OK", "errors": [], "pages": np.zeros((1, PAGE), np.uint8)}


class Worker:
    """A worker that answers what it is asked when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, asyncio.Future[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        assert name == SHARD

        async def ask(method: str, **_: Any) -> Any:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.asked.append((method, answer))
            return await answer

        return ask

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]

    def answer(self, number: int, answer: Any) -> None:
        self.asked[number][1].set_result(answer)


def opened() -> tuple[ShardClient, Worker]:
    worker = Worker()
    return ShardClient(lambda _: worker, Member("one", "tcp://1"), "client", PAGE), worker


def store(client: ShardClient, index: int) -> asyncio.Future[Exception | None]:
    return client.store(1, index, (index, 1), np.zeros((1, PAGE), np.uint8))


def load(client: ShardClient) -> asyncio.Future[Any]:
    return client.load(1, np.array([0], np.int64))


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    return run


async def turns(count: int = 20) -> None:
    """Let the event loop do all that is due."""
    for _ in range(count):
        await asyncio.sleep(0)


def after(callbacks: int, what: Callable[[], None]) -> None:
    """Call `what` after a chain of `callbacks` callbacks of the event loop."""
    if callbacks == 0:
        what()
    else:
        asyncio.get_running_loop().call_soon(after, callbacks - 1, what)


@pytest.mark.parametrize("callbacks", range(8))
@in_a_loop
async def test_a_store_made_while_an_answer_arrives_is_sent(callbacks: int) -> None:
    client, worker = opened()
    first, others = store(client, 0), []
    await turns()
    worker.answer(0, STORED)
    after(callbacks, lambda: others.append(store(client, 1)))
    await turns()
    assert first.result() is None
    assert worker.methods() == ["put", "put"]
    worker.answer(1, STORED)
    await turns()
    assert others[0].result() is None


@pytest.mark.parametrize("ask", [load, lambda client: store(client, 0)], ids=["load", "store"])
@in_a_loop
async def test_a_closed_place_leaves_nobody_waiting(ask: Callable[[ShardClient], Any]) -> None:
    client, _ = opened()
    asked = [ask(client) for _ in range(4)]
    await turns()
    client.close()
    asked.append(ask(client))  # before what was under way has ended
    await turns()
    asked.append(ask(client))
    await turns()
    assert all(one.done() for one in asked)
    for one in asked:
        with pytest.raises(Unanswered, match="was given up"):
            await one


@in_a_loop
async def test_loads_that_are_answered_do_not_make_a_store_wait_longer() -> None:
    client, worker = opened()
    store(client, 0).cancel()  # nobody waits for its answer any more
    first = store(client, 0)
    await turns()
    waiting = store(client, 1)
    first.cancel()
    begun = client.sent_at(waiting)
    loaded = load(client)
    await turns()
    worker.answer(worker.methods().index("get"), LOADED)
    await loaded
    assert client.sent_at(waiting) == begun
    worker.answer(worker.methods().index("put"), STORED)
    await turns()
    assert client.sent_at(waiting) > begun
    client.close()
    await turns()
