"""Arena: an engine's arrays in memory that its workers see, so that nothing of a batch is copied.

    arena.array(rows, width) ─▶ a block: its own range of one sparse memfd, mapped by itself
    arena.locate(array) ───────▶ where in that file an array over a block begins
    the last view of a block dies ─▶ its memory goes back to the system, its range waits for the next

Workers inherit the descriptor and map the file once, however many blocks come and go. Rejected: a
memfd for each array (a worker would have to be told of each, and to forget it in time), and one
mapping of everything in the owner (arrays would have to be freed by hand).

Invariants
* Blocks do not overlap; each has all its memory reserved, so that writing never faults (Segment).
* A range is given out again only when no view of its block is left.
* What a forked child does with its copies of the arrays frees nothing of the owner's.

Locks: one, innermost, for the bookkeeping. A block dies in whatever thread, at whatever point, the
collector says, so that path takes no lock: it appends to a deque.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections import defaultdict, deque
from typing import TYPE_CHECKING, cast

import numpy as np

from batchzip.errors import BadArgument, ClosedError
from batchzip.segment import PAGE

if TYPE_CHECKING:
    from batchzip.buffers import Bytes


class Arena:
    """Shared memory in which arrays can be had. Thread-safe; bound to the process that made it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("batchzip-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(self.fd, 0o600)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._end = 0
        self._blocks: dict[int, tuple[int, int]] = {}
        """Offset and address of each living block, by the id of its array."""
        self._dead: deque[tuple[int, int]] = deque()
        """Offset and length of blocks that died since the bookkeeping was last done."""
        self._ranges: defaultdict[int, list[int]] = defaultdict(list)
        """Offsets without memory, by length."""

    def array(self, rows: int, width: int) -> Bytes:
        """Make a (rows, width) array of zeros. Raises OSError(ENOSPC, ENOMEM) if memory is out."""
        if min(rows, width) < 1:
            raise BadArgument(f"an array needs at least one row and one byte, not {rows} × {width}")
        length = -(-rows * width // PAGE) * PAGE
        with self._lock:
            self._bury()
            if self.fd < 0:
                raise ClosedError("this arena is closed")
            offset = self._ranges[length].pop() if self._ranges[length] else self._end
            try:
                # Also makes the file longer, where need be.
                os.posix_fallocate(self.fd, offset, length)
                mapping = mmap.mmap(self.fd, length, offset=offset)
            except BaseException:
                if offset != self._end:
                    self._ranges[length].append(offset)
                raise
            self._end = max(self._end, offset + length)
            block = np.frombuffer(mapping, np.uint8, rows * width)
            self._blocks[id(block)] = offset, _address(block)
        finalizer = weakref.finalize(block, self._release, mapping, id(block), offset, length)
        finalizer.atexit = False  # the memory goes with the process
        return block.reshape(rows, width)

    def _release(self, mapping: mmap.mmap, block_id: int, offset: int, length: int) -> None:
        del self._blocks[block_id]  # now: the next array made may have the same id
        if os.getpid() == self._owner_pid:
            mapping.madvise(mmap.MADV_REMOVE)
            self._dead.append((offset, length))

    def _bury(self) -> None:
        """Do the bookkeeping of blocks that died; called under the lock."""
        while self._dead:
            offset, length = self._dead.popleft()
            self._ranges[length].append(offset)

    @property
    def in_use(self) -> bool:
        """Whether any array lives."""
        return bool(self._blocks)

    def locate(self, array: Bytes) -> int:
        """Offset in the arena of an array's first byte; -1 if it does not lie in one of the blocks."""
        blocks = self._blocks
        if not blocks:
            return -1
        block = array
        while isinstance(base := block.base, np.ndarray):
            block = base
        found = blocks.get(id(block))
        if found is None:
            return -1
        offset, address = found
        return offset + _address(array) - address

    def held_bytes(self) -> int:
        """Bytes of memory behind the arena now, as the kernel counts them."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Give out no more; arrays that live keep their memory until they die."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def _address(array: Bytes) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type] # see Buffer; a third of what the other takes
    except TypeError:  # read-only
        return cast("int", array.__array_interface__["data"][0])
