"""Shard: the pages of some stripes of a sharded store, in one worker.

    request (epoch, …) ──▶ admitted? ──▶ stripes' locks ──▶ thread: SwapStore ──▶ other owners ──▶ answer
                              │ no: STALE

A request is served at the shard's own epoch, under a lease, and when the stripes' pages are here: what an
earlier holder has is pulled first, on demand, and all else in the background. What is stored is noted in the
directory before, the first time that a client stores in a stripe, and goes to the stripe's other owners before it
is acknowledged; they get it in the order in which it came here, as the primary has the stripe's lock meanwhile.

Lock order: stripes in ascending order. Under a stripe's lock, other shards are asked only for what needs no
lock of a primary: a holder that is no primary any more gives its pages away, and an owner that is not the primary
takes what it is given. So no two shards wait for each other.

Everything but SwapStore's own work happens in the worker's event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict, defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from distributed.protocol import to_serialize

from batchzip.dask.members import Member, Members, patience_s
from batchzip.dask.record import STRIPE, Record, cut
from batchzip.dask.shard_limits import store_options
from batchzip.dask.wire import GONE, OK, Answer, Stale, dump, error_of
from batchzip.engine import Engine
from batchzip.errors import BatchzipError, ClosedError, CorruptPage, PageNotStored
from batchzip.store import SwapStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    import numpy.typing as npt
    from distributed import Worker

    from batchzip.arguments.buffers import Bytes

    Run = Sequence[int]
    """Index and count; those of a folio end with their stripe at the latest."""

    Folio = tuple[int, Sequence[Run]]
    """The number that its client gave it, and where its pages are to be."""

_FEW = 16
"""Pages that are loaded in the event loop: more take longer than a change of threads."""

_MOVING = 2
"""Stripes that are moved at once in the background."""

_SETTLED = 1 << 14
"""Stores that are remembered as done, so that none is done again by a message that comes late."""

_UNDONE = dump(BatchzipError("the store was given up before it came here"))

_LOOK_S = 0.25
"""Seconds between two looks at whether an answer is still of use."""

_PAUSE_S = 0.2
"""Seconds before what could not be moved is tried again."""


class ShardHost(Protocol):
    """What a shard asks of its worker's service."""

    @property
    def worker(self) -> Worker:
        """Return the worker."""

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Return the threads for calls that block."""

    async def ask(self, address: str, shard: str, method: str, **arguments: Any) -> Answer:
        """Ask another shard."""

    async def ask_directory(self, method: str, within_s: float = ..., **arguments: Any) -> Answer:
        """Ask the directory."""

    async def renew(self, asking: str = "") -> None:
        """Renew the leases of the worker's shards."""


class Shard:
    """A SwapStore with its engine, and what is to be known of its stripes."""

    def __init__(
        self,
        service: ShardHost,
        name: str,
        store_name: str,
        *,
        engine: Mapping[str, Any],
        store: Mapping[str, Any],
        memory_fraction: float,
        spill: bool,
        timeout_s: float,
        others: Iterable[SwapStore] = (),
    ) -> None:
        self.name = name
        self.store_name = store_name
        self.made = time.monotonic()
        self.epoch = 0
        self.lease_until = 0.0
        """When it may not serve any more, by the monotonic clock."""
        self.members = Members(0, (), 1)
        self._service = service
        self._timeout_s = timeout_s
        self._pulls: dict[int, list[tuple[str, str]]] = {}
        self._pushes: dict[int, list[tuple[str, str]]] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._record = Record()
        self._corrupt: set[int] = set()
        """Indices whose page was damaged when it was moved here."""
        self._noted: defaultdict[int, set[str]] = defaultdict(set)
        """By stripe: clients that the directory knows to store there."""
        self._settled: OrderedDict[tuple[str, int], bytes | None] = OrderedDict()
        self._brought: dict[int, int] = {}
        """Stripes that were pulled at this epoch, and their pages."""
        self._discarded: set[int] = set()
        """Stripes that were dropped at this epoch, as others have them."""
        self._outdated: set[int] = set()
        """Stripes whose pages here are not to be used any more."""
        self._moving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        options = {"backend": "sequential", **engine}
        self._engine = Engine(**options)
        try:
            limits = store_options(service.worker, memory_fraction, spill=spill, others=others)
            self.pages: SwapStore = SwapStore(self._engine, **{**limits, **store})
        except BaseException:
            self._engine.close()
            raise
        self._limit = self.pages.max_pool_bytes
        self._beyond = threading.Lock()
        """Around what is stored without the limit; a lock of threads that run nobody's code."""
        self.page_size = self._engine.page_size

    # What the directory says.

    async def advance(self, state: Mapping[str, Any]) -> Answer:
        """Learn of an epoch."""
        self.learn(state)
        return {"status": OK}

    def learn(self, state: Mapping[str, Any]) -> None:
        """Take over what the directory says of an epoch, and begin to move what has to move."""
        if state.get("epoch", 0) > self.epoch:
            members = [(str(name), str(address)) for name, address in state["members"]]
            self.members = Members(state["epoch"], members, state["replicas"])
            self._pulls = {
                stripe: [tuple(one) for one in where] for stripe, where in state["pulls"]
            }
            self._pushes = {stripe: [tuple(one) for one in to] for stripe, to in state["pushes"]}
            self.epoch = state["epoch"]
            # What others have taken over is outdated, even if its stripe comes back here.
            holds = set(state["holds"])
            self._outdated = self._record.stripes().difference(holds)
            for stripe in [stripe for stripe in self._noted if stripe not in holds]:
                del self._noted[stripe]
            self._brought.clear()
            self._discarded.clear()
        if self._outdated or state.get("discards"):
            self._begin(self._discard([*self._outdated, *state.get("discards", ())]))
        if (self._pulls or self._pushes) and self._moving is None and not self._ended:
            self._moving = asyncio.ensure_future(self._move())

    async def ping(self) -> Answer:
        """Say that this shard is there."""
        return {"status": OK}

    # What clients ask.

    async def get(self, epoch: int, indices: bytes) -> Answer:
        """Give pages: those that are there, one behind the other, and which are not, or are damaged."""
        where = np.frombuffer(indices, np.int64)
        stripes = np.unique(where // STRIPE).tolist()
        await self._admit(epoch, stripes)
        present = np.fromiter((index in self._record for index in where.tolist()), bool, len(where))
        errors: dict[int, bytes] = {}
        if len(where) <= _FEW:
            pages = self._load(where[present], np.flatnonzero(present), errors)
        else:
            pages = await self._in_thread(
                self._load, where[present], np.flatnonzero(present), errors
            )
        for at in np.flatnonzero(~present).tolist():
            index = int(where[at])
            missing = CorruptPage(index) if index in self._corrupt else PageNotStored(index)
            errors[at] = dump(missing)
        await self._check(epoch)
        return {
            "status": OK,
            "pages": to_serialize(pages),
            "errors": [[at, error] for at, error in errors.items()],
        }

    def _load(
        self, where: npt.NDArray[np.int64], at: npt.NDArray[np.intp], errors: dict[int, bytes]
    ) -> Bytes:
        try:
            return self.pages.load_many(where)
        except BatchzipError:
            pages = []
            for index, position in zip(where.tolist(), at.tolist(), strict=True):
                try:
                    pages.append(np.frombuffer(self.pages.load(index), np.uint8))
                except BatchzipError as error:
                    errors[position] = dump(error)
            return np.stack(pages) if pages else np.empty((0, self.page_size), np.uint8)

    async def put(self, epoch: int, client: str, folios: Sequence[Folio], pages: Bytes) -> Answer:
        """Store folios, each of them all or not; the answer has an error, or nothing, for each.

        A folio is a number, which the client gives it, and runs (index, count).
        """
        stripes = stripes_of(run for _, runs in folios for run in runs)
        await self._admit(epoch, stripes)
        async with self._locked(stripes):
            await self._recheck(epoch, stripes)
            news = [stripe for stripe in stripes if client not in self._noted[stripe]]
            if news:
                await self._tell("note", epoch, attachment=client, stripes=news)
                self._agree(epoch)
                for stripe in news:
                    self._noted[stripe].add(client)
            errors = await self._put_everywhere(epoch, stripes, client, folios, pages)
            await self._check(epoch, may_be_past=True)
        return {"status": OK, "errors": errors}

    async def undo(
        self, epoch: int, client: str, numbers: Sequence[int], runs: Sequence[Run]
    ) -> Answer:
        """Forget pages in runs; how many there were. Folios of these numbers are not stored any more."""
        await self._reach(epoch)
        stripes = self._present(runs)
        await self._admit(epoch, stripes)
        async with self._locked(stripes):
            await self._recheck(epoch, stripes)
            for number in numbers:
                self._settle(client, number, _UNDONE)
            kept = _within(runs, stripes)
            await self._forward_drop(epoch, stripes, client, numbers, kept)
            count = await self._drop(kept)
            await self._check(epoch, may_be_past=True)
        return {"status": OK, "pages": count}

    async def has(self, epoch: int, index: int) -> Answer:
        """Return whether there is a page."""
        await self._admit(epoch, [index // STRIPE])
        here = index in self._record or index in self._corrupt
        await self._check(epoch)
        return {"status": OK, "has": here}

    async def status(self, epoch: int | None) -> Answer:
        """Count the pages, and give the counters; of an epoch, all are counted that move to this shard."""
        if epoch is not None:
            await self._admit(epoch, list(self._pulls))
        counters = self.pages.counters
        group = self.pages.status()["groups"][""]
        return {
            "status": OK,
            "pid": os.getpid(),
            "pages": self._record.count(self._is_primary),
            "counters": dump(counters),
            "max_pool_bytes": self.pages.max_pool_bytes,
            "page_stores": group["page_stores"],
            "page_loads": group["page_loads"],
            "moving": len(self._pulls) + len(self._pushes),
        }

    # What other shards ask.

    async def give(self, epoch: int, stripe: int) -> Answer:
        """Give a stripe to its new primary."""
        await self._reach(epoch)
        async with self._locked([stripe]):
            await self._reach(epoch)
            if stripe in self._discarded:
                raise Stale
            indices, pages, corrupt = await self._content(stripe)
        return {"status": OK, "indices": indices, "pages": to_serialize(pages), "corrupt": corrupt}

    async def take(
        self, epoch: int, stripe: int, indices: bytes, pages: Bytes, corrupt: Sequence[int]
    ) -> Answer:
        """Take all of a stripe from its primary."""
        await self._reach(epoch)
        async with self._locked([stripe]):
            await self._reach(epoch)
            await self._install(stripe, indices, pages, corrupt)
        return {"status": OK}

    async def put_copy(
        self,
        epoch: int,
        client: str,
        folios: Sequence[Folio],
        pages: Bytes,
    ) -> Answer:
        """Store what the primary stored."""
        await self._reach(epoch)
        async with self._locked(stripes_of(run for _, runs in folios for run in runs)):
            await self._reach(epoch)
            errors = [self._settled.get((client, number)) for number, _ in folios]
            await self._put(client, folios, pages, errors)
        return {"status": OK, "errors": errors}

    async def undo_copy(
        self, epoch: int, client: str, numbers: Sequence[int], runs: Sequence[Run]
    ) -> Answer:
        """Forget what the primary forgot."""
        await self._reach(epoch)
        async with self._locked(stripes_of(runs)):
            await self._reach(epoch)
            for number in numbers:
                self._settle(client, number, _UNDONE)
            await self._drop(runs)
        return {"status": OK}

    # Admission.

    async def _admit(self, epoch: int, stripes: Iterable[int]) -> None:
        """Raise Stale unless these stripes may be served at this epoch; have them moved here if need be."""
        await self._reach(epoch)
        for stripe in stripes:
            if stripe in self._pulls:
                await self._pull(stripe)
            if stripe in self._outdated:
                async with self._locked([stripe]):
                    pass
        self._agree(epoch)

    async def _reach(self, epoch: int) -> None:
        """Raise Stale unless this shard has a lease, and is at this epoch."""
        if epoch > self.epoch or not self._has_lease():
            await self._service.renew(self.name)
        self._agree(epoch)

    def _has_lease(self) -> bool:
        return time.monotonic() < self.lease_until

    def _agree(self, epoch: int) -> None:
        if epoch != self.epoch or self._ended:
            raise Stale

    async def _recheck(self, epoch: int, stripes: Iterable[int]) -> None:
        """Under the stripes' locks, look again; what the other owners have not is pushed first."""
        await self._reach(epoch)
        for stripe in stripes:
            if stripe in self._pulls:
                raise Stale
            if stripe in self._pushes:
                await self._push(stripe)

    async def _check(self, epoch: int, *, may_be_past: bool = False) -> None:
        """Before an answer: raise Stale if this shard was given up meanwhile.

        What was stored under its stripes' locks counts although the epoch is past: whoever comes next waits
        for the locks, and gets it.
        """
        if not self._has_lease():
            await self._service.renew(self.name)
        if self._ended:
            raise Stale
        if not may_be_past:
            self._agree(epoch)

    async def _tell(self, method: str, epoch: int, **what: Any) -> None:
        try:
            answer = await self._service.ask_directory(
                method, store=self.store_name, shard=self.name, epoch=epoch, **what
            )
        except Exception as error:
            raise Stale from error
        if answer["status"] != OK:
            raise Stale

    @asynccontextmanager
    async def _locked(self, stripes: Iterable[int]) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for stripe in stripes:
                lock = self._locks.setdefault(stripe, asyncio.Lock())
                await stack.enter_async_context(lock)
                if stripe in self._outdated:
                    await self._drop([(stripe * STRIPE, STRIPE)])
                    self._noted.pop(stripe, None)
                    self._outdated.discard(stripe)
            yield

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._ended:
            raise Stale
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._service.threads, work, *arguments)

    # Pages. What SwapStore does is done in threads; what is known of it, in the event loop.

    async def _put_everywhere(
        self,
        epoch: int,
        stripes: Sequence[int],
        client: str,
        folios: Sequence[Folio],
        pages: Bytes,
    ) -> list[bytes | None]:
        """Store folios here and at the other owners: each everywhere or nowhere. Return errors, or None.

        The others come first: nobody reads a page here that would be gone with this worker.
        """
        errors = [self._settled.get((client, number)) for number, _ in folios]
        fresh = [(client, number) not in self._settled for number, _ in folios]
        await self._forward(epoch, stripes, client, folios, pages, errors)
        await self._put(client, folios, pages, errors)
        failed = [
            folio
            for folio, error, new in zip(folios, errors, fresh, strict=True)
            if new and error is not None
        ]
        if failed and self.members.replicas > 1:
            runs = [run for _, runs in failed for run in runs]
            await self._drop(runs)
            numbers = [number for number, _ in failed]
            await self._forward_drop(epoch, stripes, client, numbers, runs)
        return errors

    async def _put(
        self, client: str, folios: Sequence[Folio], pages: Bytes, errors: list[bytes | None]
    ) -> None:
        """Store the folios that were not stored or undone before, and have no error yet."""
        work: list[tuple[int, int, Sequence[Run], Bytes]] = []
        at = 0
        for place, (number, runs) in enumerate(folios):
            count = sum(run[1] for run in runs)
            if errors[place] is None and (client, number) not in self._settled:
                work.append((place, number, runs, pages[at : at + count]))
            at += count
        outcomes = await self._in_thread(
            lambda: [self._store_runs(runs, matrix) for *_, runs, matrix in work]
        )
        for (place, number, runs, _), outcome in zip(work, outcomes, strict=True):
            errors[place] = outcome
            self._settle(client, number, outcome)
            self._know(runs, stored=outcome is None)

    def _store_runs(self, runs: Sequence[Run], pages: Bytes) -> bytes | None:
        """Store pages in runs, all or none; return an error, if any."""
        at = 0
        try:
            for index, count in runs:
                self.pages.store(index, np.ascontiguousarray(pages[at : at + count]))
                at += count
        except BatchzipError as error:
            for index, count in runs:
                self.pages.invalidate(index, count)
            return dump(error)
        return None

    def _know(self, runs: Iterable[Run], *, stored: bool) -> None:
        """Take down what runs have now."""
        for index, count in runs:
            if stored:
                self._record.add(index, count)
            else:
                self._record.discard(index, count)
            if self._corrupt:
                self._corrupt = {one for one in self._corrupt if not index <= one < index + count}

    async def _drop(self, runs: Sequence[Run]) -> int:
        """Forget pages; how many there were."""
        counts = await self._in_thread(
            lambda: [self.pages.invalidate(index, count) for index, count in runs]
        )
        self._know(runs, stored=False)
        return int(sum(counts))

    def _settle(self, client: str, number: int, outcome: bytes | None) -> None:
        """Note what became of a folio, in case that it comes again: its answer was lost, or it was late."""
        self._settled[client, number] = outcome
        if len(self._settled) > _SETTLED:
            self._settled.popitem(last=False)

    def _present(self, runs: Sequence[Run]) -> list[int]:
        """Return the stripes of runs, which may be very long, that can have something here."""
        found: set[int] = set()
        known = self._record.stripes() | self._pulls.keys()
        known |= {stripe for stripe, lock in self._locks.items() if lock.locked()}  # being stored
        for index, count in runs:
            first, last = index // STRIPE, (index + count - 1) // STRIPE
            if last - first < len(known):
                found.update(range(first, last + 1))
            else:
                found.update(stripe for stripe in known if first <= stripe <= last)
        return sorted(stripe for stripe in found if self._is_primary(stripe))

    def _is_primary(self, stripe: int) -> bool:
        owners = self.members.owners(stripe)
        return bool(owners) and owners[0].name == self.name

    async def _content(self, stripe: int) -> tuple[bytes, Bytes, list[int]]:
        """Return a stripe: its indices, their pages, and the indices of damaged ones. Raise Stale."""
        where = np.array(self._record.indices(stripe), np.int64)
        errors: dict[int, bytes] = {}
        pages = await self._in_thread(self._load, where, np.arange(len(where)), errors)
        if not all(isinstance(error_of({"error": one}), CorruptPage) for one in errors.values()):
            raise Stale  # they may be read another time
        corrupt = {index for index in self._corrupt if index // STRIPE == stripe}
        corrupt.update(where[list(errors)].tolist())
        return np.delete(where, list(errors)).tobytes(), pages, list(corrupt)

    # Other owners.

    async def _forward(
        self,
        epoch: int,
        stripes: Sequence[int],
        client: str,
        folios: Sequence[Folio],
        pages: Bytes,
        errors: list[bytes | None],
    ) -> None:
        """Have the other owners store folios that have no error; `errors` gets those of the others."""
        if self.members.replicas > 1:
            self._agree(epoch)  # at another, others own these stripes
        for other, common in self._others(stripes).items():
            places, parts, rows = _parts(folios, pages, common, errors)
            if not parts:
                continue
            what = to_serialize(rows[0] if len(rows) == 1 else np.concatenate(rows))
            answer = await self._ask_peer(
                epoch, other, "put_copy", client=client, folios=parts, pages=what
            )
            for place, error in zip(places, answer["errors"], strict=True):
                if error is not None:
                    errors[place] = error
                    self._settle(client, folios[place][0], error)

    async def _forward_drop(
        self,
        epoch: int,
        stripes: Sequence[int],
        client: str,
        numbers: Sequence[int],
        runs: Sequence[Run],
    ) -> None:
        """Have the other owners forget pages."""
        if self.members.replicas > 1:
            self._agree(epoch)
        for other, common in self._others(stripes).items():
            await self._ask_peer(
                epoch,
                other,
                "undo_copy",
                client=client,
                numbers=list(numbers),
                runs=_within(runs, common),
            )

    def _others(self, stripes: Iterable[int]) -> dict[Member, list[int]]:
        """Return the other owners of stripes, and the stripes of each."""
        others: dict[Member, list[int]] = {}
        if self.members.replicas > 1:
            for stripe in stripes:
                for owner in self.members.owners(stripe)[1:]:
                    others.setdefault(owner, []).append(stripe)
        return others

    async def _answered(self, asking: asyncio.Future[Answer], epoch: int) -> bool:
        """Wait for an answer. Return whether there is one in time; raise Stale if nobody wants it any more."""
        until = time.monotonic() + patience_s(self._timeout_s, self.members.replicas)
        while not (await asyncio.wait({asking}, timeout=_LOOK_S))[0]:
            self._agree(epoch)  # the other one may be known to be gone
            if time.monotonic() >= until:
                return False
        return True

    async def _ask_peer(
        self, epoch: int, peer: tuple[str, str], method: str, **what: Any
    ) -> Answer:
        """Ask another shard. Raise Stale if there is no answer; then the directory looks after it."""
        name, address = peer
        asking = asyncio.ensure_future(
            self._service.ask(address, name, method, epoch=epoch, **what)
        )
        try:
            if not await self._answered(asking, epoch):
                reason = f"no answer in {patience_s(self._timeout_s, self.members.replicas):g} s"
            else:
                try:
                    answer = asking.result()
                except Exception as error:  # noqa: BLE001 - of the connection, mostly
                    reason = f"{type(error).__name__}: {error}"
                else:
                    if answer["status"] == OK:
                        return answer
                    reason = "its process has it no more" if answer["status"] == GONE else ""
        finally:
            asking.cancel()
        if reason:
            with suppress(Exception):
                await self._service.ask_directory(
                    "report", 30.0, store=self.store_name, shard=name, reason=reason, since=epoch
                )
        await self._service.renew(self.name)
        raise Stale

    # Moving.

    async def _move(self) -> None:
        """Pull and push what has to be moved, until nothing has."""
        try:
            while (self._pulls or self._pushes) and not self._ended:
                stripes = [*self._pulls, *self._pushes][:_MOVING]
                done = await asyncio.gather(
                    *(self._bring(stripe) for stripe in stripes), return_exceptions=True
                )
                if any(isinstance(one, BaseException) for one in done):
                    for stripe in stripes:  # others first
                        for waiting in (self._pulls, self._pushes):
                            if stripe in waiting:
                                waiting[stripe] = waiting.pop(stripe)
                    await asyncio.sleep(_PAUSE_S)
                    with suppress(Stale):
                        await self._service.renew(self.name)
        finally:
            self._moving = None

    async def _bring(self, stripe: int) -> None:
        if stripe in self._pulls:
            await self._pull(stripe)
        if stripe in self._pushes:
            async with self._locked([stripe]):
                if stripe in self._pulls:
                    raise Stale
                await self._push(stripe)

    async def _pull(self, stripe: int) -> None:
        """Get a stripe from one of its holders."""
        async with self._locked([stripe]):
            sources = self._pulls.get(stripe)
            if sources is None:
                return
            epoch = self.epoch
            if stripe not in self._brought:
                answer = await self._ask_peer(epoch, sources[0], "give", stripe=stripe)
                self._agree(epoch)
                pages = answer["pages"]
                await self._install(stripe, answer["indices"], pages, answer["corrupt"])
                self._agree(epoch)
                # If the directory is not heard, it is told again, and nothing is pulled: its source may
                # have dropped it by then.
                self._brought[stripe] = len(pages)
            await self._tell("pulled", epoch, stripe=stripe, pages=self._brought[stripe])
            self._agree(epoch)
            del self._pulls[stripe]

    async def _push(self, stripe: int) -> None:
        """Bring the other owners of a stripe what they have not; its lock is held."""
        epoch = self.epoch
        indices, pages, corrupt = await self._content(stripe)
        what = {"stripe": stripe, "indices": indices, "corrupt": corrupt}
        for other in list(self._pushes.get(stripe, ())):
            await self._ask_peer(epoch, other, "take", pages=to_serialize(pages), **what)
            await self._tell("synced", epoch, stripe=stripe, other=other[0], pages=len(pages))
            if epoch != self.epoch:
                raise Stale
            left = [one for one in self._pushes.get(stripe, ()) if one != other]
            if left:
                self._pushes[stripe] = left
            else:
                self._pushes.pop(stripe, None)

    async def _install(
        self, stripe: int, indices: bytes, pages: Bytes, corrupt: Sequence[int]
    ) -> None:
        """Have these pages in a stripe, and no others, whatever the limit: it is for what is stored."""
        await self._drop([(stripe * STRIPE, STRIPE)])
        where = np.frombuffer(indices, np.int64)
        cuts = np.flatnonzero(np.diff(where) != 1) + 1
        runs = [(int(run[0]), len(run)) for run in np.split(where, cuts) if len(run)]
        if await self._in_thread(self._store_beyond, runs, pages) is not None:
            raise Stale  # there is no memory now
        self._know(runs, stored=True)
        self._corrupt.update(corrupt)

    def _store_beyond(self, runs: Sequence[Run], pages: Bytes) -> bytes | None:
        error = self._store_runs(runs, pages)
        if error is not None:
            with self._beyond:
                self.pages.max_pool_bytes = None
                try:
                    error = self._store_runs(runs, pages)
                finally:
                    self.pages.max_pool_bytes = self._limit
        return error

    async def _discard(self, stripes: Sequence[int]) -> None:
        """Drop stripes that others have now."""
        for stripe in stripes:
            async with self._locked([stripe]):
                owners = [owner.name for owner in self.members.owners(stripe)]
                if self.name not in owners:
                    self._discarded.add(stripe)
                    await self._drop([(stripe * STRIPE, STRIPE)])
                    self._noted.pop(stripe, None)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work in the background."""

        async def quietly() -> None:
            with suppress(Stale, ClosedError):
                await work

        task = asyncio.ensure_future(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end.

    def end(self) -> None:
        """Serve nothing any more."""
        self._ended = True

    def close(self) -> None:
        """Release everything."""
        self._ended = True
        self.pages.close()
        self._engine.close()


def stripes_of(runs: Iterable[Run]) -> list[int]:
    """Return the stripes of runs in order."""
    return sorted({stripe for index, count in runs for stripe, _, _ in cut(index, count)})


def _parts(
    folios: Sequence[Folio],
    pages: Bytes,
    stripes: Sequence[int],
    errors: Sequence[bytes | None],
) -> tuple[list[int], list[Folio], list[Bytes]]:
    """Return what lies in `stripes` of folios without errors: their positions, the parts, and their pages."""
    places: list[int] = []
    parts: list[Folio] = []
    rows: list[Bytes] = []
    at = 0
    for place, (number, runs) in enumerate(folios):
        kept: list[Run] = []
        for index, count in runs:
            if index // STRIPE in stripes and errors[place] is None:
                kept.append((index, count))
                rows.append(pages[at : at + count])
            at += count
        if kept:
            places.append(place)
            parts.append((number, kept))
    return places, parts, rows


def _within(runs: Sequence[Run], stripes: Iterable[int]) -> list[tuple[int, int]]:
    """Return the parts of runs that lie in stripes."""
    parts = [
        (max(index, stripe * STRIPE), min(index + count, (stripe + 1) * STRIPE))
        for stripe in stripes
        for index, count in runs
    ]
    return [(start, stop - start) for start, stop in parts if start < stop]
