"""Directory: which shards a store has, and where its pages are. A plugin of the scheduler.

    clients ── attach, fetch, report, recover ──▶ Directory ◀── renew, note, pulled, synced ── shards
                                                     │
                                                     └── open, advance, close ──▶ shards

It is asked when something changes, or is about to, and for no page that is stored or loaded. For each store
it keeps

* the members, and an **epoch** that rises with each change. A shard serves requests of its own epoch only;
* for each stripe that ever had a page, its **holders**: the shards that have all of its pages. Owners that
  are not holders have the pages brought to them, by the primary: it pulls from a holder what it has not, and
  pushes to the other owners what they have not. A stripe without holders is **lost**;
* for each stripe the clients that stored there, which were noted before a page of theirs was acknowledged.

A shard has a **lease**. Without it, it serves nothing; so one that was given up, and is not as dead as it
seemed, neither acknowledges nor returns a page any more. A shard whose worker the scheduler does not have any
more, or which does not answer, is given up when its lease has run out.

Changes are made in one step of the event loop, which is what makes them atomic; nothing here locks.
Rejected: that a client be the directory. It would die with it, and its pages with it.

Messages are numbers, texts and pickled bytes. Of these, only errors and counters are unpickled here; options
of a store go on to its shards as they are.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol import pickle

from batchzip.dask.page import add_page
from batchzip.dask.probe import SILENT, probe, unavailable
from batchzip.dask.record import STRIPE
from batchzip.dask.service import install
from batchzip.dask.stripe_map import LostStripe, ShardLease, StripeHolders, StripeMap
from batchzip.dask.survey import survey
from batchzip.dask.wire import DIRECTORY, GONE, OK, SHARD, STALE, Answer, error_of, failed
from batchzip.errors import BatchzipError, ClusterLost

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from distributed.scheduler import Scheduler

_LOG = logging.getLogger("batchzip.dask")

NAME = "batchzip"
"""The plugin's name."""

LEASE_S = 2.0
"""Seconds that a lease lasts."""

_PING_S = 2.0
"""Seconds in which a shard that somebody complained of has to answer."""

_ABSENT_S = 10.0
"""Seconds that a client may be away before it counts as gone: it may be connecting again."""

_OPEN_S = 60.0
"""Seconds that a worker has to open or close a shard."""

_DRAIN_S = 600.0
"""Seconds that a shard has to give its pages away before its worker is retired."""

_GONE_S = 0.5
"""Seconds after which the scheduler knows that a worker is gone."""

_LEAVING = {Status.closing_gracefully, Status.closing, Status.closed, Status.failed}
"""What a worker is that gets no shard any more. One that has just come is not yet running."""

_LOOK_S = 0.05
"""Seconds between two looks at whether pages have moved."""


class Directory(SchedulerPlugin):
    """The stores of a scheduler."""

    name = NAME

    def __init__(self) -> None:
        self.stores: dict[str, StripeMap] = {}

    def start(self, scheduler: Scheduler) -> None:  # type: ignore[override] # at once, on purpose
        """Take up work in a scheduler."""
        self.stores = {}
        self._scheduler: Any = scheduler
        self._retiring: Counter[str] = Counter()
        """Addresses of workers that are being retired."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retire = scheduler.handlers["retire_workers"]
        scheduler.handlers[DIRECTORY] = self.handle
        scheduler.handlers["retire_workers"] = self.retire_workers
        add_page(scheduler, partial(survey, scheduler, self.stores))

    async def handle(self, method: str, store: str = "", **arguments: Any) -> Answer:
        """Answer a client or a shard."""
        try:
            match method:
                case "renew":
                    answer = self._renew(**arguments)
                case "survey":
                    found = await survey(self._scheduler, self.stores)
                    answer = {"status": OK, "survey": asdict(found)}
                case "leave":
                    answer = await self._leave_all(**arguments)
                case "create":
                    answer = await self._create(store, **arguments)
                case _ if store not in self.stores:
                    answer = {"status": GONE}
                case _:
                    answer = await getattr(self, f"_{method}")(self.stores[store], **arguments)
        except BatchzipError as error:
            return failed(error)
        return answer

    # What clients ask.

    async def _create(
        self,
        name: str,
        client: str,
        attachment: str,
        options: dict[str, Any],
        workers: Sequence[str] | None,
        epoch: int,
    ) -> Answer:
        """Make a store, unless it is there, and attach the client."""
        store = self.stores.get(name)
        if store is not None:
            return await self._attach(store, client, attachment)
        bound = None if workers is None else frozenset(workers)
        store = StripeMap(name, options, bound, 0, epoch)
        if epoch:  # it was on an earlier scheduler, whose shards may have their leases yet
            await asyncio.sleep(LEASE_S)
        opened = await self._open_all(store, await self._fit_workers(bound))
        raced = self.stores.get(name)
        if raced is not None:
            for address, shard, _ in opened:
                self._begin(self._close_shard(address, shard))
            return await self._attach(raced, client, attachment)
        lease_until = time.monotonic() + LEASE_S
        for address, shard, page_size in opened:
            store.page_size = page_size
            store.shards[shard] = ShardLease(address, lease_until)
        store.advance()
        self.stores[name] = store
        self._push_all(store)
        # One of them may have gone meanwhile, or come.
        for shard, what in list(store.shards.items()):
            if what.address not in self._scheduler.workers:
                self._begin(self._lose(store, shard, "the worker was lost"))
        for address in list(self._scheduler.workers):
            self.add_worker(self._scheduler, address)
        return await self._attach(store, client, attachment)

    async def _fit_workers(self, bound: frozenset[str] | None) -> list[str]:
        """Return the addresses of all workers that a store is to use. Raise unless they can be used."""
        here = [one for one in self._scheduler.workers if bound is None or one in bound]
        if bound is not None and len(here) < len(bound):
            missing = ", ".join(sorted(bound.difference(here)))
            raise ClusterLost(f"the cluster has no workers at {missing}")
        unfit = await self._unfit(here)
        if unfit:
            raise unavailable(unfit, self._names())
        return here

    async def _open_all(
        self, store: StripeMap, workers: Sequence[str]
    ) -> list[tuple[str, str, int]]:
        """Make a shard on each of these workers that is still there: address, name and page size.

        Raise what one says that cannot have a shard; then none has.
        """
        store.joining.update(workers)
        answers = await asyncio.gather(*(self._open(store, one) for one in workers))
        store.joining.clear()
        opened = [
            (address, shard, answer["page_size"])
            for address, shard, answer in answers
            if answer["status"] == OK
        ]
        for address, _, answer in answers:
            if answer["status"] != OK and address in self._scheduler.workers:
                for other, shard, _ in opened:
                    self._begin(self._close_shard(other, shard))
                raise error_of(answer)
        if not opened:
            raise ClusterLost("the cluster has no workers")
        return opened

    async def _attach(self, store: StripeMap, client: str, attachment: str) -> Answer:
        store.clients[attachment] = client
        if client not in self._scheduler.clients:
            self.remove_client(self._scheduler, client)  # it has its time to come back
        return {**store.as_seen_by_client(0), "options": store.options["pickled"]}

    async def _detach(self, store: StripeMap, attachment: str) -> Answer:
        store.clients.pop(attachment, None)
        if not store.clients:
            self._end(store)
        return {"status": OK}

    async def _fetch(self, store: StripeMap, client: str, attachment: str, since: int) -> Answer:
        """Tell what is new to a client, which counts as attached again if it was away for long."""
        store.clients.setdefault(attachment, client)
        return store.as_seen_by_client(since)

    async def _report(self, store: StripeMap, shard: str, reason: str, since: int) -> Answer:
        """Look after a shard of which somebody has no answer; return when it is clear what it is."""
        what = store.shards.get(shard) or store.leaving.get(shard)
        if what is not None and not await self._lives(shard, what):
            await self._lose(store, shard, reason)
        return store.as_seen_by_client(since)

    async def _losses(self, store: StripeMap) -> Answer:
        """Say what is lost, stripe by stripe; shards of workers that are gone are given up before."""
        gone = [
            self._lose(store, shard, "the worker was lost")
            for shard, what in {**store.shards, **store.leaving}.items()
            if what.address not in self._scheduler.workers
        ]
        await asyncio.gather(*gone)
        return {"status": OK, "losses": _described(store.lost)}

    async def _recover(self, store: StripeMap, stripes: Sequence[int], since: int) -> Answer:
        """Forget lost stripes; which of them were lost, and are not lost any more."""
        losses = {number: store.lost.pop(number) for number in stripes if number in store.lost}
        self._recovered(store, list(losses))
        return {**store.as_seen_by_client(since), "losses": _described(losses)}

    def _recovered(self, store: StripeMap, stripes: Sequence[int]) -> None:
        if stripes:
            store.advance()
            store.recovered.update(dict.fromkeys(stripes, store.epoch))
            self._push_all(store)

    async def _forget(
        self, store: StripeMap, ranges: Sequence[Sequence[int]], since: int
    ) -> Answer:
        """Note that indices of lost stripes were invalidated; a stripe without others is not lost."""
        gone: list[int] = []
        for number, at, count in ranges:
            lost = store.lost.get(number)
            if lost is not None:
                lost.forgotten |= ((1 << count) - 1) << at
                if lost.forgotten == (1 << STRIPE) - 1:
                    gone.append(number)
                    del store.lost[number]
        self._recovered(store, gone)
        return store.as_seen_by_client(since)

    async def _rebalance(self, store: StripeMap, since: int) -> Answer:
        """Give a shard to each worker that has none, and wait until all pages are where they belong."""
        before = store.moved_pages
        store.refused.clear()
        for address in list(self._scheduler.workers):
            await self._join(store, address)
        while store.joining:  # noqa: ASYNC110 - as below
            await asyncio.sleep(_LOOK_S)
        if store.refused:
            return {"status": "error", "error": next(iter(store.refused.values()))}
        while not store.ended and store.is_moving():  # noqa: ASYNC110 - it ends in many places
            await asyncio.sleep(_LOOK_S)
        return {**store.as_seen_by_client(since), "moved": store.moved_pages - before}

    # What shards ask.

    def _renew(self, address: str, shards: Sequence[Sequence[Any]]) -> Answer:
        """Give all shards of a worker their leases, and what is new to them."""
        news: dict[str, Answer] = {}
        now = time.monotonic()
        for name, shard, epoch in shards:
            store = self.stores.get(name)
            if store is None:
                news[shard] = {"status": GONE}
                continue
            what = store.shards.get(shard) or store.leaving.get(shard)
            if what is None:
                if epoch or address not in store.joining:
                    # The shard was given up, but its worker still runs, and may get a new one.
                    news[shard] = {"status": GONE}
                    self.add_worker(self._scheduler, address)
                continue
            what.lease_until = now + LEASE_S
            news[shard] = {"status": OK} if epoch == store.epoch else store.as_seen_by_shard(shard)
            if shard in store.discards:
                news[shard]["discards"] = list(store.discards.pop(shard))
        return {"status": OK, "lease_s": LEASE_S, "news": news}

    async def _note(
        self, store: StripeMap, shard: str, epoch: int, attachment: str, stripes: Sequence[int]
    ) -> Answer:
        """Note that a client stores in stripes."""
        if epoch != store.epoch or shard not in store.shards:
            return {"status": STALE}
        for number in stripes:
            stripe = store.stripes.get(number)
            if stripe is None:
                owners = tuple(owner.name for owner in store.members.owners(number))
                stripe = store.stripes[number] = StripeHolders(owners, set())
            stripe.clients.add(attachment)
        return {"status": OK}

    async def _pulled(
        self, store: StripeMap, shard: str, epoch: int, stripe: int, pages: int
    ) -> Answer:
        """Note that a shard, their primary, has the pages of a stripe; earlier holders have them no more."""
        known = store.stripes.get(stripe)
        if epoch != store.epoch or known is None or shard not in store.shards:
            return {"status": STALE}
        known.holders = (shard, *(one for one in known.holders if one != shard))
        store.trim(stripe, known)
        store.pulls.get(shard, {}).pop(stripe, None)
        store.moved_pages += pages
        return {"status": OK}

    async def _synced(
        self, store: StripeMap, shard: str, epoch: int, stripe: int, other: str, pages: int
    ) -> Answer:
        """Note that another owner has the pages of a stripe, too: its primary pushed them."""
        known = store.stripes.get(stripe)
        if epoch != store.epoch or known is None or shard not in store.shards:
            return {"status": STALE}
        if other not in known.holders:
            known.holders = (*known.holders, other)
            store.trim(stripe, known)
        waiting = store.pushes.get(shard, {})
        if stripe in waiting:
            waiting[stripe] = [one for one in waiting[stripe] if one[0] != other]
            if not waiting[stripe]:
                del waiting[stripe]
        store.moved_pages += pages
        return {"status": OK}

    async def _leave_all(self, address: str, timeout_s: float) -> Answer:
        """Take a worker's shards out, after their pages were moved."""
        await asyncio.gather(
            *(
                self._leave(store, shard, timeout_s)
                for store in list(self.stores.values())
                for shard, what in list(store.shards.items())
                if what.address == address
            )
        )
        return {"status": OK}

    # Changes.

    async def _open(self, store: StripeMap, address: str) -> tuple[str, str, Answer]:
        """Make a shard on a worker; its address, its name and the worker's answer."""
        shard = uuid.uuid4().hex
        try:
            await asyncio.wait_for(self._install(address), _OPEN_S)
            answer = await self._ask(
                address,
                _OPEN_S,
                method="open",
                shard=shard,
                store=store.name,
                options=store.options["pickled"],
            )
        except BatchzipError as error:
            answer = failed(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it has no shard
            answer = failed(ClusterLost(f"no shard on worker {address}: {_said(error)}"))
        return address, shard, answer

    async def _unfit(self, addresses: Iterable[str]) -> dict[str, str]:
        """Return why those workers cannot have shards that cannot, and have not left meanwhile."""
        unfit = await probe(self._scheduler.rpc, addresses)
        if unfit:
            await asyncio.sleep(_GONE_S)  # one that died was in the list for a moment
            left = [address for address in unfit if address in self._scheduler.workers]
            unfit = await probe(self._scheduler.rpc, left)
        return unfit

    def _names(self) -> dict[str, object]:
        return {address: worker.name for address, worker in self._scheduler.workers.items()}

    async def _install(self, address: str) -> None:
        """Have a worker answer what shards are asked. Raise BackendUnavailable if it cannot."""
        worker = self._scheduler.rpc(address)
        answer = await worker.run(function=pickle.dumps(install))
        if answer["status"] != OK:
            raise ClusterLost(f"no shard on worker {address}: {answer}")

    async def _join(self, store: StripeMap, address: str) -> None:
        """Give a worker a shard, unless it has one, and its part of the stripes."""
        here = {shard.address for shard in store.shards.values()}
        worker = self._scheduler.workers.get(address)
        if (
            worker is None
            or worker.status in _LEAVING
            or address in here
            or address in store.joining
            or address in store.refused
            or address in self._retiring
            or (store.workers is not None and address not in store.workers)
        ):
            return
        store.joining.add(address)
        try:
            unfit = await self._unfit([address])
            if unfit:
                error = unavailable(unfit, self._names())
                if not unfit[address].startswith(SILENT):
                    store.refused[address] = failed(error)["error"]
                _LOG.warning("Worker %s has no shard of store %s: %s", address, store.name, error)
                return
            _, shard, answer = await self._open(store, address)
            if store.ended or address not in self._scheduler.workers:
                await self._close_shard(address, shard)
            elif answer["status"] == OK:
                store.shards[shard] = ShardLease(address, time.monotonic() + LEASE_S)
                store.advance()
                self._push_all(store)
            else:
                store.refused[address] = answer["error"]
                _LOG.warning("Worker %s has no shard of store %s", address, store.name)
        finally:
            store.joining.discard(address)

    async def _leave(self, store: StripeMap, shard: str, timeout_s: float) -> None:
        what = store.shards.pop(shard, None)
        if what is None:
            return
        store.leaving[shard] = what
        store.advance()
        self._push_all(store)
        until = time.monotonic() + timeout_s
        while (
            store.shards and (store.holds(shard) or store.is_moving()) and time.monotonic() < until
        ):
            if shard not in store.leaving or store.ended:
                return
            await asyncio.sleep(_LOOK_S)
        if shard in store.leaving:
            reason = (
                "the worker was retired before its pages were moved"
                if store.shards
                else "the worker was retired, and there is no other"
            )
            store.lose(shard, reason)
            self._push_all(store)
            await self._close_shard(what.address, shard)

    async def _lives(self, shard: str, what: ShardLease) -> bool:
        """Return whether a shard answers."""
        if what.address not in self._scheduler.workers:
            return False
        with suppress(Exception):
            answer = await self._ask(what.address, _PING_S, method="ping", shard=shard)
            return bool(answer["status"] == OK)
        return False

    async def _lose(self, store: StripeMap, shard: str, reason: str) -> None:
        """Give a shard up when its lease has run out."""
        while True:
            what = store.shards.get(shard) or store.leaving.get(shard)
            if what is None or store.ended:
                return
            left_s = what.lease_until - time.monotonic()
            if left_s <= 0:
                break
            await asyncio.sleep(left_s)
            if what.lease_until > time.monotonic() and await self._lives(shard, what):
                return
        _LOG.warning(
            "Shard %s of store %s on worker %s is lost: %s", shard, store.name, what.address, reason
        )
        store.lose(shard, reason)
        self._push_all(store)
        # A restarted worker may have the same address. It got no shard while this one had it.
        self.add_worker(self._scheduler, what.address)

    def _end(self, store: StripeMap) -> None:
        if store.ended:
            return
        store.ended = True
        self.stores.pop(store.name, None)
        for shard, what in {**store.shards, **store.leaving}.items():
            self._begin(self._close_shard(what.address, shard))

    def _push_all(self, store: StripeMap) -> None:
        """Tell all shards of the new epoch. Those that do not hear it learn of it with their lease."""
        for shard, what in {**store.shards, **store.leaving}.items():
            state = store.as_seen_by_shard(shard)
            self._begin(
                self._ask(what.address, LEASE_S, method="advance", shard=shard, state=state)
            )

    async def _close_shard(self, address: str, shard: str) -> None:
        if address in self._scheduler.workers:
            with suppress(Exception):
                await self._ask(address, _OPEN_S, method="close", shard=shard)

    async def _ask(self, address: str, timeout_s: float, **question: Any) -> Answer:
        worker = self._scheduler.rpc(address)
        answer = await asyncio.wait_for(getattr(worker, SHARD)(**question), timeout_s)
        return {"status": GONE} if answer is None else answer

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        async def quietly() -> None:
            with suppress(Exception):  # a worker that does not answer is found out otherwise
                await work

        task = asyncio.ensure_future(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What the scheduler tells.

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:  # noqa: ARG002 - as Dask calls it
        """Give a new worker its part of the stores that take new workers."""
        for store in self.stores.values():
            if store.options["elastic"]:
                self._begin(self._join(store, worker))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:  # noqa: ARG002 - as Dask calls it
        """Give the shards of a worker up that is gone."""
        for store in self.stores.values():
            store.refused.pop(worker, None)
            for shard, what in {**store.shards, **store.leaving}.items():
                if what.address == worker:
                    self._begin(self._lose(store, shard, "the worker was lost"))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002 - as Dask calls it
        """Detach a client that does not come back."""
        stores = [store for store in self.stores.values() if client in store.clients.values()]

        async def detach() -> None:
            await asyncio.sleep(_ABSENT_S)
            if client not in self._scheduler.clients:
                for store in stores:
                    for attachment, one in list(store.clients.items()):
                        if one == client:
                            await self._detach(store, attachment)

        if stores:
            self._begin(detach())

    async def retire_workers(self, *arguments: Any, **options: Any) -> Any:
        """Move the pages of workers that are to be retired; then retire them."""
        workers: Iterable[str]
        if arguments:
            workers = arguments[0] or ()
        elif options.get("workers") is not None:
            workers = options["workers"]
        elif options.get("names") is not None:
            names = {str(name) for name in options["names"]}
            workers = [w.address for w in self._scheduler.workers.values() if str(w.name) in names]
        else:
            kept = ("close_workers", "remove", "stimulus_id")
            chosen = {name: value for name, value in options.items() if name not in kept}
            workers = self._scheduler.workers_to_close(**chosen)
            options = {name: value for name, value in options.items() if name in kept}
            options["workers"] = list(workers)
        # Together: what leaves with one is not moved to another that leaves, too.
        for address in list(workers):
            self._retiring[address] += 1
        try:
            await asyncio.gather(*(self._leave_all(address, _DRAIN_S) for address in list(workers)))
            return await self._retire(*arguments, **options)
        finally:
            self._retiring -= Counter(list(workers))


def _described(losses: dict[int, LostStripe]) -> list[list[Any]]:
    return [
        [number, lost.address, lost.reason, list(lost.clients), lost.forgotten.to_bytes(64)]
        for number, lost in losses.items()
    ]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
