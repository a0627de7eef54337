"""Smoke test of an installed wheel: plug-ins and C libraries are found, pages go out and come back."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

import batchzip
from batchzip.backend import is_native
from batchzip.codecs import make_codec
from batchzip.core import build, staleness
from batchzip.core.libraries import libraries

PAGES = [(b"page %d of the smoke test, " % n * 200)[:4096] for n in range(100)]


@dataclass(frozen=True)
class InPython(batchzip.Codec):
    """A codec in Python, and of `__main__`: the core calls it back, and workers get it by value."""

    name: ClassVar[str] = "zlib"

    def compressor(self, page_size: int) -> object:  # noqa: ARG002 - zlib sizes itself
        """Return what compresses a page."""
        return zlib.compress

    def decompressor(self, page_size: int) -> object:  # noqa: ARG002
        """Return what restores one."""
        return zlib.decompress


def check(algorithm: str | batchzip.Codec, backend: str) -> None:
    """Store pages with an engine, and load them."""
    with batchzip.Engine(algorithm, backend=backend, workers=2) as engine:
        assert engine.wait_ready(), (algorithm, backend)
        assert len(engine.worker_pids) == (2 if backend == "workers" else 0)
        batch = batchzip.CompressBatch(PAGES * 10)
        engine.compress(batch)
        assert not batch.errors.any(), batch.errors
        with batchzip.SwapStore(engine) as store:
            store.store(7, PAGES)
            assert store.load(42) == PAGES[35]
            assert store.load_many([7, 106]).tobytes() == PAGES[0] + PAGES[99]


def check_paged() -> None:
    """Take an array of four times its budget there and back, and one of NumPy's own making."""
    with batchzip.PagedMemory(4 << 20, 1 << 20) as memory:
        array = memory.array(1 << 18, "i8")
        array[:] = range(1 << 18)
        memory.evict(array)
        assert array.sum() == sum(range(1 << 18))
        assert memory.statistics.evicted_pages > 0
        with memory.allocator():
            made = np.arange(1 << 18)
        assert np.array_equal(made, array)
        del made, array
        assert memory.free_bytes == memory.size


def main() -> None:
    """Check what a fresh install has and does."""
    assert batchzip.algorithms() == ["lz4", "lz4hc", "zstd"], batchzip.algorithms()
    assert batchzip.backends() == ["dask", "sequential", "threads", "workers"], batchzip.backends()
    assert (Path(batchzip.__file__).parent / "py.typed").exists()
    assert build.PROFILE == "release", build.PROFILE
    assert not staleness.is_stale()
    assert not [each for each in libraries() if each.problem is not None], libraries()
    for algorithm in batchzip.algorithms():
        assert is_native(make_codec(algorithm)), algorithm
        for backend in ("sequential", "threads", "workers"):
            check(algorithm, backend)
    for backend in ("sequential", "workers"):
        check(InPython(), backend)
    try:
        batchzip.Engine(InPython(), backend="threads")
    except batchzip.BackendUnavailable as error:
        assert "workers" in str(error), error
    else:
        raise AssertionError("threads are for codecs that are C functions")
    try:
        batchzip.Engine(backend="dask")
    except batchzip.MissingExtra as error:
        assert error.command == "pip install 'distributed>=2025.1'", error
    else:
        raise AssertionError("the extra is not installed here")
    print(batchzip.paged.available())
    if batchzip.paged.available():
        check_paged()
    print("smoke test: ok")


if __name__ == "__main__":
    main()
