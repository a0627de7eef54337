"""Dispatcher: the thread that does an engine's requests.

It is the caller of the lanes in place of the submitters, who are free meanwhile, and does a caller's
share itself. Requests overlap: while lanes have pages of one, it begins the next, so that no core waits
for a request's last page. Each is finished when its own pages are done or its deadline has passed, in
whatever order; while there is nothing to begin, the thread waits for the oldest.

Rejected: concurrent.futures' executor. Its thread is joined at the interpreter's exit before anything
else runs, with every request that is still queued, and it cannot be closed from a callback of its own.

The thread takes requests until `close()`; the queue is the only thing shared.
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
"""Seconds that the thread waits for a lane before it looks whether there is another request."""


class RequestThread(threading.Thread):
    """A thread of an engine that calls the callbacks of requests, to know one by.

    None may wait for room that another makes: its callbacks may be waiting for this one.
    """

    @staticmethod
    def is_here() -> bool:
        """Return whether this is called in such a thread, any engine's, by a callback."""
        return isinstance(threading.current_thread(), RequestThread)


class _Flight:
    """A request that was taken, until it is finished."""

    __slots__ = ("error", "left", "over", "request", "watch")

    def __init__(self, request: Request[Batch]) -> None:
        self.request = request
        self.watch: Watch | None = None
        self.error: BaseException | None = None
        """What failed it as a whole."""
        self.over = False
        """Whether nothing is to be done but to say so."""
        self.left = False
        """Whether it has made room for others in the queue."""

    @property
    def begun(self) -> bool:
        """Whether it can be gone on with; not so in the middle of its beginning, where a codec closes the engine."""
        return self.over or self.watch is not None

    @property
    def has_own_work(self) -> bool:
        """Whether there are pages that the caller can do."""
        return not self.over and self.watch is not None and self.watch.has_own_work


class BatchStarter(Protocol):
    """What the dispatcher asks of its backend."""

    def begin(self, batch: Batch, deadline: float | None) -> Watch:
        """Begin a batch that is looked after while others are done."""

    def count_elsewhere(self, batch: Batch, *, divided: bool) -> None:
        """Count a batch that no lane has done."""


class Dispatcher:
    """Takes up requests, does them together with the lanes, and finishes each.

    Raise LimitReached where no thread can be started.
    """

    def __init__(self, backend: BatchStarter, queue: RequestQueue) -> None:
        self._backend = backend
        self._queue = queue
        self._under_way: list[_Flight] = []
        """What was taken and is not finished, the oldest first."""
        self._gives_up = False
        self.is_over = False
        """Whether it was abandoned: what is submitted now, its submitter has to do."""
        self._thread = RequestThread(target=self._run, name="batchzip-requests", daemon=True)
        begin(self._thread)

    @property
    def is_current(self) -> bool:
        """Whether this is called in this dispatcher's own thread, by a callback."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            try:
                goes_on = self._go_on()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # Nothing is lost: what was taken is under way until it is finished.
                time.sleep(_WAIT_S)

    def _go_on(self) -> bool:
        """Do what is next. Return False where there is nothing any more."""
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
                time.sleep(_WAIT_S)  # there is none even to note it
        self._look_around()
        return True

    def _begin(self, request: Request[Batch]) -> None:
        """Do of a request what is the caller's."""
        flight = _Flight(request)
        self._under_way.append(flight)
        try:
            if request.take_up():
                flight.watch = self._backend.begin(request.batch, request.deadline)
            else:
                flight.over = True
        except BaseException as error:  # noqa: BLE001 - it is raised where the request is waited for
            flight.error = error
            flight.over = True
        # Long ones are done in pieces, as others' deadlines pass meanwhile.
        self._step(flight, LOOK_S, may_wait=False)
        while flight in self._under_way and flight.has_own_work:
            self._look_around()
            self._step(flight, LOOK_S, may_wait=False)

    def _step(self, flight: _Flight, seconds: float, *, may_wait: bool) -> None:
        """Go on with a request that was begun, and finish it if it is done."""
        if flight not in self._under_way:  # a callback that closes the engine has done all of them
            return
        watch = flight.watch
        if not flight.over and watch is not None:
            try:
                if self._gives_up:
                    watch.give_up(-errno.ECANCELED)
                elif not watch.step(seconds, may_wait=may_wait):
                    return
            except BaseException as error:  # noqa: BLE001 - it is raised where the request is waited for
                flight.error = error
            flight.over = True
        self._finish(flight)

    def _look_around(self) -> None:
        """Finish what is over by now, of what is under way and what is queued."""
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
        self._under_way.remove(flight)  # callbacks, which come below, find it gone
        try:
            if not flight.left:  # first, so that a callback finds room for the next
                self._queue.leave(request.pages)
                flight.left = True
            if not request.done():
                request.finish(flight.error)
        except MemoryError:
            if not request.done():
                self._under_way.append(flight)
            raise

    def close(self) -> None:
        """Finish every request that was put, then end the thread."""
        self._queue.close()
        if not self.is_current:
            self._thread.join()
            return
        # Closed by a callback: the rest is done here, and the thread ends when this one returns.
        self._run()

    def abandon(self, timeout_s: float) -> None:
        """At the interpreter's exit: cancel what is queued, let what is under way end within time."""
        self._queue.close()
        for request in self._queue.take_all():
            request.cancel()
        self._thread.join(timeout_s)
        self._gives_up = True  # of what takes longer, pages that are begun are waited for
        self._thread.join(timeout_s)
        # Not before: callbacks of what was cancelled, which submit again, would never end.
        self.is_over = True
