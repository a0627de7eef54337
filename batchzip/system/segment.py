"""Segment: a piece of shared memory that cannot leak, shrink or fault.

A segment is a memfd with a mapping. Rejected: `multiprocessing.shared_memory`. A name in /dev/shm
outlives a killed owner, the resource tracker unlinks what others still use (gh-82300), and
ftruncate without reservation turns "out of memory" into SIGBUS at first touch.

    Segment(size)        file of `size` bytes, all hole ──▶ mapped whole; costs address space only
    .reserve(at, n)      those bytes now have memory (posix_fallocate): ENOSPC here, never SIGBUS
    .release(at, n)      those bytes have none again and read as zero (hole punching)
    .grow(size)          larger file, new mapping; views of the old mapping stay valid
    Segment.attach(fd)   the same memory in another process, from an inherited descriptor

Invariants
* The file never shrinks (F_SEAL_SHRINK), so no mapping of it can fault beyond its end.
* Only reserved bytes are written. Reading a hole gives zeros and no error.
* No name, hence nothing to unlink: the memory is gone with its last descriptor and mapping.
* Mode 0600: `/proc/<owner>/fd/N` opens for the same user only (memfd_create makes it 0777).

Locks: none. The owner of a segment serialises grow() and close() against its own other calls.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
from typing import Any

from batchzip.core.memory import Descriptor
from batchzip.errors import BadArgument, ClosedError
from batchzip.system.descriptors import above_standard
from batchzip.system.lifetime import Closing
from batchzip.system.limits import named

PAGE = mmap.PAGESIZE
"""Bytes of one page of the machine: the grain of reserve() and release()."""

_MADV_POPULATE_WRITE = 23
"""linux/mman.h; not in `mmap` yet."""


WITHOUT_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""For mmap: older Pythons keep a descriptor for each mapping, and close its number whosever it is by then."""


class Segment(Closing):
    """Shared memory of `size` bytes, readable through `view`.

    `view` is a writable memoryview of bytes over the whole segment. It stays valid while the
    segment is open; slices of it keep their memory alive beyond close(). One process at a time
    may grow or close a segment; any number may read and write it, under a protocol of theirs.

    Raises LimitReached (ENOSPC where `reserve=True` and the memory is not there); nothing is left then.
    """

    _access = mmap.ACCESS_WRITE

    def __init__(self, size: int, *, name: str = "batchzip", reserve: bool = False) -> None:
        if size <= 0:
            raise BadArgument(f"a segment needs at least one byte, not {size}")
        with above_standard():
            self._fd = Descriptor(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.fchmod(self.fd, 0o600)
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            if reserve:
                os.posix_fallocate(self.fd, 0, size)
            self._map(size)
        except BaseException as error:
            self._fd.close()
            if isinstance(error, OSError):
                raise named(error, f"{size} bytes of shared memory") from None
            raise

    @classmethod
    def attach(cls, fd: int, *, writable: bool = True) -> Segment:
        """Map the segment behind `fd`, of which the new object takes ownership."""
        self = cls.__new__(cls)
        self._fd = Descriptor(fd)
        self._access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map(os.fstat(fd).st_size)
        return self

    def remap(self) -> None:
        """Map what the owner, another process, has grown the segment to."""
        self._map(os.fstat(self.fd).st_size)

    @property
    def memory(self) -> mmap.mmap:
        """The mapping itself: bytes are copied in and out of it quicker than through `view`."""
        return self._mmap

    def _map(self, size: int) -> None:
        with above_standard():  # a mapping keeps a descriptor of its own
            self._mmap = mmap.mmap(
                self._fd.fileno(), size, access=self._access, **WITHOUT_DESCRIPTOR
            )
        self.view = memoryview(self._mmap)
        self.size = size

    @property
    def fd(self) -> int:
        """Descriptor of the memory; belongs to the segment."""
        if self._fd.closed:
            raise ClosedError("this segment is closed")
        return self._fd.fileno()

    def reserve(self, offset: int, length: int) -> None:
        """Give memory to `length` bytes at `offset`. Raises OSError(ENOSPC) if there is none."""
        os.posix_fallocate(self.fd, offset, length)

    def release(self, offset: int, length: int) -> None:
        """Return the memory of whole pages at `offset` to the system; they read as zero then."""
        self._mmap.madvise(mmap.MADV_REMOVE, offset, length)

    def populate(self, offset: int = 0, length: int | None = None) -> None:
        """Touch reserved pages, all of them or these, so that nobody waits for page faults later."""
        length = self.size - offset if length is None else length
        try:  # noqa: SIM105 - suppress() takes a third of the time of the call itself
            self._mmap.madvise(_MADV_POPULATE_WRITE, offset, length)
        except OSError:  # kernels before 5.14 do not know it; it only saves time
            pass

    def grow(self, size: int) -> None:
        """Enlarge to `size` bytes. `view` is a new one; old views still show the same memory."""
        if size < self.size:
            raise BadArgument(f"a segment never shrinks: {size} is below {self.size} bytes")
        os.ftruncate(self.fd, size)
        # The old mapping goes when its last view goes: closing it would raise under a reader.
        self._map(size)

    def held_bytes(self) -> int:
        """Bytes of memory behind the segment now, as the kernel counts them."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Drop descriptor and mapping; views still held elsewhere keep their memory alive."""
        if self._fd.closed:
            return
        self._fd.close()
        with contextlib.suppress(BufferError):
            self.view.release()
            self._mmap.close()
        del self.view, self._mmap
