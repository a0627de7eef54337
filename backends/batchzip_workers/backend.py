"""The workers backend: a batch split between worker processes and the caller.

    run(batch)   while pages are left:
                     a round: interleaved shares for every worker that wants work, and for the caller
                     post the workers' shares ─▶ do the caller's own, from the caller's memory
                     collect the shares that are done
                 wait for the rest and collect it

Rejected: an executor with one submit a batch (four times slower than no workers, design §5.2);
a fixed split (whoever is slower, for noise or harder pages, makes the other wait: rounds shrink
towards the end, and a worker that lags is given nothing more); threads (the GIL's hand-overs
cost more than they bring at 4 KiB).

A share whose worker died is run again from the caller's memory. If the worker died *on* it, that is
done by workers only, halving the share each time, until a page that killed by itself twice is alone
and gets -EOWNERDEAD: what kills workers shall never run in the owner.

Threads: any number may run batches at once; each collects its own shares.
"""

from __future__ import annotations

import errno
import platform
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING

from batchzip.backend import Backend
from batchzip.errors import BackendUnavailable, ClosedError, WorkerWarning
from batchzip_workers.balance import Balance
from batchzip_workers.lane import Lane
from batchzip_workers.layout import Layout
from batchzip_workers.supervisor import Supervisor
from batchzip_workers.worker import MAX_SPIN_S

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.request import Request
    from batchzip_workers.ring import Posted

_LAST_ROUND = 8
"""Pages a lane in the last round: what one lane may at most wait for another at the end."""

_CLOSE_S = MAX_SPIN_S / 2
"""Seconds between batches that let a worker, once awake, stay so from one to the next."""

_EXIT_S = 2.0
"""Seconds that a request under way may take at the interpreter's exit; queued ones are cancelled."""

_HANG_S = 30.0
"""Seconds after which a worker that does not finish a share is killed."""


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
        """Do a batch together with the workers."""
        posted: list[Posted] = []
        try:
            position, count = 0, len(batch)
            while position < count:
                position = self._run_round(batch, position, count, posted)
                if posted:
                    posted[:] = [p for p in posted if not self._collect_if_done(p)]
            while posted:
                self._finish(posted[0])
                del posted[0]
        except BaseException:
            # KeyboardInterrupt above all: the slots must come back, the workers may go on.
            for left in posted:
                left.ring.abandon(left)
            raise

    def _run_round(self, batch: Batch, position: int, count: int, posted: list[Posted]) -> int:
        """Post a round's shares and do the caller's own; returns where the next round begins."""
        clock = time.perf_counter
        balance = self._balances[batch.operation]
        rings = [ring for ring in self._supervisor.rings if ring.wants_work()]
        left = count - position
        lanes = len(rings) + 1
        size = min(left, lanes * self._share_pages)
        if left > lanes * _LAST_ROUND:
            size = min(size, max(left // 2, lanes * _LAST_ROUND))
        started = clock()
        if lanes == 1:
            size = min(left, _LAST_ROUND if self._supervisor.rings else left)
        elif not balance.is_worth(size // lanes, started, asleep=any(r.asleep for r in rings)):
            rings, lanes = [], 1
        end = position + size
        own = [range(position, end, lanes)]
        for lane, ring in enumerate(rings, start=1):
            share = range(position + lane, end, lanes)
            if not share:
                break
            entry = ring.post(batch, share)
            now = clock()
            if entry is None:
                own.append(share)
            else:
                entry.post_s = now - started
                posted.append(entry)
            started = now
        context = self.context()
        for share in own:
            batch.run_share(context, share)
        balance.note_pages(sum(map(len, own)), clock() - started)
        if self._supervisor.failure is not None:
            self._warn_once()
        return end

    def _collect_if_done(self, posted: Posted) -> bool:
        if not posted.ring.is_done(posted):
            return False
        self._collect(posted, 0.0)
        return True

    def _collect(self, posted: Posted, waited_s: float) -> None:
        """Collect a share that is done, and note what it cost to have it done elsewhere."""
        balance = self._balances[posted.batch.operation]
        started = time.perf_counter()
        posted.ring.collect(posted)
        balance.note_collect(len(posted.share), time.perf_counter() - started)
        if posted.woke:
            balance.note_wake(posted.post_s + waited_s)
        else:
            balance.note_post(len(posted.share), posted.post_s)

    def _finish(self, posted: Posted) -> None:
        """Wait for a share and collect it, or see that it is done some other way."""
        started = time.perf_counter()
        if self._await(posted):
            self._collect(posted, time.perf_counter() - started)
            return
        died_on_it = posted.ring.was_started(posted)
        posted.ring.drop(posted)
        if died_on_it:
            self._isolate(posted.batch, posted.share)
        else:
            posted.batch.run_share(self.context(), posted.share)

    def _await(self, posted: Posted) -> bool:
        """Whether the share was done; False: its worker is dead."""
        ring = posted.ring
        if ring.wait(posted, _HANG_S):
            return True
        if not ring.dead:
            self._supervisor.kill(ring)
            return ring.wait(posted, _HANG_S)
        return False

    def _isolate(self, batch: Batch, share: range) -> None:
        """Run a share that killed a worker, in workers only; halve it as long as it kills."""
        while True:
            posted = self._post_to_any(batch, share)
            if posted is None:
                batch.run_share(
                    self.context(), share
                )  # no workers will come: in process, or not at all
                return
            if self._await(posted):
                posted.ring.collect(posted)
                return
            died_on_it = posted.ring.was_started(posted)
            posted.ring.drop(posted)
            if died_on_it:
                break
        if len(share) == 1:
            batch.fail(share, -errno.EOWNERDEAD)
            return
        middle = len(share) // 2
        self._isolate(batch, share[:middle])
        self._isolate(batch, share[middle:])

    def _post_to_any(self, batch: Batch, share: range) -> Posted | None:
        """Post to the first worker that can take it; None when there will be none."""
        while True:
            for ring in self._supervisor.rings:
                posted = ring.post(batch, share) if ring.wants_work() else None
                if posted is not None:
                    return posted
            if self._supervisor.hopeless:
                return None
            time.sleep(0.001)

    def submit(self, request: Request[Batch]) -> None:
        """Queue a request; requests are done in order, by one thread and the workers."""
        with self._lane_lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            if self._lane is None:
                self._lane = Lane(self.execute)
                self._end_lane = weakref.finalize(self, self._lane.abandon, _EXIT_S)
        self._lane.put(request)

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
