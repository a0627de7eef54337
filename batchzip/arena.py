"""Arena: an engine's arrays in memory that its workers see, so that nothing of a batch is copied.

    arena.array(rows, width) ─▶ a block: its own range of one sparse memfd, mapped by itself
    arena.locate(array) ───────▶ where in that file an array over a block begins
    the last view of a block dies ─▶ its memory goes back to the system, its range waits for the next

Workers inherit the descriptor and map the file once, however many blocks come and go. Rejected: a
memfd for each array (a worker would have to be told of each, and to forget it in time), and one
mapping of everything in the owner (arrays would have to be freed by hand).

Invariants
* Blocks do not overlap; each has all its memory reserved, so that writing never faults (Segment).
* What could not be reserved holds no memory: a range is mapped first, and the kernel takes back what it
  reserved of one that it cannot reserve whole.
* A range is given out again only when no view of its block is left.
* What a forked child does with its copies of the arrays frees nothing of the owner's.

Locks: none. What has to be one step is one call, or lies between two calls, as blocks die in whatever thread, at
whatever point, the collector says, and signal handlers may want arrays in the middle of a call of their own
thread. An interrupt may lose a range; that is address space, which there is enough of.

A living array holds a descriptor, which comes with its mapping: a process may have a thousand or so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.batch import Blocks
from batchzip.core.calls import Calls
from batchzip.descriptors import above_standard
from batchzip.errors import BadArgument
from batchzip.segment import PAGE

if TYPE_CHECKING:
    from batchzip.buffers import Bytes


_LARGE = 64 << 20
"""Bytes from which on it is worth looking first whether there is so much; that takes 0.1 ms."""


class _File:
    """The descriptor of an arena's memory."""

    def __init__(self) -> None:
        with above_standard():
            self.fd = os.memfd_create("batchzip-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(self.fd, 0o600)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Arena:
    """Shared memory in which arrays can be had. Thread-safe; bound to the process that made it."""

    def __init__(self) -> None:
        self._file = _File()
        self._calls: Calls[_File] = Calls(self._file, "arena")
        self._owner_pid = os.getpid()
        self._end = 0
        self.blocks = Blocks()
        """Where the living arrays are."""
        self._dead: deque[tuple[int, int]] = deque()
        """Offset and length of blocks that died since the bookkeeping was last done."""
        self._ranges: dict[int, list[int]] = {}
        """Offsets without memory, by length."""

    @property
    def fd(self) -> int:
        """The descriptor of its memory; −1 once it is closed."""
        return self._file.fd

    def array(self, rows: int, width: int) -> Bytes:
        """Make a (rows, width) array of zeros. Raises OSError if memory, or descriptors, are out."""
        if min(rows, width) < 1:
            raise BadArgument(f"an array needs at least one row and one byte, not {rows} × {width}")
        length = -(-rows * width // PAGE) * PAGE
        _refuse_beyond_memory(rows, width, length)
        with self._calls.enter() as file:
            offset = self._take_range(length)
            try:
                _extend(file.fd, offset + length)
                with above_standard():  # a mapping keeps a descriptor of its own
                    mapping = mmap.mmap(file.fd, length, offset=offset)
                os.posix_fallocate(file.fd, offset, length)
            except OSError:
                self._give_back(offset, length)
                raise
        block = np.frombuffer(mapping, np.uint8, rows * width)
        finalizer = weakref.finalize(block, self._release, mapping, offset, length)
        finalizer.atexit = False  # the memory goes with the process
        self.blocks.add(block, offset)
        return block.reshape(rows, width)

    def _release(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        self.blocks.remove(offset)  # before its addresses are anybody else's
        if os.getpid() == self._owner_pid:
            mapping.madvise(mmap.MADV_REMOVE)
            self._dead.append((offset, length))

    def _take_range(self, length: int) -> int:
        """Take a range that nobody has. Return its offset."""
        with contextlib.suppress(IndexError):  # there are no more
            while True:
                self._give_back(*self._dead.popleft())
        try:
            return self._ranges[length].pop()
        except LookupError:
            # Nothing comes between these two: an interpreter switches threads, and runs handlers, at calls.
            offset = self._end
            self._end = offset + length
            return offset

    def _give_back(self, offset: int, length: int) -> None:
        self._ranges.setdefault(length, []).append(offset)

    def locate(self, array: Bytes) -> int:
        """Return where an array begins in the arena; −1 if it does not lie in one of the blocks."""
        return self.blocks.locate(array)

    def held_bytes(self) -> int:
        """Bytes of memory behind the arena now, as the kernel counts them."""
        with self._calls.enter() as file:
            return os.fstat(file.fd).st_blocks * 512

    def close(self) -> None:
        """Give out no more; arrays that live keep their memory until they die."""
        self._calls.close()


def _extend(fd: int, size: int) -> None:
    """Make a file of at least `size` bytes, which others may enlarge meanwhile."""
    while os.fstat(fd).st_size < size:
        with contextlib.suppress(PermissionError):  # it is larger by now, and may not shrink
            os.ftruncate(fd, size)


def _refuse_beyond_memory(rows: int, width: int, length: int) -> None:
    """Raise OSError(ENOMEM) where there cannot be so much.

    A memfd has no limit of its own: reserving what is not there ends with the kernel killing a
    process, most likely this one.
    """
    if length < _LARGE:
        return
    available = _available_bytes()
    if length > available:
        raise OSError(
            errno.ENOMEM,
            f"{rows} × {width} bytes of shared memory are not to be had: {available / 2**20:.0f} MiB are available",
        )


def _available_bytes() -> float:
    """Bytes that could be had if everybody else kept what they have, as far as the kernel tells."""
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
