"""The dask backend: batches done by the workers of a Dask cluster.

    with Client("tcp://scheduler:8786") as client:
        with batchzip.Engine("zstd", level=19, backend=DaskBackend(client)) as engine: ...

Where pages are done, what happens when a worker dies, and that new workers get their part, is Dask's
business. A batch of one page is done by the caller. Two or more go to the cluster, which pays where
compressing takes longer than sending: with strong algorithms, or where the caller's cores are busy.

A share is a task, and the task has its pages in it, so that the scheduler can give it to another worker
when one dies. Rejected: scattering pages to workers first. They take one hop less, but what a dead
worker held would have to be noticed, and sent again, by us.

Threads: any number may run batches at once; one thread of each engine talks to the cluster.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from batchzip.backend import Backend
from batchzip.checks import as_seconds
from batchzip.errors import BadArgument, ClosedError, MissingExtra
from batchzip.lanes.queue import RequestQueue
from batchzip.request import Request

if TYPE_CHECKING:
    from distributed import Client

    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.statistics import Statistics
    from batchzip_dask.lane import Lane

_ROOM_BYTES = 512 << 20
"""Bytes of pages that may be submitted and not done: four times what is out at once."""

_EXIT_S = 2.0
"""Seconds that requests under way may take at the interpreter's exit; queued ones are cancelled."""


class DaskBackend(Backend):
    """Compresses on the workers of a Dask cluster.

    `cluster`            a `distributed.Client` that is not asynchronous, which stays the caller's, or a
                         scheduler's address. Default: the current client, else what Dask's own setting
                         `scheduler-address` (DASK_SCHEDULER_ADDRESS) says.
    `connect_timeout_s`  seconds to connect to an address.
    `workerless_s`       seconds that batches wait where the cluster has no workers; then ClusterLost.

    Pages whose workers die more often than `distributed.scheduler.allowed-failures` says get
    -EOWNERDEAD, with all others of their share. Where the scheduler is gone, a batch raises
    ClusterLost; where workers cannot run batchzip, BackendUnavailable. Results go through the scheduler,
    or straight to a client made with `direct_to_workers=True`.
    """

    name = "dask"

    def __init__(
        self,
        cluster: str | Client | None = None,
        *,
        workers: int | None = None,
        connect_timeout_s: float = 10.0,
        workerless_s: float = 30.0,
    ) -> None:
        if workers is not None:
            raise BadArgument("the dask backend has the cluster's workers: leave workers= out")
        connect_timeout_s = as_seconds(connect_timeout_s, "connect_timeout_s")
        workerless_s = as_seconds(workerless_s, "workerless_s")
        try:
            from batchzip_dask.cluster import Cluster  # noqa: PLC0415 - an extra, and takes a second
        except ModuleNotFoundError:
            raise MissingExtra("the dask backend", "distributed", "dask") from None
        self.workerless_s = workerless_s
        self.worked: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """What the cluster did, by operation; the lane's thread writes it."""
        self._cluster = Cluster(cluster, connect_timeout_s=connect_timeout_s)
        self._lane: Lane | None = None
        self._lane_lock = threading.Lock()
        self._closed = False

    def open(self, codec: Codec, page_size: int) -> None:
        """Connect to the scheduler; raises BackendUnavailable if it does not answer."""
        from distributed.protocol import pickle  # noqa: PLC0415 - as above

        from batchzip_dask.flight import MOST_BYTES  # noqa: PLC0415

        super().open(codec, page_size)
        self.batch_size = max(2, MOST_BYTES // page_size)
        self._codec: bytes = pickle.dumps(codec)
        self._requests = RequestQueue(max(1, _ROOM_BYTES // page_size))
        self._cluster.open()
        try:
            self.threads = self._cluster.threads()
        except BaseException:
            self._cluster.close()
            raise

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the cluster has a worker."""
        return self._cluster.wait_for_worker(timeout_s)

    def run(self, batch: Batch) -> None:
        """Do a batch on the cluster."""
        batch.reset()
        request = Request(batch)
        lane = self._put(request, timeout_s=None, block=True)
        try:
            request.wait()
        except BaseException:
            if not request.done():  # an interrupt: nobody writes to the batch any more after this
                request.deadline = -1.0
                lane.wake()
                request.wait()
            raise

    def execute(self, batch: Batch) -> None:
        """Do a batch; one page in the calling thread."""
        if len(batch) == 1:
            self.run_inline(batch)
        else:
            self.run(batch)

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request; one page is done in the calling thread."""
        if len(request.batch) == 1:
            super().submit(request)
        else:
            self._put(request, timeout_s=timeout_s, block=block)

    def _put(self, request: Request[Batch], *, timeout_s: float | None, block: bool) -> Lane:
        from batchzip_dask.lane import Lane  # noqa: PLC0415 - as above

        with self._lane_lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            if self._lane is None:
                self._lane = Lane(self, self._cluster, self._requests, self._codec)
                self._end_lane = weakref.finalize(self, self._lane.abandon, _EXIT_S)
            lane = self._lane
        if lane.is_here():
            # A callback: it would wait for room that its own thread has to make.
            self._requests.put_anyway(request)
        else:
            self._requests.put(request, timeout_s=timeout_s, block=block)
        lane.wake()
        return lane

    def statistics(self) -> Statistics:
        """Add up what was done here and by the cluster."""
        return self.add_statistics(self.worked)

    def close(self) -> None:
        """Finish every request, then let go of the cluster, whose workers go on."""
        with self._lane_lock:
            self._closed = True
        if self._lane is not None:
            self._lane.close()
            self._end_lane.detach()
        self._cluster.close()
