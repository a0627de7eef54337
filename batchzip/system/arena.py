"""Arena: an engine's arrays in memory shared with its workers, so that batches are not copied.

    arena.array(rows, width) ─▶ a block: its own range of one sparse memfd, with its own mapping
    arena.locate(array) ───────▶ the offset in that file at which an array in a block begins
    the last view of a block is dropped ─▶ its memory returns to the system, its range is reused

Workers inherit the descriptor and map the file once, for all blocks. Rejected: a memfd per array,
because each worker would have to learn of each, and forget it in time; one mapping of the whole
file in the owner, because arrays would have to be freed explicitly.

Invariants
* Blocks do not overlap. All memory of a block is reserved, so that writing never faults (Segment).
* An unused range has no memory.
* A range is reused only when no view of its block is left.
* A forked child's copies of the arrays free nothing of the owner's.

Locks: none. The garbage collector drops blocks in any thread and at any point, and signal handlers
may create arrays within a call of their own thread. So each atomic step is one call, or lies
between two calls. A range returns to the arena whenever its object is dropped, by an interrupt,
too.

Before Python 3.13, the mapping of each living array holds a descriptor. The usual limit of a
process is about a thousand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import sys
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.batch import Blocks
from batchzip.core.calls import Calls
from batchzip.core.memory import Descriptor
from batchzip.errors import BadArgument, LimitReached
from batchzip.system.descriptors import above_standard
from batchzip.system.limits import named, needing
from batchzip.system.segment import PAGE, WITHOUT_DESCRIPTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.arguments.buffers import Bytes


_LARGE = 64 << 20
"""Smallest size, in bytes, for which available memory is checked first. The check takes 0.1 ms."""


def _new_file() -> Descriptor:
    """Create the memfd of an arena."""
    with above_standard(), needing("memfd_create"):
        file = Descriptor(os.memfd_create("batchzip-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.fchmod(file.fileno(), 0o600)
    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return file


class _Ranges:
    """The unused ranges of an arena."""

    def __init__(self) -> None:
        self.owner_pid = os.getpid()
        self.end = 0
        """Offset of the next range that was never used."""
        self.free: dict[int, deque[_Range]] = {}
        """Free ranges by length."""

    def take(self, length: int) -> _Range:
        """Return an unused range, which returns here when the caller drops it."""
        with contextlib.suppress(LookupError):  # none of that length is free
            return self.free[length].pop()
        taken = _Range(self, length)
        # These two lines are atomic: the interpreter switches threads and runs handlers only at
        # calls.
        taken.offset = self.end
        self.end = taken.offset + length
        return taken


class _Range:
    """A range of an arena's file. It returns to the arena when it is dropped."""

    __slots__ = ("_ranges", "length", "mapping", "offset")

    def __init__(self, ranges: _Ranges, length: int) -> None:
        self._ranges = ranges
        self.length = length
        self.offset = -1
        """Its offset in the file; −1: it was returned."""
        self.mapping: mmap.mmap | None = None
        """Its mapping, if it may have memory."""

    def give_back(self) -> None:
        """Free its memory and return it to the arena."""
        if self.offset < 0 or os.getpid() != self._ranges.owner_pid:
            return
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_REMOVE)
        free = _Range(self._ranges, self.length)  # a new object: none is finalized twice
        free.offset, self.offset, self.mapping = self.offset, -1, None
        self._ranges.free.setdefault(self.length, deque()).append(free)

    def __del__(self, ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ends():  # the end of the process frees it, too
            self.give_back()


class Arena:
    """Shared memory for arrays. Thread-safe; bound to the process that created it."""

    def __init__(self) -> None:
        self._file = _new_file()
        self._calls: Calls[Descriptor] = Calls(self._file, "arena")
        self._ranges = _Ranges()
        self.blocks = Blocks()
        """Addresses of the living arrays."""

    @property
    def fd(self) -> int:
        """The descriptor of its memory; −1 after `close`."""
        return self._file.fileno()

    def array(self, rows: int, width: int) -> Bytes:
        """Return a (rows, width) array of zeros.

        Raise LimitReached if memory or descriptors are exhausted.
        """
        if min(rows, width) < 1:
            raise BadArgument(f"an array needs at least one row and one byte, not {rows} × {width}")
        length = -(-rows * width // PAGE) * PAGE
        _refuse_beyond_memory(rows, width, length)
        with self._calls.enter() as file:
            taken = self._ranges.take(length)
            try:
                _extend(file.fileno(), taken.offset + length)
                with above_standard():  # before Python 3.13, a mapping has its own descriptor
                    taken.mapping = mmap.mmap(
                        file.fileno(), length, offset=taken.offset, **WITHOUT_DESCRIPTOR
                    )
                os.posix_fallocate(file.fileno(), taken.offset, length)
            except OSError as error:
                taken.give_back()  # now, because a traceback may still refer to it
                raise named(error, f"{rows} × {width} bytes of shared memory") from None
        block = np.frombuffer(taken.mapping, np.uint8, rows * width)
        finalizer = weakref.finalize(block, self._forget, taken)
        finalizer.atexit = False  # the end of the process frees the memory
        self.blocks.add(block, taken.offset)
        return block.reshape(rows, width)

    def _forget(self, taken: _Range) -> None:
        """Remove a block's addresses. Its memory is freed when `taken` is dropped."""
        self.blocks.remove(taken.offset)

    def locate(self, array: Bytes) -> int:
        """Return the offset of an array in the arena; −1 if it is not in one of the blocks."""
        return self.blocks.locate(array)

    def held_bytes(self) -> int:
        """Return the bytes of memory that the arena holds now, as the kernel counts them."""
        with self._calls.enter() as file:
            return os.fstat(file.fileno()).st_blocks * 512

    def close(self) -> None:
        """Close the arena. Living arrays keep their memory until they are dropped."""
        self._calls.close()


def _extend(fd: int, size: int) -> None:
    """Enlarge a file to at least `size` bytes. Other threads may enlarge it at the same time."""
    while os.fstat(fd).st_size < size:
        with contextlib.suppress(
            PermissionError
        ):  # another thread made it larger: it cannot shrink
            os.ftruncate(fd, size)


def _refuse_beyond_memory(rows: int, width: int, length: int) -> None:
    """Raise LimitReached if the system does not have `length` bytes.

    A memfd has no limit. If memory runs out while it is reserved, the kernel kills a process, most
    likely this one.
    """
    if length < _LARGE:
        return
    available = _available_bytes()
    if length > available:
        raise LimitReached(
            errno.ENOMEM,
            f"{rows} × {width} bytes of shared memory are unavailable: "
            f"there are {available / 2**20:.0f} MiB",
        )


def _available_bytes() -> float:
    """Return the bytes of memory that are available, swap included."""
    available = math.inf
    with contextlib.suppress(OSError, ValueError, KeyError):  # /proc is not mounted
        lines = Path("/proc/meminfo").read_bytes().splitlines()
        found = dict(line.split(b":", 1) for line in lines)
        available = (
            sum(int(found[name].split()[0]) for name in (b"MemAvailable", b"SwapFree")) << 10
        )
    with contextlib.suppress(OSError, ValueError):  # no control group of version 2, or no limit
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_bytes()))
    return available
