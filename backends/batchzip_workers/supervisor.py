"""Supervisor: starts the workers, notices deaths, starts them again, stops them.

loky starts the processes (no fork of threads, no `__main__` guard) and gives a sentinel for each;
its executor is not used, as one SIGKILL would fail everything pending there (design §5.7).

One thread does it all, for two reasons: a worker's PR_SET_PDEATHSIG fires when the *thread* that
started it ends, so that thread must live as long as the workers; and starting takes milliseconds
that no caller should wait for. A dead worker's ring is never used again: what it left half done stays
in memory that nobody looks at any more, and its successor starts with a new ring.

`rings` is replaced as a whole, never changed in place, so that callers read it without a lock.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from batchzip.statistics import Tally
from batchzip_workers import worker
from batchzip_workers.failpoints import next_armed
from batchzip_workers.launch import PassedFd, PassedValue, launch
from batchzip_workers.place import FIRST_RETRY_S, START_ATTEMPTS, Place, add_figures
from batchzip_workers.ring import Ring

if TYPE_CHECKING:
    from batchzip.arena import Arena
    from batchzip.codecs import Codec
    from batchzip.statistics import WorkerStatistics
    from batchzip_workers.layout import Layout

START_S = 30.0
"""Seconds a worker has to become ready before it is killed: one that hangs while it starts never would,
and whoever may run a page in workers only would wait for it in vain. Starting takes 0.2 s."""

_STOP_S = 2.0
"""Seconds a worker has to finish what is posted to it when the backend closes."""


class Supervisor:
    """Keeps `count` workers running from `start()` to `stop()`."""

    def __init__(self, codec: Codec, layout: Layout, count: int, arena: Arena) -> None:
        self._codec = codec
        self._arena = arena
        self._layout = layout
        self._owner_pid = os.getpid()
        self._workers = [Place(number) for number in range(count)]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._thread = threading.Thread(
            target=self._supervise, name="batchzip-supervisor", daemon=True
        )
        self.rings: tuple[Ring, ...] = ()
        self.restarts = 0
        self._figures_lock = threading.Lock()
        self._reaping = threading.Lock()
        """Held to reap a process or to kill one: a pid must not become another's in between; the
        figures' lock is taken inside it."""
        self._gone = (Tally(), Tally())
        """What workers did that are gone, by operation."""
        self.failure: str | None = None
        """Why a worker could not be started several times in a row, if that ever happened."""

    def start(self) -> None:
        """Begin; returns at once, workers become ready later, or `failure` says why none will."""
        try:
            self._thread.start()
        except RuntimeError as error:  # a process limit counts threads, too
            self.failure = str(error)
            for place in self._workers:
                place.failed_starts = START_ATTEMPTS

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        # Each is looked at once: the supervisor may take one away between two looks.
        processes = [place.process for place in self._workers]
        return tuple(process.pid for process in processes if process is not None)

    @property
    def settled(self) -> bool:
        """Whether every worker is ready, or could not be started several times in a row."""
        return all(
            place.failing or ((ring := place.ring) is not None and ring.ready)
            for place in self._workers
        )

    @property
    def stopping(self) -> bool:
        """Whether no worker will be started any more."""
        return self._stopping or not self._thread.is_alive()

    @property
    def failing(self) -> bool:
        """Whether no worker could be started, several times in a row."""
        return all(w.failing for w in self._workers)

    def retry_soon(self) -> None:
        """Start what is missing without waiting longer than the first time: somebody needs a worker."""
        soon = time.monotonic() + FIRST_RETRY_S
        late = [w for w in self._workers if w.process is None and w.retry_at > soon]
        for place in late:
            place.retry_at = soon
        if late and not self._stopping:
            os.eventfd_write(self._wake, 1)

    def kill(self, ring: Ring) -> None:
        """Kill the worker of `ring`, which hangs; it is replaced as any that dies."""
        with self._reaping:
            for place in self._workers:
                if place.ring is ring:
                    _kill(place.process)

    def stop(self) -> None:
        """Stop every worker and the thread; called in a forked child it does nothing."""
        if os.getpid() != self._owner_pid or self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        os.close(self._wake)

    def _supervise(self) -> None:
        # Workers inherit this mask: a Ctrl-C while one is starting must not reach it either.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for place in self._workers:
            if not self._is_stopping():
                self._start(place)
        while not self._is_stopping():
            for place in self._await_change():
                if place.process is not None:
                    self._bury(place)
                if not self._is_stopping() and place.retry_at <= time.monotonic():
                    self._start(place)
        self._stop_workers()

    def _is_stopping(self) -> bool:
        return self._stopping  # set by another thread

    def _await_change(self) -> list[Place]:
        """Sleep until a worker is dead, one is to be tried again, or stop() was called."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        missing = [w for w in self._workers if w.process is None]
        for place in self._workers:
            if place.process is not None:
                poll.register(place.process.sentinel, select.POLLIN)
                place.note_ready()
        times = [w.retry_at for w in missing]
        times += [w.ready_by for w in self._workers if w.ready_by is not None]
        timeout_s = max(min(times) - time.monotonic(), 0) if times else None
        ready = {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        self._kill_late_starters()
        dead = [w for w in self._workers if w.process and w.process.sentinel in ready]
        return dead + [w for w in missing if w.retry_at <= time.monotonic()]

    def _kill_late_starters(self) -> None:
        for place in self._workers:
            place.note_ready()
            if place.ready_by is not None and time.monotonic() >= place.ready_by:
                place.ready_by = None  # its end is noticed as any other's
                _kill(place.process)

    def _start(self, place: Place) -> None:
        ring = None
        try:
            ring = Ring(self._layout)
            with PassedValue(self._codec) as codec:
                process = launch(
                    worker.main,
                    (
                        self._owner_pid,
                        place.number,
                        codec,
                        PassedFd(self._arena.fd),
                        next_armed(),
                        *ring.worker_arguments(),
                    ),
                )
        except Exception as error:  # noqa: BLE001 - memory, process limit, a daemonic parent
            self._note_failed_start(place, f"{type(error).__name__}: {error}")
            if ring is not None:
                ring.close()
            return
        ring.stop_passing()
        os.set_inheritable(self._arena.fd, False)
        ring.set_sentinel(process.sentinel)
        place.process, place.ring = process, ring
        place.ready_by = time.monotonic() + START_S
        self._publish()

    def _bury(self, place: Place) -> None:
        """Take a dead worker's ring out of use and reap the process."""
        assert place.ring is not None  # noqa: S101 - a process has a ring
        ring = place.ring
        status = self._reap(place)
        self._publish()
        ring.close()
        self.restarts += 1
        if ring.was_ready:
            place.failed_starts = 0
        else:
            self._note_failed_start(place, f"it ended with status {status} before it was ready")

    def _reap(self, place: Place) -> int:
        """Reap a worker that is dead or about to be, and keep what it did; its exit status."""
        process, ring = place.process, place.ring
        assert ring is not None  # noqa: S101 - a process has a ring
        with self._reaping:
            process.join()
            with self._figures_lock:  # in one step, so that no figure ever falls
                for operation, tally in enumerate(self._gone):
                    add_figures(tally, ring.figures(), operation)
                place.process = place.ring = place.ready_by = None
        return process.exitcode  # type: ignore[no-any-return] # processes are Any

    def worked(self, operation: int) -> Tally:
        """Add up what all workers, those that are gone too, did of one operation."""
        total = Tally()
        with self._figures_lock:
            total.add(self._gone[operation])
            for place in self._workers:
                if place.ring is not None:
                    add_figures(total, place.ring.figures(), operation)
        return total

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """Tell what each worker that runs now did."""
        found = [place.statistics() for place in self._workers]
        return tuple(one for one in found if one is not None)

    def _note_failed_start(self, place: Place, reason: str) -> None:
        place.note_failed_start()
        if place.failing:
            self.failure = reason

    def _publish(self) -> None:
        self.rings = tuple(w.ring for w in self._workers if w.ring is not None)

    def _stop_workers(self) -> None:
        self.rings = ()
        running = [(w, w.ring) for w in self._workers if w.ring is not None]
        for _, ring in running:
            ring.stop_worker()
        deadline = time.monotonic() + _STOP_S
        for place, ring in running:
            sentinel = [place.process.sentinel]
            if not connection.wait(sentinel, max(deadline - time.monotonic(), 0)):
                _kill(place.process)
            self._reap(place)
            ring.close()


def _kill(process: Any) -> None:
    """Send SIGKILL to a process that was not reaped; loky's have no kill() of their own."""
    os.kill(process.pid, signal.SIGKILL)
