"""ShardedStore: pages by index, in the memory of a Dask cluster's workers.

    caller's thread or task ─▶ ShardedStore ─▶ Session, in the client's event loop ─▶ shards

This class checks arguments and runs calls in the event loop of its Dask client. A page's way is in
session.py (client) and shard.py (worker). Pages do not pass through the scheduler, where
directory.py is.

A worker's memory is lost with it. With one replica, its pages then raise PagesLost, which names
them, until they are invalidated or `recover` forgets them. With two replicas, another worker has
them, and copies them to a new second owner. Rejected: letting Dask restart a lost shard. It would
be empty, and acknowledged pages would be reported as never stored.
"""

# ruff: noqa: SLF001 - private members of objects that are made here without their __init__

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import uuid
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
from distributed import Client, get_client, get_worker

from batchzip.arguments.checks import as_fraction, as_index, as_integer, as_seconds
from batchzip.dask.connect import aconnect, connect
from batchzip.dask.session import Session, ShardStatus, take_outcome
from batchzip.dask.survey import ask_store
from batchzip.dask.wire import dump
from batchzip.errors import BadArgument, ClosedError, ClusterLost, PageNotStored
from batchzip.store.arguments import (
    MAX_INDEX,
    as_indices,
    as_out,
    as_pages,
    as_range,
    as_room,
)
from batchzip.system.lifetime import Owned
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence
    from typing import Self, SupportsIndex

    import numpy.typing as npt

    from batchzip.arguments.buffers import Buffer, Bytes
    from batchzip.dask.survey import StoreFigures
    from batchzip.store import Counters

__all__ = ["ShardStatus", "ShardedStore"]

T = TypeVar("T")

_MOST_REPLICAS = 8

_LEAST_S = 0.001
"""Minimum timeout in seconds. Nothing answers faster."""

_CLOSE_S = 5.0
"""Seconds that closing may wait for the directory."""

_LOOK_S = 0.5
"""Seconds between two checks whether the client is still open."""

_MARK = "/batchzip/"

_taking = threading.RLock()
"""Decides which of several concurrent first uses of a store attaches it."""


class ShardedStore(Owned):
    """Keeps pages compressed in the memory of Dask workers.

    `client`           A synchronous `distributed.Client` (`acreate` takes an asynchronous one),
                       which the caller closes. Workers must be reachable from here. They and the
                       scheduler need batchzip.
    `workers`          Addresses of the workers to use. Default: all current and future workers.
    `replicas`         Number of workers that have each page. With 2, losing one worker loses
                       nothing.
    `engine`           Keyword arguments of each shard's Engine: algorithm, level, page_size, …
    `store`            Keyword arguments of each shard's SwapStore: max_pool_bytes, backing, …
                       Limits apply per shard, and paths are on the shard's machine.
    `memory_fraction`  Fraction of the worker's memory limit for a shard's pool, unless `store` sets
                       the limit. The pool gets less if Dask would otherwise spill or pause the
                       worker.
    `spill`            Whether pages go to the worker's local directory when the pool is full.
                       Otherwise they are rejected.
    `timeout_s`        Seconds after which a worker that does not answer counts as lost.

    The store exists as long as anybody has it open. Other processes and tasks open it with
    `attach`, or by unpickling a copy. The last one to close it releases it. A new worker gets its
    part of the pages. The pages of a worker that is retired, scaled down or terminated move to
    other workers first.

    Thread-safe, and bound to its process. Each method that waits has a twin for asyncio (`astore`,
    `aload`, …), which may be awaited in any event loop.

    Examples:
        >>> import batchzip.dask
        >>> from distributed import Client, LocalCluster
        >>> here = {"processes": False, "dashboard_address": ":0", "memory_limit": "1 GiB"}
        >>> with LocalCluster(n_workers=1, **here) as cluster, Client(cluster) as client:
        ...     with batchzip.dask.ShardedStore(client, engine={"algorithm": "lz4"}) as store:
        ...         store.store(0, [bytes([n]) * 4096 for n in range(100)])
        ...         with batchzip.dask.ShardedStore.attach(store.address, client) as same:
        ...             same.load(42)[:2], len(same)
        (b'**', 100)
    """

    _unattached: tuple[str, float] | None = None
    """Address and timeout of a store that is not yet attached."""

    _finalizer: weakref.finalize[Any, Any] | None = None

    def __init__(
        self,
        client: Client,
        *,
        workers: Iterable[str] | None = None,
        replicas: int = 1,
        engine: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        memory_fraction: float = 0.4,
        spill: bool = True,
        timeout_s: float = 60.0,
    ) -> None:
        if not isinstance(client, Client) or client.asynchronous:
            raise BadArgument(
                f"client must be a synchronous distributed.Client, not {shown(client)}"
            )
        options = _options(workers, replicas, engine, store, memory_fraction, spill, timeout_s)
        session = _session(client, uuid.uuid4().hex, float(timeout_s))
        self._run_in(client, session, session.create(*options))
        self._set_attached(client, session)
        super().__init__()

    @classmethod
    async def acreate(
        cls,
        client: Client,
        *,
        workers: Iterable[str] | None = None,
        replicas: int = 1,
        engine: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        memory_fraction: float = 0.4,
        spill: bool = True,
        timeout_s: float = 60.0,
    ) -> Self:
        """Create a store with an asynchronous client. Close it with `aclose`."""
        if not isinstance(client, Client) or not client.asynchronous:
            raise BadArgument(f"client must be an asynchronous Client, not {shown(client)}")
        options = _options(workers, replicas, engine, store, memory_fraction, spill, timeout_s)
        session = _session(client, uuid.uuid4().hex, float(timeout_s))
        await cls._await_in(client, session.create(*options))
        made = cls.__new__(cls)
        made._set_attached(client, session)
        Owned.__init__(made)
        return made

    @classmethod
    def attach(cls, address: str, client: Client | None = None, *, timeout_s: float = 60.0) -> Self:
        """Open a store that another process made, by its `address`.

        Without `client`, a task uses its worker's client. Elsewhere the current client is used if
        it has the same scheduler; otherwise one is made, and closed with the store. Raise
        ClusterLost if the store does not exist.
        """
        made = cls._make_unattached(address, as_seconds(timeout_s, "timeout_s", least=_LEAST_S))
        made._open(client)
        return made

    @classmethod
    async def aattach(
        cls, address: str, client: Client | None = None, *, timeout_s: float = 60.0
    ) -> Self:
        """Do what `attach` does, in an asyncio program."""
        made = cls._make_unattached(address, as_seconds(timeout_s, "timeout_s", least=_LEAST_S))
        await made._aopen(client)
        return made

    @classmethod
    def _make_unattached(cls, address: str, timeout_s: float) -> Self:
        """Return a store that attaches on first use: where a pickle is loaded, it may not yet."""
        _split(address)
        made = cls.__new__(cls)
        made._unattached = address, timeout_s
        Owned.__init__(made)
        return made

    def _open(self, client: Client | None = None) -> None:
        """Attach to the store at the address."""
        address, timeout_s = self._unattached  # type: ignore[misc] # it is unattached
        scheduler, name = _split(address)
        own = None
        if client is None:
            client = _client_here(scheduler)
        if client is None:
            client = own = connect(scheduler, timeout_s)
        session = _session(client, name, timeout_s)
        try:
            self._run_in(client, session, session.attach())
        except BaseException:
            if own is not None:
                own.close()
            raise
        if not self._set_attached(client, session, own):  # another thread attached first
            self._run_in(client, session, session.detach())
            if own is not None:
                own.close()

    async def _aopen(self, client: Client | None = None) -> None:
        address, timeout_s = self._unattached  # type: ignore[misc] # it is unattached
        scheduler, name = _split(address)
        own = None
        if client is None:
            client = _client_here(scheduler)
        if client is None:
            client = own = await aconnect(scheduler, timeout_s)
        elif client.asynchronous and client.status in ("newly-created", "connecting"):
            await client  # the worker's own client, in a task that is a coroutine
        session = _session(client, name, timeout_s)
        try:
            await self._await_in(client, session.attach())
        except BaseException:
            if own is not None:
                await own.close()
            raise
        if not self._set_attached(client, session, own):
            await self._await_in(client, session.detach())
            if own is not None:
                await own.close()

    def _set_attached(self, client: Client, session: Session, own: Client | None = None) -> bool:
        """Become attached with these objects. Return False if another thread came first."""
        with _taking:
            if self._finalizer is not None:
                return False
            self._client, self._session, self._own_client = client, session, own
            self._finalizer = weakref.finalize(self, _detach_collected, client, session, own)
            self._finalizer.atexit = False
            self._unattached = None
        return True

    @property
    def page_size(self) -> int:
        """Return the bytes of a page."""
        self._enter()
        return self._session.page_size

    @property
    def address(self) -> str:
        """Return what `attach` takes: the scheduler's address and the store's name."""
        if self._unattached is not None:
            return self._unattached[0]
        return f"{self._session.scheduler_address}{_MARK}{self._session.name}"

    def __reduce__(self) -> tuple[Any, ...]:  # type: ignore[override] # another can attach
        if self._unusable:
            self._refuse()
        timeout_s = self._unattached[1] if self._unattached else self._session.timeout_s
        return _unpickle, (self.address, timeout_s)

    def _enter(self) -> None:
        if self._unusable:
            self._refuse()
        if self._unattached is not None:
            self._open()

    async def _aenter(self) -> None:
        if self._unusable:
            self._refuse()
        if self._unattached is not None:
            await self._aopen()

    def _survey(self) -> StoreFigures:
        """Return the figures of the store and every shard, for metrics."""
        self._enter()
        return self._run(ask_store(self._client.scheduler, _split(self.address)[1]))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._run_in(self._client, self._session, work)

    @classmethod
    def _run_in(cls, client: Client, session: Session, work: Coroutine[Any, Any, T]) -> T:
        """Run work in the client's event loop, and wait for it."""
        loop = _loop_of(client, work)
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                work.close()
                raise BadArgument(
                    "this is the client's own event loop, which must not wait: "
                    "await aload, astore, …"
                )
        call = _LoopCall(loop, work)
        try:
            while True:
                try:
                    return call.outcome.result(_LOOK_S)
                except concurrent.futures.TimeoutError:
                    if call.outcome.done():
                        return call.outcome.result()
                    call.check(client)
                except concurrent.futures.CancelledError:
                    raise ClusterLost("the client was closed") from None
        except (Exception, concurrent.futures.CancelledError):
            raise
        except BaseException:
            # An interrupt. The work is ended or undone before the caller can do anything else.
            call.cancel()
            with suppress(Exception, concurrent.futures.CancelledError):
                call.outcome.result(session.timeout_s)
            raise

    async def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._await_in(self._client, work)

    @staticmethod
    async def _await_in(client: Client, work: Coroutine[Any, Any, T]) -> T:
        """Run work in the client's event loop, and await it in this one."""
        loop = _loop_of(client, work)
        if asyncio.get_running_loop() is loop:
            return await work
        call = _LoopCall(loop, work)
        waiting = asyncio.wrap_future(call.outcome)
        waiting.add_done_callback(take_outcome)
        try:
            while not (await asyncio.wait({waiting}, timeout=_LOOK_S))[0]:
                call.check(client)
            return waiting.result()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                raise ClusterLost("the client was closed") from None
            # The work is ended or undone before the caller can do anything else.
            call.cancel()
            with suppress(ClusterLost):
                while not waiting.done():
                    call.check(client)
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait({waiting}, timeout=_LOOK_S)
            raise

    # Pages.

    def store(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio at `index`, `index` + 1, …: all of its pages, or none.

        `pages` has the forms that SwapStore.store takes. Raise what that raises. Raise PagesLost if
        an index lies in a lost stripe of 512; nothing is stored then. If a folio spans stripes or
        is larger than 1 MiB, its pieces may become visible to readers one by one.
        """
        self._enter()
        self._run(self._store(index, pages))

    async def astore(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio as `store` does. Its pages must not change until it is stored."""
        await self._aenter()
        await self._await(self._store(index, pages))

    def _store(
        self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]
    ) -> Coroutine[Any, Any, None]:
        matrix = as_pages(pages, self.page_size)
        if isinstance(matrix, list):
            matrix = np.frombuffer(b"".join(matrix), np.uint8).reshape(-1, self.page_size)
        first, _ = as_range(index, len(matrix))
        return self._session.store(first, matrix)

    @overload
    def load(self, index: SupportsIndex, out: None = None) -> bytes: ...

    @overload
    def load(self, index: SupportsIndex, out: Buffer) -> Buffer: ...

    def load(self, index: SupportsIndex, out: Buffer | None = None) -> Buffer:
        """Return the bytes of one page. With `out`, a writable buffer, fill it and return it.

        Raise what SwapStore.load raises, or PagesLost if the page is lost.
        """
        self._enter()
        view = None if out is None else as_out(out, self.page_size)
        where = _stored(index)
        with self._session.naming((where,)):
            page = self._run(self._session.load(where))
        return self._given(page, view, out)

    @overload
    async def aload(self, index: SupportsIndex, out: None = None) -> bytes: ...

    @overload
    async def aload(self, index: SupportsIndex, out: Buffer) -> Buffer: ...

    async def aload(self, index: SupportsIndex, out: Buffer | None = None) -> Buffer:
        """Do what `load` does. Concurrent calls share messages."""
        await self._aenter()
        view = None if out is None else as_out(out, self.page_size)
        where = _stored(index)
        with self._session.naming((where,)):
            page = await self._await(self._session.load(where))
        return self._given(page, view, out)

    @staticmethod
    def _given(page: Bytes, view: memoryview | None, out: Buffer | None) -> Buffer:
        if view is None:
            return page.tobytes()
        view[:] = page.data.cast("B")
        return out  # type: ignore[return-value] # view is None where out is

    def load_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> Bytes:
        """Return pages in the order of `indices`, as an (n, page_size) uint8 array.

        `out` is an array or a flat buffer to fill. Raise what `load` raises; the content of `out`
        is undefined then.
        """
        self._enter()
        where, pages = self._room(indices, out)
        if len(where):
            with self._session.naming(where.tolist()):
                self._run(self._session.load_many(where, pages))
        return pages

    async def aload_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> Bytes:
        """Do what `load_many` does."""
        await self._aenter()
        where, pages = self._room(indices, out)
        if len(where):
            with self._session.naming(where.tolist()):
                await self._await(self._session.load_many(where, pages))
        return pages

    def _room(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None
    ) -> tuple[npt.NDArray[np.int64], Bytes]:
        where = as_indices(indices)
        if len(where) and (where < 0).any():
            raise PageNotStored(int(where[where < 0][0]))
        if not len(where):
            return where, np.empty((0, self.page_size), np.uint8)
        return where, as_room(out, len(where), self.page_size)

    def invalidate(self, index: SupportsIndex, count: SupportsIndex = 1) -> int:
        """Forget `count` pages from `index` on, stored or lost. Return their number."""
        self._enter()
        return self._run(self._session.invalidate(*as_range(index, count)))

    async def ainvalidate(self, index: SupportsIndex, count: SupportsIndex = 1) -> int:
        """Do what `invalidate` does."""
        await self._aenter()
        return await self._await(self._session.invalidate(*as_range(index, count)))

    def __contains__(self, index: SupportsIndex) -> bool:
        self._enter()
        where = as_index(index)
        return 0 <= where <= MAX_INDEX and self._run(self._session.contains(where))

    async def acontains(self, index: SupportsIndex) -> bool:
        """Return whether a page is stored. Raise PagesLost if it is lost."""
        await self._aenter()
        where = as_index(index)
        return 0 <= where <= MAX_INDEX and await self._await(self._session.contains(where))

    # The whole store.

    def __len__(self) -> int:
        self._enter()
        return self._run(self._session.count())

    async def alen(self) -> int:
        """Return the number of pages. Raise PagesLost if some are lost."""
        await self._aenter()
        return await self._await(self._session.count())

    def __bool__(self) -> bool:
        """Return True: an empty store is a store."""
        return True

    @property
    def counters(self) -> Counters:
        """Return the sum of all shards' counters. Raise PagesLost if pages are lost."""
        self._enter()
        return self._run(self._session.counters())

    @property
    def shards(self) -> tuple[ShardStatus, ...]:
        """Return the status of every shard, and of every lost one."""
        self._enter()
        return self._run(self._session.shards())

    async def ashards(self) -> tuple[ShardStatus, ...]:
        """Return the status of every shard, and of every lost one."""
        await self._aenter()
        return await self._await(self._session.shards())

    def recover(self) -> list[range]:
        """Forget the lost pages, and return their indices, which then count as never stored.

        This client's own pages are named exactly. Of a lost stripe in which other clients stored,
        too, all 512 indices are returned. If the scheduler was restarted, the store is created
        again on its workers. Raise ClusterLost if that fails.
        """
        self._enter()
        return self._run(self._session.recover())

    async def arecover(self) -> list[range]:
        """Do what `recover` does."""
        await self._aenter()
        return await self._await(self._session.recover())

    def rebalance(self) -> int:
        """Give each worker its part, and wait for all moves. Return the number of moved pages.

        New workers get their part without this call. The call waits for it, and retries workers
        that could not have a shard. Raise BackendUnavailable if one still cannot, for instance
        without batchzip.
        """
        self._enter()
        return self._run(self._session.rebalance())

    async def arebalance(self) -> int:
        """Do what `rebalance` does."""
        await self._aenter()
        return await self._await(self._session.rebalance())

    def _close(self) -> None:
        if self._unattached is not None:
            return
        self._disarm_finalizer()
        with suppress(
            ClusterLost, concurrent.futures.TimeoutError, concurrent.futures.CancelledError
        ):
            work = self._session.detach()
            loop = _loop_of(self._client, work)
            call = _LoopCall(loop, work)
            with suppress(RuntimeError):
                if asyncio.get_running_loop() is loop:
                    return  # the directory is told, and this event loop must not wait
            call.outcome.result(_CLOSE_S)
        if self._own_client is not None:
            self._own_client.close()

    async def aclose(self) -> None:
        """Close the store in an asyncio program. Further calls do nothing."""
        if self._unusable is not None:
            return
        self._unusable = (ClosedError, f"this {type(self).__name__} is closed")
        self._released = True
        if self._unattached is None:
            self._disarm_finalizer()
            with suppress(ClusterLost):
                await self._await(self._session.detach())
            if self._own_client is not None:
                closing = self._own_client.close()
                if closing is not None:
                    await closing

    def _disarm_finalizer(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()

    async def __aenter__(self) -> Self:
        await self._aenter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _options(
    workers: Iterable[str] | None,
    replicas: int,
    engine: Mapping[str, Any] | None,
    store: Mapping[str, Any] | None,
    memory_fraction: float,
    spill: bool,
    timeout_s: float,
) -> tuple[dict[str, Any], list[str] | None]:
    """Check the arguments of a store. Return the options and workers for the directory."""
    pickled = dump(
        {
            "engine": dict(engine or {}),
            "store": dict(store or {}),
            "memory_fraction": as_fraction(memory_fraction, "memory_fraction"),
            "spill": bool(spill),
            "timeout_s": as_seconds(timeout_s, "timeout_s", least=_LEAST_S),
        }
    )
    bound = None if workers is None else [str(worker) for worker in workers]
    if bound == []:
        raise BadArgument("workers must have at least one address: leave it out to use all workers")
    replicas = as_integer(replicas, "replicas", 1, _MOST_REPLICAS)
    return {"replicas": replicas, "elastic": bound is None, "pickled": pickled}, bound


def _stored(index: SupportsIndex) -> int:
    where = as_index(index)
    if not 0 <= where <= MAX_INDEX:
        raise PageNotStored(where)
    return where


def _split(address: str) -> tuple[str, str]:
    scheduler, mark, name = str(address).rpartition(_MARK)
    if not mark or not scheduler or not name:
        raise BadArgument(f"address must be that of a ShardedStore, not {shown(address)}")
    return scheduler, name


def _client_here(scheduler: str) -> Client | None:
    """Return an existing client of that scheduler, or None."""
    with suppress(ValueError):
        if get_worker().scheduler.address == scheduler:
            client: Client = get_client()
            return client
    with suppress(ValueError):
        current: Client = Client.current()
        current_scheduler: Any = current.scheduler
        if current_scheduler.address == scheduler and not current.asynchronous:
            return current
    return None


def _session(client: Client, name: str, timeout_s: float) -> Session:
    if client.status != "running":
        raise ClusterLost(f"the client is not connected to a scheduler (it is {client.status})")
    return Session(client, name, timeout_s)


def _loop_of(client: Client, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
    client_loop: Any = client.loop
    loop: asyncio.AbstractEventLoop = client_loop.asyncio_loop
    if client.status == "closed" or loop.is_closed():
        work.close()
        raise ClusterLost("the client is closed")
    return loop


class _LoopCall(Generic[T]):
    """Work in a client's event loop. Its `outcome` comes when it has ended, even if cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None
        try:
            loop.call_soon_threadsafe(self._start)
        except RuntimeError:  # the loop was closed just now
            work.close()
            raise ClusterLost("the client is closed") from None

    def _start(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.set_exception(concurrent.futures.CancelledError())
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())

    def check(self, client: Client) -> None:
        """Raise ClusterLost if the work can never end because the client is closed."""
        if self.outcome.done():
            return
        if self._loop.is_closed() and self._task is None:
            self._work.close()
        if self._loop.is_closed() or client.status == "closed":
            raise ClusterLost("the client is closed") from None

    def cancel(self) -> None:
        """Cancel the work. It may take a while to end."""

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(cancel)


def _detach_collected(client: Client, session: Session, own: Client | None) -> None:
    """Detach a store that was garbage-collected, without waiting."""
    with suppress(ClusterLost):
        work = session.detach()
        call = _LoopCall(_loop_of(client, work), work)
        if own is not None:  # in another thread, because the client's own cannot wait for its end
            call.outcome.add_done_callback(
                lambda _: threading.Thread(target=own.close, daemon=True).start()
            )


def _unpickle(address: str, timeout_s: float) -> ShardedStore:
    return ShardedStore._make_unattached(address, timeout_s)
