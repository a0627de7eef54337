"""Lane: the thread through which an engine's requests go to the cluster and come back.

    submit ─▶ RequestQueue ─▶ Flights ─▶ Parcels ─▶ scheduler ─▶ workers
                                                                    │
    request.finish ◀── batch ◀── Lane ◀──── arrivals (a queue) ◀────┘ told by the client's event loop

The client's event loop must never wait, and callbacks of requests may: so it only puts what arrives in a
queue, and this thread does all that touches a batch. Rejected: a thread for each request (thousands may
be under way); doing it in the event loop (a callback that waits for the next request would wait for
ever, and the heartbeats with it).

**Room.** What is out is bounded, in bytes as it lies in the scheduler's memory on its way, and in tasks, two
for each of the cluster's threads: one is done, the next is there. The rest waits where it was submitted and
is not copied.

**Parcels.** A task costs 5 ms, whatever it carries, most of it in the scheduler. So a parcel takes pages of
whatever waits when there is room for it: alone a request goes at once, and of many a whole parcel's worth goes
together. Nothing waits for company. What waits is divided among the cluster's threads, within bounds: those
of a worker's time as measured, and of bytes.

**Deaths.** Which worker has a parcel, and that it is given to another when that one dies, is the scheduler's
business. It gives up a task that was on `distributed.scheduler.allowed-failures` + 1 workers as they died,
though another's may have been the cause. So what it gives up goes once more, one request's pages at a time
and nothing else meanwhile: one's poison is no other's. Pages that it gives up then get -EOWNERDEAD.

Looked after once a second: whether the scheduler is connected and has workers at all. Nothing waits for
longer than that says, or for what can still come.

A thread takes requests until `close()`; the two queues are all that is shared. Requests are finished at one
place (`_settle`), as their callbacks may do anything, close the engine included.
"""

from __future__ import annotations

import errno
import math
import queue
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from batchzip.errors import BackendUnavailable, ClusterLost
from batchzip.lanes import RequestThread
from batchzip.system.limits import begin, is_out_of_memory
from batchzip.wording import shown
from batchzip_dask.connection import CancelledError, KilledWorker
from batchzip_dask.flight import Flight, Parcel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.batch import Batch
    from batchzip.lanes import RequestQueue
    from batchzip.request import Request
    from batchzip_dask.backend import DaskBackend
    from batchzip_dask.connection import ClusterConnection
    from batchzip_dask.task_pages import Outcome

    Arrival: TypeAlias = Callable[[], None]

OUT_BYTES = 64 << 20
"""Bytes of pages that are out, in the scheduler's memory."""

_TASKS_PER_THREAD = 2

MOST_BYTES = 4 << 20
"""Bytes of pages of a parcel; those of 1 MiB took twice as long a page, those of 8 no less. What a dead
worker had is done again whole."""

_LEAST_BYTES = 64 << 10
"""Bytes of pages below which dividing work among more threads costs more messages than it saves."""

_LEAST_S, _MOST_S = 0.01, 0.2
"""Seconds of a worker's thread that a parcel takes at least and at most, within the bounds in bytes."""

_CODEC_TIMES = 8
"""Times that a parcel is longer than the pickled codec it carries, which may have a dictionary. A minimum."""

_LOOK_S = 1.0
"""Seconds between two looks at the cluster while something is out."""

_FULL_LOOK_S = 0.05
"""Seconds between two looks at the deadlines of requests that are still queued, as there is no room."""

_EXPLAINED_S = 2.0
"""Seconds for which holds what workers said that they lack: many batches may fail at once."""

_NO_MEMORY_S = 0.005
"""Seconds until the thread goes on where memory was out."""

_MOST_CANCELLED = 3
"""Times that pages are handed out again which somebody else's `client.restart()` cancelled."""


class _LaneThread(RequestThread):
    """The thread of a lane, to know one by."""


class Lane:
    """Takes up requests, has the cluster do them, and finishes each."""

    def __init__(
        self, backend: DaskBackend, cluster: ClusterConnection, requests: RequestQueue, codec: bytes
    ) -> None:
        self._backend = backend
        self._cluster = cluster
        self._requests = requests
        self._codec = codec
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        """What is to be done in the thread with an answer; None: look at the queue of requests."""
        self._woken = False
        """Whether there is a None among the arrivals."""
        self._flights: list[Flight] = []
        self._cut_last: Flight | None = None
        """The only one that may have pages to hand out, but for those whose deadline has passed."""
        self._taken: Request[Batch] | None = None
        """What was taken from the queue and has no flight yet; it stays here where memory is out."""
        self._late: list[Request[Batch]] = []
        """The same, of requests whose deadline has passed."""
        self._failure: BaseException | None = None
        """The error that the thread met; the requests that it affects have not ended yet."""
        self._ended: deque[tuple[Request[Batch], BaseException | None]] = deque()
        """What is over, and its callbacks not called."""
        self._out: set[Parcel] = set()
        self._out_pages = 0
        self._suspects: deque[Parcel] = deque()
        """What goes next, one by one."""
        self._unexplained: list[tuple[Parcel, BaseException]] = []
        """What workers could not do, and how it failed, until they have said what they lack."""
        self._why: BackendUnavailable | None = None
        """What they said last."""
        self._explained_at = -math.inf
        self._asks_why = False
        self._page_s: dict[int, float] = {}
        """Seconds that a worker's thread takes for a page, by operation, as far as is known."""
        self._workerless_since = math.inf
        self._silent_s: float | None = None
        """Seconds that the scheduler has owed an answer, of those that this process ran; None: it owes none."""
        self._look_at = 0.0
        self._closed = False
        self._thread = _LaneThread(target=self._run, name="batchzip-dask", daemon=True)
        begin(self._thread)

    @staticmethod
    def is_here() -> bool:
        """Whether this is called in the thread of a lane, this one or another's, by a callback."""
        return isinstance(threading.current_thread(), _LaneThread)

    def wake(self, *, surely: bool = False) -> None:
        """Say that a request was queued or cancelled, or has a deadline that it had not.

        Surely: though an interrupt may have come in the middle of saying so.
        """
        if surely or not self._woken:
            self._woken = True
            self._arrivals.put(None)

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            try:
                goes_on = self._go_on()
            except BaseException as error:  # noqa: BLE001 - raised where the requests are waited for
                if self._failure is None or _is_out_of_memory(self._failure):
                    self._failure = error
                if _is_out_of_memory(error):
                    time.sleep(_NO_MEMORY_S)

    def _go_on(self) -> bool:
        """Do what is next. Return False where there is nothing any more."""
        if self._failure is not None:
            self._end_lost(self._failure)
            self._failure = None
        self._feed()
        self._settle()
        if self._closed and not self._flights:
            return False
        try:
            arrival = self._arrivals.get(timeout=self._patience_s())
        except queue.Empty:
            arrival = None
        if arrival is None:
            self._woken = False  # what was queued up to now is seen below
        else:
            arrival()
        del arrival  # nothing of a batch is kept while there is no next one
        self._expire()
        self._look()
        return True

    def _end_lost(self, failure: BaseException) -> None:
        """End what a failure of this thread has cost.

        Where memory was out, these are flights with pages that were in hand, of which nothing will come.
        Anything else is a fault that nobody has thought of: everything ends, and nothing is taken any more.
        """
        if _is_out_of_memory(failure):
            self._take_up_late()
            kept = Counter[Flight]()
            unexplained = [parcel for parcel, _ in self._unexplained]
            for parcel in (*self._out, *self._suspects, *unexplained):
                for flight, indices in parcel.parts:
                    kept[flight] += len(indices)
            lost = [
                one for one in self._flights if not one.undone or kept[one] + one.left < one.undone
            ]
            reason = failure
        else:
            self._requests.close()
            self._closed = True
            self._late += self._requests.take_all()
            self._take_up_late()
            lost = self._flights[:]
            reason = BackendUnavailable(f"the dask backend has failed: {shown(failure)}")
            reason.__cause__ = failure
        for flight in lost:
            self._end(flight, reason if flight.undone else None)

    def _patience_s(self) -> float | None:
        """Seconds until something must be looked at."""
        if not self._flights:
            return None
        deadlines = [flight.request.deadline for flight in self._flights]
        look_at = self._look_at
        if self._suspects or not self._has_room:  # requests wait, maybe, whose deadlines pass
            look_at = min(look_at, time.monotonic() + _FULL_LOOK_S)
        at = min([look_at, *(deadline for deadline in deadlines if deadline is not None)])
        return max(0.0, at - time.monotonic())

    # Out.

    @property
    def _most_tasks(self) -> int:
        return _TASKS_PER_THREAD * max(1, self._backend.threads)

    @property
    def _has_room(self) -> bool:
        return (
            len(self._out) < self._most_tasks
            and self._out_pages * self._backend.page_size < OUT_BYTES
        )

    def _feed(self) -> None:
        """Hand out parcels as long as there is room."""
        while self._suspects:
            if self._out:
                return
            if not self._suspects[0].live_parts:
                self._suspects.popleft()
            else:
                self._hand_out(self._suspects.popleft())
        while self._has_room:
            parts: list[tuple[Flight, Sequence[int]]] = []
            room = 1
            while room > 0 and (flight := self._next_flight()) is not None:
                if not parts:
                    room = self._parcel_pages(flight.request.batch.operation)
                indices = flight.cut(room)
                parts.append((flight, indices))
                room -= len(indices)
            if not parts:
                return
            self._hand_out(Parcel(parts))

    def _next_flight(self) -> Flight | None:
        """Return a flight with pages that are to go out, of a request that is taken up now if need be."""
        now = time.monotonic()
        flight = self._cut_last
        while flight is None or not flight.left or flight.request.is_late(now):
            if self._taken is None:
                self._taken = self._requests.take(wait=False)
            if self._taken is None:
                return None
            flight = self._cut_last = self._take_up(self._taken)
            self._taken = None
        return flight

    def _take_up(self, request: Request[Batch]) -> Flight | None:
        """Take up a request, unless it was cancelled."""
        if not self._flights:
            self._look_at, self._workerless_since = 0.0, math.inf
        try:
            flight = Flight(request)
        except Exception as error:  # noqa: BLE001 - no memory to put pages in order, most likely
            self._ended.append((request, error))
            if not request.take_up():
                self._ended.pop()
                self._requests.leave(request.pages)
            return None
        self._flights.append(flight)
        # From here on nothing needs memory, so that no request is lost where there is none.
        if request.take_up():
            return flight
        self._flights.remove(flight)
        self._requests.leave(request.pages)
        return None

    def _take_up_late(self) -> None:
        while self._late:
            self._take_up(self._late[-1])
            self._late.pop()

    def _parcel_pages(self, operation: int) -> int:
        """Say how many pages the next parcel has at most."""
        size = self._backend.page_size
        least = max(_LEAST_BYTES, _CODEC_TIMES * len(self._codec))
        most = max(least, min(MOST_BYTES, OUT_BYTES // self._most_tasks))
        if operation not in self._page_s:
            return max(1, least // size)  # a page may take 3 µs or 30 ms
        byte_s = self._page_s[operation] / size
        least = max(least, min(most // 4, int(_LEAST_S / byte_s)))
        most = max(least, min(most, int(_MOST_S / byte_s)))
        taken = sum(flight.request.pages - flight.left for flight in self._flights)
        waiting = size * max(0, self._requests.pages - taken)
        fair = waiting // max(1, self._backend.threads)
        return max(1, min(max(fair, least), most) // size)

    def _hand_out(self, parcel: Parcel) -> None:
        try:
            self._cluster.check()
            share = parcel.pack(self._codec)
            parcel.drop = self._cluster.hand_out(share, partial(self._told, parcel))
        except BaseException as error:  # noqa: BLE001 - raised where the requests are waited for
            reason = self._cluster.named(error)
            for flight, _ in parcel.live_parts:
                self._end(flight, reason)
            return
        self._out.add(parcel)
        self._out_pages += parcel.pages

    # Back.

    def _told(self, parcel: Parcel, outcome: Outcome | BaseException) -> None:
        self._arrivals.put(partial(self._arrive, parcel, outcome))

    def _take_back(self, parcel: Parcel) -> None:
        self._out.discard(parcel)
        self._out_pages -= parcel.pages
        parcel.drop()

    def _arrive(self, parcel: Parcel, outcome: Outcome | BaseException) -> None:
        if parcel not in self._out:
            return  # given up meanwhile
        self._take_back(parcel)
        parts = parcel.live_parts
        try:
            if isinstance(outcome, KilledWorker):
                self._bury(parcel)
            elif isinstance(outcome, CancelledError):
                self._again(parcel, outcome)
            elif isinstance(outcome, BaseException):
                self._cluster.check()
                self._ask_why(parcel, outcome)
            else:
                parcel.accept(outcome, self._backend.worked)
                self._learn(parcel, outcome)
        except BaseException as error:  # noqa: BLE001 - raised where the requests are waited for
            reason = self._cluster.named(error)
            for flight, _ in parts:
                self._end(flight, reason)
        for flight, _ in parts:
            if not flight.undone:
                self._end(flight)

    def _ask_why(self, parcel: Parcel, error: BaseException) -> None:
        """Fail a parcel when workers have said what they lack, which tells more than how a task failed."""
        is_known = time.monotonic() < self._explained_at + _EXPLAINED_S
        if not is_known and not self._asks_why:
            self._cluster.ask_workers(self._told_why)
            self._asks_why = True
        self._unexplained.append((parcel, error))
        if is_known:
            self._explain()

    def _told_why(self, reason: BackendUnavailable | None) -> None:
        self._arrivals.put(partial(self._note_why, reason))

    def _note_why(self, reason: BackendUnavailable | None) -> None:
        self._asks_why = False
        self._why, self._explained_at = reason, time.monotonic()
        self._explain()

    def _explain(self) -> None:
        """Fail what a worker could not do."""
        while self._unexplained:
            parcel, error = self._unexplained[-1]
            reason = self._why or self._cluster.named(error)
            for flight, _ in parcel.live_parts:
                self._end(flight, reason)
            self._unexplained.pop()

    def _bury(self, parcel: Parcel) -> None:
        """Go on when the workers that had a parcel died."""
        for flight, indices in parcel.live_parts:
            if parcel.suspect:
                flight.fail(indices, -errno.EOWNERDEAD)
            else:
                self._suspects.append(Parcel([(flight, indices)], suspect=True))

    def _again(self, parcel: Parcel, reason: BaseException) -> None:
        """Hand out again what was cancelled, by the loss of the scheduler or by somebody."""
        self._cluster.check()
        if parcel.cancelled == _MOST_CANCELLED:
            raise ClusterLost(f"the cluster cancels what it is given: {reason}") from reason
        if parts := parcel.live_parts:
            cancelled = parcel.cancelled + 1
            self._hand_out(Parcel(parts, cancelled=cancelled, suspect=parcel.suspect))

    def _learn(self, parcel: Parcel, outcome: Outcome) -> None:
        """Note how long workers take, half of it by the last parcel."""
        operations = {flight.request.batch.operation for flight, _ in parcel.parts}
        if len(operations) == 1:
            (operation,) = operations
            now = max(1e-9, float(outcome.busy_s) / parcel.pages)
            self._page_s[operation] = (self._page_s.get(operation, now) + now) / 2

    # The end.

    def _end(self, flight: Flight, error: BaseException | None = None) -> None:
        """Say that a flight is over."""
        if flight.over:
            return
        if error is not None:
            with suppress(Exception):  # no memory: the error says enough
                flight.give_up(-errno.EOWNERDEAD)
        self._ended.append((flight.request, error))
        # From here on nothing needs memory but to drop what is out.
        flight.over = True
        self._flights.remove(flight)
        if self._cut_last is flight:
            self._cut_last = None
        if flight.undone:
            for parcel in [one for one in self._out if not one.live_parts]:
                self._take_back(parcel)

    def _settle(self) -> None:
        """Finish what is over."""
        while self._ended:
            request, error = self._ended.popleft()
            try:
                self._backend.count_elsewhere(request.batch, divided=True)
            finally:
                # First, so that a callback finds room for the next.
                self._requests.leave(request.pages)
                request.finish(error)
                del error, request

    def _expire(self) -> None:
        """End the requests whose deadline has passed, queued or under way."""
        self._late = self._requests.take_expired()
        self._take_up_late()
        now = time.monotonic()
        for flight in [one for one in self._flights if one.request.is_late(now)]:
            flight.give_up(-errno.ETIMEDOUT)
            self._end(flight)

    def _look(self) -> None:
        """Look after the cluster now and then, while something is out."""
        now = time.monotonic()
        if not self._flights or now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        try:
            self._cluster.check()
            if now > self._workerless_since + self._backend.workerless_s:
                raise ClusterLost(  # noqa: TRY301 - as where the scheduler is gone
                    f"the Dask cluster at {self._cluster.address} has had no workers for {self._backend.workerless_s} s"
                )
            if self._silent_s is None:
                self._cluster.count_threads(self._told_threads)
                self._silent_s = 0.0
            elif self._silent_s >= self._backend.workerless_s:
                raise ClusterLost(  # noqa: TRY301 - as above
                    f"the Dask scheduler at {self._cluster.address} has not answered for {self._backend.workerless_s} s"
                )
            else:
                self._silent_s += _LOOK_S
        except ClusterLost as error:
            for flight in self._flights[:]:
                self._end(flight, error)

    def _told_threads(self, threads: int | None) -> None:
        self._arrivals.put(partial(self._note_threads, threads))

    def _note_threads(self, threads: int | None) -> None:
        self._silent_s = None
        if threads is None:
            return
        self._backend.threads = threads
        if threads:
            self._workerless_since = math.inf
        else:
            self._workerless_since = min(self._workerless_since, time.monotonic())

    def close(self) -> None:
        """Finish every request that was put, then end the thread."""
        self._requests.close()
        self._closed = True
        self.wake()
        if threading.current_thread() is self._thread:
            # Closed by a callback: the rest is done here, and the thread ends when this one returns.
            self._run()
        else:
            self._thread.join()

    def abandon(self, timeout_s: float) -> None:
        """At the interpreter's exit: cancel what is queued, let what is under way end within time."""
        if not self._thread.is_alive():
            return  # a forked child, where somebody may hold the queue's lock for ever
        self._requests.close()
        for request in self._requests.take_all():
            request.cancel()
        self._closed = True
        self.wake()
        self._thread.join(timeout_s)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error)
