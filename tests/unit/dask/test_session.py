"""Session: answers that come while a client asks the directory, without a cluster."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.dask import session as module
from batchzip.dask.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable


WITHOUT_SHARDS = {
    "status": "OK",
    "incarnation": "one",
    "epoch": 2,
    "page_size": 4096,
    "replicas": 1,
    "members": [],
    "lost": [],
    "recovered": [],
}
SHARD: Any = SimpleNamespace(member=SimpleNamespace(name="gone"), sent_at=lambda _: 0.0)


def waiting(asked: asyncio.Future[str], answer: Callable[[], None]) -> asyncio.Task[str]:
    """Wait for an answer that comes when the directory is asked; it has no such shard any more."""

    async def directory(**_: Any) -> dict[str, Any]:
        answer()
        return WITHOUT_SHARDS

    scheduler = SimpleNamespace(address="tcp://0", batchzip_directory=directory)
    client: Any = SimpleNamespace(scheduler=scheduler, id="client", status="running")
    session = Session(client, "store", 60.0)
    return asyncio.ensure_future(session._answer_of(asked, SHARD))


def test_an_answer_counts_that_came_before_its_shard_was_known_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)

    async def run() -> None:
        asked = asyncio.get_running_loop().create_future()
        assert await waiting(asked, lambda: asked.set_result("stored")) == "stored"

    asyncio.run(run())


@pytest.mark.slow
def test_an_error_that_nobody_waits_for_any_more_is_not_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    logged: list[Any] = []

    async def give_up() -> None:
        asked = asyncio.get_running_loop().create_future()

        def fail() -> None:
            asked.set_exception(OSError("the connection broke"))
            task.cancel()

        task = waiting(asked, fail)
        await asyncio.wait({task})
        assert task.cancelled()

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: logged.append(what))
        await give_up()
        gc.collect()

    asyncio.run(run())
    assert logged == []
