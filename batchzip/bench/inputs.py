"""Pages to measure with: of a process, of a file, of a workload started for it, or made to be hard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.cli.file_pages import FilePages
from batchzip.cli.process_memory import ProcessMemory
from batchzip.cli.workload import Workload
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.buffers import Bytes

PAGE = 4096
"""Bytes of a page in all benchmarks: that of x86, and of zswap."""

MADE = ("random", "zeros", "alternating")
"""Pages nobody has: no codec makes them smaller; nothing to do; by turns hard and easy."""

_SEED = 20240601

_WORKLOAD_MIB = 64


def made_pages(kind: str, count: int) -> Bytes:
    """Make pages of one of the kinds of MADE."""
    rng = np.random.default_rng(_SEED)
    if kind == "zeros":
        return np.zeros((count, PAGE), np.uint8)
    pages = rng.integers(0, 256, (count, PAGE), np.uint8)
    if kind == "alternating":
        pages[::2] = np.frombuffer(b"a page that is easy to compress." * (PAGE // 32), np.uint8)
        pages[::2, :8] = np.arange(len(pages[::2]), dtype=np.uint64)[:, None].view(np.uint8)
    return pages


def workload_pages(count: int) -> Bytes:
    """Take pages of a small real program: Python objects, parsed source, JSON, NumPy arrays."""
    with (
        Workload(_WORKLOAD_MIB) as workload,
        ProcessMemory(workload.pid, page_size=PAGE, chunk_pages=1024) as memory,
    ):
        return _chosen(list(memory.chunks()), count, "the workload")


def process_pages(pid: int, count: int) -> Bytes:
    """Take pages of a running process. Raises UnreadableProcess."""
    with ProcessMemory(pid, page_size=PAGE, chunk_pages=1024) as memory:
        return _chosen(list(memory.chunks()), count, f"process {pid}")


def file_pages(path: str, count: int) -> Bytes:
    """Take pages of a file. Raises OSError."""
    with FilePages(path, page_size=PAGE) as file:
        return _chosen([chunk.copy() for chunk in file.chunks()], count, path)


def _chosen(chunks: list[Bytes], count: int, source: str) -> Bytes:
    """Shuffle, and leave out the same-filled: they are no work for a codec."""
    if not chunks:
        raise BadArgument(f"{source} is empty: there is nothing to compress")
    pages = np.concatenate(chunks)
    words = pages.view(np.uint64)
    pages = pages[(words != words[:, :1]).any(axis=1)]
    if not len(pages):
        raise BadArgument(f"all pages of {source} are same-filled: there is nothing to compress")
    np.random.default_rng(_SEED).shuffle(pages)
    return np.ascontiguousarray(pages[:count])
