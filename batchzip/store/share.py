"""Share: a store's pages for other processes of the same user; the owner's half.

    owner                                     any process of the same user
    store.share() ─▶ Share(address) ─────────▶ share.attach(), batchzip.attach(address)
    ShareServer  ◀── Unix socket ──▶ StoreView
       descriptors, read-only: table, objects, words, file      once, at the start
       counters, status, classes, codecs                        when asked for
                      loads: from shared memory, by the reader alone (shared_table.py, pool/reader.py)

The address is the path of a descriptor, /proc/<pid>/fd/<n>, of a socket that was unlinked as soon as it
was bound: nothing is left behind however the owner ends, and no name is there to be guessed or taken.
Its mode is 0600, and each side asks the kernel who the other one is.

What comes from a client is JSON of a few words. What goes to it is pickled: it trusts its own user's
process, which it has chosen, as it would trust its own.

Rejected: serving loads over the connection, at 30 µs each and the cost of the owner's interpreter;
a server in the store's own threads' time (one slow client would hold the others up).

Threads: one that accepts, and one for each connection. They hold the store weakly, so that one that
nobody has any more still goes.

Locks: none of its own is held while another is taken; answers take the store's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import struct
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchzip.descriptors import above_standard, moved_above_standard
from batchzip.errors import BadArgument, BatchzipError
from batchzip.store.answers import answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.store.swap_store import SwapStore
    from batchzip.store.view import StoreView

_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

MOST_REQUEST = 4096
"""Bytes a request may have: it is a word and the name of a group."""

MOST_DESCRIPTORS = 4

_servers: weakref.WeakSet[ShareServer] = weakref.WeakSet()


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


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a message and duplicates of descriptors."""
    head = _LENGTH.pack(len(data))
    if descriptors:
        socket.send_fds(connection, [head], descriptors)
        connection.sendall(data)
    else:
        connection.sendall(head + data)


def receive(connection: socket.socket, most: int | None = None) -> tuple[bytes, list[int]]:
    """Receive a message and descriptors, which are the caller's. Raises EOFError at its end."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, MOST_DESCRIPTORS)
    try:
        for at, fd in enumerate(descriptors):
            descriptors[at] = moved_above_standard(fd)
        head += _exactly(connection, _LENGTH.size - len(head))
        length = _LENGTH.unpack(head)[0]
        if most is not None and length > most:
            raise EOFError(f"a message of {length} bytes")  # noqa: TRY301 - closes the descriptors
        return _exactly(connection, length), descriptors
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


class ShareServer:
    """Answers the readers of one store, in threads of its own, until `close`."""

    def __init__(self, store: SwapStore) -> None:
        self._store = weakref.ref(store, self._forget)
        self._listener, self._path_fd = _listen()
        self.address = f"/proc/{os.getpid()}/fd/{self._path_fd}"
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._accept, name="batchzip-share", daemon=True)
        self._thread.start()
        _servers.add(self)

    def _accept(self) -> None:
        while True:
            try:
                connection = _accepted(self._listener)
            except OSError:  # shut down, or out of descriptors
                if self._ended:
                    return
                continue
            if peer(connection)[1] != os.geteuid():
                connection.close()
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="batchzip-share-reader", daemon=True
            )
            with self._lock:
                if self._ended:
                    connection.close()
                    return
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while True:
                data, descriptors = receive(connection, MOST_REQUEST)
                for fd in descriptors:  # a reader sends none
                    os.close(fd)
                self._answer(connection, json.loads(data))
        except (OSError, EOFError, ValueError):
            pass  # it is gone, or speaks another language
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _answer(self, connection: socket.socket, request: object) -> None:
        store = self._store()
        if store is None:
            raise EOFError
        descriptors: list[int] = []
        try:
            reply: object = answer(store, request, descriptors)
        except (BatchzipError, OSError, MemoryError) as error:
            reply = error
        del store
        try:
            send(connection, pickle.dumps(reply, protocol=5), descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)

    def _forget(self, _: object) -> None:
        self._end()

    def _end(self) -> list[threading.Thread]:
        with self._lock:
            if self._ended:
                return []
            self._ended = True
            threads = [self._thread, *self._connections.values()]
            open_ones = [self._listener, *self._connections]
        for connection in open_ones:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        os.close(self._path_fd)
        return threads

    def close(self) -> None:
        """End all connections; their readers have what they mapped until they close it."""
        for thread in self._end():
            if thread is not threading.current_thread():
                thread.join()

    def disown(self) -> None:
        """Drop what a forked child has of it, so that readers see when the owner is gone."""
        if self._ended:  # and its descriptors' numbers are others' by now
            return
        self._ended = True
        os.close(self._path_fd)
        for connection in [self._listener, *self._connections]:
            connection.close()


def _listen() -> tuple[socket.socket, int]:
    """Make a listening socket without a name, and a descriptor by whose path it is reached."""
    with tempfile.TemporaryDirectory(prefix="batchzip-") as folder:
        # By the folder's descriptor, as a socket's path has 107 bytes at most.
        with above_standard():
            folder_fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path = f"/proc/self/fd/{folder_fd}/socket"
            listener.bind(path)
            Path(path).chmod(0o600)
            listener.listen()
            with above_standard():
                return listener, os.open(path, os.O_PATH | os.O_CLOEXEC)
        except BaseException:
            listener.close()
            raise
        finally:
            os.close(folder_fd)


def _accepted(listener: socket.socket) -> socket.socket:
    """Wait for a connection. Raises OSError: shut down, or out of descriptors."""
    connection, _ = listener.accept()
    if connection.fileno() > 2:
        return connection
    with connection, above_standard():
        return connection.dup()


def as_address(where: object) -> str:
    """Make an address of what a caller gave. Raises BadArgument."""
    address = where.address if isinstance(where, Share) else where
    if not isinstance(address, (str, os.PathLike)):
        raise BadArgument(f"an address is a path, as store.share().address, not {where!r}")
    return os.fspath(address)


def _disown() -> None:
    for server in _servers:
        server.disown()


os.register_at_fork(after_in_child=_disown)
