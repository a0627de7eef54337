"""Supervisor: starts workers, notices deaths, replaces workers, and stops them.

It knows nothing of a worker's work but its `Task`.

One thread does all this, for two reasons. A worker's PR_SET_PDEATHSIG fires when the *thread* that
started it ends, so that thread must live as long as the workers. And starting a worker takes
milliseconds, for which no caller should wait. A dead worker's ring is never used again: its
half-done state stays in memory that is no longer read, and the successor gets a new ring.

`rings` is always replaced as a whole, so that callers read it without a lock.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from batchzip.errors import LimitReached
from batchzip.system.descriptors import above_standard
from batchzip.system.limits import begin
from batchzip_workers.launch import launch
from batchzip_workers.worker_slot import FIRST_RETRY_S, Attempts, WorkerSlot, worked

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.core.ring import Ring
    from batchzip.statistics import WorkerStatistics
    from batchzip_workers.launch import Task
    from batchzip_workers.ring import WorkerRing

START_S = 30.0
"""Seconds until a worker that is not ready is killed. A worker that hangs during its start never
becomes ready, and pages for workers only would wait for it. A start takes 0.02 s."""

_STOP_S = 2.0
"""Seconds that workers have to finish posted shares when the backend closes."""


class Supervisor:
    """Keeps `count` workers running from `start()` to `stop()`.

    `make_ring(number)` returns a ring for one worker, and `make_task(number, ring)` its task. The
    supervisor's thread calls both. They may raise anything; the start is then tried again later.
    """

    def __init__(
        self,
        count: int,
        make_ring: Callable[[int], WorkerRing],
        make_task: Callable[[int, WorkerRing], Task],
    ) -> None:
        self._make_ring = make_ring
        self._make_task = make_task
        self._owner_pid = os.getpid()
        self._workers: list[WorkerSlot] = [WorkerSlot(number) for number in range(count)]
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._thread_starts = Attempts()
        # All three are reentrant: a signal handler or a finalizer may call this class again.
        self._starting = threading.RLock()
        self._figures_lock = threading.RLock()
        self._wake_lock = threading.RLock()
        """Held while the descriptor below is used or closed."""
        with above_standard():
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.rings: tuple[Ring, ...] = ()
        self.restarts = 0
        self._gone: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """Figures of workers that have ended, by operation."""
        self.failure: str | None = None
        """Why a worker could not be started several times in a row. None: there is no such one."""

    def start(self) -> None:
        """Start the thread, unless it runs, and return at once. Workers become ready later.

        If no thread can be started, `failure` has the reason. Call this again from time to time
        then.
        """
        if self._stopping or not self._thread_starts.due:
            return
        with self._starting:
            if self._thread is not None:
                return
            # Set before `begin`: a signal handler that calls this must not start a second thread.
            self._thread = threading.Thread(
                target=self._supervise, name="batchzip-supervisor", daemon=True
            )
            try:
                begin(self._thread)
            except LimitReached as error:
                self._thread = None
                self._thread_starts.note_failure()
                self.failure = str(error)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process IDs of the running workers."""
        # Read each slot once: the supervisor may clear it between two reads.
        processes = [place.process for place in self._workers]
        return tuple(process.pid for process in processes if process is not None)

    @property
    def settled(self) -> bool:
        """Whether every worker is ready, or could not be started several times in a row."""
        return self._thread is None or all(w.failing or w.works for w in self._workers)

    @property
    def complete(self) -> bool:
        """Whether every worker is ready."""
        return self._thread is not None and all(w.works for w in self._workers)

    @property
    def stopping(self) -> bool:
        """Whether no more workers will be started, at least until start() is called again."""
        thread = self._thread
        return self._stopping or thread is None or not thread.is_alive()

    @property
    def failing(self) -> bool:
        """Whether the start of every worker has failed several times in a row."""
        return self._thread is None or all(w.failing for w in self._workers)

    def retry_soon(self) -> None:
        """Start missing workers after the shortest delay, because a caller needs one."""
        soon = time.monotonic() + FIRST_RETRY_S
        late = [w for w in self._workers if w.process is None and w.starts.retry_at > soon]
        for place in late:
            place.starts.retry_at = soon
        if late:
            self._wake_up()

    def kill(self, ring: Ring) -> None:
        """Kill the worker of `ring`, which hangs. It is replaced like any dead worker.

        Any thread may call this any number of times. It never hits another process.
        """
        for place in self._workers:
            # Read the process first: as long as the slot has this ring, it is not a successor.
            process = place.process
            if place.ring is not None and place.ring.core is ring and process is not None:
                process.kill()

    def stop(self) -> None:
        """Stop every worker and the thread. Do nothing in a forked child."""
        if os.getpid() != self._owner_pid or self._stopping:
            return
        self._stopping = True
        self._wake_up()
        thread = self._thread
        if thread is threading.current_thread():
            return  # a finalizer calls this; the thread ends by itself
        if thread is not None:
            thread.join()
        self._close_wake()

    def _wake_up(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _close_wake(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                fd, self._wake = self._wake, -1
                os.close(fd)

    def _supervise(self) -> None:
        # Workers inherit this mask: a Ctrl-C must not reach one that is starting.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while not self._is_stopping():
                try:
                    self._step()
                except Exception as error:  # noqa: BLE001 - probably out of memory, for a time
                    self.failure = f"{type(error).__name__}: {error}"
                    time.sleep(FIRST_RETRY_S)
        finally:
            self._stop_workers()
            self._close_wake()

    def _step(self) -> None:
        """Wait for a change, then reap and start workers."""
        self._publish()  # an earlier call may have failed without memory
        for place in self._await_change():
            if place.process is not None:
                self._bury(place)
            if not self._is_stopping() and place.starts.due:
                self._start(place)

    def _is_stopping(self) -> bool:
        return self._stopping  # set by another thread

    def _await_change(self) -> list[WorkerSlot]:
        """Sleep until a worker ends, a start is due, or stop() is called. Return those slots."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        missing = [w for w in self._workers if w.process is None]
        for place in self._workers:
            if place.process is not None:
                poll.register(place.process.sentinel, select.POLLIN)
                place.note_ready()
        times = [w.starts.retry_at for w in missing]
        times += [w.ready_by for w in self._workers if w.ready_by is not None]
        timeout_s = max(min(times) - time.monotonic(), 0) if times else None
        ready = {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        self._kill_late_starters()
        dead = [w for w in self._workers if w.process and w.process.sentinel in ready]
        return dead + [w for w in missing if w.starts.due]

    def _kill_late_starters(self) -> None:
        for place in self._workers:
            place.note_ready()
            if place.ready_by is not None and time.monotonic() >= place.ready_by:
                place.ready_by = None  # its end is noticed like any other
                if place.process is not None:
                    place.process.kill()

    def _start(self, place: WorkerSlot) -> None:
        ring = process = None
        try:
            ring = self._make_ring(place.number)
            process = launch(self._make_task(place.number, ring))
            place.ready_by = time.monotonic() + START_S
        except BaseException as error:  # noqa: BLE001 - no memory or process, or a codec's pickling
            if process is not None:
                process.kill()
                process.reap()
            if ring is not None:
                ring.close()
            self._note_failed_start(place, f"{type(error).__name__}: {error}")
            return
        place.process = process
        place.ring = ring
        self._publish()

    def _bury(self, place: WorkerSlot) -> None:
        """Remove a dead worker's ring and reap the process."""
        ring, process = place.ring, place.process
        assert ring is not None  # noqa: S101 - a process has a ring
        assert process is not None  # noqa: S101 - the caller has checked it
        end = self._reap(place)
        ring.mark_gone()
        self._publish()
        ring.close()
        self.restarts += 1
        if not ring.ready:
            self._note_failed_start(place, f"{end} before it was ready")
        elif process.gave_up and ring.core.posted and not ring.did_pages:
            # It would end at each share, for example because it has no memory to map the arena.
            place.must_prove = True
            self._note_failed_start(place, f"{end} before it had done a page")
        else:
            place.starts = Attempts()
            place.must_prove = False

    def _reap(self, place: WorkerSlot) -> str:
        """Reap a worker that has ended or is ending, and keep its figures. Return how it ended."""
        process, ring = place.process, place.ring
        assert process is not None  # noqa: S101 - the caller has checked it
        assert ring is not None  # noqa: S101 - a process has a ring
        end = process.reap()
        with self._figures_lock:  # in one step, so that no figure ever decreases
            for operation, total in enumerate(self._gone):
                total.update(worked(ring.figures(), operation))
            place.ring = None
            place.process = place.ready_by = None
        return end

    def worked(self, operation: int) -> Counter[str]:
        """Return the sum of one operation's figures, over all workers that ever ran."""
        with self._figures_lock:
            total = Counter(self._gone[operation])
            for place in self._workers:
                if place.ring is not None:
                    total.update(worked(place.ring.figures(), operation))
        return total

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """Return the figures of each running worker."""
        found = [place.statistics() for place in self._workers]
        return tuple(one for one in found if one is not None)

    def _note_failed_start(self, place: WorkerSlot, reason: str) -> None:
        place.starts.note_failure()
        if place.failing:
            self.failure = reason

    def _publish(self) -> None:
        self.rings = tuple(w.ring.core for w in self._workers if w.ring is not None)

    def _stop_workers(self) -> None:
        self.rings = ()
        running = [(w, w.ring, w.process) for w in self._workers if w.ring is not None]
        for _, ring, _ in running:
            ring.stop_worker()
        deadline = time.monotonic() + _STOP_S
        for place, ring, process in running:
            assert process is not None  # noqa: S101 - a ring has a process
            if not process.wait(max(deadline - time.monotonic(), 0)):
                process.kill()
            self._reap(place)
            ring.mark_gone()
            ring.close()
