"""Shard: the pages of some stripes of a sharded store, in one worker.

    request (epoch, …) ─▶ admitted? ─▶ stripes' locks ─▶ thread: SwapStore ─▶ other owners ─▶ answer
                            │ no: STALE

A shard serves a request of its own epoch, while it has a lease and the stripes' pages are here.
Pages that an earlier holder has are pulled on demand first; all others move in the background.
Before a client's first store in a stripe, the shard notes the client in the directory. A stored
folio goes to the stripe's other owners before it is acknowledged. They receive folios in the
primary's order, because the primary holds the stripe's lock meanwhile.

Lock order: stripes in ascending order. While a shard holds a stripe's lock, it asks other shards
only for things that need no lock of a primary: a former primary gives its pages away, and an owner
that is not the primary takes pages. So no two shards wait for each other.

Only the SwapStore's own work runs in threads. Everything else happens in the worker's event loop.
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
    """Index and count. A run of a folio does not cross the end of a stripe."""

    Folio = tuple[int, Sequence[Run]]
    """The number that the client gave the folio, and the runs of its pages."""

_FEW = 16
"""Most pages that are loaded in the event loop. For more, switching to a thread pays."""

_MOVING = 2
"""Stripes that move at the same time in the background."""

_SETTLED = 1 << 14
"""Folios whose outcome is remembered, so that a late message does not store one again."""

_UNDONE = dump(BatchzipError("the store was undone before it reached this shard"))

_LOOK_S = 0.25
"""Seconds between two checks whether an answer is still needed."""

_PAUSE_S = 0.2
"""Seconds before a failed move is tried again."""


class ShardHost(Protocol):
    """What a shard needs from its worker's service."""

    @property
    def worker(self) -> Worker:
        """Return the worker."""

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Return the threads for calls that block."""

    async def ask(self, address: str, shard: str, method: str, **arguments: Any) -> Answer:
        """Ask a shard of another worker."""

    async def ask_directory(self, method: str, within_s: float = ..., **arguments: Any) -> Answer:
        """Ask the directory."""

    async def renew(self, asking: str = "") -> None:
        """Renew the leases of the worker's shards."""


class Shard:
    """A SwapStore with its engine, and the state of its stripes."""

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
        """End of the lease, by the monotonic clock. The shard serves nothing after it."""
        self.members = Members(0, (), 1)
        self._service = service
        self._timeout_s = timeout_s
        self._pulls: dict[int, list[tuple[str, str]]] = {}
        self._pushes: dict[int, list[tuple[str, str]]] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._record = Record()
        self._corrupt: set[int] = set()
        """Indices whose pages were found damaged when they moved here."""
        self._noted: defaultdict[int, set[str]] = defaultdict(set)
        """By stripe: the clients that the directory knows to store there."""
        self._settled: OrderedDict[tuple[str, int], bytes | None] = OrderedDict()
        self._brought: dict[int, int] = {}
        """Stripes that were pulled at this epoch, with the number of their pages."""
        self._discarded: set[int] = set()
        """Stripes that were dropped at this epoch because others have them."""
        self._holds: set[int] = set()
        """Stripes that the directory knows to be whole here, at this epoch."""
        self._outdated: set[int] = set()
        """Stripes whose pages here are outdated and must not be used."""
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
        """Guards stores without the pool's limit. Threads hold it only while SwapStore runs."""
        self.page_size = self._engine.page_size

    # Messages of the directory.

    async def advance(self, state: Mapping[str, Any]) -> Answer:
        """Learn of a new epoch."""
        self.learn(state)
        return {"status": OK}

    def learn(self, state: Mapping[str, Any]) -> None:
        """Take over the directory's state of an epoch, and begin the moves that it asks for."""
        if state.get("epoch", 0) > self.epoch:
            members = [(str(name), str(address)) for name, address in state["members"]]
            self.members = Members(state["epoch"], members, state["replicas"])
            self._pulls = {
                stripe: [tuple(one) for one in where] for stripe, where in state["pulls"]
            }
            self._pushes = {stripe: [tuple(one) for one in to] for stripe, to in state["pushes"]}
            self.epoch = state["epoch"]
            # Others have taken these stripes over. Our pages stay outdated if a stripe returns.
            self._holds = set(state["holds"])
            self._outdated = self._record.stripes().difference(self._holds)
            for stripe in [stripe for stripe in self._noted if stripe not in self._holds]:
                del self._noted[stripe]
            self._brought.clear()
            self._discarded.clear()
        if self._outdated or state.get("discards"):
            self._begin(self._discard([*self._outdated, *state.get("discards", ())]))
        if (self._pulls or self._pushes) and self._moving is None and not self._ended:
            self._moving = asyncio.ensure_future(self._move())

    async def ping(self) -> Answer:
        """Answer that this shard exists."""
        return {"status": OK}

    # Requests of clients.

    async def get(self, epoch: int, indices: bytes) -> Answer:
        """Return the present pages, concatenated, and errors for the others by position."""
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
        """Store folios, each as a whole or not at all. Return an error or None for each.

        A folio has the number that the client gave it, and runs (index, count).
        """
        stripes = stripes_of(run for _, runs in folios for run in runs)
        await self._admit(epoch, stripes)
        async with self._locked(stripes):
            await self._recheck(epoch, stripes)
            news = [stripe for stripe in stripes if client not in self._noted[stripe]]
            if news:
                await self._tell_directory("note", epoch, attachment=client, stripes=news)
                self._check_epoch(epoch)
                for stripe in news:
                    self._noted[stripe].add(client)
            errors = await self._put_everywhere(epoch, stripes, client, folios, pages)
            await self._check(epoch, may_be_past=True)
        return {"status": OK, "errors": errors}

    async def undo(
        self, epoch: int, client: str, numbers: Sequence[int], runs: Sequence[Run]
    ) -> Answer:
        """Forget the pages in runs. Return their number. Never store these folios again."""
        await self._ensure_epoch(epoch)
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
        """Return whether a page is stored here, even a damaged one."""
        await self._admit(epoch, [index // STRIPE])
        here = index in self._record or index in self._corrupt
        await self._check(epoch)
        return {"status": OK, "has": here}

    async def status(self, epoch: int | None) -> Answer:
        """Return counts and counters. With an epoch, pull stripes that move here first."""
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

    # Requests of other shards.

    async def give(self, epoch: int, stripe: int) -> Answer:
        """Give a stripe to its new primary."""
        await self._ensure_epoch(epoch)
        async with self._locked([stripe]):
            await self._ensure_epoch(epoch)
            if stripe in self._discarded:
                raise Stale
            indices, pages, corrupt = await self._content(stripe)
        return {"status": OK, "indices": indices, "pages": to_serialize(pages), "corrupt": corrupt}

    async def take(
        self, epoch: int, stripe: int, indices: bytes, pages: Bytes, corrupt: Sequence[int]
    ) -> Answer:
        """Take over a whole stripe from its primary."""
        await self._ensure_epoch(epoch)
        async with self._locked([stripe]):
            await self._ensure_epoch(epoch)
            await self._install(stripe, indices, pages, corrupt)
            self._discard_late(epoch, [stripe])
        return {"status": OK}

    async def put_copy(
        self,
        epoch: int,
        client: str,
        folios: Sequence[Folio],
        pages: Bytes,
    ) -> Answer:
        """Store a copy of the primary's folios."""
        await self._ensure_epoch(epoch)
        stripes = stripes_of(run for _, runs in folios for run in runs)
        async with self._locked(stripes):
            await self._ensure_epoch(epoch)
            errors = [self._settled.get((client, number)) for number, _ in folios]
            await self._put(client, folios, pages, errors)
            self._discard_late(epoch, stripes)
        return {"status": OK, "errors": errors}

    async def undo_copy(
        self, epoch: int, client: str, numbers: Sequence[int], runs: Sequence[Run]
    ) -> Answer:
        """Forget what the primary forgot."""
        await self._ensure_epoch(epoch)
        async with self._locked(stripes_of(runs)):
            await self._ensure_epoch(epoch)
            for number in numbers:
                self._settle(client, number, _UNDONE)
            await self._drop(runs)
        return {"status": OK}

    # Admission.

    async def _admit(self, epoch: int, stripes: Iterable[int]) -> None:
        """Raise Stale unless these stripes may be served at this epoch. Pull them if needed."""
        await self._ensure_epoch(epoch)
        for stripe in stripes:
            if stripe in self._pulls:
                await self._pull(stripe)
            if stripe in self._outdated:
                async with self._locked([stripe]):
                    pass
        self._check_epoch(epoch)

    async def _ensure_epoch(self, epoch: int) -> None:
        """Raise Stale unless this shard has a lease and is at this epoch."""
        if epoch > self.epoch or not self._has_lease():
            await self._service.renew(self.name)
        self._check_epoch(epoch)

    def _has_lease(self) -> bool:
        return time.monotonic() < self.lease_until

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self.epoch or self._ended:
            raise Stale

    async def _recheck(self, epoch: int, stripes: Iterable[int]) -> None:
        """Check again under the stripes' locks. Push what other owners lack first."""
        await self._ensure_epoch(epoch)
        for stripe in stripes:
            if stripe in self._pulls:
                raise Stale
            if stripe in self._pushes:
                await self._push(stripe)

    async def _check(self, epoch: int, *, may_be_past: bool = False) -> None:
        """Check before an answer that this shard was not given up. Raise Stale if it was.

        A store counts even if its epoch has passed meanwhile (`may_be_past`). The stripes' locks
        are held, so whoever takes the stripes over waits for them and gets the stored pages.
        """
        if not self._has_lease():
            await self._service.renew(self.name)
        if self._ended:
            raise Stale
        if not may_be_past:
            self._check_epoch(epoch)

    async def _tell_directory(self, method: str, epoch: int, **what: Any) -> None:
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

    # Pages. SwapStore works in threads; the state about its pages changes in the event loop only.

    async def _put_everywhere(
        self,
        epoch: int,
        stripes: Sequence[int],
        client: str,
        folios: Sequence[Folio],
        pages: Bytes,
    ) -> list[bytes | None]:
        """Store folios here and at the other owners. Return an error or None for each.

        Each folio is stored everywhere or nowhere. The other owners store it first, so that nobody
        reads a page here that would be lost with this worker.
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
        """Store the folios that have no error yet and were not stored or undone before."""
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
            self._update_record(runs, stored=outcome is None)

    def _store_runs(self, runs: Sequence[Run], pages: Bytes) -> bytes | None:
        """Store pages in runs, all or none. Return the pickled error, or None."""
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

    def _update_record(self, runs: Iterable[Run], *, stored: bool) -> None:
        """Update the record for runs."""
        for index, count in runs:
            if stored:
                self._record.add(index, count)
            else:
                self._record.discard(index, count)
            if self._corrupt:
                self._corrupt = {one for one in self._corrupt if not index <= one < index + count}

    async def _drop(self, runs: Sequence[Run]) -> int:
        """Forget the pages in runs. Return their number."""
        counts = await self._in_thread(
            lambda: [self.pages.invalidate(index, count) for index, count in runs]
        )
        self._update_record(runs, stored=False)
        return int(sum(counts))

    def _settle(self, client: str, number: int, outcome: bytes | None) -> None:
        """Remember the outcome of a folio, in case its message is repeated or comes late."""
        self._settled[client, number] = outcome
        if len(self._settled) > _SETTLED:
            self._settled.popitem(last=False)

    def _present(self, runs: Sequence[Run]) -> list[int]:
        """Return the primary stripes in these runs that may have pages. Runs may be very long."""
        found: set[int] = set()
        known = self._record.stripes() | self._pulls.keys()
        known |= {stripe for stripe, lock in self._locks.items() if lock.locked()}  # may be storing
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
        """Return the indices, the pages and the damaged indices of a stripe. Raise Stale."""
        where = np.array(self._record.indices(stripe), np.int64)
        errors: dict[int, bytes] = {}
        pages = await self._in_thread(self._load, where, np.arange(len(where)), errors)
        if not all(isinstance(error_of({"error": one}), CorruptPage) for one in errors.values()):
            raise Stale  # they may be readable later
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
        """Store folios without an error at the other owners. Add their errors to `errors`."""
        if self.members.replicas > 1:
            self._check_epoch(epoch)  # at another epoch, others own these stripes
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
        """Make the other owners forget pages."""
        if self.members.replicas > 1:
            self._check_epoch(epoch)
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
        """Return whether an answer came in time. Raise Stale if the epoch has passed meanwhile."""
        until = time.monotonic() + patience_s(self._timeout_s, self.members.replicas)
        while not (await asyncio.wait({asking}, timeout=_LOOK_S))[0]:
            self._check_epoch(epoch)  # the peer may be known to be gone
            if time.monotonic() >= until:
                return False
        return True

    async def _ask_peer(
        self, epoch: int, peer: tuple[str, str], method: str, **what: Any
    ) -> Answer:
        """Ask another shard. Without an answer, report it to the directory and raise Stale."""
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
                except Exception as error:  # noqa: BLE001 - mostly of the connection
                    reason = f"{type(error).__name__}: {error}"
                else:
                    if answer["status"] == OK:
                        return answer
                    gone = answer["status"] == GONE
                    reason = "its process no longer has the shard" if gone else ""
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
        """Pull and push stripes until none is left to move."""
        try:
            while (self._pulls or self._pushes) and not self._ended:
                stripes = [*self._pulls, *self._pushes][:_MOVING]
                done = await asyncio.gather(
                    *(self._bring(stripe) for stripe in stripes), return_exceptions=True
                )
                if any(isinstance(one, BaseException) for one in done):
                    for stripe in stripes:  # to the end of the queue
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
                self._check_epoch(epoch)
                pages = answer["pages"]
                await self._install(stripe, answer["indices"], pages, answer["corrupt"])
                self._check_epoch(epoch)
                # If the directory does not answer, only the report is repeated. A second pull might
                # find that the source has dropped the stripe.
                self._brought[stripe] = len(pages)
            await self._tell_directory("pulled", epoch, stripe=stripe, pages=self._brought[stripe])
            self._check_epoch(epoch)
            del self._pulls[stripe]

    async def _push(self, stripe: int) -> None:
        """Send the other owners of a stripe what they lack. The caller holds the stripe's lock."""
        epoch = self.epoch
        indices, pages, corrupt = await self._content(stripe)
        what = {"stripe": stripe, "indices": indices, "corrupt": corrupt}
        for other in list(self._pushes.get(stripe, ())):
            await self._ask_peer(epoch, other, "take", pages=to_serialize(pages), **what)
            await self._tell_directory(
                "synced", epoch, stripe=stripe, other=other[0], pages=len(pages)
            )
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
        """Replace a stripe's pages, beyond the pool's limit if needed: they are acknowledged."""
        await self._drop([(stripe * STRIPE, STRIPE)])
        where = np.frombuffer(indices, np.int64)
        cuts = np.flatnonzero(np.diff(where) != 1) + 1
        runs = [(int(run[0]), len(run)) for run in np.split(where, cuts) if len(run)]
        if await self._in_thread(self._store_beyond, runs, pages) is not None:
            raise Stale  # out of memory
        self._update_record(runs, stored=True)
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
        """Drop stripes that others have taken over."""
        for stripe in stripes:
            async with self._locked([stripe]):
                owners = [owner.name for owner in self.members.owners(stripe)]
                if self.name not in owners:
                    self._discarded.add(stripe)
                    await self._drop([(stripe * STRIPE, STRIPE)])
                    self._noted.pop(stripe, None)

    def _discard_late(self, epoch: int, stripes: Sequence[int]) -> None:
        """Drop pages that came here while the epoch of their request ended.

        `learn` did not see them yet, and nobody would ask for them.
        """
        late = [stripe for stripe in stripes if stripe not in self._holds]
        if epoch != self.epoch and late:
            self._outdated.update(late)
            self._begin(self._discard(late))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work in the background."""

        async def quietly() -> None:
            with suppress(Stale, ClosedError):
                await work

        task = asyncio.ensure_future(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Closing.

    def end(self) -> None:
        """Stop serving."""
        self._ended = True

    def close(self) -> None:
        """Close the store and the engine."""
        self._ended = True
        self.pages.close()
        self._engine.close()


def stripes_of(runs: Iterable[Run]) -> list[int]:
    """Return the stripes of runs in ascending order."""
    return sorted({stripe for index, count in runs for stripe, _, _ in cut(index, count)})


def _parts(
    folios: Sequence[Folio],
    pages: Bytes,
    stripes: Sequence[int],
    errors: Sequence[bytes | None],
) -> tuple[list[int], list[Folio], list[Bytes]]:
    """Return the parts of folios without errors in `stripes`: positions, parts and pages."""
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
    """Return the parts of runs that lie in the given stripes."""
    parts = [
        (max(index, stripe * STRIPE), min(index + count, (stripe + 1) * STRIPE))
        for stripe in stripes
        for index, count in runs
    ]
    return [(start, stop - start) for start, stop in parts if start < stop]
