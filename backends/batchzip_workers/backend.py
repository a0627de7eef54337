"""The workers backend: batches divided between worker processes and the caller.

    execute(batch) ─▶ Division ─▶ Ring of each worker ─▶ lengths, errors, outputs in the batch
    submit(request) ─▶ RequestQueue ─▶ Lane: a thread that does the same, with several at once

Rejected: an executor with one submit a batch (four times slower than no workers, design §5.2); threads
(the GIL's hand-overs cost more than they bring at 4 KiB).

Threads: any number may run batches at once; each collects its own shares.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import platform
import sys
import threading
import time
import warnings
import weakref
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from batchzip.arena import Arena
from batchzip.backend import Backend
from batchzip.batch.descriptor import NOWHERE
from batchzip.codecs.context import COMPRESS, DECOMPRESS
from batchzip.cpus import default_lanes
from batchzip.errors import BackendUnavailable, ClosedError, WorkerWarning
from batchzip_workers.balance import SIZES, Balance
from batchzip_workers.division import Division
from batchzip_workers.failpoints import next_armed
from batchzip_workers.lane import Lane
from batchzip_workers.launch import Task
from batchzip_workers.layout import Layout
from batchzip_workers.pickled import pickled
from batchzip_workers.queue import RequestQueue
from batchzip_workers.ring import Ring
from batchzip_workers.supervisor import Supervisor
from batchzip_workers.worker import MAX_SPIN_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.batch.descriptor import Batch, Placement
    from batchzip.buffers import Bytes
    from batchzip.codecs import Codec
    from batchzip.request import Request
    from batchzip.statistics import Statistics

_CLOSE_S = 0.8 * MAX_SPIN_S
"""Seconds between batches that let a worker, once awake, stay so from one to the next."""

_QUEUE_BATCHES = 16
"""Times the pages that workers and caller take in one go that may be submitted and not done."""

_EXIT_S = 2.0
"""Seconds that a request under way may take at the interpreter's exit; queued ones are cancelled."""


_AFTER, _BEFORE = 10, 20
"""Order at the end of a child of multiprocessing: the higher comes first."""


def _make_task(codec: Codec, page_size: int, arena_fd: int, number: int, ring: Ring) -> Task:
    """Say what the worker at a place is to do; raises whatever the codec's pickling raises."""
    data, modules = pickled(codec)
    fds = arena_fd, *ring.descriptors
    arguments = number, data, page_size, next_armed(), *fds
    return Task("batchzip_workers.worker", arguments, fds, modules)


class WorkersBackend(Backend):
    """Compresses in `workers` processes besides the caller; default: see `default_lanes`."""

    name = "workers"
    asynchronous = True

    def __init__(self, *, workers: int | None = None) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise BackendUnavailable(
                f"the workers backend relies on the store order of x86-64, and this is {platform.machine()}: use backend='sequential'"
            )
        if getattr(sys, "frozen", False) or not sys.executable:
            raise BackendUnavailable(
                "the workers backend starts Python, and a frozen or embedded application has none to start: use backend='threads'"
            )
        self.workers = default_lanes() if workers is None else workers
        self._lane: Lane | None = None
        self._lane_lock = threading.Lock()
        self._closed = False
        self._warned = False

    def open(self, codec: Codec, page_size: int) -> None:
        """Start the workers; they take part as they become ready."""
        super().open(codec, page_size)
        layout = Layout.of(page_size)
        self.share_pages = layout.share_pages
        self.batch_size = (self.workers + 1) * layout.share_pages
        settled = [0] * SIZES, [0] * SIZES
        self._balances = {
            (operation, placed, bundled): Balance(_CLOSE_S, None if bundled else settled[operation])
            for operation, placed, bundled in product((COMPRESS, DECOMPRESS), *2 * [(False, True)])
        }
        """What is known, by operation, whether batches lie in the arena, and whether they are bundled."""
        self._arena = Arena()
        self._queue = RequestQueue(_QUEUE_BATCHES * self.batch_size)
        self._supervisor = Supervisor(
            self.workers,
            partial(Ring, layout),
            partial(_make_task, codec, page_size, self._arena.fd),
        )
        self._supervisor.start()
        self._stop = weakref.finalize(self, self._supervisor.stop)
        self._at_child_exit(self._stop, _AFTER)

    def array(self, rows: int, width: int) -> Bytes:
        """Make an array in memory that the workers share."""
        return self._arena.array(rows, width)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return self._supervisor.pids

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until every worker is ready; False when time is up or one cannot be started."""
        self._supervisor.start()
        deadline = time.monotonic() + timeout_s
        while not self._supervisor.settled and time.monotonic() < deadline:
            time.sleep(0.001)
        self._note_failure()
        return all(ring.ready for ring in self._supervisor.rings) and (
            len(self._supervisor.rings) == self.workers
        )

    def execute(self, batch: Batch) -> None:
        """Do a batch; one of a size that does not pay without another thought.

        What there is to decide and to time takes 3 µs, a fifth of decompressing eight lz4 pages.
        """
        if self._balances[batch.operation, False, False].is_settled(len(batch)):
            self.run_inline(batch)
            self.count(batch)
        else:
            super().execute(batch)

    def run(self, batch: Batch) -> None:
        """Do a batch, together with the workers where that is faster."""
        pages, placement = len(batch), self.locate(batch)
        balance = self.balance(batch.operation, placement)
        supervisor, asleep = self._supervisor, False
        for ring in supervisor.rings:
            asleep |= ring.asleep
        started = time.perf_counter()
        if supervisor.rings and balance.is_worth(pages, started, asleep=asleep):
            woke = self.divide(batch, placement).run()
            now = time.perf_counter()
            balance.note_divided(pages, now - started, now, woke=woke)
        else:
            batch.run_share(self.context(), range(pages))
            now = time.perf_counter()
            balance.note_alone(pages, now - started, now)
        if supervisor.failure is not None:
            self._note_failure()

    def locate(self, batch: Batch) -> Placement:
        """Find what of a batch lies in the arena."""
        return batch.locate(self._arena) if self._arena.in_use else NOWHERE

    def balance(self, operation: int, placement: Placement, *, bundled: bool = False) -> Balance:
        """Find what is known of such batches; those that lie in the arena are cheaper to divide."""
        return self._balances[operation, placement is not NOWHERE, bundled]

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the workers that run now."""
        return self._supervisor.rings

    @property
    def can_divide(self) -> bool:
        """Whether there are workers."""
        return bool(self._supervisor.rings)

    @property
    def asleep(self) -> bool:
        """Whether some worker would have to be woken."""
        return any(ring.asleep for ring in self._supervisor.rings)

    def divide(
        self,
        batch: Batch,
        placement: Placement,
        *,
        spread: bool = True,
        deadline: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Division:
        """Begin a division of a batch, in the calling thread."""
        return Division(
            batch,
            placement,
            self.context(),
            self._supervisor,
            self.share_pages,
            spread=spread,
            deadline=deadline,
            meanwhile=meanwhile,
        )

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request; they are done by one thread, and the workers, and overlap."""
        if self._supervisor.failure is not None:
            self._note_failure()
        with self._lane_lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            if self._lane is None:
                self._lane = self._open_lane()
        if self._lane is None:
            super().submit(request)
        elif self._lane.is_here():
            # A callback: it would wait for room that its own thread has to make, or that another
            # engine's has to, whose callbacks may be waiting for this one.
            self._queue.put_anyway(request)
        else:
            self._put(request, timeout_s=timeout_s, block=block)

    def _put(self, request: Request[Batch], *, timeout_s: float | None, block: bool) -> None:
        try:
            self._queue.put(request, timeout_s=timeout_s, block=block)
        except KeyboardInterrupt:
            # It may be queued all the same, and whoever submitted it never gets to know the request.
            if not request.cancel():
                request.wait()
            raise

    def _open_lane(self) -> Lane | None:
        try:
            lane = Lane(self, self._queue)
        except RuntimeError:  # no thread can be started: the submitter does the work
            return None
        self._end_lane = weakref.finalize(self, lane.abandon, _EXIT_S)
        self._at_child_exit(self._end_lane, _BEFORE)
        return lane

    def _at_child_exit(self, end: Callable[[], object], priority: int) -> None:
        """See that `end` is called where a child of multiprocessing ends: without atexit.

        Left to itself, a worker just being started would tell the child's stdout how that failed.
        """
        if multiprocessing.parent_process() is not None:
            multiprocessing.util.Finalize(self, end, exitpriority=priority)

    def statistics(self) -> Statistics:
        """Add up what was done here and by the workers."""
        supervisor = self._supervisor
        return self._statistics(
            [supervisor.worked(operation) for operation in (COMPRESS, DECOMPRESS)],
            restarts=supervisor.restarts,
            workers=supervisor.statistics(),
        )

    def _note_failure(self) -> None:
        """Warn the first time; and where there was no thread to start workers, try again."""
        self._supervisor.start()
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
            self._arena.close()
