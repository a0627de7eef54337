"""asyncio: work that goes on elsewhere, awaited; and threads, a few, for calls that would block a loop.

    compress_async ─▶ Engine.submit(block=False) ─▶ Request ─▶ until_done ─▶ results
                        EngineBusy: one task at a time waits its turn, the others behind it
    astore …       ─▶ Threads.call ─▶ a Future of the store's threads ─▶ until_done ─▶ result

No thread per call. An engine with lanes needs none at all: its requests are done by one thread that it has
anyway. The store's own calls do block: a folio is compressed in part by its caller, a cold page is read from
a file. They run in the store's threads, four at most, as do the batches of a backend without lanes. Calls
that wait for one are an object each.

Cancelled is what has not begun; nothing of it happens. What has begun is waited for, milliseconds, before
CancelledError goes on: buffers are the caller's again when the call ends, in whatever way, and a folio is
stored whole or not at all.

Rejected: asyncio.to_thread (the loop's threads are everybody's: enough cold loads and name resolution
waits); giving up the wait at once (the engine would write to memory that its owner reuses); retries by
every task that finds the engine busy (a thousand wake-ups for each request that ends).

Locks: `_lock` of Threads, held to start or end them only. A loop's turn is an asyncio.Lock, never held by a
thread.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from batchzip.errors import ClosedError, EngineBusy

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.request import AnyBatch, Request

T = TypeVar("T")

_MOST_THREADS = 4
"""Threads of a store. One waits for a file while others compute; more would wait for the interpreter."""

_NAME = "batchzip-call"

_RETRY_S = 0.001
"""Seconds until a busy engine is asked again, by one task: about what a batch of 256 pages takes."""


class Pending(Protocol):
    """What `Request` and `concurrent.futures.Future` have in common."""

    def cancel(self) -> bool:
        """Cancel what has not begun."""

    def add_done_callback(self, callback: Callable[..., object], /) -> None:
        """Call it once, when done or cancelled, in any thread."""


async def until_done(pending: Pending) -> None:
    """Wait until it is done. A cancelled task cancels it, or waits until it is done all the same."""
    loop = asyncio.get_running_loop()
    waker: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waker.done():
            waker.set_result(None)

    def notify(_: object) -> None:
        # A loop that was closed meanwhile has nobody left to tell.
        if not loop.is_closed():
            loop.call_soon_threadsafe(wake)

    pending.add_done_callback(notify)
    cancelled = None
    while not waker.done():
        try:
            await asyncio.shield(waker)
        except asyncio.CancelledError as error:
            cancelled = error
            pending.cancel()
    if cancelled is not None:
        raise cancelled


class Threads:
    """A few threads for calls that block; started by the first one, ended by `close()`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    async def call(self, function: Callable[[], T]) -> T:
        """Have it called in one of the threads, and give its result or raise what it raises."""
        with self._lock:
            if self._closed:
                raise ClosedError("what this call belongs to is closed")
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_MOST_THREADS, _NAME)
            future = self._executor.submit(function)
        await until_done(future)
        return future.result()

    def close(self) -> None:
        """Wait for calls under way and end the threads. Calls still queued find their object closed."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            # One of the threads itself may drop the last reference to an engine.
            executor.shutdown(wait=not threading.current_thread().name.startswith(_NAME))


class Turns:
    """Whose turn it is to ask a busy engine again: one task of each loop, in the order they came."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    async def submit(self, submit: Callable[[], Request[AnyBatch]]) -> AnyBatch:
        """Submit when there is room, and wait until it is done. `submit` raises EngineBusy, or begins."""
        async with self._of.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            while True:
                try:
                    request = submit()
                    break
                except EngineBusy:
                    await asyncio.sleep(_RETRY_S)
        await until_done(request)
        return request.wait()
