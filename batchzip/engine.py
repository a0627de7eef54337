"""Engine: one algorithm with its parameters on one backend.

Kernel counterpart: a crypto_acomp transform. The engine refuses what cannot be done, and the backend
does the rest (`Backend.execute` is the unified path of zswap's batched compression). No lock is taken
here: a coder has one user at a time, and a backend locks once per share at most (the patch's own
regression was a lock per page).
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

    `algorithm`   a name from `batchzip.algorithms()`, or a codec made by hand.
    `backend`     "auto", a name from `batchzip.backends()`, or a backend made by hand, which the
                  engine then owns and closes.
    `workers`     lanes besides the caller: threads or processes; default: usable CPUs − 1, 1 to 15.
                  The sequential backend has none, whatever is said here.
    `verify`      restore each page that was compressed, where it was compressed, and compare, before
                  it counts as done (IAA's verify_compress); a page that differs gets -EIO. The bytes
                  that arrive are those that were verified; in `arena`, workers can still change them.
    `isolate`     this process never runs the codec: workers do all pages, and what they cannot do
                  fails with -EOWNERDEAD. For codecs that may crash; needs `workers`.
    `shuffle`     2, 4 or 8: pages are arrays of elements of so many bytes, whose first bytes are put
                  together before they are compressed, then the second ones, and so on. Numbers get
                  smaller by that, with lz4 the most; text does not. "f2", "f4" or "f8" for
                  floating-point numbers (bfloat16, too, is an "f2"): zstd then compresses exponents
                  apart from mantissas; levels 1 to 3 do the same, higher ones look for repeats.
    `page_size`   bytes of a page; a power of two in 512 B … 2 MiB.
    `parameters`  the algorithm's own: `level`, `dictionary` for zstd; `acceleration`,
                  `high_compression` for lz4; `batchzip algorithms` lists them.

    `codec` is the codec with all that is around it; equal codecs restore each other's outputs.

    Thread-safe; bound to the process that made it. Closing it, or losing it, ends its lanes.

    Raises LimitReached where the system has no descriptors left for what lanes need. Where threads or workers
    cannot be started, the caller does the work: a WorkerWarning says so once, and lanes are tried again.

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
                raise BadArgument("a backend made by hand brings its own workers and isolation")
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
        """Pages the backend takes in one go; larger batches are done in several."""
        return self.backend.batch_size

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers besides this process, if there are any."""
        return self.backend.worker_pids

    def wait_ready(self, timeout_s: float = 10.0) -> bool:
        """Wait up to `timeout_s` seconds until all lanes work. Return whether they do.

        A lane that died is waited for until its successor works. False comes sooner where a lane could
        not be started several times in a row. Never needed for right results: what no lane does, the
        caller does.
        """
        self._refuse()
        return self.backend.wait_ready(as_seconds(timeout_s, "timeout_s", least=-math.inf))

    def compress(self, batch: CompressBatch) -> None:
        """Compress a batch; its `dlens`, `errors` and outputs are there on return."""
        if not isinstance(batch, CompressBatch):
            raise BadBatch(f"compress takes a CompressBatch, not {type(batch).__name__}")
        self._admit(batch)
        self._execute(batch)

    def decompress(self, batch: DecompressBatch) -> None:
        """Decompress a batch; its `dlens`, `errors` and pages are there on return."""
        if not isinstance(batch, DecompressBatch):
            raise BadBatch(f"decompress takes a DecompressBatch, not {type(batch).__name__}")
        self._admit(batch)
        self._execute(batch)

    def run(self, batch: Batch) -> None:
        """Do a batch of either kind: what `compress` and `decompress` do for kinds of batches of one's own."""
        self._admit(batch)
        self._execute(batch)

    def works_alone(self, count: int) -> bool:
        """Return whether a batch of `count` pages is done by the calling thread alone."""
        if self._unusable:
            self._refuse()
        return self.backend.works_alone(count)

    def _admit(self, batch: Batch) -> None:
        if self._unusable:
            self._refuse()
        if batch.page_size != self.page_size:
            raise BadBatch(
                f"the batch has pages of {batch.page_size} bytes, this engine of {self.page_size}"
            )

    def submit(
        self,
        batch: AnyBatch,
        *,
        timeout_s: float | None = None,
        block: bool = True,
        deadline_s: float | None = None,
    ) -> Request[AnyBatch]:
        """Begin a batch of either kind, and return at once with the request.

        The batch and its buffers belong to the engine until the request is done.

        Where too many requests are under way, it waits for room, fairly between threads: as long as
        it takes, or `timeout_s` seconds, or with `block=False` not at all; then it raises EngineBusy.
        `deadline_s` seconds from now, pages that are not done get -ETIMEDOUT and the request is done,
        even if a worker hangs; pages that are done keep their results. A thread cannot be killed: the
        page that it is at is waited for.
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
        self.backend.submit(request, timeout_s=timeout_s, block=block)  # type: ignore[arg-type] # backends take any batch
        return request

    async def compress_async(
        self, batch: CompressBatch, *, deadline_s: float | None = None
    ) -> CompressBatch:
        """Compress a batch without blocking the event loop; the batch, done. From any loop, at once.

        Where too much is under way it waits its turn. Where a task is cancelled before its batch was taken
        up, every page has -ECANCELED; later, the batch is done first. When this ends, in whatever
        way, the batch and its buffers are the caller's again. `deadline_s` as `submit`.
        """
        if not isinstance(batch, CompressBatch):
            raise BadBatch(f"compress_async takes a CompressBatch, not {type(batch).__name__}")
        return await self._do_async(batch, deadline_s)

    async def decompress_async(
        self, batch: DecompressBatch, *, deadline_s: float | None = None
    ) -> DecompressBatch:
        """Decompress a batch without blocking the event loop; otherwise as `compress_async`."""
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
        """Make a (rows, width) uint8 array of zeros in memory that the engine's lanes share.

        `width` is page_size where none is given. Pages that lie in it, as `pages` of either kind of
        batch, are not staged on their way to a worker or back, and neither are outputs whose `dsts`
        do: `CompressBatch(engine.arena(n), dsts=engine.arena(n, capacity))`. Any rows that follow
        one another will do. Otherwise it is an array as any other; its memory is the system's again
        when the last view of it is gone, also after `close()`. A forked child shares it: what is
        written there is seen here.

        Raises LimitReached, an OSError (ENOSPC, ENOMEM; EMFILE, as each array that lives has a descriptor
        of the process) if there is no memory. A backend without worker processes gives plain
        memory.
        """
        self._refuse()
        width = self.page_size if width is None else width
        return self.backend.array(as_integer(rows, "rows", 1), as_integer(width, "width", 1))

    @property
    def statistics(self) -> Statistics:
        """What this engine did so far, in all and by worker process; added up when it is asked for.

        Single pages are counted, too, as pages of no batch. Still there after `close()`.
        """
        if self._unusable is not None and self._unusable[0] is not ClosedError:
            self._refuse()
        return self.backend.statistics()

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page in the calling thread, or in a worker where the engine has `isolate=True`.

        Raises PageError: -EINVAL for a buffer of another size, -EIO where the codec failed,
        -EOWNERDEAD where no worker could do it.
        """
        if self._unusable:
            self._refuse()
        return self.backend.compress_page(
            page if isinstance(page, bytes) else as_view(page, "page")
        )

    def decompress_page(self, src: Buffer) -> bytes:
        """Decompress one page, where `compress_page` would. Raises PageError: -EBADMSG, -ENOMEM."""
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
    """Make the codec of an engine with these parameters. Raise as `make_codec`."""
    if isinstance(algorithm, Codec):
        if parameters:
            raise BadArgument("a codec made by hand brings its own parameters")
        algorithm.require()
        codec = algorithm
    else:
        codec = make_codec(algorithm, **parameters)
    if shuffle is not None:
        codec = Shuffled(codec, *as_elements(shuffle))
    return Verified(codec) if verify else codec
