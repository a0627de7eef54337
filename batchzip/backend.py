"""The contract of a backend: where an engine's work is done.

Kernel counterpart: the driver behind a crypto_acomp transform (software, deflate-iaa). A backend is
given one codec when its engine opens it, and then batches. It must

* fill `dlens`, `errors` and outputs of every page of a batch (`run_inline`, or `Batch.inputs` and
  `Batch.accept` where the work is done elsewhere), whatever happens to any other page, and raise only
  where nothing can be said about the pages;
* be callable from several threads at once;
* leave nothing behind after `close()`: process, thread, descriptor, memory.

`batchzip.testing` has the suite that holds a backend to this. Adding one is one package and one
entry point in the group `batchzip.backends`; batchzip itself imports none by name.
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
    """Does an engine's work. Made by name or by hand, then opened once, by one engine.

    Made by name, it is called without arguments, or with `workers=` and `isolate=` where the engine was
    given them.

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
    """Pages that it takes in one go, as crypto_acomp_batch_size(); 1: it goes page by page."""

    asynchronous: bool = False
    """Whether `submit` returns before the batch is done; otherwise asyncio calls it in a thread."""

    page_size: int
    isolate: bool = False
    """Whether no page is done in this process."""
    codec: Codec | None = None
    coders: Coders
    """What compresses in the owner's process, and counts what it did."""

    def open(self, codec: Codec, page_size: int) -> None:
        """Bind to one codec and page size. A subclass extends this to get its resources.

        Raise whatever the codec raises where it cannot be made ready here.
        """
        if self.codec is not None:
            raise BadArgument("this backend already serves an engine: make one for each engine")
        self.codec = codec
        self.page_size = page_size
        self.coders = Coders(codec, page_size)
        self.check_codec()

    def check_codec(self) -> None:
        """Make the codec ready once, so that one that cannot be made ready fails early."""
        _ = self.coders.native

    def array(self, rows: int, width: int) -> Bytes:
        """Make a (rows, width) array of zeros where this backend likes batches to lie.

        Raises LimitReached if there is no memory.
        """
        try:
            return np.zeros((rows, width), np.uint8)
        except (MemoryError, ValueError):  # ValueError: more than there are addresses
            raise named(OSError(errno.ENOMEM, ""), f"{rows} × {width} bytes") from None

    def run_inline(self, batch: Batch, deadline: float | None = None) -> None:
        """Do a batch in the calling thread, page by page, and count it.

        What is not done at `deadline`, on the monotonic clock, gets -ETIMEDOUT.
        """
        batch.has_errors = batch.pointers.run(self.coders, deadline_ns(deadline)) > 0

    def works_alone(self, count: int) -> bool:
        """Return whether a batch of `count` pages is done by the calling thread alone."""
        return not self.isolate and (self.batch_size == 1 or count == 1)

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Do a batch of more than one page, count it, and return when it is done."""

    def execute(self, batch: Batch) -> None:
        """Do a batch: the unified path of zswap's batched compression.

        Page by page in the calling thread where the backend takes one page in one go, or the batch
        is one page; otherwise as a batch.
        """
        if self.batch_size == 1 or len(batch) == 1:
            self.run_inline(batch)
        else:
            self.run(batch)

    def count_elsewhere(self, batch: Batch, *, divided: bool) -> None:
        """Count a batch that was not done by `run_inline`; its pages are counted where they were done."""
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
        timeout_s: float | None = None,  # noqa: ARG002 - nothing is ever full here
        block: bool = True,  # noqa: ARG002
    ) -> None:
        """Begin a request; `take_up()` it when its batch is worked on, `finish()` it after.

        Where too many are under way it waits for `timeout_s` seconds (None: as long as it takes), or
        not at all without `block`, and raises EngineBusy then.

        A backend without anything to do the work besides the caller does it here, as a synchronous
        driver's crypto_acomp_compress() returns 0.
        """
        request.take_up()
        try:
            self.run_inline(request.batch, request.deadline)
        except Exception as error:  # noqa: BLE001 - it is raised where the request is waited for
            request.finish(error)
        else:
            request.finish()

    def statistics(self) -> Statistics:
        """Add up what was done."""
        return self.add_statistics(({}, {}))

    def add_statistics(
        self,
        elsewhere: tuple[Mapping[str, int], Mapping[str, int]],
        *,
        restarts: int = 0,
        workers: tuple[WorkerStatistics, ...] = (),
    ) -> Statistics:
        """Add what was done `elsewhere`, "pages", "bytes_in" and "bytes_out" by operation."""
        compress, decompress = (
            _add_up(self.coders.totals(operation), elsewhere[operation])
            for operation in _OPERATIONS
        )
        return Statistics(compress, decompress, self.coders.errors(), restarts, workers)

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the lanes that run now; none where the caller does everything."""
        return ()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers besides the caller, if there are any."""
        return ()

    def wait_ready(self, timeout_s: float) -> bool:  # noqa: ARG002 - for backends that start up
        """Wait until everything that helps the caller has started; whether it has."""
        return True

    def close(self) -> None:  # noqa: B027 - most backends have nothing to release
        """Finish what is under way and release everything; idempotent, never in a forked child."""


def backends() -> list[str]:
    """Names of the registered backends, sorted.

    Examples:
        >>> import batchzip
        >>> batchzip.backends()
        ['dask', 'sequential', 'threads', 'workers']
    """
    return sorted(plugin_entry_points(_GROUP))


def make_backend(name: str, *, workers: int | None = None, isolate: bool = False) -> Backend:
    """Make the backend `name`.

    Raise UnknownBackend naming those there are; BackendUnavailable, with the reason, if it cannot
    work here.
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
    """Make the backend that suits a codec: "auto".

    With more than one CPU to use: `threads` if the codec is native, `workers` if it is Python, as
    processes are what runs Python on several cores. Otherwise, and where that is unavailable,
    `sequential`.
    """
    if workers is None and usable_cpus() == 1:
        return make_backend("sequential")
    try:
        return make_backend("threads" if is_native(codec) else "workers", workers=workers)
    except (BackendUnavailable, UnknownBackend):
        return make_backend("sequential")


def is_native(codec: Codec) -> bool:
    """Return whether a codec runs without the interpreter here."""
    plan = codec.plan()
    return plan.native is not None and is_available(plan.native)


def deadline_ns(deadline: float | None) -> int:
    """Return a deadline on the monotonic clock in nanoseconds, as the core takes it; −1: never."""
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
