"""Peers: alternatives to batchzip for compressing batches of pages.

loky         One submit per batch. All batches of a round are submitted before the first result is
             awaited, which favours loky: real callers often need each batch before the next.
zstandard    multi_compress_to_buffer and multi_decompress_to_buffer with a thread per lane.
blosc2       An SChunk without filters: one page per chunk, or chunks of up to 1 MiB in blocks of
             one page.
zram         O_DIRECT writes and reads of one batch at a time, from one or two threads. It also
             stores the pages.
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

import batchzip
from batchzip.bench.ahead import OWN
from batchzip.bench.compressors import Bare, Compressor, OfEngine, ThreadPoolLoop
from batchzip.bench.pages import PAGE
from batchzip.bench.zram import Zram, aligned
from batchzip.errors import BackendUnavailable, BatchzipError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.compressors import Load, Work
    from batchzip.bench.figure import Result
    from batchzip.bench.pages import Pages
    from batchzip.codecs import Codec

CHUNK_PAGES = 256
"""Pages per larger chunk of blosc2: 1 MiB, as in its documentation."""

_BLOSC2_ZSTD_LEVELS = {1: 1, 3: 2, 5: 3, 7: 4}
"""blosc2's level for a level of zstd: zstd's level is twice blosc2's, minus one."""


class Loky(Compressor):
    """One submit to loky's executor per batch."""

    name = "loky submit"

    def __init__(self, load: Load) -> None:
        self.ratio = load.ratio
        self._load = load
        try:
            import loky  # noqa: PLC0415 - benchmarks also run without it
        except ImportError:
            raise BackendUnavailable("loky is not installed") from None
        self._executor = loky.ProcessPoolExecutor(load.lanes)

    def compressing(self, size: int) -> Work:
        """Submit all batches, then wait for each."""
        pages = self._load.pages
        return partial(
            self._all, _compress, [pages[at : at + size] for at in self._load.starts(size)]
        )

    def restoring(self, size: int) -> Work:
        """Submit all batches, then wait for each."""
        outputs = self._load.outputs
        batches = [outputs[at : at + size] for at in self._load.starts(size)]
        return partial(self._all, _restore, batches)

    def _all(self, function: Any, batches: list[Any]) -> None:
        codec = self._load.codec
        for future in [self._executor.submit(function, codec, batch) for batch in batches]:
            future.result()

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(kill_workers=True)


@lru_cache(maxsize=1)
def _codec_calls(codec: Codec) -> tuple[Any, Any]:
    return codec.compressor(PAGE), codec.decompressor(PAGE)


def _compress(codec: Codec, pages: Pages) -> list[bytes]:
    return list(map(_codec_calls(codec)[0], pages))


def _restore(codec: Codec, outputs: list[bytes]) -> list[bytes]:
    return list(map(_codec_calls(codec)[1], outputs))


class MultiZstd(Compressor):
    """The batch functions of python-zstandard."""

    name = "zstandard multi"

    def __init__(self, load: Load) -> None:
        self.ratio = load.ratio
        self._load = load
        self._threads = load.lanes

    def compressing(self, size: int) -> Work:
        """Compress each batch with a thread per lane."""
        compressor = zstandard.ZstdCompressor(level=self._load.algorithm.level or 3)
        views: list[Any] = list(self._load.views)

        def work() -> None:
            for at in self._load.starts(size):
                compressor.multi_compress_to_buffer(views[at : at + size], threads=self._threads)

        return work

    def restoring(self, size: int) -> Work:
        """Restore each batch with a thread per lane."""
        decompressor = zstandard.ZstdDecompressor()
        outputs: list[Any] = list(self._load.outputs)

        def work() -> None:
            for at in self._load.starts(size):
                frames = outputs[at : at + size]
                decompressor.multi_decompress_to_buffer(frames, threads=self._threads)

        return work


def blosc2_chunk(algorithm: Algorithm, chunk_pages: int, threads: int) -> Any:
    """Return an empty SChunk in blocks of one page. Raise BackendUnavailable if there is none."""
    if importlib.util.find_spec("blosc2") is None:
        raise BackendUnavailable(str(MissingExtra("this peer", "blosc2", "bench")))
    import blosc2  # noqa: PLC0415 - an extra

    if algorithm.name == "lz4":
        codec, level = blosc2.Codec.LZ4, 9  # acceleration 1, the default of lz4
    elif algorithm.name == "zstd" and (algorithm.level or 3) in _BLOSC2_ZSTD_LEVELS:
        codec, level = blosc2.Codec.ZSTD, _BLOSC2_ZSTD_LEVELS[algorithm.level or 3]
    else:
        raise BackendUnavailable(f"blosc2 does not support {algorithm.label}")
    return blosc2.SChunk(
        chunksize=chunk_pages * PAGE,
        cparams=blosc2.CParams(
            codec=codec,
            clevel=level,
            typesize=1,
            blocksize=PAGE,
            nthreads=threads,
            filters=[blosc2.Filter.NOFILTER] * 6,
        ),
        dparams=blosc2.DParams(nthreads=threads),
    )


class Blosc2(Compressor):
    """An SChunk to which batches are appended, in chunks of at most `most_pages` pages."""

    def __init__(self, load: Load, most_pages: int) -> None:
        self.name = "blosc2 page" if most_pages == 1 else "blosc2 1 MiB"
        self._load = load
        self._most = most_pages
        chunk = self._filled(most_pages)
        self.ratio = chunk.nbytes / chunk.cbytes

    def _filled(self, size: int) -> Any:
        per_chunk = min(size, self._most, len(self._load.pages))
        chunk = blosc2_chunk(self._load.algorithm, per_chunk, self._load.lanes)
        pages = self._load.pages
        for at in range(0, len(pages), per_chunk):
            chunk.append_data(pages[at : at + per_chunk])
        return chunk

    def compressing(self, size: int) -> Work:
        """Append all batches to a new SChunk."""
        return partial(self._filled, size)

    def restoring(self, size: int) -> Work:
        """Decompress the chunks one by one, always to the same memory."""
        chunk = self._filled(size)
        out = np.zeros(min(size, self._most) * PAGE, np.uint8)

        def work() -> None:
            for number in range(chunk.nchunks):
                chunk.decompress_chunk(number, out)

        return work


class ZramCompressor(Compressor):
    """A zram device with several threads, each of which writes or reads one batch at a time."""

    def __init__(self, load: Load, threads: int) -> None:
        self.name = f"zram, {threads} thread{'s'[: threads > 1]}"
        if load.algorithm.name != "lz4":
            raise BackendUnavailable("zram is measured with lz4 only")
        self._load = load
        self._device = Zram(load.pages.nbytes)
        self._executor = ThreadPoolExecutor(threads)
        self._threads = threads
        self._source = aligned(load.pages.nbytes)
        flat = memoryview(load.pages).cast("B")  # type: ignore[arg-type] # arrays are buffers
        self._source[:] = flat
        self.compressing(CHUNK_PAGES)()
        self.ratio = load.pages.nbytes / max(1, self._device.compressed_bytes)

    def _all(self, call: Any, view: memoryview, size: int) -> None:
        length = size * PAGE
        starts = range(0, len(view), length)

        def lane(number: int) -> None:
            for at in starts[number :: self._threads]:
                call(view[at : at + length], at)

        list(self._executor.map(lane, range(self._threads)))

    def compressing(self, size: int) -> Work:
        """Write all batches."""
        return partial(self._all, self._device.write, self._source, size)

    def restoring(self, size: int) -> Work:
        """Read all batches."""
        return partial(self._all, self._device.read, aligned(len(self._source)), size)

    def close(self) -> None:
        """Remove the device."""
        self._executor.shutdown()
        self._device.close()


def contenders(load: Load, result: Result, *, zram: bool) -> Iterator[Compressor]:
    """Yield all available contenders. Add a note to the result for each other one."""
    makers: list[Callable[[], Compressor]] = [
        partial(Bare, load),
        *(partial(OfEngine, load, backend) for backend in OWN if backend in batchzip.backends()),
        partial(ThreadPoolLoop, load),
        partial(Loky, load),
        *([partial(MultiZstd, load)] if load.algorithm.name == "zstd" else []),
        partial(Blosc2, load, 1),
        partial(Blosc2, load, CHUNK_PAGES),
    ]
    if zram:
        makers += [partial(ZramCompressor, load, 1), partial(ZramCompressor, load, 2)]
    yield from available(makers, result.note)


def available(
    makers: Iterable[Callable[[], Compressor]], note: Callable[[str], object]
) -> Iterator[Compressor]:
    """Yield the contenders that can be made. Note the errors of all others."""
    for make in makers:
        try:
            yield make()
        except (BatchzipError, ImportError) as error:
            note(f"{error}")
