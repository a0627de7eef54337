"""The contract of a backend: where an engine's work is done.

Kernel counterpart: the driver behind a crypto_acomp transform (software, deflate-iaa). A backend is
given one codec when its engine opens it, and then batches. It must

* fill `dlens`, `errors` and outputs of every page of a batch (`Batch.run_share`, or `Batch.inputs`
  and `Batch.accept_packed` where the work is done elsewhere), whatever happens to any other page, and
  raise only where nothing can be said about the pages;
* be callable from several threads at once;
* leave nothing behind after `close()`: process, thread, descriptor, memory.

`batchzip.testing` has the suite that holds a backend to this. Adding one is one package and one
entry point in the group `batchzip.backends`; batchzip itself imports none by name.
"""

from __future__ import annotations

import errno
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from batchzip.codecs.context import COMPRESS, DECOMPRESS, Context
from batchzip.cpus import usable_cpus
from batchzip.errors import BackendUnavailable, BadArgument, UnknownBackend
from batchzip.plugins import plugin_entry_points
from batchzip.statistics import Statistics, Tallies, Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.batch import Batch
    from batchzip.buffers import Bytes
    from batchzip.codecs import Codec
    from batchzip.request import Request
    from batchzip.statistics import WorkerStatistics

_GROUP = "batchzip.backends"

_LOOK_BYTES = 256 << 10
"""Bytes of pages done between two looks at a deadline."""


class Backend(ABC):
    """Does an engine's work. Made by name or by hand, then opened once, by one engine.

    Made by name, it is called without arguments, or with `workers=` where the engine was given it.
    """

    name: str
    """The backend's name in the registry."""

    batch_size: int = 1
    """Pages it takes in one go, as crypto_acomp_batch_size(); 1: it goes page by page."""

    asynchronous: bool = False
    """Whether `submit` returns before the batch is done; else asyncio has it called in a thread."""

    page_size: int
    codec: Codec | None = None

    def open(self, codec: Codec, page_size: int) -> None:
        """Bind to one codec and page size. A subclass extends this to get its resources."""
        if self.codec is not None:
            raise BadArgument("this backend already serves an engine: make one for each engine")
        self.codec = codec
        self.page_size = page_size
        self._contexts = threading.local()
        self._tallies = Tallies()
        self.context()  # a codec that cannot be made here fails here

    def context(self) -> Context:
        """Codec context of the calling thread: contexts are never shared between threads."""
        try:
            return self._contexts.context  # type: ignore[no-any-return] # thread-locals are Any
        except AttributeError:
            assert self.codec is not None  # noqa: S101 - open() came first
            context = self._contexts.context = Context(self.codec, self.page_size)
            self._tallies.enrol(context)
            return context

    def array(self, rows: int, width: int) -> Bytes:
        """Make a (rows, width) array of zeros where this backend likes batches to lie.

        Raises OSError if there is no memory.
        """
        try:
            return np.zeros((rows, width), np.uint8)
        except (MemoryError, ValueError) as error:  # ValueError: more than there are addresses
            raise OSError(errno.ENOMEM, str(error)) from None

    def run_inline(self, batch: Batch, deadline: float | None = None) -> None:
        """Do a batch in the calling thread, page by page: the direct path.

        What is not done at `deadline`, on the monotonic clock, gets -ETIMEDOUT.
        """
        if deadline is None:
            batch.run_share(self.context(), range(len(batch)))
            return
        piece = max(1, _LOOK_BYTES // self.page_size)
        for start in range(0, len(batch), piece):
            if time.monotonic() >= deadline:
                batch.fail(range(start, len(batch)), -errno.ETIMEDOUT)
                return
            end = min(start + piece, len(batch))
            batch.run_share(self.context(), range(start, end))

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Do a batch of more than one page and return when it is done."""

    def execute(self, batch: Batch) -> None:
        """Do a batch: the unified path of zswap's batched compression.

        Page by page in the calling thread where the backend takes one page in one go, or the batch
        is one page; else as a batch.
        """
        if self.batch_size == 1 or len(batch) == 1:
            self.run_inline(batch)
        else:
            self.run(batch)
        self.count(batch)

    def count(self, batch: Batch) -> None:
        """Count a batch that is done; `statistics` has it then."""
        self.context().tallies[batch.operation].batches += 1
        if batch.has_errors:
            self._tallies.count_errors(batch.errors[batch.errors != 0].tolist())

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
            self.count(request.batch)
        except Exception as error:  # noqa: BLE001 - it is raised where the request is waited for
            request.finish(error)
        else:
            request.finish()

    def statistics(self) -> Statistics:
        """Add up what was done."""
        return self._statistics([Tally(), Tally()])

    def _statistics(
        self,
        elsewhere: Sequence[Tally],
        *,
        restarts: int = 0,
        workers: tuple[WorkerStatistics, ...] = (),
    ) -> Statistics:
        """Add what was done `elsewhere`, a tally for each operation, to what was done here."""
        return Statistics(
            compress=self._tallies.total(COMPRESS, elsewhere[COMPRESS]),
            decompress=self._tallies.total(DECOMPRESS, elsewhere[DECOMPRESS]),
            errors=self._tallies.errors,
            restarts=restarts,
            workers=workers,
        )

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
    """Names of the registered backends, sorted."""
    return sorted(plugin_entry_points(_GROUP))


def make_backend(name: str, *, workers: int | None = None) -> Backend:
    """Make the backend `name`; "auto" is `workers` where there is more than one CPU to use.

    Raises UnknownBackend naming those there are; BackendUnavailable, with the reason, if it cannot
    work here (which "auto" answers with `sequential`).
    """
    if name == "auto":
        return _automatic(workers)
    points = plugin_entry_points(_GROUP)
    if name not in points:
        raise UnknownBackend(name, [*points, "auto"])
    backend_class = points[name].load()
    backend: Backend = backend_class() if workers is None else backend_class(workers=workers)
    return backend


def _automatic(workers: int | None) -> Backend:
    if workers is None and usable_cpus() == 1:
        return make_backend("sequential")
    try:
        return make_backend("workers", workers=workers)
    except (BackendUnavailable, UnknownBackend):
        return make_backend("sequential")
