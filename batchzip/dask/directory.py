"""Directory: the scheduler plugin that knows a store's shards and where its pages are.

    clients ─ attach, fetch, report, recover ─▶ Directory ◀─ renew, note, pulled, synced ─ shards
                                                    │
                                                    └── open, advance, close ──▶ shards

It is asked when something changes or is about to, never for a page that is stored or loaded. For
each store it keeps:

* The members, and an **epoch** that rises with each change. A shard serves only requests of its own
  epoch.
* For each stripe that ever had a page, its **holders**: the shards that have all of its pages.
  Owners that are not holders get the pages from the primary. It pulls what it lacks from a holder,
  and pushes to the other owners what they lack. A stripe without holders is **lost**.
* For each stripe, the clients that stored there. They are noted before their first page is
  acknowledged.

A shard has a **lease**, and serves nothing without it. So a shard that was given up but still runs
neither acknowledges nor returns a page. A shard is given up when its lease has expired and its
worker has left the scheduler or does not answer.

A change is made in one step of the event loop, which makes it atomic without locks. Rejected: a
client as the directory. All pages would be lost with that client.

Messages contain numbers, texts and pickled bytes. Of the pickles, only errors and counters are
loaded here. A store's options are forwarded to its shards as they are.
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
"""The name of the plugin."""

LEASE_S = 2.0
"""Seconds that a lease is valid."""

_PING_S = 2.0
"""Seconds that a shard has to answer a ping after somebody reported it."""

_ABSENT_S = 10.0
"""Seconds after which an absent client counts as gone. Until then it may reconnect."""

_OPEN_S = 60.0
"""Seconds that a worker has to open or close a shard."""

_DRAIN_S = 600.0
"""Seconds that a shard has to move its pages before its worker is retired."""

_GONE_S = 0.5
"""Seconds within which the scheduler notices that a worker is gone."""

_LEAVING = {Status.closing_gracefully, Status.closing, Status.closed, Status.failed}
"""States in which a worker gets no shard. A worker that just arrived is not yet `running`."""

_LOOK_S = 0.05
"""Seconds between two checks whether pages have moved."""


class Directory(SchedulerPlugin):
    """The sharded stores of a scheduler."""

    name = NAME

    def __init__(self) -> None:
        self.stores: dict[str, StripeMap] = {}

    def start(self, scheduler: Scheduler) -> None:  # type: ignore[override] # not a coroutine
        """Register the handlers and the dashboard page with a scheduler."""
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

    # Requests of clients.

    async def _create(
        self,
        name: str,
        client: str,
        attachment: str,
        options: dict[str, Any],
        workers: Sequence[str] | None,
        epoch: int,
    ) -> Answer:
        """Create a store unless it exists, and attach the client."""
        store = self.stores.get(name)
        if store is not None:
            return await self._attach(store, client, attachment)
        bound = None if workers is None else frozenset(workers)
        store = StripeMap(name, options, bound, 0, epoch)
        if epoch:  # the shards of an earlier scheduler may still have their leases
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
        # Workers may have left or joined meanwhile.
        for shard, what in list(store.shards.items()):
            if what.address not in self._scheduler.workers:
                self._begin(self._lose(store, shard, "the worker was lost"))
        for address in list(self._scheduler.workers):
            self.add_worker(self._scheduler, address)
        return await self._attach(store, client, attachment)

    async def _fit_workers(self, bound: frozenset[str] | None) -> list[str]:
        """Return the addresses of the workers to use. Raise ClusterLost or BackendUnavailable."""
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
        """Make a shard on each worker that is still there. Return addresses, names and page sizes.

        If a worker cannot have a shard, close the others and raise its error.
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
            self.remove_client(self._scheduler, client)  # it may still reconnect in time
        return {**store.as_seen_by_client(0), "options": store.options["pickled"]}

    async def _detach(self, store: StripeMap, attachment: str) -> Answer:
        store.clients.pop(attachment, None)
        if not store.clients:
            self._end(store)
        return {"status": OK}

    async def _fetch(self, store: StripeMap, client: str, attachment: str, since: int) -> Answer:
        """Return news to a client. A client that was away for long is attached again."""
        store.clients.setdefault(attachment, client)
        return store.as_seen_by_client(since)

    async def _report(self, store: StripeMap, shard: str, reason: str, since: int) -> Answer:
        """Check a shard that did not answer. Return when it is alive or given up."""
        what = store.shards.get(shard) or store.leaving.get(shard)
        if what is not None and not await self._lives(shard, what):
            await self._lose(store, shard, reason)
        return store.as_seen_by_client(since)

    async def _losses(self, store: StripeMap) -> Answer:
        """Return the lost stripes. Shards of lost workers are given up first."""
        gone = [
            self._lose(store, shard, "the worker was lost")
            for shard, what in {**store.shards, **store.leaving}.items()
            if what.address not in self._scheduler.workers
        ]
        await asyncio.gather(*gone)
        return {"status": OK, "losses": _described(store.lost)}

    async def _recover(self, store: StripeMap, stripes: Sequence[int], since: int) -> Answer:
        """Forget lost stripes. Return those that were still lost."""
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
        """Note invalidated indices of lost stripes. A wholly invalidated stripe is not lost."""
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
        """Give each worker a shard, and wait until all pages are at their owners."""
        before = store.moved_pages
        store.refused.clear()
        for address in list(self._scheduler.workers):
            await self._join(store, address)
        while store.joining:  # noqa: ASYNC110 - as below
            await asyncio.sleep(_LOOK_S)
        if store.refused:
            return {"status": "error", "error": next(iter(store.refused.values()))}
        while not store.ended and store.is_moving():  # noqa: ASYNC110 - many places end a move
            await asyncio.sleep(_LOOK_S)
        return {**store.as_seen_by_client(since), "moved": store.moved_pages - before}

    # Requests of shards.

    def _renew(self, address: str, shards: Sequence[Sequence[Any]]) -> Answer:
        """Renew the leases of a worker's shards. Return what is new to them."""
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
                    # The shard was given up, but its worker still runs. It may get a new shard.
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
        """Note that a client is about to store in stripes."""
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
        """Note that a primary has pulled a stripe. Its former holders drop it if they may."""
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
        """Note that a primary has pushed a stripe to another owner."""
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
        """Remove a worker's shards after their pages have moved, or when the time is up."""
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
        """Make a shard on a worker. Return the address, the shard's name and the answer."""
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
        except Exception as error:  # noqa: BLE001 - in any case there is no shard
            answer = failed(ClusterLost(f"no shard on worker {address}: {_said(error)}"))
        return address, shard, answer

    async def _unfit(self, addresses: Iterable[str]) -> dict[str, str]:
        """Return by address why workers cannot have shards. Those that left do not count."""
        unfit = await probe(self._scheduler.rpc, addresses)
        if unfit:
            await asyncio.sleep(_GONE_S)  # the scheduler may still list a worker that just died
            left = [address for address in unfit if address in self._scheduler.workers]
            unfit = await probe(self._scheduler.rpc, left)
        return unfit

    def _names(self) -> dict[str, object]:
        return {address: worker.name for address, worker in self._scheduler.workers.items()}

    async def _install(self, address: str) -> None:
        """Install the shard service on a worker. Raise ClusterLost if that fails."""
        worker = self._scheduler.rpc(address)
        answer = await worker.run(function=pickle.dumps(install))
        if answer["status"] != OK:
            raise ClusterLost(f"no shard on worker {address}: {answer}")

    async def _join(self, store: StripeMap, address: str) -> None:
        """Give a worker a shard unless it has one, and thereby its part of the stripes."""
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
                else "the worker was retired, and no other is left"
            )
            store.lose(shard, reason)
            self._push_all(store)
            await self._close_shard(what.address, shard)

    async def _lives(self, shard: str, what: ShardLease) -> bool:
        """Return whether a shard answers a ping."""
        if what.address not in self._scheduler.workers:
            return False
        with suppress(Exception):
            answer = await self._ask(what.address, _PING_S, method="ping", shard=shard)
            return bool(answer["status"] == OK)
        return False

    async def _lose(self, store: StripeMap, shard: str, reason: str) -> None:
        """Give up a shard when its lease has expired, unless it answers again."""
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
        # A restarted worker may have the same address. It got no shard while this one existed.
        self.add_worker(self._scheduler, what.address)

    def _end(self, store: StripeMap) -> None:
        if store.ended:
            return
        store.ended = True
        self.stores.pop(store.name, None)
        for shard, what in {**store.shards, **store.leaving}.items():
            self._begin(self._close_shard(what.address, shard))

    def _push_all(self, store: StripeMap) -> None:
        """Send the new epoch to all shards. Those that miss it learn it with their next lease."""
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
            with suppress(Exception):  # clients report workers that do not answer
                await work

        task = asyncio.ensure_future(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Calls of the scheduler.

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:  # noqa: ARG002 - Dask's
        """Give a new worker its part of the elastic stores."""
        for store in self.stores.values():
            if store.options["elastic"]:
                self._begin(self._join(store, worker))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Give up the shards of a lost worker."""
        for store in self.stores.values():
            store.refused.pop(worker, None)
            for shard, what in {**store.shards, **store.leaving}.items():
                if what.address == worker:
                    self._begin(self._lose(store, shard, "the worker was lost"))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002 - Dask's
        """Detach a client unless it reconnects in time."""
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
        """Move the pages of workers away, then retire the workers."""
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
        # All together, so that no page moves to a worker that leaves, too.
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
