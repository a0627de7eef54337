"""The workers backend: lanes that are worker processes.

For what threads cannot do: codecs in Python, a codec that may hang or crash, and isolation, where the
owner never runs the codec. Each worker has a ring of its own in shared memory; pages and outputs that lie
in the engine's arena are used where they are, and others are copied.

Rejected: an executor with one submit per batch, which takes four times longer than no workers at all.
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
    """Say what the worker at a place is to do. Raise whatever the codec's pickling raises."""
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
    """Compresses in `workers` processes besides the caller; default: usable CPUs − 1, 1 to 15.

    `isolate`  the caller never runs the codec. What workers cannot do fails with -EOWNERDEAD.

    Raise BackendUnavailable where there is no Python to start, as in a frozen or embedded application.
    """

    name = "workers"

    def __init__(self, *, workers: int | None = None, isolate: bool = False) -> None:
        reason = why_no_python()
        if reason is not None:
            raise BackendUnavailable(
                f"the workers backend starts Python, and {reason}: use backend='threads'"
            )
        super().__init__(workers=workers, isolate=isolate)
        self._stop: weakref.finalize[..., object] | None = None

    def open(self, codec: Codec, page_size: int) -> None:
        """Start the workers; they take part as they become ready."""
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
        """Make the arena; its arrays are what the workers share."""
        self._arena = Arena()
        return self._arena.blocks

    def array(self, rows: int, width: int) -> Bytes:
        """Make an array in memory that the workers share."""
        return self._arena.array(rows, width)

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the workers that run now."""
        if self._supervisor.failure is not None:
            self._tell()
        return self._supervisor.rings

    def kill(self, ring: Ring) -> None:
        """Kill a worker that hangs; it is replaced as any that dies."""
        self._supervisor.kill(ring)

    @property
    def may_replace(self) -> bool:
        """Whether workers that end are replaced, as far as is known."""
        return not self._supervisor.failing

    @property
    def ends(self) -> bool:
        """Whether no worker will be started any more."""
        return self._supervisor.stopping

    def replace_soon(self) -> None:
        """Start the workers that are missing soon: a batch needs one."""
        self._supervisor.retry_soon()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return self._supervisor.pids

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until every worker works; False when time is up or one cannot be started.

        Workers that died are waited for, too, and those that could not be started are soon tried again.
        """
        supervisor = self._supervisor
        supervisor.start()
        supervisor.retry_soon()
        deadline = time.monotonic() + timeout_s
        while not supervisor.settled and time.monotonic() < deadline:
            for ring in supervisor.rings:
                if ring.dead:  # it lied, and the batch that found out was cut short
                    supervisor.kill(ring)
            time.sleep(0.001)
        self._tell()
        return supervisor.complete

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request; they are done by one thread and the workers, and overlap."""
        if self._supervisor.failure is not None:
            self._tell()
        super().submit(request, timeout_s=timeout_s, block=block)

    def statistics(self) -> Statistics:
        """Add up what was done here and by the workers."""
        supervisor = self._supervisor
        return self.add_statistics(
            (supervisor.worked(0), supervisor.worked(1)),
            restarts=supervisor.restarts,
            workers=supervisor.statistics(),
        )

    def _tell(self) -> None:
        """Tell once that workers could not be started, and once that all work again."""
        supervisor = self._supervisor
        supervisor.start()  # where there was no thread to start workers, it is tried again
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
