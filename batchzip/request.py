"""Request: one submitted batch.

Kernel counterpart: `acomp_req` with its callback and `crypto_wait_req`. A private
`concurrent.futures.Future` does the waiting and calls the callbacks.

    pending ──take_up()──▶ under way ──finish()──▶ done: results, or the exception of the batch
       └────cancel()─────▶ cancelled: every page gets -ECANCELED before callbacks and waiters see it

The backend calls `take_up` and `finish`.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from batchzip.arguments.checks import as_seconds
from batchzip.asynchronous import waker_of
from batchzip.batch import Batch
from batchzip.errors import ForkedProcess, RequestCancelled, RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

AnyBatch = TypeVar("AnyBatch", bound=Batch)


_NOT_HELD = "cannot release un-acquired lock"


class Request(Generic[AnyBatch]):
    """One submitted batch; `Engine.submit` returns it. Every method is thread-safe.

    Until the request is done, the batch and the memory it refers to belong to the engine. Reading
    results or changing pages before then gives undefined pages, never a crash.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine:
        ...     request = engine.submit(batchzip.CompressBatch([bytes(4096)] * 8))
        ...     request.add_done_callback(lambda done: print(len(done.batch), "pages"))
        ...     batch = request.wait(timeout_s=10)
        8 pages
        >>> request.done(), request.cancel()
        (True, False)
    """

    __slots__ = ("_future", "_lock", "_pid", "_taken", "batch", "deadline", "pages")

    def __init__(self, batch: AnyBatch, deadline: float | None = None) -> None:
        self.batch = batch
        self.deadline = deadline
        """Time on the monotonic clock at which pages that are not done get -ETIMEDOUT."""
        self.pages = len(batch)
        """Number of pages at submission: a cancelled batch may be refilled while still queued."""
        self._future: Future[None] = Future()
        self._lock = threading.RLock()  # a signal handler may cancel, too
        self._taken = False
        self._pid = os.getpid()

    def is_late(self, now: float) -> bool:
        """Return whether its deadline has passed at the time `now` on the monotonic clock."""
        return self.deadline is not None and now >= self.deadline

    def done(self) -> bool:
        """Return whether the batch has its results, or the request failed or was cancelled."""
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> AnyBatch:
        """Wait until the request is done, and return the batch.

        Raise RequestTimeout after `timeout_s` seconds, while the request goes on, RequestCancelled
        if it was cancelled, or the exception that failed the batch as a whole. Raise ForkedProcess
        in a forked child if the request was not done, because nothing completes it there.
        """
        if not self._future.done() and self._pid != os.getpid():
            raise ForkedProcess(f"this request belongs to process {self._pid}: wait for it there")
        if timeout_s is not None:
            timeout_s = as_seconds(timeout_s, "timeout_s", least=-math.inf)
        try:
            error = self._future.exception(timeout_s)
        except CancelledError:
            raise RequestCancelled("this request was cancelled before it was taken up") from None
        except TimeoutError as late:
            if timeout_s is None or type(late) is not TimeoutError or late.args:
                raise  # by a signal handler
            raise RequestTimeout(
                f"the batch of {len(self.batch)} pages is not done after {timeout_s:g} s"
            ) from None
        except RuntimeError as failure:
            # A signal handler raised while the future's condition had released its lock. The
            # condition's own error hides that exception.
            if failure.__context__ is not None and failure.args == (_NOT_HELD,):
                raise failure.__context__ from None
            raise
        try:
            if error is not None:
                raise error
            return self.batch
        finally:
            del error, self  # the error refers to this frame, which would refer to it and the batch

    def __await__(self) -> Generator[object, None, AnyBatch]:
        """Wait in asyncio without a thread. Cancelling the awaiting task cancels the request."""
        try:
            yield from waker_of(self)
            return self.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            del self  # as in wait

    def add_done_callback(self, callback: Callable[[Request[AnyBatch]], object]) -> None:
        """Call `callback(request)` once, when the request is done, or now if it is done.

        The thread that finishes the request calls it, without holding a lock. It should be short.
        Its exceptions are logged.
        """
        # The future keeps its callbacks, and would refer to itself through the request.
        calls = [partial(callback, self)]
        self._future.add_done_callback(lambda _: _call(calls.pop()))

    def cancel(self) -> bool:
        """Cancel the request unless it is taken up or done. Return whether it is cancelled.

        Every page of a cancelled batch has -ECANCELED. A backend that does the work within `submit`
        has always taken up the request.
        """
        with self._lock:
            if self._taken:
                return self._future.cancelled()
            self._taken = True
        self.batch.fail(range(len(self.batch)), -errno.ECANCELED)
        self._future.cancel()
        return True

    def take_up(self) -> bool:
        """Begin work on the batch. Return False if it was cancelled: leave its batch alone then."""
        with self._lock:
            if self._taken:
                return False
            self._taken = True
        self._future.set_running_or_notify_cancel()
        return True

    def finish(self, error: BaseException | None = None) -> None:
        """Mark the batch as done, or as failed as a whole by `error`. Callbacks run here."""
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        raise  # the future logs it
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, most likely
        # sys.exit() in a callback would end the thread that does the requests of all callers.
        raise RuntimeError(f"a callback raised {type(error).__name__}") from error
