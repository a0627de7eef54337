"""Lane: the thread that does an engine's requests.

It is the caller of the workers in place of the submitters, who are free meanwhile, and does a caller's
share itself. Requests overlap: while workers have shares of some, it hands out the next, so that no core
waits for a request's last share. Each is finished as soon as its own shares are done, in whatever order.
It takes what is queued in bundles; the last of one is divided evenly, so that it ends soon if no other
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.batch import Batch
    from batchzip.request import Request
    from batchzip_workers.backend import WorkersBackend
    from batchzip_workers.division import Division
    from batchzip_workers.queue import RequestQueue

_BUNDLE_PAGES = 1024
"""Pages of a bundle: larger ones delay who comes next, smaller ones let the workers run dry often."""


class Lane:
    """Takes up requests, does them together with the workers, and finishes each."""

    def __init__(self, backend: WorkersBackend, queue: RequestQueue) -> None:
        self._backend = backend
        self._queue = queue
        self._under_way: list[tuple[Request[Batch], Division]] = []
        """What workers have shares of, the oldest first."""
        self._measured: tuple[Callable[[int, float, float], None], int, float] | None = None
        """The bundle being timed: whom to tell, its pages, when it began."""
        self._thread = threading.Thread(target=self._run, name="batchzip-requests", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is called in the lane's own thread, by a callback."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while True:
            requests = self._queue.take(_BUNDLE_PAGES, wait=not self._under_way)
            if requests:
                self._begin(requests)
            elif self._under_way:
                self._reap(*self._under_way.pop(0))
            else:
                return
            if not self._under_way:
                self._note()
            del requests  # nothing of them, nor of their engine, is kept while there is no next one

    def _begin(self, requests: list[Request[Batch]]) -> None:
        """Take up a bundle; on return it is done, or the rest of it is under way."""
        self._note()
        requests = [request for request in requests if self._take_up(request)]
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
            note(pages, now - started, now)

    def _take_up(self, request: Request[Batch]) -> bool:
        if request.take_up():
            return True
        self._queue.leave(len(request.batch))  # it was cancelled
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
                meanwhile=self._expire_queued,
            )
            if self._hand_out(request, division):
                self._under_way.append((request, division))
            self._reap_done()

    def _hand_out(self, request: Request[Batch], division: Division) -> bool:
        """Do of a request what is not workers' work; whether it is still under way."""
        try:
            while division.step():
                pass
        except BaseException as error:  # noqa: BLE001 - as above
            division.abandon()
            self._finish(request, error)
            return False
        return True

    def _reap_done(self) -> None:
        """Finish the requests whose last share is done."""
        for one in self._under_way[:]:
            # A callback that closes the engine has done all of them.
            if one in self._under_way and one[1].collect():
                self._under_way.remove(one)
                self._reap(*one)

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
        self._backend.count(request.batch)
        # First, so that a callback finds room for the next.
        self._queue.leave(len(request.batch))
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
