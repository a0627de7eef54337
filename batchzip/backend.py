"""The contract of a backend: where an engine's work is done.

Kernel counterpart: the driver behind a crypto_acomp transform (software, deflate-iaa). The engine
opens a backend with one codec, and then gives it batches. A backend must

* fill `dlens`, `errors` and outputs of every page of a batch, whatever happens to any other page
  (with `run_inline`, or with `Batch.inputs` and `Batch.accept` if the work is done elsewhere), and
  raise only errors that concern no single page;
* be callable from several threads at once;
* leave nothing behind after `close()`: no process, thread, descriptor or memory.

`batchzip.testing` has a test suite for this contract. A new backend is one package with one entry
point in the group `batchzip.backends`. batchzip itself imports no backend by name.
"""

from __future__ import annotations

import errno
import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments.checks import NEVER_S
from batchzip.core.coder import Coders, is_available
from batchzip.errors import BackendUnavailable, BadArgument, UnknownBackend
from batchzip.plugins import plugin_entry_points
from batchzip.statistics import OperationStatistics, Statistics
from batchzip.system.cpus import usable_cpus
from batchzip.system.limits import named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchzip.arguments.buffers import Buffer, Bytes
    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.core.ring import Ring
    from batchzip.request import Request
    from batchzip.statistics import WorkerStatistics

_GROUP = "batchzip.backends"

_OPERATIONS = 0, 1


class Backend(ABC):
    """Does the work of one engine, which opens it once.

    An engine that is given the backend's name calls the class without arguments, or with the
    engine's own `workers=` and `isolate=`. The class may also be called by the user.

    Examples:
        >>> import batchzip
        >>> class Here(batchzip.Backend):
        ...     '''Everything in the calling thread.'''
        ...
        ...     name = "here"
        ...
        ...     def run(self, batch):
        ...         self.run_inline(batch)
        >>> with batchzip.Engine("lz4", backend=Here()) as engine:
        ...     engine.compress(batch := batchzip.CompressBatch([bytes(4096)] * 3))
        >>> batch.errors.tolist()
        [0, 0, 0]
    """

    name: str
    """The backend's name in the registry."""

    batch_size: int = 1
    """Number of pages that it takes at a time, as crypto_acomp_batch_size(); 1: page by page."""

    asynchronous: bool = False
    """Whether `submit` returns before the batch is done. If not, asyncio calls it in a thread."""

    page_size: int
    isolate: bool = False
    """Whether this process never runs the codec."""
    is_local: bool = False
    """Whether only threads of this process run the codec. A mapping then divides large values."""
    codec: Codec | None = None
    coders: Coders
    """Compress and decompress in the owner's process, and count."""

    def open(self, codec: Codec, page_size: int) -> None:
        """Bind to one codec and page size. A subclass extends this to acquire its resources.

        Raise any error of the codec if it cannot work here.
        """
        if self.codec is not None:
            raise BadArgument("this backend already serves an engine: create one for each engine")
        self.codec = codec
        self.page_size = page_size
        self.coders = Coders(codec, page_size)
        self.check_codec()

    def check_codec(self) -> None:
        """Prepare the codec once, so that one that cannot work fails early."""
        _ = self.coders.native

    def array(self, rows: int, width: int) -> Bytes:
        """Return a (rows, width) array of zeros in the memory that suits this backend best.

        Raise LimitReached if there is no memory.
        """
        try:
            return np.zeros((rows, width), np.uint8)
        except (MemoryError, ValueError):  # ValueError: larger than the address space
            raise named(OSError(errno.ENOMEM, ""), f"{rows} × {width} bytes") from None

    def run_inline(self, batch: Batch, deadline: float | None = None) -> None:
        """Do a batch in the calling thread, page by page, and count it.

        Pages that are not done at `deadline`, on the monotonic clock, get -ETIMEDOUT.
        """
        batch.has_errors = batch.pointers.run(self.coders, deadline_ns(deadline)) > 0

    def works_alone(self, count: int) -> bool:
        """Return whether the calling thread alone does a batch of `count` pages."""
        return not self.isolate and (self.batch_size == 1 or count == 1)

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Do a batch of more than one page, count it, and return when it is done."""

    def execute(self, batch: Batch) -> None:
        """Do a batch: the unified path of zswap's batched compression.

        It goes page by page in the calling thread if the backend takes one page at a time, or if
        the batch has one page. Otherwise `run` does the whole batch.
        """
        if self.batch_size == 1 or len(batch) == 1:
            self.run_inline(batch)
        else:
            self.run(batch)

    def count_elsewhere(self, batch: Batch, *, divided: bool) -> None:
        """Count a batch that `run_inline` did not do; its pages count where they were done."""
        self.coders.add_batch(batch.operation, divided=divided)
        if batch.has_errors:
            self.coders.add_errors(batch.errors[batch.errors != 0].tolist())

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page in the calling thread. Raise PageError."""
        return self.coders.compress_page(page)

    def decompress_page(self, src: Buffer) -> bytes:
        """Restore one page in the calling thread. Raise PageError."""
        return self.coders.decompress_page(src)

    def submit(
        self,
        request: Request[Batch],
        *,
        timeout_s: float | None = None,  # noqa: ARG002 - this backend has no queue to wait for
        block: bool = True,  # noqa: ARG002
    ) -> None:
        """Begin a request: `take_up()` it before working on its batch, then `finish()` it.

        If too many requests are in progress, wait for `timeout_s` seconds (None: without limit), or
        not at all without `block`. Then raise EngineBusy.

        A backend in which only the caller works does the request here, as a synchronous driver's
        crypto_acomp_compress() returns 0.
        """
        request.take_up()
        try:
            self.run_inline(request.batch, request.deadline)
        except Exception as error:  # noqa: BLE001 - `wait` raises it
            request.finish(error)
        else:
            request.finish()

    def statistics(self) -> Statistics:
        """Return the sum of all tallies."""
        return self.add_statistics(({}, {}))

    def add_statistics(
        self,
        elsewhere: tuple[Mapping[str, int], Mapping[str, int]],
        *,
        restarts: int = 0,
        workers: tuple[WorkerStatistics, ...] = (),
    ) -> Statistics:
        """Return statistics that include work done `elsewhere`, outside `coders`.

        `elsewhere` has "pages", "bytes_in" and "bytes_out" per operation.
        """
        compress, decompress = (
            _add_up(self.coders.totals(operation), elsewhere[operation])
            for operation in _OPERATIONS
        )
        return Statistics(compress, decompress, self.coders.errors(), restarts, workers)

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the running lanes; none if the caller does everything."""
        return ()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process IDs of the workers, if there are any."""
        return ()

    def wait_ready(self, timeout_s: float) -> bool:  # noqa: ARG002 - for backends that start up
        """Wait until all lanes are ready. Return whether they are."""
        return True

    def close(self) -> None:  # noqa: B027 - most backends have nothing to release
        """Finish all requests and release everything. Idempotent; not called in a forked child."""


def backends() -> list[str]:
    """Return the names of the registered backends, sorted.

    Examples:
        >>> import batchzip
        >>> batchzip.backends()
        ['dask', 'sequential', 'threads', 'workers']
    """
    return sorted(plugin_entry_points(_GROUP))


def make_backend(name: str, *, workers: int | None = None, isolate: bool = False) -> Backend:
    """Return a new backend by its name.

    Raise UnknownBackend, which lists the known names, or BackendUnavailable, with the reason, if it
    cannot work here.
    """
    points = plugin_entry_points(_GROUP)
    if not isinstance(name, str) or name not in points:
        raise UnknownBackend(name, [*points, "auto"])
    backend_class = points[name].load()
    options: dict[str, object] = {} if workers is None else {"workers": workers}
    if isolate:
        if "isolate" not in inspect.signature(backend_class).parameters:
            raise BadArgument(
                f"{name} runs the codec in this process: isolate=True needs 'workers'"
            )
        options["isolate"] = True
    backend: Backend = backend_class(**options)
    return backend


def choose_backend(codec: Codec, *, workers: int | None = None) -> Backend:
    """Return a new backend that suits a codec: "auto".

    With more than one usable CPU: `threads` if the codec is native, and `workers` if it is Python,
    because only processes run Python on several cores. Otherwise, or if that backend is
    unavailable: `sequential`.
    """
    if workers is None and usable_cpus() == 1:
        return make_backend("sequential")
    try:
        return make_backend("threads" if is_native(codec) else "workers", workers=workers)
    except (BackendUnavailable, UnknownBackend):
        return make_backend("sequential")


def is_native(codec: Codec) -> bool:
    """Return whether a codec is a C function that runs without the GIL here."""
    plan = codec.plan()
    return plan.native is not None and is_available(plan.native)


def deadline_ns(deadline: float | None) -> int:
    """Return a deadline on the monotonic clock in nanoseconds for the core; −1: no deadline."""
    if deadline is None or deadline >= NEVER_S:
        return -1
    return max(0, int(deadline * 1e9))


def _add_up(here: Mapping[str, int], elsewhere: Mapping[str, int]) -> OperationStatistics:
    return OperationStatistics(
        batches=here["batches"],
        divided=here["divided"],
        pages=here["pages"] + elsewhere.get("pages", 0),
        inline_pages=here["pages"],
        bytes_in=here["bytes_in"] + elsewhere.get("bytes_in", 0),
        bytes_out=here["bytes_out"] + elsewhere.get("bytes_out", 0),
        waits=here["waits"],
        wait_s=here["wait_ns"] * 1e-9,
        fallbacks=here["fallbacks"],
    )
