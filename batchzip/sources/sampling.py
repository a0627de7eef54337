"""Samples of a process's memory or a file: blocks from all over it, without reading the rest.

The data is divided into equal stretches, and one block is taken at random from each. Evenly spaced
blocks would always or never meet data that repeats at the same distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.advice import BLOCK_BYTES
from batchzip.errors import BadArgument, UnreadableProcess
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sample:
    """Blocks that were sampled from a file or a process."""

    kind: str
    name: str
    details: dict[str, Any]
    total_bytes: int
    blocks: NDArray[np.uint8]
    """(n, BLOCK_BYTES)"""


def sample_file(path: str | os.PathLike[str], sample_bytes: int, seed: int) -> Sample:
    """Return a sample of a file. Data after the last whole block is never sampled.

    Raise OSError, or BadArgument if the file is empty or smaller than a block.
    """
    with FilePages(path, page_size=BLOCK_BYTES) as file:
        places = _places(file.name, file.size, sample_bytes, seed)
        blocks = file.read(places)
        file.check_unchanged()
        return Sample(file.kind, file.name, file.details(), file.size, blocks)


def sample_process(pid: int, sample_bytes: int, seed: int, *, name: str = "") -> Sample:
    """Return a sample of the anonymous memory of a process.

    Blocks that the process frees meanwhile are left out. Raise UnreadableProcess if it cannot be
    read or ends meanwhile, and BadArgument if it has less memory than a block.
    """
    with ProcessMemory(pid, page_size=BLOCK_BYTES, name=name) as memory:
        found = memory.found_bytes
        places = _places(memory.name, found, sample_bytes, seed)
        blocks = np.empty((len(places), BLOCK_BYTES), np.uint8)
        kept = 0
        for place in places.tolist():
            kept += memory.read_packed(place * BLOCK_BYTES, blocks[kept])
        if not kept:
            raise UnreadableProcess(f"process {pid} freed all its memory while it was read")
        return Sample(memory.kind, memory.name, {"pid": pid}, found, blocks[:kept])


def _places(name: str, total: int, sample_bytes: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers of the blocks to read, sorted and without repetition."""
    there = total // BLOCK_BYTES
    if not there:
        raise BadArgument(
            f"{name} has {total:,} bytes: advice needs at least {size_text(BLOCK_BYTES)}"
        )
    count = min(there, max(1, sample_bytes // BLOCK_BYTES))
    jitter = np.random.default_rng(seed).random(count)
    places: NDArray[np.int64] = ((np.arange(count) + jitter) * there / count).astype(np.int64)
    return places
