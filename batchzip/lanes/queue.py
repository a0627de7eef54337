"""RequestQueue: requests that were submitted and not taken up yet, in a fair order.

Each submitting thread has a line of its own, and lines are served in turn, so that one that floods
the engine delays another's request by one of its own, not by all of them. What is in the queue and
under way is bounded in pages: `put` waits for room, or raises EngineBusy. Those that wait for room
get it in the order they came.

Rejected: `queue.Queue`, one line for all, bounded by requests whatever their size.

Locks: one, innermost; nothing is called under it but a request's own bookkeeping. It is taken by
itself and not by the condition's `with`: that is a Python function, in which an interrupt may come
when the lock is taken and nobody yet there to release it. It is reentrant: a signal handler or a
finalizer may come here again at any call, so what is changed is changed between two calls.
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
"""What deadlines are measured on."""


class RequestQueue:
    """Requests of at most `room` pages, those taken and not `leave`n included. Thread-safe."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._pages = 0
        self._lines: OrderedDict[int, deque[Request[Batch]]] = OrderedDict()
        """A line for each thread that has requests here; the first is served next."""
        self._soonest = NEVER_S
        """No request here has an earlier deadline."""
        self._waiting: dict[Request[Batch], int] = {}
        """What waits for room, in the order they came, and in which thread."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = False

    @property
    def pages(self) -> int:
        """Pages that are queued, and of requests that were taken and did not leave."""
        return self._pages

    def put(self, request: Request[Batch], *, timeout_s: float | None, block: bool) -> None:
        """Queue a request. Raises EngineBusy if there is no room, now or for `timeout_s` seconds."""
        with self._lock:
            if self._waiting or not self._fits(request.pages):
                if not block:
                    raise EngineBusy(f"{self._pages} pages of other requests are under way")
                # A signal handler of a thread that waits here would wait for that very thread.
                if threading.get_ident() not in self._waiting.values():
                    self._wait_for_room(request, timeout_s)
            if self._closed:
                raise ClosedError("this engine is closed")
            self._join(request)

    def put_anyway(self, request: Request[Batch]) -> None:
        """Queue a request whatever the room: from a thread that has to make some."""
        with self._lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            self._join(request)

    def _join(self, request: Request[Batch]) -> None:
        thread = threading.get_ident()
        new_line = deque([request])
        if request.deadline is not None:
            self._soonest = min(self._soonest, request.deadline)
        # An interrupt may come behind any call: the pages are counted just when the request is in.
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
        # One whose deadline has passed needs no room: it is let in to be failed at the next look.
        if not has_room and not request.is_late(clock()):
            raise EngineBusy(
                f"after {patience_s:g} s, {self._pages} pages of other requests are still under way"
            )

    def notify(self) -> None:
        """Have everybody look again: an interrupt may have kept the news of a request from them."""
        with self._lock:
            self._changed.notify_all()

    def take(self, *, wait: bool = True) -> Request[Batch] | None:
        """Take the next request; None if there is none and none was waited for, or it is closed."""
        with self._lock:
            if wait:
                self._changed.wait_for(lambda: self._lines or self._closed)
            if not self._lines:
                return None
            thread, line = next(iter(self._lines.items()))
            # From here on nothing needs memory, so that no request is lost where there is none.
            if len(line) == 1:
                del self._lines[thread]
            else:
                self._lines.move_to_end(thread)  # the others come first now
            return line.popleft()

    def leave(self, pages: int) -> None:
        """Make room: a request of so many pages is done."""
        with self._lock:
            self._pages = max(0, self._pages - pages)
            self._changed.notify_all()

    def take_expired(self) -> list[Request[Batch]]:
        """Take the requests whose deadline has passed."""
        now = clock()
        if now < self._soonest:
            return []
        with self._lock:
            # What comes meanwhile, from a signal handler or a finalizer, finds the lines as they
            # are.
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
                self._soonest = -1.0  # somebody has to look again
                if not expired or not isinstance(error, MemoryError):
                    raise
        return expired

    def expire(self, request: Request[Batch]) -> None:
        """Let the deadline of a request pass now, wherever it is."""
        with self._lock:
            request.deadline = self._soonest = -1.0

    def close(self) -> None:
        """Let nobody in any more; what is queued can still be taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def take_all(self) -> list[Request[Batch]]:
        """Take every request that is queued."""
        with self._lock:
            taken = [request for line in self._lines.values() for request in line]
            self._lines.clear()
            return taken
