"""The workers backend: lanes are worker processes.

Processes do what threads cannot: run codecs in Python in parallel, survive a codec that hangs or
crashes, and isolate the owner, which then never runs the codec. Each worker has its own ring in
shared memory. Workers use pages and outputs in the engine's arena in place. Others are copied.

Rejected: an executor with one submit per batch. It takes four times longer than no workers at all.
"""

from __future__ import annotations

import time
import weakref
from functools import partial
from typing import TYPE_CHECKING

from batchzip.backend import is_native
from batchzip.errors import BackendUnavailable
from batchzip.lanes import LanesBackend
from batchzip.system.arena import Arena
from batchzip.system.interpreter import why_no_python
from batchzip_workers.failpoints import next_armed
from batchzip_workers.launch import Task
from batchzip_workers.pickled import pickled
from batchzip_workers.ring import WorkerRing
from batchzip_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Bytes
    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.core.batch import Blocks
    from batchzip.core.ring import Ring
    from batchzip.request import Request
    from batchzip.statistics import Statistics


def _make_task(codec: Codec, page_size: int, arena_fd: int, number: int, ring: WorkerRing) -> Task:
    """Return the task of the worker in slot `number`. Raise any error of pickling the codec."""
    given: object
    modules: frozenset[str] = frozenset()
    plan = codec.plan()
    if is_native(codec):
        assert plan.native is not None  # noqa: S101 - is_native says so
        given = tuple(plan.native), plan.element_size, plan.verify, plan.floats
    else:
        given, modules = pickled(codec)
    fds = arena_fd, *ring.descriptors
    arguments = number, given, page_size, next_armed(), *fds
    return Task("batchzip_workers.worker", arguments, fds, modules)


class WorkersBackend(LanesBackend):
    """Compresses in `workers` processes besides the caller. Default: usable CPUs − 1, 1 to 15.

    `isolate`  the caller never runs the codec. Pages that workers cannot do fail with -EOWNERDEAD.

    Raises BackendUnavailable if no Python can be started, as in a frozen or embedded application.
    """

    name = "workers"

    def __init__(self, *, workers: int | None = None, isolate: bool = False) -> None:
        reason = why_no_python()
        if reason is not None:
            raise BackendUnavailable(
                f"the workers backend starts Python, but {reason}: use backend='threads'"
            )
        super().__init__(workers=workers, isolate=isolate)
        self._stop: weakref.finalize[..., object] | None = None

    def open(self, codec: Codec, page_size: int) -> None:
        """Start the workers. Each takes part once it is ready."""
        super().open(codec, page_size)
        self._supervisor = Supervisor(
            self.workers,
            partial(WorkerRing, page_size),
            partial(_make_task, codec, page_size, self._arena.fd),
        )
        self._supervisor.start()
        self._stop = weakref.finalize(self, self._supervisor.stop)
        self.at_child_exit(self._stop)

    def make_blocks(self) -> Blocks:
        """Create the arena. Return its Blocks, which are the arrays shared with the workers."""
        self._arena = Arena()
        return self._arena.blocks

    def array(self, rows: int, width: int) -> Bytes:
        """Return an array in memory that the workers share."""
        return self._arena.array(rows, width)

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the running workers."""
        if self._supervisor.failure is not None:
            self._tell()
        return self._supervisor.rings

    def kill(self, ring: Ring) -> None:
        """Kill a worker that hangs. It is replaced like any dead worker."""
        self._supervisor.kill(ring)

    @property
    def may_replace(self) -> bool:
        """Whether workers that end will probably be replaced."""
        return not self._supervisor.failing

    @property
    def ends(self) -> bool:
        """Whether no more workers will be started."""
        return self._supervisor.stopping

    def replace_soon(self) -> None:
        """Start missing workers soon, because a batch needs one."""
        self._supervisor.retry_soon()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process IDs of the running workers."""
        return self._supervisor.pids

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until every worker is ready. Return False after `timeout_s`, or if one cannot start.

        Successors of dead workers are waited for, too. Workers that could not be started are tried
        again soon.
        """
        supervisor = self._supervisor
        supervisor.start()
        supervisor.retry_soon()
        deadline = time.monotonic() + timeout_s
        while not supervisor.settled and time.monotonic() < deadline:
            for ring in supervisor.rings:
                if ring.dead:  # impossible results were found, but an interrupt prevented the kill
                    supervisor.kill(ring)
            time.sleep(0.001)
        self._tell()
        return supervisor.complete

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request. One thread does several requests at a time, with the workers."""
        if self._supervisor.failure is not None:
            self._tell()
        super().submit(request, timeout_s=timeout_s, block=block)

    def statistics(self) -> Statistics:
        """Return the sum of the figures of this process and the workers."""
        supervisor = self._supervisor
        return self.add_statistics(
            (supervisor.worked(0), supervisor.worked(1)),
            restarts=supervisor.restarts,
            workers=supervisor.statistics(),
        )

    def _tell(self) -> None:
        """Warn once that workers could not be started, and log once that all work again."""
        supervisor = self._supervisor
        supervisor.start()  # try again if the supervisor's thread could not be started
        reason = supervisor.failure
        if reason is None:
            return
        if supervisor.complete:
            supervisor.failure = None
            self.tell_recovery()
        else:
            self.tell_loss(f"a worker could not be started ({reason})", stacklevel=6)

    def close(self) -> None:
        """Finish every request, then stop the workers."""
        self.close_requests()
        if self._stop is not None:
            self._stop()
            self._arena.close()
