"""The dask backend: batches done by the workers of a Dask cluster.

    with Client("tcp://scheduler:8786") as client:
        with batchzip.Engine("zstd", level=19, backend=DaskBackend(client)) as engine: ...

    execute, submit ─▶ Choices ─┬─▶ the local backend: threads, or the caller alone
                                └─▶ RequestQueue ─▶ Lane ─▶ the cluster

Where pages are done there, what happens when a worker dies, and that new workers get their part, is Dask's
business. A batch of one page is done by the caller. Two or more go where they are done faster, by
measurement (choice.py): to the cluster where compressing takes longer than sending, with strong algorithms or
where the caller's cores are busy.

A share is a task, and the task has its pages in it, so that the scheduler can give it to another worker
when one dies. Rejected: scattering pages to workers first. They take one hop less, but what a dead
worker held would have to be noticed, and sent again, by us.

Threads: any number may run batches at once; one thread of each engine talks to the cluster.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
import weakref
from collections import Counter
from dataclasses import astuple, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from batchzip.arguments.checks import as_seconds
from batchzip.backend import Backend, deadline_ns, is_native, make_backend
from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.core.coder import Coders
from batchzip.errors import (
    BadArgument,
    BatchzipError,
    ClosedError,
    ClusterLost,
    EngineBusy,
    MissingExtra,
    RequestCancelled,
)
from batchzip.lanes import LanesBackend, RequestQueue, RequestThread
from batchzip.request import Request
from batchzip.statistics import OperationStatistics
from batchzip.system.cpus import usable_cpus
from batchzip.wording import shown
from batchzip_dask.choice import LOCAL, SENT, Choices

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.core.ring import Ring
    from batchzip.statistics import Statistics
    from batchzip_dask.choice import PlacedBatch
    from batchzip_dask.lane import Lane

_ROOM_BYTES = 512 << 20
"""Bytes of pages that may be submitted and not done."""

_QUICK_S = 0.002
"""Seconds of a batch that `submit` does itself: to have a thread do it takes a tenth of that."""

_QUEUE_BATCHES = 2
"""As `queue_batches`. Who waits for room has not chosen yet, and can be sent to the cluster when that is tried."""

_PATIENT_S = 1.0
"""Seconds that a batch with a deadline must have left to be sent, or done here, by way of trial."""

_ASK_S = 1.0
"""Seconds between two questions for the number of workers."""

_UNDONE = [-errno.ETIMEDOUT, -errno.EOWNERDEAD, -errno.ECANCELED]
"""Errors of pages that nobody has done."""

_EXIT_S = 2.0
"""Seconds that requests under way may take at the interpreter's exit; queued ones are cancelled."""

_SAMPLE_PAGES, _SAMPLE_S = 16, 0.05
"""What is done here of the first batch to learn how long the rest would take: so much, or for so long."""


class DaskBackend(Backend):
    """Compresses on the workers of a Dask cluster.

    `cluster`            a `distributed.Client` that is not asynchronous, which stays the caller's, or a
                         scheduler's address. Default: the current client, else what Dask's own setting
                         `scheduler-address` (DASK_SCHEDULER_ADDRESS) says.
    `local`              "auto": batches are done on this machine while that is faster; `statistics.placements`
                         says what was done where, and how fast each was. "never": all of two pages and more
                         are sent.
    `connect_timeout_s`  seconds to connect to an address, and for workers to say which batchzip they have.
    `workerless_s`       seconds that batches wait where the cluster has no workers, or its scheduler is silent;
                         then ClusterLost.

    Pages whose workers die more often than `distributed.scheduler.allowed-failures` says get
    -EOWNERDEAD, with all others of their share; never those of another batch. Where the scheduler is gone, a
    batch that was sent raises ClusterLost; where workers cannot run batchzip, BackendUnavailable: not so
    where it was sent by way of trial, as local work is faster. Results go through the scheduler, or straight to
    a client made with `direct_to_workers=True`.

    Examples:
        >>> import batchzip
        >>> from batchzip_dask import DaskBackend
        >>> from distributed import Client, LocalCluster
        >>> here = {"processes": False, "dashboard_address": ":0", "memory_limit": "1 GiB"}
        >>> with LocalCluster(n_workers=1, **here) as cluster, Client(cluster) as client:
        ...     with batchzip.Engine("zstd", backend=DaskBackend(client, local="never")) as engine:
        ...         engine.compress(batch := batchzip.CompressBatch([bytes(range(256)) * 16] * 8))
        >>> batch.errors.tolist()
        [0, 0, 0, 0, 0, 0, 0, 0]
    """

    name = "dask"
    asynchronous = True

    def __init__(
        self,
        cluster: str | Client | None = None,
        *,
        workers: int | None = None,
        local: Literal["auto", "never"] = "auto",
        connect_timeout_s: float = 10.0,
        workerless_s: float = 30.0,
    ) -> None:
        if workers is not None:
            raise BadArgument("the dask backend has the cluster's workers: leave workers= out")
        if local not in ("auto", "never"):
            raise BadArgument(f"local must be 'auto' or 'never', not {shown(local)}")
        connect_timeout_s = as_seconds(connect_timeout_s, "connect_timeout_s")
        workerless_s = as_seconds(workerless_s, "workerless_s")
        try:
            from batchzip_dask.connection import ClusterConnection  # noqa: PLC0415 - an extra, and takes a second
        except ModuleNotFoundError:
            raise MissingExtra("the dask backend", "distributed", "dask") from None
        self.workerless_s = workerless_s
        self.worked: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """What the cluster did, by operation; the lane's thread writes it."""
        self.threads = 0
        """Threads of all workers, as far as is known."""
        self._cluster = ClusterConnection(cluster, connect_timeout_s=connect_timeout_s)
        self._keeps = local == "auto"
        self._local: LanesBackend | None = None
        self._choices = Choices(self._may_send)
        self._ask_at = 0.0
        self._asks = False
        """Whether the scheduler owes an answer."""
        self._inline = _Inline()
        self._lane: Lane | None = None
        self._starts_lane = False
        self._lane_lock = threading.RLock()  # a signal handler or a finalizer may submit, too
        self._closed = False

    def open(self, codec: Codec, page_size: int) -> None:
        """Connect to the scheduler, and see that its workers can run batchzip.

        Raise BackendUnavailable if it does not answer, or if a worker cannot.
        """
        from batchzip_dask.connection import pickled  # noqa: PLC0415 - as above
        from batchzip_dask.lane import MOST_BYTES  # noqa: PLC0415

        super().open(codec, page_size)
        self.batch_size = max(2, MOST_BYTES // page_size)
        self._pickled = pickled(codec)
        self._requests = RequestQueue(max(1, _ROOM_BYTES // page_size))
        self._cluster.open()
        try:
            self._cluster.check_workers()
            self.threads = self._cluster.threads()
            if self._keeps:
                self._sampling = Coders(codec, page_size)
                self._local = _make_local(codec)
                self._local.open(codec, page_size)
        except BaseException:
            self._cluster.close()
            raise

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the cluster has a worker, and local threads work."""
        until = time.monotonic() + timeout_s
        if not self._cluster.wait_for_worker(timeout_s):
            return False
        local = self._local
        return local is None or local.wait_ready(max(0.0, until - time.monotonic()))

    def _may_send(self) -> bool:
        """Whether the cluster has workers, as far as is known; asked for now and then."""
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + _ASK_S
            if not self._asks:
                self._asks = True
                try:
                    self._cluster.count_threads(self._note_threads)
                except ClusterLost:
                    self._asks = False
        return self.threads > 0 and self._cluster.is_connected

    def _note_threads(self, threads: int | None) -> None:
        self._asks = False
        if threads is not None:
            self.threads = threads

    def execute(self, batch: Batch) -> None:
        """Do a batch; one page in the calling thread."""
        if len(batch) == 1:
            self.run_inline(batch)
        else:
            self.run(batch)

    def run(self, batch: Batch) -> None:
        """Do a batch here or on the cluster."""
        turn = self._begin(batch)
        if turn is None or self._local is None:
            if _is_lane_thread():  # a callback, that would wait for its own thread
                self.run_inline(batch)
            else:
                self._send(batch)
            return
        try:
            if turn.place == LOCAL:
                self._local.execute(batch)
            elif _is_lane_thread():
                turn.drop()
                self.run_inline(batch)
            else:
                self._send(batch)
        except BatchzipError:
            turn.end(0)
            if not turn.is_trial or turn.place == LOCAL:
                raise
            self._do_here(batch, None)
        except BaseException:
            turn.drop()
            raise
        else:
            turn.end(self._done_bytes(batch))

    def _send(self, batch: Batch) -> None:
        batch.reset()
        request = Request(batch)
        try:
            self._put(request, timeout_s=None, block=True)
            request.wait()
        except (EngineBusy, ClosedError):
            raise
        except BaseException:
            if not request.done():  # an interrupt: nobody writes to the batch any more after this
                self._withdraw(request)
            raise

    def _withdraw(self, request: Request[Batch]) -> None:
        """End a request that an interrupt came over, wherever it is by now."""
        cancelled = request.cancel()
        if not cancelled:
            self._requests.expire(request)
        if self._lane is not None:  # which makes room for others, too
            self._lane.wake(surely=True)
        if not cancelled:
            request.wait()

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request, here or for the cluster; one page is done in the calling thread."""
        if len(request.batch) == 1:
            super().submit(request)
            return
        turn = self._begin(request.batch, request.deadline)
        if turn is None or self._local is None:
            self._queue(self._put, request, timeout_s=timeout_s, block=block)
            return
        request.add_done_callback(partial(self._note_end, turn))
        try:
            if turn.place == SENT:
                sent = self._tried(request, turn, self._local) if turn.is_trial else request
                self._queue(self._put, sent, timeout_s=timeout_s, block=block)
            elif turn.seconds < _QUICK_S and not self._inline.active:
                self._inline.active = True
                try:
                    super().submit(request)
                finally:
                    self._inline.active = False
            else:
                self._queue(self._local.submit, request, timeout_s=timeout_s, block=block)
        except BaseException:
            turn.drop()
            raise

    def _queue(
        self,
        put: Callable[..., object],
        request: Request[Batch],
        *,
        timeout_s: float | None,
        block: bool,
    ) -> None:
        try:
            put(request, timeout_s=timeout_s, block=block)
        except (EngineBusy, ClosedError):
            raise
        except BaseException:
            # An interrupt: it may be queued all the same, and who submitted it never gets to know of it.
            self._withdraw(request)
            raise

    def _tried(
        self, request: Request[Batch], turn: PlacedBatch, local: LanesBackend
    ) -> Request[Batch]:
        """Return what is sent for a request by way of trial: what fails as a whole is done here instead."""
        request.take_up()
        sent = Request(request.batch, request.deadline)

        def finish(_: object) -> None:
            try:
                sent.wait()
            except RequestCancelled as error:
                turn.drop()
                request.finish(error)
            except BatchzipError:
                turn.end(0)
                self._do_instead(request, local)
            except Exception as error:  # noqa: BLE001 - it is raised where the request is waited for
                request.finish(error)
            else:
                request.finish()

        sent.add_done_callback(finish)
        return sent

    def _do_instead(self, request: Request[Batch], local: LanesBackend) -> None:
        """Have a request that is taken up done here; this is the engine's thread, which must not do it."""
        again = Request(request.batch, request.deadline)
        again.batch.reset()

        def finish(_: object) -> None:
            try:
                again.wait()
            except Exception as error:  # noqa: BLE001 - it is raised where the request is waited for
                request.finish(error)
            else:
                request.finish()

        again.add_done_callback(finish)
        try:
            local.submit(again, block=False)
        except (EngineBusy, ClosedError):
            self._do_now(again)

    def _do_here(self, batch: Batch, deadline: float | None) -> None:
        batch.reset()
        self.run_inline(batch, deadline)

    def _begin(self, batch: Batch, deadline: float | None = None) -> PlacedBatch | None:
        """Choose where a batch is done; None: there is no choice."""
        if self._local is None:
            return None
        size = len(batch) * self.page_size
        may_try = deadline is None or deadline > time.monotonic() + _PATIENT_S
        sample = partial(self._sample, batch)
        return self._choices.begin(batch.operation, size, sample, may_try=may_try)

    def _sample(self, batch: Batch) -> float:
        """Do a few pages here, throw them away, and return bytes per second."""
        inputs = batch.inputs(batch.order()[:_SAMPLE_PAGES])
        sample: Batch
        if batch.operation == CompressBatch.operation:
            sample = CompressBatch(inputs, page_size=self.page_size)
        else:
            sample = DecompressBatch(inputs, page_size=self.page_size)
        began = time.monotonic()
        sample.pointers.run(self._sampling, deadline_ns(began + _SAMPLE_S))
        done = len(sample) - int((sample.errors == -errno.ETIMEDOUT).sum())
        return max(1, done) * self.page_size / max(1e-9, time.monotonic() - began)

    def _note_end(self, turn: PlacedBatch, request: Request[Batch]) -> None:
        try:
            turn.end(self._done_bytes(request.wait()))
        except RequestCancelled:
            turn.drop()
        except Exception:  # noqa: BLE001 - it is raised where it is waited for, too
            turn.end(0)

    def _done_bytes(self, batch: Batch) -> int:
        undone = np.isin(batch.errors, _UNDONE).sum() if batch.has_errors else 0
        return (len(batch) - int(undone)) * self.page_size

    def _put(self, request: Request[Batch], *, timeout_s: float | None, block: bool) -> None:
        from batchzip_dask.lane import Lane  # noqa: PLC0415 - as above

        with self._lane_lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            if self._lane is None and not self._starts_lane:
                self._starts_lane = True
                try:
                    self._lane = Lane(self, self._cluster, self._requests, self._pickled)
                    self._end_lane = weakref.finalize(self, self._lane.abandon, _EXIT_S)
                finally:
                    self._starts_lane = False
            lane = self._lane
        if lane is None:  # this is a signal handler or a finalizer, and it is being started
            self._do_now(request)
            return
        if RequestThread.is_here():
            # A callback: it would wait for room that its own thread has to make, or that the other's
            # has to, whose callbacks may be waiting for this one.
            self._requests.put_anyway(request)
        else:
            self._requests.put(request, timeout_s=timeout_s, block=block)
        lane.wake()

    def _do_now(self, request: Request[Batch]) -> None:
        """Do a request in the calling thread."""
        if request.take_up():
            try:
                self.run_inline(request.batch, request.deadline)
            except Exception as error:  # noqa: BLE001 - it is raised where the request is waited for
                request.finish(error)
            else:
                request.finish()

    def statistics(self) -> Statistics:
        """Add up what was done here and by the cluster."""
        here = self.add_statistics(self.worked)
        if self._local is None:
            return here
        local = self._local.statistics()
        return replace(
            here,
            compress=_sum(here.compress, local.compress),
            decompress=_sum(here.decompress, local.decompress),
            errors=dict(Counter(here.errors) + Counter(local.errors)),
            placements=self._choices.placements(),
        )

    def close(self) -> None:
        """Finish every request, then let go of the cluster, whose workers go on."""
        with self._lane_lock:
            self._closed = True
        if self._lane is not None:
            self._lane.close()
            self._end_lane.detach()
        if self._local is not None:
            self._local.close()
        self._cluster.close()


class _Inline(threading.local):
    """Whether the thread does a request within `submit`: callbacks that submit again are not nested."""

    active = False


class _CallerAlone(LanesBackend):
    """A backend without lanes: its caller does everything, and a thread what is submitted."""

    name = "caller"

    @property
    def rings(self) -> tuple[Ring, ...]:
        """None."""
        return ()

    def close(self) -> None:
        """Finish every request."""
        self.close_requests()


def _make_local(codec: Codec) -> LanesBackend:
    """Make what does batches here: threads where they can run the codec, and have CPUs."""
    if is_native(codec) and usable_cpus() > 1:
        local = cast("LanesBackend", make_backend("threads"))
    else:
        local = _CallerAlone(workers=1)
    local.queue_batches = _QUEUE_BATCHES
    return local


def _is_lane_thread() -> bool:
    lane = sys.modules.get("batchzip_dask.lane")
    return lane is not None and lane.Lane.is_here()


def _sum(first: OperationStatistics, second: OperationStatistics) -> OperationStatistics:
    return OperationStatistics(
        *(a + b for a, b in zip(astuple(first), astuple(second), strict=True))
    )
