"""Lane: the thread that does an engine's requests.

It is the caller of the workers in place of the submitters, who are free meanwhile, and does a caller's
share itself. Requests overlap: while workers have shares of some, it hands out the next, so that no core
waits for a request's last share. Each is finished when its own shares are done or its deadline has
passed, in whatever order: while the thread waits for one, or does a long one, it looks at the others
every LOOK_S. It takes what is queued in bundles; the last of one is divided evenly, so that it ends soon if no other
comes, and those before go to whoever is free.

Whether a bundle is divided at all is decided as for a batch of its size, from what both ways took.

Rejected: concurrent.futures' executor. Its thread is joined at the interpreter's exit before anything
else runs, with every request that is still queued, and it cannot be closed from a callback of its own.

A thread takes requests until `close()`; the queue is the only thing shared.
"""

from __future__ import annotations

import errno
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from batchzip_workers.under_way import LOOK_S, clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.batch import Batch
    from batchzip.request import Request
    from batchzip_workers.backend import WorkersBackend
    from batchzip_workers.division import Division
    from batchzip_workers.queue import RequestQueue

_BUNDLE_PAGES = 1024
"""Pages of a bundle: larger ones delay who comes next, smaller ones let the workers run dry often."""


class _LaneThread(threading.Thread):
    """The thread of a lane, to know one by."""


class Lane:
    """Takes up requests, does them together with the workers, and finishes each."""

    def __init__(self, backend: WorkersBackend, queue: RequestQueue) -> None:
        self._backend = backend
        self._queue = queue
        self._under_way: list[tuple[Request[Batch], Division]] = []
        """What workers have shares of, the oldest first."""
        self._measured: tuple[Callable[[int, float, float], None], int, float] | None = None
        """The bundle being timed: whom to tell, its pages, when it began."""
        self._gave_up = False
        """Whether a deadline cut the bundle short: that tells nothing of what doing it takes."""
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
        while True:
            requests = self._queue.take(_BUNDLE_PAGES, wait=not self._under_way)
            if requests:
                self._note()
                self._do([request for request in requests if self._take_up(request)])
            elif self._under_way:
                self._reap(*self._under_way.pop(0))
            else:
                return
            if not self._under_way:
                self._note()
            del requests  # nothing of them, nor of their engine, is kept while there is no next one

    def _do(self, requests: list[Request[Batch]]) -> None:
        """Begin a bundle; on return it is done, or the rest of it is under way."""
        self._expire_queued()
        if not requests:
            return
        backend, first = self._backend, requests[0].batch
        balance = backend.balance(first.operation, backend.locate(first), bundled=True)
        pages = sum(len(request.batch) for request in requests)
        started, asleep = time.perf_counter(), backend.asleep
        divided = backend.can_divide and balance.is_worth(pages, started, asleep=asleep)
        note = partial(balance.note_divided, woke=asleep) if divided else balance.note_alone
        self._measured = note, pages, started
        if divided:
            self._divide(requests)
        else:
            for request in requests:
                self._do_alone(request)

    def _note(self) -> None:
        """Record what the last bundle took: until the next began, or nothing was under way."""
        if self._measured is not None:
            note, pages, started = self._measured
            self._measured = None
            now = time.perf_counter()
            if not self._gave_up:
                note(pages, now - started, now)
        self._gave_up = False

    def _take_up(self, request: Request[Batch]) -> bool:
        if request.take_up():
            return True
        self._queue.leave(request.pages)  # it was cancelled
        return False

    def _do_alone(self, request: Request[Batch]) -> None:
        try:
            self._backend.run_inline(request.batch, request.deadline)
        except BaseException as error:  # noqa: BLE001 - raised where the request is waited for
            self._finish(request, error)
        else:
            self._finish(request)

    def _divide(self, requests: list[Request[Batch]]) -> None:
        """Hand requests out so that they overlap, with each other and with those before."""
        for request in requests:
            division = self._backend.divide(
                request.batch,
                self._backend.locate(request.batch),
                spread=request is requests[-1],
                deadline=request.deadline,
                meanwhile=self._look_around,
            )
            if self._hand_out(request, division):
                self._under_way.append((request, division))
            self._reap_done()

    def _hand_out(self, request: Request[Batch], division: Division) -> bool:
        """Do of a request what is not workers' work; whether it is still under way."""
        look_at = clock() + LOOK_S
        try:
            while division.step():
                if clock() >= look_at:
                    self._look_around()
                    look_at = clock() + LOOK_S
        except BaseException as error:  # noqa: BLE001 - as above
            division.abandon()
            self._finish(request, error)
            return False
        return True

    def _look_around(self) -> None:
        """Finish what is over by now, of what is under way and what is queued."""
        self._expire_queued()
        self._reap_done()

    def _reap_done(self) -> None:
        """Finish the requests whose last share is done, or whose deadline has passed."""
        for one in self._under_way[:]:
            # A callback that closes the engine has done all of them.
            if one in self._under_way and self._is_over(one[1]):
                self._under_way.remove(one)
                self._reap(*one)

    @staticmethod
    def _is_over(division: Division) -> bool:
        try:
            return division.collect() or division.end_if_late()
        except BaseException:  # noqa: BLE001 - finish() comes to the same, and reports it
            return True

    def _reap(self, request: Request[Batch], division: Division) -> None:
        """Wait for a request's last share, and finish it."""
        try:
            division.finish()
        except BaseException as error:  # noqa: BLE001 - as above
            division.abandon()
            self._finish(request, error)
        else:
            self._finish(request)

    def _finish(self, request: Request[Batch], error: BaseException | None = None) -> None:
        self._gave_up |= request.deadline is not None and request.batch.has_errors
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
        self._run()

    def abandon(self, timeout_s: float) -> None:
        """At the interpreter's exit: cancel what is queued, let what is under way end within time."""
        self._queue.close()
        for request in self._queue.take_all():
            request.cancel()
        self._thread.join(timeout_s)
