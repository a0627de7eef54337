"""ShardedStore: pages by index, in the memory of the workers of a Dask cluster.

    caller's thread or task ─▶ ShardedStore ─▶ Session, in the client's event loop ─▶ shards (session.py)

This is the face: it checks arguments, and brings calls to the event loop of its Dask client. The way of a page is
in session.py (client), shard.py (worker) and directory.py (scheduler, which pages do not go through).

A worker's memory is lost with it. With one replica, what was stored there raises PagesLost, which names it,
until it is invalidated, or `recover` forgets it. With two, another worker has it, too, and gets a new companion.
Rejected: letting Dask start a lost shard again. It would be empty, and pages that were acknowledged would be
reported as never stored.
"""

# ruff: noqa: SLF001 - of what is made here in other ways than by its class

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
"""Seconds of a timeout: within less, nothing answers."""

_CLOSE_S = 5.0
"""Seconds that closing may take."""

_LOOK_S = 0.5
"""Seconds between two looks at whether the client is still there."""

_MARK = "/batchzip/"

_taking = threading.RLock()
"""Around what decides which of several first uses of a store attaches it."""


class ShardedStore(Owned):
    """Keeps pages compressed in the memory of Dask workers.

    `client`           a `distributed.Client` that is not asynchronous (`acreate` takes one that is); it stays the
                       caller's. Workers must be reachable from here; they and the scheduler need batchzip.
    `workers`          addresses of the workers to use; default: all there are, and all that come.
    `replicas`         how many workers have each page. With 2, a lost worker loses nothing.
    `engine`           keyword arguments of each shard's Engine: algorithm, level, page_size, …
    `store`            keyword arguments of each shard's SwapStore: max_pool_bytes, backing, …; limits are each
                       shard's own, and paths are on its machine.
    `memory_fraction`  of its worker's memory limit that a shard's pool may have, unless `store` says otherwise;
                       less where Dask would spill its own data, or pause the worker, on account of it.
    `spill`            whether pages go to the worker's local directory when that is full; otherwise they are
                       rejected.
    `timeout_s`        seconds after which a worker that does not answer counts as lost.

    It lives while somebody has it open: `attach`, or a pickled copy, opens it in other processes and tasks; what
    the last one closes is released. A worker that comes gets its part of the pages; what one has that is retired,
    scaled down or terminated is moved to others before.

    Thread-safe; each method that waits has a twin for asyncio, which may be awaited in any event loop: `astore`,
    `aload`, …  Bound to its process.

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

    _elsewhere: tuple[str, float] | None = None
    """Address and timeout of one that is not yet attached."""

    _letting_go: weakref.finalize[Any, Any] | None = None

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
                f"client must be a distributed.Client that is not asynchronous, not {shown(client)}"
            )
        options = _options(workers, replicas, engine, store, memory_fraction, spill, timeout_s)
        session = _session(client, uuid.uuid4().hex, float(timeout_s))
        self._run_in(client, session, session.create(*options))
        self._take(client, session)
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
        """Make one in an asyncio program, with an asynchronous client; close it with `aclose`."""
        if not isinstance(client, Client) or not client.asynchronous:
            raise BadArgument(f"client must be an asynchronous Client, not {shown(client)}")
        options = _options(workers, replicas, engine, store, memory_fraction, spill, timeout_s)
        session = _session(client, uuid.uuid4().hex, float(timeout_s))
        await cls._await_in(client, session.create(*options))
        made = cls.__new__(cls)
        made._take(client, session)
        Owned.__init__(made)
        return made

    @classmethod
    def attach(cls, address: str, client: Client | None = None, *, timeout_s: float = 60.0) -> Self:
        """Open a store that another process made, by its `address`.

        Without a client, a task uses its worker's; elsewhere the current one is used if it has the same
        scheduler, or one is made, and closed with the store. Raise ClusterLost if the store is not there.
        """
        made = cls._absent(address, as_seconds(timeout_s, "timeout_s", least=_LEAST_S))
        made._open(client)
        return made

    @classmethod
    async def aattach(
        cls, address: str, client: Client | None = None, *, timeout_s: float = 60.0
    ) -> Self:
        """Open a store that another process made, in an asyncio program, as `attach`."""
        made = cls._absent(address, as_seconds(timeout_s, "timeout_s", least=_LEAST_S))
        await made._aopen(client)
        return made

    @classmethod
    def _absent(cls, address: str, timeout_s: float) -> Self:
        """Return what is a store with its first use: pickles are made and read where none can be opened."""
        _split(address)
        made = cls.__new__(cls)
        made._elsewhere = address, timeout_s
        Owned.__init__(made)
        return made

    def _open(self, client: Client | None = None) -> None:
        """Attach to the store that this is to be."""
        address, timeout_s = self._elsewhere  # type: ignore[misc] # it is absent
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
        if not self._take(client, session, own):  # another thread was faster
            self._run_in(client, session, session.detach())
            if own is not None:
                own.close()

    async def _aopen(self, client: Client | None = None) -> None:
        address, timeout_s = self._elsewhere  # type: ignore[misc] # it is absent
        scheduler, name = _split(address)
        own = None
        if client is None:
            client = _client_here(scheduler)
        if client is None:
            client = own = await aconnect(scheduler, timeout_s)
        elif client.asynchronous and client.status in ("newly-created", "connecting"):
            await client  # a worker's own, in a task that is a coroutine
        session = _session(client, name, timeout_s)
        try:
            await self._await_in(client, session.attach())
        except BaseException:
            if own is not None:
                await own.close()
            raise
        if not self._take(client, session, own):
            await self._await_in(client, session.detach())
            if own is not None:
                await own.close()

    def _take(self, client: Client, session: Session, own: Client | None = None) -> bool:
        """Be attached with these from now on. Return False if others were there first."""
        with _taking:
            if self._letting_go is not None:
                return False
            self._client, self._session, self._own_client = client, session, own
            self._letting_go = weakref.finalize(self, _let_go, client, session, own)
            self._letting_go.atexit = False
            self._elsewhere = None
        return True

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        self._enter()
        return self._session.page_size

    @property
    def address(self) -> str:
        """What `attach` takes: the scheduler's address, and the store's name."""
        if self._elsewhere is not None:
            return self._elsewhere[0]
        return f"{self._session.scheduler_address}{_MARK}{self._session.name}"

    def __reduce__(self) -> tuple[Any, ...]:  # type: ignore[override] # another can attach
        if self._unusable:
            self._refuse()
        timeout_s = self._elsewhere[1] if self._elsewhere else self._session.timeout_s
        return _unpickle, (self.address, timeout_s)

    def _enter(self) -> None:
        if self._unusable:
            self._refuse()
        if self._elsewhere is not None:
            self._open()

    async def _aenter(self) -> None:
        if self._unusable:
            self._refuse()
        if self._elsewhere is not None:
            await self._aopen()

    def _survey(self) -> StoreFigures:
        """Return how the store stands, with every shard's figures, for metrics."""
        self._enter()
        return self._run(ask_store(self._client.scheduler, _split(self.address)[1]))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._run_in(self._client, self._session, work)

    @classmethod
    def _run_in(cls, client: Client, session: Session, work: Coroutine[Any, Any, T]) -> T:
        """Have work done in the client's event loop, and wait for it."""
        loop = _loop_of(client, work)
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                work.close()
                raise BadArgument(
                    "this is the client's own event loop, where nothing may wait: await aload, astore, …"
                )
        begun = _Begun(loop, work)
        try:
            while True:
                try:
                    return begun.outcome.result(_LOOK_S)
                except concurrent.futures.TimeoutError:
                    if begun.outcome.done():
                        return begun.outcome.result()
                    begun.check(client)
                except concurrent.futures.CancelledError:
                    raise ClusterLost("the client was closed") from None
        except (Exception, concurrent.futures.CancelledError):
            raise
        except BaseException:
            # An interrupt. What was begun is ended or undone before anything else is done.
            begun.cancel()
            with suppress(Exception, concurrent.futures.CancelledError):
                begun.outcome.result(session.timeout_s)
            raise

    async def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._await_in(self._client, work)

    @staticmethod
    async def _await_in(client: Client, work: Coroutine[Any, Any, T]) -> T:
        """Have work done in the client's event loop, and await it in this one."""
        loop = _loop_of(client, work)
        if asyncio.get_running_loop() is loop:
            return await work
        begun = _Begun(loop, work)
        waiting = asyncio.wrap_future(begun.outcome)
        waiting.add_done_callback(take_outcome)
        try:
            while not (await asyncio.wait({waiting}, timeout=_LOOK_S))[0]:
                begun.check(client)
            return waiting.result()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                raise ClusterLost("the client was closed") from None
            # What was begun is ended or undone before anything else is done.
            begun.cancel()
            with suppress(ClusterLost):
                while not waiting.done():
                    begun.check(client)
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait({waiting}, timeout=_LOOK_S)
            raise

    # Pages.

    def store(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio at `index`, `index` + 1, …: all of its pages, or none.

        `pages` has the forms that SwapStore.store takes. Raise what that raises, or PagesLost if some of the
        indices lie in a stripe of 512 that is lost; nothing is stored at any of the indices then. Readers may see
        the parts of a folio that spans stripes, or has more than a MiB, one after the other.
        """
        self._enter()
        self._run(self._store(index, pages))

    async def astore(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio, as `store`. Its pages must not change until it is stored."""
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
        """Return the bytes of one page; with `out`, a writable buffer, fill it and return it.

        Raise as SwapStore.load, or PagesLost if the page is lost.
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
        """Return the bytes of one page, as `load`. Many that are awaited at once travel together."""
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
        """Return pages, in the order of `indices`, as an (n, page_size) uint8 array.

        `out` is an array, or a flat buffer, to fill; it is undefined where this raises, as `load` does.
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
        """Return pages, as `load_many`."""
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
        """Forget `count` pages from `index` on, stored or lost; return how many there were."""
        self._enter()
        return self._run(self._session.invalidate(*as_range(index, count)))

    async def ainvalidate(self, index: SupportsIndex, count: SupportsIndex = 1) -> int:
        """Forget pages, as `invalidate`."""
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

    # The whole.

    def __len__(self) -> int:
        self._enter()
        return self._run(self._session.count())

    async def alen(self) -> int:
        """Return the number of pages. Raise PagesLost if some are lost."""
        await self._aenter()
        return await self._await(self._session.count())

    def __bool__(self) -> bool:
        """Say yes: an empty store is a store."""
        return True

    @property
    def counters(self) -> Counters:
        """The counters of all shards together. Raises PagesLost if pages are lost."""
        self._enter()
        return self._run(self._session.counters())

    @property
    def shards(self) -> tuple[ShardStatus, ...]:
        """Every shard, and those whose pages are lost."""
        self._enter()
        return self._run(self._session.shards())

    async def ashards(self) -> tuple[ShardStatus, ...]:
        """Return every shard, and those whose pages are lost."""
        await self._aenter()
        return await self._await(self._session.shards())

    def recover(self) -> list[range]:
        """Forget what is lost, and return it: these indices count as never stored until they are stored again.

        What this client stored is named exactly; of a lost stripe of 512 in which other clients stored, too, all
        indices are. If the scheduler was started anew, the store is made anew on its workers. Raise ClusterLost
        if that cannot be.
        """
        self._enter()
        return self._run(self._session.recover())

    async def arecover(self) -> list[range]:
        """Forget what is lost, and return it, as `recover`."""
        await self._aenter()
        return await self._await(self._session.recover())

    def rebalance(self) -> int:
        """Give each worker its part, and wait until all pages are where they belong; return those that moved.

        New workers get their part without this; it waits for it, and tries again those that could have none. Raise
        BackendUnavailable if one cannot, such as one without batchzip.
        """
        self._enter()
        return self._run(self._session.rebalance())

    async def arebalance(self) -> int:
        """Give each worker its part, as `rebalance`."""
        await self._aenter()
        return await self._await(self._session.rebalance())

    def _close(self) -> None:
        if self._elsewhere is not None:
            return
        self._let_be()
        with suppress(
            ClusterLost, concurrent.futures.TimeoutError, concurrent.futures.CancelledError
        ):
            work = self._session.detach()
            loop = _loop_of(self._client, work)
            begun = _Begun(loop, work)
            with suppress(RuntimeError):
                if asyncio.get_running_loop() is loop:
                    return  # it is told, and nobody can wait for it here
            begun.outcome.result(_CLOSE_S)
        if self._own_client is not None:
            self._own_client.close()

    async def aclose(self) -> None:
        """Release it, in an asyncio program; further calls do nothing."""
        if self._unusable is not None:
            return
        self._unusable = (ClosedError, f"this {type(self).__name__} is closed")
        self._released = True
        if self._elsewhere is None:
            self._let_be()
            with suppress(ClusterLost):
                await self._await(self._session.detach())
            if self._own_client is not None:
                closing = self._own_client.close()
                if closing is not None:
                    await closing

    def _let_be(self) -> None:
        if self._letting_go is not None:
            self._letting_go.detach()

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
    """Check the arguments of a store, and return what the directory takes."""
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
        raise BadArgument("workers is a list of addresses, and has none; leave it out for all")
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
        raise BadArgument(f"an address is that of a ShardedStore, not {shown(address)}")
    return scheduler, name


def _client_here(scheduler: str) -> Client | None:
    """Return a client of that scheduler that is already here, or None."""
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
        raise ClusterLost(f"the client is not connected, but {client.status}")
    return Session(client, name, timeout_s)


def _loop_of(client: Client, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
    client_loop: Any = client.loop
    loop: asyncio.AbstractEventLoop = client_loop.asyncio_loop
    if client.status == "closed" or loop.is_closed():
        work.close()
        raise ClusterLost("the client is closed")
    return loop


class _Begun(Generic[T]):
    """Work in a client's event loop. Its `outcome` is there when it has ended, even if it was cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None
        try:
            loop.call_soon_threadsafe(self._start)
        except RuntimeError:  # it was closed just now
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
        """Raise ClusterLost if it has not ended, and the client is closed: its loop ends nothing any more."""
        if self.outcome.done():
            return
        if self._loop.is_closed() and self._task is None:
            self._work.close()
        if self._loop.is_closed() or client.status == "closed":
            raise ClusterLost("the client is closed") from None

    def cancel(self) -> None:
        """Have it end soon."""

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(cancel)


def _let_go(client: Client, session: Session, own: Client | None) -> None:
    """Detach a store that nobody has any more, without waiting."""
    with suppress(ClusterLost):
        work = session.detach()
        begun = _Begun(_loop_of(client, work), work)
        if own is not None:  # in a thread: its own cannot wait for its end
            begun.outcome.add_done_callback(
                lambda _: threading.Thread(target=own.close, daemon=True).start()
            )


def _unpickle(address: str, timeout_s: float) -> ShardedStore:
    return ShardedStore._absent(address, timeout_s)
