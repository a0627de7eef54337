"""ShardService: the leases of a worker's shards; without a cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

from batchzip.dask.service import ShardService

WORKER: Any = SimpleNamespace(address="tcp://1")


class Shard:
    """What the service needs of a shard; its `close` ends when it is let."""

    def __init__(self, store_name: str) -> None:
        self.store_name = store_name
        self.epoch = 1
        self.made = 0.0
        self.lease_until = 0.0
        self.closes = threading.Event()
        self.may_close = threading.Event()

    def learn(self, _: Any) -> None:
        pass

    def end(self) -> None:
        pass

    def close(self) -> None:
        self.closes.set()
        self.may_close.wait(60)


class Service(ShardService):
    """A service whose directory knows one store of the two."""

    async def ask_directory(self, method: str, *_: Any, **what: Any) -> dict[str, Any]:
        assert method == "renew"
        news = {
            name: {"status": "OK" if store == "known" else "gone"}
            for store, name, _ in what["shards"]
        }
        return {"status": "OK", "lease_s": 2.0, "news": news}


def test_a_store_that_is_being_closed_keeps_no_other_waiting_for_its_lease() -> None:
    async def run() -> None:
        service = Service(WORKER)
        ended, known = Shard("ended"), Shard("known")
        shards: dict[str, Any] = {"one": ended, "other": known}
        service.shards.update(shards)
        closing = asyncio.ensure_future(service.renew())
        await asyncio.to_thread(ended.closes.wait, 60)
        known.lease_until = 0.0
        try:
            await asyncio.wait_for(service.renew(), 30)
            assert known.lease_until > time.monotonic()
            assert not closing.done()
        finally:
            ended.may_close.set()
        await closing
        assert list(service.shards) == ["other"]
        service.threads.shutdown()

    asyncio.run(run())
