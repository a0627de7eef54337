"""The allocator of compressed objects. `batchzip.pool.Pool` is its public interface.

Arrays have one dimension: handles are uint64, lengths uint32.
"""

from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from batchzip.pool.pool import Data

_Handles: TypeAlias = npt.NDArray[np.uint64]
_Lengths: TypeAlias = npt.NDArray[np.uint32]

class Allocator:
    """A pool. Raises LimitReached or PoolFull if the system refuses memory.

    Every call raises ClosedError after close(), and ForkedProcess in a forked child.
    """

    def __new__(cls, page_size: int, limit: int | None, name: str) -> Self: ...
    def close(self) -> None:
        """Release all memory. In a forked child, release only the child's mappings."""

    def limit(self) -> int | None:
        """Return the limit of the bytes held, or None."""

    def set_limit(self, limit: int | None) -> None:
        """Set the limit of the bytes held; None means no limit."""

    def allocate(self, lengths: _Lengths, handles: _Handles) -> None:
        """Allocate an object for each length, or none. Fill `handles`. Raise PoolFull."""

    def put(self, data: Data) -> int:
        """Allocate and fill an object. Return its handle. Raise BadArgument or PoolFull."""

    def put_many(self, buffers: list[Data], handles: _Handles) -> None:
        """Allocate and fill an object for each buffer, or none. Raise as `put`."""

    def free(self, handles: _Handles) -> int:
        """Free distinct objects, or none. Return the sum of their lengths. Raise BadHandle."""

    def free_one(self, handle: int) -> int:
        """Free an object. Return its length. Raise BadHandle."""

    def write(self, handles: _Handles, buffers: list[Data]) -> None:
        """Fill all objects, or none. Raise BadHandle, or BadArgument if a length differs."""

    def read(self, handle: int) -> bytes:
        """Return a copy of an object. Raise BadHandle."""

    def read_many(self, handles: _Handles, lengths: _Lengths) -> list[bytes]:
        """Return a snapshot of the objects. Fill `lengths`. Raise BadHandle."""

    def lengths(self, handles: _Handles, lengths: _Lengths) -> None:
        """Fill `lengths` with the lengths of the objects. Raise BadHandle."""

    def list_handles(self, handles: _Handles) -> int:
        """Return the number of live objects. List their handles if `handles` has room for all."""

    def compact(self, most: int) -> int:
        """Move about `most` objects to close gaps. Return the bytes returned to the system."""

    def figures(self) -> dict[str, int]:
        """Return a snapshot of the figures: held, stored, objects, fragmented, tables."""

    def classes(self) -> list[tuple[int, int, int, int, int, int]]:
        """Return the fields of ClassUse for each class that has a zspage."""

    def class_bytes(self, length: int) -> int:
        """Return the bytes of memory that an object of `length` bytes takes."""

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors of the objects and of the words. The pool keeps owning them."""

    def extent(self, handle: int) -> tuple[int, int]:
        """Return the offsets at which an object's bytes begin and end. Only tests use it."""

    def tables(self) -> dict[str, Any]:
        """Return copies of all tables, for `batchzip.pool.audit`."""
