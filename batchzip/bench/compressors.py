"""Compressors: who compresses batches of pages, and restores them. batchzip's own, and plain loops.

A contender is made for an algorithm and a set of pages. For a batch size it gives two callables without
arguments, each of which takes all pages once, a batch at a time. Outputs are thrown away, or go to the same
place again and again; what is needed before (descriptors, executors) is made before.
"""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import batchzip
from batchzip.bench.pages import PAGE
from batchzip.cpus import usable_cpus
from batchzip.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages
    from batchzip.codecs.codec import Transcode

    Work = Callable[[], object]

_READY_TIMEOUT_S = 60.0


class Load:
    """The pages of a measurement with their outputs, in the forms that contenders want."""

    def __init__(self, algorithm: Algorithm, pages: Pages) -> None:
        self.algorithm = algorithm
        self.codec = algorithm.codec()
        self.pages = pages
        flat = memoryview(pages).cast("B")  # type: ignore[arg-type] # arrays are buffers
        self.views = [flat[at : at + PAGE] for at in range(0, len(flat), PAGE)]
        compress = self.codec.compressor(PAGE)
        self.outputs = [compress(view) for view in self.views]
        self.ratio = pages.nbytes / sum(map(len, self.outputs))

    def starts(self, size: int) -> range:
        """Where the batches of `size` begin."""
        return range(0, len(self.pages), size)


class Compressor(Closing):
    """One contender. `ratio` is bytes of all pages ÷ bytes of their outputs."""

    name: str
    ratio: float

    @abstractmethod
    def compressing(self, size: int) -> Work:
        """Make a callable that compresses all pages in batches of `size`."""

    @abstractmethod
    def restoring(self, size: int) -> Work:
        """Make a callable that restores all pages in batches of `size`."""

    def close(self) -> None:
        """Release what it holds."""


def each(call: Callable[[Any], object], arguments: Sequence[Any]) -> None:
    """Call with each argument, and nothing else."""
    for argument in arguments:
        call(argument)


class Bare(Compressor):
    """A loop of codec calls on one core; batches are nothing to it."""

    name = "bare"

    def __init__(self, load: Load) -> None:
        self.ratio = load.ratio
        self._load = load

    def compressing(self, size: int) -> Work:  # noqa: ARG002 - see above
        """Loop over all pages."""
        return partial(each, self._load.codec.compressor(PAGE), self._load.views)

    def restoring(self, size: int) -> Work:  # noqa: ARG002 - see above
        """Loop over all outputs."""
        return partial(each, self._load.codec.decompressor(PAGE), self._load.outputs)


class OfEngine(Compressor):
    """batchzip's engine with one of its backends, with descriptors used again as a store does."""

    def __init__(self, load: Load, backend: str) -> None:
        self.name = backend
        self.ratio = load.ratio
        self._load = load
        algorithm = load.algorithm
        self._engine = batchzip.Engine(algorithm.name, backend=backend, **algorithm.parameters)
        self._engine.wait_ready(_READY_TIMEOUT_S)

    def compressing(self, size: int) -> Work:
        """Compress with one descriptor that is refilled."""
        pages, compress = self._load.pages, self._engine.compress
        batch = batchzip.CompressBatch(pages[:size])

        def work() -> None:
            for at in self._load.starts(size):
                batch.refill(pages[at : at + size])
                compress(batch)

        return work

    def restoring(self, size: int) -> Work:
        """Restore, always to the same pages."""
        room = np.zeros((size, PAGE), np.uint8)
        outputs = self._load.outputs
        batches = [
            batchzip.DecompressBatch(outputs[at : at + size], room)
            for at in self._load.starts(size)
        ]
        return partial(each, self._engine.decompress, batches)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class Threads(Compressor):
    """A ThreadPoolExecutor with a thread for each CPU; each takes an equal part of a batch."""

    name = "thread pool"

    def __init__(self, load: Load) -> None:
        self.ratio = load.ratio
        self._load = load
        self._count = usable_cpus()
        self._executor = ThreadPoolExecutor(self._count)

    def compressing(self, size: int) -> Work:
        """Compress a batch with all threads, then the next."""
        calls = [self._load.codec.compressor(PAGE) for _ in range(self._count)]
        return self._shared_out(calls, self._load.views, size)

    def restoring(self, size: int) -> Work:
        """Restore a batch with all threads, then the next."""
        calls = [self._load.codec.decompressor(PAGE) for _ in range(self._count)]
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
