"""Wire: the protocol between the owner of a store and its readers, over a Unix socket.

A request is a small JSON object. A reply is pickled, because codecs may be of any class. It begins
with the store's token. Descriptors are sent as ancillary data.

Locks: none.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from array import array
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchzip.core.memory import Descriptor
from batchzip.store.remote.reach import make_folder
from batchzip.system.descriptors import above_standard, moved_above_standard
from batchzip.system.limits import named

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTH = struct.Struct("<I")
_INT = struct.calcsize("i")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

MOST_REQUEST = 4096
"""Largest request in bytes: the kind of request and the name of a group."""

MOST_REPLY = 256 << 20
"""Largest reply in bytes: codecs include their dictionaries."""

MOST_DESCRIPTORS = 4
"""Most descriptors of a reply: objects, words, backing file, table."""

TOKEN_BYTES = 8
"""Length of the token that begins each reply and identifies the store, in bytes."""

MOST_WAITING = 65535
"""Length of the listener's queue, unless the system's limit is lower (net.core.somaxconn, 4096)."""


class AnswerThread(threading.Thread):
    """A thread that answers readers. A finalizer in it that reads a store must not wait for it."""

    def reply_here(self, address: str, request: dict[str, object]) -> tuple[bytes, Descriptors]:
        """Return the reply to a request made in this thread, which would otherwise wait for itself.

        Raise ClosedError if no server of this process has that address.
        """
        raise NotImplementedError


class Descriptors(list[int]):
    """Descriptors that are closed when the list is dropped, for example by an interrupt.

    To take one, read it, delete it here and pass it on, with no call in between.
    """

    _came: Sequence[tuple[bytes, list[tuple[int, int, bytes]], int, object]] = ()
    """The result of recvmsg, until its descriptors are in the list."""

    def receive(self, connection: socket.socket, length: int, most: int) -> tuple[bytes, bool]:
        """Receive bytes and descriptors. Return the bytes, and whether descriptors were lost."""
        room = socket.CMSG_SPACE(most * _INT)
        # One step: an interrupt after a call would lose the call's result.
        came: list[Any] = []
        self._came = came
        came.extend(map(connection.recvmsg, (length,), (room,), (socket.MSG_CMSG_CLOEXEC,)))
        data, _, flags, _ = came[0]
        found = self._received()
        self += found
        self._came = ()
        return data, bool(flags & socket.MSG_CTRUNC)

    def _received(self) -> array[int]:
        found = array("i")
        for _, ancillary, _, _ in self._came:
            for _, _, data in ancillary:  # only descriptors: nothing else was requested
                found.frombytes(data[: len(data) // _INT * _INT])
        return found

    def close(self) -> None:
        """Close all descriptors in the list."""
        for _ in map(os.close, map(self.pop, repeat(-1, len(self)))):  # one step each
            pass

    def __del__(self) -> None:
        for fd in (*self, *self._received()):
            os.close(fd)


class NoAnswerError(Exception):
    """The bytes received are not a store's reply. Internal: `batchzip.attach` adds the address."""


def send(connection: socket.socket, data: bytes) -> None:
    """Send a message."""
    connection.sendall(LENGTH.pack(len(data)) + data, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket, until: float) -> tuple[bytes, Descriptors]:
    """Receive a reply and its descriptors.

    Raise EOFError if the other side has ended, TimeoutError at the moment `until`, NoAnswerError if
    the bytes are not a reply, and LimitReached if this process is at its limit of descriptors.
    """
    found = Descriptors()
    _wait_until(connection, until)
    try:
        head, more = found.receive(connection, LENGTH.size, MOST_DESCRIPTORS)
        if more and len(found) < MOST_DESCRIPTORS:  # this process has no room for them
            raise named(OSError(errno.EMFILE, ""))  # noqa: TRY301 - closes the others
        if more:
            raise NoAnswerError("it sent too many descriptors")  # noqa: TRY301 - likewise
        for at, fd in enumerate(found):
            found[at] = moved_above_standard(fd)
        head += _exactly(connection, LENGTH.size - len(head), until)
        length = LENGTH.unpack(head)[0]
        if length > MOST_REPLY:
            raise NoAnswerError(f"it announced {length} bytes")  # noqa: TRY301 - likewise
        return _exactly(connection, length, until), found
    except BaseException:
        found.close()
        raise


def _exactly(connection: socket.socket, length: int, until: float) -> bytes:
    parts = []
    while length:
        _wait_until(connection, until)
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _wait_until(connection: socket.socket, until: float) -> None:
    """Set the time-out of the connection's next call. Raise TimeoutError if `until` has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process ID and user ID of the other side, as the kernel reports them."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return pid, uid


def listen() -> tuple[socket.socket, Descriptor]:
    """Return a listening socket without a name, and a descriptor by whose path it is reached.

    Raise OSError, or LimitReached if descriptors are exhausted. Nothing is left behind then.
    """
    folders = Descriptors()
    paths: list[Descriptor] = []
    folder = make_folder()
    try:
        with above_standard():
            # By the folder's descriptor, because a socket's path has at most 107 bytes. Here and
            # below, one step opens and keeps: an interrupt after a call would lose the call's
            # result.
            folders.extend(map(os.open, (folder,), (os.O_PATH | os.O_CLOEXEC,)))
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path = f"/proc/self/fd/{folders[0]}/socket"
            listener.bind(path)
            Path(path).chmod(0o600)
            listener.setblocking(False)
            listener.listen(MOST_WAITING)
            with above_standard():
                opened = map(os.open, (path,), (os.O_PATH | os.O_CLOEXEC,))
                paths.extend(map(Descriptor, opened))
            return listener, paths[0]
        except BaseException:
            listener.close()
            for file in paths:
                file.close()
            raise
    finally:
        folders.close()
        (folder / "socket").unlink(missing_ok=True)
        folder.rmdir()
