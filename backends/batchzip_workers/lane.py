"""Lane: the thread that does an engine's requests.

It is the caller of the workers in place of the submitters, who are free meanwhile, and does a caller's
share itself. It takes what is queued in bundles, and the requests of a bundle overlap: while workers
have one, it hands out the next, so that no core waits for a request's last share. Each is finished when
its own shares are done or its deadline has passed, in whatever order: while the thread waits for one, or
does a long one, it looks at the others every LOOK_S.

Whether a bundle is divided at all is decided as for a batch of its size, from what both ways took.

Rejected: concurrent.futures' executor. Its thread is joined at the interpreter's exit before anything
else runs, with every request that is still queued, and it cannot be closed from a callback of its own.

A thread takes requests until `close()`; the queue is the only thing shared.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from batchzip_workers.division import LOOK_S, clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.batch import Batch
    from batchzip.request import Request
    from batchzip_workers.backend import WorkersBackend
    from batchzip_workers.division import Division
    from batchzip_workers.queue import RequestQueue

    _UnderWay: TypeAlias = tuple[Request[Batch], Division]

_BUNDLE_PAGES = 1024
"""Pages of a bundle: larger ones delay who comes next, smaller ones let the workers run dry often."""


class _LaneThread(threading.Thread):
    """The thread of a lane, to know one by."""


class Lane:
    """Takes up requests, does them together with the workers, and finishes each."""

    def __init__(self, backend: WorkersBackend, queue: RequestQueue) -> None:
        self._backend = backend
        self._queue = queue
        self._thread = _LaneThread(target=self._run, name="batchzip-requests", daemon=True)
        self._thread.start()

    @staticmethod
    def is_here() -> bool:
        """Whether this is called in the thread of a lane, this one or another's, by a callback."""
        return isinstance(threading.current_thread(), _LaneThread)

    @property
    def is_current(self) -> bool:
        """Whether this is called in the lane's own thread, by a callback."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while requests := self._queue.take(_BUNDLE_PAGES):
            self._do([request for request in requests if self._take_up(request)])
            del requests  # nothing of them, nor of their engine, is kept while there is no next one

    def _take_up(self, request: Request[Batch]) -> bool:
        if request.take_up():
            return True
        self._queue.leave(request.pages)  # it was cancelled
        return False

    def _do(self, requests: list[Request[Batch]]) -> None:
        self._expire_queued()
        if not requests:
            return
        backend = self._backend
        pages = sum(len(request.batch) for request in requests)
        first = requests[0].batch
        balance = backend.balance(first.operation, backend.locate(first), bundled=True)
        started, asleep = time.perf_counter(), backend.asleep
        divided = backend.can_divide and balance.is_worth(pages, started, asleep=asleep)
        if divided:
            self._divide(requests)
        else:
            for request in requests:
                self._do_alone(request)
        now = time.perf_counter()
        if any(request.deadline is not None and request.batch.has_errors for request in requests):
            return  # what was given up tells nothing about what doing it takes
        if divided:
            balance.note_divided(pages, now - started, now, woke=asleep)
        else:
            balance.note_alone(pages, now - started, now)

    def _do_alone(self, request: Request[Batch]) -> None:
        try:
            self._backend.run_inline(request.batch, request.deadline)
        except BaseException as error:  # noqa: BLE001 - raised where the request is waited for
            self._finish(request, error)
        else:
            self._finish(request)

    def _divide(self, requests: list[Request[Batch]]) -> None:
        """Do requests so that they overlap."""
        under_way: list[_UnderWay] = []

        def look_around() -> None:
            self._expire_queued()
            self._reap(under_way)

        for request in requests:
            division = self._backend.divide(
                request.batch,
                self._backend.locate(request.batch),
                spread=request is requests[-1],
                deadline=request.deadline,
                meanwhile=look_around,
            )
            if self._hand_out(request, division, look_around):
                under_way.append((request, division))
            self._reap(under_way)
        while under_way:
            self._finish_if_done(*under_way.pop(0), wait=True)

    def _hand_out(
        self, request: Request[Batch], division: Division, look_around: Callable[[], None]
    ) -> bool:
        """Do of a request what is not workers' work; whether it is still under way."""
        look_at = clock() + LOOK_S
        try:
            while division.step():
                if clock() >= look_at:
                    look_around()
                    look_at = clock() + LOOK_S
        except BaseException as error:  # noqa: BLE001 - as above
            division.abandon()
            self._finish(request, error)
            return False
        return True

    def _reap(self, under_way: list[_UnderWay]) -> None:
        """Finish those whose last share is done, or whose deadline has passed."""
        under_way[:] = [one for one in under_way if not self._finish_if_done(*one)]

    def _finish_if_done(
        self, request: Request[Batch], division: Division, *, wait: bool = False
    ) -> bool:
        """Finish a request if its last share is done, or when it is; whether it is finished."""
        try:
            if wait:
                division.finish()
            elif not (division.collect() or division.end_if_late()):
                return False
        except BaseException as error:  # noqa: BLE001 - as above
            division.abandon()
            self._finish(request, error)
        else:
            self._finish(request)
        return True

    def _finish(self, request: Request[Batch], error: BaseException | None = None) -> None:
        self._backend.count(request.batch)
        # First, so that a callback finds room for the next.
        self._queue.leave(request.pages)
        request.finish(error)

    def _expire_queued(self) -> None:
        """Fail the queued requests whose deadline has passed."""
        for request in self._queue.take_expired():
            if self._take_up(request):
                request.batch.fail(range(len(request.batch)), -errno.ETIMEDOUT)
                self._finish(request)

    def close(self) -> None:
        """Finish every request that was put, then end the thread."""
        self._queue.close()
        if not self.is_current:
            self._thread.join()
            return
        # Closed by a callback: the rest is done here, and the thread ends when this one returns.
        while requests := self._queue.take(_BUNDLE_PAGES):
            self._do([request for request in requests if self._take_up(request)])

    def abandon(self, timeout_s: float) -> None:
        """At the interpreter's exit: cancel what is queued, let what is under way end within time."""
        self._queue.close()
        for request in self._queue.take_all():
            request.cancel()
        self._thread.join(timeout_s)
