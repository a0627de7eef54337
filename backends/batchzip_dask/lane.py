"""Lane: the thread through which an engine's requests go to the cluster and come back.

    submit ─▶ RequestQueue ─▶ Flights ─▶ Parcels ─▶ scheduler ─▶ workers
                                                                    │
    request.finish ◀── batch ◀── Lane ◀──── arrivals (a queue) ◀────┘ put by the client's event loop

The client's event loop must never wait, but callbacks of requests may. So the event loop only puts
answers in a queue, and this thread does everything that touches a batch. Rejected: a thread per
request, as thousands may be in progress. Rejected: working in the event loop. A callback that waits
for another request would block it forever, heartbeats included.

**Room.** Two things are bounded: the bytes of pages that are out on the cluster, because the
scheduler holds them in memory, and the tasks, two per thread of the cluster. One task runs while
the next one waits beside it. All other pages stay with their submitter and are not copied.

**Parcels.** A task costs 5 ms, mostly in the scheduler, whatever it carries. So a parcel takes
pages of whatever requests wait when there is room. A single request goes at once; of many requests,
a full parcel goes together. Nothing is delayed to fill a parcel. The waiting pages are divided
among the cluster's threads. A parcel is bounded in bytes, and in a worker's time as measured.

**Deaths.** The scheduler decides which worker runs a task, and gives it to another one if that
worker dies. It gives a task up after `distributed.scheduler.allowed-failures` + 1 workers died with
it, although another task may have been the cause. So the pages of such a task go out once more, one
request at a time and with no other task beside them. A request that kills workers thus does not
harm others. If the scheduler gives these pages up again, they get -EOWNERDEAD.

Once per second the lane checks that the scheduler is connected and answers, and that there are
workers. So nothing waits longer than `workerless_s` for a cluster that cannot serve it.

The thread takes requests until `close()`. It shares only the two queues with other threads. It
finishes requests in one place (`_settle`), because their callbacks may do anything, including
closing the engine.
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
"""Bytes of pages that may be out, in the scheduler's memory."""

_TASKS_PER_THREAD = 2

MOST_BYTES = 4 << 20
"""Bytes of pages per parcel. With 1 MiB a page took twice as long; 8 MiB was no faster than 4 MiB.
A larger parcel would only repeat more work when a worker dies."""

_LEAST_BYTES = 64 << 10
"""Bytes of pages below which further division costs more in messages than it saves."""

_LEAST_S, _MOST_S = 0.01, 0.2
"""Minimum and maximum seconds of a worker's thread per parcel, within the bounds in bytes."""

_CODEC_TIMES = 8
"""Minimum ratio of a parcel's bytes to its pickled codec, which may contain a dictionary."""

_LOOK_S = 1.0
"""Seconds between two checks of the cluster while requests are in progress."""

_FULL_LOOK_S = 0.05
"""Seconds between two checks of the deadlines of queued requests while there is no room."""

_EXPLAINED_S = 2.0
"""Seconds for which the workers' report of what they lack is valid, because many batches may fail
at once."""

_NO_MEMORY_S = 0.005
"""Seconds that the thread waits after it ran out of memory."""

_MOST_CANCELLED = 3
"""Times that pages are handed out again after a cancellation, such as another user's
`client.restart()`."""


class _LaneThread(RequestThread):
    """The thread of a lane. `Lane.is_here` recognises it by its class."""


class Lane:
    """Takes up requests, sends their pages to the cluster, and finishes each."""

    def __init__(
        self, backend: DaskBackend, cluster: ClusterConnection, requests: RequestQueue, codec: bytes
    ) -> None:
        self._backend = backend
        self._cluster = cluster
        self._requests = requests
        self._codec = codec
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        """Work for this thread after an answer arrived. None: look at the queue of requests."""
        self._woken = False
        """Whether the arrivals contain a None."""
        self._flights: list[Flight] = []
        self._cut_last: Flight | None = None
        """The only flight that may have pages to hand out, apart from those past their deadline."""
        self._taken: Request[Batch] | None = None
        """A request from the queue that has no flight yet. It stays here if memory runs out."""
        self._late: list[Request[Batch]] = []
        """The same for requests past their deadline."""
        self._failure: BaseException | None = None
        """An error in this thread. The requests that it affects have not ended yet."""
        self._ended: deque[tuple[Request[Batch], BaseException | None]] = deque()
        """Requests that are over but not finished yet."""
        self._out: set[Parcel] = set()
        self._out_pages = 0
        self._suspects: deque[Parcel] = deque()
        """Parcels whose workers died. They go next, one at a time."""
        self._unexplained: list[tuple[Parcel, BaseException]] = []
        """Parcels that failed on a worker. They wait for the workers' report of what they lack."""
        self._why: BackendUnavailable | None = None
        """The last report."""
        self._explained_at = -math.inf
        self._asks_why = False
        self._page_s: dict[int, float] = {}
        """Measured seconds of a worker's thread per page, by operation."""
        self._workerless_since = math.inf
        self._silent_s: float | None = None
        """Seconds without an answer from the scheduler, counted while this process ran; None if no
        answer is outstanding."""
        self._look_at = 0.0
        self._closed = False
        self._thread = _LaneThread(target=self._run, name="batchzip-dask", daemon=True)
        begin(self._thread)

    @staticmethod
    def is_here() -> bool:
        """Return whether the caller is the thread of any lane, that is, a callback of a request."""
        return isinstance(threading.current_thread(), _LaneThread)

    def wake(self, *, surely: bool = False) -> None:
        """Report that a request was queued or cancelled, or got a deadline.

        With `surely`, wake the thread even if an interrupt cut an earlier report short.
        """
        if surely or not self._woken:
            self._woken = True
            self._arrivals.put(None)

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            try:
                goes_on = self._go_on()
            except BaseException as error:  # noqa: BLE001 - raised to whoever waits for requests
                if self._failure is None or _is_out_of_memory(self._failure):
                    self._failure = error
                if _is_out_of_memory(error):
                    time.sleep(_NO_MEMORY_S)

    def _go_on(self) -> bool:
        """Do one round of work. Return False when the lane is closed and empty."""
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
            self._woken = False  # the code below sees whatever was queued before this
        else:
            arrival()
        del arrival  # keeps nothing of a batch alive while the thread waits
        self._expire()
        self._look()
        return True

    def _end_lost(self, failure: BaseException) -> None:
        """End the requests that an error in this thread has cost.

        If memory ran out, these are flights that have lost track of some pages. Any other error is
        a bug: all requests end, and the lane takes no new ones.
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
        """Return the seconds until the next check, or None if none is due."""
        if not self._flights:
            return None
        deadlines = [flight.request.deadline for flight in self._flights]
        look_at = self._look_at
        if self._suspects or not self._has_room:  # deadlines of queued requests may pass
            look_at = min(look_at, time.monotonic() + _FULL_LOOK_S)
        at = min([look_at, *(deadline for deadline in deadlines if deadline is not None)])
        return max(0.0, at - time.monotonic())

    # To the cluster.

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
        """Hand out parcels while there is room."""
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
        """Return a flight with pages to hand out. Take up a request for it if necessary."""
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
        """Make a flight for a request, unless the request was cancelled."""
        if not self._flights:
            self._look_at, self._workerless_since = 0.0, math.inf
        try:
            flight = Flight(request)
        except Exception as error:  # noqa: BLE001 - most likely no memory for the order of pages
            self._ended.append((request, error))
            if not request.take_up():
                self._ended.pop()
                self._requests.leave(request.pages)
            return None
        self._flights.append(flight)
        # The rest needs no memory, so no request is lost for want of it.
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
        """Return the maximum number of pages of the next parcel."""
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
        except BaseException as error:  # noqa: BLE001 - raised to whoever waits for the requests
            reason = self._cluster.named(error)
            for flight, _ in parcel.live_parts:
                self._end(flight, reason)
            return
        self._out.add(parcel)
        self._out_pages += parcel.pages

    # From the cluster.

    def _told(self, parcel: Parcel, outcome: Outcome | BaseException) -> None:
        self._arrivals.put(partial(self._arrive, parcel, outcome))

    def _take_back(self, parcel: Parcel) -> None:
        self._out.discard(parcel)
        self._out_pages -= parcel.pages
        parcel.drop()

    def _arrive(self, parcel: Parcel, outcome: Outcome | BaseException) -> None:
        if parcel not in self._out:
            return  # it was given up meanwhile
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
        except BaseException as error:  # noqa: BLE001 - raised to whoever waits for the requests
            reason = self._cluster.named(error)
            for flight, _ in parts:
                self._end(flight, reason)
        for flight, _ in parts:
            if not flight.undone:
                self._end(flight)

    def _ask_why(self, parcel: Parcel, error: BaseException) -> None:
        """Fail a parcel once the workers have reported what they lack, which explains more."""
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
        """Fail the parcels that waited for the workers' report."""
        while self._unexplained:
            parcel, error = self._unexplained[-1]
            reason = self._why or self._cluster.named(error)
            for flight, _ in parcel.live_parts:
                self._end(flight, reason)
            self._unexplained.pop()

    def _bury(self, parcel: Parcel) -> None:
        """Isolate the pages of a parcel whose workers died, or fail them the second time."""
        for flight, indices in parcel.live_parts:
            if parcel.suspect:
                flight.fail(indices, -errno.EOWNERDEAD)
            else:
                self._suspects.append(Parcel([(flight, indices)], suspect=True))

    def _again(self, parcel: Parcel, reason: BaseException) -> None:
        """Hand out a cancelled parcel again. Raise ClusterLost if the scheduler is lost."""
        self._cluster.check()
        if parcel.cancelled == _MOST_CANCELLED:
            raise ClusterLost(f"the cluster keeps cancelling its tasks: {reason}") from reason
        if parts := parcel.live_parts:
            cancelled = parcel.cancelled + 1
            self._hand_out(Parcel(parts, cancelled=cancelled, suspect=parcel.suspect))

    def _learn(self, parcel: Parcel, outcome: Outcome) -> None:
        """Update the measured time per page. Each parcel counts half of the new value."""
        operations = {flight.request.batch.operation for flight, _ in parcel.parts}
        if len(operations) == 1:
            (operation,) = operations
            now = max(1e-9, float(outcome.busy_s) / parcel.pages)
            self._page_s[operation] = (self._page_s.get(operation, now) + now) / 2

    # Ending requests.

    def _end(self, flight: Flight, error: BaseException | None = None) -> None:
        """Note that a flight is over."""
        if flight.over:
            return
        if error is not None:
            with suppress(Exception):  # without memory for this, the error alone is reported
                flight.give_up(-errno.EOWNERDEAD)
        self._ended.append((flight.request, error))
        # The rest needs no memory, apart from dropping parcels.
        flight.over = True
        self._flights.remove(flight)
        if self._cut_last is flight:
            self._cut_last = None
        if flight.undone:
            for parcel in [one for one in self._out if not one.live_parts]:
                self._take_back(parcel)

    def _settle(self) -> None:
        """Finish the requests that are over."""
        while self._ended:
            request, error = self._ended.popleft()
            try:
                self._backend.count_elsewhere(request.batch, divided=True)
            finally:
                # Make room first, so that a callback can submit the next request.
                self._requests.leave(request.pages)
                request.finish(error)
                del error, request

    def _expire(self) -> None:
        """End the requests past their deadline, queued or in progress."""
        self._late = self._requests.take_expired()
        self._take_up_late()
        now = time.monotonic()
        for flight in [one for one in self._flights if one.request.is_late(now)]:
            flight.give_up(-errno.ETIMEDOUT)
            self._end(flight)

    def _look(self) -> None:
        """Check the cluster once per second while requests are in progress."""
        now = time.monotonic()
        if not self._flights or now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        try:
            self._cluster.check()
            if now > self._workerless_since + self._backend.workerless_s:
                raise ClusterLost(  # noqa: TRY301 - handled like a lost scheduler
                    f"the Dask cluster at {self._cluster.address} has had no workers "
                    f"for {self._backend.workerless_s} s"
                )
            if self._silent_s is None:
                self._cluster.count_threads(self._told_threads)
                self._silent_s = 0.0
            elif self._silent_s >= self._backend.workerless_s:
                raise ClusterLost(  # noqa: TRY301 - as above
                    f"the Dask scheduler at {self._cluster.address} has not answered "
                    f"for {self._backend.workerless_s} s"
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
        """Finish every request in the queue, then end the thread."""
        self._requests.close()
        self._closed = True
        self.wake()
        if threading.current_thread() is self._thread:
            # A callback closes the lane: the rest runs here, and the thread ends on return.
            self._run()
        else:
            self._thread.join()

    def abandon(self, timeout_s: float) -> None:
        """Cancel queued requests at the interpreter's exit. Give those in progress `timeout_s`."""
        if not self._thread.is_alive():
            return  # a forked child, in which the queue's lock may be held forever
        self._requests.close()
        for request in self._requests.take_all():
            request.cancel()
        self._closed = True
        self.wake()
        self._thread.join(timeout_s)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error)
