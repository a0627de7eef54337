"""The allocator of compressed objects; `batchzip.pool.Pool` is its face and says what is promised.

Arrays have one dimension: handles are uint64, lengths uint32.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchzip.pool.pool import Data

Handles: TypeAlias = npt.NDArray[np.uint64]
Lengths: TypeAlias = npt.NDArray[np.uint32]

class Allocator:
    """A pool. Raises OSError where the system refuses shared memory.

    Every use raises ClosedError after close(), and ForkedProcess in a forked child.
    """

    def __init__(self, page_size: int, limit: int | None, name: str) -> None: ...
    def check_open(self) -> None:
        """Raise ClosedError or ForkedProcess where the pool cannot be used."""

    def close(self) -> None:
        """Give all memory back; in a forked child, only what that has of it."""

    def limit(self) -> int | None:
        """Return the bytes that may be held, or None."""

    def set_limit(self, limit: int | None) -> None:
        """Set the bytes that may be held, or None."""

    def allocate(self, lengths: Lengths, handles: Handles) -> None:
        """Allocate an object for each length, or none; fill `handles`. Raise PoolFull."""

    def put(self, data: Data) -> int:
        """Allocate and fill an object. Raise BadArgument, PoolFull."""

    def put_many(self, buffers: list[Data], handles: Handles) -> None:
        """Allocate and fill an object for each buffer, or none. Raise as `put`."""

    def free(self, handles: Handles) -> int:
        """Free objects, all different, or none. Return the sum of their lengths. Raise BadHandle."""

    def free_one(self, handle: int) -> int:
        """Free an object. Return its length. Raise BadHandle."""

    def write(self, handles: Handles, buffers: list[Data]) -> None:
        """Fill objects, or none. Raise BadHandle, or BadArgument where a length is another."""

    def read(self, handle: int) -> bytes:
        """Copy an object. Raise BadHandle."""

    def read_many(self, handles: Handles, lengths: Lengths) -> list[bytes]:
        """Copy objects, all of one moment; fill `lengths`. Raise BadHandle."""

    def lengths(self, handles: Handles, lengths: Lengths) -> None:
        """Fill `lengths` with those of the objects. Raise BadHandle."""

    def list_handles(self, handles: Handles) -> int:
        """Return how many objects are live; list their handles if there is room for all."""

    def compact(self, most: int) -> int:
        """Move about `most` objects together. Return the bytes given back."""

    def figures(self) -> dict[str, int]:
        """Return held, stored, objects, fragmented and table bytes, all of one moment."""

    def classes(self) -> list[tuple[int, int, int, int, int, int]]:
        """Return what ClassUse has, for each class that has a zspage."""

    def class_bytes(self, length: int) -> int:
        """Return the bytes of memory that an object of `length` bytes takes."""

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors of the objects and of the words; they stay the pool's."""

    def extent(self, handle: int) -> tuple[int, int]:
        """Return where an object's bytes begin and end in the memory of the objects. For tests."""

    def tables(self) -> dict[str, Any]:
        """Return copies of all tables. For `batchzip.pool.audit`."""
