"""ShareServer: one thread that answers all readers of a store.

    listener ─▶ connections, each: request ─▶ answers.py ─▶ reply, with descriptors ─▶ request …

A connection has room for one request or one reply; until the reply is sent nothing more is read. So a
reader that is slow, or means harm, holds up nobody and cannot make the owner grow. It is dropped after
_IDLE_S without a byte, and after _CROWDED_S where there are as many as there may be; others wait in
the listener's queue meanwhile. What finds no descriptors is tried again after a pause.

Rejected: a thread for each connection. A thousand readers would need a thousand threads, and none can be
started where the process is at its limit.

It holds the store weakly, so that one that nobody has any more still goes. Other threads end it by `_ended`
and the bell; its own thread alone closes what is open. A forked child closes its copies. Descriptors are closed in
one step, and only while they are ours: an interrupt loses none, and no number is met that is another's by now.

Locks: none of its own; answers take the store's.
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
"""Connections at a time, if the process may have four times as many descriptors."""

_IDLE_S = 30.0
"""Seconds that a connection lives without a whole request or reply: no reader waits longer for one."""

_CROWDED_S = 5.0
"""The same where others wait to get in."""

_PAUSE_S = 0.1
"""Seconds after which what found no descriptors tries again."""

_END_S = 1.0
"""Seconds that `close` waits for an answer under way: a backing file may be slow."""

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
        """What goes with the first byte of the reply."""
        self.since = time.monotonic()
        """When it was let in, or had its last request or reply whole."""

    def receive(self) -> bool:
        """Read what has come; whether the request is whole. Raises EOFError, OSError."""
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
        """Send as much as there is room for. Return whether that was all. Raise OSError."""
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
    """Answers the readers of one store, in a thread of its own from `start` until `close`.

    Raises OSError; nothing is left behind then.
    """

    _inode: int | None = None

    def __init__(self, store: SharedStore) -> None:
        self._token = os.urandom(TOKEN_BYTES)
        """Tells its readers that it is not a store that has the same address later."""
        self._ended = False
        self._readers: OrderedDict[_Reader, None] = OrderedDict()
        """In the order of `since`."""
        self._starved: list[_Reader] = []
        """Those whose reply finds no descriptors, or no memory."""
        self._retry_at: float | None = None
        """When to try again what found no descriptors."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = max(1, min(_MOST_READERS, most // 4)) if most > 0 else _MOST_READERS
        self._seat: dict[str, threading.Thread] = {}
        """The thread that serves; or that which closed it before there was one."""
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
        """Where readers find it."""
        self._store = weakref.ref(store, self._forget)

    def start(self) -> None:
        """Start the thread unless there is one. Raise LimitReached where that cannot be."""
        if self._seat:
            return
        try:
            begin(_ServerThread(target=self._run, name="batchzip-share", daemon=True))
        except LimitReached:
            if self._sit() is threading.current_thread():  # nobody else has started one
                self.close()
            raise

    def _sit(self) -> threading.Thread:
        """Take the seat, which one gets of several that start or close it at once. Return who has it."""
        return self._seat.setdefault("the only one", threading.current_thread())

    @property
    def ended(self) -> bool:
        """Whether it answers nobody any more."""
        return self._ended

    def _run(self) -> None:
        if self._sit() is not threading.current_thread():
            return
        try:
            with selectors.PollSelector() as selector:  # epoll's would be a forked child's, too
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
        """Wait until there is something to do, and do it."""
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
        """Seconds until something is to be done though nothing comes."""
        now = time.monotonic()
        times = [] if self._retry_at is None else [self._retry_at]
        times += [reader.since + self._most_idle_s() for reader in [*self._readers][:1]]
        return max(0.0, min(times) - now) if times else None

    def _accept(self, selector: selectors.BaseSelector) -> None:
        """Let in who waits; where no more can be let in, stop listening until that changes."""
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
        """Do what a connection is ready for, and drop it if it is gone, or speaks another language."""
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
        """Answer a request, with an error if need be. Raises OSError where something is scarce."""
        data = self.reply_to(bytes(reader.request[LENGTH.size :]), reader.descriptors)
        reader.request.clear()
        reader.reply = memoryview(LENGTH.pack(len(data)) + data)

    def reply_to(self, request: bytes, descriptors: Descriptors) -> bytes:
        """Make the reply to a request; descriptors that go with it are appended, and are the caller's.

        Raises OSError or MemoryError where something is scarce; every other error is the reply.
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
        with contextlib.suppress(KeyError):  # it was starved, or memory ended when it was let in
            selector.unregister(reader.connection)
        reader.close()

    def _release(self) -> None:
        """Close what is open, but for the bell, which others may be about to ring."""
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
        """End all connections; readers have what they mapped until they close it."""
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
        """Close what a forked child has of it, so that readers see when the owner is gone."""
        self._ended = True
        self._release()
        self._bell.close()


def _is_scarce(error: Exception) -> bool:
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _SCARCE


def _accepted(listener: socket.socket) -> socket.socket:
    """Take a connection that waits. Raises OSError."""
    connection, _ = listener.accept()
    if connection.fileno() > 2:
        return connection
    with connection, above_standard():
        return connection.dup()


def _inode_of(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino


def _close(connection: socket.socket, inode: int | None) -> None:
    """Close a socket, unless somebody else has, and its number is another's by now.

    An interrupt may have come before its inode was noted: None.
    """
    try:
        ours = inode is None or _inode_of(connection) == inode
    except OSError:  # it is closed, and its number nobody's
        ours = False
    if ours:
        connection.close()
    else:
        connection.detach()


def _pickle_error(error: BaseException) -> bytes:
    """Make a reply of an error; of what a reader may not know, or cannot read, one that says so."""
    if type(error).__module__ in ("builtins", "batchzip.errors") and isinstance(
        error, (BatchzipError, OSError, MemoryError)
    ):
        # Some libraries have causes and tracebacks pickled, too, of whatever classes.
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
