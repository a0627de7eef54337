"""The workers backend: batches divided between worker processes and the caller.

    execute(batch) ─▶ Division ─▶ Ring of each worker ─▶ lengths, errors, outputs in the batch
    submit(request) ─▶ Lane: a thread that does the same, one request after the other

Rejected: an executor with one submit a batch (four times slower than no workers, design §5.2); threads
(the GIL's hand-overs cost more than they bring at 4 KiB).

Threads: any number may run batches at once; each collects its own shares.
"""

from __future__ import annotations

import platform
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING

from batchzip.backend import Backend
from batchzip.errors import BackendUnavailable, ClosedError, WorkerWarning
from batchzip_workers.balance import Balance
from batchzip_workers.division import Division
from batchzip_workers.lane import Lane
from batchzip_workers.layout import Layout
from batchzip_workers.supervisor import Supervisor
from batchzip_workers.worker import MAX_SPIN_S

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.request import Request

_CLOSE_S = 0.8 * MAX_SPIN_S
"""Seconds between batches that let a worker, once awake, stay so from one to the next."""

_EXIT_S = 2.0
"""Seconds that a request under way may take at the interpreter's exit; queued ones are cancelled."""


class WorkersBackend(Backend):
    """Compresses in `workers` processes besides the caller; default: usable CPUs − 1, at least 1."""

    name = "workers"

    def __init__(self, *, workers: int | None = None) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise BackendUnavailable(
                f"the workers backend relies on the store order of x86-64, and this is {platform.machine()}: use backend='sequential'"
            )
        if workers is None:
            from loky import cpu_count  # noqa: PLC0415 - 60 ms, and only the default needs it

            workers = max(1, cpu_count() - 1)
        self.workers = workers
        self._lane: Lane | None = None
        self._lane_lock = threading.Lock()
        self._closed = False
        self._warned = False

    def open(self, codec: Codec, page_size: int) -> None:
        """Start the workers; they take part as they become ready."""
        super().open(codec, page_size)
        layout = Layout.of(page_size)
        self._share_pages = layout.share_pages
        self.batch_size = (self.workers + 1) * layout.share_pages
        self._balances = (Balance(_CLOSE_S), Balance(_CLOSE_S))
        self._supervisor = Supervisor(codec, layout, self.workers)
        self._supervisor.start()
        self._stop = weakref.finalize(self, self._supervisor.stop)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return self._supervisor.pids

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until every worker is ready; False when time is up or one cannot be started."""
        deadline = time.monotonic() + timeout_s
        while not self._supervisor.settled and time.monotonic() < deadline:
            time.sleep(0.001)
        self._warn_once()
        return all(ring.ready for ring in self._supervisor.rings) and (
            len(self._supervisor.rings) == self.workers
        )

    def run(self, batch: Batch) -> None:
        """Do a batch, together with the workers where that is faster."""
        supervisor, balance, pages = self._supervisor, self._balances[batch.operation], len(batch)
        if balance.is_settled(pages):
            batch.run_share(self.context(), range(pages))
            return
        asleep = False
        for ring in supervisor.rings:
            asleep |= ring.asleep
        started = time.perf_counter()
        if supervisor.rings and balance.is_worth(pages, started, asleep=asleep):
            division = Division(batch, self.context(), supervisor, self._share_pages)
            division.run()
            now = time.perf_counter()
            balance.note_divided(pages, now - started, now, woke=division.woke)
        else:
            batch.run_share(self.context(), range(pages))
            now = time.perf_counter()
            balance.note_alone(pages, now - started, now)
        if supervisor.failure is not None:
            self._warn_once()

    def submit(self, request: Request[Batch]) -> None:
        """Queue a request; requests are done in order, by one thread and the workers."""
        with self._lane_lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            if self._lane is None:
                self._lane = self._open_lane()
        if self._lane is None:
            super().submit(request)
        else:
            self._lane.put(request)

    def _open_lane(self) -> Lane | None:
        try:
            lane = Lane(self.execute)
        except RuntimeError:  # no thread can be started: the submitter does the work
            return None
        self._end_lane = weakref.finalize(self, lane.abandon, _EXIT_S)
        return lane

    def _warn_once(self) -> None:
        reason = self._supervisor.failure
        if reason is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"batchzip: a worker could not be started ({reason}); meanwhile its work is done in process",
                WorkerWarning,
                stacklevel=5,
            )

    def close(self) -> None:
        """Finish every request, then stop the workers."""
        with self._lane_lock:
            self._closed = True
        if self._lane is not None:
            self._lane.close()
            self._end_lane.detach()
        if self.codec is not None:
            self._stop()
