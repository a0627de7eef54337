"""Session: one client's use of a sharded store. Everything happens in the client's event loop.

    index ─▶ stripe = index // 512 ─▶ Members: primary ─▶ ShardClient ── TCP ──▶ Shard in a worker
                                         ▲
                    Directory (scheduler), asked if a shard is at another epoch or does not answer

A request without an answer is repeated at the next epoch, or with another shard, until the time is
up. A repeated piece of a folio keeps its number. A shard that already has that number does not
store it again.

The record has the pages that this client stored. When a stripe is lost, it says which pages those
were. A page enters the record when its store is acknowledged. If its stripe was lost and recovered
meanwhile, the store raises PagesLost instead, because no later loss report would name that page.

Not thread-safe.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from distributed.protocol import pickle

from batchzip.dask.directory import LEASE_S, NAME, Directory
from batchzip.dask.members import Members, patience_s
from batchzip.dask.probe import acheck_scheduler
from batchzip.dask.record import STRIPE, Record, cut
from batchzip.dask.shard_client import MESSAGE_BYTES, ShardClient, Unanswered
from batchzip.dask.wire import DIRECTORY, ERROR, GONE, NO_STORE, OK, Answer, error_of
from batchzip.errors import ClosedError, ClusterLost, PageNotStored, PagesLost
from batchzip.store import Counters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from distributed import Client

    from batchzip.arguments.buffers import Bytes

T = TypeVar("T")

_LOOK_S = 1.0
"""Seconds of silence after which the directory is asked whether a shard is still a member."""

_PAUSE_S = 0.02
"""Seconds before a request is repeated for which a shard was not ready."""

_DIRECTORY_S = 5.0
"""Seconds that the directory has to answer, in addition to the store's own timeout."""

_GONE_S = 1.0
"""Seconds between two checks of the connection to the scheduler during a request."""

_ALL = (1 << STRIPE) - 1

_FEW_STRIPES = 4096
"""Longest range in stripes that is looked up by stripe. A longer one is sent to every shard."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """The status of one shard.

    Examples:
        >>> import batchzip.dask
        >>> from distributed import Client, LocalCluster
        >>> here = {"processes": False, "dashboard_address": ":0", "memory_limit": "1 GiB"}
        >>> with LocalCluster(n_workers=1, **here) as cluster, Client(cluster) as client:
        ...     with batchzip.dask.ShardedStore(client) as store:
        ...         store.store(0, [bytes(4096)] * 10)
        ...         for shard in store.shards:
        ...             print(shard.lost, shard.pages, shard.page_stores)
        None 10 10
    """

    worker: str
    pid: int
    """The process ID of the worker, or 0 for a lost shard."""
    lost: str | None
    """Why the shard is lost, or None."""
    pages: int
    """Pages stored, each counted at its primary. For a lost shard: pages lost."""
    counters: Counters | None
    """The counters of its store, or None for a lost shard."""
    max_pool_bytes: int | None
    """The limit of its pool in bytes."""
    page_stores: int
    """Pages stored in this shard since it was made."""
    page_loads: int
    """Pages loaded from this shard since it was made."""
    moving: int
    """Stripes that are still to be moved from or to this shard."""


@dataclass(slots=True)
class _Trouble:
    """The time until which a failing request is repeated while the members do not change."""

    until: float = math.inf


@dataclass(slots=True)
class _Losses:
    """Pages lost with one worker, as far as this client knows them."""

    address: str
    reason: str
    record: Record

    def error(self) -> PagesLost:
        """Return the error that names these pages."""
        return PagesLost(self.address, self.reason, self.record.ranges(lambda _: True))


class Session:
    """One client's use of a sharded store."""

    def __init__(self, client: Client, name: str, timeout_s: float) -> None:
        self.name = name
        self.page_size = 0
        self.timeout_s = timeout_s
        self._client = client
        self._scheduler: Any = client.scheduler
        self._attachment = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._incarnation = ""
        self._members = Members(0, (), 1)
        self._places: dict[str, ShardClient] = {}
        self._lost: dict[int, tuple[str, str]] = {}
        """Lost stripes, with worker and reason."""
        self._recovered: dict[int, int] = {}
        """The epoch at which each recovered stripe was recovered."""
        self._record = Record()
        self._former = Record()
        """Pages of this client that were lost with a scheduler."""
        self._why_former = ""
        self._recovering = 0
        self._dropped = Record()
        """Pages that left the record because of a recovery, while this client is in `recover`."""
        self._options: tuple[dict[str, Any], list[str] | None] | None = None
        self._losses_of_all = 0
        """How many times a scheduler was lost."""
        self._all_lost_at = -math.inf
        """Time of the last such loss, by the monotonic clock."""
        self._ended = False

    @property
    def scheduler_address(self) -> str:
        """Return the scheduler's address, as the client knows it."""
        return str(self._scheduler.address)

    @property
    def _who(self) -> dict[str, Any]:
        """Return the arguments that identify this client to the directory."""
        return {"client": self._client.id, "attachment": self._attachment}

    # The directory.

    async def create(self, options: dict[str, Any], workers: Sequence[str] | None) -> None:
        """Create the store unless it exists, and attach to it."""
        self._options = options, None if workers is None else list(workers)
        question: dict[str, Any] = {
            **self._who,
            "options": options,
            "workers": self._options[1],
            "epoch": self._members.epoch,
        }
        await self._place_directory()
        answer = await self._ask("create", 2 * self.timeout_s, keep=True, **question)
        if answer["status"] == GONE:
            raise ClusterLost("the scheduler was restarted while the store was created")
        self._take_in(answer)

    async def _place_directory(self) -> None:
        """Install the directory in the scheduler unless it is there."""
        await acheck_scheduler(self._client)
        # The public method does not serve synchronous and asynchronous clients alike.
        register = self._client._register_scheduler_plugin  # noqa: SLF001
        try:
            await asyncio.wait_for(register(Directory(), NAME, idempotent=True), self.timeout_s)
        except TimeoutError:
            raise ClusterLost(f"the scheduler has not answered in {self.timeout_s:g} s") from None
        except OSError as error:
            raise ClusterLost(f"the scheduler is gone: {error}") from error

    async def attach(self) -> None:
        """Attach to an existing store."""
        answer = await self._ask(
            "attach",
            _DIRECTORY_S + self.timeout_s,
            keep=True,
            **self._who,
        )
        if answer["status"] == GONE:
            raise ClusterLost(
                "there is no store at this address: its last client closed it, "
                "or its scheduler ended"
            )
        self._take_in(answer)

    async def detach(self) -> None:
        """Detach from the store."""
        self._ended = True
        for place in self._places.values():
            place.close()
        self._places.clear()
        await self._ask("detach", _DIRECTORY_S, attachment=self._attachment)

    async def _ask(
        self, method: str, within_s: float, *, keep: bool = False, **arguments: Any
    ) -> Answer:
        """Ask the directory. Raise ClusterLost without an answer, or the error in the answer.

        With `keep`, the request attaches this client. If the caller stops waiting for it, the
        client is detached again when the answer comes.
        """
        question = getattr(self._scheduler, DIRECTORY)(method=method, store=self.name, **arguments)
        asking = asyncio.ensure_future(question)
        try:
            answer = await self._answer_in_time(asking, within_s)
        except BaseException:
            if keep:
                asking.add_done_callback(self._detach_later)
            else:
                asking.cancel()
            raise
        if answer is None:
            return {"status": GONE}
        if answer["status"] == ERROR:
            raise error_of(answer)
        return answer  # type: ignore[no-any-return]

    async def _answer_in_time(self, asking: asyncio.Future[Any], within_s: float) -> Any:
        until = time.monotonic() + within_s
        while not (await asyncio.wait({asking}, timeout=_GONE_S))[0]:
            if self._client.status != "running":
                raise self._unreachable()
            if time.monotonic() >= until:
                raise ClusterLost(f"the scheduler has not answered in {within_s:g} s")
        try:
            return asking.result()
        except Exception as error:
            raise self._unreachable() from error

    def _detach_later(self, asked: asyncio.Future[Any]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return

        async def detach() -> None:
            with suppress(ClusterLost):
                await self._ask("detach", _DIRECTORY_S, attachment=self._attachment)

        self._detaching = asyncio.ensure_future(detach())

    def _unreachable(self) -> ClusterLost:
        return ClusterLost(f"the scheduler at {self.scheduler_address} is gone")

    async def _ask_for(
        self, method: str, within_s: float = _DIRECTORY_S, **arguments: Any
    ) -> Answer:
        """Ask the directory about the store. Raise ClusterLost if the store no longer exists."""
        answer = await self._ask(method, within_s + self.timeout_s, **arguments)
        if answer["status"] == GONE:
            self._lose_all("its scheduler is gone, and with it all shards")
            raise ClusterLost(NO_STORE)
        return answer

    async def _refresh(self) -> None:
        answer = await self._ask_for(
            "fetch",
            **self._who,
            since=self._members.epoch,
        )
        self._take_in(answer)

    def _take_in(self, answer: Mapping[str, Any]) -> None:
        """Take over the directory's state of the store."""
        if self._ended:
            raise ClosedError("this ShardedStore is closed")
        if answer["incarnation"] != self._incarnation:
            if self._incarnation:
                self._lose_all("its scheduler was restarted")
            self._incarnation = answer["incarnation"]
        elif answer["epoch"] <= self._members.epoch:
            return  # a newer answer came first
        self.page_size = answer["page_size"]
        for stripe, epoch in answer["recovered"]:
            if epoch > self._members.epoch:
                mask = self._record.mask(stripe)
                if self._recovering:
                    self._dropped.set_mask(stripe, self._dropped.mask(stripe) | mask)
                self._record.set_mask(stripe, 0)
                self._recovered[stripe] = epoch
        self._lost = {
            stripe: (address, reason)
            for address, reason, stripes in answer["lost"]
            for stripe in stripes
        }
        self._members = Members(answer["epoch"], answer["members"], answer["replicas"])
        for name in [name for name in self._places if name not in self._members.by_name]:
            self._places.pop(name).close()

    def _lose_all(self, reason: str) -> None:
        """Note that the scheduler and all shards are lost."""
        self._losses_of_all += 1
        if self._members.members:
            self._all_lost_at = time.monotonic()
        for stripe in self._record.stripes():
            self._former.set_mask(stripe, self._former.mask(stripe) | self._record.mask(stripe))
        self._record = Record()
        self._lost.clear()
        self._why_former = reason
        self._members = Members(self._members.epoch, (), self._members.replicas)
        for place in self._places.values():
            place.close()
        self._places.clear()

    # Shards.

    def _place_of(self, stripe: int) -> ShardClient:
        owners = self._members.owners(stripe)
        if not owners:
            raise self._no_shards()
        return self._place(owners[0].name)

    def _no_shards(self) -> ClusterLost:
        if self._why_former:
            return ClusterLost(f"{self._why_former}: call recover() to create the store again")
        return ClusterLost("the store has no shards: no worker is left")

    def _place(self, name: str) -> ShardClient:
        place = self._places.get(name)
        if place is None:
            if self._ended:
                raise ClosedError("this ShardedStore is closed")
            member = self._members.by_name[name]
            place = ShardClient(self._client.rpc, member, self._attachment, self.page_size)
            self._places[name] = place
        return place

    async def _answer_of(self, asked: asyncio.Future[T], place: ShardClient) -> T:
        """Wait for an answer. Raise Unanswered if the shard is silent for too long, or is gone."""
        patient_s = patience_s(self.timeout_s, self._members.replicas)
        begun = time.monotonic()
        try:
            while not (await asyncio.wait({asked}, timeout=min(_LOOK_S, patient_s)))[0]:
                # A request that is still queued only waits for its turn while the shard answers.
                now, since = time.monotonic(), max(begun, place.sent_at(asked))
                if now - since >= patient_s:
                    raise Unanswered(f"no answer in {patient_s:g} s")
                await self._refresh()
                if not asked.done() and place.member.name not in self._members.by_name:
                    raise Unanswered
        finally:
            asked.add_done_callback(take_outcome)
            asked.cancel()
        return asked.result()

    async def _insist(
        self, stripe: int, ask: Callable[[ShardClient, int], Awaitable[T]]
    ) -> tuple[T, int]:
        """Ask the primary of a stripe until it answers. Return the answer and its epoch.

        Raise PagesLost if the stripe is lost.
        """
        trouble = _Trouble()
        while True:
            await self._check_stripe(stripe)
            place, epoch = self._place_of(stripe), self._members.epoch
            try:
                return await self._answer_of(asyncio.ensure_future(ask(place, epoch)), place), epoch
            except Unanswered as reason:
                await self._look_after(place, epoch, str(reason), trouble)

    async def _look_after(
        self, place: ShardClient, epoch: int, reason: str, trouble: _Trouble
    ) -> None:
        """Find out why a shard did not answer, before a request is repeated.

        Raise ClusterLost if the members do not change for `timeout_s`.
        """
        if reason:
            if self._places.get(place.member.name) is place:
                del self._places[place.member.name]
            place.close()
            answer = await self._ask_for(
                "report",
                _DIRECTORY_S,
                shard=place.member.name,
                reason=reason,
                since=self._members.epoch,
            )
            self._take_in(answer)
        else:
            await self._refresh()
        now = time.monotonic()
        if self._members.epoch != epoch:
            trouble.until = math.inf
        elif trouble.until == math.inf:
            trouble.until = now + self.timeout_s
        elif now > trouble.until:
            raise ClusterLost(
                f"worker {place.member.address} does not answer"
                + (f" ({reason})" if reason else "")
                + ", although the scheduler reaches it"
            )
        await asyncio.sleep(_PAUSE_S)

    # Losses.

    async def _losses(self) -> dict[int, _Losses]:
        """Return the losses by stripe. Stripes of one worker share one object."""
        answer = await self._ask_for("losses")
        return self._described(answer["losses"])

    def _described(
        self, losses: Iterable[Sequence[Any]], more: Mapping[int, int] | None = None
    ) -> dict[int, _Losses]:
        """Return losses as this client knows them. `more` was in its record, too."""
        found: dict[int, _Losses] = {}
        by_worker: dict[tuple[str, str], _Losses] = {}
        for stripe, address, reason, clients, forgotten in losses:
            part = by_worker.setdefault((address, reason), _Losses(address, reason, Record()))
            own = set(clients) <= {self._attachment}
            known = self._record.mask(stripe) | self._dropped.mask(stripe)
            mask = known | (more or {}).get(stripe, 0) if own else _ALL
            part.record.set_mask(stripe, mask & ~int.from_bytes(forgotten))
            found[stripe] = part
        return found

    async def _check_stripe(self, stripe: int) -> None:
        """Raise PagesLost if a stripe is lost."""
        while stripe in self._lost:
            loss = (await self._losses()).get(stripe)
            if loss is not None:
                raise loss.error()
            await self._refresh()  # the stripe was recovered meanwhile

    def _former_loss(self) -> PagesLost:
        ranges = self._former.ranges(lambda _: True)
        return PagesLost(self.scheduler_address, self._why_former, ranges)

    async def _check_lost(self, indices: Sequence[int], stripes: Sequence[int]) -> None:
        """Raise PagesLost if an index is lost, PageNotStored if only its stripe is."""
        if self._former.stripes():
            for index in indices:
                if index in self._former:
                    raise self._former_loss()
        if not self._lost or not any(stripe in self._lost for stripe in stripes):
            return
        losses = await self._losses()
        for index in indices:
            loss = losses.get(index // STRIPE)
            if loss is not None:
                if index in loss.record:
                    raise loss.error()
                raise PageNotStored(index)
        await self._refresh()  # the stripes were recovered meanwhile, but others may be lost
        await self._check_lost(indices, stripes)

    # Pages.

    async def store(self, first: int, matrix: Bytes) -> None:
        """Store pages at `first` and the following indices: all of them or none."""
        pieces = list(self._pieces(first, matrix))
        numbers = [next(self._numbers) for _ in pieces]
        try:
            for stripe, _, _ in pieces:
                await self._check_stripe(stripe)
            if len(pieces) == 1:
                await self._store_piece(numbers[0], *pieces[0])
            else:
                await self._all(
                    self._store_piece(number, *piece)
                    for number, piece in zip(numbers, pieces, strict=True)
                )
        except BaseException:
            # This finishes even if it is cancelled, as it must not undo what is stored afterwards.
            await _finish(asyncio.ensure_future(self._undo(numbers, first, len(matrix))))
            raise

    def _pieces(self, first: int, matrix: Bytes) -> Iterable[tuple[int, int, Bytes]]:
        most = max(1, MESSAGE_BYTES // self.page_size)
        for stripe, at, number in cut(first, len(matrix)):
            for start in range(at, at + number, most):
                stop = min(start + most, at + number)
                yield stripe, start, matrix[start - first : stop - first]

    async def _store_piece(self, number: int, stripe: int, at: int, rows: Bytes) -> None:
        run, before = (at, len(rows)), self._losses_of_all
        error, epoch = await self._insist(
            stripe, lambda place, epoch: place.store(epoch, number, run, rows)
        )
        if error is not None:
            raise error
        if self._recovered.get(stripe, 0) > epoch or self._losses_of_all != before:
            raise PagesLost(
                "of this stripe", "it was lost and recovered meanwhile", [range(at, at + len(rows))]
            )
        self._record.add(*run)
        if self._former.stripes():
            self._former.discard(*run)

    async def _undo(self, numbers: Sequence[int], first: int, count: int) -> None:
        """Make the shards forget a failed folio, and ignore late pieces, as far as they answer."""
        taken = self._record.take(first, count)  # now, so that concurrent stores stay in the record
        try:
            await self._drop(numbers, first, count)
        except (ClusterLost, ClosedError):
            self._record.give(taken)
        else:  # lost pages stay in the record
            lost = {stripe: mask for stripe, mask in taken.items() if stripe in self._lost}
            self._record.give(lost)

    async def _drop(self, numbers: Sequence[int], first: int, count: int) -> int:
        """Make all shards that may have some of these pages forget them. Return their number."""
        trouble = _Trouble()
        left = (
            [(at, number) for _, at, number in cut(first, count)]
            if _is_short(first, count)
            else None
        )
        dropped = 0
        while True:
            epoch = self._members.epoch
            runs: dict[str, list[tuple[int, int]]] = {}
            if left is None:
                runs = {member.name: [(first, count)] for member in self._members.members}
            else:
                for at, number in left:
                    owners = self._members.owners(at // STRIPE)
                    if owners and at // STRIPE not in self._lost:
                        runs.setdefault(owners[0].name, []).append((at, number))
            places = [self._place(name) for name in runs]
            answers = await asyncio.gather(
                *(
                    self._drop_at(place, epoch, numbers, run)
                    for place, run in zip(places, runs.values(), strict=True)
                )
            )
            dropped += sum(answer for answer in answers if isinstance(answer, int))
            missing = [
                (place, run, str(answer))
                for place, run, answer in zip(places, runs.values(), answers, strict=True)
                if not isinstance(answer, int)
            ]
            if not missing:
                return dropped
            for place, _, reason in missing:
                await self._look_after(place, epoch, reason, trouble)
            if left is not None:
                left = [part for _, run, _ in missing for part in run]

    async def _drop_at(
        self,
        place: ShardClient,
        epoch: int,
        numbers: Sequence[int],
        runs: Sequence[tuple[int, int]],
    ) -> int | Unanswered:
        question = place.ask(
            "undo",
            epoch=epoch,
            client=self._attachment,
            numbers=list(numbers),
            runs=[list(run) for run in runs],
        )
        try:
            answer = await self._answer_of(asyncio.ensure_future(question), place)
        except Unanswered as reason:
            return reason
        return int(answer["pages"])

    @contextmanager
    def naming(self, indices: Iterable[int]) -> Iterator[None]:
        """Turn ClusterLost into PagesLost if some of these pages are lost. For any thread."""
        try:
            yield
        except PagesLost:
            raise
        except ClusterLost as error:
            if any(index in self._former for index in indices):
                raise self._former_loss() from error
            if self._client.status != "running" and any(index in self._record for index in indices):
                ranges = self._record.ranges(lambda _: True)
                raise PagesLost(self.scheduler_address, str(error), ranges) from error
            raise

    async def load(self, index: int) -> Bytes:
        """Return one page."""
        stripe = index // STRIPE
        where = np.array([index], np.int64)
        trouble = _Trouble()
        while True:
            if self._lost or self._former.stripes():
                await self._check_lost([index], [stripe])
            place, epoch = self._place_of(stripe), self._members.epoch
            try:
                pages, errors = await self._answer_of(place.load(epoch, where), place)
            except Unanswered as reason:
                await self._look_after(place, epoch, str(reason), trouble)
                continue
            if errors:
                raise errors[0]
            return pages[0]  # type: ignore[no-any-return]

    async def load_many(self, where: npt.NDArray[np.int64], pages: Bytes) -> None:
        """Fill `pages` with the pages at the indices in `where`."""
        most = max(1, MESSAGE_BYTES // self.page_size)
        trouble = _Trouble()
        left = np.arange(len(where))
        while len(left):
            if self._lost or self._former.stripes():
                indices = where[left]
                await self._check_lost(indices.tolist(), np.unique(indices // STRIPE).tolist())
            if not self._members.members:
                raise self._no_shards()
            epoch, members = self._members.epoch, self._members.members
            shard_of = self._members.primaries(where[left] // STRIPE)
            parts: list[tuple[ShardClient, npt.NDArray[np.intp]]] = []
            for number in np.unique(shard_of).tolist():
                rows = left[shard_of == number]
                place = self._place(members[number].name)
                parts += [(place, rows[at : at + most]) for at in range(0, len(rows), most)]
            outcomes = await self._all(
                self._load_part(place, epoch, where, rows, pages) for place, rows in parts
            )
            missing = [
                (place, rows, outcome)
                for (place, rows), outcome in zip(parts, outcomes, strict=True)
                if outcome is not None
            ]
            for place, outcome in {place: outcome for place, _, outcome in missing}.items():
                await self._look_after(place, epoch, outcome, trouble)
            left = np.concatenate([rows for _, rows, _ in missing] or [left[:0]])

    async def _load_part(
        self,
        place: ShardClient,
        epoch: int,
        where: npt.NDArray[np.int64],
        rows: npt.NDArray[np.intp],
        pages: Bytes,
    ) -> str | None:
        """Load pages of one shard. Return why it did not answer, or None."""
        try:
            found, errors = await self._answer_of(place.load(epoch, where[rows]), place)
        except Unanswered as reason:
            return str(reason)
        if errors:
            raise errors[min(errors)]
        pages[rows] = found
        return None

    async def contains(self, index: int) -> bool:
        """Return whether a page is stored."""
        try:
            await self._check_lost([index], [index // STRIPE])
        except PageNotStored:
            return False
        answer, _ = await self._insist(
            index // STRIPE,
            lambda place, epoch: place.ask("has", epoch=epoch, index=index),
        )
        return bool(answer["has"])

    async def invalidate(self, first: int, count: int) -> int:
        """Forget pages, stored or lost. Return their number."""
        former = self._former.take(first, count)
        # Taken before the request, so that concurrent stores of other tasks stay in the record.
        taken = self._record.take(first, count)
        try:
            dropped = await self._drop((), first, count) if await self._has_shards() else 0
            lost = await self._forget_lost(range(first, first + count), taken) if self._lost else 0
        except BaseException:
            self._record.give(taken)
            self._former.give(former)
            raise
        # After a scheduler was lost, others may have stored at the same indices again.
        return min(count, sum(mask.bit_count() for mask in former.values()) + dropped + lost)

    async def _has_shards(self) -> bool:
        """Return whether there are shards. If not, first wait for former leases to expire."""
        if not self._members.members:
            answer = await self._ask(
                "fetch",
                _DIRECTORY_S,
                **self._who,
                since=self._members.epoch,
            )
            if answer["status"] == OK:  # another client created the store again
                self._take_in(answer)
            else:
                await asyncio.sleep(self._all_lost_at + LEASE_S - time.monotonic())
        return bool(self._members.members)

    async def _forget_lost(self, wanted: range, taken: Mapping[int, int]) -> int:
        """Make the directory forget lost pages. Return their number. `taken` was in the record."""
        answer = await self._ask_for("losses")
        pages, ranges = 0, []
        for stripe, loss in self._described(answer["losses"], taken).items():
            common = _common(range(stripe * STRIPE, (stripe + 1) * STRIPE), wanted)
            if common:
                pages += sum(index in loss.record for index in common)
                ranges.append([stripe, common.start - stripe * STRIPE, len(common)])
        if ranges:
            self._take_in(await self._ask_for("forget", ranges=ranges, since=self._members.epoch))
        return pages

    # All shards.

    async def statuses(self, *, settled: bool = False) -> list[ShardStatus]:
        """Return the status of every shard. If `settled`, count pages that are being moved once."""
        trouble = _Trouble()
        while True:
            await self._refresh()
            epoch = self._members.epoch
            places = [self._place(member.name) for member in self._members.members]
            found: list[ShardStatus] = []
            answers = await asyncio.gather(
                *(self._status_of(place, epoch if settled else None) for place in places)
            )
            for place, answer in zip(places, answers, strict=True):
                if isinstance(answer, str):
                    await self._look_after(place, epoch, answer, trouble)
                    break
                found.append(answer)
            else:
                return found

    async def _status_of(self, place: ShardClient, epoch: int | None) -> ShardStatus | str:
        asked = asyncio.ensure_future(place.ask("status", epoch=epoch))
        try:
            answer = await self._answer_of(asked, place)
        except Unanswered as reason:
            return str(reason)
        return ShardStatus(
            place.member.address,
            answer["pid"],
            None,
            answer["pages"],
            pickle.loads(answer["counters"]),
            answer["max_pool_bytes"],
            answer["page_stores"],
            answer["page_loads"],
            answer["moving"],
        )

    async def lost_statuses(self) -> list[ShardStatus]:
        """Return a status per lost worker, with the number of lost pages that this client knows."""
        if not self._lost:
            return []
        found = {id(loss): loss for loss in (await self._losses()).values()}
        return [
            ShardStatus(
                loss.address, 0, loss.reason, loss.record.count(lambda _: True), None, None, 0, 0, 0
            )
            for loss in found.values()
        ]

    async def shards(self) -> tuple[ShardStatus, ...]:
        """Return the status of every shard and of every lost one."""
        living = await self.statuses()
        return (*living, *await self.lost_statuses())

    async def living(self) -> list[ShardStatus]:
        """Return the status of every shard. Raise PagesLost if pages are lost."""
        statuses = await self.statuses(settled=True)
        if self._former.stripes():
            raise self._former_loss()
        if self._lost:
            for loss in (await self._losses()).values():
                if loss.record.stripes():
                    raise loss.error()
        return statuses

    async def count(self) -> int:
        """Return the number of pages."""
        return sum(shard.pages for shard in await self.living())

    async def counters(self) -> Counters:
        """Return the sum of all shards' counters."""
        parts = [shard.counters for shard in await self.living()]
        names = [field.name for field in fields(Counters)]
        return Counters(**{name: sum(getattr(part, name) for part in parts) for name in names})

    async def recover(self) -> list[range]:
        """Forget the lost pages, and return them.

        If this fails after the directory forgot them, they stay lost here until the next call.
        """
        try:
            await self._refresh()
        except ClusterLost:
            if self._options is None:
                raise
            await self.create(*self._options)
        self._recovering += 1
        named: dict[int, int] = {}
        try:
            losses = (await self._ask_for("losses"))["losses"]
            if losses:
                named = _masks(self._described(losses))
                answer = await self._ask_for(
                    "recover", stripes=list(named), since=self._members.epoch
                )
                named = _masks(self._described(answer["losses"]))
                self._take_in(answer)
        except BaseException as error:
            # The directory may have forgotten them, and would tell nobody else.
            self._former.give(named)
            self._why_former = self._why_former or f"it was lost, and recover() failed: {error}"
            raise
        finally:
            self._recovering -= 1
            if not self._recovering:
                self._dropped = Record()
        self._former.give(named)
        ranges = self._former.ranges(lambda _: True)
        self._former = Record()
        return ranges

    async def rebalance(self) -> int:
        """Give each worker its part, and wait for all moves. Return the number of moved pages."""
        answer = await self._ask_for("rebalance", 3600.0, since=self._members.epoch)
        self._take_in(answer)
        return int(answer["moved"])

    @staticmethod
    async def _all(works: Iterable[Awaitable[T]]) -> list[T]:
        """Wait for all awaitables, then raise the first error, if any."""
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes  # type: ignore[return-value]


def take_outcome(asked: asyncio.Future[Any]) -> None:
    """Take an outcome that nobody may ask for any more, as asyncio would complain of its error."""
    if not asked.cancelled():
        asked.exception()


def _is_short(first: int, count: int) -> bool:
    return (first + count - 1) // STRIPE - first // STRIPE < _FEW_STRIPES


def _common(one: range, other: range) -> range:
    return range(
        max(one.start, other.start), max(one.start, other.start, min(one.stop, other.stop))
    )


def _masks(losses: Mapping[int, _Losses]) -> dict[int, int]:
    return {stripe: loss.record.mask(stripe) for stripe, loss in losses.items()}


async def _finish(work: asyncio.Future[None]) -> None:
    """Wait until work is done, ignoring cancellation."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(work)
    work.result()
