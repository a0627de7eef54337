"""What a backing file does its I/O through: a descriptor, the user's own object, or a stream.

    target                                   becomes
    path                                     DescriptorIO of a file that is locked, marked, removed at close
    directory                                DescriptorIO of a file without a name
    object with pread and pwrite             ObjectIO: storage of the user's own; tests inject faults here
    object with fileno(), read and write     DescriptorIO of its descriptor, which stays the user's
    any other seekable binary object         StreamIO: seek and read, or write, under its lock

A path's file begins with a header of 4 KiB. By it a file that a killed owner left behind is known, and
taken over; any other file that holds something is refused. A lock (flock) says that its owner lives; it ends
with the process. Rejected: a pid in the header (pids are used again, and differ between containers).

Locks: each has one, which zones.pyx holds around sync() and truncate(), and StreamIO around all it does. There
is no second one, so that two threads whose signal handlers or finalizers come back here cannot wait for
each other; and whoever holds it may take it again. Under a descriptor's no Python code runs. An object of the
user's may have locks of its own: who came into the middle of a call of it waits for no other thread.
"""

# ruff: noqa: D102 - Storage says what each method does

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import io
import os
import stat
import tempfile
import threading
from abc import abstractmethod
from pathlib import Path
from typing import Any

from batchzip.descriptors import above_standard
from batchzip.errors import BadArgument
from batchzip.lifetime import Closing

HEADER_BYTES = 4096
"""One block of any disk, so that zones begin where blocks do."""

MAGIC = b"batchzip backing file 1\n"

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
"""linux/falloc.h"""

_TRIES = 16
"""Times a path is opened again because its owner removed it meanwhile: more is no coincidence."""


class Storage(Closing):
    """Bytes by offset. Errors are OSErrors. `base` is the first byte that may be used."""

    base = 0
    descriptor: int | None = None
    has_locks = False
    """Whether its calls may hold locks that are not known here."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`; none at the end of the file."""

    @abstractmethod
    def pwrite(self, data: memoryview, offset: int) -> int:
        """Write some of `data` at `offset`; how many bytes."""

    def announce(self, offset: int, length: int) -> None:
        """Say that these bytes are going to be read."""

    def sync(self) -> None:
        """Return when all that was written is where it is to stay."""

    def discard(self, offset: int, length: int) -> None:
        """Say that these bytes are not needed any more."""

    def truncate(self, size: int) -> None:
        """Cut off what lies from byte `size` on."""

    def close(self) -> None:
        """Let go of it; further calls do nothing, or go on where an interrupt cut one short."""


class DescriptorIO(Storage):
    """A file's descriptor, its owner's to close where `owned` is False.

    `unlink` is the path to remove at close, if it still leads to this file.
    """

    def __init__(self, fd: int, *, owned: bool, base: int = 0, unlink: str | None = None) -> None:
        super().__init__()
        self._fd = fd
        # Its close() cannot be cut short between closing and noting that.
        self._file = io.FileIO(fd, "r+", closefd=owned)
        self._owned = owned
        self._unlink = unlink
        self.base = base
        self.descriptor = fd
        self._punches = True
        # C functions: see Locks above.
        self.sync = functools.partial(os.fdatasync, fd)  # type: ignore[method-assign]
        self.truncate = functools.partial(os.ftruncate, fd)  # type: ignore[method-assign]

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def pwrite(self, data: memoryview, offset: int) -> int:
        return os.pwrite(self._fd, data, offset)

    def announce(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):  # advice only
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def discard(self, offset: int, length: int) -> None:
        if self._punches and _fallocate()(self._fd, _KEEP_SIZE_PUNCH_HOLE, offset, length):
            self._punches = ctypes.get_errno() not in {errno.EOPNOTSUPP, errno.ENOSYS}

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._leave_path()
        except BaseException:
            self._leave_path()  # an interrupt must not leave the path behind
            raise
        finally:
            self._file.close()

    def _leave_path(self) -> None:
        if not self._owned:
            return
        fd = self._fd
        if self._unlink is not None and _leads_to(self._unlink, fd):
            Path(self._unlink).unlink()
        elif self.base and stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)  # it was there, and empty, before
        if self.base:
            # A forked child shares the lock, which would outlive this close.
            fcntl.flock(fd, fcntl.LOCK_UN)

    def __del__(self) -> None:
        # Without removing the path: this may be a forked child, and the file its parent's.
        if hasattr(self, "_file"):
            self._file.close()


class ObjectIO(Storage):
    """An object with pread(length, offset) → bytes and pwrite(data, offset) → int.

    Its sync(), discard(offset, length) and truncate(size) are called if it has them.
    """

    has_locks = True

    def __init__(self, target: Any) -> None:
        super().__init__()
        self._target = target

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._target.pread(length, offset))

    def pwrite(self, data: memoryview, offset: int) -> int:
        return int(self._target.pwrite(data, offset))

    def sync(self) -> None:
        self._call("sync")

    def discard(self, offset: int, length: int) -> None:
        self._call("discard", offset, length)

    def truncate(self, size: int) -> None:
        self._call("truncate", size)

    def _call(self, name: str, *arguments: int) -> None:
        method = getattr(self._target, name, None)
        if method is not None:
            method(*arguments)


class StreamIO(Storage):
    """A seekable binary object such as BytesIO. Its position is not kept."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self._target = target
        self._position: int | None = None

    def pread(self, length: int, offset: int) -> bytes:
        with self.lock:
            outer, self._position = self._position, offset
            try:
                self._target.seek(offset)
                return self._target.read(length) or b""
            finally:
                self._go_back(outer)

    def pwrite(self, data: memoryview, offset: int) -> int:
        with self.lock:
            outer, self._position = self._position, offset
            try:
                self._target.seek(offset)
                return self._target.write(data) or 0
            finally:
                self._go_back(outer)

    def _go_back(self, outer: int | None) -> None:
        """Leave the stream where a call needs it that this one came into the middle of."""
        self._position = outer
        if outer is not None:
            self._target.seek(outer)

    def sync(self) -> None:
        flush = getattr(self._target, "flush", None)
        if flush is not None:
            with self.lock:
                flush()

    def truncate(self, size: int) -> None:
        truncate = getattr(self._target, "truncate", None)
        if truncate is not None:
            with self.lock:
                truncate(size)


def open_storage(target: object) -> Storage:
    """Open a path, a directory or a file object. BadArgument and OSErrors name what is wrong."""
    if isinstance(target, (str, bytes, os.PathLike)):
        path = os.fsdecode(target)
        return _open_unnamed(path) if Path(path).is_dir() else _open_path(path)
    if _has(target, "pread", "pwrite"):
        return ObjectIO(target)
    if isinstance(target, io.TextIOBase):
        raise BadArgument(f"a backing file holds bytes: {target!r} is open as text")
    if not _has(target, "read", "write", "seek"):
        raise BadArgument(
            f"a backing file is a path, a directory, a binary file object that can read, write and seek, or an object with pread and pwrite, not {target!r}"
        )
    fd = _descriptor(target)
    if fd is not None:
        return DescriptorIO(fd, owned=False)
    for can in ("seekable", "readable", "writable"):
        if not getattr(target, can, lambda: True)():
            raise BadArgument(f"a backing file must be {can}, and {target!r} is not")
    return StreamIO(target)


def _has(target: object, *methods: str) -> bool:
    return all(callable(getattr(target, method, None)) for method in methods)


def _descriptor(target: Any) -> int | None:
    """Descriptor of a file object that has one, checked."""
    if not _has(target, "fileno"):
        return None
    try:
        fd: int = target.fileno()
    except OSError:  # io.UnsupportedOperation: a stream in memory
        return None
    _check_kind(os.fstat(fd).st_mode, repr(target))
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_APPEND:
        raise BadArgument(
            f"a backing file must be open to read and to write (w+b or r+b), and {target!r} is not"
        )
    if _has(target, "flush"):
        target.flush()  # what it still holds would be written over pages later
    return fd


def _check_kind(mode: int, name: str) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise BadArgument(f"a backing file is a regular file or a block device, and {name} is not")


def _open_unnamed(folder: str) -> DescriptorIO:
    try:
        with above_standard():
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # EISDIR: a kernel or file system that takes O_TMPFILE for O_DIRECTORY alone.
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT}:
            raise
        with above_standard():
            fd, path = tempfile.mkstemp(prefix="batchzip-", dir=folder)
        try:
            Path(path).unlink()
        except BaseException:
            os.close(fd)
            raise
    return DescriptorIO(fd, owned=True)


def _open_path(path: str) -> DescriptorIO:
    for _ in range(_TRIES):
        created = False
        try:
            with above_standard():
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            created = True
        except FileExistsError:
            try:
                fd = _open_existing(path)
            except FileNotFoundError:
                if Path(path).is_symlink():
                    raise
                continue  # removed by its owner, just now
        try:
            _lock(fd, path)
            if _leads_to(path, fd):
                return _take_over(fd, path, created=created)
        except BaseException as error:
            if created and _leads_to(path, fd):
                Path(path).unlink()
            os.close(fd)
            if isinstance(error, OSError) and error.filename is None and error.errno is not None:
                raise OSError(error.errno, error.strerror, path) from error
            raise
        os.close(fd)
    raise BadArgument(f"the backing file {path!r} is removed as often as it is opened")


def _open_existing(path: str) -> int:
    mode = os.stat(path).st_mode  # noqa: PTH116 - as os.open beside it
    _check_kind(mode, repr(path))  # before it is opened: a pipe or a tape would notice
    # O_EXCL without O_CREAT: EBUSY for a device that is mounted.
    exclusive = os.O_EXCL if stat.S_ISBLK(mode) else 0
    with above_standard():
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | exclusive)


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadArgument(f"the backing file {path!r} is in use by another store") from None


def _take_over(fd: int, path: str, *, created: bool) -> DescriptorIO:
    """Mark a locked file as ours, if it may be."""
    status = os.fstat(fd)
    regular = stat.S_ISREG(status.st_mode)
    ours = os.pread(fd, len(MAGIC), 0) == MAGIC
    if regular and status.st_size and not ours:
        raise BadArgument(
            f"{path!r} holds something that is no backing file: give an empty file, or a path where there is none"
        )
    if regular:
        os.ftruncate(fd, 0)
    header = MAGIC.ljust(HEADER_BYTES, b"\0")
    if os.pwrite(fd, header, 0) < HEADER_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    remove = path if regular and (created or ours) else None
    return DescriptorIO(fd, owned=True, base=HEADER_BYTES, unlink=remove)


def _leads_to(path: str, fd: int) -> bool:
    """Whether the path is that of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))  # noqa: PTH116 - for samestat
    except OSError:
        return False


@functools.cache
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function
