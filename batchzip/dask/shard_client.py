"""ShardClient: sends one client's requests to one shard.

Requests that come while others are under way to the shard wait, and then travel in one message. So
many small requests cost little more than one. Loads and stores wait in separate queues. A message
has about 1 MiB at most, so that none waits for long.

It belongs to the event loop of its client. Not thread-safe.
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
"""Bytes of pages per message. A larger one would keep the event loops at both ends busy."""

_LOADS = 2
"""Messages with loads under way to a shard. One is answered while the next one travels."""

_STORES = 1
"""Messages with stores under way to a shard. With two, only loads would wait longer."""

_GIVEN_UP = "the connection was given up"

Item = TypeVar("Item")


class Unanswered(Exception):
    """A shard did not answer, and the text says why. Without a text, it is at another epoch."""


@dataclass(slots=True)
class _Load:
    """A request for pages."""

    epoch: int
    indices: npt.NDArray[np.int64]
    done: asyncio.Future[tuple[Bytes, dict[int, Exception]]]

    @property
    def pages(self) -> int:
        """Return their number."""
        return len(self.indices)


@dataclass(slots=True)
class _Folio:
    """A piece of a folio to store."""

    epoch: int
    number: int
    run: tuple[int, int]
    matrix: Bytes
    done: asyncio.Future[Exception | None]

    @property
    def pages(self) -> int:
        """Return their number."""
        return len(self.matrix)


class ShardClient:
    """A shard as one client uses it."""

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
        """Request pages. The future gives them in order, with errors by position; or Unanswered."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._loads.put(_Load(epoch, indices, done))
        return done

    def store(
        self, epoch: int, number: int, run: tuple[int, int], matrix: Bytes
    ) -> asyncio.Future[Exception | None]:
        """Store pages in a run. The future gives an error or None; or raises Unanswered."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._folios.put(_Folio(epoch, number, run, matrix, done))
        return done

    def sent_at(self, asked: asyncio.Future[Any]) -> float:
        """Return when a request was sent, or, while it is queued, when the last answer came."""
        return max(self._loads.sent_at(asked), self._folios.sent_at(asked))

    def close(self) -> None:
        """End all requests, present and future, with Unanswered."""
        self._loads.close()
        self._folios.close()

    async def ask(self, method: str, **arguments: Any) -> Answer:
        """Ask the shard. Raise its error, or Unanswered."""
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
        raise Unanswered("its process no longer has the shard")

    async def _send_loads(self, loads: Sequence[_Load]) -> None:
        indices = np.concatenate([load.indices for load in loads])
        answer = await self.ask("get", epoch=loads[0].epoch, indices=indices.tobytes())
        errors = {at: error_of({"error": error}) for at, error in answer["errors"]}
        pages = answer["pages"]
        if errors:  # the pages without errors are concatenated
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
    """A queue of items that travel together while others are under way."""

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
        """Senders that may still start. A running one checks the queue again before it ends."""
        self._sent: weakref.WeakKeyDictionary[asyncio.Future[Any], float | None] = (
            weakref.WeakKeyDictionary()
        )
        """When each item was sent, by the monotonic clock; None while it is queued."""
        self._answered_at = 0.0
        self._closed = False

    def put(self, item: Item) -> None:
        """Send an item as soon as possible."""
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
        """Return when an item was sent; if queued, when the last answer came; 0.0 if unknown."""
        sent_at = self._sent.get(asked, 0.0)
        return self._answered_at if sent_at is None else sent_at

    def close(self) -> None:
        """End all items, those under way, those queued and later ones."""
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
            # This must happen in the step that found the queue empty, not at the task's end. An
            # item that came in between would have no sender.
            self._idle += 1

    async def _send_some(self) -> None:
        """Send the first items that fit in one message, and wait for the answer."""
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
        except Exception as error:  # noqa: BLE001 - raised to whoever waits for the items
            self._end(items, error)
        self._answered_at = time.monotonic()

    @staticmethod
    def _end(items: Iterable[Any], error: Exception) -> None:
        for item in items:
            if not item.done.done():
                item.done.set_exception(error)
                item.done.exception()  # whoever waited may be gone
