"""Peer stores: zict, blosc2's SChunk, and the kernel's zram and swap as stores of pages."""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.backend import is_native
from batchzip.bench.figure import default_lanes
from batchzip.bench.file_stores import Diskcache, Lmdb, Sqlite
from batchzip.bench.pages import PAGE
from batchzip.bench.peers import CHUNK_PAGES, blosc2_chunk
from batchzip.bench.stores import FOLIO_PAGES, Dict, OfBatchzip, Store
from batchzip.bench.zram import Zram, aligned
from batchzip.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Result
    from batchzip.bench.kernel_swap import KernelSwap
    from batchzip.bench.pages import Pages


class Zict(Dict):
    """zict.Func over a dict, as distributed's workers use it for their data."""

    name = "zict"

    def __init__(self, algorithm: Algorithm) -> None:
        if importlib.util.find_spec("zict") is None:
            raise BackendUnavailable("zict is not installed: pip install zict")
        super().__init__(algorithm)
        self.open()

    def open(self) -> None:
        """Start with an empty mapping."""
        import zict  # noqa: PLC0415 - not one of the library's dependencies

        super().open()
        self._mapping: Any = zict.Func(self._compress, self._decompress, self._pages)

    def store(self, index: int, pages: Pages) -> None:
        """Set a value for each page."""
        for at, page in enumerate(pages, start=index):
            self._mapping[at] = page.data

    def load(self, index: int) -> bytes:
        """Return a value."""
        found: bytes = self._mapping[index]
        return found

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Load the values one by one."""
        for row, index in zip(out, indices.tolist(), strict=True):
            row[:] = np.frombuffer(self._mapping[index], np.uint8)


class Blosc2Pages(Store):
    """An SChunk with one page per chunk."""

    name = "blosc2 page"

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._one = np.zeros(PAGE, np.uint8)
        self.open()

    def open(self) -> None:
        """Start with an empty SChunk."""
        self._chunk: Any = blosc2_chunk(self._algorithm, 1, 1)

    def store(self, index: int, pages: Pages) -> None:  # noqa: ARG002 - indices ascend
        """Append the pages one by one."""
        for page in pages:
            self._chunk.append_data(page)

    def load(self, index: int) -> object:
        """Decompress a page, always to the same memory."""
        return self._chunk.decompress_chunk(index, self._one)

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Decompress the pages one by one."""
        for row, index in zip(out, indices.tolist(), strict=True):
            self._chunk.decompress_chunk(index, row)

    @property
    def held_bytes(self) -> int:
        """The SChunk's own figure, without the allocator's rounding."""
        return int(self._chunk.cbytes)


class Blosc2Blocks(Store):
    """An SChunk with chunks of 1 MiB in blocks of one page. Pages are buffered per chunk."""

    name = "blosc2 1 MiB"

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._one = bytearray(PAGE)
        self._gathered = np.zeros((CHUNK_PAGES, PAGE), np.uint8)
        self.open()

    def open(self) -> None:
        """Start with an empty SChunk."""
        self._chunk: Any = blosc2_chunk(self._algorithm, CHUNK_PAGES, default_lanes())
        self._filled = 0

    def store(self, index: int, pages: Pages) -> None:  # noqa: ARG002 - indices ascend
        """Buffer the pages and append full chunks."""
        done = 0
        while done < len(pages):
            taken = min(CHUNK_PAGES - self._filled, len(pages) - done)
            self._gathered[self._filled : self._filled + taken] = pages[done : done + taken]
            self._filled += taken
            done += taken
            if self._filled == CHUNK_PAGES:
                self._append()

    def _append(self) -> None:
        self._chunk.append_data(self._gathered[: self._filled])
        self._filled = 0

    def flush(self) -> None:
        """Append the last, partial chunk."""
        if self._filled:
            self._append()

    def load(self, index: int) -> object:
        """Decompress one block, always to the same memory."""
        return self._chunk.get_slice(index * PAGE, (index + 1) * PAGE, self._one)

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Decompress the blocks one by one."""
        for row, index in zip(out, indices.tolist(), strict=True):
            self._chunk.get_slice(index * PAGE, (index + 1) * PAGE, row)

    @property
    def held_bytes(self) -> int:
        """The SChunk's own figure, without the allocator's rounding."""
        return int(self._chunk.cbytes)


class ZramStore(Store):
    """A zram device, used by one thread."""

    name = "zram"

    def __init__(self, algorithm: Algorithm, pages: int) -> None:
        if algorithm.name != "lz4":
            raise BackendUnavailable("zram is measured with lz4 only")
        self._device = Zram(pages * PAGE)
        self._one = aligned(PAGE)
        self._row = np.frombuffer(self._one, np.uint8)
        self._folio = aligned(CHUNK_PAGES * PAGE)

    def open(self) -> None:
        """Start with an empty device."""
        self._device.reset()

    def store(self, index: int, pages: Pages) -> None:
        """Write a folio from aligned memory, which O_DIRECT needs."""
        for at in range(0, len(pages), CHUNK_PAGES):
            part = pages[at : at + CHUNK_PAGES]
            room = self._folio[: part.nbytes]
            room[:] = memoryview(part).cast("B")  # type: ignore[arg-type] # arrays are buffers
            self._device.write(room, (index + at) * PAGE)

    def load(self, index: int) -> object:
        """Read a page, always to the same memory."""
        self._device.read(self._one, index * PAGE)
        return self._one

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Read the pages one by one."""
        for row, index in zip(out, indices.tolist(), strict=True):
            self._device.read(self._one, index * PAGE)
            row[:] = self._row

    @property
    def held_bytes(self) -> int:
        """The kernel's own figure."""
        return self._device.held_bytes

    def close(self) -> None:
        """Remove the device."""
        self._device.close()


_PAGEOUT = 21
"""MADV_PAGEOUT, which the module mmap does not name."""

_PRESENT = np.uint64(1 << 63)
"""Bit of /proc/PID/pagemap: the page is in memory."""


class KernelPages(Store):
    """Anonymous memory that holds the pages. Storing swaps them out, and loading touches them.

    The kernel's swap takes no pages by number. The memory is filled in `open`, without being timed.
    """

    def __init__(self, algorithm: Algorithm, pages: Pages, kernel: KernelSwap, folio: int) -> None:
        self.name = "kernel swap" if folio > 1 else "kernel swap, by page"
        if algorithm.name != "lz4":
            raise BackendUnavailable("the kernel's swap is measured with lz4 only")
        if mmap.PAGESIZE != PAGE:
            raise BackendUnavailable(f"the kernel's swap has pages of {mmap.PAGESIZE} bytes here")
        self.folio_pages = folio
        self._pages = pages
        self._kernel = kernel
        self._memory = mmap.mmap(-1, pages.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._bytes = memoryview(self._memory)
        self._rows = np.frombuffer(self._memory, np.uint8).reshape(-1, PAGE)

    def open(self) -> None:
        """Drop all pages, also those swapped out, and fill the memory."""
        self.close()
        self._rows[:] = self._pages

    def store(self, index: int, pages: Pages) -> None:
        """Swap a folio out."""
        self._memory.madvise(_PAGEOUT, index * PAGE, pages.nbytes)

    def load(self, index: int) -> int:
        """Touch a page."""
        return self._bytes[index * PAGE]

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Copy the pages one by one."""
        np.take(self._rows, indices, axis=0, out=out, mode="clip")  # other modes copy twice

    def put_back(self, indices: NDArray[np.int64]) -> None:
        """Swap the pages out again."""
        for index in indices.tolist():
            self._memory.madvise(_PAGEOUT, index * PAGE, PAGE)

    @property
    def held_bytes(self) -> int:
        """The memory of the swap's device, and pages that were not swapped out."""
        entries = np.zeros(len(self._pages), np.uint64)
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            file.seek(self._rows.ctypes.data // PAGE * entries.itemsize)
            file.readinto(entries)  # type: ignore[arg-type] # arrays are buffers
        resident = int(np.count_nonzero(entries & _PRESENT))
        return self._kernel.held_bytes + resident * PAGE

    def close(self) -> None:
        """Drop all pages, also those swapped out."""
        self._memory.madvise(mmap.MADV_DONTNEED)


def contenders(
    algorithm: Algorithm,
    pages: Pages,
    result: Result,
    *,
    zram: bool,
    kernel: KernelSwap | None = None,
) -> Iterator[Store]:
    """Yield all stores available for an algorithm. Add a note to the result for each other one."""
    compress = algorithm.codec().compressor(PAGE)
    compressed = sum(len(compress(page.data)) for page in pages)
    yield Dict(algorithm)
    yield OfBatchzip("sequential", algorithm, "sequential")
    if is_native(algorithm.codec()):
        yield OfBatchzip("threads", algorithm, "threads")
    yield OfBatchzip("workers", algorithm, "workers")
    yield OfBatchzip("workers, 1 MiB folios", algorithm, "workers", folio_pages=CHUNK_PAGES)
    half = max(PAGE, compressed // 2)
    yield OfBatchzip("workers, half in file", algorithm, "workers", limit_bytes=half)
    makers: list[Callable[[], Store]] = [
        partial(Zict, algorithm),
        partial(Blosc2Pages, algorithm),
        partial(Blosc2Blocks, algorithm),
        partial(Sqlite, algorithm),
        partial(Lmdb, algorithm),
        partial(Diskcache, algorithm),
    ]
    if zram:
        makers.append(partial(ZramStore, algorithm, len(pages)))
    if kernel is not None:
        makers += [
            partial(KernelPages, algorithm, pages, kernel, folio) for folio in (FOLIO_PAGES, 1)
        ]
    for make in makers:
        try:
            yield make()
        except BackendUnavailable as error:
            result.note(f"{error}")
