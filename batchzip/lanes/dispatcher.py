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
from typing import TYPE_CHECKING

from batchzip.lanes.watch import LOOK_S

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.lanes.backend import LanesBackend
    from batchzip.lanes.queue import RequestQueue
    from batchzip.lanes.watch import Watch
    from batchzip.request import Request

_WAIT_S = 0.005
"""Seconds that the thread waits for a lane before it looks whether there is another request."""


class _DispatcherThread(threading.Thread):
    """The thread of a dispatcher, to know one by."""


class Dispatcher:
    """Takes up requests, does them together with the lanes, and finishes each.

    Raise RuntimeError where no thread can be started.
    """

    def __init__(self, backend: LanesBackend, queue: RequestQueue) -> None:
        self._backend = backend
        self._queue = queue
        self._under_way: list[tuple[Request[Batch], Watch]] = []
        """What lanes have pages of, the oldest first."""
        self._gives_up = False
        self.is_over = False
        """Whether it was abandoned: what is submitted now, its submitter has to do."""
        self._thread = _DispatcherThread(target=self._run, name="batchzip-requests", daemon=True)
        self._thread.start()

    @staticmethod
    def is_here() -> bool:
        """Return whether this is called in the thread of a dispatcher, any one's, by a callback."""
        return isinstance(threading.current_thread(), _DispatcherThread)

    @property
    def is_current(self) -> bool:
        """Whether this is called in this dispatcher's own thread, by a callback."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while True:
            request = self._queue.take(wait=not self._under_way)
            if request is not None:
                self._begin(request)
            elif self._under_way:
                self._step(0, _WAIT_S, may_wait=True)
            else:
                return
            del request  # nothing of it, nor of its engine, is kept while there is no next one
            self._look_around()

    def _begin(self, request: Request[Batch]) -> None:
        """Do of a request what is the caller's."""
        if not request.take_up():
            self._queue.leave(request.pages)
            return
        try:
            watch = self._backend.begin(request.batch, request.deadline)
        except BaseException as error:  # noqa: BLE001 - it is raised where the request is waited for
            self._finish(request, error)
            return
        self._under_way.append((request, watch))
        # Long ones are done in pieces, as others' deadlines pass meanwhile.
        while (request, watch) in self._under_way and not self._waits(watch):
            self._look_around()

    def _waits(self, watch: Watch) -> bool:
        """Go on with the youngest; return whether there is nothing to do of it but wait."""
        at = next(i for i, (_, other) in enumerate(self._under_way) if other is watch)
        self._step(at, LOOK_S, may_wait=False)
        return not watch.has_own_work

    def _step(self, at: int, seconds: float, *, may_wait: bool) -> None:
        """Go on with one of the requests under way, and finish it if it is done."""
        request, watch = self._under_way[at]
        try:
            if self._gives_up:
                watch.give_up(-errno.ECANCELED)
            elif not watch.step(seconds, may_wait=may_wait):
                return
            error = None
        except BaseException as failure:  # noqa: BLE001 - it is raised where the request is waited for
            error = failure
        self._under_way.remove((request, watch))
        self._finish(request, error)

    def _look_around(self) -> None:
        """Finish what is over by now, of what is under way and what is queued."""
        for request in self._queue.take_expired():
            if request.take_up():
                request.batch.fail(range(len(request.batch)), -errno.ETIMEDOUT)
                self._backend.count_elsewhere(request.batch, divided=False)
                self._finish(request)
            else:
                self._queue.leave(request.pages)
        for pair in self._under_way[:]:
            # A callback that closes the engine has done all of them.
            if pair in self._under_way and not pair[1].has_own_work:
                self._step(self._under_way.index(pair), 0, may_wait=False)

    def _finish(self, request: Request[Batch], error: BaseException | None = None) -> None:
        # First, so that a callback finds room for the next.
        self._queue.leave(request.pages)
        request.finish(error)

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
