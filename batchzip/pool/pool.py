"""Pool: malloc and free of compressed objects in shared memory. The Python face of the allocator.

This module documents the methods and checks their arguments. batchzip/core/pool.pyx explains the
allocator.

Rejected: a bytes object per page. It would cost 33 bytes of header and the general allocator's
rounding, in memory that no other process can see and no limit counts.

Each call is atomic. It works under the pool's mutex without the GIL, so that neither an interrupt
nor another thread sees a half-done change. No Python code runs meanwhile: buffers are acquired
first.
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments.buffers import check_page_size
from batchzip.arguments.checks import as_integer, as_limit
from batchzip.core.pool import Allocator
from batchzip.errors import BadArgument, BadHandle
from batchzip.pool import audit
from batchzip.pool.class_use import ClassUse
from batchzip.system.lifetime import Closing
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    import numpy.typing as npt

    Data: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, np.dtype[np.uint8]]
    Handles: TypeAlias = npt.NDArray[np.uint64]

_MOST_NAME = 200
"""Longest name of a pool in bytes. The kernel takes 249, and the core appends a suffix."""


class Pool(Closing):
    """Compressed objects of 1 to `page_size` bytes in shared memory; counterpart of zsmalloc.

    `max_bytes` limits the memory held, in bytes; None for no limit. `page_size` is a power of two
    from 512 bytes to 2 MiB. `name` appears in /proc/<pid>/maps. Raises OSError if the system has no
    shared memory.

    Threads may share a pool; each call is atomic. A pool belongs to its process. In a forked child,
    every use raises ForkedProcess except close(), which drops the child's mapping and leaves the
    owner's memory alone. After close() every use raises ClosedError. Nothing has a name in the file
    system, so nothing is left behind however the owner ends.

    A handle is an int from 0 to 2**64 - 1. No handle is issued twice. Methods for many objects take
    a uint64 array or any sequence of ints. Data is any contiguous buffer; it is copied.

    Examples:
        >>> import batchzip
        >>> with batchzip.Pool(max_bytes=1 << 20) as pool:
        ...     handle = pool.put(b"a compressed object")
        ...     pool.read(handle), pool.stored_bytes
        ...     pool.free(handle), pool.objects
        (b'a compressed object', 19)
        (19, 0)
    """

    def __init__(
        self, max_bytes: int | None = None, *, page_size: int = 4096, name: str = "batchzip-pool"
    ) -> None:
        if not isinstance(name, str) or "\0" in name or len(os.fsencode(name)) > _MOST_NAME:
            raise BadArgument(
                f"name must be a string of at most {_MOST_NAME} bytes, not {shown(name)}"
            )
        self.page_size = check_page_size(page_size)
        """Bytes of the largest object."""
        self.allocator = Allocator(self.page_size, as_limit(max_bytes, "max_bytes"), name)
        """The compiled allocator, for other compiled code."""

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes and return their handle. Their content is undefined.

        Raise BadArgument for a size below 1 (kernel: -EINVAL) or above `page_size` (-ENOSPC), and
        PoolFull (-ENOMEM) if the limit or the system does not allow it. Nothing has changed then.
        """
        return int(self.malloc_many((size,))[0])

    def malloc_many(self, sizes: Iterable[int]) -> Handles:
        """Allocate an object for each size, or none. Raise the errors of `malloc`."""
        wanted = [as_integer(size, "the size of an object", 1, self.page_size) for size in sizes]
        handles = np.empty(len(wanted), np.uint64)
        self.allocator.allocate(np.array(wanted, np.uint32), handles)
        return handles

    def put(self, data: Data) -> int:
        """Allocate and fill one object. Raise the errors of `put_many`."""
        return self.allocator.put(data)

    def put_many(self, buffers: Iterable[Data]) -> Handles:
        """Allocate and fill an object for each buffer, or none.

        Raise the errors of `malloc`, and BadArgument for anything but a contiguous buffer.
        """
        some = list(buffers)
        handles = np.empty(len(some), np.uint64)
        self.allocator.put_many(some, handles)
        return handles

    def free(self, handle: int) -> int:
        """Free one object. Return its requested size in bytes.

        Raise BadHandle for a handle that is not live. Nothing has changed then.
        """
        return self.allocator.free_one(handle)

    def free_many(self, handles: Iterable[int] | Handles) -> int:
        """Free every object, or none. Return the sum of their requested sizes in bytes.

        Raise BadHandle if a handle is not live or is given twice. Pages of memory without an object
        return to the system at once, except for one page in 64 and 32 more. These are kept for the
        next malloc or `compact`.
        """
        words = _as_handles(handles)
        ordered = np.sort(words)
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            raise BadHandle(f"handle {ordered[1:][twice][0]} is given twice")
        return self.allocator.free(words)

    def compact(self, max_objects: int = 1024) -> int:
        """Move about `max_objects` objects together. Return the bytes given back (zs_compact).

        First the objects of each class move from the emptiest zspages to the fullest. Then zspages
        slide down over the free space below them. The next call continues where this one ended. Up
        to 64 objects of a zspage slide together, even if `max_objects` is smaller. Handles stay
        valid, and readers in other processes do not notice. A call takes about 0.5 µs per moved
        object. Call it again while `fragmented_bytes` is worth it. A result of 0 means only that
        this call gave nothing back.
        """
        if type(max_objects) is not int or max_objects < 1:
            raise BadArgument(f"max_objects must be an int of at least 1, not {max_objects!r}")
        return self.allocator.compact(min(max_objects, 1 << 40))

    @property
    def fragmented_bytes(self) -> int:
        """Approximate bytes that repeated calls of `compact` could give back."""
        return self.allocator.figures()["fragmented"]

    def write(self, handle: int, data: Data) -> None:
        """Fill one object with `data`, which must have exactly its requested size.

        Raise BadHandle, or BadArgument for data of another length. Nothing has changed then.
        """
        self.write_many((handle,), (data,))

    def write_many(self, handles: Iterable[int] | Handles, buffers: Iterable[Data]) -> None:
        """Fill every object. All handles and buffers are checked before the first is written."""
        words, some = _as_handles(handles), list(buffers)
        if len(words) != len(some):
            raise BadArgument(f"{len(words)} handles need as many buffers, not {len(some)}")
        self.allocator.write(words, some)

    def read(self, handle: int) -> bytes:
        """Return a copy of the object's bytes. Raise BadHandle."""
        return self.allocator.read(handle)

    def read_many(self, handles: Iterable[int] | Handles) -> list[bytes]:
        """Return copies of the bytes of each object, taken at one moment. Raise BadHandle."""
        words = _as_handles(handles)
        return self.allocator.read_many(words, np.empty(len(words), np.uint32))

    def lengths(self, handles: Iterable[int] | Handles) -> npt.NDArray[np.int64]:
        """Return the requested size of each object in bytes. Raise BadHandle."""
        words = _as_handles(handles)
        lengths = np.empty(len(words), np.uint32)
        self.allocator.lengths(words, lengths)
        return lengths.astype(np.int64)

    def class_size(self, size: int) -> int:
        """Return the bytes of memory of an object of `size` bytes, which depend on its class."""
        size = as_integer(size, "the size of an object", 1, self.page_size)
        return self.allocator.class_bytes(size)

    def handles(self) -> Handles:
        """Return the handles of all live objects."""
        handles = np.empty(0, np.uint64)
        while (count := self.allocator.list_handles(handles)) > len(handles):
            handles = np.empty(count + count // 8, np.uint64)
        return handles[:count]

    @property
    def descriptors(self) -> tuple[int, int]:
        """Descriptors of the objects and of the words, for readers. The pool owns them."""
        return self.allocator.descriptors()

    @property
    def table_bytes(self) -> int:
        """Bytes of memory of the pool's tables, which `held_bytes` does not include."""
        return self.allocator.figures()["tables"]

    @property
    def max_bytes(self) -> int | None:
        """Bytes of memory the pool may hold, or None. One below `held_bytes` only stops growth."""
        return self.allocator.limit()

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self.allocator.set_limit(as_limit(value, "max_bytes"))

    @property
    def held_bytes(self) -> int:
        """Bytes of memory of the pool now, as the system counts them (zs_get_total_pages)."""
        return self.allocator.figures()["held"]

    @property
    def stored_bytes(self) -> int:
        """Sum of the requested sizes of all live objects."""
        return self.allocator.figures()["stored"]

    @property
    def objects(self) -> int:
        """Number of live objects."""
        return self.allocator.figures()["objects"]

    def __len__(self) -> int:
        return self.objects

    def __bool__(self) -> bool:
        """Return True: an empty pool is not false, though its length is 0."""
        return True

    def classes(self) -> list[ClassUse]:
        """Return the size classes that hold memory, by size, like zsmalloc's table in debugfs."""
        return [ClassUse(*line) for line in self.allocator.classes()]

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant does not hold. Slow: it reads all tables."""
        audit.check(self.allocator.tables())

    def close(self) -> None:
        """Free everything and return the memory to the system."""
        self.allocator.close()


def _as_handles(handles: Iterable[int]) -> Handles:
    """Return a new array of the given handles. Raise BadHandle for anything but integers."""
    if isinstance(handles, np.ndarray) and handles.dtype == np.uint64 and handles.ndim == 1:
        return np.array(handles)
    try:
        packed = array("Q", list(handles))
    except (TypeError, OverflowError) as error:
        raise BadHandle(f"a handle must be an integer from 0 to 2⁶⁴−1: {error}") from None
    return np.array(packed, np.uint64)
