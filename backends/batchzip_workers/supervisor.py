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

import contextlib
import multiprocessing
import multiprocessing.process
import os
import select
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from batchzip.statistics import Tally, WorkerStatistics
from batchzip_workers import worker
from batchzip_workers.failpoints import next_armed
from batchzip_workers.layout import BUSY_NS, BYTES_IN, BYTES_OUT, PAGES, SHARES, SLEEPS
from batchzip_workers.ring import PassedFd, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.arena import Arena
    from batchzip.codecs import Codec
    from batchzip_workers.layout import Layout

_START_ATTEMPTS = 3
"""Starts of one worker in a row that end before it is ready, until nobody waits for it any more."""

_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 60.0
"""Seconds before such an attempt, doubled each time: what a worker lacks, memory or a process limit,
may be short for a moment or for long, and a worker that cannot start shall not cost a CPU."""

_STOP_S = 2.0
"""Seconds a worker has to finish what is posted to it when the backend closes."""


class _Worker:
    """One worker's place: whoever occupies it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Any = None
        self.ring: Ring | None = None
        self.failed_starts = 0
        self.retry_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether it could not be started so often that nobody should wait for it."""
        return self.failed_starts >= _START_ATTEMPTS

    def note_failed_start(self) -> None:
        """Count an attempt that failed, and put off the next one."""
        delay = min(_FIRST_RETRY_S * 2**self.failed_starts, _LAST_RETRY_S)
        self.failed_starts += 1
        self.retry_at = time.monotonic() + delay


class Supervisor:
    """Keeps `count` workers running from `start()` to `stop()`."""

    def __init__(self, codec: Codec, layout: Layout, count: int, arena: Arena) -> None:
        self._codec = codec
        self._arena = arena
        self._layout = layout
        self._owner_pid = os.getpid()
        self._workers = [_Worker(number) for number in range(count)]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._thread = threading.Thread(
            target=self._supervise, name="batchzip-supervisor", daemon=True
        )
        self.rings: tuple[Ring, ...] = ()
        self.restarts = 0
        self._figures_lock = threading.Lock()
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
                place.failed_starts = _START_ATTEMPTS

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return tuple(w.process.pid for w in self._workers if w.process is not None)

    @property
    def settled(self) -> bool:
        """Whether every worker is ready, or could not be started several times in a row."""
        return all(w.failing or (w.ring is not None and w.ring.ready) for w in self._workers)

    @property
    def hopeless(self) -> bool:
        """Whether no worker runs and none is to be waited for."""
        return self._stopping or all(w.failing for w in self._workers)

    def kill(self, ring: Ring) -> None:
        """Kill the worker of `ring`, which hangs; it is replaced as any that dies."""
        for place in self._workers:
            if place.ring is ring and place.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(place.process.pid, signal.SIGKILL)

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

    def _await_change(self) -> list[_Worker]:
        """Sleep until a worker is dead, one is to be tried again, or stop() was called."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        missing = [w for w in self._workers if w.process is None]
        for place in self._workers:
            if place.process is not None:
                poll.register(place.process.sentinel, select.POLLIN)
        timeout_s = min((w.retry_at for w in missing), default=0.0) - time.monotonic()
        ready = {fd for fd, _ in poll.poll(max(timeout_s, 0) * 1000 if missing else None)}
        dead = [w for w in self._workers if w.process and w.process.sentinel in ready]
        return dead + [w for w in missing if w.retry_at <= time.monotonic()]

    def _start(self, place: _Worker) -> None:
        from loky.backend import get_context  # noqa: PLC0415 - 60 ms, off the caller's path

        ring = None
        try:
            ring = Ring(self._layout)
            process = get_context("loky").Process(
                target=worker.main,
                args=(
                    self._owner_pid,
                    place.number,
                    self._codec,
                    PassedFd(self._arena.fd),
                    next_armed(),
                    *ring.worker_arguments(),
                ),
                name="batchzip-worker",
            )
            with _allowed_to_start():
                process.start()
        except Exception as error:  # noqa: BLE001 - memory, process limit, a daemonic parent
            self._note_failed_start(place, f"{type(error).__name__}: {error}")
            if ring is not None:
                ring.close()
            return
        # At exit multiprocessing would send SIGTERM to its children from any forked copy of this
        # process too. Stopping workers is done here, by their owner only.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined] # noqa: SLF001
        ring.stop_passing()
        os.set_inheritable(self._arena.fd, False)
        ring.set_sentinel(process.sentinel)
        place.process, place.ring = process, ring
        self._publish()

    def _bury(self, place: _Worker) -> None:
        """Take a dead worker's ring out of use and reap the process."""
        assert place.ring is not None  # noqa: S101 - a process has a ring
        was_ready = place.ring.was_ready
        place.process.join()
        status = place.process.exitcode
        ring = place.ring
        self._retire(place)
        self._publish()
        ring.close()
        self.restarts += 1
        if was_ready:
            place.failed_starts = 0
        else:
            self._note_failed_start(place, f"it ended with status {status} before it was ready")

    def _retire(self, place: _Worker) -> None:
        """Keep what a worker did that has ended; in one step, so that no figure ever falls."""
        assert place.ring is not None  # noqa: S101 - a process has a ring
        with self._figures_lock:
            for operation, tally in enumerate(self._gone):
                _add_figures(tally, place.ring.figures(), operation)
            place.process = place.ring = None

    def worked(self, operation: int) -> Tally:
        """Add up what all workers, those that are gone too, did of one operation."""
        total = Tally()
        with self._figures_lock:
            total.add(self._gone[operation])
            for place in self._workers:
                if place.ring is not None:
                    _add_figures(total, place.ring.figures(), operation)
        return total

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """Tell what each worker that runs now did."""
        found = []
        for place in self._workers:
            process, ring = place.process, place.ring
            if process is not None and ring is not None:
                figures = ring.figures()
                found.append(
                    WorkerStatistics(
                        pid=process.pid,
                        shares=figures[0],
                        sleeps=figures[SLEEPS - SHARES],
                        busy_s=figures[BUSY_NS - SHARES] * 1e-9,
                        pages=sum(figures[PAGES - SHARES : PAGES - SHARES + 2]),
                        bytes_in=sum(figures[BYTES_IN - SHARES : BYTES_IN - SHARES + 2]),
                        bytes_out=sum(figures[BYTES_OUT - SHARES : BYTES_OUT - SHARES + 2]),
                    )
                )
        return tuple(found)

    def _note_failed_start(self, place: _Worker, reason: str) -> None:
        place.note_failed_start()
        if place.failing:
            self.failure = reason

    def _publish(self) -> None:
        self.rings = tuple(w.ring for w in self._workers if w.ring is not None)

    def _stop_workers(self) -> None:
        self.rings = ()
        running = [w for w in self._workers if w.process is not None and w.ring is not None]
        for place in running:
            place.ring.stop_worker()  # type: ignore[union-attr] # filtered above
        for place in running:
            place.process.join(_STOP_S)
            if place.process.exitcode is None:
                place.process.kill()
                place.process.join()
            ring = place.ring
            self._retire(place)
            ring.close()  # type: ignore[union-attr]


def _add_figures(tally: Tally, figures: list[int], operation: int) -> None:
    tally.pages += figures[PAGES - SHARES + operation]
    tally.bytes_in += figures[BYTES_IN - SHARES + operation]
    tally.bytes_out += figures[BYTES_OUT - SHARES + operation]


@contextmanager
def _allowed_to_start() -> Iterator[None]:
    """Let a daemonic process, as multiprocessing's pools have them, start workers.

    It may not have children, says multiprocessing, as it would leave them behind when it is
    terminated. Ours end with it all the same (PR_SET_PDEATHSIG).
    """
    config: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined] # noqa: SLF001
    daemonic = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemonic is not None:
            config["daemon"] = daemonic
