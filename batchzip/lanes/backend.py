"""LanesBackend: the common part of the backends with threads and with worker processes.

    execute(batch) ─▶ core: Divider ─▶ Ring of each lane ─▶ lengths, errors, outputs
                        └─ batches that take longer than a moment ─▶ Watch
    submit(request) ─▶ RequestQueue ─▶ Dispatcher: a thread that does the same for several at once

A subclass starts the lanes, provides their rings, and ends lanes that hang.

Threads: any number may run batches at once. Each is the caller of its own batch.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import threading
import warnings
import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING

from batchzip.arguments.checks import as_integer
from batchzip.backend import Backend, deadline_ns
from batchzip.batch.compress import CompressBatch
from batchzip.batch.decompress import DecompressBatch
from batchzip.core.division import Divider
from batchzip.core.ring import share_pages
from batchzip.errors import ClosedError, EngineBusy, LimitReached, PageError, WorkerWarning
from batchzip.lanes.dispatcher import Dispatcher, RequestThread
from batchzip.lanes.queue import RequestQueue
from batchzip.lanes.watch import Watch, withdraw
from batchzip.system.cpus import MOST_WORKERS, default_lanes

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.arguments.buffers import Buffer
    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.core.batch import Blocks
    from batchzip.core.ring import Ring
    from batchzip.request import Request

_EXIT_S = 2.0
"""Seconds that a begun request may take at the interpreter's exit. Queued ones are cancelled."""

_AFTER, _BEFORE = 10, 20
"""Priorities of clean-up in a child of multiprocessing: higher ones run first."""


class LanesBackend(Backend):
    """Does batches in the calling thread and in lanes.

    `workers`  number of lanes; default: usable CPUs − 1, 1 to 15.
    `isolate`  whether the calling thread does no page.
    """

    asynchronous = True

    queue_batches = 16
    """Limit of submitted pages that are not done, in multiples of `batch_size`."""

    def __init__(self, *, workers: int | None = None, isolate: bool = False) -> None:
        self.workers = (
            default_lanes() if workers is None else as_integer(workers, "workers", 1, MOST_WORKERS)
        )
        self.isolate = isolate
        self._dispatcher: Dispatcher | None = None
        self._dispatcher_lock = threading.RLock()  # a signal handler may submit, too
        self._starts_dispatcher = False
        self._closed = False
        self._loss_told = False

    def open(self, codec: Codec, page_size: int) -> None:
        """Bind to a codec. The subclass starts the lanes."""
        super().open(codec, page_size)
        self.batch_size = (self.workers + 1) * share_pages(page_size)
        self.divider = Divider(
            self.coders, self.make_blocks(), isolate=self.isolate, verify=codec.plan().verify
        )
        self._queue = RequestQueue(self.queue_batches * self.batch_size)

    def make_blocks(self) -> Blocks | None:
        """Return the Blocks of memory that the lanes share; None if they share none, or all."""
        return None

    def check_codec(self) -> None:
        """Prepare the codec once, unless this process never uses it."""
        if not self.isolate:
            super().check_codec()

    # A subclass overrides these for its lanes.

    @property
    @abstractmethod
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the running lanes."""

    def kill(self, ring: Ring) -> None:
        """Kill the lane of a ring, which hangs. Threads cannot be killed: batches wait for them."""

    @property
    def may_replace(self) -> bool:
        """Whether lanes that end will probably be replaced."""
        return False

    @property
    def closed(self) -> bool:
        """Whether the engine is closed, or is finishing its requests before it closes."""
        return self._closed

    @property
    def ends(self) -> bool:
        """Whether no more lanes will be started."""
        return self._closed

    def replace_soon(self) -> None:
        """Start missing lanes soon, because a batch needs one."""

    def tell_loss(self, what: str, *, stacklevel: int) -> None:
        """Warn that lanes are missing. Warn once, until they work again."""
        if not self._loss_told:
            self._loss_told = True
            warnings.warn(
                f"batchzip: {what}; meanwhile the caller does the work",
                WorkerWarning,
                stacklevel=stacklevel,
            )

    def tell_recovery(self) -> None:
        """Log that all lanes work again, after a loss was warned of.

        This is not a warning: with `-W error`, that would end a program that works again.
        """
        if self._loss_told:
            self._loss_told = False
            import logging  # noqa: PLC0415 - takes 5 ms and is rarely needed

            logging.getLogger("batchzip").warning("batchzip: all %s work again", self.name)

    # Batches.

    def works_alone(self, count: int) -> bool:
        """Return whether the calling thread alone does a batch of `count` pages.

        It does while callers keep all CPUs busy: sharing a batch would only cost time.
        """
        return not self.isolate and (count == 1 or self.divider.is_crowded(self.workers))

    def execute(self, batch: Batch) -> None:
        """Do a batch, together with the lanes where that is faster."""
        pointers = batch.pointers
        job = self.divider.execute(pointers, self.rings)
        if job is None:
            batch.has_errors = pointers.failed > 0
            return
        try:
            Watch(self, batch, job).run()
        except BaseException:
            # An interrupt may come before the Watch guards the job, and its traceback keeps the
            # job.
            withdraw(self, job, None)
            raise

    def run(self, batch: Batch) -> None:
        """Do a batch, together with the lanes where that is faster."""
        self.execute(batch)

    def begin(self, batch: Batch, deadline: float | None) -> Watch:
        """Begin a batch. Return the Watch that supervises it while other batches are done."""
        batch.has_errors = False
        job = self.divider.start(batch.pointers, self.rings, deadline_ns(deadline))
        return Watch(self, batch, job)

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page in the calling thread unless the codec is isolated. Raise PageError."""
        if not self.isolate:
            return self.coders.compress_page(page)
        batch = CompressBatch([page], page_size=self.page_size)
        self.execute(batch)
        return bytes(batch.output(0))

    def decompress_page(self, src: Buffer) -> bytes:
        """Restore one page in the calling thread unless the codec is isolated. Raise PageError."""
        if not self.isolate:
            return self.coders.decompress_page(src)
        batch = DecompressBatch([src], page_size=self.page_size)
        self.execute(batch)
        if batch.has_errors:
            raise PageError(0, int(batch.errors[0]))
        return batch.pages.tobytes()

    # Requests.

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request. One thread does requests together with the lanes, several at a time."""
        with self._dispatcher_lock:
            if self._closed:
                raise ClosedError("this engine is closed")
            if self._dispatcher is None and not self._starts_dispatcher:
                self._starts_dispatcher = True
                try:
                    self._dispatcher = self._start_dispatcher()
                finally:
                    self._starts_dispatcher = False
            dispatcher = self._dispatcher
        if dispatcher is None or dispatcher.is_over:
            # No dispatcher can be started, or this signal handler interrupted its start, or the
            # program is exiting.
            self._do_now(request)
        elif RequestThread.is_here():
            # A callback must not wait for room. Its own thread makes the room, or another engine's
            # thread, whose callbacks may be waiting for this one.
            self._queue.put_anyway(request)
        else:
            self._put(request, timeout_s=timeout_s, block=block)

    def _put(self, request: Request[Batch], *, timeout_s: float | None, block: bool) -> None:
        try:
            self._queue.put(request, timeout_s=timeout_s, block=block)
        except (EngineBusy, ClosedError):
            raise
        except BaseException:
            # Ctrl-C, or whatever a signal handler raises: it may be queued all the same, and
            # whoever submitted it never gets to know the request.
            if not request.cancel():
                request.wait()
            self._queue.notify()
            raise

    def _do_now(self, request: Request[Batch]) -> None:
        """Do a request in the calling thread, because no dispatcher can be started."""
        request.take_up()
        try:
            if self.isolate:
                self.execute(request.batch)
            else:
                self.run_inline(request.batch, request.deadline)
        except Exception as error:  # noqa: BLE001 - `Request.wait` raises it
            request.finish(error)
        else:
            request.finish()

    def _start_dispatcher(self) -> Dispatcher | None:
        try:
            dispatcher = Dispatcher(self, self._queue)
        except LimitReached:  # no thread can be started now: the submitter does the work
            return None
        self._end_dispatcher = weakref.finalize(self, dispatcher.abandon, _EXIT_S)
        self.at_child_exit(self._end_dispatcher, _BEFORE)
        return dispatcher

    def at_child_exit(self, end: Callable[[], object], priority: int = _AFTER) -> None:
        """Have `end` called at the end of a child of multiprocessing, which does not run atexit."""
        if multiprocessing.parent_process() is not None:
            multiprocessing.util.Finalize(self, end, exitpriority=priority)

    def close_requests(self) -> None:
        """Finish every request. The subclass ends the lanes afterwards."""
        with self._dispatcher_lock:
            self._closed = True
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._end_dispatcher.detach()
