"""One tree of exceptions, rooted at `BatchzipError`.

An error of a page is data (`batch.errors`); what is raised is what concerns a whole batch, or a
single page that was asked for by itself. Each class also derives from the built-in a caller
would expect (`ValueError`, `KeyError`, `TimeoutError`, …), so that neither habit needs the other.
"""

from __future__ import annotations

import operator
import os

from batchzip.wording import shown

TYPE_CHECKING = False  # from typing, it would cost each worker 1.6 MiB
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class BatchzipError(Exception):
    """Root of everything batchzip raises on purpose. They pickle, and so come from other machines."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By default a class would be called with its own message.
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[BatchzipError], args: tuple[object, ...]) -> BatchzipError:
    try:
        error = kind.__new__(kind, *args)
    except TypeError:  # MemoryError's is for none but itself
        error = BaseException.__new__(kind, *args)
    error.args = args
    return error


class BadArgument(BatchzipError, ValueError):
    """A parameter that cannot be right whatever the state: the message says what would be."""


class BadBatch(BatchzipError, ValueError):
    """A batch about whose pages nothing can be said: wrong shape, wrong buffers."""


class _UnknownName(BatchzipError, LookupError):
    """A name looked up in a registry that does not hold it."""

    kind = "name"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"unknown {self.kind} {shown(name)}; there are: {', '.join(sorted(known))}"
        )


class UnknownAlgorithm(_UnknownName):
    """No codec of that name is registered; the message names those that are."""

    kind = "algorithm"


class UnknownBackend(_UnknownName):
    """No backend of that name is registered; the message names those that are."""

    kind = "backend"


class BackendUnavailable(BatchzipError, RuntimeError):
    """A registered backend that cannot work here; the message says why."""


class PagingUnavailable(BatchzipError, OSError):
    """This system lets the process handle no page faults, or not all that paged memory needs.

    The message is that of `batchzip.paged.available()`: what was tried, and what would help.
    """


class MissingExtra(BatchzipError, ImportError):
    """A library that an extra brings is not installed; the message has the command to install it."""

    def __init__(self, needed_by: str, module: str, extra: str) -> None:
        command = _install_command(module, extra)
        super().__init__(f"{needed_by} needs {module}, which is not installed: {command}")
        self.extra = extra
        self.command = command


def _install_command(module: str, extra: str) -> str:
    """Return what installs a module of an extra, wherever batchzip itself was installed from."""
    from importlib import metadata  # noqa: PLC0415 - 4 MiB that no worker needs

    try:
        lines = metadata.requires("batchzip") or []
    except metadata.PackageNotFoundError:  # it is run from where it lies
        lines = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        requirement = requirement.strip()
        name = requirement.rstrip("0123456789.,<>=!~ ").replace("-", "_")
        if name == module and f"extra == {extra!r}" in marker.replace('"', "'"):
            return f"pip install '{requirement}'"
    return f"pip install {module.replace('_', '-')}"


class ClosedError(BatchzipError, ValueError):
    """Use after `close()`."""


class ForkedProcess(BatchzipError, RuntimeError):
    """Use, in a forked child, of an object that belongs to the parent process."""


class PageError(BatchzipError):
    """One page's error, raised when that page is asked for by itself.

    `errno` is the negative code, as it stands in `batch.errors`.
    """

    def __init__(self, index: int, errno: int, what: str = "page") -> None:
        try:
            reason = os.strerror(-operator.index(errno))
        except OverflowError:  # no system has such a number
            reason = "Unknown error"
        super().__init__(f"{what} {shown(index)}: {reason} ({shown(errno)})")
        self.index = index
        self.errno = errno


class LimitReached(BatchzipError, OSError):
    """A limit of the system: no more descriptors, memory, threads, processes or bytes of a file.

    The message names the limit; `errno` says what the system said. What failed has left nothing behind.
    """


class EngineBusy(BatchzipError, BlockingIOError):
    """Too many requests are under way to begin another; nothing was begun."""


class RequestTimeout(BatchzipError, TimeoutError):
    """`Request.wait(timeout_s=…)` ran out; the request itself goes on."""


class RequestCancelled(BatchzipError):
    """The request was cancelled before it was taken up; every page has -ECANCELED."""


class BadHandle(BatchzipError, ValueError):
    """A pool handle that was never given out or was freed since; nothing was changed."""


class PoolFull(BatchzipError, MemoryError):
    """The pool's byte limit, or the machine's memory, does not allow the allocation.

    Nothing was allocated. `at_limit` tells the first from the second.
    """

    def __init__(self, message: str, *, at_limit: bool = False) -> None:
        super().__init__(message)
        self.at_limit = at_limit


class RegionFull(BatchzipError, MemoryError):
    """A paged memory has no room for an array; nothing was changed.

    `wanted_bytes` is what it takes in whole pages; `free_bytes` are those of all pages that are free.
    """

    def __init__(self, wanted_bytes: int, free_bytes: int, largest_bytes: int) -> None:
        in_one_piece = "" if largest_bytes == free_bytes else f", {largest_bytes:,} in one piece"
        super().__init__(
            f"an array that takes {wanted_bytes:,} bytes does not fit: "
            f"{free_bytes:,} bytes are free{in_one_piece}"
        )
        self.wanted_bytes = wanted_bytes
        self.free_bytes = free_bytes


class StoreRejected(BatchzipError):
    """A folio the store did not keep; no page of it is stored, nor what its indices held before.

    `reason` is the name of the counter of its cause; `errors` has a negative errno or 0 for each
    page of the folio where compression failed, else it is None. (A store refused while the pool
    recovers from its limit has the reason pool_limit_hit, which was counted when it was hit.)
    """

    def __init__(self, reason: str, message: str, errors: Sequence[int] | None = None) -> None:
        super().__init__(f"{message} ({reason})")
        self.reason = reason
        self.errors = errors


class PageNotStored(BatchzipError, KeyError):
    """No page is stored at that index."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index

    def __str__(self) -> str:
        return f"no page is stored at index {shown(self.index)}"


class CorruptPage(BatchzipError):
    """The stored bytes of that index are damaged; every other index stays readable."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the stored bytes of page {shown(index)} are damaged")
        self.index = index


class CorruptValue(CorruptPage):
    """The stored bytes of a mapping's value are damaged; those of every other key stay readable."""

    def __init__(self, key: object) -> None:
        BatchzipError.__init__(
            self, f"the stored bytes of the value of key {shown(key)} are damaged"
        )
        self.key = key
        self.index = -1


class UnreadableValue(BatchzipError, ValueError):
    """Bytes that are not what a mapping's serializer makes of a value."""


class ClusterLost(BatchzipError, ConnectionError):
    """The Dask cluster, or the connection to it, is gone: the scheduler, or every worker."""


class PagesLost(ClusterLost):
    """Pages of a sharded store were in the memory of a worker that is gone.

    `indices` has all that are lost with it, as ranges: exactly those that this client stored; where other
    clients stored, too, the whole stripe of 512. `worker` is its address, or the scheduler's if that is gone.
    """

    _SHOWN = 8

    def __init__(self, worker: str, reason: str, indices: Iterable[range]) -> None:
        self.worker = worker
        self.indices = tuple(indices)
        shown = ", ".join(
            str(part.start) if len(part) == 1 else f"{part.start}…{part.stop - 1}"
            for part in self.indices[: self._SHOWN]
        )
        more = len(self.indices) - self._SHOWN
        super().__init__(
            f"worker {worker} is gone ({reason}), and with it {sum(map(len, self.indices))} pages"
            + (f": {shown}" if shown else "")
            + (f" and {more} more ranges" if more > 0 else "")
        )


class NotStorable(BatchzipError, TypeError):
    """A key or value of a kind that a mapping does not keep; nothing was changed."""


class UnreadableProcess(BatchzipError, OSError):
    """The memory of a process cannot be read: it is gone, or permission is missing."""


class WorkerWarning(RuntimeWarning):
    """Lanes could not be started or keep dying; the caller does the work instead.

    Once all of them work again, the logger `batchzip` says so (at level WARNING, so that it shows where
    this did), and the next loss is warned of anew.
    """
