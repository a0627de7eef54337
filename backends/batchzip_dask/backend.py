"""The dask backend: the workers of a Dask cluster compress and decompress batches.

    with Client("tcp://scheduler:8786") as client:
        with batchzip.Engine("zstd", level=19, backend=DaskBackend(client)) as engine: ...

    execute, submit ─▶ Choices ─┬─▶ the local backend: threads, or the caller alone
                                └─▶ RequestQueue ─▶ Lane ─▶ the cluster

Dask decides which worker gets which pages, repeats the work of a dead worker, and gives new workers
their part. The caller handles a batch of one page itself. Larger batches run where they are faster,
by measurement (choice.py). The cluster wins where compressing takes longer than sending: with
strong algorithms, or where the caller's cores are busy.

Each parcel of pages is a task that contains its pages. When a worker dies, the scheduler can
therefore give the task to another one. Rejected: scattering pages to workers first. That saves one
hop, but this module would have to notice which pages a dead worker held, and send them again.

Any number of threads may run batches at once. One thread of each engine talks to the cluster.
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
"""Bytes of pages that may be submitted and unfinished."""

_FAST_S = 0.002
"""`submit` runs batches shorter than this in the calling thread. Queueing one costs 0.2 ms."""

_QUEUE_BATCHES = 2
"""The local backend's `queue_batches`. A submitter that waits for room in its short queue has not
yet chosen a place, so a trial can still send its batch to the cluster."""

_PATIENT_S = 1.0
"""Seconds until its deadline that a batch needs to take part in a trial, here or on the cluster."""

_ASK_S = 1.0
"""Seconds between two requests for the number of workers."""

_UNDONE = [-errno.ETIMEDOUT, -errno.EOWNERDEAD, -errno.ECANCELED]
"""Errors of pages that were never processed."""

_EXIT_S = 2.0
"""Seconds that unfinished requests have at the interpreter's exit. Queued ones are cancelled."""

_SAMPLE_PAGES, _SAMPLE_S = 16, 0.05
"""A sample of the first batch runs here to predict local speed. It ends at the first of
these two limits: pages or seconds."""


class DaskBackend(Backend):
    """Compresses and decompresses on the workers of a Dask cluster.

    `cluster`            A synchronous `distributed.Client`, which the caller closes, or a
                         scheduler's address. Default: the current client, otherwise Dask's own
                         setting `scheduler-address` (DASK_SCHEDULER_ADDRESS).
    `local`              "auto": batches run on this machine while that is faster.
                         `statistics.placements` says what ran where, and how fast. "never": all
                         batches of two or more pages are sent.
    `connect_timeout_s`  Seconds to connect to an address, and for workers to report their version
                         of batchzip.
    `workerless_s`       Seconds that batches wait while the cluster has no workers or its scheduler
                         is silent. After that they raise ClusterLost.

    If more workers die on a task than `distributed.scheduler.allowed-failures` permits, the task is
    repeated with the pages of a single request. If that fails, too, all of its pages get
    -EOWNERDEAD; pages of other batches never do. If the scheduler is lost, a batch that was sent
    raises ClusterLost. If workers cannot run batchzip, it raises BackendUnavailable. A batch that
    was sent as a trial raises neither: it runs here instead. Results come through the scheduler, or
    directly from the workers if the client was made with `direct_to_workers=True`.

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
            raise BadArgument("the dask backend uses the cluster's workers: leave workers= out")
        if local not in ("auto", "never"):
            raise BadArgument(f"local must be 'auto' or 'never', not {shown(local)}")
        connect_timeout_s = as_seconds(connect_timeout_s, "connect_timeout_s")
        workerless_s = as_seconds(workerless_s, "workerless_s")
        try:
            # An extra, whose import takes a second.
            from batchzip_dask.connection import ClusterConnection  # noqa: PLC0415
        except ModuleNotFoundError:
            raise MissingExtra("the dask backend", "distributed", "dask") from None
        self.workerless_s = workerless_s
        self.worked: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """The cluster's work per operation. Only the lane's thread writes here."""
        self.threads = 0
        """Threads of all workers, as last reported."""
        self._cluster = ClusterConnection(cluster, connect_timeout_s=connect_timeout_s)
        self._may_run_here = local == "auto"
        self._local: LanesBackend | None = None
        self._choices = Choices(self._may_send)
        self._ask_at = 0.0
        self._asks = False
        """Whether an answer of the scheduler is outstanding."""
        self._inline = _Inline()
        self._lane: Lane | None = None
        self._starts_lane = False
        self._lane_lock = threading.RLock()  # a signal handler or a finalizer may submit, too
        self._closed = False

    def open(self, codec: Codec, page_size: int) -> None:
        """Connect to the scheduler, and check that its workers can run batchzip.

        Raise BackendUnavailable if the scheduler does not answer, or if a worker cannot run
        batchzip.
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
            if self._may_run_here:
                self._sampling = Coders(codec, page_size)
                self._local = _make_local(codec)
                self._local.open(codec, page_size)
        except BaseException:
            self._cluster.close()
            raise

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the cluster has a worker and local lanes are ready. Return whether so."""
        until = time.monotonic() + timeout_s
        if not self._cluster.wait_for_worker(timeout_s):
            return False
        local = self._local
        return local is None or local.wait_ready(max(0.0, until - time.monotonic()))

    def _may_send(self) -> bool:
        """Return whether the cluster had workers when last asked. Ask again once per second."""
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
        """Run a batch. A single page runs in the calling thread."""
        if len(batch) == 1:
            self.run_inline(batch)
        else:
            self.run(batch)

    def run(self, batch: Batch) -> None:
        """Run a batch here or on the cluster."""
        turn = self._begin(batch)
        if turn is None or self._local is None:
            if _is_lane_thread():  # a callback, which would wait for its own thread
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
            if not request.done():  # an interrupt: after this, nothing writes to the batch
                self._withdraw(request)
            raise

    def _withdraw(self, request: Request[Batch]) -> None:
        """End a request after an interrupt, whatever its state."""
        cancelled = request.cancel()
        if not cancelled:
            self._requests.expire(request)
        if self._lane is not None:  # waking the lane also frees room for other requests
            self._lane.wake(surely=True)
        if not cancelled:
            request.wait()

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request, here or for the cluster. A single page runs in the calling thread."""
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
                sent = self._for_trial(request, turn, self._local) if turn.is_trial else request
                self._queue(self._put, sent, timeout_s=timeout_s, block=block)
            elif turn.seconds < _FAST_S and not self._inline.active:
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
            # An interrupt: the request may be queued, but its submitter never learns of it.
            self._withdraw(request)
            raise

    def _for_trial(
        self, request: Request[Batch], turn: PlacedBatch, local: LanesBackend
    ) -> Request[Batch]:
        """Return the request to send as a trial. If it fails as a whole, its batch runs here."""
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
            except Exception as error:  # noqa: BLE001 - raised to whoever waits for the request
                request.finish(error)
            else:
                request.finish()

        sent.add_done_callback(finish)
        return sent

    def _do_instead(self, request: Request[Batch], local: LanesBackend) -> None:
        """Have the local backend run a request. The lane's thread calls this and must not wait."""
        again = Request(request.batch, request.deadline)
        again.batch.reset()

        def finish(_: object) -> None:
            try:
                again.wait()
            except Exception as error:  # noqa: BLE001 - raised to whoever waits for the request
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
        """Choose where a batch runs. Return None if there is no choice."""
        if self._local is None:
            return None
        size = len(batch) * self.page_size
        may_try = deadline is None or deadline > time.monotonic() + _PATIENT_S
        sample = partial(self._sample, batch)
        return self._choices.begin(batch.operation, size, sample, may_try=may_try)

    def _sample(self, batch: Batch) -> float:
        """Run a few pages here, discard the results, and return bytes per second."""
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
        except Exception:  # noqa: BLE001 - raised to whoever waits for the request, too
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
        if lane is None:  # this is a signal handler or a finalizer within the creation of the lane
            self._do_now(request)
            return
        if RequestThread.is_here():
            # A callback must not wait for room: only its own thread, or another request thread
            # whose callbacks may be waiting for this one, can make that room.
            self._requests.put_anyway(request)
        else:
            self._requests.put(request, timeout_s=timeout_s, block=block)
        lane.wake()

    def _do_now(self, request: Request[Batch]) -> None:
        """Run a request in the calling thread."""
        if request.take_up():
            try:
                self.run_inline(request.batch, request.deadline)
            except Exception as error:  # noqa: BLE001 - raised to whoever waits for the request
                request.finish(error)
            else:
                request.finish()

    def statistics(self) -> Statistics:
        """Return the sum of local work and the cluster's work."""
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
        """Finish every request, then disconnect from the cluster. Its workers keep running."""
        with self._lane_lock:
            self._closed = True
        if self._lane is not None:
            self._lane.close()
            self._end_lane.detach()
        if self._local is not None:
            self._local.close()
        self._cluster.close()


class _Inline(threading.local):
    """Marks threads that run a request within `submit`, so that callbacks do not nest."""

    active = False


class _CallerAlone(LanesBackend):
    """A backend without lanes: callers run their own batches; one thread runs submitted ones."""

    name = "caller"

    @property
    def rings(self) -> tuple[Ring, ...]:
        """Return no rings."""
        return ()

    def close(self) -> None:
        """Finish every request."""
        self.close_requests()


def _make_local(codec: Codec) -> LanesBackend:
    """Make the local backend: threads if the codec is native and there are several CPUs."""
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
