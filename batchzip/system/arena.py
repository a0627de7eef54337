"""Arena: an engine's arrays in memory that its workers see, so that nothing of a batch is copied.

    arena.array(rows, width) ─▶ a block: its own range of one sparse memfd, mapped by itself
    arena.locate(array) ───────▶ where in that file an array over a block begins
    the last view of a block dies ─▶ its memory goes back to the system, its range waits for the next

Workers inherit the descriptor and map the file once, however many blocks come and go. Rejected: a
memfd for each array (a worker would have to be told of each, and to forget it in time), and one
mapping of everything in the owner (arrays would have to be freed by hand).

Invariants
* Blocks do not overlap; each has all its memory reserved, so that writing never faults (Segment).
* A range that nobody has holds no memory.
* A range is given out again only when no view of its block is left.
* What a forked child does with its copies of the arrays frees nothing of the owner's.

Locks: none. What has to be one step is one call, or lies between two calls, as blocks die in whatever thread, at
whatever point, the collector says, and signal handlers may want arrays in the middle of a call of their own
thread. A range is given back by whatever loses it, be it an interrupt.

A living array holds a descriptor, which comes with its mapping: a process may have a thousand or so.
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
from batchzip.system.limits import named
from batchzip.system.segment import PAGE, WITHOUT_DESCRIPTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.arguments.buffers import Bytes


_LARGE = 64 << 20
"""Bytes from which on it is worth looking first whether there is so much; that takes 0.1 ms."""


def _new_file() -> Descriptor:
    """Make the memory of an arena."""
    with above_standard():
        file = Descriptor(os.memfd_create("batchzip-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.fchmod(file.fileno(), 0o600)
    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return file


class _Ranges:
    """The ranges of an arena that nobody has."""

    def __init__(self) -> None:
        self.owner_pid = os.getpid()
        self.end = 0
        """Where the next one begins that was never given out."""
        self.free: dict[int, deque[_Range]] = {}
        """By length."""

    def take(self, length: int) -> _Range:
        """Take a range that nobody has, as long as the caller keeps it."""
        with contextlib.suppress(LookupError):  # none of that length is free
            return self.free[length].pop()
        taken = _Range(self, length)
        # Nothing comes between these two: an interpreter switches threads, and runs handlers, at calls.
        taken.offset = self.end
        self.end = taken.offset + length
        return taken


class _Range:
    """A range of an arena's file. Whoever loses it, by an interrupt too, has given it back."""

    __slots__ = ("_ranges", "length", "mapping", "offset")

    def __init__(self, ranges: _Ranges, length: int) -> None:
        self._ranges = ranges
        self.length = length
        self.offset = -1
        """Where it begins; −1: it is given back."""
        self.mapping: mmap.mmap | None = None
        """Its memory, if it may have some."""

    def give_back(self) -> None:
        """Let others have it, without memory."""
        if self.offset < 0 or os.getpid() != self._ranges.owner_pid:
            return
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_REMOVE)
        free = _Range(self._ranges, self.length)  # nothing is finalized twice
        free.offset, self.offset, self.mapping = self.offset, -1, None
        self._ranges.free.setdefault(self.length, deque()).append(free)

    def __del__(self, ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ends():  # else it goes with the process
            self.give_back()


class Arena:
    """Shared memory in which arrays can be had. Thread-safe; bound to the process that made it."""

    def __init__(self) -> None:
        self._file = _new_file()
        self._calls: Calls[Descriptor] = Calls(self._file, "arena")
        self._ranges = _Ranges()
        self.blocks = Blocks()
        """Where the living arrays are."""

    @property
    def fd(self) -> int:
        """The descriptor of its memory; −1 once it is closed."""
        return self._file.fileno()

    def array(self, rows: int, width: int) -> Bytes:
        """Make a (rows, width) array of zeros. Raises LimitReached if memory, or descriptors, are out."""
        if min(rows, width) < 1:
            raise BadArgument(f"an array needs at least one row and one byte, not {rows} × {width}")
        length = -(-rows * width // PAGE) * PAGE
        _refuse_beyond_memory(rows, width, length)
        with self._calls.enter() as file:
            taken = self._ranges.take(length)
            try:
                _extend(file.fileno(), taken.offset + length)
                with above_standard():  # a mapping keeps a descriptor of its own
                    taken.mapping = mmap.mmap(
                        file.fileno(), length, offset=taken.offset, **WITHOUT_DESCRIPTOR
                    )
                os.posix_fallocate(file.fileno(), taken.offset, length)
            except OSError as error:
                taken.give_back()  # now, though a traceback may still have it
                raise named(error, f"{rows} × {width} bytes of shared memory") from None
        block = np.frombuffer(taken.mapping, np.uint8, rows * width)
        finalizer = weakref.finalize(block, self._forget, taken)
        finalizer.atexit = False  # the memory goes with the process
        self.blocks.add(block, taken.offset)
        return block.reshape(rows, width)

    def _forget(self, taken: _Range) -> None:
        """See that its addresses are nobody's; its memory goes with it."""
        self.blocks.remove(taken.offset)

    def locate(self, array: Bytes) -> int:
        """Return where an array begins in the arena; −1 if it does not lie in one of the blocks."""
        return self.blocks.locate(array)

    def held_bytes(self) -> int:
        """Bytes of memory behind the arena now, as the kernel counts them."""
        with self._calls.enter() as file:
            return os.fstat(file.fileno()).st_blocks * 512

    def close(self) -> None:
        """Give out no more; arrays that live keep their memory until they die."""
        self._calls.close()


def _extend(fd: int, size: int) -> None:
    """Make a file of at least `size` bytes, which others may enlarge meanwhile."""
    while os.fstat(fd).st_size < size:
        with contextlib.suppress(PermissionError):  # it is larger by now, and may not shrink
            os.ftruncate(fd, size)


def _refuse_beyond_memory(rows: int, width: int, length: int) -> None:
    """Raise LimitReached if the system does not have `length` bytes.

    A memfd has no limit of its own: reserving what is not there ends with the kernel killing a
    process, most likely this one.
    """
    if length < _LARGE:
        return
    available = _available_bytes()
    if length > available:
        raise LimitReached(
            errno.ENOMEM,
            f"{rows} × {width} bytes of shared memory are unavailable: there are {available / 2**20:.0f} MiB",
        )


def _available_bytes() -> float:
    """Return the bytes that the kernel could still give."""
    available = math.inf
    with contextlib.suppress(OSError, ValueError, KeyError):  # /proc is not mounted
        lines = Path("/proc/meminfo").read_bytes().splitlines()
        found = dict(line.split(b":", 1) for line in lines)
        available = (
            sum(int(found[name].split()[0]) for name in (b"MemAvailable", b"SwapFree")) << 10
        )
    with contextlib.suppress(OSError, ValueError):  # no such control group, or one without a limit
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_bytes()))
    return available
