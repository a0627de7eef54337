"""Place: asking one shard, from a client.

What is asked for while other messages to the same shard are under way waits, and goes in one message: many
small calls cost little more than one. Loads and stores wait apart from each other, and no message is larger than
a MiB or so, so that none waits for long.

It lives in the event loop of its client. Not thread-safe.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from distributed.protocol import to_serialize

from batchzip.dask.wire import ERROR, GONE, OK, SHARD, STALE, Answer, error_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import numpy.typing as npt

    from batchzip.arguments.buffers import Bytes
    from batchzip.dask.members import Member

MESSAGE_BYTES = 1 << 20
"""Bytes of pages in a message; a larger one keeps the event loops at both ends from others for too long."""

_LOADS = 2
"""Messages with loads that are under way to a shard: one is answered while the next one travels."""

_STORES = 1
"""Messages with stores that are under way to a shard. With two, as much is stored, and loads wait twice as long."""

_GIVEN_UP = "the connection was given up"

Item = TypeVar("Item")


class Unanswered(Exception):
    """A shard gave no answer, and its text says why; or, without one, it is at another epoch."""


@dataclass(slots=True)
class _Load:
    """Pages that somebody waits for."""

    epoch: int
    indices: npt.NDArray[np.int64]
    done: asyncio.Future[tuple[Bytes, dict[int, Exception]]]

    @property
    def pages(self) -> int:
        """Their number."""
        return len(self.indices)


@dataclass(slots=True)
class _Folio:
    """Pages that somebody stores."""

    epoch: int
    number: int
    run: tuple[int, int]
    matrix: Bytes
    done: asyncio.Future[Exception | None]

    @property
    def pages(self) -> int:
        """Their number."""
        return len(self.matrix)


class ShardClient:
    """A shard as a client sees it."""

    def __init__(
        self, rpc: Callable[[str], Any], member: Member, client: str, page_size: int
    ) -> None:
        self.member = member
        self._worker = rpc(member.address)
        self._client = client
        most = max(1, MESSAGE_BYTES // page_size)
        self._loads: _Queue[_Load] = _Queue(self._send_loads, most, _LOADS)
        self._folios: _Queue[_Folio] = _Queue(self._send_folios, most, _STORES)

    def load(
        self, epoch: int, indices: npt.NDArray[np.int64]
    ) -> asyncio.Future[tuple[Bytes, dict[int, Exception]]]:
        """Begin to load pages: in the order of `indices`, and errors by position; or Unanswered."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._loads.put(_Load(epoch, indices, done))
        return done

    def store(
        self, epoch: int, number: int, run: tuple[int, int], matrix: Bytes
    ) -> asyncio.Future[Exception | None]:
        """Begin to store pages in a run: why they are not stored, or None; or Unanswered."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._folios.put(_Folio(epoch, number, run, matrix, done))
        return done

    def sent_at(self, asked: asyncio.Future[Any]) -> float:
        """Return when it went out, or when the last answer to its like came if it waits for its turn."""
        return max(self._loads.sent_at(asked), self._folios.sent_at(asked))

    def close(self) -> None:
        """Wait for nothing any more: what is under way, or comes later, is Unanswered."""
        self._loads.close()
        self._folios.close()

    async def ask(self, method: str, **arguments: Any) -> Answer:
        """Ask the shard; raise what it raised, or Unanswered."""
        try:
            answer = await getattr(self._worker, SHARD)(
                method=method, shard=self.member.name, **arguments
            )
        except Exception as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        status = GONE if answer is None else answer["status"]
        if status == OK:
            return answer  # type: ignore[no-any-return]
        if status == STALE:
            raise Unanswered
        if status == ERROR:
            raise error_of(answer)
        raise Unanswered("its process has it no more")

    async def _send_loads(self, loads: Sequence[_Load]) -> None:
        indices = np.concatenate([load.indices for load in loads])
        answer = await self.ask("get", epoch=loads[0].epoch, indices=indices.tobytes())
        errors = {at: error_of({"error": error}) for at, error in answer["errors"]}
        pages = answer["pages"]
        if errors:  # those that are there are one behind the other
            spread = np.empty((len(indices), *pages.shape[1:]), np.uint8)
            spread[np.delete(np.arange(len(indices)), list(errors))] = pages
            pages = spread
        start = 0
        for load in loads:
            end = start + load.pages
            own = {at - start: error for at, error in errors.items() if start <= at < end}
            if not load.done.done():
                load.done.set_result((pages[start:end], own))
            start = end

    async def _send_folios(self, folios: Sequence[_Folio]) -> None:
        answer = await self.ask(
            "put",
            epoch=folios[0].epoch,
            client=self._client,
            folios=[[folio.number, [list(folio.run)]] for folio in folios],
            pages=to_serialize(
                folios[0].matrix
                if len(folios) == 1
                else np.concatenate([folio.matrix for folio in folios])
            ),
        )
        for folio, error in zip(folios, answer["errors"], strict=True):
            if not folio.done.done():
                folio.done.set_result(None if error is None else error_of({"error": error}))


class _Queue(Generic[Item]):
    """Items that are sent together while others are under way."""

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[None]],
        most: int,
        under_way: int,
    ) -> None:
        self._send = send
        self._most = most
        self._items: deque[Any] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._idle = under_way
        """Senders that may begin: all others look at the items again before they end."""
        self._sent: weakref.WeakKeyDictionary[asyncio.Future[Any], float | None] = (
            weakref.WeakKeyDictionary()
        )
        """When an item went out, by the monotonic clock; None while it waits for its turn."""
        self._answered_at = 0.0
        self._closed = False

    def put(self, item: Item) -> None:
        """Have an item sent as soon as possible."""
        waiting: Any = item
        if self._closed:
            self._end([waiting], Unanswered(_GIVEN_UP))
            return
        self._sent[waiting.done] = None
        self._items.append(waiting)
        if self._idle:
            self._idle -= 1
            task = asyncio.ensure_future(self._send_all())
            self._senders.add(task)
            task.add_done_callback(self._senders.discard)

    def sent_at(self, asked: asyncio.Future[Any]) -> float:
        """Return when it went out, or when the last answer came if it waits; 0.0 of what is not from here."""
        sent_at = self._sent.get(asked, 0.0)
        return self._answered_at if sent_at is None else sent_at

    def close(self) -> None:
        """End what is under way, what waits, and what comes later."""
        self._closed = True
        for task in self._senders:
            task.cancel()
        self._end(self._items, Unanswered(_GIVEN_UP))
        self._items.clear()

    async def _send_all(self) -> None:
        try:
            while self._items:
                await self._send_some()
        finally:
            # In the step that found no items, not when the task has ended: what is put between the two
            # would be sent by nobody.
            self._idle += 1

    async def _send_some(self) -> None:
        """Send the first items, as many as go together, and wait for the answer."""
        first = self._items.popleft()
        items, pages = [first], first.pages
        while (
            self._items
            and self._items[0].epoch == first.epoch
            and pages + self._items[0].pages <= self._most
        ):
            items.append(self._items.popleft())
            pages += items[-1].pages
        items = [item for item in items if not item.done.done()]
        for item in items:
            self._sent[item.done] = time.monotonic()
        try:
            if items:
                await self._send(items)
        except asyncio.CancelledError:
            self._end(items, Unanswered(_GIVEN_UP))
            raise
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._end(items, error)
        self._answered_at = time.monotonic()

    @staticmethod
    def _end(items: Iterable[Any], error: Exception) -> None:
        for item in items:
            if not item.done.done():
                item.done.set_exception(error)
                item.done.exception()  # somebody may have stopped waiting
