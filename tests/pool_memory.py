"""The memory of a pool's objects, as whoever damages it sees it."""

import os

from batchzip.pool import Pool
from batchzip.segment import Segment


def memory_of(pool: Pool) -> Segment:
    """Map the objects, writable."""
    return Segment.attach(os.dup(pool.descriptors[0]))


def object_of(pool: Pool, handle: int) -> memoryview:
    """View the bytes of one object, writable."""
    start, stop = pool.allocator.extent(handle)
    return memory_of(pool).view[start:stop]
