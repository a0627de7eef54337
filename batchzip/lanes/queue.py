"""RequestQueue: requests that were submitted and not taken up yet, in a fair order.

Each submitting thread has its own line, and the lines are served in turn. So a thread that floods
the engine delays the request of another thread by one of its own, not by all. The pages of queued
and begun requests are limited: `put` waits for room, or raises EngineBusy. Threads get room in the
order in which they began to wait.

Rejected: `queue.Queue`. It has one line for all, and its limit counts requests of any size.

Locks: one, innermost. Code under it calls only a request's own bookkeeping. `with self._lock` takes
it, not the condition's `with`. That one is a Python function, in which an interrupt may come when
the lock is taken and nothing would release it. The lock is reentrant: a signal handler or a
finalizer may call this class again within any call. So each change is complete between two calls.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from batchzip.arguments.checks import NEVER_S
from batchzip.errors import ClosedError, EngineBusy

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.request import Request

clock = time.monotonic
"""The clock of deadlines."""


class RequestQueue:
    """Requests of at most `room` pages in total. Thread-safe.

    Requests that were taken count until `leave` is called for them.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._pages = 0
        self._lines: OrderedDict[int, deque[Request[Batch]]] = OrderedDict()
        """The line of each thread with queued requests. The first is served next."""
        self._soonest = NEVER_S
        """Lower bound of all deadlines in the queue."""
        self._waiting: dict[Request[Batch], int] = {}
        """Requests that wait for room, in the order in which they came, and their threads."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = False

    @property
    def pages(self) -> int:
        """Pages of all requests that are queued, or taken and not left."""
        return self._pages

    def put(self, request: Request[Batch], *, timeout_s: float | None, block: bool) -> None:
        """Queue a request. Raise EngineBusy if there is no room, now or within `timeout_s`."""
        with self._lock:
            if self._waiting or not self._fits(request.pages):
                if not block:
                    raise EngineBusy(f"{self._pages} pages of other requests are in progress")
                # A signal handler of a thread that waits here would wait for its own thread.
                if threading.get_ident() not in self._waiting.values():
                    self._wait_for_room(request, timeout_s)
            if self._closed:
                raise ClosedError("this engine is closed")
            self._join(request)

    def put_anyway(self, request: Request[Batch]) -> None:
        """Queue a request regardless of room. For threads that make room themselves."""
        with self._lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            self._join(request)

    def _join(self, request: Request[Batch]) -> None:
        thread = threading.get_ident()
        new_line = deque([request])
        if request.deadline is not None:
            self._soonest = min(self._soonest, request.deadline)
        # An interrupt may come after any call: count the pages right where the request is added.
        self._pages += request.pages
        if thread in self._lines:
            self._lines[thread].append(request)
        else:
            self._lines[thread] = new_line
        self._changed.notify_all()

    def _fits(self, pages: int) -> bool:
        return self._pages == 0 or self._pages + pages <= self._room

    def _wait_for_room(self, request: Request[Batch], timeout_s: float | None) -> None:
        patience_s = NEVER_S if timeout_s is None else timeout_s
        if request.deadline is not None:
            patience_s = min(patience_s, max(request.deadline - clock(), 0.0))
        try:
            self._waiting[request] = threading.get_ident()
            has_room = self._changed.wait_for(
                lambda: (
                    self._closed
                    or (next(iter(self._waiting)) is request and self._fits(request.pages))
                ),
                patience_s,
            )
        finally:
            self._waiting.pop(request, None)
            self._changed.notify_all()
        # A request past its deadline needs no room: `take_expired` will take it.
        if not has_room and not request.is_late(clock()):
            raise EngineBusy(
                f"after {patience_s:g} s, {self._pages} pages of other requests are in progress"
            )

    def notify(self) -> None:
        """Wake all waiters: an interrupt may have come before the wake-up for a request."""
        with self._lock:
            self._changed.notify_all()

    def take(self, *, wait: bool = True) -> Request[Batch] | None:
        """Return the next request, or None. With `wait`, None means that the queue is closed."""
        with self._lock:
            if wait:
                self._changed.wait_for(lambda: self._lines or self._closed)
            if not self._lines:
                return None
            thread, line = next(iter(self._lines.items()))
            # From here on nothing needs memory, so that no request is lost if there is none.
            if len(line) == 1:
                del self._lines[thread]
            else:
                self._lines.move_to_end(thread)  # the other threads are served first now
            return line.popleft()

    def leave(self, pages: int) -> None:
        """Release the room of a request with `pages` pages, which is done."""
        with self._lock:
            self._pages = max(0, self._pages - pages)
            self._changed.notify_all()

    def take_expired(self) -> list[Request[Batch]]:
        """Take and return the requests whose deadline has passed."""
        now = clock()
        if now < self._soonest:
            return []
        with self._lock:
            # A signal handler or a finalizer may change the lines meanwhile: iterate over copies.
            self._soonest = NEVER_S
            expired: list[Request[Batch]] = []
            try:
                for thread, line in list(self._lines.items()):
                    for request in list(line):
                        if request.is_late(now):
                            expired.append(request)
                            if request in line:
                                line.remove(request)
                            else:
                                expired.pop()
                        elif request.deadline is not None:
                            self._soonest = min(self._soonest, request.deadline)
                    if self._lines.get(thread) is line and not line:
                        del self._lines[thread]
            except BaseException as error:
                self._soonest = -1.0  # the next call must search again
                if not expired or not isinstance(error, MemoryError):
                    raise
        return expired

    def expire(self, request: Request[Batch]) -> None:
        """Make the deadline of a request pass now, whether it is queued or taken."""
        with self._lock:
            request.deadline = self._soonest = -1.0

    def close(self) -> None:
        """Refuse further requests. Queued ones can still be taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def take_all(self) -> list[Request[Batch]]:
        """Take and return all queued requests."""
        with self._lock:
            taken = [request for line in self._lines.values() for request in line]
            self._lines.clear()
            return taken
