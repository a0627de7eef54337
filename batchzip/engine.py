"""Engine: one algorithm with its parameters on one backend.

Kernel counterpart: a crypto_acomp transform. The engine checks arguments, and the backend does the
work (`Backend.execute` is the unified path of zswap's batched compression). The engine takes no
lock. A coder has one user at a time, and a backend locks at most once per share. The kernel patch
regressed because of a lock per page.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from functools import partial
from typing import TYPE_CHECKING, overload

from batchzip.arguments.buffers import as_view, check_page_size
from batchzip.arguments.checks import as_integer, as_seconds
from batchzip.asynchronous import CallThreads, Turns
from batchzip.backend import Backend, choose_backend, make_backend
from batchzip.batch import Batch, CompressBatch, DecompressBatch
from batchzip.codecs import Codec, make_codec
from batchzip.codecs.shuffled import Shuffled, as_elements
from batchzip.codecs.verified import Verified
from batchzip.errors import BadArgument, BadBatch, ClosedError
from batchzip.request import AnyBatch, Request
from batchzip.system.cpus import MOST_WORKERS
from batchzip.system.lifetime import Owned

if TYPE_CHECKING:
    from typing import Literal, SupportsIndex, Unpack

    from batchzip.arguments.buffers import Buffer, Bytes
    from batchzip.options import EngineOptions, LevelOptions, Lz4Options, ZstdOptions
    from batchzip.statistics import Statistics


class Engine(Owned):
    """Compresses and decompresses batches of pages.

    `algorithm`   a name from `batchzip.algorithms()`, or a codec instance.
    `backend`     "auto", a name from `batchzip.backends()`, or a backend instance, which the engine
                  then owns and closes.
    `workers`     number of lanes besides the caller: threads or processes. Default: usable CPUs −
    1,
                  1 to 15. The sequential backend has none and ignores this.
    `verify`      restore and compare each page where it was compressed, before it counts as done
                  (IAA's verify_compress). A page that differs gets -EIO. The caller gets the very
                  bytes that were verified; in an `arena`, workers could still change them.
    `isolate`     never run the codec in this process. Workers do all pages. Pages that they cannot
    do
                  fail with -EOWNERDEAD. For codecs that may crash; needs the workers backend.
    `shuffle`     2, 4 or 8: pages are arrays of elements of that many bytes. The first bytes of all
                  elements are put together before compression, then the second bytes, and so on.
                  Arrays of numbers then compress better, with lz4 the most; text does not.
                  "f2", "f4" or "f8": pages are arrays of floating-point numbers ("f2" for bfloat16,
                  too). zstd then compresses exponents apart from mantissas. Its levels 1 to 3 give
                  the same result; higher ones look for repeats.
    `page_size`   bytes of a page; a power of two in 512 B … 2 MiB.
    `parameters`  parameters of the algorithm: `level`, `dictionary` for zstd; `acceleration`,
                  `high_compression` for lz4; `batchzip algorithms` lists them.

    `codec` is the codec with all its wrappers. Equal codecs restore each other's outputs.

    Thread-safe; bound to the process that created it. Closing or dropping it ends its lanes.

    Raises LimitReached if the system has no descriptors left for the lanes. If threads or workers
    cannot be started, the caller does the work, a WorkerWarning is issued once, and the engine
    tries again to start them.

    Examples:
        >>> import batchzip
        >>> pages = [f"row {n:3}, ".encode().ljust(16) * 256 for n in range(100)]
        >>> with batchzip.Engine("zstd", level=1) as engine:
        ...     batch = batchzip.CompressBatch(pages)
        ...     engine.compress(batch)
        ...     back = batchzip.DecompressBatch(batch.outputs())
        ...     engine.decompress(back)
        >>> bytes(back.pages[42]) == pages[42]
        True
        >>> int(batch.dlens.sum()) < 100 * 4096 // 10
        True
    """

    _open = False
    _instead = ": make one there"

    @overload
    def __init__(
        self, algorithm: Literal["zstd"] = ..., **options: Unpack[ZstdOptions]
    ) -> None: ...
    @overload
    def __init__(self, algorithm: Literal["lz4"], **options: Unpack[Lz4Options]) -> None: ...
    @overload
    def __init__(
        self, algorithm: Literal["lz4hc", "deflate", "brotli"], **options: Unpack[LevelOptions]
    ) -> None: ...
    @overload
    def __init__(
        self, algorithm: Literal["snappy"] | Codec, **options: Unpack[EngineOptions]
    ) -> None: ...
    @overload  # a plug-in's, or a name that is not known before the program runs
    def __init__(
        self,
        algorithm: str | Codec,
        *,
        backend: str | Backend = ...,
        workers: SupportsIndex | None = ...,
        page_size: SupportsIndex = ...,
        verify: bool = ...,
        isolate: bool = ...,
        shuffle: SupportsIndex | str | None = ...,
        **parameters: SupportsIndex | bytes | None,
    ) -> None: ...

    def __init__(
        self,
        algorithm: str | Codec = "zstd",
        *,
        backend: str | Backend = "auto",
        workers: SupportsIndex | None = None,
        page_size: SupportsIndex = 4096,
        verify: bool = False,
        isolate: bool = False,
        shuffle: SupportsIndex | str | None = None,
        **parameters: object,
    ) -> None:
        self.page_size = check_page_size(page_size)
        if workers is not None:
            workers = as_integer(workers, "workers", 1, MOST_WORKERS)
        self.codec = codec_of(algorithm, verify=verify, shuffle=shuffle, **parameters)
        if isinstance(backend, Backend):
            if workers is not None or isolate:
                raise BadArgument("give workers= and isolate= to the backend instance itself")
            self.backend = backend
        elif backend == "auto" and not isolate:
            self.backend = choose_backend(self.codec, workers=workers)
        else:
            name = "workers" if backend == "auto" else backend
            self.backend = make_backend(name, workers=workers, isolate=isolate)
        self.backend.open(self.codec, self.page_size)
        self._execute = self.backend.execute
        self._threads = CallThreads()
        self._turns = Turns()
        super().__init__()
        self._open = True

    def __repr__(self) -> str:
        return f"<Engine {self.codec} on {self.backend.name}, {self.page_size} B pages>"

    @property
    def batch_size(self) -> int:
        """Number of pages that the backend takes at a time; larger batches take several turns."""
        return self.backend.batch_size

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process IDs of the workers, if there are any."""
        return self.backend.worker_pids

    def wait_ready(self, timeout_s: float = 10.0) -> bool:
        """Wait up to `timeout_s` seconds until all lanes are ready. Return whether they are.

        If a lane has died, this waits for its successor. It returns False early if a lane could not
        be started several times in a row. Results are right without this call: the caller does the
        pages that no lane does.
        """
        self._refuse()
        return self.backend.wait_ready(as_seconds(timeout_s, "timeout_s", least=-math.inf))

    def compress(self, batch: CompressBatch) -> None:
        """Compress a batch. On return it has its `dlens`, `errors` and outputs."""
        if not isinstance(batch, CompressBatch):
            raise BadBatch(f"compress takes a CompressBatch, not {type(batch).__name__}")
        self._admit(batch)
        self._execute(batch)

    def decompress(self, batch: DecompressBatch) -> None:
        """Decompress a batch. On return it has its `dlens`, `errors` and pages."""
        if not isinstance(batch, DecompressBatch):
            raise BadBatch(f"decompress takes a DecompressBatch, not {type(batch).__name__}")
        self._admit(batch)
        self._execute(batch)

    def run(self, batch: Batch) -> None:
        """Run a batch of either kind, or of any other subclass of Batch."""
        self._admit(batch)
        self._execute(batch)

    def works_alone(self, count: int) -> bool:
        """Return whether the calling thread alone does a batch of `count` pages."""
        if self._unusable:
            self._refuse()
        return self.backend.works_alone(count)

    def _admit(self, batch: Batch) -> None:
        if self._unusable:
            self._refuse()
        if batch.page_size != self.page_size:
            raise BadBatch(
                f"the batch must have pages of {self.page_size} bytes, not {batch.page_size}"
            )

    def submit(
        self,
        batch: AnyBatch,
        *,
        timeout_s: float | None = None,
        block: bool = True,
        deadline_s: float | None = None,
    ) -> Request[AnyBatch]:
        """Begin a batch of either kind, and return its request at once.

        The batch and its buffers belong to the engine until the request is done.

        If too many requests are in progress, this call waits for room, fairly between threads. It
        waits without limit, or for `timeout_s` seconds, or not at all with `block=False`. Then it
        raises EngineBusy. After `deadline_s` seconds, pages that are not done get -ETIMEDOUT and
        the request is done, even if a worker hangs. Pages that are done keep their results. A
        thread cannot be killed, so the request waits for the page that it is working on.
        """
        if not isinstance(batch, Batch):
            raise BadBatch(
                f"submit takes a CompressBatch or DecompressBatch, not {type(batch).__name__}"
            )
        if timeout_s is not None:
            timeout_s = as_seconds(timeout_s, "timeout_s")
        deadline = None
        if deadline_s is not None:
            deadline = time.monotonic() + as_seconds(deadline_s, "deadline_s")
        self._admit(batch)
        batch.reset()
        request = Request(batch, deadline)
        # Backends take any batch.
        self.backend.submit(request, timeout_s=timeout_s, block=block)  # type: ignore[arg-type]
        return request

    async def compress_async(
        self, batch: CompressBatch, *, deadline_s: float | None = None
    ) -> CompressBatch:
        """Compress a batch without blocking the event loop. Return the batch when it is done.

        Several event loops may call this at the same time. If too many requests are in progress,
        the call waits for its turn. If a task is cancelled before its batch was taken up, every
        page has -ECANCELED. If it is cancelled later, the batch is done first. Once the call has
        ended, even by an error, the batch and its buffers belong to the caller again. `deadline_s`
        is as in `submit`.
        """
        if not isinstance(batch, CompressBatch):
            raise BadBatch(f"compress_async takes a CompressBatch, not {type(batch).__name__}")
        return await self._do_async(batch, deadline_s)

    async def decompress_async(
        self, batch: DecompressBatch, *, deadline_s: float | None = None
    ) -> DecompressBatch:
        """Decompress a batch without blocking the event loop, as `compress_async` compresses."""
        if not isinstance(batch, DecompressBatch):
            raise BadBatch(f"decompress_async takes a DecompressBatch, not {type(batch).__name__}")
        return await self._do_async(batch, deadline_s)

    async def _do_async(self, batch: AnyBatch, deadline_s: float | None) -> AnyBatch:
        self._admit(batch)
        begun = False

        def begin(*, block: bool) -> Request[AnyBatch]:
            nonlocal begun
            request = self.submit(batch, block=block, deadline_s=deadline_s)
            begun = True
            return request

        try:
            if self.backend.asynchronous:
                return await self._turns.submit(partial(begin, block=False))
            return (await self._threads.call(partial(begin, block=True))).wait()
        except asyncio.CancelledError:
            if not begun:
                batch.fail(range(len(batch)), -errno.ECANCELED)
            raise

    def arena(self, rows: int, width: int | None = None) -> Bytes:
        """Return a (rows, width) uint8 array of zeros in memory that the engine's lanes share.

        `width` defaults to page_size. Pages in this memory, as the `pages` of a batch, are not
        copied on their way to a worker and back. Neither are outputs if `dsts` is in it:
        `CompressBatch(engine.arena(n), dsts=engine.arena(n, capacity))`. Any contiguous range of
        rows will do. In all other respects it is an ordinary array. Its memory is freed with its
        last view, which may be after `close()`. A forked child shares it: what the child writes is
        seen here.

        Raise LimitReached, an OSError, if there is no memory (ENOSPC, ENOMEM), or no descriptor
        (EMFILE): before Python 3.13 each array has one. A backend without worker processes returns
        ordinary memory.
        """
        self._refuse()
        width = self.page_size if width is None else width
        return self.backend.array(as_integer(rows, "rows", 1), as_integer(width, "width", 1))

    @property
    def statistics(self) -> Statistics:
        """Figures of this engine so far, in total and per worker process, summed on request.

        Single pages are counted, too, but belong to no batch. Readable after `close()`.
        """
        if self._unusable is not None and self._unusable[0] is not ClosedError:
            self._refuse()
        return self.backend.statistics()

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page in the calling thread, or in a worker if the engine has `isolate=True`.

        Raise PageError: -EINVAL for a buffer of another size, -EIO if the codec failed, -EOWNERDEAD
        if no worker could do it.
        """
        if self._unusable:
            self._refuse()
        return self.backend.compress_page(
            page if isinstance(page, bytes) else as_view(page, "page")
        )

    def decompress_page(self, src: Buffer) -> bytes:
        """Decompress one page, in the same place as `compress_page`. Raise PageError.

        Its errno is -EBADMSG if the source cannot be decoded, or -ENOMEM.
        """
        if self._unusable:
            self._refuse()
        return self.backend.decompress_page(src if isinstance(src, bytes) else as_view(src, "src"))

    def _close(self) -> None:
        self._threads.close()
        self.backend.close()

    def __del__(self) -> None:
        if self._open:
            self.close()


def codec_of(
    algorithm: str | Codec,
    *,
    verify: bool = False,
    shuffle: SupportsIndex | str | None = None,
    **parameters: object,
) -> Codec:
    """Return the codec of an engine with these parameters. Raise the errors of `make_codec`."""
    if isinstance(algorithm, Codec):
        if parameters:
            raise BadArgument("give parameters to the codec instance itself, not to the engine")
        algorithm.require()
        codec = algorithm
    else:
        codec = make_codec(algorithm, **parameters)
    if shuffle is not None:
        codec = Shuffled(codec, *as_elements(shuffle))
    return Verified(codec) if verify else codec
