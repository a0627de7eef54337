"""Dispatcher: the thread that does an engine's requests.

It calls the lanes instead of the submitters, who are free meanwhile, and does the caller's share
itself. Requests overlap: while lanes have pages of one request, the thread begins the next. So no
core waits for the last page of a request. Each request is finished when its own pages are done or
its deadline has passed, in any order. If there is no request to begin, the thread waits for the
oldest one.

Rejected: the executor of concurrent.futures. Its thread is joined before anything else at the
interpreter's exit, after doing every queued request, and a callback cannot close it.

The thread takes requests until `close()`. It shares only the queue with other threads.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Protocol

from batchzip.lanes.watch import LOOK_S
from batchzip.system.limits import begin, is_out_of_memory

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.lanes.queue import RequestQueue
    from batchzip.lanes.watch import Watch
    from batchzip.request import Request

_WAIT_S = 0.005
"""Seconds that the thread waits for a lane before it checks for another request."""


class RequestThread(threading.Thread):
    """A dispatcher's thread, which calls the callbacks of requests.

    Such a thread must not wait for room that another one makes: the callbacks of the other one may
    be waiting for this one.
    """

    @staticmethod
    def is_here() -> bool:
        """Return whether the current thread is a dispatcher's, of any engine."""
        return isinstance(threading.current_thread(), RequestThread)


class _Flight:
    """A request from when it is taken from the queue until it is finished."""

    __slots__ = ("error", "left", "over", "request", "watch")

    def __init__(self, request: Request[Batch]) -> None:
        self.request = request
        self.watch: Watch | None = None
        self.error: BaseException | None = None
        """The error that failed it as a whole."""
        self.over = False
        """Whether its work is done, so that only `finish` remains."""
        self.left = False
        """Whether its room in the queue was released."""

    @property
    def begun(self) -> bool:
        """Whether it has begun completely. It has not if a codec closes the engine in `begin`."""
        return self.over or self.watch is not None

    @property
    def has_own_work(self) -> bool:
        """Whether there are pages that this thread can do."""
        return not self.over and self.watch is not None and self.watch.has_own_work


class BatchStarter(Protocol):
    """The methods of a backend that the dispatcher calls."""

    def begin(self, batch: Batch, deadline: float | None) -> Watch:
        """Begin a batch. Return the Watch that supervises it while other batches are done."""

    def count_elsewhere(self, batch: Batch, *, divided: bool) -> None:
        """Count a batch that no lane has done."""


class Dispatcher:
    """Takes up requests, does them together with the lanes, and finishes each.

    Raises LimitReached if no thread can be started.
    """

    def __init__(self, backend: BatchStarter, queue: RequestQueue) -> None:
        self._backend = backend
        self._queue = queue
        self._under_way: list[_Flight] = []
        """Requests taken and not finished, the oldest first."""
        self._gives_up = False
        self.is_over = False
        """Whether it was abandoned. Submitters must do their requests themselves then."""
        self._thread = RequestThread(target=self._run, name="batchzip-requests", daemon=True)
        begin(self._thread)

    @property
    def is_current(self) -> bool:
        """Whether the current thread is this dispatcher's, so that a callback is calling."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            try:
                goes_on = self._go_on()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # No request is lost: those taken stay in `_under_way` until they are finished.
                time.sleep(_WAIT_S)

    def _go_on(self) -> bool:
        """Begin or continue one request. Return False if the queue is closed and all are done."""
        oldest = next((flight for flight in self._under_way if flight.begun), None)
        request = self._queue.take(wait=oldest is None)
        if request is None and oldest is None:
            return False
        if request is None and oldest is not None:
            self._step(oldest, _WAIT_S, may_wait=True)
        begun = request is None
        while request is not None and not begun:
            try:
                self._begin(request)
                begun = True
            except MemoryError:
                if request.done() or any(flight.request is request for flight in self._under_way):
                    raise
                time.sleep(_WAIT_S)  # there is no memory even for its _Flight
        self._look_around()
        return True

    def _begin(self, request: Request[Batch]) -> None:
        """Begin a request, and do the caller's share of it."""
        flight = _Flight(request)
        self._under_way.append(flight)
        try:
            if request.take_up():
                flight.watch = self._backend.begin(request.batch, request.deadline)
            else:
                flight.over = True
        except BaseException as error:  # noqa: BLE001 - `Request.wait` raises it
            flight.error = error
            flight.over = True
        # Work in short steps, because deadlines of other requests may pass meanwhile.
        self._step(flight, LOOK_S, may_wait=False)
        while flight in self._under_way and flight.has_own_work:
            self._look_around()
            self._step(flight, LOOK_S, may_wait=False)

    def _step(self, flight: _Flight, seconds: float, *, may_wait: bool) -> None:
        """Continue a request, and finish it if it is done."""
        if (
            flight not in self._under_way
        ):  # a callback closed the engine, which finished all requests
            return
        watch = flight.watch
        if not flight.over and watch is not None:
            try:
                if self._gives_up:
                    watch.give_up(-errno.ECANCELED)
                elif not watch.step(seconds, may_wait=may_wait):
                    return
            except BaseException as error:  # noqa: BLE001 - `Request.wait` raises it
                flight.error = error
            flight.over = True
        self._finish(flight)

    def _look_around(self) -> None:
        """Finish all requests, begun or queued, that are done or past their deadline."""
        for request in self._queue.take_expired():
            flight = _Flight(request)
            flight.over = True
            self._under_way.append(flight)
            if request.take_up():
                request.batch.fail(range(len(request.batch)), -errno.ETIMEDOUT)
                self._backend.count_elsewhere(request.batch, divided=False)
            self._finish(flight)
        for flight in self._under_way[:]:
            if flight.begun and not flight.has_own_work:
                self._step(flight, 0, may_wait=False)

    def _finish(self, flight: _Flight) -> None:
        request = flight.request
        self._under_way.remove(flight)  # before the callbacks, which may close the engine
        try:
            if not flight.left:  # before the callbacks, which may submit another request
                self._queue.leave(request.pages)
                flight.left = True
            if not request.done():
                request.finish(flight.error)
        except MemoryError:
            if not request.done():
                self._under_way.append(flight)
            raise

    def close(self) -> None:
        """Finish every queued request, then end the thread."""
        self._queue.close()
        if not self.is_current:
            self._thread.join()
            return
        # A callback is closing: do the rest here. The thread ends after the callback returns.
        self._run()

    def abandon(self, timeout_s: float) -> None:
        """Cancel queued requests at the interpreter's exit. Give begun ones `timeout_s` to end."""
        self._queue.close()
        for request in self._queue.take_all():
            request.cancel()
        self._thread.join(timeout_s)
        self._gives_up = True  # requests that take longer end after the pages that are begun
        self._thread.join(timeout_s)
        # Only now: otherwise callbacks of cancelled requests that submit again would never end.
        self.is_over = True
