"""asyncio: work that goes on elsewhere, awaited; and threads, a few, for calls that would block a loop.

    compress_async ─▶ Engine.submit(block=False) ─▶ Request ─▶ until_done ─▶ results
                        EngineBusy: one task at a time waits its turn, the others behind it
    astore …       ─▶ CallThreads.call ─▶ a Future of the store's threads ─▶ until_done ─▶ result

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

Rejected: ThreadPoolExecutor, whose locks a signal handler that closes a store would wait for.

Locks: none. A loop's turn is an asyncio.Lock, never held by a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from batchzip.errors import ClosedError, EngineBusy, LimitReached
from batchzip.system.limits import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

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


class Submitted(Pending, Protocol[T_co]):
    """What `Request` has besides."""

    def wait(self) -> T_co:
        """Return the result, or raise what failed it."""


def waker_of(pending: Pending) -> asyncio.Future[None]:
    """Make a future of the running loop that is done when `pending` is."""
    loop = asyncio.get_running_loop()
    waker: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waker.done():
            waker.set_result(None)

    def notify(_: object) -> None:
        # RuntimeError: a loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(wake)

    pending.add_done_callback(notify)
    return waker


async def until_done(pending: Pending) -> None:
    """Wait until it is done. A cancelled task cancels it, or waits until it is done all the same."""
    waker = waker_of(pending)
    cancelled = None
    try:
        while not waker.done():
            try:
                await asyncio.shield(waker)
            except asyncio.CancelledError as error:
                cancelled = error
                pending.cancel()
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled  # it keeps this frame, which would keep it


_Work: TypeAlias = "tuple[Future[Any], Callable[[], Any]] | None"


class CallThreads:
    """A few threads for calls that block, each started when the others are busy; ended by `close()`."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Work] = SimpleQueue()
        """What is to be called; None ends a thread, which hands it on."""
        self._seats: SimpleQueue[None] = SimpleQueue()
        for _ in range(_MOST_THREADS):
            self._seats.put(None)
        self._idle: SimpleQueue[None] = SimpleQueue()
        """One for each thread that waits for a call."""
        self._threads: list[threading.Thread] = []
        self._closed = False
        end = self._calls.put
        weakref.finalize(self, end, None).atexit = False

    async def call(self, function: Callable[[], T]) -> T:
        """Have it called in one of the threads, and give its result or raise what it raises.

        Raise LimitReached where there is no thread, and none can be started.
        """
        future: Future[T] = Future()
        self._refuse()
        self._see_to_a_thread()
        self._calls.put((future, function))
        if self._closed and future.cancel():
            self._refuse()
        try:
            await until_done(future)
            return future.result()
        finally:
            del future, function  # what it raises keeps this frame, which would keep it

    def _refuse(self) -> None:
        if self._closed:
            raise ClosedError("what this call belongs to is closed")

    def _see_to_a_thread(self) -> None:
        try:
            self._idle.get_nowait()
        except Empty:
            if self._seats.empty():
                return
            # Those that find no seat end at once: nothing is to be put right if this is cut short.
            work = self._calls, self._seats, self._idle, self._threads
            try:
                start_thread(_work, *work, name=_NAME)
            except LimitReached:
                if not self._threads:
                    raise

    def close(self, *, wait: bool = True) -> None:
        """End the threads, and wait for calls under way. Calls still queued find their object closed."""
        self._closed = True
        self._calls.put(None)
        # One of the threads itself may drop the last reference to an engine.
        if wait and threading.current_thread() not in self._threads:
            for thread in list(self._threads):
                thread.join()


def _work(
    calls: SimpleQueue[_Work],
    seats: SimpleQueue[None],
    idle: SimpleQueue[None],
    threads: list[threading.Thread],
) -> None:
    try:
        seats.get_nowait()
    except Empty:
        return
    threads.append(threading.current_thread())
    while (work := calls.get()) is not None:
        future, function = work
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
        del work, future, function
        idle.put(None)
    calls.put(None)


class Turns:
    """Whose turn it is to ask a busy engine again: one task of each loop, in the order they came."""

    def __init__(self) -> None:
        self._of: dict[asyncio.AbstractEventLoop, _Turn] = {}
        """Those of loops whose tasks ask just now; a lock that was waited for keeps its loop."""

    async def submit(self, submit: Callable[[], Submitted[T]]) -> T:
        """Submit when there is room, and wait until it is done. `submit` raises EngineBusy, or begins."""
        request = await self._submit(submit)
        try:
            await until_done(request)
            return request.wait()
        finally:
            del request, submit  # as in CallThreads.call

    async def _submit(self, submit: Callable[[], Submitted[T]]) -> Submitted[T]:
        loop = asyncio.get_running_loop()
        turn = self._of.setdefault(loop, _Turn())
        turn.tasks += 1
        try:
            async with turn.lock:
                while True:
                    try:
                        return submit()
                    except EngineBusy:
                        await asyncio.sleep(_RETRY_S)
        finally:
            turn.tasks -= 1
            if not turn.tasks:
                self._of.pop(loop, None)


class _Turn:
    """The turn of one loop, used in its thread."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.tasks = 0
        """How many have it, or wait for it."""
