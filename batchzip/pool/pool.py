"""Pool: malloc and free of compressed objects in shared memory: the core's allocator, for Python.

Here are arguments, errors and what is promised; batchzip/core/pool.pyx says how it is done.

Rejected: a bytes object per page: 33 bytes of header and the general allocator's rounding, in
memory that no other process can see and no limit counts.

A call is one step: what it does, it does under the pool's mutex without the interpreter, so neither
an interrupt nor another thread finds half of it. No Python code runs meanwhile: buffers are
acquired before.
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
"""Bytes of a pool's name; the kernel takes 249, of which the core's parts need some."""


class Pool(Closing):
    """Compressed objects of 1 to `page_size` bytes in shared memory; counterpart of zsmalloc.

    `max_bytes` limits the memory held, in bytes; None for no limit. `page_size` is a power of two
    from 512 bytes to 2 MiB. `name` shows in /proc/<pid>/maps. Raises OSError where the system
    refuses shared memory.

    Threads may share a pool; a call is one step to the others. A process owns its pool: in a forked
    child every use raises ForkedProcess, save close(), which drops the child's mapping and leaves
    the owner's memory as it is. After close() every use raises ClosedError. Nothing has a name in
    the file system, so nothing is left behind however the owner ends.

    A handle is an int from 0 to 2**64 - 1 and is never given out twice. Many of them are a uint64 array,
    or any sequence of ints. Data is any contiguous buffer; it is copied and stays the caller's.

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
            raise BadArgument(f"name is a text of at most {_MOST_NAME} bytes, not {shown(name)}")
        self.page_size = check_page_size(page_size)
        """Bytes of the largest object."""
        self.allocator = Allocator(self.page_size, as_limit(max_bytes, "max_bytes"), name)
        """The pool itself, for other compiled code."""

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes and return their handle; what they hold is undefined.

        Raises BadArgument for a size below 1 (kernel: -EINVAL) or above `page_size` (-ENOSPC), and
        PoolFull (-ENOMEM) where the limit or the system does not allow it; nothing changed then.
        """
        return int(self.malloc_many((size,))[0])

    def malloc_many(self, sizes: Iterable[int]) -> Handles:
        """Allocate an object for each size, or none at all. Raises as `malloc`."""
        wanted = [as_integer(size, "the size of an object", 1, self.page_size) for size in sizes]
        handles = np.empty(len(wanted), np.uint64)
        self.allocator.allocate(np.array(wanted, np.uint32), handles)
        return handles

    def put(self, data: Data) -> int:
        """Allocate and fill one object. Raises as `put_many`."""
        return self.allocator.put(data)

    def put_many(self, buffers: Iterable[Data]) -> Handles:
        """Allocate and fill an object for each buffer of bytes, or none at all.

        Raises as `malloc`, and BadArgument for what is no contiguous buffer.
        """
        some = list(buffers)
        handles = np.empty(len(some), np.uint64)
        self.allocator.put_many(some, handles)
        return handles

    def free(self, handle: int) -> int:
        """Free one object; the size that was asked for.

        Raises BadHandle for a handle that is not live; nothing changed then.
        """
        return self.allocator.free_one(handle)

    def free_many(self, handles: Iterable[int] | Handles) -> int:
        """Free every object, or none where a handle is not live or comes twice: BadHandle.

        Returns the sum of the sizes that were asked for, in bytes. Memory that no object touches any more
        is given back at once, save one page in 64 and 32 more, which are kept for the next malloc or
        `compact`.
        """
        words = _as_handles(handles)
        ordered = np.sort(words)
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            raise BadHandle(f"handle {ordered[1:][twice][0]} comes twice")
        return self.allocator.free(words)

    def compact(self, max_objects: int = 1024) -> int:
        """Move about `max_objects` objects together; return the bytes given back (zs_compact).

        Objects of each class are brought together, from the emptiest zspages to the fullest; then zspages
        slide down over the free room below them. The next call goes on where this one ended. Objects of
        a zspage, up to 64, slide together, however few may move. Handles stay good, and readers in
        other processes never notice. A call takes about 0.5 µs an object moved. Call it again
        while `fragmented_bytes` is worth it: 0 says that nothing was given back yet.
        """
        if type(max_objects) is not int or max_objects < 1:
            raise BadArgument(f"max_objects is a number from 1, not {max_objects!r}")
        return self.allocator.compact(min(max_objects, 1 << 40))

    @property
    def fragmented_bytes(self) -> int:
        """About how much `compact` could give back, called often enough."""
        return self.allocator.figures()["fragmented"]

    def write(self, handle: int, data: Data) -> None:
        """Fill one object with `data`, which is exactly as long as was asked for.

        Raises BadHandle, or BadArgument for data of another length; nothing changed then.
        """
        self.write_many((handle,), (data,))

    def write_many(self, handles: Iterable[int] | Handles, buffers: Iterable[Data]) -> None:
        """Fill every object. All handles and buffers are checked before the first is written."""
        words, some = _as_handles(handles), list(buffers)
        if len(words) != len(some):
            raise BadArgument(f"{len(some)} buffers for {len(words)} handles")
        self.allocator.write(words, some)

    def read(self, handle: int) -> bytes:
        """Copy the object's bytes. Raises BadHandle."""
        return self.allocator.read(handle)

    def read_many(self, handles: Iterable[int] | Handles) -> list[bytes]:
        """Copy the bytes of each object, all of one moment. Raises BadHandle."""
        words = _as_handles(handles)
        return self.allocator.read_many(words, np.empty(len(words), np.uint32))

    def lengths(self, handles: Iterable[int] | Handles) -> npt.NDArray[np.int64]:
        """Bytes that were asked for each object. Raises BadHandle."""
        words = _as_handles(handles)
        lengths = np.empty(len(words), np.uint32)
        self.allocator.lengths(words, lengths)
        return lengths.astype(np.int64)

    def class_size(self, size: int) -> int:
        """Bytes of memory that an object of `size` bytes takes: those of its class."""
        size = as_integer(size, "the size of an object", 1, self.page_size)
        return self.allocator.class_bytes(size)

    def handles(self) -> Handles:
        """List the handle of every live object."""
        handles = np.empty(0, np.uint64)
        while (count := self.allocator.list_handles(handles)) > len(handles):
            handles = np.empty(count + count // 8, np.uint64)
        return handles[:count]

    @property
    def descriptors(self) -> tuple[int, int]:
        """Descriptors of the objects and of the words, for readers; they stay the pool's."""
        return self.allocator.descriptors()

    @property
    def table_bytes(self) -> int:
        """Bytes of memory of the pool's own tables, which are not counted in `held_bytes`."""
        return self.allocator.figures()["tables"]

    @property
    def max_bytes(self) -> int | None:
        """Bytes of memory the pool may hold, or None. Below `held_bytes` it only stops growth."""
        return self.allocator.limit()

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self.allocator.set_limit(as_limit(value, "max_bytes"))

    @property
    def held_bytes(self) -> int:
        """Bytes of memory behind the pool now, as the system counts them (zs_get_total_pages)."""
        return self.allocator.figures()["held"]

    @property
    def stored_bytes(self) -> int:
        """Sum of the sizes asked for, over all live objects."""
        return self.allocator.figures()["stored"]

    @property
    def objects(self) -> int:
        """Count of the live objects."""
        return self.allocator.figures()["objects"]

    def __len__(self) -> int:
        return self.objects

    def __bool__(self) -> bool:
        """Say yes: an empty pool is a pool."""
        return True

    def classes(self) -> list[ClassUse]:
        """List the classes that hold memory, by size; as zsmalloc's table in debugfs."""
        return [ClassUse(*line) for line in self.allocator.classes()]

    def check_invariants(self) -> None:
        """Raise AssertionError where the pool is not whole. Slow: it looks at everything."""
        audit.check(self.allocator.tables())

    def close(self) -> None:
        """Free everything and give the memory back."""
        self.allocator.close()


def _as_handles(handles: Iterable[int]) -> Handles:
    """Make an array of its own of whatever holds handles. Raises BadHandle for what cannot be one."""
    if isinstance(handles, np.ndarray) and handles.dtype == np.uint64 and handles.ndim == 1:
        return np.array(handles)
    try:
        packed = array("Q", list(handles))
    except (TypeError, OverflowError) as error:
        raise BadHandle(f"a handle is an integer from 0 to 2⁶⁴−1: {error}") from None
    return np.array(packed, np.uint64)
