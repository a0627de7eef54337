"""ShareServer: one thread that answers all readers of a store.

    listener ─▶ connections, each: request ─▶ answers.py ─▶ reply, with descriptors ─▶ request …

A connection holds one request or one reply. The server reads no more until the reply is sent. So a
slow or malicious reader delays nobody and cannot make the owner's memory grow. A connection is
closed after _IDLE_S without a whole request or reply, or after _CROWDED_S if the number of
connections is at its limit. Further readers wait in the listener's queue meanwhile. If descriptors
run out, the server tries again after a pause.

Rejected: one thread per connection. A thousand readers would need a thousand threads, and none can
be started if the process is at its limit.

The server holds only a weak reference to the store, so that a dropped store ends. Other threads end
it by `_ended` and the bell, an eventfd. Only the server's own thread closes the sockets. A forked
child closes its copies. Each descriptor is closed in one step, and only while it is ours. So an
interrupt leaks none, and a number that now belongs to another file is not closed.

Locks: none here; those of the core within the answers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import resource
import selectors
import socket
import threading
import time
import weakref
from collections import OrderedDict
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from batchzip.core.memory import Descriptor
from batchzip.errors import BadArgument, BatchzipError, ClosedError, LimitReached
from batchzip.store.remote.answers import answer
from batchzip.store.remote.share import Share
from batchzip.store.remote.wire import (
    LENGTH,
    MOST_REQUEST,
    TOKEN_BYTES,
    AnswerThread,
    Descriptors,
    listen,
    peer,
)
from batchzip.system.descriptors import above_standard
from batchzip.system.limits import begin
from batchzip.wording import shown

if TYPE_CHECKING:
    from batchzip.store.remote.answers import SharedStore

_MOST_READERS = 1024
"""Limit of connections. It is lower if a quarter of the process's limit of descriptors is less."""

_IDLE_S = 30.0
"""Seconds without a whole request or reply until a connection is closed. Readers wait no longer."""

_CROWDED_S = 5.0
"""The same while the number of connections is at its limit."""

_PAUSE_S = 0.1
"""Seconds until the next attempt after descriptors or memory ran out."""

_END_S = 1.0
"""Seconds that `close` waits for an answer in progress: a backing file may be slow."""

_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS}

_servers: weakref.WeakSet[ShareServer] = weakref.WeakSet()


class _Reader:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._inode = _inode_of(connection)
        self.request = bytearray()
        self.reply = memoryview(b"")
        self.descriptors = Descriptors()
        """Descriptors sent with the first byte of the reply."""
        self.since = time.monotonic()
        """Time when it was accepted, or when its last request or reply was whole."""

    def receive(self) -> bool:
        """Read available bytes. Return whether the request is whole. Raise EOFError or OSError."""
        part = self.connection.recv(self._wanted() - len(self.request))
        if not part:
            raise EOFError
        self.request += part
        return self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether the request is whole."""
        return len(self.request) > LENGTH.size and len(self.request) == self._wanted()

    def _wanted(self) -> int:
        if len(self.request) < LENGTH.size:
            return LENGTH.size
        length: int = LENGTH.unpack_from(self.request)[0]
        if not 0 < length <= MOST_REQUEST:
            raise EOFError
        return LENGTH.size + length

    def send(self) -> bool:
        """Send as much as the socket takes. Return whether all was sent. Raise OSError."""
        while self.reply:
            try:
                sent = socket.send_fds(
                    self.connection, [self.reply], self.descriptors, socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                return False
            self.descriptors.close()
            self.reply = self.reply[sent:]
        return True

    def close(self) -> None:
        _close(self.connection, self._inode)
        self.descriptors.close()


class ShareServer:
    """Answers the readers of one store, in its own thread, from `start` until `close`.

    Raises OSError if the socket cannot be created, and leaves nothing behind then.
    """

    _inode: int | None = None

    def __init__(self, store: SharedStore) -> None:
        self._token = os.urandom(TOKEN_BYTES)
        """Distinguishes this store from a later one with the same address."""
        self._ended = False
        self._readers: OrderedDict[_Reader, None] = OrderedDict()
        """Readers in the order of `since`."""
        self._starved: list[_Reader] = []
        """Readers whose reply waits for descriptors or memory."""
        self._retry_at: float | None = None
        """Time of the next attempt after descriptors or memory ran out."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = max(1, min(_MOST_READERS, most // 4)) if most > 0 else _MOST_READERS
        self._seat: dict[str, threading.Thread] = {}
        """The thread that serves, or the one that closed the server before it was started."""
        bell: list[Descriptor] = []
        with above_standard():
            number = map(os.eventfd, (0,), (os.EFD_CLOEXEC | os.EFD_NONBLOCK,))
            bell.extend(map(Descriptor, number))  # one step, as in share.py
        self._bell = bell.pop()
        try:
            self._listener, self._path = listen()
        except BaseException:
            self._bell.close()
            raise
        self._inode = _inode_of(self._listener)
        _servers.add(self)
        self.share = Share(f"/proc/{os.getpid()}/fd/{self._path.fileno()}", self._token.hex())
        """The address for readers."""
        self._store = weakref.ref(store, self._forget)

    def start(self) -> None:
        """Start the thread unless there is one. Raise LimitReached if none can be started."""
        if self._seat:
            return
        try:
            begin(_ServerThread(target=self._run, name="batchzip-share", daemon=True))
        except LimitReached:
            if self._sit() is threading.current_thread():  # no other thread has started one
                self.close()
            raise

    def _sit(self) -> threading.Thread:
        """Take the seat, unless another thread has it. Return the thread that has it."""
        return self._seat.setdefault("the only one", threading.current_thread())

    @property
    def ended(self) -> bool:
        """Whether it no longer answers."""
        return self._ended

    def _run(self) -> None:
        if self._sit() is not threading.current_thread():
            return
        try:
            with selectors.PollSelector() as selector:  # a forked child would share epoll's state
                selector.register(self._bell, EVENT_READ)
                selector.register(self._listener, EVENT_READ)
                while not self._ended:
                    try:
                        self._step(selector)
                    except MemoryError:
                        time.sleep(_PAUSE_S)
        finally:
            self._ended = True
            self._release()

    def _step(self, selector: selectors.BaseSelector) -> None:
        """Wait for one event, and handle it."""
        for key, _ in selector.select(self._wait_s()):
            if isinstance(key.data, _Reader):
                self._serve(selector, key.data)
            elif key.fileobj is self._listener:
                self._accept(selector)
        now = time.monotonic()
        while self._readers and next(iter(self._readers)).since + self._most_idle_s() <= now:
            self._drop(selector, next(iter(self._readers)))
        if self._retry_at is not None:
            if now < self._retry_at:
                return
            self._retry_at = None
        for reader in self._starved[:]:
            selector.register(reader.connection, EVENT_READ, reader)
            self._starved.remove(reader)
            self._serve(selector, reader)
        if len(self._readers) < self._most and self._listener not in selector.get_map():
            selector.register(self._listener, EVENT_READ)

    def _most_idle_s(self) -> float:
        return _IDLE_S if len(self._readers) < self._most else _CROWDED_S

    def _wait_s(self) -> float | None:
        """Return the seconds until the next time-out or attempt; None if there is none."""
        now = time.monotonic()
        times = [] if self._retry_at is None else [self._retry_at]
        times += [reader.since + self._most_idle_s() for reader in [*self._readers][:1]]
        return max(0.0, min(times) - now) if times else None

    def _accept(self, selector: selectors.BaseSelector) -> None:
        """Accept waiting readers. At the limit, stop listening until a connection ends."""
        while len(self._readers) < self._most:
            try:
                connection = _accepted(self._listener)
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if _is_scarce(error):
                    self._pause()
                else:
                    self._ended = True
                break
            if peer(connection)[1] != os.geteuid():
                connection.close()
                continue
            reader = _Reader(connection)
            self._readers[reader] = None
            try:
                selector.register(connection, EVENT_READ, reader)
            except MemoryError:
                self._starved.append(reader)
                self._pause()
        selector.unregister(self._listener)

    def _pause(self) -> None:
        self._retry_at = time.monotonic() + _PAUSE_S

    def _serve(self, selector: selectors.BaseSelector, reader: _Reader) -> None:
        """Receive from or send to a connection that is ready. Drop it if it broke the protocol."""
        try:
            if not (reader.reply or reader.is_whole or reader.receive()):
                return
            if not reader.reply:
                self._make_reply(reader)
                self._note_progress(reader)
            if reader.send():
                self._note_progress(reader)
                selector.modify(reader.connection, EVENT_READ, reader)
            else:
                selector.modify(reader.connection, EVENT_WRITE, reader)
        except (OSError, EOFError, MemoryError) as error:
            if _is_scarce(error):
                selector.unregister(reader.connection)
                self._starved.append(reader)
                self._pause()
            else:
                self._drop(selector, reader)

    def _note_progress(self, reader: _Reader) -> None:
        reader.since = time.monotonic()
        self._readers.move_to_end(reader)

    def _make_reply(self, reader: _Reader) -> None:
        """Make the reply to a request. Raise OSError or MemoryError if a resource is exhausted."""
        data = self.reply_to(bytes(reader.request[LENGTH.size :]), reader.descriptors)
        reader.request.clear()
        reader.reply = memoryview(LENGTH.pack(len(data)) + data)

    def reply_to(self, request: bytes, descriptors: Descriptors) -> bytes:
        """Return the reply to a request. Append its descriptors, which the caller owns.

        Raise OSError or MemoryError if a resource is exhausted. Any other error becomes the reply.
        """
        try:
            data = pickle.dumps(self._answer(json.loads(request), descriptors), protocol=5)
        except BaseException as error:  # a file object or a codec may raise anything
            descriptors.close()
            if isinstance(error, Exception) and _is_scarce(error):
                raise
            data = _pickle_error(error)
        return self._token + data

    def _answer(self, request: object, descriptors: Descriptors) -> object:
        store = self._store()
        if store is None:
            raise ClosedError("the store is closed")
        if not isinstance(request, dict):
            raise BadArgument(f"a reader asked for {shown(request)}")
        return answer(store, request, descriptors)

    def _drop(self, selector: selectors.BaseSelector, reader: _Reader) -> None:
        self._readers.pop(reader, None)
        if reader in self._starved:
            self._starved.remove(reader)
        with contextlib.suppress(KeyError):  # it was starved, or could not be registered
            selector.unregister(reader.connection)
        reader.close()

    def _release(self) -> None:
        """Close everything but the bell, which another thread may be about to ring."""
        self._path.close()
        _close(self._listener, self._inode)
        for reader in list(self._readers):
            reader.close()

    def _forget(self, _: object) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._path.close()
            self._bell.ring()
            self._ended = True

    def close(self) -> None:
        """End all connections. Readers keep their mappings until they close them."""
        self._end()
        thread = self._sit()
        if thread is threading.current_thread():
            self._release()
        else:
            thread.join(_END_S)
            if thread.is_alive():
                return
        self._bell.close()

    def __del__(self) -> None:
        if hasattr(self, "_path") and not self._seat:
            self._release()
        if hasattr(self, "_bell"):
            self._bell.close()

    def disown(self) -> None:
        """Close a forked child's copies, so that readers notice the end of the owner."""
        self._ended = True
        self._release()
        self._bell.close()


def _is_scarce(error: Exception) -> bool:
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _SCARCE


def _accepted(listener: socket.socket) -> socket.socket:
    """Accept a waiting connection, with a descriptor above 2. Raise OSError."""
    connection, _ = listener.accept()
    if connection.fileno() > 2:
        return connection
    with connection, above_standard():
        return connection.dup()


def _inode_of(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino


def _close(connection: socket.socket, inode: int | None) -> None:
    """Close a socket, unless it was closed before and its number belongs to another file.

    `inode` is None if an interrupt came before it was noted.
    """
    try:
        ours = inode is None or _inode_of(connection) == inode
    except OSError:  # it was closed, and its number is free
        ours = False
    if ours:
        connection.close()
    else:
        connection.detach()


def _pickle_error(error: BaseException) -> bytes:
    """Return a pickled error. One of a class that a reader may not have becomes a BadArgument."""
    if type(error).__module__ in ("builtins", "batchzip.errors") and isinstance(
        error, (BatchzipError, OSError, MemoryError)
    ):
        # Some libraries make pickle include causes and tracebacks, of any class.
        error.__cause__ = error.__context__ = error.__traceback__ = None
        with contextlib.suppress(Exception):
            return pickle.dumps(error, protocol=5)
    return pickle.dumps(BadArgument(f"a reader's request failed: {shown(error)}"), protocol=5)


class _ServerThread(AnswerThread):
    def reply_here(self, address: str, request: dict[str, object]) -> tuple[bytes, Descriptors]:
        for server in list(_servers):
            if server.share.address == address and not server.ended:
                descriptors = Descriptors()
                return server.reply_to(json.dumps(request).encode(), descriptors), descriptors
        raise ClosedError("the store is closed")


def _disown() -> None:
    for server in _servers:
        server.disown()


os.register_at_fork(after_in_child=_disown)
