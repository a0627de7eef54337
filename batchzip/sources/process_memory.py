"""ProcessMemory: the anonymous memory of another process, captured as pages.

These are the pages that the kernel would swap out: those pages of private writable mappings
without a file (heap, stacks, anonymous maps) that exist. Mapped files are left out, because the
kernel drops their pages and reads them again from disk.

    /proc/PID/maps ──▶ mappings ──▶ /proc/PID/pagemap ──▶ runs of pages that exist
                                                             │
    /proc/PID/mem  ◀── read once, run after run ─────────────┘──▶ packed into chunks

Existing pages are packed in the order of their addresses, without the holes between them. A page of
batchzip that is larger than the machine's may therefore span a hole. The process keeps running and
changing its memory. The memory is read only once, and later comparisons use the one uncompressed
copy held here.
"""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import BadArgument, UnreadableProcess
from batchzip.system.lifetime import Closing
from batchzip.system.processes import process_stat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

_GRAIN = mmap.PAGESIZE
"""Bytes per page of the machine: the unit in which memory exists, vanishes and is skipped."""

_PAGEMAP_STEP = 1 << 17
"""Entries of pagemap per read: 1 MiB for 512 MiB of addresses. Reserved, untouched mappings of many
GiB must not cost memory."""

_EXISTS = np.uint64(0b11 << 62)
"""Bit 63: in memory. Bit 62: swapped out. Neither: never touched, so there is nothing to store."""


class ProcessMemory(Closing):
    """The anonymous pages of process `pid`, read `chunk_pages` at a time.

    The constructor looks up the mappings once. Memory that the process takes later is not seen.
    Raises UnreadableProcess if there is no such process, if it may not be read, or if it has no
    anonymous memory. Raises BadArgument for this process itself, because the copy would enlarge
    what is copied.

    `chunks()` may be iterated once. `pages`, `padded_bytes` (zeros in the last page) and
    `vanished_bytes` (freed by the process meanwhile, and left out) have their final values only
    after that. Before, `pages` is an upper bound. An object belongs to one thread.
    """

    kind = "process"

    def __init__(
        self, pid: int, *, page_size: int = 4096, chunk_pages: int = 1024, name: str = ""
    ) -> None:
        if pid == os.getpid():
            raise BadArgument(f"process {pid} is batchzip itself: name the pid of another process")
        self.pid = pid
        self.name = name or f"process {pid}"
        self.page_size = page_size
        self.padded_bytes = 0
        self.vanished_bytes = 0
        self._chunk_pages = chunk_pages
        self._chunks: list[NDArray[np.uint8]] = []
        self._packed_at: list[int] = []  # the packed offset of each run …
        self._address: list[int] = []  # … and its address in the process
        self._mem = -1
        try:
            # The descriptor refers to the memory, not to the pid. After an execve() or when the
            # pid is reused, a read returns the end of the file, never another program's memory.
            self._mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self._runs = list(_existing_runs(pid))
        except OSError as error:
            self.close()
            raise self._unreadable(error) from error
        found = sum(end - start for start, end in self._runs)
        if not found:
            self.close()
            raise _without_memory(pid)
        self.pages = -(-found // page_size)

    def details(self) -> dict[str, Any]:
        """Return what was captured, with the keys of the JSON report."""
        return {"pid": self.pid, "vanished_bytes": self.vanished_bytes}

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield arrays (n, page_size), where n is `chunk_pages` except in the last one.

        This object owns and keeps all arrays. They must not be written to. Raise UnreadableProcess
        if the process ends meanwhile.
        """
        size = self._chunk_pages * self.page_size
        chunk = np.empty(size, np.uint8)
        filled = done = 0
        for start, end in self._runs:
            address = start
            while address < end:
                wanted = min(end - address, size - filled)
                read = self._read(address, chunk[filled : filled + wanted])
                if read:
                    self._note(done + filled, address)
                    filled += read
                    address += read
                else:
                    after = min(end, address - address % _GRAIN + _GRAIN)
                    self.vanished_bytes += after - address
                    address = after
                if filled == size:
                    yield self._keep(chunk)
                    chunk = np.empty(size, np.uint8)
                    done, filled = done + size, 0
        self.padded_bytes = -filled % self.page_size
        if filled:
            used = filled + self.padded_bytes
            chunk[filled:used] = 0
            # A copy, so that the unused rest of the chunk is not kept.
            yield self._keep(chunk[:used].copy())
        self.pages = sum(len(kept) for kept in self._chunks)
        if not self.pages:
            raise UnreadableProcess(f"process {self.pid} freed all its memory while it was read")

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the captured pages at `indices` in a new array (len(indices), page_size)."""
        out = np.empty((len(indices), self.page_size), np.uint8)
        chunk_of, row_of = np.divmod(indices, self._chunk_pages)
        for i, (chunk, row) in enumerate(zip(chunk_of.tolist(), row_of.tolist(), strict=True)):
            out[i] = self._chunks[chunk][row]
        return out

    @property
    def found_bytes(self) -> int:
        """Bytes that existed when this object was made."""
        return sum(end - start for start, end in self._runs)

    def read_packed(self, offset: int, out: NDArray[np.uint8]) -> bool:
        """Read the current contents at packed offset `offset` into `out`, without keeping a copy.

        Return False if `out` could not be filled, because the process freed the memory. Raise
        UnreadableProcess if the process has ended.
        """
        filled = 0
        for start, end in self._runs:
            address = start + offset
            while address < end and filled < len(out):
                read = self._read(address, out[filled : filled + end - address])
                if not read:
                    return False
                filled += read
                address += read
            offset = max(0, offset - (end - start))
            if filled == len(out):
                return True
        return False

    def where(self, index: int) -> str:
        """Return the address of page `index` in the process, as text."""
        offset = index * self.page_size
        run = bisect_right(self._packed_at, offset) - 1
        return f"address {self._address[run] + offset - self._packed_at[run]:#x}"

    def check_unchanged(self) -> None:
        """Do nothing, because the copy held here cannot change."""

    def _note(self, packed: int, address: int) -> None:
        if self._address and self._address[-1] - self._packed_at[-1] == address - packed:
            return
        self._packed_at.append(packed)
        self._address.append(address)

    def _keep(self, chunk: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pages = chunk.reshape(-1, self.page_size)
        self._chunks.append(pages)
        return pages

    def _read(self, address: int, out: NDArray[np.uint8]) -> int:
        """Read into `out`. Return the number of bytes, or 0 if the page at `address` vanished."""
        try:
            read = os.preadv(self._mem, [out.data], address)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EFAULT, errno.ENOMEM):
                raise self._unreadable(error) from error
            return 0
        if not read:
            raise UnreadableProcess(
                f"process {self.pid} ended while it was read: name one that keeps running"
            )
        return read

    def _unreadable(self, error: OSError) -> UnreadableProcess:
        gone = error.errno in (errno.ENOENT, errno.ESRCH)
        if gone and Path(f"/proc/{self.pid}").exists():
            return _without_memory(self.pid)
        if gone:
            return UnreadableProcess(
                f"there is no process {self.pid}: name the pid of a running one"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            if _is_zombie(self.pid):  # nobody owns its memory, and so only root may open it
                return _without_memory(self.pid)
            return UnreadableProcess(
                f"process {self.pid} may not be read: run as the user it belongs to, or as root; "
                "where /proc/sys/kernel/yama/ptrace_scope is above 0, only as root"
            )
        return UnreadableProcess(f"process {self.pid} cannot be read: {error.strerror}")

    def close(self) -> None:
        """Close the descriptor and drop the copy."""
        mem, self._mem = self._mem, -1
        if mem >= 0:
            os.close(mem)
        self._chunks.clear()


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended, and waits for its parent to ask."""
    try:
        _, fields = process_stat(pid)
    except OSError:
        return False
    return fields[0] in ("Z", "X")


def _without_memory(pid: int) -> UnreadableProcess:
    return UnreadableProcess(
        f"process {pid} has no anonymous memory (a kernel thread, or it is ending): "
        "name the pid of a running program"
    )


def _anonymous_mappings(pid: int) -> Iterator[tuple[int, int]]:
    with open(f"/proc/{pid}/maps", "rb") as maps:  # noqa: PTH123 - a Path adds nothing for /proc
        for line in maps:
            addresses, mode, _offset, _device, inode, *_name = line.split(maxsplit=5)
            # Kernel pages shown in every process ([vvar], [vdso], [vsyscall]) are never rw-p.
            if mode == b"rw-p" and inode == b"0":
                start, _, end = addresses.partition(b"-")
                yield int(start, 16), int(end, 16)


def _existing_runs(pid: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) addresses of runs of existing pages, or of mappings without a pagemap."""
    mappings = list(_anonymous_mappings(pid))
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield from mappings
        return
    try:
        for start, end in mappings:
            for at in range(start, end, _PAGEMAP_STEP * _GRAIN):
                yield from _runs_in(pagemap, at, min(end, at + _PAGEMAP_STEP * _GRAIN))
    finally:
        os.close(pagemap)


def _runs_in(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    length = (end - start) // _GRAIN * 8
    try:
        raw = os.pread(pagemap, length, start // _GRAIN * 8)
    except OSError:
        raw = b""
    if len(raw) != length:
        yield start, end
        return
    exists = (np.frombuffer(raw, np.uint64) & _EXISTS) != 0
    edges = np.flatnonzero(np.diff(exists, prepend=False, append=False))
    for first, last in edges.reshape(-1, 2).tolist():
        yield start + first * _GRAIN, start + last * _GRAIN
