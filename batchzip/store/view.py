"""StoreView: the pages of another process's store, read from its shared memory.

    load, load_many     SharedTable (core/view.pyx): one call, which asks nobody
    everything else     Owner: a question over the owner's socket, in a connection of its own

A view is of one owner. It is no use of a page in the owner's LRU, and counts nothing. It costs the owner
nothing, not even a descriptor, while it does not ask. Loads ask only where an entry has a codec that
they do not know, and where the backing file is an object that only its owner can read.

There is no moment common to several pages: load_many may meet a folio that is being stored half old and
half new.

Rejected: one connection for all questions. It would have to be locked, and a signal handler or finalizer that
asks while its thread does would wait for itself; and a thousand readers would keep a thousand of the
owner's descriptors.

Locks: none.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import select
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from batchzip.checks import as_index
from batchzip.core.view import SharedPool, SharedTable
from batchzip.descriptors import above_standard
from batchzip.errors import BadArgument, ClosedError, LimitReached, RequestTimeout
from batchzip.lifetime import Owned
from batchzip.store.arguments import MAX_INDEX, as_indices, as_out, as_room
from batchzip.store.share import Share, as_address, peer, receive, send

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from batchzip.buffers import Buffer, Bytes
    from batchzip.codecs import Codec
    from batchzip.pool.class_use import ClassUse
    from batchzip.store.counters import Counters

_ANSWER_S = 30.0
"""Seconds in which an owner answers. It takes 0.1 ms, but its threads take turns with those that
work, and on a machine that has ten times more to do than processors a turn comes late."""

_FULL_S = 0.005
"""Seconds between two attempts to connect where too many others are waiting for the owner."""


class _Owner:
    """The process that has the store, and the way to ask it. Closed when it goes."""

    _process = -1

    def __init__(self, address: str) -> None:
        named = re.fullmatch(r"/proc/([1-9]\d*)/fd/\d+", address)
        if named is None:
            raise BadArgument(
                f"an address is like /proc/<pid>/fd/<n>, as store.share().address: {address!r} is not"
            )
        self._address = address
        self._pid = int(named[1])
        self._store = ""
        # What was at that address may have gone, and its number be another's: this tells.
        try:
            with above_standard():
                self._process = os.pidfd_open(self._pid)
        except (ProcessLookupError, OverflowError):
            raise _unreachable(FileNotFoundError(errno.ENOENT, ""), address) from None

    def attach(self) -> tuple[dict[str, Any], list[int]]:
        """Ask for what a view needs; the descriptors are the caller's."""
        try:
            (self._store, answer), descriptors = self._ask("attach")
        except (RequestTimeout, LimitReached):
            raise
        except OSError as error:
            raise _unreachable(error, self._address) from None
        return answer, descriptors

    def ask(self, what: str, **more: object) -> tuple[Any, list[int]]:
        """Ask, and raise what the owner raised, or ClosedError where nobody answers any more."""
        try:
            return self._ask(what, store=self._store, **more)
        except (FileNotFoundError, ConnectionError):
            raise _gone() from None

    def codecs(self) -> tuple[int, dict[int, Codec]]:
        """Ask how many numbers of codecs were given out, and for the codecs."""
        answer: tuple[int, dict[int, Codec]] = self.ask("codecs")[0]
        return answer

    def stored(self, group: str, index: int) -> bytes | None:
        """Ask for the stored bytes of a page in the backing file."""
        found: bytes | None = self.ask("stored", group=group, index=index)[0]
        return found

    def _ask(self, what: str, **more: object) -> tuple[Any, list[int]]:
        until = time.monotonic() + _ANSWER_S
        with above_standard():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with connection:
            connection.settimeout(_ANSWER_S)
            try:
                self._connect(connection, until)
                data, descriptors = self._converse(connection, {"what": what, **more}, until)
            except TimeoutError:
                raise RequestTimeout(f"the store's owner did not answer in {_ANSWER_S} s") from None
        try:
            answer = pickle.loads(data)
            if isinstance(answer, LimitReached):
                raise LimitReached(  # noqa: TRY301 - closes the descriptors
                    answer.errno, f"the store's owner has met a limit: {answer.strerror}"
                )
            if isinstance(answer, Exception):
                raise answer  # noqa: TRY301 - as above
        except BaseException:
            for fd in descriptors:
                os.close(fd)
            raise
        return answer, descriptors

    def _connect(self, connection: socket.socket, until: float) -> None:
        while True:
            try:
                connection.connect(self._address)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError from None
                time.sleep(_FULL_S)
            else:
                break
        if peer(connection) != (self._pid, os.geteuid()):
            raise BadArgument(f"what answers at {self._address} is not a store of this user")

    def _converse(
        self, connection: socket.socket, request: dict[str, object], until: float
    ) -> tuple[bytes, list[int]]:
        # A child that the owner forked may hold the connection open: the process is what tells.
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        process = self._process
        if process < 0:
            raise ClosedError("this view is closed")
        poll.register(process, select.POLLIN)
        try:
            send(connection, json.dumps(request).encode())
            ready = [fd for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)]
            if not ready:
                raise TimeoutError
            if ready == [process]:
                raise _gone()
            return receive(connection)
        except (ConnectionError, EOFError):
            raise _gone() from None

    def close(self) -> None:
        """Ask nothing any more."""
        fd, self._process = self._process, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _gone() -> ClosedError:
    return ClosedError("the store is closed, or its owner gone")


def _unreachable(error: OSError, address: str) -> OSError:
    number = error.errno or 0
    return type(error)(number, f"no store can be reached there: {os.strerror(number)}", address)


class _Shared:
    """What the views of a store's groups have in common."""

    def __init__(self, address: str) -> None:
        self.owner = _Owner(address)
        try:
            answer, descriptors = self.owner.attach()
            *of_pool, self.table_fd = descriptors
            file_fd = of_pool[2] if len(of_pool) > 2 else -1
            self.page_size: int = answer["page_size"]
            known, codecs = answer["codecs"]
            try:
                self.pool = SharedPool(
                    of_pool[0],
                    of_pool[1],
                    file_fd,
                    self.page_size,
                    known,
                    codecs,
                    self.owner.codecs,
                )
            except BaseException:
                os.close(self.table_fd)
                raise
        except BaseException:
            self.owner.close()  # now, though a traceback may still have it
            raise

    def close(self) -> None:
        self.owner.close()
        self.pool.close()


class GroupView(Owned):
    """The pages of one group of a store in another process, to read.

    What is lost, and not closed, gives up what it has, too.
    """

    def __init__(self, name: str, shared: _Shared, table_fd: int | None = None) -> None:
        self.name = name
        self.page_size = shared.page_size
        self._shared = shared
        if table_fd is None:
            table_fd = shared.owner.ask("table", group=name)[1][0]
        self._table = SharedTable(table_fd, shared.pool, partial(shared.owner.stored, name))
        super().__init__()

    @overload
    def load(self, index: SupportsIndex, out: None = None) -> bytes: ...

    @overload
    def load(self, index: SupportsIndex, out: Buffer) -> Buffer: ...

    def load(self, index: SupportsIndex, out: Buffer | None = None) -> Buffer:
        """Give the bytes of one page; with `out`, a writable buffer, fill it and return it.

        The page was stored at that index at some moment of the call. Raises PageNotStored where there was
        none at some moment of it, CorruptPage or PageError as SwapStore.load, and ClosedError once
        the store is closed. What an owner that was killed had stored stays readable.
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
        """Give pages, in the order of `indices`, as an (n, page_size) uint8 array, each as `load`.

        `out` is an array, or a flat buffer, to fill; it is undefined after an error.
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
        """The counters of the store, or group, as they are now; asked of the owner.

        Raises ClosedError where the owner is gone, RequestTimeout where it does not answer.
        """
        counters: Counters = self._ask("counters")
        return counters

    def _ask(self, what: str) -> Any:
        if self._unusable:
            self._refuse()
        return self._shared.owner.ask(what, group=self.name)[0]

    def _close(self) -> None:
        self._table.close()


class StoreView(GroupView):
    """A store in another process, to read: `batchzip.attach(address)` opens one.

    Costs the owner nothing while pages are loaded. Thread-safe; bound to the process that opened it. It keeps
    the owner's memory alive until it is closed or lost; loads that are under way then end first.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._groups: dict[str, GroupView] = {}
        shared = _Shared(address)
        try:
            super().__init__("", shared, shared.table_fd)
        except BaseException:
            shared.close()
            raise

    def group(self, name: str) -> GroupView:
        """Open a group that the store has. Raises BadArgument where it has none of that name."""
        if self._unusable:
            self._refuse()
        found = self._groups.get(name)
        if found is None:
            made = GroupView(name, self._shared)
            found = self._groups.setdefault(name, made)
            if found is not made:  # another thread, or a signal handler, came first
                made.close()
        return found

    def status(self) -> dict[str, Any]:
        """Say how the store stands now: see SwapStore.status. Raises as `counters`."""
        status: dict[str, Any] = self._ask("status")
        return status

    def classes(self) -> list[ClassUse]:
        """List the pool's size classes, as SwapStore.classes. Raises as `counters`."""
        classes: list[ClassUse] = self._ask("classes")
        return classes

    def _close(self) -> None:
        for group in list(self._groups.values()):
            group.close()
        super()._close()
        self._shared.close()


def attach(address: str | os.PathLike[str] | Share) -> StoreView:
    """Open another process's store for reading: `address` is what its `share()` gave, or its address.

    Any process of the same user may; not a forked child of the owner with the owner's own objects, but
    with the address. Raises FileNotFoundError or ConnectionRefusedError where no store is there,
    PermissionError where it is another user's, BadArgument for what is no address, LimitReached where this
    process or the owner has no descriptors or memory for it.
    """
    return StoreView(as_address(address))
