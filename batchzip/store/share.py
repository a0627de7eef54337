"""Share: a store's pages for other processes of the same user: where they are, and how both sides talk.

    owner                                     any process of the same user
    store.share() ─▶ Share(address) ─────────▶ share.attach(), batchzip.attach(address)
    ShareServer  ◀── Unix socket ──▶ StoreView
       descriptors, read-only: table, objects, words, file      once, at the start
       counters, status, classes, codecs                        when asked for
                                loads: from shared memory, by the reader alone (core/view.pyx)

The address is the path of a descriptor, /proc/<pid>/fd/<n>, of a socket that was unlinked as soon as it
was bound: nothing is left behind however the owner ends, and no name is there to be guessed or taken.
Its mode is 0600, and each side asks the kernel who the other one is.

What comes from a client is JSON of a few words. What goes to it is pickled: it trusts its own user's
process, which it has chosen, as it would trust its own.

Rejected: serving loads over the connection, at 30 µs each and the cost of the owner's interpreter.

Locks: none.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchzip.descriptors import above_standard, moved_above_standard
from batchzip.errors import BadArgument
from batchzip.limits import named

if TYPE_CHECKING:
    from batchzip.store.view import StoreView

LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

MOST_REQUEST = 4096
"""Bytes a request may have: it is a word and the name of a group."""

MOST_DESCRIPTORS = 4
"""Descriptors of a reply: objects, words, backing file, table."""

MOST_WAITING = 65535
"""Readers that wait to be let in, where the system does not say fewer (net.core.somaxconn, 4096)."""


@dataclass(frozen=True, slots=True)
class Share:
    """Where a store can be read from. Picklable; `str()` of it is the address.

    Good while the store is open, in processes of the same user on the same machine (and the same PID
    namespace).
    """

    address: str

    def attach(self) -> StoreView:
        """Open the store for reading, as `batchzip.attach`."""
        from batchzip.store.view import attach  # noqa: PLC0415 - the owner needs no view

        return attach(self)

    def __str__(self) -> str:
        return self.address


def send(connection: socket.socket, data: bytes) -> None:
    """Send a message."""
    connection.sendall(LENGTH.pack(len(data)) + data, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a message and descriptors, which are the caller's.

    Raise EOFError at its end, LimitReached where this process may have no more descriptors.
    """
    head, descriptors, flags, _ = socket.recv_fds(
        connection, LENGTH.size, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    try:
        if flags & socket.MSG_CTRUNC:  # there was no room for all of them in this process
            raise named(OSError(errno.EMFILE, ""))  # noqa: TRY301 - closes the others
        for at, fd in enumerate(descriptors):
            descriptors[at] = moved_above_standard(fd)
        head += _exactly(connection, LENGTH.size - len(head))
        return _exactly(connection, LENGTH.unpack(head)[0]), descriptors
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user of the other side, from the kernel."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return pid, uid


def listen() -> tuple[socket.socket, int]:
    """Make a listening socket without a name, and a descriptor by whose path it is reached.

    Raise OSError, LimitReached where descriptors are out; nothing is left then.
    """
    with above_standard():
        folder = Path(tempfile.mkdtemp(prefix="batchzip-"))
        # Not a TemporaryDirectory: it needs a descriptor to remove the folder.
        try:
            # By the folder's descriptor, as a socket's path has 107 bytes at most.
            folder_fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    path = f"/proc/self/fd/{folder_fd}/socket"
                    listener.bind(path)
                    Path(path).chmod(0o600)
                    listener.setblocking(False)
                    listener.listen(MOST_WAITING)
                    return listener, os.open(path, os.O_PATH | os.O_CLOEXEC)
                except BaseException:
                    listener.close()
                    raise
            finally:
                os.close(folder_fd)
        finally:
            (folder / "socket").unlink(missing_ok=True)
            folder.rmdir()


def as_address(where: object) -> str:
    """Make an address of what a caller gave. Raises BadArgument."""
    address = where.address if isinstance(where, Share) else where
    if not isinstance(address, (str, os.PathLike)):
        raise BadArgument(f"an address is a path, as store.share().address, not {where!r}")
    return os.fspath(address)
