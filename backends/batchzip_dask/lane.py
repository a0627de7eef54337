"""Lane: the thread through which an engine's requests go to the cluster and come back.

    submit ─▶ RequestQueue ─▶ Flight ─▶ shares ─▶ scheduler ─▶ workers
                                                                  │
    request.finish ◀── batch ◀── Lane ◀── arrivals (a queue) ◀────┘ told by the client's event loop

The client's event loop must never wait, and callbacks of requests may: so it only puts what arrives in a
queue, and this thread does all that touches a batch. Rejected: a thread for each request (thousands may
be under way); doing it in the event loop (a callback that waits for the next request would wait for
ever, and the heartbeats with it).

What is out is bounded in bytes, as it lies in the scheduler's memory on its way; more is cut when
something came back. Which worker has a share, and that it is given to another when that one dies, is the
scheduler's business. It gives up a task whose workers died `distributed.scheduler.allowed-failures` + 1
times: the share's pages get -EOWNERDEAD then.

Looked after once a second: whether the scheduler is connected and has workers at all. Nothing waits for
longer than that says, or for what can still come.

A thread takes requests until `close()`; the two queues are all that is shared.
"""

from __future__ import annotations

import errno
import math
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from batchzip.errors import BackendUnavailable, ClusterLost
from batchzip.limits import begin
from batchzip_dask.cluster import CancelledError, KilledWorker
from batchzip_dask.flight import Flight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.lanes import RequestQueue
    from batchzip_dask.backend import DaskBackend
    from batchzip_dask.cluster import Cluster
    from batchzip_dask.share import Outcome

    Arrival: TypeAlias = tuple[Flight, int, Outcome | BaseException]

OUT_BYTES = 128 << 20
"""Bytes of pages that are out: a share each for 128 threads, in the scheduler's memory."""

_LOOK_S = 1.0
"""Seconds between two looks at the cluster while something is out."""

_FULL_LOOK_S = 0.05
"""Seconds between two looks at the deadlines of requests that are still queued, as there is no room."""

_CANCELLED_TIMES = 3
"""Times a request's shares are handed out again that somebody else's `client.restart()` cancelled."""


class _LaneThread(threading.Thread):
    """The thread of a lane, to know one by."""


class Lane:
    """Takes up requests, has the cluster do them, and finishes each."""

    def __init__(
        self, backend: DaskBackend, cluster: Cluster, requests: RequestQueue, codec: bytes
    ) -> None:
        self._backend = backend
        self._cluster = cluster
        self._requests = requests
        self._codec = codec
        self._arrivals: queue.SimpleQueue[Arrival | int | None] = queue.SimpleQueue()
        """Outcomes; the number of the cluster's threads; None: look at the queue of requests."""
        self._flights: list[Flight] = []
        self._out_pages = 0
        self._room = max(1, OUT_BYTES // backend.page_size)
        self._number = 0
        self._cancelled: dict[Flight, int] = {}
        self._threads = backend.threads
        self._workerless_since = math.inf
        self._look_at = 0.0
        self._closed = False
        self._thread = _LaneThread(target=self._run, name="batchzip-dask", daemon=True)
        begin(self._thread)

    @staticmethod
    def is_here() -> bool:
        """Whether this is called in the thread of a lane, this one or another's, by a callback."""
        return isinstance(threading.current_thread(), _LaneThread)

    def wake(self) -> None:
        """Say that a request was queued, or has a deadline that it had not."""
        self._arrivals.put(None)

    def _run(self) -> None:
        while True:
            self._feed()
            if self._closed and not self._flights:
                return
            try:
                arrival = self._arrivals.get(timeout=self._patience_s())
            except queue.Empty:
                arrival = None
            if isinstance(arrival, tuple):
                self._arrive(*arrival)
            elif arrival is not None:
                self._note_threads(arrival)
            del arrival  # nothing of a batch is kept while there is no next one
            self._expire()
            self._look()

    def _patience_s(self) -> float | None:
        """Seconds until something must be looked at."""
        if not self._flights:
            return None
        deadlines = [flight.request.deadline for flight in self._flights]
        look_at = self._look_at
        if self._out_pages >= self._room:  # requests wait, maybe, whose deadlines pass
            look_at = min(look_at, time.monotonic() + _FULL_LOOK_S)
        at = min([look_at, *(deadline for deadline in deadlines if deadline is not None)])
        return max(0.0, at - time.monotonic())

    def _feed(self) -> None:
        """Hand out shares as long as there is room."""
        while self._out_pages < self._room:
            flight = next((one for one in self._flights if one.has_more), None)
            if flight is None and not self._take_up():
                return
            if flight is not None:
                self._hand_out(flight, flight.cut())

    def _take_up(self) -> bool:
        """Take up the next request; whether there was one."""
        request = self._requests.take(wait=False)
        if request is None:
            return False
        if not request.take_up():
            self._requests.leave(request.pages)  # it was cancelled
            return True
        if not self._flights:
            self._look_at, self._workerless_since = 0.0, math.inf
        self._flights.append(Flight(request, self._codec, self._threads))
        self._expire()
        return True

    def _hand_out(self, flight: Flight, indices: Sequence[int]) -> None:
        self._number = number = self._number + 1
        try:
            self._cluster.check()
            tell = partial(self._told, flight, number)
            drop = self._cluster.hand_out(flight.pack(indices), tell)
        except BaseException as error:  # noqa: BLE001 - raised where the request is waited for
            self._end(flight, error)
            return
        flight.out[number] = indices, drop
        self._out_pages += len(indices)

    def _told(self, flight: Flight, number: int, outcome: Outcome | BaseException) -> None:
        self._arrivals.put((flight, number, outcome))

    def _arrive(self, flight: Flight, number: int, outcome: Outcome | BaseException) -> None:
        if number not in flight.out:
            return  # given up meanwhile
        indices, drop = flight.out.pop(number)
        self._out_pages -= len(indices)
        drop()
        try:
            if isinstance(outcome, KilledWorker):
                flight.request.batch.fail(indices, -errno.EOWNERDEAD)
            elif isinstance(outcome, CancelledError):
                self._again(flight, indices, outcome)
            elif isinstance(outcome, BaseException):
                self._cluster.check()
                raise BackendUnavailable(  # noqa: TRY301 - it fails the request as what else may
                    f"a worker of the cluster at {self._cluster.address} cannot do a share: {outcome!r}"
                ) from outcome
            else:
                flight.accept(indices, outcome, self._backend.worked)
        except BaseException as error:  # noqa: BLE001 - raised where the request is waited for
            self._end(flight, error)
        else:
            if not flight.out and not flight.has_more:
                self._end(flight)

    def _again(self, flight: Flight, indices: Sequence[int], reason: BaseException) -> None:
        """Hand out a share again that was cancelled, by the loss of the scheduler or by somebody."""
        self._cluster.check()
        times = self._cancelled[flight] = self._cancelled.get(flight, 0) + 1
        shares = len(flight.out) + 1
        if times > _CANCELLED_TIMES * shares:
            raise ClusterLost(f"the cluster cancels what it is given: {reason}") from reason
        self._hand_out(flight, indices)

    def _end(self, flight: Flight, error: BaseException | None = None) -> None:
        """Finish a request: the last thing done in a turn, as callbacks may do anything."""
        if flight not in self._flights:
            return
        self._flights.remove(flight)
        self._cancelled.pop(flight, None)
        if error is not None:
            self._give_up(flight, -errno.EOWNERDEAD)
        request = flight.request
        self._backend.count_elsewhere(request.batch, divided=True)
        # First, so that a callback finds room for the next.
        self._requests.leave(request.pages)
        request.finish(error)

    def _expire(self) -> None:
        """End the requests whose deadline has passed, queued or under way."""
        now = time.monotonic()
        for request in self._requests.take_expired():
            if request.take_up():
                self._flights.append(Flight(request, self._codec, self._threads))
            else:
                self._requests.leave(request.pages)
        for flight in [one for one in self._flights if one.request.is_late(now)]:
            if flight in self._flights:  # a callback that closes the engine has done all of them
                self._give_up(flight, -errno.ETIMEDOUT)
                self._end(flight)

    def _give_up(self, flight: Flight, code: int) -> None:
        self._out_pages -= sum(len(indices) for indices, _ in flight.out.values())
        flight.give_up(code)

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
            self._cluster.count_threads(self._arrivals.put)
        except ClusterLost as error:
            for flight in self._flights[:]:
                self._end(flight, error)

    def _note_threads(self, threads: int) -> None:
        if threads:
            self._threads = threads
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
