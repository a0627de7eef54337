"""asyncio: waiting for requests without blocking the loop, and a few threads for calls that block.

    compress_async ─▶ Engine.submit(block=False) ─▶ Request ─▶ until_done ─▶ results
                        EngineBusy: one task at a time tries again, the others queue behind it
    astore …       ─▶ CallThreads.call ─▶ a Future of the store's threads ─▶ until_done ─▶ result

There is no thread per call. An engine with lanes needs no extra thread: its dispatcher does the
requests. The store's own calls do block: the caller compresses part of a folio, or reads a cold
page from a file. They run in at most four threads of the store. So do the batches of a backend
without lanes. A call that waits for a thread costs only one object.

A call that is cancelled before it began has no effect. A call that has begun is waited for, which
takes milliseconds, before CancelledError is raised. So the buffers belong to the caller again once
the call has ended, even by an error, and a folio is stored whole or not at all.

Rejected: asyncio.to_thread, because the loop's threads are shared, and enough cold loads would
delay name resolution; not waiting after a cancellation, because the engine would write to memory
that the caller reuses; retries by every task that finds the engine busy, because each request that
ends would wake a thousand tasks; ThreadPoolExecutor, because a signal handler that closes a store
would wait for its locks.

Locks: none. A loop's turn is an asyncio.Lock, and no thread waits for it.
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
"""Most threads per store: some wait for a file while one computes; more would wait for the GIL."""

_NAME = "batchzip-call"

_RETRY_S = 0.001
"""Seconds until one task tries a busy engine again: about the time of a batch of 256 pages."""


class Pending(Protocol):
    """The common methods of `Request` and `concurrent.futures.Future`."""

    def cancel(self) -> bool:
        """Cancel it unless it has begun."""

    def add_done_callback(self, callback: Callable[..., object], /) -> None:
        """Call `callback` once, when it is done or cancelled, in any thread."""


class Submitted(Pending, Protocol[T_co]):
    """The other methods of `Request` that this module uses."""

    def wait(self) -> T_co:
        """Return the result, or raise its error."""


def waker_of(pending: Pending) -> asyncio.Future[None]:
    """Return a future of the running loop that is done when `pending` is."""
    loop = asyncio.get_running_loop()
    waker: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waker.done():
            waker.set_result(None)

    def notify(_: object) -> None:
        # RuntimeError: the loop is closed, and no task waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(wake)

    pending.add_done_callback(notify)
    return waker


async def until_done(pending: Pending) -> None:
    """Wait until it is done. If the task is cancelled, cancel it, or wait if it has begun."""
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
        del cancelled  # it refers to this frame, which would refer to it


_Work: TypeAlias = "tuple[Future[Any], Callable[[], Any]] | None"


class CallThreads:
    """A few threads for calls that block. A thread is started when the others are busy.

    `close()` ends them.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Work] = SimpleQueue()
        """Queued calls. None ends a thread, which puts it back for the next one."""
        self._seats: SimpleQueue[None] = SimpleQueue()
        for _ in range(_MOST_THREADS):
            self._seats.put(None)
        self._idle: SimpleQueue[None] = SimpleQueue()
        """One item per thread that waits for a call."""
        self._threads: list[threading.Thread] = []
        self._closed = False
        end = self._calls.put
        weakref.finalize(self, end, None).atexit = False

    async def call(self, function: Callable[[], T]) -> T:
        """Call `function` in one of the threads. Return its result, or raise its exception.

        Raise LimitReached if there is no thread and none can be started.
        """
        future: Future[T] = Future()
        self._refuse()
        self._ensure_thread()
        self._calls.put((future, function))
        if self._closed and future.cancel():
            self._refuse()
        try:
            await until_done(future)
            return future.result()
        finally:
            del future, function  # its exception refers to this frame, which would refer to it

    def _refuse(self) -> None:
        if self._closed:
            raise ClosedError("the engine or store of this call is closed")

    def _ensure_thread(self) -> None:
        try:
            self._idle.get_nowait()
        except Empty:
            if self._seats.empty():
                return
            # A thread that finds no seat ends at once, so an interrupt here leaves nothing to
            # repair.
            work = self._calls, self._seats, self._idle, self._threads
            try:
                start_thread(_work, *work, name=_NAME)
            except LimitReached:
                if not self._threads:
                    raise

    def close(self, *, wait: bool = True) -> None:
        """End the threads, and wait for running calls. Queued calls find their object closed."""
        self._closed = True
        self._calls.put(None)
        # One of these threads may drop the last reference to an engine, and so call this.
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
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)
        del work, future, function
        idle.put(None)
    calls.put(None)


class Turns:
    """Decides which task tries a busy engine again: one task per loop, first come first served."""

    def __init__(self) -> None:
        self._of: dict[asyncio.AbstractEventLoop, _Turn] = {}
        """Turns of the loops that have tasks here now. An idle turn would keep its loop alive."""

    async def submit(self, submit: Callable[[], Submitted[T]]) -> T:
        """Call `submit` until it does not raise EngineBusy, then wait. Return the result."""
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
    """The turn of one loop. Only the loop's thread uses it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.tasks = 0
        """Number of tasks that have the turn or wait for it."""
