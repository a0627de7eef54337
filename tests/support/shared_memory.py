"""The memory that a store shares, as whoever damages it sees it."""

import mmap
import os
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from support.entries import DIRECTORY, ENTRIES
from support.pool_memory import own_mapping

from batchzip.store.group import Group


def entry_of(group: Group, index: int) -> npt.NDArray[np.uint64]:
    """View both words of an entry, writable; its table is shared from then on."""
    words = np.frombuffer(own_mapping(group._entries.share()), np.uint64)
    blocks = int(words[1])
    place = words[DIRECTORY // 8 : DIRECTORY // 8 + blocks].tolist().index(index >> 9)
    at = ENTRIES // 8 + 2 * (place << 9 | index & 511)
    return words[at : at + 2]


def set_codec(group: Group, index: int, number: int) -> None:
    """Have an entry say that another codec made its bytes."""
    entry = entry_of(group, index)
    entry[1] = int(entry[1]) & ~(0xFF << 40) | number << 40


def flip_value(group: Group, index: int) -> None:
    """Damage what an entry refers to; the second time it is whole again."""
    entry_of(group, index)[0] ^= np.uint64(1 << 50)


def memory_files() -> dict[str, int]:
    """Find the descriptors of this process's shared memory, by inode."""
    found: dict[str, int] = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            if str(path.readlink()).startswith("/memfd:batchzip"):
                found[str(path.stat().st_ino)] = int(path.name)
        except FileNotFoundError:  # the folder's own
            continue
    return found


class Bits:
    """The bits of shared memory, to be flipped."""

    def __init__(self, files: dict[str, int]) -> None:
        self.maps: list[tuple[memoryview, list[int]]] = []
        self.names: list[str] = []
        for fd in files.values():
            own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            pages = pages_with_memory(own, os.fstat(fd).st_size)
            if pages:
                self.maps.append((own_mapping(own), pages))
                self.names.append(str(Path(f"/proc/self/fd/{own}").readlink()))
            os.close(own)

    def named(self, part: str) -> memoryview:
        """Give the memory with this in its name."""
        found = zip(self.maps, self.names, strict=True)
        return next(where for (where, _), name in found if part in name)

    def flip(self, where: memoryview, at: int, bit: int) -> None:
        where[at] ^= 1 << bit

    def choose(self, rng: random.Random) -> tuple[memoryview, int, int]:
        """Choose a bit: heads of pages, and what is used of them, more often than others."""
        where, pages = rng.choice(self.maps)
        within = rng.randrange(rng.choice([32, 256, mmap.PAGESIZE]))
        return where, rng.choice(pages) + within, rng.randrange(8)


def pages_with_memory(fd: int, size: int) -> list[int]:
    """Find the pages that have memory: a look at others would give them some."""
    pages: list[int] = []
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: there is nothing more
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        pages += range(at, end, mmap.PAGESIZE)
        at = end
    return pages
