"""Compressors: batchzip's own contenders that compress and restore batches, and plain loops.

A contender is made for an algorithm and a set of pages. For a batch size it returns two callables
without arguments. Each processes all pages once, one batch at a time. Outputs are discarded, or
written to the same memory again. Descriptors and executors are made beforehand.
"""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import lz4.block
import numpy as np
import zstandard

import batchzip
from batchzip.bench.figure import default_lanes
from batchzip.bench.pages import PAGE
from batchzip.codecs.zstd import DEFAULT_LEVEL
from batchzip.errors import BackendUnavailable
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages
    from batchzip.codecs.codec import Transcode

    Work = Callable[[], object]

_READY_TIMEOUT_S = 60.0

_OUTPUT_BYTES = PAGE + 64
"""Bytes per output in the arena. A larger output means that the page is incompressible."""


class Load:
    """The pages of a measurement and their outputs, in the forms that contenders need.

    `lanes` is the number of threads or processes a contender may use, including the caller.
    """

    def __init__(self, algorithm: Algorithm, pages: Pages, lanes: int | None = None) -> None:
        self.algorithm = algorithm
        self.lanes = default_lanes() if lanes is None else lanes
        self.codec = algorithm.codec()
        self.pages = pages
        flat = memoryview(pages).cast("B")  # type: ignore[arg-type] # arrays are buffers
        self.views = [flat[at : at + PAGE] for at in range(0, len(flat), PAGE)]
        compress, _ = bare_calls(algorithm)
        self.outputs = [compress(view) for view in self.views]
        self.ratio = pages.nbytes / sum(map(len, self.outputs))

    def starts(self, size: int) -> range:
        """Return the numbers of the first pages of batches of `size`."""
        return range(0, len(self.pages), size)


class Compressor(Closing):
    """A contender. `ratio` is the bytes of all pages ÷ the bytes of their outputs."""

    name: str
    ratio: float

    @abstractmethod
    def compressing(self, size: int) -> Work:
        """Return a callable that compresses all pages in batches of `size`."""

    @abstractmethod
    def restoring(self, size: int) -> Work:
        """Return a callable that restores all pages in batches of `size`."""

    def close(self) -> None:
        """Release all resources."""


def each(call: Callable[[Any], object], arguments: Sequence[Any]) -> None:
    """Call a function with each of the arguments."""
    for argument in arguments:
        call(argument)


def bare_calls(algorithm: Algorithm) -> tuple[Transcode, Transcode]:
    """Return the library calls that compress and restore one page, without batchzip around them.

    Algorithms other than lz4 and zstd use batchzip's codecs, which also call a library per page.
    """
    if algorithm.name == "lz4":
        return (
            partial(lz4.block.compress, store_size=False),
            partial(lz4.block.decompress, uncompressed_size=PAGE),
        )
    if algorithm.name == "zstd":
        compressor = zstandard.ZstdCompressor(level=algorithm.level or DEFAULT_LEVEL)
        return compressor.compress, zstandard.ZstdDecompressor().decompress
    codec = algorithm.codec()
    return codec.compressor(PAGE), codec.decompressor(PAGE)


class Bare(Compressor):
    """A loop of codec calls on one core. The batch size does not matter to it."""

    name = "bare"

    def __init__(self, load: Load) -> None:
        self.ratio = load.ratio
        self._load = load
        self._compress, self._decompress = bare_calls(load.algorithm)

    def compressing(self, size: int) -> Work:  # noqa: ARG002 - see above
        """Loop over all pages."""
        return partial(each, self._compress, self._load.views)

    def restoring(self, size: int) -> Work:  # noqa: ARG002 - see above
        """Loop over all outputs."""
        return partial(each, self._decompress, self._load.outputs)


class OfEngine(Compressor):
    """A batchzip engine with one backend, whose descriptors are reused, as in a store."""

    def __init__(self, load: Load, backend: str) -> None:
        self.name = backend
        self.ratio = load.ratio
        self._load = load
        algorithm = load.algorithm
        self.engine = batchzip.Engine(
            algorithm.name,
            backend=backend,
            workers=max(1, load.lanes - 1),
            **algorithm.parameters,
        )
        if not self.engine.wait_ready(_READY_TIMEOUT_S):
            self.engine.close()
            raise BackendUnavailable(
                f"{backend}: its workers did not start within {_READY_TIMEOUT_S:.0f} s"
            )

    def compressing(self, size: int) -> Work:
        """Compress with one descriptor that is refilled."""
        return self._refilled(self._load.pages, size, None)

    def _refilled(self, pages: Pages, size: int, dsts: Pages | None) -> Work:
        batch = batchzip.CompressBatch(pages[:size], dsts=dsts)
        compress, starts = self.engine.compress, self._load.starts(size)

        def work() -> None:
            for at in starts:
                batch.refill(pages[at : at + size])
                compress(batch)

        return work

    def restoring(self, size: int) -> Work:
        """Restore with descriptors made beforehand, always to the same pages."""
        room = np.zeros((size, PAGE), np.uint8)
        outputs = self._load.outputs
        batches = [
            batchzip.DecompressBatch(outputs[at : at + size], room[: len(outputs) - at])
            for at in self._load.starts(size)
        ]
        return partial(each, self.engine.decompress, batches)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


class InArena(OfEngine):
    """A batchzip engine with pages, sources and destinations in its arena."""

    def __init__(self, load: Load, backend: str = "workers") -> None:
        super().__init__(load, backend)
        self.name = f"{backend}, arena"
        self._pages = self.engine.arena(len(load.pages))
        self._pages[:] = load.pages
        self._outputs = self.engine.arena(len(load.pages), _OUTPUT_BYTES)
        for row, output in zip(self._outputs, load.outputs, strict=True):
            row[: len(output)] = np.frombuffer(output, np.uint8)

    def compressing(self, size: int) -> Work:
        """Compress with one descriptor that is refilled, to the same destinations."""
        return self._refilled(self._pages, size, self.engine.arena(size, _OUTPUT_BYTES))

    def restoring(self, size: int) -> Work:
        """Restore with descriptors made beforehand, always to the same pages."""
        room = self.engine.arena(size)
        lengths = list(map(len, self._load.outputs))
        batches = [
            batchzip.DecompressBatch(
                (self._outputs[at : at + size], lengths[at : at + size]), room[: len(lengths) - at]
            )
            for at in self._load.starts(size)
        ]
        return partial(each, self.engine.decompress, batches)


class NewDescriptors(OfEngine):
    """A batchzip engine with a new descriptor, and new memory for the outputs, for each batch."""

    def __init__(self, load: Load, backend: str) -> None:
        super().__init__(load, backend)
        self.name = f"{backend}, new descriptors"

    def compressing(self, size: int) -> Work:
        """Make a descriptor for each batch and compress it."""
        pages, compress = self._load.pages, self.engine.compress

        def work() -> None:
            for at in self._load.starts(size):
                compress(batchzip.CompressBatch(pages[at : at + size]))

        return work

    def restoring(self, size: int) -> Work:
        """Make a descriptor, which allocates its pages, for each batch and restore it."""
        outputs, decompress = self._load.outputs, self.engine.decompress

        def work() -> None:
            for at in self._load.starts(size):
                decompress(batchzip.DecompressBatch(outputs[at : at + size]))

        return work


class ThreadPoolLoop(Compressor):
    """A ThreadPoolExecutor with a thread per lane. Each thread takes an equal part of a batch."""

    name = "thread pool"

    def __init__(self, load: Load) -> None:
        self.ratio = load.ratio
        self._load = load
        self._count = load.lanes
        self._executor = ThreadPoolExecutor(self._count)

    def compressing(self, size: int) -> Work:
        """Compress a batch with all threads, then the next."""
        calls = [bare_calls(self._load.algorithm)[0] for _ in range(self._count)]
        return self._shared_out(calls, self._load.views, size)

    def restoring(self, size: int) -> Work:
        """Restore a batch with all threads, then the next."""
        calls = [bare_calls(self._load.algorithm)[1] for _ in range(self._count)]
        return self._shared_out(calls, self._load.outputs, size)

    def _shared_out(self, calls: list[Transcode], items: Sequence[Any], size: int) -> Work:
        def work() -> None:
            for at in self._load.starts(size):
                batch = items[at : at + size]
                parts = [batch[lane :: self._count] for lane in range(self._count)]
                list(self._executor.map(_outputs, calls, parts))

        return work

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()


def _outputs(call: Transcode, items: Sequence[Any]) -> list[bytes]:
    return [call(item) for item in items]
