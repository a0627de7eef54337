"""StoreView: the pages of another process's store, read from its shared memory.

    load(index)   TableReader ─▶ entry ─▶ PoolReader or the backing file ─▶ bytes
                  ─▶ checksum ─▶ codec ─▶ page
                  anything that does not fit together ─▶ once more, from the entry on

What is read is put together from places that the owner may be changing. Each page given is nevertheless one
that was stored at its index at some moment of the call: the entry was read whole, and the bytes are those
it names, since handles and checksums tell them from all others. There is no moment common to several pages:
load_many may meet a folio that is being stored half old and half new.

An entry that stays the same while its bytes do not fit is damaged. As the owner might have been stopped
between two words, that is believed only after `_PATIENCE_S`.

A view is of one owner. It is no use of a page in the owner's LRU, and counts nothing.

Locks: one around the connection, which loads need only when a codec appears that they do not know, or
where the backing file is an object that only its owner can read.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from xxhash import xxh3_64_intdigest

from batchzip.descriptors import above_standard
from batchzip.errors import (
    BadArgument,
    ClosedError,
    CorruptPage,
    PageError,
    PageNotStored,
    RequestTimeout,
)
from batchzip.lifetime import Owned
from batchzip.pool.reader import PoolReader
from batchzip.store.arguments import MAX_INDEX, as_indices, as_integer, as_out, as_room
from batchzip.store.codec_table import CodecTable
from batchzip.store.folio import CHECKSUM_MASK
from batchzip.store.page_table import ABSENT, BACKED, SAME_FILLED
from batchzip.store.positions import LENGTH_BITS
from batchzip.store.same_filled import check_word, fill
from batchzip.store.share import Share, as_address, peer, receive, send
from batchzip.store.shared_table import TableReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from batchzip.buffers import Buffer, Bytes
    from batchzip.pool.class_use import ClassUse
    from batchzip.store.counters import Counters

_PATIENCE_S = 0.25
"""Seconds after which an entry whose bytes do not fit counts as damaged: a thread that lost its processor
between two instructions has had it again by then."""

_PAUSE_S = 0.001
"""Seconds between two looks at it."""

_ANSWER_S = 30.0
"""Seconds in which an owner answers. It takes 0.1 ms, but its threads take turns with those that
work, and on a machine that has ten times more to do than processors a turn comes late."""

_EPOCH_SHIFT = 48
"""What lies above in the second word of an entry says when it was used: nothing of what it is."""


class _Owner:
    """The connection to the owner."""

    def __init__(self, address: str) -> None:
        named = re.fullmatch(r"/proc/(\d+)/fd/\d+", address)
        if named is None:
            raise BadArgument(
                f"an address is like /proc/<pid>/fd/<n>, as store.share().address: {address!r} is not"
            )
        self._lock = threading.Lock()
        with above_standard():
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_S)
        try:
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise type(error)(
                error.errno,
                f"no store can be reached there: {os.strerror(error.errno or 0)}",
                address,
            ) from None
        pid, user = peer(self._socket)
        if (pid, user) != (int(named[1]), os.geteuid()):
            self._socket.close()
            raise BadArgument(f"what answers at {address} is not a store of this user")
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        # A child that the owner forked may hold the connection open: the process is what tells.
        try:
            with above_standard():
                self._process = os.pidfd_open(pid)
        except BaseException:
            self._socket.close()
            raise
        self._poll.register(self._process, select.POLLIN)

    def ask(self, what: str, **more: object) -> tuple[Any, list[int]]:
        """Ask, and raise what the owner raised."""
        try:
            with self._lock:
                send(self._socket, json.dumps({"what": what, **more}).encode())
                ready = [fd for fd, _ in self._poll.poll(_ANSWER_S * 1000)]
                if ready == [self._process]:
                    raise EOFError  # noqa: TRY301 - as where the other side ends it
                if not ready:
                    raise TimeoutError  # noqa: TRY301 - as where sending takes too long
                data, descriptors = receive(self._socket)
        except TimeoutError:
            # Its answer may still come, and would be taken for another's.
            self._socket.shutdown(socket.SHUT_RDWR)
            raise RequestTimeout(f"the store's owner did not answer in {_ANSWER_S} s") from None
        except (OSError, EOFError, ValueError):
            raise ClosedError("the store is closed, or its owner gone") from None
        answer = pickle.loads(data)
        if isinstance(answer, Exception):
            raise answer
        return answer, descriptors

    def close(self) -> None:
        if self._process >= 0:
            fd, self._process = self._process, -1
            os.close(fd)
        self._socket.close()


class _Shared:
    """What the views of a store's groups have in common."""

    def __init__(self, address: str) -> None:
        self.owner = _Owner(address)
        try:
            answer, descriptors = self.owner.ask("attach")
        except BaseException:
            self.owner.close()
            raise
        self.page_size: int = answer["page_size"]
        self.pool = PoolReader(descriptors[0], descriptors[1], self.page_size)
        self.file = descriptors[2] if len(descriptors) > 2 else -1
        self.codecs = CodecTable(self.page_size)
        self.known = -1
        """How many numbers of codecs there were when `codecs` was asked for."""
        try:
            self.learn()
        except BaseException:
            self.close()
            raise

    def learn(self) -> None:
        """Ask for the codecs."""
        (known, codecs), _ = self.owner.ask("codecs")
        table = CodecTable(self.page_size)
        table.restore(codecs)
        self.codecs, self.known = table, known

    def close(self) -> None:
        self.owner.close()
        self.pool.close()
        if self.file >= 0:
            fd, self.file = self.file, -1
            os.close(fd)


class GroupView(Owned):
    """The pages of one group of a store in another process, to read."""

    def __init__(self, name: str, shared: _Shared) -> None:
        self.name = name
        self._shared = shared
        _, descriptors = shared.owner.ask("table", group=name)
        self._table = TableReader(descriptors[0])
        self.page_size = shared.page_size
        super().__init__()

    @overload
    def load(self, index: int, out: None = None) -> bytes: ...

    @overload
    def load(self, index: int, out: Buffer) -> Buffer: ...

    def load(self, index: int, out: Buffer | None = None) -> Buffer:
        """Give the bytes of one page; with `out`, a writable buffer, fill it and return it.

        The page was stored at that index at some moment of the call. Raises PageNotStored where there was
        none at some moment of it, CorruptPage or PageError as SwapStore.load, and ClosedError once
        the store is closed. What an owner that was killed had stored stays readable.
        """
        if self._unusable:
            self._refuse()
        view = None if out is None else as_out(out, self.page_size)
        page = self._load(as_integer(index, "an index"))
        if view is None:
            return page
        view[:] = page
        return out  # type: ignore[return-value] # view is None where out is

    def load_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> Bytes:
        """Give pages, in the order of `indices`, as an (n, page_size) uint8 array, each as `load`.

        `out` is an array, or a flat buffer, to fill; it is undefined after an error.
        """
        if self._unusable:
            self._refuse()
        where = as_indices(indices).tolist()
        pages = as_room(out, len(where), self.page_size)
        for row, index in enumerate(where):
            pages[row] = np.frombuffer(self._load(index), np.uint8)
        return pages

    def __contains__(self, index: int) -> bool:
        if self._unusable:
            self._refuse()
        where = as_integer(index, "an index")
        return 0 <= where <= MAX_INDEX and self._table.get(where)[1] != 0

    def _load(self, index: int) -> bytes:
        if not 0 <= index <= MAX_INDEX:
            raise PageNotStored(index)
        shared, table = self._shared, self._table
        before: tuple[int, int] | None = None
        until = 0.0
        while True:
            if table.codecs != shared.known:
                shared.learn()
            codecs, known = shared.codecs, shared.known
            value, rest = table.get(index)
            kind = rest >> 32 & 0xFF
            if kind == ABSENT:
                raise PageNotStored(index)
            # What the numbers of codecs mean has not changed between.
            page = self._restore(index, value, rest, codecs) if table.codecs == known else None
            if page is not None:
                return page
            now = value, rest & (1 << _EPOCH_SHIFT) - 1
            if now != before:
                before, until = now, time.monotonic() + _PATIENCE_S
            elif time.monotonic() > until:
                raise CorruptPage(index)
            else:
                time.sleep(_PAUSE_S)

    def _restore(self, index: int, value: int, rest: int, codecs: CodecTable) -> bytes | None:
        """Make the page of an entry; None where what it names is not there, or is another's."""
        check, kind, number = rest & CHECKSUM_MASK, rest >> 32 & 0xFF, rest >> 40 & 0xFF
        if kind == SAME_FILLED:
            return fill(value, self.page_size) if check_word(value) == check else None
        stored = self._from_file(index, value) if kind == BACKED else self._shared.pool.copy(value)
        if stored is None or (xxh3_64_intdigest(stored) ^ number) & CHECKSUM_MASK != check:
            return None
        try:
            return codecs.decompress(number, stored) if number else stored
        except PageError:
            return None

    def _from_file(self, index: int, position: int) -> bytes | None:
        shared = self._shared
        if shared.file < 0:
            found, _ = shared.owner.ask("stored", group=self.name, index=index)
            stored: bytes | None = found
            return stored
        length = (position & (1 << LENGTH_BITS) - 1) + 1
        try:
            return os.pread(shared.file, length, position >> LENGTH_BITS)
        except OSError as error:
            raise PageError(index, -(error.errno or 0)) from None

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

    Costs the owner nothing while pages are loaded. Thread-safe; bound to the process that opened it.
    Close it once no other thread loads: it keeps the owner's memory alive until then.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        shared = _Shared(address)
        self._groups: dict[str, GroupView] = {}
        self._groups_lock = threading.Lock()
        try:
            super().__init__("", shared)
        except BaseException:
            shared.close()
            raise

    def group(self, name: str) -> GroupView:
        """Open a group that the store has. Raises BadArgument where it has none of that name."""
        if self._unusable:
            self._refuse()
        with self._groups_lock:
            found = self._groups.get(name)
            if found is None:
                found = self._groups[name] = GroupView(name, self._shared)
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
        for group in self._groups.values():
            group.close()
        super()._close()
        self._shared.close()


def attach(address: str | os.PathLike[str] | Share) -> StoreView:
    """Open another process's store for reading: `address` is what its `share()` gave, or its address.

    Any process of the same user may; not a forked child of the owner with the owner's own objects, but
    with the address. Raises FileNotFoundError or ConnectionRefusedError where no store is there,
    PermissionError where it is another user's, BadArgument for what is no address.
    """
    return StoreView(as_address(address))
