"""A sharded store is awaited in one event loop while its client's loop ends, without a cluster."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from batchzip import ClusterLost
from batchzip.dask import ShardedStore


class Client:
    """A client that was closed just before something was to be done in its loop."""

    def __init__(self) -> None:
        self.status = "running"
        self._loop = asyncio.new_event_loop()
        self.loop = SimpleNamespace(asyncio_loop=self._loop)

    def close(self) -> None:
        self._loop.close()


async def work() -> None:
    raise AssertionError("this was done in a loop that does not run")


async def begun(client: Any) -> asyncio.Task[None]:
    waiting = asyncio.ensure_future(ShardedStore._await_in(client, work()))
    await asyncio.sleep(0)
    return waiting


async def ended(waiting: asyncio.Task[None]) -> asyncio.Task[None]:
    """Wait for a task, but not for ever."""
    done, _ = await asyncio.wait({waiting}, timeout=30)
    assert done, "it waits for a loop that has ended"
    return waiting


@pytest.mark.slow
def test_closing_the_client_fails_the_tasks_that_wait() -> None:
    async def run() -> None:
        client = Client()
        waiting = await begun(client)
        client.close()
        with pytest.raises(ClusterLost, match="the client is closed"):
            (await ended(waiting)).result()

    asyncio.run(run())


def test_a_cancelled_task_does_not_wait_for_a_closed_client() -> None:
    async def run() -> None:
        client = Client()
        waiting = await begun(client)
        client.close()
        waiting.cancel()
        assert (await ended(waiting)).cancelled()

    asyncio.run(run())
