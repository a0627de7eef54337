"""Descriptors of ours are never 0, 1 or 2.

A program that closed its standard streams, as daemons do, gets these numbers for whatever is opened next.
What somebody then writes to stdout or stderr would land there: in a page, in a table, in a socket.
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
    """What leads from closed standard descriptors to /dev/null while somebody needs it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come here again
        self._users = 0
        self._turns = 0
        """How often there was a first user."""
        self._fds: list[int] = []

    def take(self) -> bool:
        """Open what is closed, for a user more; False where nothing is, and nobody needs to know.

        Takes no lock then: a signal handler may wait for a thread that comes here.
        """
        turns = self._turns
        if all(map(_is_open, _STANDARD)) and not self._users and self._turns == turns:
            return False
        with self._lock:
            self._turns += not self._users
            self._users += 1
            try:
                while (fd := open_nowhere()) in _STANDARD:
                    self._fds.append(fd)
                os.close(fd)
            except BaseException:
                self.leave()
                raise
            return True

    def leave(self) -> None:
        """Close them with the last user."""
        with self._lock:
            self._users -= 1
            while self._fds and not self._users:
                os.close(self._fds.pop())


_plugs = _Plugs()


@contextmanager
def above_standard() -> Iterator[None]:
    """See that descriptors made meanwhile are above 2.

    Those of 0, 1 and 2 that are closed lead nowhere meanwhile, and are closed again afterwards.
    `mmap` keeps a duplicate that it makes itself, at the lowest free number: nobody can move that one.

    Raises LimitReached, which names the limit, where the system gives no more of what is asked for meanwhile.
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
    """Open /dev/null, or an empty file without a name where there is no /dev, as after chroot.

    Raises OSError where there is neither.
    """
    with suppress(FileNotFoundError, PermissionError):
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return os.memfd_create("nowhere", os.MFD_CLOEXEC)


def seal_writing(fd: int) -> None:
    """See that memory can be written by the mappings only that it has now; nothing before Linux 5.1."""
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)


def moved_above_standard(fd: int) -> int:
    """Move a descriptor that a call has made for which one waits; its number from now on.

    Raises LimitReached; the descriptor is as it was then.
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
    """Take a new lock in a forked child, as another thread may have held it. Plugs stay open."""
    global _plugs  # noqa: PLW0603 - whoever is inside in this thread has the old ones
    _plugs = _Plugs()


os.register_at_fork(after_in_child=_forget)


def open_to_read(fd: int) -> int:
    """Open what a descriptor refers to once more, so that who is given it cannot write.

    Raise OSError, or BatchzipError where it is another user's by now.
    """
    try:
        with above_standard():
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        if os.fstat(fd).st_uid == os.geteuid():
            raise
        raise BatchzipError(
            "the store's memory is of the user that its process was when it made the store, and "
            "changed since: make the store afterwards"
        ) from None
