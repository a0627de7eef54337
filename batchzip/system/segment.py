"""Segment: a piece of shared memory that cannot leak, shrink or fault.

A segment is a memfd with a mapping. Rejected: `multiprocessing.shared_memory`. A name in /dev/shm
outlives a killed owner. The resource tracker unlinks memory that others still use (gh-82300). And
ftruncate without a reservation turns "out of memory" into SIGBUS at the first touch.

    Segment(size)        file of `size` bytes, all hole ──▶ mapped whole; costs address space only
    .reserve(at, n)      those bytes now have memory (posix_fallocate): ENOSPC here, never SIGBUS
    .release(at, n)      those bytes have no memory again and read as zero (hole punching)
    .grow(size)          larger file, new mapping; views of the old mapping stay valid
    Segment.attach(fd)   the same memory in another process, from an inherited descriptor

Invariants
* The file never shrinks (F_SEAL_SHRINK), so no mapping of it can fault beyond its end.
* Only reserved bytes are written. Reading a hole gives zeros and no error.
* No name, so nothing to unlink: the memory is freed with its last descriptor and mapping.
* Mode 0600: only the same user can open `/proc/<owner>/fd/N` (memfd_create sets 0777).

Locks: none. The owner of a segment serialises grow() and close() with its other calls.
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
from batchzip.system.limits import named, needing

PAGE = mmap.PAGESIZE
"""Bytes per page of the machine: the granularity of reserve() and release()."""

_MADV_POPULATE_WRITE = 23
"""linux/mman.h; not in `mmap` yet."""


WITHOUT_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Arguments for mmap without its own descriptor. Before Python 3.13, each mapping keeps one.
Closing the mapping closes that number, even if it belongs to another file by then."""


class Segment(Closing):
    """Shared memory of `size` bytes, readable through `view`.

    `view` is a writable memoryview of bytes over the whole segment. It is valid while the segment
    is open. Slices of it keep their memory alive after close(). Only one process at a time may grow
    or close a segment. Any number of processes may read and write it, under their own protocol.

    Raises LimitReached, with ENOSPC if `reserve=True` and there is no memory. Nothing is left
    behind then.
    """

    _access = mmap.ACCESS_WRITE

    def __init__(self, size: int, *, name: str = "batchzip", reserve: bool = False) -> None:
        if size <= 0:
            raise BadArgument(f"a segment needs at least one byte, not {size}")
        with above_standard(), needing("memfd_create"):
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
        """Return a segment that maps the memory of `fd`. It owns `fd` from then on."""
        self = cls.__new__(cls)
        self._fd = Descriptor(fd)
        self._access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map(os.fstat(fd).st_size)
        return self

    def remap(self) -> None:
        """Map the segment again, after its owner, another process, has grown it."""
        self._map(os.fstat(self.fd).st_size)

    @property
    def memory(self) -> mmap.mmap:
        """The mapping itself. Copies through it are faster than through `view`."""
        return self._mmap

    def _map(self, size: int) -> None:
        with above_standard():  # before Python 3.13, a mapping has its own descriptor
            self._mmap = mmap.mmap(
                self._fd.fileno(), size, access=self._access, **WITHOUT_DESCRIPTOR
            )
        self.view = memoryview(self._mmap)
        self.size = size

    @property
    def fd(self) -> int:
        """Descriptor of the memory. The segment owns it."""
        if self._fd.closed:
            raise ClosedError("this segment is closed")
        return self._fd.fileno()

    def reserve(self, offset: int, length: int) -> None:
        """Reserve memory for `length` bytes at `offset`. Raise OSError(ENOSPC) if there is none."""
        os.posix_fallocate(self.fd, offset, length)

    def release(self, offset: int, length: int) -> None:
        """Return the memory of whole pages at `offset` to the system. They read as zero then."""
        self._mmap.madvise(mmap.MADV_REMOVE, offset, length)

    def populate(self, offset: int = 0, length: int | None = None) -> None:
        """Touch reserved pages, all or a range, so that later accesses cause no page faults."""
        length = self.size - offset if length is None else length
        try:  # noqa: SIM105 - suppress() takes a third of the time of the call itself
            self._mmap.madvise(_MADV_POPULATE_WRITE, offset, length)
        except OSError:  # kernels before 5.14 do not know it, and it only saves time
            pass

    def grow(self, size: int) -> None:
        """Enlarge to `size` bytes, with a new `view`. Old views still show the same memory."""
        if size < self.size:
            raise BadArgument(f"a segment never shrinks: {size} is below {self.size} bytes")
        os.ftruncate(self.fd, size)
        # The old mapping ends with its last view: closing it while a reader has a view would raise.
        self._map(size)

    def held_bytes(self) -> int:
        """Return the bytes of memory that the segment holds now, as the kernel counts them."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Close the descriptor and the mapping. Views held elsewhere keep their memory alive."""
        if self._fd.closed:
            return
        self._fd.close()
        with contextlib.suppress(BufferError):
            self.view.release()
            self._mmap.close()
        del self.view, self._mmap
