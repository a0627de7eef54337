"""Pool: malloc and free of compressed objects in one shared segment, a batch under one lock.

Rejected: a bytes object per page: 33 bytes of header and the general allocator's rounding, in
memory that no other process can see and no limit counts. Rejected too: a lock per object. A batch
is the unit of the engine, and so it is here: one lock a call.

    Pool   who may call, and when: arguments, the lock, closed, forked, interrupted
      └─ Arena   the steps          └─ HandleTable   handle ──▶ address, length
           └─ compaction            └─ SpanTable     class ──▶ hole;  memory of the segment

All bookkeeping is outside the segment of the objects: whatever happens to their bytes, the pool stays
whole. The words of the handles are in a second segment, so that a reader in another process finds
the objects; of what it may do, nothing reaches the pool.

    READY ──call──▶ TORN ──done──▶ READY        close() ──▶ CLOSED        fork, child ──▶ FORKED

A pool is TORN while a call changes it. A call that finds it so was preceded by one that was
interrupted, and repairs it first: the next call finds all of that batch, or nothing of it.

Invariants: those of Arena; not TORN while the lock is free, save after an interrupt.

Lock order: the pool's lock is taken last (after a store's), and nothing is called back under it.
read() takes none: a handle's word is read at once, and growing leaves old views valid.

Readers in other processes: bytes are copied to a place before the word that names it is written, and the
place of an object is not given to another before its word has changed. So whoever finds a
word the same after copying what it names has copied the object (core/view.pyx).
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from batchzip.checks import check_limit
from batchzip.errors import BadArgument, BatchzipError, ClosedError, ForkedProcess
from batchzip.lifetime import Closing
from batchzip.pool import audit
from batchzip.pool.arena import Arena
from batchzip.pool.compaction import compact
from batchzip.pool.handles import as_handles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeAlias

    from batchzip.pool.audit import ClassUse
    from batchzip.pool.handles import Integers, Words

    Data: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, np.dtype[np.uint8]]

Result = TypeVar("Result")

READY, TORN, CLOSED, FORKED = range(4)

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _disown() -> None:
    """Mark every pool in a forked child, where a lock may be held by a thread that is not there."""
    for pool in _pools:
        if pool._state != CLOSED:  # noqa: SLF001 - this function is part of Pool
            pool._state = FORKED  # noqa: SLF001
        pool._lock = threading.Lock()  # noqa: SLF001


os.register_at_fork(after_in_child=_disown)


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
    or any sequence of ints. A batch costs less an object than single calls do: 0.5 us against 4.
    """

    def __init__(
        self, max_bytes: int | None = None, *, page_size: int = 4096, name: str = "batchzip-pool"
    ) -> None:
        self._arena = Arena(page_size, check_limit(max_bytes, "max_bytes"), name)
        self._lock = threading.Lock()
        self._state = READY
        _pools.add(self)

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes and return their handle; what they hold is undefined.

        Raises BadArgument for a size below 1 (kernel: -EINVAL) or above `page_size` (-ENOSPC), and
        PoolFull (-ENOMEM) where the limit or the system does not allow it; nothing changed then.
        """
        return int(self.malloc_many((size,))[0])

    def malloc_many(self, sizes: Iterable[int]) -> Words:
        """Allocate an object for each size, or none at all. Raises as `malloc`."""
        return self._allocate(self._as_sizes(list(sizes)), None)

    def put(self, data: Data) -> int:
        """Allocate and fill one object. Raises as `put_many`."""
        try:
            size = len(data)
        except TypeError as error:
            raise BadArgument(f"put takes a buffer of bytes: {error}") from None
        self._check_size(size)
        return self._change(self._arena.allocate_one, size, data)

    def put_many(self, buffers: Sequence[Data]) -> Words:
        """Allocate and fill an object for each buffer of bytes, or none at all.

        The buffers are copied and stay the caller's. Raises as `malloc`, and BadArgument for what
        is not a one-dimensional buffer of unsigned bytes.
        """
        try:
            sizes = list(map(len, buffers))
        except TypeError as error:
            raise BadArgument(f"put_many takes a sequence of buffers of bytes: {error}") from None
        return self._allocate(self._as_sizes(sizes), buffers)

    def _check_size(self, size: int) -> None:
        largest = self._arena.classes.page_size
        if type(size) is not int or not 0 < size <= largest:
            raise BadArgument(f"an object has 1 to {largest} bytes, not {size!r}")

    def _as_sizes(self, sizes: list[int]) -> Integers:
        """Make an array of sizes of objects. Raises BadArgument where one is not right."""
        largest = self._arena.classes.page_size
        array = np.array(sizes or [1])
        if array.dtype != np.int64 or np.maximum.reduce((array - 1).view(np.uint64)) >= largest:
            wrong = [size for size in sizes if type(size) is not int or not 0 < size <= largest]
            raise BadArgument(f"an object has 1 to {largest} bytes, not {(wrong or sizes)[0]!r}")
        return array[: len(sizes)]

    def _allocate(self, sizes: Integers, buffers: Sequence[Data] | None) -> Words:
        if not len(sizes):
            return np.empty(0, np.uint64)
        if len(sizes) == 1:
            data = None if buffers is None else buffers[0]
            handle = self._change(self._arena.allocate_one, int(sizes[0]), data)
            return np.array([handle], np.uint64)
        return self._change(self._arena.allocate, sizes, buffers)

    def _change(self, step: Callable[..., Result], *arguments: Any) -> Result:
        """Run a step that changes the arena; an error of ours leaves the arena whole."""
        with self._lock:
            if self._state:
                self._enter()
            self._state = TORN
            try:
                result = step(*arguments)
            except BatchzipError:
                self._state = READY
                raise
            self._state = READY
            return result

    def free(self, handle: int) -> int:
        """Free one object; the size that was asked for.

        Raises BadHandle for a handle that is not live; nothing changed then.
        """
        return self._change(self._arena.free_one, handle)

    def free_many(self, handles: Sequence[int] | Words) -> int:
        """Free every object, or none where a handle is not live or comes twice: BadHandle.

        Returns the sum of the sizes that were asked for, in bytes.
        The memory of spans whose last object goes is given back at once, save that of the last few
        such spans (one in 64, and up to 32 more), which is kept for the next malloc or `compact`.
        """
        words = as_handles(handles)
        if len(words) == 1:
            return self._change(self._arena.free_one, words[0])
        return self._change(self._arena.free, words)

    def compact(self, max_objects: int = 1024) -> int:
        """Move at most `max_objects` objects together; return the bytes given back (zs_compact).

        Objects go from the emptiest spans of a class to the fullest, class by class, those with the
        most to give first. Handles stay good and readers in other processes never notice, but views
        that `read` gave show something else afterwards. Call it again while `fragmented_bytes` is
        worth it: a call takes about 0.5 us an object moved. 0 says that nothing was given back, which
        may also be so because a span has more objects than the call may move.
        """
        if type(max_objects) is not int or max_objects < 1:
            raise BadArgument(f"max_objects is a number from 1, not {max_objects!r}")
        with self._lock:
            if self._state:
                self._enter()
            self._state = TORN
            given = compact(self._arena, max_objects)
            self._state = READY
            return given

    @property
    def fragmented_bytes(self) -> int:
        """About how much `compact` could give back, called often enough. Costs some 10 us.

        An estimate from sums by class, a page or two off for a class with several spans that grow: who
        wants all of it goes by what `compact` returns.
        """
        with self._lock:
            if self._state:
                self._enter()
            return int(audit.freeable(self._arena.spans).sum())

    def write(self, handle: int, data: Data) -> None:
        """Fill one object with `data`, which is exactly as long as was asked for.

        Raises BadHandle, or BadArgument for data of another length; nothing changed then.
        """
        self.write_many((handle,), (data,))

    def write_many(self, handles: Sequence[int] | Words, buffers: Sequence[Data]) -> None:
        """Fill every object. All handles and buffers are checked before the first is written."""
        if len(handles) != len(buffers):
            raise BadArgument(f"{len(buffers)} buffers for {len(handles)} handles")
        words = as_handles(handles)
        with self._lock:
            if self._state:
                self._enter()
            targets = self._arena.views(words, self._arena.spans.segment.view)
            sources = list(map(_source, buffers))
            for target, source in zip(targets, sources, strict=True):
                if len(source) != len(target):
                    raise BadArgument(f"{len(source)} bytes for an object of {len(target)}")
            for target, source in zip(targets, sources, strict=True):
                target[:] = source

    def read(self, handle: int) -> memoryview:
        """Give a read-only view of the object's bytes, no copy. Raises BadHandle.

        The view shows the object until it is freed or `compact` runs. Later it shows whatever is there
        then: whoever cannot rule that out uses `copy`.
        """
        if self._state > TORN:
            self._enter()
        return self._arena.view(handle)

    def read_many(self, handles: Iterable[int] | Words) -> list[memoryview]:
        """Give a view of each object, as `read`."""
        words = as_handles(handles)
        if self._state > TORN:
            self._enter()
        return self._arena.views(words, self._arena.spans.readable)

    def copy(self, handle: int) -> bytes:
        """Copy the object's bytes, whatever `compact` does in other threads. Raises BadHandle."""
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.copy(handle)

    def copy_many(self, handles: Iterable[int] | Words) -> list[bytes]:
        """Copy the bytes of each object, all of one moment. Raises BadHandle."""
        words = as_handles(handles)
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.copies(words)

    def lengths(self, handles: Sequence[int] | Words) -> Integers:
        """Bytes that were asked for each object, an int64 array. Raises BadHandle."""
        words = as_handles(handles)
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.lengths(words)

    def class_size(self, size: int) -> int:
        """Bytes that an object of `size` bytes takes: those of its class."""
        self._check_size(size)
        classes = self._arena.classes
        return classes.classes[classes.index(size)].size

    def handles(self) -> Words:
        """List the handle of every live object."""
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.handles.handles()

    @property
    def descriptors(self) -> tuple[int, int]:
        """Descriptors of the objects and of the words, for readers; they stay the pool's."""
        if self._state > TORN:
            self._enter()
        return self._arena.spans.segment.fd, self._arena.handles.segment.fd

    @property
    def table_bytes(self) -> int:
        """Bytes of memory of the pool's own tables, which are not counted in `held_bytes`."""
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.handles.nbytes + self._arena.spans.nbytes

    @property
    def page_size(self) -> int:
        """Bytes of the largest object."""
        return self._arena.classes.page_size

    @property
    def max_bytes(self) -> int | None:
        """Bytes of memory the pool may hold, or None. Below `held_bytes` it only stops growth."""
        return self._arena.spans.limit

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        limit = check_limit(value, "max_bytes")
        with self._lock:
            if self._state:
                self._enter()
            self._arena.spans.limit = limit

    @property
    def held_bytes(self) -> int:
        """Bytes of memory behind the pool now, as the system counts them (zs_get_total_pages)."""
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.spans.held

    @property
    def stored_bytes(self) -> int:
        """Sum of the sizes asked for, over all live objects."""
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.stored

    @property
    def objects(self) -> int:
        """Count of the live objects."""
        with self._lock:
            if self._state:
                self._enter()
            return self._arena.objects

    def __len__(self) -> int:
        return self.objects

    def __bool__(self) -> bool:
        """Say yes: an empty pool is a pool."""
        return True

    def classes(self) -> list[ClassUse]:
        """List the classes that hold memory, by size; as zsmalloc's table in debugfs."""
        with self._lock:
            if self._state:
                self._enter()
            return audit.usage(self._arena.spans)

    def check_invariants(self) -> None:
        """Raise AssertionError where the pool is not whole. Slow: it looks at everything."""
        with self._lock:
            if self._state:
                self._enter()
            self._arena.check()

    def _enter(self) -> None:
        """Refuse a pool that is closed or another process's; repair one that was interrupted."""
        if self._state == CLOSED:
            raise ClosedError("this pool is closed")
        if self._state == FORKED:
            raise ForkedProcess("this pool belongs to the process that this one was forked from")
        self._arena.repair()
        self._state = READY

    def close(self) -> None:
        """Free everything and give the memory back; views still held elsewhere keep theirs."""
        with self._lock:
            if self._state != FORKED:
                self._state = CLOSED
            self._arena.close()


def _source(data: Any) -> memoryview:
    try:
        return memoryview(data).cast("B")
    except TypeError as error:
        raise BadArgument(f"not a contiguous buffer of bytes: {error}") from None
