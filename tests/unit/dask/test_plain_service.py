"""ShardService: what a worker's shards answer, and how long they may; without a cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Status
from support.cluster.plain import until

from batchzip import BatchzipError, ClosedError, StoreRejected
from batchzip.dask import service
from batchzip.dask.service import ShardService, install
from batchzip.dask.wire import SHARD, Stale, dump, error_of


class Shard:
    """What the service needs of a shard."""

    store_name = "store"
    epoch = 0
    page_size = 4096
    lease_until = 0.0

    def __init__(self, *_: object, **options: Any) -> None:
        self.made = time.monotonic()
        self.pages = options
        self.done: list[str] = []
        self.state: Any = None

    def learn(self, state: Any) -> None:
        self.state = state

    def end(self) -> None:
        self.done.append("end")

    def close(self) -> None:
        self.closes()
        self.done.append("close")

    def closes(self) -> None:
        """Do nothing, unless a test has something to do."""

    async def ping(self, what: Exception | str = "pong") -> Any:
        if isinstance(what, Exception):
            raise what
        return {"status": "OK", "said": what}


def a_service(directory: Any = None) -> tuple[ShardService, Any]:
    worker: Any = SimpleNamespace(
        address="tcp://1",
        extensions={},
        handlers={},
        status=Status.running,
        scheduler=SimpleNamespace(batchzip_directory=directory),
    )
    install(worker)
    handler = worker.handlers[SHARD]
    install(worker)
    assert worker.handlers[SHARD] is handler, "the shards that are there stay"
    return handler.__self__, worker


def test_a_service_answers_with_what_its_shard_says_or_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "Shard", Shard)

    async def directory(**_: Any) -> Any:
        return None

    async def run() -> None:
        found, worker = a_service(directory)
        opened = {"store": "store", "options": dump({"engine": 1})}
        assert await found.handle("open", "one", **opened) == {"status": "OK", "page_size": 4096}
        assert await found.handle("open", "two", **opened) == {"status": "OK", "page_size": 4096}
        one: Any = found.shards["one"]
        two: Any = found.shards["two"]
        assert one.pages == {"engine": 1, "others": []}
        assert two.pages == {"engine": 1, "others": [one.pages]}
        assert (await found.handle("ping", "one"))["said"] == "pong"
        assert await found.handle("ping", "none") == {"status": "gone"}
        assert await found.handle("ping", "one", what=Stale()) == {"status": "stale"}
        assert await found.handle("ping", "one", what=ClosedError("it is")) == {"status": "gone"}
        refused = await found.handle("ping", "one", what=StoreRejected("why", "full"))
        assert isinstance(error_of(refused), StoreRejected)
        assert "failed to" not in caplog.text
        broken = await found.handle("ping", "one", what=ZeroDivisionError("by zero"))
        assert str(error_of(broken)) == "worker tcp://1: ZeroDivisionError: by zero"
        assert type(error_of(broken)) is BatchzipError
        assert "A shard failed to ping" in caplog.text
        assert await found.handle("close", "one") == {"status": "OK"}
        assert one.done == ["end", "close"]
        assert list(found.shards) == ["two"]
        await worker.extensions["batchzip"].close()
        assert two.done == ["end", "close"]
        assert not found.shards
        answer = await found.handle("open", "three", **opened)
        assert str(error_of(answer)) == "worker tcp://1 is closing"
        assert not found.shards

    asyncio.run(run())


def test_leases_last_from_when_they_were_asked_for_and_what_is_gone_is_closed() -> None:
    asked: list[Any] = []
    ended: list[bool] = []
    begun = 0.0

    async def directory(method: str, address: str, shards: Any) -> Any:
        nonlocal begun
        begun = time.monotonic()
        asked.append(sorted(name for _, name, _ in shards))
        assert (method, address) == ("renew", "tcp://1")
        ok = "ok".upper()  # as it comes from the network: not the same object
        news = {"known": {"status": ok, "epoch": 2}, "gone": {"status": "gone"}}
        return {"status": ok, "lease_s": 5.0, "news": news}

    async def run() -> None:
        found, worker = a_service(directory)
        shards: dict[str, Any] = {
            name: Shard() for name in ("known", "gone", "unheard of", "new", "asking", "old")
        }
        for name in ("known", "gone", "unheard of"):
            shards[name].epoch = 1
        shards["old"].made -= service._KNOWN_S + 1
        found.shards.update(shards)
        shards["gone"].closes = lambda: ended.append("end" in shards["old"].done)
        await found.renew("asking")
        assert ended == [True], "all of them end before one is waited for"
        assert asked == [sorted({*shards} - {"new"})], "the directory may not know it yet"
        assert begun + 4 < shards["known"].lease_until <= begun + 5.0
        assert shards["known"].state == {"status": "OK", "epoch": 2}
        assert set(shards["gone"].done) == {"end", "close"}
        assert set(shards["unheard of"].done) == {"end", "close"}
        assert set(shards["old"].done) == {"end", "close"}
        assert list(found.shards) == ["known", "new"]
        assert shards["new"].lease_until == 0.0
        asked.clear()
        await asyncio.gather(*(found.renew() for _ in range(5)))
        assert len(asked) == 1, "one question serves all that wait"

        async def silent(**_: Any) -> Any:
            raise OSError

        worker.scheduler.batchzip_directory = silent
        with pytest.raises(Stale):
            await found.renew()
        assert list(found.shards) == ["known", "new"], "a scheduler that is silent ends nothing"
        found.threads.shutdown()

    asyncio.run(run())


def test_a_service_asks_others_and_takes_none_for_gone() -> None:
    async def run() -> None:
        async def nobody(**_: Any) -> Any:
            return None

        found, worker = a_service(nobody)
        worker.rpc = lambda _: SimpleNamespace(batchzip_shard=nobody)
        assert await found.ask("tcp://2", "two", "ping") == {"status": "gone"}
        assert await found.ask_directory("renew") == {"status": "gone"}

        async def echo(**what: Any) -> Any:
            return what

        worker.rpc = lambda address: SimpleNamespace(address=address, batchzip_shard=echo)
        asked = await found.ask("tcp://2", "two", "ping", epoch=1)
        assert asked == {"method": "ping", "shard": "two", "epoch": 1}
        worker.scheduler.batchzip_directory = echo
        assert await found.ask_directory("note", epoch=1) == {"method": "note", "epoch": 1}
        found.threads.shutdown()

    asyncio.run(run())


@pytest.mark.parametrize("method", ["open", "close"])
def test_a_shard_is_closed_though_its_request_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A thread is making it, or has not begun to close it, when the request is cancelled."""
    made: list[Shard] = []
    gate = threading.Event()

    class Noted(Shard):
        def __init__(self, *arguments: object, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)
            if method == "open":
                gate.wait(60)

    monkeypatch.setattr(service, "Shard", Noted)
    opened = {"store": "store", "options": dump({})}

    async def directory(**_: Any) -> Any:
        return None

    async def run() -> None:
        found, _ = a_service(directory)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, gate.wait, 60)
        if method == "close":
            await found.handle("open", "one", **opened)
        options = opened if method == "open" else {}
        request = asyncio.ensure_future(found.handle(method, "one", **options))
        await asyncio.sleep(0)
        await until(lambda: made)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        gate.set()
        await until(lambda: "close" in made[0].done)
        assert not found.shards
        await found.close()

    asyncio.run(run())
