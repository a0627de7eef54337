"""ShardedStore: pages by index, in the memory of the workers of a Dask cluster.

    index ─▶ stripe = index // 512 ─▶ shard = stripe mod shards
                                        │
    ShardedStore ── Place ── TCP ──▶ Shard (an actor) ── SwapStore, Engine   in worker 1
                 └─ Place ── TCP ──▶ Shard            ── SwapStore, Engine   in worker 2

Pages go straight to the worker that has their stripe, one message a shard and call, as one buffer, and
are compressed there, by the shard's own engine. Shards are asked all at once.

A worker's memory is lost with it. Pages are kept once: who needs them twice stores them twice. What was
stored there raises PagesLost, which names it, until it is invalidated, or `recover()` puts an empty shard in
the place of the lost one; everything else goes on. Rejected: letting Dask start a lost actor again. It
would be empty, and pages that were acknowledged would be reported as never stored.

The number of shards is fixed: workers that come later are used by `recover()` only.

Lock order: the store's lock is innermost; nothing is asked under it.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from distributed import Client

from batchzip import buffers
from batchzip.checks import as_index, as_integer, as_seconds
from batchzip.dask.place import Failed, GoneError, Place
from batchzip.dask.record import STRIPE, Record, cut, joined
from batchzip.errors import BadArgument, ClusterLost, PageNotStored, PagesLost
from batchzip.lifetime import Owned
from batchzip.store import Counters
from batchzip.store.arguments import (
    MAX_INDEX,
    as_indices,
    as_out,
    as_pages,
    as_range,
)
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from batchzip.buffers import Buffer, Bytes

_MOST_SHARDS = 1 << 16

_LEAST_S = 0.001
"""Seconds of a timeout: within less, nothing answers."""

_CLOSE_S = 5.0
"""Seconds that a shard has to release what it holds when the store is closed."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard: its worker, and what it has."""

    worker: str
    pid: int
    lost: str | None
    """Why it is gone, or None."""
    pages: int
    """Pages stored; of a lost one, pages lost."""
    counters: Counters | None
    """None of a lost one."""


class ShardedStore(Owned):
    """Keeps pages compressed in the memory of Dask workers.

    `client`     a `distributed.Client` that is not asynchronous; it stays the caller's. Workers must be
                 reachable from here, and have batchzip installed.
    `shards`     how many; default: one for each worker there is now. More than workers share them.
    `engine`     keyword arguments of each shard's Engine: algorithm, level, workers, page_size, …
    `store`      keyword arguments of each shard's SwapStore: max_pool_bytes, backing, …; limits are each
                 shard's own, and paths are on its machine.
    `timeout_s`  seconds after which a worker that does not answer counts as lost.

    Thread-safe, and bound to its process. Not for use in the client's event loop: every call waits.
    """

    def __init__(
        self,
        client: Client,
        *,
        shards: int | None = None,
        engine: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        if not isinstance(client, Client) or client.asynchronous:
            raise BadArgument(
                f"client must be a distributed.Client that is not asynchronous, not {shown(client)}"
            )
        if shards is not None:
            shards = as_integer(shards, "shards", 1, _MOST_SHARDS)
        timeout_s = as_seconds(timeout_s, "timeout_s", least=_LEAST_S)
        self._client = client
        self._options = dict(engine or {}), dict(store or {})
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._record = Record()
        workers = self._workers()
        self._places: list[Place] = []
        try:
            for number in range(len(workers) if shards is None else shards):
                self._places.append(Place(client, workers[number % len(workers)], timeout_s))
            self.page_size = self._open_shards(self._places)
        except BaseException:
            self._release(self._places)
            raise
        super().__init__()

    def _workers(self) -> list[str]:
        if self._client.status != "running":
            raise ClusterLost(f"the client is not connected, but {self._client.status}")
        try:
            workers = sorted(self._client.nthreads())
        except (OSError, ValueError) as error:
            raise ClusterLost(f"the scheduler does not answer: {error}") from error
        if not workers:
            raise ClusterLost("the cluster has no workers")
        return workers

    def _open_shards(self, places: Sequence[Place]) -> int:
        page_size = 0
        for place, answer in zip(
            places, self._ask([(place, "open", self._options) for place in places]), strict=True
        ):
            if isinstance(answer, PagesLost):
                raise ClusterLost(f"no shard on worker {place.address}: {place.lost}")
            if isinstance(answer, Failed):
                raise answer.error
            place.pid, page_size = answer
        return page_size

    def _ask(self, questions: Sequence[tuple[Place, str, Sequence[object]]]) -> list[Any]:
        """Ask several shards at once; their answers, PagesLost in place of those that are gone."""
        asked = [place.ask(method, *arguments) for place, method, arguments in questions]
        deadline = time.monotonic() + self._timeout_s
        answers: list[Any] = []
        try:
            for (place, _, _), one in zip(questions, asked, strict=True):
                try:
                    left_s = max(0.001, deadline - time.monotonic())
                    answers.append(place.answer(one, left_s))
                except GoneError:
                    answers.append(self._loss_of(place))
        except BaseException:
            # An interrupt. What was asked is not overtaken by what is asked next, to undo it.
            concurrent.futures.wait(asked, self._timeout_s)
            raise
        return answers

    def _loss_of(self, place: Place) -> PagesLost:
        with self._lock:
            ranges = self._record.ranges(lambda stripe: self._place_of(stripe) is place)
        return PagesLost(place.address, str(place.lost), ranges)

    def _place_of(self, stripe: int) -> Place:
        return self._places[stripe % len(self._places)]

    def _enter(self) -> None:
        if self._unusable:
            self._refuse()

    def store(self, index: int, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio at `index`, `index` + 1, …: all of its pages, or none.

        `pages` has the forms that SwapStore.store takes. Raises what that raises, or PagesLost where a
        shard that should have some is gone; nothing is stored at any of the indices then. Where a folio
        spans stripes, readers may see its parts one after the other.
        """
        self._enter()
        matrix = as_pages(pages, self.page_size)
        if isinstance(matrix, list):
            matrix = np.frombuffer(b"".join(matrix), np.uint8).reshape(-1, self.page_size)
        first, count = as_range(index, len(matrix))
        runs: dict[Place, list[tuple[int, int]]] = {}
        for stripe, at, number in cut(first, count):
            runs.setdefault(self._place_of(stripe), []).append((at, number))
        questions = [
            (place, "put", (parts, _joined(matrix, [(at - first, n) for at, n in parts])))
            for place, parts in runs.items()
        ]
        done = False
        try:
            failures = _failures(self._ask(questions))
            if not failures:
                with self._lock:
                    # Those that were lost again, and replaced, before this is written down.
                    gone = {
                        place: parts
                        for place, parts in runs.items()
                        if self._place_of(parts[0][0] // STRIPE) is not place
                    }
                    if not gone:
                        self._record.add(first, count)
                        done = True
                failures += [
                    PagesLost(
                        place.address, str(place.lost), [range(at, at + n) for at, n in parts]
                    )
                    for place, parts in gone.items()
                ]
        finally:
            if not done:
                # Shards that stored their part, and one that may still do so, hold stale pages.
                self._ask([(place, "drop", (first, count)) for place in runs if not place.lost])
                with self._lock:
                    for at, number in [r for p, parts in runs.items() if not p.lost for r in parts]:
                        self._record.discard(at, number)
        if failures:
            raise failures[0]

    @overload
    def load(self, index: int, out: None = None) -> bytes: ...

    @overload
    def load(self, index: int, out: Buffer) -> Buffer: ...

    def load(self, index: int, out: Buffer | None = None) -> Buffer:
        """Give the bytes of one page; with `out`, a writable buffer, fill it and return it.

        Raises as SwapStore.load; PagesLost if the page was in a worker that is gone.
        """
        self._enter()
        where = as_index(index)
        if not 0 <= where <= MAX_INDEX:
            raise PageNotStored(where)
        view = None if out is None else as_out(out, self.page_size)
        page: bytes = self._ask_one(where, "get", where)
        if view is None:
            return page
        view[:] = page
        return out  # type: ignore[return-value] # view is None where out is

    def _ask_one(self, index: int, method: str, argument: object) -> Any:
        place = self._place_of(index // STRIPE)
        (answer,) = self._ask([(place, method, (argument,))])
        if isinstance(answer, PagesLost):
            if self._place_of(index // STRIPE) is not place:  # another one was put there meanwhile
                return self._ask_one(index, method, argument)
            self._raise_loss(answer, [index])
        elif isinstance(answer, Failed):
            raise answer.error
        return answer

    def _raise_loss(self, loss: PagesLost, indices: Iterable[int]) -> None:
        """Raise the loss if it concerns one of these indices; else they were never stored."""
        with self._lock:
            concerned = any(index in self._record for index in indices)
        if concerned:
            raise loss
        raise PageNotStored(next(iter(indices)))

    def load_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> Bytes:
        """Give pages, in the order of `indices`, as an (n, page_size) uint8 array.

        One message to each shard that has some of them. `out` is an array, or a flat buffer, to fill;
        it is undefined where this raises, as `load` does.
        """
        self._enter()
        where = as_indices(indices)
        if not len(where):
            return np.empty((0, self.page_size), np.uint8)
        if (where < 0).any():
            raise PageNotStored(int(where[where < 0][0]))
        pages = (
            np.empty((len(where), self.page_size), np.uint8)
            if out is None
            else buffers.as_matrix(out, "out", rows=len(where), width=self.page_size, writable=True)
        )
        shard_of = where // STRIPE % len(self._places)
        parts = [np.flatnonzero(shard_of == number) for number in np.unique(shard_of)]
        questions = [
            (self._places[shard_of[part[0]]], "get_many", (where[part],)) for part in parts
        ]
        answers = self._ask(questions)
        for part, (place, _, _), answer in zip(parts, questions, answers, strict=True):
            if isinstance(answer, PagesLost):
                if self._places[shard_of[part[0]]] is not place:  # as in _ask_one
                    return self.load_many(where, pages)
                self._raise_loss(answer, where[part].tolist())
            elif isinstance(answer, Failed):
                raise answer.error
            else:
                pages[part] = answer
        return pages

    def invalidate(self, index: int, count: int = 1) -> int:
        """Forget `count` pages from `index` on, stored, lost or not; how many there were."""
        self._enter()
        first, number = as_range(index, count)
        answers = self._ask([(place, "drop", (first, number)) for place in self._places])
        failures = [answer.error for answer in answers if isinstance(answer, Failed)]
        if failures:
            raise failures[0]
        wanted = range(first, first + number)
        pages = 0
        for answer in answers:
            if isinstance(answer, PagesLost):
                pages += sum(
                    max(0, min(part.stop, wanted.stop) - max(part.start, wanted.start))
                    for part in answer.indices
                )
            else:
                pages += answer
        with self._lock:
            self._record.discard(first, number)
        return pages

    def recover(self) -> list[range]:
        """Put empty shards in the place of lost ones, on workers that live; the indices that were lost.

        They count as never stored afterwards. Raises ClusterLost where there are no workers.
        """
        self._enter()
        workers = self._workers()
        lost: list[range] = []
        for number, place in enumerate(self._places):
            if place.lost is not None:
                lost += self._replace(number, place, self._replaced(workers))
        return joined(lost)

    def _replace(self, number: int, place: Place, new: Place) -> list[range]:
        """Put a place in that of a lost one, and forget what was there; what that was.

        In one step: what another thread stores there afterwards is not forgotten. Where it was faster, its
        place stays.
        """
        lost: list[range] = []
        with self._lock:
            first = self._places[number] is place
            if first:
                self._places[number] = new
                shards = len(self._places)
                lost = self._record.forget(lambda stripe: stripe % shards == number)
        (place if first else new).release()
        return lost

    def _replaced(self, workers: Sequence[str]) -> Place:
        taken = [place.address for place in self._places if place.lost is None]
        place = Place(self._client, min(workers, key=taken.count), self._timeout_s)
        try:
            self._open_shards([place])
        except BaseException:
            self._release([place])
            raise
        return place

    def __contains__(self, index: int) -> bool:
        self._enter()
        where = as_index(index)
        if not 0 <= where <= MAX_INDEX:
            return False
        try:
            held: bool = self._ask_one(where, "has", where)
        except PageNotStored:
            return False
        return held

    def __len__(self) -> int:
        return sum(shard.pages for shard in self._living())

    def __bool__(self) -> bool:
        """Say yes: an empty store is a store."""
        return True

    @property
    def counters(self) -> Counters:
        """The counters of all shards together. Raises PagesLost if one is gone."""
        shards = [shard.counters for shard in self._living()]
        names = [field.name for field in fields(Counters)]
        return Counters(**{name: sum(getattr(shard, name) for shard in shards) for name in names})

    def _living(self) -> list[ShardStatus]:
        shards = self.shards
        for place, shard in zip(self._places, shards, strict=True):
            if shard.lost is not None:
                raise self._loss_of(place)
        return list(shards)

    @property
    def shards(self) -> tuple[ShardStatus, ...]:
        """Every shard, the lost ones too."""
        self._enter()
        places = list(self._places)
        answers = self._ask([(place, "status", ()) for place in places])
        return tuple(map(_status, places, answers))

    @staticmethod
    def _release(places: Iterable[Place]) -> None:
        for place in places:
            place.release()

    def _close(self) -> None:
        self._timeout_s = min(self._timeout_s, _CLOSE_S)
        if self._client.status == "running":
            self._ask([(place, "close", ()) for place in self._places])
            self._release(self._places)


def _status(place: Place, answer: Any) -> ShardStatus:
    if isinstance(answer, PagesLost):
        pages = sum(map(len, answer.indices))
        return ShardStatus(place.address, place.pid, place.lost, pages, None)
    if isinstance(answer, Failed):
        raise answer.error
    pages, counters = answer
    return ShardStatus(place.address, place.pid, None, pages, counters)


def _failures(answers: Iterable[Any]) -> list[Exception]:
    return [
        answer.error if isinstance(answer, Failed) else answer
        for answer in answers
        if isinstance(answer, (Failed, PagesLost))
    ]


def _joined(matrix: Bytes, parts: Sequence[tuple[int, int]]) -> Bytes:
    rows = [matrix[at : at + number] for at, number in parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)
