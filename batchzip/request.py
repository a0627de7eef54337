"""Request: one batch under way.

Kernel counterpart: `acomp_req` with its callback and `crypto_wait_req`. A request is a view of a
`concurrent.futures.Future`, which brings the one-time callbacks outside locks and the races of
cancellation with completion, solved; asyncio knows how to wait for it without a thread.
"""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Generic, TypeVar

from batchzip.batch import Batch
from batchzip.errors import RequestCancelled, RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Request(Generic[AnyBatch]):
    """One batch under way; made by `Engine.submit`. Every method is thread-safe.

    Until the request is done, the batch and the memory it refers to belong to the engine: reading
    results or changing pages then gives undefined pages, never a crash.
    """

    __slots__ = ("_future", "batch")

    def __init__(self, batch: AnyBatch, future: Future[None]) -> None:
        self.batch = batch
        self._future = future

    def done(self) -> bool:
        """Whether the batch's results are there, or the request failed or was cancelled."""
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> AnyBatch:
        """Block until done, and return the batch.

        Raises RequestTimeout after `timeout_s` seconds, while the request goes on; RequestCancelled
        if it was cancelled; or the exception that failed the batch as a whole.
        """
        try:
            self._future.result(timeout_s)
        except CancelledError:
            raise RequestCancelled("this request was cancelled before it was taken up") from None
        except TimeoutError:
            if self._future.done():
                raise
            raise RequestTimeout(
                f"the batch of {len(self.batch)} pages is not done after {timeout_s} s"
            ) from None
        return self.batch

    def __await__(self) -> Generator[object, None, AnyBatch]:
        """Wait in asyncio, without a thread; cancelling the awaiting task cancels the request."""
        yield from asyncio.wrap_future(self._future).__await__()
        return self.batch

    def add_done_callback(self, callback: Callable[[Request[AnyBatch]], object]) -> None:
        """Call `callback(request)` once when done, at once if it is; its exceptions are logged.

        It is called in the thread that finished the request, outside all locks; it should be short.
        """
        self._future.add_done_callback(lambda _: callback(self))

    def cancel(self) -> bool:
        """Cancel the request unless it is taken up or done; whether that succeeded.

        Every page of a cancelled batch has -ECANCELED. A backend that does the work within
        `submit` has always taken it up.
        """
        if self._future.cancelled():
            return True
        if not self._future.cancel():
            return False
        self.batch.fail(range(len(self.batch)), -errno.ECANCELED)
        return True
