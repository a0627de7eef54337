"""StoreView: the pages of another process's store, read from its shared memory.

    load, load_many     SharedTable (core/view.pyx): one call, without asking the owner
    everything else     _Owner: a request over the owner's socket, each on its own connection

A view belongs to one owner. Reading through a view neither refreshes the page in the owner's LRU
nor updates its counters. A view costs the owner nothing between requests, not even a descriptor.
Loads ask the owner only if an entry has a codec that the view does not know yet, or if the backing
file is an object that only its owner can read.

load_many is not a snapshot: it may return old and new pages of a folio that is just being stored.

Rejected: one connection for all requests. It would need a lock, and a signal handler or finalizer
that interrupts a request of its own thread would wait for itself. And a thousand readers would keep
a thousand of the owner's descriptors open.

Locks: none.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import select
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

import numpy as np

from batchzip.arguments.checks import as_index
from batchzip.codecs import Codec
from batchzip.core.memory import Descriptor
from batchzip.core.view import SharedPool, SharedTable
from batchzip.errors import (
    BadArgument,
    BatchzipError,
    ClosedError,
    LimitReached,
    RequestTimeout,
)
from batchzip.store.arguments import MAX_INDEX, as_indices, as_out, as_room
from batchzip.store.counters import Counters
from batchzip.store.remote.reach import why_unreachable
from batchzip.store.remote.wire import (
    TOKEN_BYTES,
    AnswerThread,
    Descriptors,
    NoAnswerError,
    peer,
    receive,
    send,
)
from batchzip.system.descriptors import above_standard
from batchzip.system.lifetime import Owned
from batchzip.system.limits import needing
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from batchzip.arguments.buffers import Buffer, Bytes
    from batchzip.pool.class_use import ClassUse

Answer = TypeVar("Answer")

_ANSWER_S = 30.0
"""Time-out of a request, in seconds. An answer takes 0.1 ms, but on an overloaded machine the
owner's thread may wait long for a processor."""

_FULL_S = 0.005
"""Seconds between two attempts to connect while the owner's queue of readers is full."""


class _Owner:
    """The owner of the store, and the protocol to ask it. Closed when it is dropped.

    Any program of the same user may answer at the address. So each answer is checked.
    """

    _process: Descriptor | None = None
    _answered = False

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = bytes.fromhex(token)
        """The first bytes of its replies. Empty until the first reply if no token was given."""
        self._pid = int(address.split("/")[2])
        # A pidfd, because the process may end and its PID be reused.
        opened: list[Descriptor] = []
        try:
            with above_standard(), needing("pidfd_open"):
                number = map(os.pidfd_open, (self._pid,))
                opened.extend(map(Descriptor, number))  # one step, as in share.py
        except (ProcessLookupError, OverflowError):
            raise _unreachable(errno.ENOENT, self._pid, address) from None
        self._process = opened.pop()

    def attach(self) -> tuple[Any, Descriptors]:
        """Return the first answer and its descriptors. Raise BatchzipError or OSError."""
        try:
            return self._ask("attach", (3, 4))
        except BatchzipError:
            raise
        except OSError as error:
            raise _unreachable(error.errno or 0, self._pid, self._address) from None

    def ask(self, what: str, kind: type[Answer], **more: object) -> Answer:
        """Return an answer. Raise the owner's error, or ClosedError if the owner is gone."""
        answer, _ = self._ask(what, (0,), **more)
        if not isinstance(answer, kind):
            raise self.no_store(f"asked for {what}, it sent {shown(answer)}")
        return answer

    def table(self, group: str) -> Descriptors:
        """Return the descriptor of a group's table."""
        return self._ask("table", (1,), group=group)[1]

    def codecs(self) -> tuple[int, dict[int, Codec]]:
        """Return how many codec numbers the owner has given out, and the codecs by number."""
        return self.as_codecs(self.ask("codecs", tuple))

    def stored(self, group: str, index: int) -> bytes | None:
        """Return the stored bytes of a page in the backing file, or None."""
        return self.ask("stored", bytes | None, group=group, index=index)  # type: ignore[arg-type]

    def as_codecs(self, given: object) -> tuple[int, dict[int, Codec]]:
        """Return the answer of `codecs` after checking its types. Raise BadArgument."""
        match given:
            case (int(known), dict(codecs)) if 0 <= known < 1 << 64 and all(
                type(number) is int and 0 < number < 256 and isinstance(codec, Codec)
                for number, codec in codecs.items()
            ):
                return known, codecs
        raise self.no_store(f"asked for codecs, it sent {shown(given)}")

    def no_store(self, why: str) -> BadArgument:
        """Return the error for an answer that cannot come from a store."""
        return BadArgument(f"the program at {self._address} is not a readable store: {why}")

    def _ask(self, what: str, counts: tuple[int, ...], **more: object) -> tuple[Any, Descriptors]:
        """Return the answer and its descriptors, whose number must be one of `counts`."""
        data, descriptors = self._reply({"what": what, **more})
        try:
            answer = self._read(data)
            if isinstance(answer, LimitReached):
                text = f"the store's owner has reached a limit: {answer.strerror}"
                raise LimitReached(answer.errno, text)  # noqa: TRY301 - closes the descriptors
            if isinstance(answer, (BatchzipError, OSError, MemoryError)):
                raise answer  # noqa: TRY301 - likewise
            if len(descriptors) not in counts:
                text = f"it sent {len(descriptors)} descriptors"
                raise self.no_store(text)  # noqa: TRY301 - likewise
        except BaseException:
            descriptors.close()
            raise
        return answer, descriptors

    def _read(self, data: bytes) -> object:
        """Unpickle a reply after checking its token. Raise ClosedError or BadArgument."""
        token = data[:TOKEN_BYTES]
        if self._token and token != self._token:
            raise ClosedError("the store is closed, and another one has its address")
        try:
            answer: object = pickle.loads(memoryview(data)[TOKEN_BYTES:])
        except Exception as error:
            raise self.no_store(f"its answer cannot be read: {shown(error)}") from error
        self._token = token
        self._answered = True
        return answer

    def _reply(self, request: dict[str, object]) -> tuple[bytes, Descriptors]:
        """Return the reply over the socket, or directly in a thread that would answer itself."""
        until = time.monotonic() + _ANSWER_S
        thread = threading.current_thread()
        if isinstance(thread, AnswerThread) and self._pid == os.getpid():
            return thread.reply_here(self._address, request)
        with above_standard():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with connection:
            connection.settimeout(_ANSWER_S)
            try:
                self._connect(connection, until)
                return self._converse(connection, request, until)
            except TimeoutError:
                raise RequestTimeout(f"the store's owner did not answer in {_ANSWER_S} s") from None
            except NoAnswerError as error:
                raise self.no_store(str(error)) from None

    def _connect(self, connection: socket.socket, until: float) -> None:
        while True:
            try:
                connection.connect(self._address)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError from None
                time.sleep(_FULL_S)
            except (FileNotFoundError, ConnectionError):
                if self._answered:
                    raise _gone() from None
                raise
            else:
                break
        if peer(connection) != (self._pid, os.geteuid()):
            raise BadArgument(f"what answers at {self._address} is not a store of this user")

    def _converse(
        self, connection: socket.socket, request: dict[str, object], until: float
    ) -> tuple[bytes, Descriptors]:
        # A child that the owner forked may hold the connection open: the process is what tells.
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if self._process is None or self._process.closed:
            raise ClosedError("this view is closed")
        process = self._process.fileno()
        poll.register(process, select.POLLIN)
        try:
            send(connection, json.dumps(request).encode())
            ready = [fd for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)]
            if not ready:
                raise TimeoutError
            if ready == [process]:
                raise _gone()
            return receive(connection, until)
        except (ConnectionError, EOFError):
            raise _gone() from None

    def close(self) -> None:
        """Close the pidfd. No more requests are possible."""
        if self._process is not None:
            self._process.close()


def _gone() -> ClosedError:
    return ClosedError("the store is closed, or its owner has ended")


def _unreachable(number: int, pid: int, address: str) -> OSError:
    return OSError(number, why_unreachable(number, pid, address), address)


class _Shared:
    """The parts that the views of a store's groups share."""

    def __init__(self, address: str, token: str) -> None:
        self.owner = _Owner(address, token)
        descriptors = Descriptors()
        try:
            answer, descriptors = self.owner.attach()
            self.page_size, known, codecs = self._check(answer)
            objects, words, *files, _ = descriptors
            file = files[0] if files else -1
            del descriptors[:-1]  # the pool owns them from here on, even if it raises
            self.pool = SharedPool(
                objects, words, file, self.page_size, known, codecs, self.owner.codecs
            )
        except BaseException:
            descriptors.close()
            self.owner.close()  # now, because a traceback may still refer to it
            raise
        self.table = descriptors

    def _check(self, answer: object) -> tuple[int, int, dict[int, Codec]]:
        match answer:
            case {"page_size": int(page_size), "codecs": given} if 0 < page_size < 1 << 32:
                return page_size, *self.owner.as_codecs(given)
        raise self.owner.no_store(f"asked for a store, it sent {shown(answer)}")

    def close(self) -> None:
        self.owner.close()
        self.pool.close()


class GroupView(Owned):
    """The pages of one group of a store in another process, read-only.

    A view that is dropped without `close` releases its mappings, too.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.group("tiles").store(0, [b"a" * 4096])
        ...     with batchzip.attach(str(store.share())) as view, view.group("tiles") as tiles:
        ...         tiles.load(0)[:3], tiles.counters.stored_pages
        (b'aaa', 1)
    """

    def __init__(self, name: str, shared: _Shared, table: Descriptors | None = None) -> None:
        self.name = name
        self.page_size = shared.page_size
        self._shared = shared
        if table is None:
            table = shared.owner.table(name)
        ask = partial(shared.owner.stored, name)
        fd = table[0]
        del table[0]
        self._table = SharedTable(fd, shared.pool, ask)
        super().__init__()

    @overload
    def load(self, index: SupportsIndex, out: None = None) -> bytes: ...

    @overload
    def load(self, index: SupportsIndex, out: Buffer) -> Buffer: ...

    def load(self, index: SupportsIndex, out: Buffer | None = None) -> Buffer:
        """Return the bytes of one page. With `out`, a writable buffer, fill it and return it.

        The result is a version that was stored at that index at some moment of the call. Raise
        PageNotStored if the index held no page at some moment of it, CorruptPage or PageError as
        SwapStore.load does, and ClosedError once the store is closed. After its owner was killed, a
        store stays readable.
        """
        if self._unusable:
            self._refuse()
        where = index if type(index) is int else as_index(index)
        if out is None:
            return self._table.load(where)
        self._table.load_into(where, as_out(out, self.page_size))
        return out

    def load_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> Bytes:
        """Return pages, in the order of `indices`, as an (n, page_size) uint8 array.

        Each page is loaded as by `load`, and the same errors are raised. `out` is an array, or a
        flat buffer, to fill; its content is undefined after an error.
        """
        if self._unusable:
            self._refuse()
        where = as_indices(indices)
        pages = as_room(out, len(where), self.page_size)
        self._table.load_many(np.ascontiguousarray(where), pages)
        return pages

    def __contains__(self, index: SupportsIndex) -> bool:
        if self._unusable:
            self._refuse()
        where = as_index(index)
        return 0 <= where <= MAX_INDEX and self._table.get(where)[1] != 0

    @property
    def counters(self) -> Counters:
        """The current counters of the store or group, requested from the owner.

        Raises ClosedError if the owner is gone, and RequestTimeout if it does not answer.
        """
        return self._ask("counters", Counters)

    def _ask(self, what: str, kind: type[Answer]) -> Answer:
        if self._unusable:
            self._refuse()
        return self._shared.owner.ask(what, kind, group=self.name)

    def _is_over(self) -> bool:
        """Return whether this was closed, or its group was."""
        try:
            MAX_INDEX in self  # noqa: B015 - raises ClosedError as any lookup does
        except ClosedError:
            return True
        return False

    def _close(self) -> None:
        self._table.close()


class StoreView(GroupView):
    """A store in another process, read-only: `batchzip.attach(address)` opens one.

    Loads cost the owner nothing. Thread-safe; bound to the process that opened it. A view keeps the
    owner's memory alive until it is closed or dropped. Running loads end first.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [b"a" * 4096, b"b" * 4096])
        ...     with batchzip.attach(str(store.share())) as view:  # in any process of the same user
        ...         view.load_many([1, 0])[:, 0].tobytes(), view.counters.stored_pages
        (b'ba', 2)
    """

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._groups: dict[str, GroupView] = {}
        shared = _Shared(address, token)
        try:
            super().__init__("", shared, shared.table)
        except BaseException:
            shared.close()
            raise

    def group(self, name: str) -> GroupView:
        """Return a view of a group. Raise BadArgument if the store has no group of that name.

        If the owner has dropped a group and created another of the same name, the view is of the
        new one.
        """
        if self._unusable:
            self._refuse()
        while (found := self._groups.get(name)) is None or found._is_over():  # noqa: SLF001
            made = GroupView(name, self._shared)
            if found is not None:
                self._groups.pop(name, None)
            if self._groups.setdefault(name, made) is not made:
                made.close()  # another thread, or a signal handler, came first
        return found

    def status(self) -> dict[str, Any]:
        """Return the store's current status: see SwapStore.status. Raise as `counters` does."""
        return self._ask("status", dict)

    def classes(self) -> list[ClassUse]:
        """Return the pool's size classes, as SwapStore.classes does. Raise as `counters` does."""
        return self._ask("classes", list)

    def _close(self) -> None:
        for group in list(self._groups.values()):
            group.close()
        super()._close()
        self._shared.close()
