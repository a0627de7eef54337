"""Storage: the I/O of a backing file, through a descriptor, the user's own object, or a stream.

    target                                    becomes directory, or path of no file
    DescriptorIO of a new file without a name path of an empty file, or of a device     DescriptorIO
    of it; the file is empty again after close
    descriptor, or an object with fileno(),   DescriptorIO of the same file, opened again, so that
      read, write and seek                      closing or seeking the user's one has no effect
    object with pread and pwrite              ObjectIO: the user's storage; tests inject faults here
    any other seekable binary object          StreamIO: seek, then read or write, under its lock

A file created here never has a name, or only for a moment if the file system has no O_TMPFILE. So
it disappears however its owner ends. A file given by its path keeps its name. It begins with a
header of 4 KiB. The header identifies a file that a killed owner left behind, and the next store
takes it over. Any other file that is not empty is refused. Only one store at a time can use a file
or object: see claims.py.

A user's object may raise and return anything. This module turns that into an OSError. So its
callers know two ways for a call to fail: an OSError, and an interrupt (a BaseException that is not
an Exception), which passes through.

Locks: each storage has one. zones.pyx holds it around sync() and truncate(), and StreamIO around
each call. There is no second lock. So two threads whose signal handlers or finalizers call this
module again cannot wait for each other. The lock is reentrant. No Python code runs under the lock
of a DescriptorIO. A user's object may have its own locks. So a handler that interrupted a call of
such an object does not wait long for another thread.
"""

# ruff: noqa: D102 - Storage documents each method

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import stat
import tempfile
import threading
from abc import abstractmethod
from io import TextIOBase
from pathlib import Path
from typing import Any

from batchzip.arguments.checks import as_integer
from batchzip.core.memory import Descriptor
from batchzip.errors import BadArgument, LimitReached
from batchzip.store.backing.claims import Claim
from batchzip.system.descriptors import above_standard
from batchzip.system.lifetime import Closing
from batchzip.wording import shown

HEADER_BYTES = 4096
"""One block of any disk, so that zones are aligned to blocks."""

MAGIC = b"batchzip backing file 1\n"

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
"""linux/falloc.h"""

_MOST_ERRNO = 4095
"""include/linux/err.h: no system call returns a larger errno."""

_MOST_DESCRIPTOR = (1 << 31) - 1


class Storage(Closing):
    """Bytes by offset. Raises only OSErrors. `base` is the first byte that may be used."""

    base = 0
    descriptor: int | None = None
    has_locks = False
    """Whether its calls may hold locks that this package does not know."""

    def __init__(self, claim: Claim) -> None:
        self.lock = threading.RLock()
        self.claim = claim

    @property
    @abstractmethod
    def name(self) -> str:
        """The path by which the file can be opened (/proc/PID/fd/N), or what object it is."""

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`; none at the end of the file."""

    @abstractmethod
    def pwrite(self, data: memoryview, offset: int) -> int:
        """Write some of `data` at `offset`. Return the number of bytes written."""

    def announce(self, offset: int, length: int) -> None:
        """Announce that these bytes will be read soon."""

    def sync(self) -> None:
        """Wait until the storage has all written bytes."""

    def discard(self, offset: int, length: int) -> None:
        """Announce that these bytes are no longer needed."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""

    def close(self) -> None:
        """Release the file or object. Idempotent: a call completes one that was interrupted."""
        self.claim.release()


class DescriptorIO(Storage):
    """A file with its own descriptor, which the claim owns."""

    _to_empty = False
    """Whether `close` empties the file: a user's file, given by its path."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim)
        assert claim.file is not None  # noqa: S101 - the callers claim a file
        self.descriptor = fd = claim.file.fileno()
        self._fd = fd
        self._punches = True
        # C functions, because no Python code may run under the lock.
        self.sync = functools.partial(os.fdatasync, fd)  # type: ignore[method-assign]
        self.truncate = functools.partial(os.ftruncate, fd)  # type: ignore[method-assign]

    @property
    def name(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._fd}"

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

    def take_over(self, path: str) -> None:
        """Write the header to a user's file. Raise BadArgument if it is in use for anything else.

        Raise OSError if the file cannot be read or written.
        """
        status = os.fstat(self._fd)
        regular = stat.S_ISREG(status.st_mode)
        if regular and status.st_size:
            if os.pread(self._fd, len(MAGIC), 0) != MAGIC:
                raise BadArgument(
                    f"{path!r} is not empty and not a backing file: "
                    "give an empty file, or a path where there is none"
                )
            os.ftruncate(self._fd, 0)
        self._to_empty = regular
        header = MAGIC.ljust(HEADER_BYTES, b"\0")
        if os.pwrite(self._fd, header, 0) < HEADER_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.base = HEADER_BYTES

    def close(self) -> None:
        if self._to_empty:
            with contextlib.suppress(OSError):  # a later store takes it over by its header
                os.ftruncate(self._fd, 0)
            self._to_empty = False  # another store may own it as soon as it is released
        super().close()

    def __del__(self) -> None:
        if self._to_empty and not self.claim.released:  # a forked child has released it
            self.close()


class ForeignIO(Storage):
    """A user's object."""

    has_locks = True

    def __init__(self, claim: Claim, target: Any) -> None:
        super().__init__(claim)
        self._target = target

    @property
    def name(self) -> str:
        return f"an object of class {type(self._target).__name__}"

    def _ask(self, method: str, *arguments: object, optional: bool = False) -> Any:
        """Call a method. Turn any Exception of it into an OSError with a valid errno."""
        try:
            if optional and getattr(self._target, method, None) is None:
                return None
            return getattr(self._target, method)(*arguments)
        except Exception as error:
            if isinstance(error, OSError) and _is_errno(error):
                raise
            code = errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO
            raise OSError(code, f"{method} of {self.name} raised {type(error).__name__}") from error

    def _ask_for_bytes(self, method: str, length: int, *arguments: int) -> bytes:
        data = self._ask(method, length, *arguments)
        if type(data) is not bytes:
            with contextlib.suppress(Exception):  # bytes() alone would turn an int into zeros
                data = bytes(memoryview(data))
        if type(data) is not bytes or len(data) > length:
            found = f"{len(data)} bytes" if type(data) is bytes else shown(data)
            raise OSError(
                errno.EIO,
                f"{method} of {self.name} must return up to {length} bytes, not {found}",
            )
        return data

    def _ask_to_take(self, method: str, data: memoryview, *arguments: int) -> int:
        count = self._ask(method, data, *arguments)
        try:
            return as_integer(count, method)
        except Exception as error:
            text = f"{method} of {self.name} must return a number of bytes, not {shown(count)}"
            raise OSError(errno.EIO, text) from error


class ObjectIO(ForeignIO):
    """An object with pread(length, offset) → bytes and pwrite(data, offset) → int.

    Its sync(), discard(offset, length) and truncate(size) are called if it has them. All methods
    may call the store. sync and truncate must not wait for another thread that writes to the
    object.
    """

    def pread(self, length: int, offset: int) -> bytes:
        return self._ask_for_bytes("pread", length, offset)

    def pwrite(self, data: memoryview, offset: int) -> int:
        return self._ask_to_take("pwrite", data, offset)

    def sync(self) -> None:
        self._ask("sync", optional=True)

    def discard(self, offset: int, length: int) -> None:
        self._ask("discard", offset, length, optional=True)

    def truncate(self, size: int) -> None:
        self._ask("truncate", size, optional=True)


class StreamIO(ForeignIO):
    """A seekable binary object such as BytesIO. Calls change its position."""

    has_locks = False

    def __init__(self, claim: Claim, target: Any) -> None:
        super().__init__(claim, target)
        self._position: int | None = None

    def pread(self, length: int, offset: int) -> bytes:
        with self.lock:
            outer, self._position = self._position, offset
            try:
                self._ask("seek", offset)
                return self._ask_for_bytes("read", length)
            finally:
                self._go_back(outer)

    def pwrite(self, data: memoryview, offset: int) -> int:
        with self.lock:
            outer, self._position = self._position, offset
            try:
                self._ask("seek", offset)
                return self._ask_to_take("write", data)
            finally:
                self._go_back(outer)

    def _go_back(self, outer: int | None) -> None:
        """Restore the position for an outer call that this one interrupted."""
        self._position = outer
        if outer is not None:
            self._ask("seek", outer)

    def sync(self) -> None:
        with self.lock:
            self._ask("flush", optional=True)

    def truncate(self, size: int) -> None:
        with self.lock:
            self._ask("truncate", size, optional=True)


def open_storage(target: object) -> Storage:
    """Open a path, a directory, a descriptor or a file object.

    Raise BadArgument if `target` cannot be a backing file or is in use, and OSError if it cannot be
    opened.
    """
    if isinstance(target, (str, bytes, os.PathLike)):
        return _open_path(_as_path(target))
    if _has(target, "pread", "pwrite"):
        return _open_object(target)
    if isinstance(target, TextIOBase):
        raise BadArgument(f"a backing file must be binary, and {shown(target)} is open as text")
    if _is_integer(target):
        fd = as_integer(target, "the descriptor of a backing file")
        return _open_descriptor(fd, f"descriptor {shown(fd)}")
    if not _has(target, "read", "write", "seek"):
        raise BadArgument(
            "a backing file must be a path, a directory, a descriptor, a binary file object that "
            f"can read, write and seek, or an object with pread and pwrite, not {shown(target)}"
        )
    own = _fileno(target)
    if own is not None:
        return _open_descriptor(own, shown(target), target)
    return _open_stream(target)


def _has(target: object, *methods: str) -> bool:
    return all(callable(getattr(target, method, None)) for method in methods)


def _is_integer(target: object) -> bool:
    return hasattr(type(target), "__index__") and not isinstance(target, bool)


def _is_errno(error: OSError) -> bool:
    with contextlib.suppress(Exception):
        return type(error.errno) is int and 0 < error.errno <= _MOST_ERRNO
    return False


def _as_path(target: Any) -> str:
    """Return a path as a string that system calls accept. Raise BadArgument."""
    try:
        path = os.fsdecode(target)
        usable = b"\0" not in os.fsencode(path)
    except (TypeError, ValueError) as error:
        raise BadArgument(
            f"{shown(target)} is not a valid path of a backing file: {error}"
        ) from error
    if not usable:
        raise BadArgument(
            f"{shown(target)} is not a valid path of a backing file: it has a zero byte"
        )
    return path


def _fileno(target: Any) -> int | None:
    """Return the descriptor that an object reports, or None."""
    try:
        fd = target.fileno()
    except Exception:  # noqa: BLE001 - it is not a file, has no descriptor, or is closed
        return None
    return fd if type(fd) is int and 0 <= fd <= _MOST_DESCRIPTOR else None


def _is_storage(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _check_kind(mode: int, name: str) -> None:
    if not _is_storage(mode):
        raise BadArgument(
            f"a backing file must be a regular file or a block device, and {name} is not"
        )


def _open_object(target: Any) -> ObjectIO:
    fd, own = _fileno(target), None
    if fd is not None:
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            mode = 0
        own = _reopened(fd, mode, shown(target)) if _is_storage(mode) else None
    return ObjectIO(Claim(shown(target), own, target), target)


def _open_stream(target: Any) -> StreamIO:
    for can in ("seekable", "readable", "writable"):
        try:
            able = not hasattr(target, can) or getattr(target, can)()
        except Exception as error:
            raise BadArgument(
                f"a backing file must be {can}: {shown(target)}: {shown(error)}"
            ) from error
        if not able:
            raise BadArgument(f"a backing file must be {can}, and {shown(target)} is not")
    return StreamIO(Claim(shown(target), target=target), target)


def _open_descriptor(fd: int, name: str, target: Any = None) -> DescriptorIO:
    """Open the file of a user's descriptor. `target` is the file object that has it, if any."""
    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError) as error:
        raise BadArgument(f"a backing file must be open, and {name} is not") from error
    _check_kind(mode, name)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_APPEND:
        raise BadArgument(
            f"a backing file must be open for reading and writing (w+b or r+b), and {name} is not"
        )
    if _has(target, "flush"):
        target.flush()  # buffered bytes would overwrite pages later
    own = _reopened(fd, mode, name)
    if fcntl.fcntl(own, fcntl.F_GETFL) & os.O_DIRECT:  # it was duplicated, not opened again
        raise BadArgument(
            f"{name} is open with O_DIRECT, and a backing file is written at unaligned offsets"
        )
    return DescriptorIO(Claim(name, own))


def _reopened(fd: int, mode: int, name: str) -> Descriptor:
    """Open the file of a descriptor again, with its own lock and flags.

    Return a duplicate of the descriptor if the file cannot be opened.
    """
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    try:
        return _opened(f"/proc/self/fd/{fd}", access, mode, name)
    except OSError:  # /proc is not mounted, or the file's mode denies this user
        return Descriptor(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))


def _opened(path: str, access: int, mode: int, name: str) -> Descriptor:
    """Open an existing file. Raise OSError, or BadArgument for a device that is in use."""
    # O_EXCL without O_CREAT fails with EBUSY if a device is mounted, or open with O_EXCL elsewhere.
    exclusive = os.O_EXCL if stat.S_ISBLK(mode) else 0
    try:
        with above_standard():
            return Descriptor(os.open(path, access | os.O_CLOEXEC | exclusive))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise BadArgument(
            f"the backing file {name} is in use: mounted, in another store, or open with O_EXCL"
        ) from error


def _open_path(path: str) -> DescriptorIO:
    try:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - follows links
            return _open_unnamed(path) if stat.S_ISDIR(mode) else _open_existing(path, mode)
        except FileNotFoundError:
            folder, name = os.path.split(path)
            if not name or Path(path).is_symlink():
                raise
        return _open_unnamed(folder or os.curdir)
    except OSError as error:
        if error.errno is None:
            raise
        kind = LimitReached if isinstance(error, LimitReached) else OSError
        raise kind(error.errno, error.strerror, path) from error


def _open_unnamed(folder: str) -> DescriptorIO:
    try:
        with above_standard():
            file = Descriptor(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        # EISDIR, ENOENT: the kernel or file system knows only the O_DIRECTORY in O_TMPFILE.
        # EPERM: the directory is gone. mkstemp below raises a better error for that.
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EPERM}:
            raise
        with above_standard():
            fd, path = tempfile.mkstemp(prefix="batchzip-", dir=folder)
        file = Descriptor(fd)
        Path(path).unlink()
    with contextlib.suppress(OSError):
        os.fchmod(file.fileno(), 0o600)  # despite any umask: readers open it again
    return DescriptorIO(Claim(f"in {folder!r}", file))


def _open_existing(path: str, mode: int) -> DescriptorIO:
    _check_kind(mode, repr(path))  # first: opening a pipe or a tape has side effects
    file = _opened(path, os.O_RDWR, mode, repr(path))
    storage = DescriptorIO(Claim(repr(path), file))
    try:
        storage.take_over(path)
    except BaseException:
        storage.close()
        raise
    return storage


@functools.cache
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function
