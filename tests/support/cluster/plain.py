"""A Dask cluster in one event loop: scheduler, workers and clients as far as a sharded store uses them.

Messages are serialized as Dask does it. A test starts in milliseconds, and decides who is gone.
"""

from __future__ import annotations

import asyncio
import inspect
import uuid
from contextlib import asynccontextmanager
from functools import wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client
from distributed.core import Status
from distributed.protocol import dumps, loads, pickle

from batchzip.dask import directory, service, session
from batchzip.dask.wire import SHARD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine


def travel(message: Any) -> Any:
    """Return a message as the other side gets it."""
    return loads([bytes(frame) for frame in dumps(message)])


class Process:
    """What answers requests, unless it is gone."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.handlers: dict[str, Any] = {}
        self.is_gone = False
        self.asked: list[str] = []
        """The methods that others asked for."""
        self.deaf_to: set[str] = set()
        """Methods that get no answer."""
        self.late: dict[str, asyncio.Event] = {}
        """Methods whose answers arrive when an event is set."""

    async def answer(self, name: str, message: dict[str, Any]) -> Any:
        """Answer a request, as it comes through the network."""
        await asyncio.sleep(0)
        self._check()
        method = str(message.get("method", name))
        self.asked.append(method)
        if method in self.deaf_to:
            await asyncio.get_running_loop().create_future()
        handler = self.handlers.get(name)
        answer = None if handler is None else await handler(**travel(message))
        answer = travel(answer)
        if method in self.late:
            await self.late[method].wait()
        self._check()
        return answer

    def _check(self) -> None:
        if self.is_gone:
            raise OSError(f"{self.address} is gone")


class Rpc:
    """A process as others see it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.address = process.address

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        return lambda **message: self._process.answer(name, message)


class PlainWorker(Process):
    """A worker. `lacks` is why it has no usable batchzip, if so."""

    def __init__(self, cluster: PlainCluster, address: str, name: str) -> None:
        super().__init__(address)
        self.name = name
        self.lacks = ""
        self.extensions: dict[str, Any] = {}
        self.status = Status.running
        self.memory_manager = SimpleNamespace(memory_limit=None)
        self.state = SimpleNamespace(nthreads=1)
        self.local_directory = None
        self.rpc = cluster.rpc
        self.scheduler = Rpc(cluster)
        self.handlers["run"] = self._run

    @property
    def service(self) -> service.ShardService:
        """Return the service that has the worker's shards."""
        handler: Any = self.handlers[SHARD]
        found: service.ShardService = handler.__self__
        return found

    async def _run(self, function: bytes, args: bytes = b"") -> Any:
        called: Any = pickle.loads(function)
        if called.__name__ == "install":
            called(dask_worker=self)
            return {"status": "OK", "result": None}
        result = await called(*pickle.loads(args))
        if self.lacks:
            result.update(version=None, error=self.lacks)
        return {"status": "OK", "result": result}

    async def close(self) -> None:
        """Close in an orderly way."""
        self.status = Status.closing
        for extension in self.extensions.values():
            await extension.close()
        self.is_gone = True


class PlainClient(Client):
    """A client whose event loop is the one that it is made in."""

    def __init__(self, cluster: PlainCluster, *, asynchronous: bool = True) -> None:
        self.id = f"client-{uuid.uuid4().hex}"
        self.status = "running"
        self.scheduler: Any = Rpc(cluster)
        self._cluster = cluster
        self._is_asynchronous = asynchronous
        self._asyncio_loop = asyncio.get_running_loop()
        self.rpc: Any = cluster.rpc
        cluster.clients[self.id] = self

    def __del__(self) -> None:
        """Do nothing: there is no connection."""

    def close(self, timeout: Any = None) -> Any:  # noqa: ARG002 - Dask's
        """Close it. Return an awaitable if its methods are awaited."""
        self.status = "closed"
        return asyncio.sleep(0) if self._is_asynchronous else None

    def sync(self, func: Any, *args: Any, **options: Any) -> Any:
        """Run a coroutine function in its event loop, and wait for it in another thread."""
        work = func(*args, **options)
        return asyncio.run_coroutine_threadsafe(work, self._asyncio_loop).result()

    @property
    def asynchronous(self) -> bool:
        """Return whether its methods are awaited."""
        return self._is_asynchronous

    @property
    def loop(self) -> Any:
        """Return its event loop, as Tornado's."""
        return SimpleNamespace(asyncio_loop=self._asyncio_loop)

    async def _register_scheduler_plugin(self, plugin: Any, name: str, idempotent: bool) -> None:
        assert (name, idempotent) == (directory.NAME, True)
        await asyncio.sleep(0)
        self._cluster._check()
        if self._cluster.directory is None:
            self._cluster.directory = plugin
            plugin.start(self._cluster)


class PlainCluster(Process):
    """The scheduler, which knows workers and clients."""

    def __init__(self) -> None:
        super().__init__("plain://scheduler")
        self.workers: dict[str, PlainWorker] = {}
        self.clients: dict[str, PlainClient] = {}
        self.all: list[PlainWorker] = []
        self.retired: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.directory: directory.Directory | None = None
        self.http_application = SimpleNamespace(add_handlers=lambda *_: None)
        self.restart()

    def restart(self) -> None:
        """Forget all stores, as a new scheduler at the same address does."""
        self.directory = None
        self.handlers = {
            "run_function": self._run,
            "retire_workers": self._retire,
            "identity": self._identity,
            "proxy": self._proxy,
        }

    async def _identity(self) -> Any:
        names = {address: {"name": worker.name} for address, worker in self.workers.items()}
        return {"workers": names}

    async def _proxy(self, worker: str, msg: dict[str, Any]) -> Any:
        return await self.workers[worker].answer(msg.pop("op"), msg)

    async def _run(self, function: bytes, args: bytes) -> Any:
        return {"status": "OK", "result": await pickle.loads(function)(*pickle.loads(args))}

    async def _retire(self, *arguments: Any, **options: Any) -> str:
        self.retired.append((arguments, options))
        return "retired"

    def workers_to_close(self, n: int = 1) -> list[str]:
        """Return the workers that came last."""
        return list(self.workers)[-n:]

    def rpc(self, address: str) -> Rpc:
        """Return a worker as others see it."""
        return Rpc(next(one for one in reversed(self.all) if one.address == address))

    def add(self, number: int) -> PlainWorker:
        """Start a worker."""
        worker = PlainWorker(self, f"plain://{number}", f"worker-{number}")
        self.all.append(worker)
        self.workers[worker.address] = worker
        if self.directory is not None:
            self.directory.add_worker(self, worker.address)  # type: ignore[arg-type] # a stand-in
        return worker

    def lose(self, worker: PlainWorker) -> None:
        """End a worker's process, which the scheduler notices."""
        self.end(worker)
        del self.workers[worker.address]
        if self.directory is not None:
            self.directory.remove_worker(self, worker.address)  # type: ignore[arg-type]

    def end(self, worker: PlainWorker) -> None:
        """End a worker's process. The scheduler does not notice."""
        worker.is_gone = True
        if SHARD in worker.handlers:
            for shard in worker.service.shards.values():
                shard.close()
            worker.service.shards.clear()
            worker.service.threads.shutdown(wait=False)


@asynccontextmanager
async def a_cluster(workers: int) -> AsyncIterator[PlainCluster]:
    """Start a cluster, whose times are shorter than Dask's network needs."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (directory, session):
            patch.setattr(module, "LEASE_S", 0.4)
            patch.setattr(module, "_LOOK_S", 0.02)
            patch.setattr(module, "_GONE_S", 0.02)
        patch.setattr(service, "_RENEW_S", 0.01)
        cluster = PlainCluster()
        try:
            for number in range(workers):
                cluster.add(number)
            yield cluster
        finally:
            cluster.is_gone = True  # workers that end move nothing
            for worker in cluster.all:
                if not worker.is_gone:
                    await worker.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop go on until a condition is met."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - conditions of anything
            await asyncio.sleep(0.001)


def on_a_cluster(workers: int) -> Callable[..., Callable[..., None]]:
    """Decorate a coroutine so that it is a test on a cluster of its own, its first argument."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        async def begin(*arguments: Any, **named: Any) -> None:
            async with a_cluster(workers) as cluster:
                await test(cluster, *arguments, **named)

        @wraps(test)
        def run(**named: Any) -> None:
            asyncio.run(begin(**named))

        # pytest must not take the cluster for a fixture.
        _, *others = inspect.signature(test).parameters.values()
        run.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
        return run

    return decorate
