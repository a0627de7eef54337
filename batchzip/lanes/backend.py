"""LanesBackend: the part of a backend that is the same for threads and for worker processes.

    execute(batch) ─▶ core: Divider ─▶ Ring of each lane ─▶ lengths, errors, outputs
                        └─ what takes longer than a moment ─▶ Watch
    submit(request) ─▶ RequestQueue ─▶ Dispatcher: a thread that does the same, with several at once

A subclass makes the lanes, says which rings there are now, and ends lanes that hang.

Threads: any number may run batches at once; each is the caller of its own batch.
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
"""Seconds that a request under way may take at the interpreter's exit; queued ones are cancelled."""

_AFTER, _BEFORE = 10, 20
"""Order at the end of a child of multiprocessing: the higher comes first."""


class LanesBackend(Backend):
    """Does batches in the calling thread and in lanes; default: usable CPUs − 1, 1 to 15.

    `isolate`  no page is done in the calling thread.
    """

    asynchronous = True

    queue_batches = 16
    """Times the pages that lanes and caller take in one go that may be submitted and not done."""

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
        """Bind to a codec; the subclass makes the lanes."""
        super().open(codec, page_size)
        self.batch_size = (self.workers + 1) * share_pages(page_size)
        self.divider = Divider(
            self.coders, self.make_blocks(), isolate=self.isolate, verify=codec.plan().verify
        )
        self._queue = RequestQueue(self.queue_batches * self.batch_size)

    def make_blocks(self) -> Blocks | None:
        """Make what tells which memory the lanes share; None if they share none, or all of it."""
        return None

    def check_codec(self) -> None:
        """Make the codec ready once, unless it is never used here."""
        if not self.isolate:
            super().check_codec()

    # What a subclass says of its lanes.

    @property
    @abstractmethod
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the lanes that run now."""

    def kill(self, ring: Ring) -> None:
        """End the lane of a ring, which hangs. Threads cannot be ended: they are waited for."""

    @property
    def may_replace(self) -> bool:
        """Whether lanes that end are replaced, as far as is known."""
        return False

    @property
    def closed(self) -> bool:
        """Whether the engine is closed, or finishes its requests for that."""
        return self._closed

    @property
    def ends(self) -> bool:
        """Whether no lane will be started any more."""
        return self._closed

    def replace_soon(self) -> None:
        """Start the lanes that are missing soon: a batch needs one."""

    def tell_loss(self, what: str, *, stacklevel: int) -> None:
        """Warn that lanes are missing, once until they are back."""
        if not self._loss_told:
            self._loss_told = True
            warnings.warn(
                f"batchzip: {what}; meanwhile the caller does the work",
                WorkerWarning,
                stacklevel=stacklevel,
            )

    def tell_recovery(self) -> None:
        """Log that all lanes work again, if a loss was told: good news must not end `-W error`."""
        if self._loss_told:
            self._loss_told = False
            import logging  # noqa: PLC0415 - 5 ms that few need

            logging.getLogger("batchzip").warning("batchzip: all %s work again", self.name)

    # Batches.

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
            # An interrupt may come before the Watch guards it, and its traceback keeps the job.
            withdraw(self, job, None)
            raise

    def run(self, batch: Batch) -> None:
        """Do a batch, together with the lanes where that is faster."""
        self.execute(batch)

    def begin(self, batch: Batch, deadline: float | None) -> Watch:
        """Begin a batch that is looked after while others are done."""
        batch.has_errors = False
        job = self.divider.start(batch.pointers, self.rings, deadline_ns(deadline))
        return Watch(self, batch, job)

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page, in the calling thread unless the codec is isolated. Raise PageError."""
        if not self.isolate:
            return self.coders.compress_page(page)
        batch = CompressBatch([page], page_size=self.page_size)
        self.execute(batch)
        return bytes(batch.output(0))

    def decompress_page(self, src: Buffer) -> bytes:
        """Restore one page, in the calling thread unless the codec is isolated. Raise PageError."""
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
        """Queue a request; they are done by one thread and the lanes, and overlap."""
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
            # None can be started; or this is a signal handler, and it is being; or one of the last
            # handlers of a program that exits.
            self._do_now(request)
        elif RequestThread.is_here():
            # A callback: it would wait for room that its own thread has to make, or that another
            # engine's has to, whose callbacks may be waiting for this one.
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
        """Do a request in the calling thread, as no other can be started."""
        request.take_up()
        try:
            if self.isolate:
                self.execute(request.batch)
            else:
                self.run_inline(request.batch, request.deadline)
        except Exception as error:  # noqa: BLE001 - it is raised where the request is waited for
            request.finish(error)
        else:
            request.finish()

    def _start_dispatcher(self) -> Dispatcher | None:
        try:
            dispatcher = Dispatcher(self, self._queue)
        except LimitReached:  # no thread can be started just now: the submitter does the work
            return None
        self._end_dispatcher = weakref.finalize(self, dispatcher.abandon, _EXIT_S)
        self.at_child_exit(self._end_dispatcher, _BEFORE)
        return dispatcher

    def at_child_exit(self, end: Callable[[], object], priority: int = _AFTER) -> None:
        """See that `end` is called where a child of multiprocessing ends: without atexit."""
        if multiprocessing.parent_process() is not None:
            multiprocessing.util.Finalize(self, end, exitpriority=priority)

    def close_requests(self) -> None:
        """Finish every request; the subclass ends the lanes after that."""
        with self._dispatcher_lock:
            self._closed = True
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._end_dispatcher.detach()
