"""All exceptions of batchzip, derived from `BatchzipError`.

An error of one page in a batch is data (`batch.errors`). Only errors of a whole batch, or of a
single page that was requested by itself, are raised. Each class also derives from the built-in
exception that a caller would expect (`ValueError`, `KeyError`, `TimeoutError`, …). So callers can
catch either.
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
    """Base class of all exceptions that batchzip raises on purpose.

    They can be pickled, and so can be raised by other machines.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     try:
        ...         store.load(7)
        ...     except batchzip.BatchzipError as error:
        ...         print(type(error).__name__, error, sep=": ")
        PageNotStored: no page is stored at index 7
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with its message as the arguments.
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[BatchzipError], args: tuple[object, ...]) -> BatchzipError:
    try:
        error = kind.__new__(kind, *args)
    except TypeError:  # MemoryError.__new__ rejects subclasses
        error = BaseException.__new__(kind, *args)
    error.args = args
    return error


class BadArgument(BatchzipError, ValueError):
    """An argument is invalid in any state. The message says what would be valid.

    Examples:
        >>> import batchzip
        >>> batchzip.Engine("lz4", workers=0)
        Traceback (most recent call last):
            ...
        batchzip.errors.BadArgument: workers ...
    """


class BadBatch(BatchzipError, ValueError):
    """A batch has a wrong shape or wrong buffers, so that no page of it can be processed.

    Examples:
        >>> import batchzip
        >>> batchzip.CompressBatch(bytes(5000), page_size=4096)
        Traceback (most recent call last):
            ...
        batchzip.errors.BadBatch: ...
    """


class _UnknownName(BatchzipError, LookupError):
    """A registry has no entry of that name."""

    kind = "name"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {self.kind} {shown(name)}; known: {', '.join(sorted(known))}")


class UnknownAlgorithm(_UnknownName):
    """No codec of that name is registered. The message lists the registered ones.

    Examples:
        >>> import batchzip
        >>> batchzip.Engine("lzma")
        Traceback (most recent call last):
            ...
        batchzip.errors.UnknownAlgorithm: unknown algorithm 'lzma'; known: ...
    """

    kind = "algorithm"


class UnknownBackend(_UnknownName):
    """No backend of that name is registered. The message lists the registered ones.

    Examples:
        >>> import batchzip
        >>> batchzip.Engine("lz4", backend="gpu")
        Traceback (most recent call last):
            ...
        batchzip.errors.UnknownBackend: unknown backend 'gpu'; known: ...
    """

    kind = "backend"


class BackendUnavailable(BatchzipError, RuntimeError):
    """A registered backend cannot work here. The message says why.

    Examples:
        >>> import batchzip
        >>> batchzip.Engine("deflate", backend="threads")
        Traceback (most recent call last):
            ...
        batchzip.errors.BackendUnavailable: ...
    """


class PagingUnavailable(BatchzipError, OSError):
    """The system does not let this process handle all page faults that paged memory needs.

    The message is that of `batchzip.paged.available()`: what was tried, and what would help.

    Examples:
        >>> import batchzip
        >>> try:
        ...     memory = batchzip.PagedMemory(size=1 << 20, budget=1 << 18)
        ... except batchzip.PagingUnavailable as error:
        ...     print("use plain arrays:", error)
        ... else:
        ...     memory.close()
    """


class MissingExtra(BatchzipError, ImportError):
    """A library of an extra is not installed. The message has the command to install it.

    Examples:
        >>> import batchzip
        >>> error = batchzip.MissingExtra("batchzip.metrics", "prometheus_client", "metrics")
        >>> print(error)
        batchzip.metrics needs prometheus_client, which is not installed: pip install ...
        >>> error.extra
        'metrics'
    """

    def __init__(self, needed_by: str, module: str, extra: str) -> None:
        command = _install_command(module, extra)
        super().__init__(f"{needed_by} needs {module}, which is not installed: {command}")
        self.extra = extra
        self.command = command


def _install_command(module: str, extra: str) -> str:
    """Return the command to install a module of an extra, wherever batchzip was installed from."""
    from importlib import metadata  # noqa: PLC0415 - 4 MiB that no worker needs

    try:
        lines = metadata.requires("batchzip") or []
    except metadata.PackageNotFoundError:  # batchzip runs from its source tree
        lines = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        requirement = requirement.strip()
        name = requirement.rstrip("0123456789.,<>=!~ ").replace("-", "_")
        if name == module and f"extra == {extra!r}" in marker.replace('"', "'"):
            return f"pip install '{requirement}'"
    return f"pip install {module.replace('_', '-')}"


class ClosedError(BatchzipError, ValueError):
    """An object was used after its `close()`.

    Examples:
        >>> import batchzip
        >>> engine = batchzip.Engine("lz4")
        >>> engine.close()
        >>> engine.compress_page(bytes(4096))
        Traceback (most recent call last):
            ...
        batchzip.errors.ClosedError: ...
    """


class ForkedProcess(BatchzipError, RuntimeError):
    """An object of the parent process was used in a forked child.

    Examples:
        >>> import os
        >>> import batchzip
        >>> engine = batchzip.Engine("lz4", backend="sequential")
        >>> if (pid := os.fork()) == 0:
        ...     try:
        ...         engine.compress_page(bytes(4096))
        ...     except batchzip.ForkedProcess:
        ...         os._exit(7)
        ...     finally:
        ...         os._exit(1)
        >>> os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        7
        >>> engine.close()
    """


class PageError(BatchzipError):
    """The error of one page that was requested by itself.

    `errno` is the negative code, as in `batch.errors`.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine:
        ...     batch = batchzip.CompressBatch([bytes(4096), b"short"])
        ...     engine.compress(batch)
        >>> batch.errors.tolist()
        [0, -22]
        >>> batch.output(1)
        Traceback (most recent call last):
            ...
        batchzip.errors.PageError: page 1: Invalid argument (-22)
    """

    def __init__(self, index: int, errno: int, what: str = "page") -> None:
        try:
            reason = os.strerror(-operator.index(errno))
        except OverflowError:  # too large for any errno
            reason = "Unknown error"
        super().__init__(f"{what} {shown(index)}: {reason} ({shown(errno)})")
        self.index = index
        self.errno = errno


class LimitReached(BatchzipError, OSError):
    """The system's limit of descriptors, memory, threads, processes or file size was reached.

    It is also raised if a filter of system calls (seccomp) forbids a call that batchzip cannot do
    without. The message names the limit or the call. `errno` is the system's error. The failed call
    left nothing behind.

    Examples:
        >>> import batchzip
        >>> engine = batchzip.Engine("lz4", backend="workers", workers=1)
        >>> try:
        ...     engine.arena(1 << 40)  # 4 PiB
        ... except batchzip.LimitReached as error:
        ...     print(type(error.errno).__name__)
        int
        >>> engine.close()
    """


class EngineBusy(BatchzipError, BlockingIOError):
    """Too many requests are in progress to begin another. Nothing was begun.

    Examples:
        >>> import batchzip
        >>> error = batchzip.EngineBusy("256 requests are in progress")
        >>> isinstance(error, BlockingIOError)
        True
    """


class RequestTimeout(BatchzipError, TimeoutError):
    """The time of `Request.wait(timeout_s=…)` has passed. The request itself goes on.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("zstd", level=19) as engine:
        ...     request = engine.submit(batchzip.CompressBatch([bytes(range(256)) * 16] * 4))
        ...     try:
        ...         batch = request.wait(timeout_s=0.000001)
        ...     except batchzip.RequestTimeout:
        ...         batch = request.wait()  # the request went on
        >>> batch.errors.tolist()
        [0, 0, 0, 0]
    """


class RequestCancelled(BatchzipError):
    """The request was cancelled before it was taken up. Every page has -ECANCELED.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("zstd", level=19) as engine:
        ...     pages = [bytes(range(256)) * 16] * 64
        ...     requests = [engine.submit(batchzip.CompressBatch(pages)) for _ in range(8)]
        ...     cancelled = [request for request in requests if request.cancel()]
        ...     for request in cancelled:
        ...         try:
        ...             request.wait()
        ...         except batchzip.RequestCancelled:
        ...             assert set(request.batch.errors) == {-125}  # -ECANCELED
    """


class BadHandle(BatchzipError, ValueError):
    """A pool handle is not live: it was never allocated or has been freed. Nothing was changed.

    Examples:
        >>> import batchzip
        >>> with batchzip.Pool() as pool:
        ...     handle = pool.put(b"some bytes")
        ...     _ = pool.free(handle)
        ...     try:
        ...         pool.read(handle)
        ...     except batchzip.BadHandle as error:
        ...         print(str(error).replace(str(handle), "H"))
        handle H was never given out, or is freed
    """


class PoolFull(BatchzipError, MemoryError):
    """The pool's limit or the machine's memory does not allow the allocation.

    Nothing was allocated. `at_limit` is True if the pool's limit was the cause.

    Examples:
        >>> import os
        >>> import batchzip
        >>> with batchzip.Pool(max_bytes=64 << 10) as pool:
        ...     try:
        ...         while True:
        ...             _ = pool.put(os.urandom(4000))
        ...     except batchzip.PoolFull as error:
        ...         print(error.at_limit, pool.held_bytes <= 64 << 10)
        True True
    """

    def __init__(self, message: str, *, at_limit: bool = False) -> None:
        super().__init__(message)
        self.at_limit = at_limit


class RegionFull(BatchzipError, MemoryError):
    """A paged memory has no room for an array. Nothing was changed.

    `wanted_bytes` is the array's size in whole pages. `free_bytes` is the size of all free pages.

    Examples:
        >>> import batchzip
        >>> with batchzip.PagedMemory(size=1 << 20, budget=1 << 18) as memory:
        ...     memory.array(2 << 20, "u1")
        Traceback (most recent call last):
            ...
        batchzip.errors.RegionFull: an array that takes 2,097,152 bytes does not fit: ...
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
    """The store rejected a folio. No page of it is stored, and its indices hold nothing.

    `reason` is the name of the counter of the cause. If compression failed, `errors` has a negative
    errno or 0 for each page of the folio. Otherwise it is None. While the pool recovers from its
    limit, the reason is pool_limit_hit, although the counter counts only calls that found the pool
    at its limit.

    Examples:
        >>> import os
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine:
        ...     with batchzip.SwapStore(engine, max_pool_bytes=64 << 10) as store:
        ...         try:
        ...             for index in range(64):
        ...                 store.store(index, [os.urandom(4096)])
        ...         except batchzip.StoreRejected as error:
        ...             print(error.reason)
        pool_limit_hit
    """

    def __init__(self, reason: str, message: str, errors: Sequence[int] | None = None) -> None:
        super().__init__(f"{message} ({reason})")
        self.reason = reason
        self.errors = errors


class PageNotStored(BatchzipError, KeyError):
    """No page is stored at that index.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.load(7)
        Traceback (most recent call last):
            ...
        batchzip.errors.PageNotStored: no page is stored at index 7
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index

    def __str__(self) -> str:
        return f"no page is stored at index {shown(self.index)}"


class CorruptPage(BatchzipError):
    r"""The stored bytes of an index are damaged. All other indices stay readable.

    Examples:
        >>> import batchzip
        >>> def load_or_make(store, index, make):
        ...     try:
        ...         return store.load(index)
        ...     except (batchzip.PageNotStored, batchzip.CorruptPage):
        ...         store.store(index, [page := make(index)])
        ...         return page
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     load_or_make(store, 7, lambda index: bytes([index]) * 4096)[:2]
        b'\x07\x07'
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"the stored bytes of page {shown(index)} are damaged")
        self.index = index


class CorruptValue(CorruptPage):
    """The stored bytes of a mapping's value are damaged. All other keys stay readable.

    Examples:
        >>> import batchzip
        >>> error = batchzip.CorruptValue("user:7")
        >>> print(error)
        the stored bytes of the value of key 'user:7' are damaged
        >>> error.key
        'user:7'
    """

    def __init__(self, key: object) -> None:
        BatchzipError.__init__(
            self, f"the stored bytes of the value of key {shown(key)} are damaged"
        )
        self.key = key
        self.index = -1


class UnreadableValue(BatchzipError, ValueError):
    """A mapping's serializer cannot restore a value from its bytes.

    Examples:
        >>> import batchzip
        >>> class Upper:
        ...     '''Keeps text that is upper case.'''
        ...
        ...     def dumps(self, text):
        ...         return text.encode()
        ...
        ...     def loads(self, data):
        ...         if not data.isupper():
        ...             raise batchzip.UnreadableValue(f"{data!r} is not upper case")
        ...         return data.decode()
        >>> with batchzip.CompressedMapping(serializer=Upper()) as mapping:
        ...     mapping["a"] = "lower"
        ...     try:
        ...         mapping["a"]
        ...     except batchzip.UnreadableValue as error:
        ...         print(error, *error.__notes__, sep="; ")
        b'lower' is not upper case; This is the value of key 'a'.
    """


class ClusterLost(BatchzipError, ConnectionError):
    """The Dask cluster is lost: its scheduler, every worker, or the connection to it.

    Examples:
        >>> import batchzip
        >>> def page_of(store, index, default):
        ...     try:
        ...         return store.load(index)
        ...     except batchzip.PagesLost as error:  # some pages went with a worker
        ...         print("lost:", error.indices)
        ...         store.recover()
        ...         return default
        ...     except batchzip.ClusterLost:  # the scheduler, or every worker
        ...         return default
        >>> issubclass(batchzip.ClusterLost, ConnectionError)
        True
    """


class PagesLost(ClusterLost):
    """Pages of a sharded store were in the memory of a worker that has ended.

    `indices` has the indices of all pages lost with it, as ranges. They are exact for stripes in
    which only this client stored pages, and whole stripes of 512 otherwise. `worker` is the
    worker's address, or the scheduler's if that has ended.

    Examples:
        >>> import batchzip
        >>> error = batchzip.PagesLost("tcp://node7:4000", "it left", [range(512), range(900, 901)])
        >>> print(error)
        worker tcp://node7:4000 is gone (it left), and with it 513 pages: 0…511, 900
        >>> sum(len(lost) for lost in error.indices)
        513
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
    """A key or value has a type that a mapping cannot keep. Nothing was changed.

    Examples:
        >>> import batchzip
        >>> with batchzip.CompressedMapping(serializer="json") as mapping:
        ...     mapping["a"] = {1, 2, 3}
        Traceback (most recent call last):
            ...
        batchzip.errors.NotStorable: ...
    """


class UnreadableProcess(BatchzipError, OSError):
    """The memory of a process cannot be read: the process has ended, or permission is missing.

    Examples:
        >>> import batchzip
        >>> issubclass(batchzip.UnreadableProcess, OSError)  # `batchzip swap --pid 1`, for instance
        True
    """


class WorkerWarning(RuntimeWarning):
    """Lanes could not be started or keep dying. The caller does the work instead.

    Once all lanes work again, the logger `batchzip` reports it, at level WARNING, so that it
    appears where this warning did. The next loss is warned of again.

    Examples:
        >>> import warnings
        >>> import batchzip
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", batchzip.WorkerWarning)  # lanes are required here
        ...     with batchzip.Engine("lz4", backend="threads", workers=1) as engine:
        ...         engine.wait_ready()
        True
    """
