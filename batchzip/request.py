"""Request: one batch under way.

Kernel counterpart: `acomp_req` with its callback and `crypto_wait_req`. Waiting, one-time callbacks and
their exceptions are those of the `concurrent.futures.Future` inside, which is never handed out.

    pending ──take_up()──▶ under way ──finish()──▶ done: results, or the exception of the batch
       └────cancel()─────▶ cancelled: every page has -ECANCELED before anybody hears of it

`take_up` and `finish` are the backend's side.
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
    """One batch under way; made by `Engine.submit`. Every method is thread-safe.

    Until the request is done, the batch and the memory it refers to belong to the engine: reading
    results or changing pages then gives undefined pages, never a crash.

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
        """When, on the monotonic clock, what is not done of it gets -ETIMEDOUT."""
        self.pages = len(batch)
        """Pages of the batch; a cancelled one may be refilled while its request is still queued."""
        self._future: Future[None] = Future()
        self._lock = threading.RLock()  # a signal handler may cancel, too
        self._taken = False
        self._pid = os.getpid()

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed at the time `now`, on the monotonic clock."""
        return self.deadline is not None and now >= self.deadline

    def done(self) -> bool:
        """Whether the batch's results are there, or the request failed or was cancelled."""
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> AnyBatch:
        """Block until done, and return the batch.

        Raises RequestTimeout after `timeout_s` seconds, while the request goes on; RequestCancelled
        if it was cancelled; or the exception that failed the batch as a whole. In a forked child,
        where nobody is at work, a request that was not done raises ForkedProcess.
        """
        if not self._future.done() and self._pid != os.getpid():
            raise ForkedProcess(f"this request is under way in process {self._pid}")
        if timeout_s is not None:
            timeout_s = as_seconds(timeout_s, "timeout_s", least=-math.inf)
        try:
            error = self._future.exception(timeout_s)
        except CancelledError:
            raise RequestCancelled("this request was cancelled before it was taken up") from None
        except TimeoutError as late:
            if timeout_s is None or type(late) is not TimeoutError or late.args:
                raise  # a signal handler's
            raise RequestTimeout(
                f"the batch of {len(self.batch)} pages is not done after {timeout_s:g} s"
            ) from None
        except RuntimeError as failure:
            # What a signal handler raises while the future's condition has let go of its lock: it
            # complains of that.
            if failure.__context__ is not None and failure.args == (_NOT_HELD,):
                raise failure.__context__ from None
            raise
        try:
            if error is not None:
                raise error
            return self.batch
        finally:
            del error, self  # the error keeps this frame, which would keep it, and the batch

    def __await__(self) -> Generator[object, None, AnyBatch]:
        """Wait in asyncio, without a thread; cancelling the awaiting task cancels the request."""
        try:
            yield from waker_of(self)
            return self.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            del self  # as in wait

    def add_done_callback(self, callback: Callable[[Request[AnyBatch]], object]) -> None:
        """Call `callback(request)` once when done, at once if it is; its exceptions are logged.

        It is called in the thread that finished the request, outside all locks; it should be short.
        """
        # The future keeps what it called, and would keep itself by the request.
        calls = [partial(callback, self)]
        self._future.add_done_callback(lambda _: _call(calls.pop()))

    def cancel(self) -> bool:
        """Cancel the request unless it is taken up or done; whether it is cancelled.

        Every page of a cancelled batch has -ECANCELED. A backend that does the work within
        `submit` has always taken it up.
        """
        with self._lock:
            if self._taken:
                return self._future.cancelled()
            self._taken = True
        self.batch.fail(range(len(self.batch)), -errno.ECANCELED)
        self._future.cancel()
        return True

    def take_up(self) -> bool:
        """Begin work on the batch; False if the request was cancelled, and is not to be touched."""
        with self._lock:
            if self._taken:
                return False
            self._taken = True
        self._future.set_running_or_notify_cancel()
        return True

    def finish(self, error: BaseException | None = None) -> None:
        """Say that the batch is done, or that `error` failed it as a whole; callbacks run here."""
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
        # sys.exit() in a callback would end the thread that does everybody's requests.
        raise RuntimeError(f"a callback raised {type(error).__name__}") from error
