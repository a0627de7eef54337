"""Keeps batchzip's descriptors above 2, the numbers of the standard streams.

A program that closed its standard streams, as daemons do, gets these numbers for the next files
that it opens. Output to stdout or stderr would then be written to a page, a table or a socket.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from batchzip.errors import BatchzipError
from batchzip.system.limits import named

if TYPE_CHECKING:
    from collections.abc import Iterator

_STANDARD = range(3)

_F_SEAL_FUTURE_WRITE = 0x10
"""linux/fcntl.h; not in `fcntl` yet."""


class _Plugs:
    """Opens closed standard descriptors on /dev/null while there are users."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call this class again
        self._users = 0
        self._turns = 0
        """Number of times that there was a first user."""
        self._fds: list[int] = []

    def take(self) -> bool:
        """Add a user, and open the closed descriptors. Return whether `leave` must be called.

        Return False if no descriptor is closed and there is no user. No lock is taken then, because
        a signal handler may wait for a thread that calls this.
        """
        # Plugs of another user must not pass for descriptors of the program. Such a user is seen
        # here: it is counted before its plugs are opened, and until they are closed.
        turns = self._turns
        if not self._users and all(map(_is_open, _STANDARD)) and self._turns == turns:
            return False
        with self._lock:
            is_first = not self._users
            self._users += 1
            self._turns += is_first
            try:
                while (fd := open_nowhere()) in _STANDARD:
                    self._fds.append(fd)
                os.close(fd)
            except BaseException:
                self.leave()
                raise
            return True

    def leave(self) -> None:
        """Remove a user. The last one closes the descriptors."""
        with self._lock:
            while self._fds and self._users == 1:
                os.close(self._fds.pop())
            self._users -= 1


_plugs = _Plugs()


@contextmanager
def above_standard() -> Iterator[None]:
    """Make descriptors that are opened in this context get numbers above 2.

    If 0, 1 or 2 are closed, they are opened on /dev/null meanwhile, and closed again afterwards.
    This is the only way for `mmap`, which keeps its own duplicate at the lowest free number.

    Raise LimitReached, which names the limit, if the code in the context raises an OSError because
    of one.
    """
    plugs = _plugs
    taken = False
    try:
        taken = plugs.take()
        yield
    except OSError as error:
        reason = named(error)
        if reason is error:
            raise
        raise reason from None
    finally:
        if taken:
            plugs.leave()


def open_nowhere() -> int:
    """Open /dev/null, or an empty memfd if there is no /dev, as after chroot.

    Raise OSError if neither is possible.
    """
    with suppress(FileNotFoundError, PermissionError):
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return os.memfd_create("nowhere", os.MFD_CLOEXEC)


def seal_writing(fd: int) -> None:
    """Allow only the existing mappings of a memfd to write to it. Do nothing before Linux 5.1."""
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)


def moved_above_standard(fd: int) -> int:
    """Move a descriptor above 2, and return its new number.

    It is for descriptors from calls that may block, which should not run within `above_standard`.
    Raise LimitReached if there is no free number. The descriptor stays open then.
    """
    if fd not in _STANDARD:
        return fd
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(_STANDARD))
    except OSError as error:
        raise named(error) from None
    os.close(fd)
    return moved


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True


def _forget() -> None:
    """Use a new lock in a forked child: another thread may have held the old. Plugs stay open."""
    global _plugs  # noqa: PLW0603 - callers within `above_standard` keep the old object
    _plugs = _Plugs()


os.register_at_fork(after_in_child=_forget)


def open_to_read(fd: int) -> int:
    """Open the file of a descriptor again, read-only, to be sent to other processes.

    Raise OSError, or BatchzipError if the process has changed its user since it opened the file.
    """
    try:
        with above_standard():
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        if os.fstat(fd).st_uid == os.geteuid():
            raise
        raise BatchzipError(
            "the store's memory belongs to the user that its process had when it created the "
            "store: create the store after changing the user"
        ) from None
