"""Supervisor: starts the workers, notices deaths, starts them again, stops them.

Of a worker's work it knows no more than a `Task`.

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
"""Seconds a worker has to become ready before it is killed: one that hangs while it starts never would,
and whoever may run a page in workers only would wait for it in vain. Starting takes 0.02 s."""

_STOP_S = 2.0
"""Seconds the workers have to finish what is posted to them when the backend closes."""


class Supervisor:
    """Keeps `count` workers running from `start()` to `stop()`.

    `make_ring(number)` makes a ring for one worker, and `make_task(number, ring)` says what the worker at that
    place is to do with it. Both are called in the supervisor's thread and may raise anything: the
    worker is tried again later.
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
        # Reentrant, all three: a signal handler or a finalizer may come here again.
        self._starting = threading.RLock()
        self._figures_lock = threading.RLock()
        self._wake_lock = threading.RLock()
        """Held to use the descriptor below or to close it."""
        with above_standard():
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.rings: tuple[Ring, ...] = ()
        self.restarts = 0
        self._gone: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """What workers did that are gone, by operation."""
        self.failure: str | None = None
        """Why a worker could not be started several times in a row; None before, and once all work again."""

    def start(self) -> None:
        """Begin, unless that is done; returns at once, and workers become ready later.

        Where no thread can be started, `failure` says so. Call it again then, now and then.
        """
        if self._stopping or not self._thread_starts.due:
            return
        with self._starting:
            if self._thread is not None:
                return
            # Not before: a signal handler that comes here meanwhile must not start a second one.
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
        """Process ids of the workers that run now."""
        # Each is looked at once: the supervisor may take one away between two looks.
        processes = [place.process for place in self._workers]
        return tuple(process.pid for process in processes if process is not None)

    @property
    def settled(self) -> bool:
        """Whether every worker works, or could not be started several times in a row."""
        return self._thread is None or all(w.failing or w.works for w in self._workers)

    @property
    def complete(self) -> bool:
        """Whether every worker works."""
        return self._thread is not None and all(w.works for w in self._workers)

    @property
    def stopping(self) -> bool:
        """Whether no worker will be started any more, or not before start() is called again."""
        thread = self._thread
        return self._stopping or thread is None or not thread.is_alive()

    @property
    def failing(self) -> bool:
        """Whether no worker could be started, several times in a row."""
        return self._thread is None or all(w.failing for w in self._workers)

    def retry_soon(self) -> None:
        """Start what is missing without waiting longer than the first time: somebody needs a worker."""
        soon = time.monotonic() + FIRST_RETRY_S
        late = [w for w in self._workers if w.process is None and w.starts.retry_at > soon]
        for place in late:
            place.starts.retry_at = soon
        if late:
            self._wake_up()

    def kill(self, ring: Ring) -> None:
        """Kill the worker of `ring`, which hangs; it is replaced as any that dies.

        From any thread, as often as one likes: never is another process hit.
        """
        for place in self._workers:
            # The process first: it is not yet a successor's while the ring is still this one.
            process = place.process
            if place.ring is not None and place.ring.core is ring and process is not None:
                process.kill()

    def stop(self) -> None:
        """Stop every worker and the thread; called in a forked child it does nothing."""
        if os.getpid() != self._owner_pid or self._stopping:
            return
        self._stopping = True
        self._wake_up()
        thread = self._thread
        if thread is threading.current_thread():
            return  # called by a finalizer: it goes on, and ends
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
        # Workers inherit this mask: a Ctrl-C while one is starting must not reach it either.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while not self._is_stopping():
                try:
                    self._step()
                except Exception as error:  # noqa: BLE001 - no memory, most likely: it may come back
                    self.failure = f"{type(error).__name__}: {error}"
                    time.sleep(FIRST_RETRY_S)
        finally:
            self._stop_workers()
            self._close_wake()

    def _step(self) -> None:
        """Wait until something has changed, and see to it."""
        self._publish()  # there may have been no memory for it
        for place in self._await_change():
            if place.process is not None:
                self._bury(place)
            if not self._is_stopping() and place.starts.due:
                self._start(place)

    def _is_stopping(self) -> bool:
        return self._stopping  # set by another thread

    def _await_change(self) -> list[WorkerSlot]:
        """Sleep until a worker is dead, one is to be tried again, or stop() was called."""
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
                place.ready_by = None  # its end is noticed as any other's
                if place.process is not None:
                    place.process.kill()

    def _start(self, place: WorkerSlot) -> None:
        ring = process = None
        try:
            ring = self._make_ring(place.number)
            process = launch(self._make_task(place.number, ring))
            place.ready_by = time.monotonic() + START_S
        except BaseException as error:  # noqa: BLE001 - no memory, no process; a codec's own pickling
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
        """Take a dead worker's ring out of use and reap the process."""
        ring, process = place.ring, place.process
        assert ring is not None  # noqa: S101 - a process has a ring
        assert process is not None  # noqa: S101 - whoever calls has seen it
        end = self._reap(place)
        ring.mark_gone()
        self._publish()
        ring.close()
        self.restarts += 1
        if not ring.ready:
            self._note_failed_start(place, f"{end} before it was ready")
        elif process.gave_up and ring.core.posted and not ring.did_pages:
            # It would do so at each share: it has no memory to map the arena, say.
            place.must_prove = True
            self._note_failed_start(place, f"{end} before it had done a page")
        else:
            place.starts = Attempts()
            place.must_prove = False

    def _reap(self, place: WorkerSlot) -> str:
        """Reap a worker that is dead or about to be, and keep what it did; how it ended."""
        process, ring = place.process, place.ring
        assert process is not None  # noqa: S101 - whoever calls has seen it
        assert ring is not None  # noqa: S101 - a process has a ring
        end = process.reap()
        with self._figures_lock:  # in one step, so that no figure ever falls
            for operation, total in enumerate(self._gone):
                total.update(worked(ring.figures(), operation))
            place.ring = None
            place.process = place.ready_by = None
        return end

    def worked(self, operation: int) -> Counter[str]:
        """Add up what all workers, those that are gone too, did of one operation."""
        with self._figures_lock:
            total = Counter(self._gone[operation])
            for place in self._workers:
                if place.ring is not None:
                    total.update(worked(place.ring.figures(), operation))
        return total

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """Tell what each worker that runs now did."""
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
