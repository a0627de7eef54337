"""Peers: what else would compress pages, each made to do a whole set of pages in batches of one size.

A contender is opened for an algorithm and a size of batch, and then does all pages again and again:

    bare         the codec's calls in a loop, one core: what can be lost to
    sequential   the engine without workers
    workers      the engine with them
    threads      the same loop in a pool of threads, a share of each batch in each
    loky         one submit to loky's executor for each batch, as many under way as there are CPUs
    zstandard    multi_compress_to_buffer of each batch, with threads of its own (zstd only)
    blosc2       an SChunk of one page a chunk
    blosc2 1M    an SChunk whose chunk is the batch, up to 1 MiB, in blocks of a page, with threads

`ratio` is of the pages, without what does not become smaller being kept raw: each contender's own output.
Levels are matched where a library has other ones; where it has none, it does not take part.
"""

# ruff: noqa: D102 - Contender says what each method does

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

import batchzip
from batchzip.bench.inputs import PAGE
from batchzip.codecs import make_codec
from batchzip.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.buffers import Bytes
    from batchzip.codecs import Codec

ALGORITHMS: dict[str, tuple[str, dict[str, int]]] = {
    "lz4": ("lz4", {}),
    "zstd -1": ("zstd", {"level": -1}),
    "zstd 1": ("zstd", {"level": 1}),
    "zstd 3": ("zstd", {"level": 3}),
}
"""Algorithms with their parameters, by the name they have in tables."""

_BLOSC_LEVELS = {"lz4": 9, "zstd 1": 1, "zstd 3": 2}
"""blosc2's clevel: 9 is lz4's acceleration 1; its zstd levels are 2 × clevel − 1."""

_CHUNK_BYTES = 1 << 20

CPUS = len(os.sched_getaffinity(0))


class Contender(Closing):
    """Compresses all pages in batches, and decompresses what it made."""

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        name, parameters = ALGORITHMS[algorithm]
        self.codec: Codec = make_codec(name, **parameters)
        self.algorithm = algorithm
        self.pages = pages
        self.batch = batch
        self.stack = contextlib.ExitStack()

    def starts(self) -> range:
        """First page of each batch."""
        return range(0, len(self.pages), self.batch)

    def compress(self) -> object:
        """Compress every page."""
        raise NotImplementedError

    def decompress(self) -> object:
        """Decompress every page once `prepare` was called."""
        raise NotImplementedError

    def prepare(self) -> float:
        """Make what `decompress` takes; bytes of the pages ÷ bytes they became."""
        self.outputs = outputs(self.codec, self.pages)
        return self.pages.nbytes / sum(map(len, self.outputs))

    def close(self) -> None:
        """End what was started."""
        self.stack.close()


def outputs(codec: Codec, pages: Bytes) -> list[bytes]:
    """Compress every page with a codec, in a loop."""
    compress = codec.compressor(PAGE)
    return [bytes(compress(memoryview(page))) for page in pages]


def loop(call: Callable[[Any], object], sources: list[Any]) -> None:
    """Call with each source, and nothing else."""
    for source in sources:
        call(source)


class Bare(Contender):
    """The codec's calls in a loop."""

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        super().__init__(algorithm, pages, batch)
        self.sources = [memoryview(page) for page in pages]

    def compress(self) -> object:
        loop(self.codec.compressor(PAGE), self.sources)
        return None

    def decompress(self) -> object:
        loop(self.codec.decompressor(PAGE), self.outputs)
        return None


class WithEngine(Contender):
    """The engine, on one backend."""

    backend = "sequential"

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        super().__init__(algorithm, pages, batch)
        self.engine = self.stack.enter_context(
            batchzip.Engine(self.codec, backend=self.backend, page_size=PAGE)
        )
        self.engine.wait_ready()
        self.descriptor = batchzip.CompressBatch(pages[:batch])
        self.room = np.empty((batch, PAGE), np.uint8)

    def compress(self) -> object:
        for at in self.starts():
            self.descriptor.refill(self.pages[at : at + self.batch])
            self.engine.compress(self.descriptor)
        return self.descriptor

    def prepare(self) -> float:
        ratio = super().prepare()
        cut = [self.outputs[at : at + self.batch] for at in self.starts()]
        self.batches = [batchzip.DecompressBatch(part, self.room[: len(part)]) for part in cut]
        return ratio

    def decompress(self) -> object:
        loop(self.engine.decompress, self.batches)
        return None


class WithWorkers(WithEngine):
    """The engine with workers."""

    backend = "workers"


class Threads(Contender):
    """A pool of threads, each of which loops over its share of a batch."""

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        super().__init__(algorithm, pages, batch)
        self.executor = self.stack.enter_context(ThreadPoolExecutor(CPUS))
        self.sources = [memoryview(page) for page in pages]
        self.calls = {
            "compress": [self.codec.compressor(PAGE) for _ in range(CPUS)],
            "decompress": [self.codec.decompressor(PAGE) for _ in range(CPUS)],
        }

    def _all(self, operation: str, sources: list[Any]) -> None:
        calls = self.calls[operation]
        for at in self.starts():
            batch = sources[at : at + self.batch]
            shares = [batch[lane::CPUS] for lane in range(CPUS)]
            list(self.executor.map(loop, calls, shares))

    def compress(self) -> object:
        self._all("compress", self.sources)
        return None

    def decompress(self) -> object:
        self._all("decompress", self.outputs)
        return None


class Loky(Contender):
    """One submit to loky's executor for each batch; results come back as lists of bytes."""

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        super().__init__(algorithm, pages, batch)
        from loky import ProcessPoolExecutor  # noqa: PLC0415 - starts helpers when imported

        self.executor = ProcessPoolExecutor(max_workers=CPUS)
        self.stack.callback(self.executor.shutdown, kill_workers=True)
        self.data = [pages[at : at + batch].tobytes() for at in self.starts()]
        list(self.executor.map(_pid, range(CPUS)))  # started before anything is timed

    def _all(self, call: Callable[..., object], arguments: list[Any]) -> None:
        under_way: list[Any] = []
        for argument in arguments:
            under_way.append(self.executor.submit(call, self.codec, argument))
            if len(under_way) > CPUS:
                under_way.pop(0).result()
        for future in under_way:
            future.result()

    def compress(self) -> object:
        self._all(compress_all, self.data)
        return None

    def prepare(self) -> float:
        ratio = super().prepare()
        self.parts = [self.outputs[at : at + self.batch] for at in self.starts()]
        return ratio

    def decompress(self) -> object:
        self._all(decompress_all, self.parts)
        return None


def _pid(_: int) -> int:
    return os.getpid()


def compress_all(codec: Codec, data: bytes) -> list[bytes]:
    """Compress the pages of a batch, in another process."""
    compress = codec.compressor(PAGE)
    view = memoryview(data)
    return [bytes(compress(view[at : at + PAGE])) for at in range(0, len(data), PAGE)]


def decompress_all(codec: Codec, sources: list[bytes]) -> bytes:
    """Decompress the pages of a batch, in another process."""
    return b"".join(map(codec.decompressor(PAGE), sources))


class ZstandardMulti(Contender):
    """python-zstandard's own batches and threads."""

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        super().__init__(algorithm, pages, batch)
        level = ALGORITHMS[algorithm][1]["level"]
        self.compressor = zstandard.ZstdCompressor(level=level)
        self.decompressor = zstandard.ZstdDecompressor()
        self.parts: list[list[bytes | bytearray | memoryview]] = [
            [memoryview(page) for page in pages[at : at + batch]] for at in self.starts()
        ]

    def compress(self) -> object:
        for part in self.parts:
            self.compressor.multi_compress_to_buffer(part, threads=CPUS)
        return None

    def prepare(self) -> float:
        self.segments = [
            self.compressor.multi_compress_to_buffer(part, threads=CPUS) for part in self.parts
        ]
        return self.pages.nbytes / sum(segment.size() for segment in self.segments)

    def decompress(self) -> object:
        for segment in self.segments:
            self.decompressor.multi_decompress_to_buffer(segment, threads=CPUS)
        return None


class Blosc(Contender):
    """blosc2's SChunk, a chunk for each page."""

    chunk_pages = 1

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        super().__init__(algorithm, pages, batch)
        import blosc2  # noqa: PLC0415 - an extra

        codec = blosc2.Codec.LZ4 if algorithm == "lz4" else blosc2.Codec.ZSTD
        threads = CPUS if self.chunk_pages > 1 else 1
        self.make = partial(
            blosc2.SChunk,
            chunksize=self.chunk_pages * PAGE,
            cparams=blosc2.CParams(
                codec=codec,
                clevel=_BLOSC_LEVELS[algorithm],
                typesize=1,
                blocksize=PAGE,
                nthreads=threads,
                filters=[blosc2.Filter.NOFILTER] * 6,
                splitmode=blosc2.SplitMode.NEVER_SPLIT,
            ),
            dparams=blosc2.DParams(nthreads=threads),
        )
        step = self.chunk_pages
        self.chunks = [pages[at : at + step].tobytes() for at in range(0, len(pages), step)]
        self.room = bytearray(self.chunk_pages * PAGE)

    def compress(self) -> Any:
        chunks = self.make()
        for data in self.chunks:
            chunks.append_data(data)
        return chunks

    def prepare(self) -> float:
        self.schunk = self.compress()
        return float(self.pages.nbytes / self.schunk.cbytes)

    def decompress(self) -> object:
        for number in range(self.schunk.nchunks):
            self.schunk.decompress_chunk(number, self.room)
        return None


class BloscChunks(Blosc):
    """blosc2's SChunk, a chunk for each batch, at most 1 MiB."""

    def __init__(self, algorithm: str, pages: Bytes, batch: int) -> None:
        self.chunk_pages = max(2, min(batch, _CHUNK_BYTES // PAGE))
        super().__init__(algorithm, pages, batch)


def contenders(algorithm: str) -> Iterator[tuple[str, type[Contender]]]:
    """Name those that can do an algorithm here. blosc2 takes part where it is installed."""
    yield "bare", Bare
    yield "sequential", WithEngine
    yield "workers", WithWorkers
    yield "threads", Threads
    yield "loky", Loky
    if algorithm.startswith("zstd"):
        yield "zstandard", ZstandardMulti
    if algorithm in _BLOSC_LEVELS and has_blosc():
        yield "blosc2", Blosc
        yield "blosc2 1M", BloscChunks


def has_blosc() -> bool:
    """Whether blosc2 is installed (extra `bench`)."""
    try:
        import blosc2  # noqa: F401, PLC0415 - only whether it can be
    except ImportError:
        return False
    return True
