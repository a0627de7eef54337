"""What tests of pools share: contents, and the memory of the objects, to damage it."""

import ctypes
import os
import random
from pathlib import Path
from typing import Any

from batchzip.pool import Pool
from batchzip.system.segment import Segment


def own_mapping(fd: int) -> memoryview:
    """View the mapping that this process writes by: there is no other, as the memory is sealed.

    It must not grow meanwhile: it would move.
    """
    inode = os.fstat(fd).st_ino
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, mode, _, _, mapped, *_ = line.split()
        if int(mapped) == inode and mode == "rw-s":
            start, end = (int(part, 16) for part in place.split("-"))
            return memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")
    raise AssertionError("it is not mapped to write")


def compressed_sizes(count: int, seed: int = 1) -> list[int]:
    """Lengths as of compressed pages: mean 1500, a tail up to the page."""
    rng = random.Random(seed)
    return [min(4096, max(40, int(rng.gammavariate(4, 375)))) for _ in range(count)]


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def contents(count: int, seed: int = 1) -> list[bytes]:
    return [content(size, seed + size) for size in compressed_sizes(count, seed)]


def put(pool: Pool, data: list[Any]) -> list[int]:
    handles: list[int] = pool.put_many(data).tolist()
    return handles


def with_holes(pool: Pool) -> dict[int, bytes]:
    """Fill a pool so that a batch is served from holes, free ranges and new memory alike."""
    data = contents(300)
    handles = put(pool, data)
    pool.free_many(handles[::7])
    return {handle: data[at] for at, handle in enumerate(handles) if at % 7}


def compact(pool: Pool, most: int = 1024) -> int:
    """Compact until nothing is gained any more; return the bytes given back."""
    total, left = 0, pool.fragmented_bytes
    while left:
        total += pool.compact(most)
        left, before = pool.fragmented_bytes, left
        if left >= before:
            break
    return total


def figures(pool: Pool) -> tuple[int, int]:
    return pool.objects, pool.stored_bytes


def memory_of(pool: Pool) -> Segment:
    """Map the objects, writable."""
    return Segment.attach(os.dup(pool.descriptors[0]))


def object_of(pool: Pool, handle: int) -> memoryview:
    """View the bytes of one object, writable."""
    start, stop = pool.allocator.extent(handle)
    return memory_of(pool).view[start:stop]
