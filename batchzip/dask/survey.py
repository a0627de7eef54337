"""Survey: figures of a cluster's sharded stores, for `batchzip top --dask` and the dashboard.

The scheduler's process asks each shard for its figures. The survey travels as plain numbers and
texts.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

from batchzip.dask.wire import DIRECTORY, NO_STORE, OK, SHARD
from batchzip.errors import ClusterLost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distributed import Scheduler

    from batchzip.dask.stripe_map import StripeMap

_ASK_S = 5.0
"""Seconds that a shard has to answer."""

_ANSWER_S = 10.0
"""Seconds that the scheduler has to answer for all of them."""

_REFUSALS = (
    "pool_limit_hit",
    "reject_alloc_fail",
    "reject_compress_poor",
    "reject_compress_fail",
    "reject_reclaim_fail",
)
"""Counters of stores that a shard rejected or that found its pool full."""


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """The figures of a shard, or why there are none."""

    worker: str
    """The worker's address."""
    name: str
    """The worker's name."""
    trouble: str
    """Why there are no figures: the worker does not answer, or is lost. Otherwise empty."""
    pid: int = 0
    pages: int = 0
    """Pages in the shard now, without copies of another shard's pages."""
    page_stores: int = 0
    """Pages stored since the shard was made, copies included."""
    page_loads: int = 0
    pool_bytes: int = 0
    pool_limit_bytes: int | None = None
    file_bytes: int = 0
    """Bytes spilled to the worker's disk."""
    refusals: int = 0
    """Times that the pool was full, or a page could not be compressed."""
    moving: int = 0
    """Stripes that are still to be moved from or to this shard."""


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """The figures of a store."""

    store: str
    """The store's name on the scheduler."""
    page_size: int
    replicas: int
    epoch: int
    clients: int
    """Clients that have the store open."""
    lost_stripes: int
    """Stripes of 512 pages with lost pages. `recover` resets this."""
    shards: tuple[ShardFigures, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """All sharded stores of a scheduler."""

    scheduler: str
    taken_s: float
    """Time of the survey by the scheduler's monotonic clock."""
    stores: tuple[StoreFigures, ...]

    @classmethod
    def of(cls, message: dict[str, Any]) -> Survey:
        """Return the survey from a message that `dataclasses.asdict` made."""
        stores = []
        for store in message["stores"]:
            shards = tuple(ShardFigures(**shard) for shard in store["shards"])
            stores.append(StoreFigures(**{**store, "shards": shards}))
        return cls(message["scheduler"], message["taken_s"], tuple(stores))

    def rate(
        self, what: str, store: StoreFigures, shard: ShardFigures, before: Survey | None
    ) -> float | None:
        """Return a figure's growth per second since `before`, or None if that did not have it."""
        for earlier in () if before is None or shard.trouble else before.stores:
            for one in earlier.shards:
                same = (earlier.store, one.worker, one.pid) == (
                    store.store,
                    shard.worker,
                    shard.pid,
                )
                if same and before is not None and not one.trouble:
                    grown: int = getattr(shard, what) - getattr(one, what)
                    return grown / (self.taken_s - before.taken_s)
        return None


async def ask_survey(scheduler: Any, timeout_s: float) -> Survey | None:
    """Ask a scheduler by RPC for its survey. Return None if it never had a store."""
    asking = getattr(scheduler, DIRECTORY)(method="survey")
    answer = await asyncio.wait_for(asking, timeout_s)
    return None if answer is None else Survey.of(answer["survey"])


async def ask_store(scheduler: Any, name: str) -> StoreFigures:
    """Return the figures of one store. Raise ClusterLost if there is none, or no answer."""
    try:
        found = await ask_survey(scheduler, _ANSWER_S)
    except TimeoutError:
        raise ClusterLost(f"the scheduler has not answered in {_ANSWER_S:g} s") from None
    except OSError as error:
        raise ClusterLost(f"the scheduler is gone: {error}") from error
    for one in () if found is None else found.stores:
        if one.store == name:
            return one
    raise ClusterLost(NO_STORE)


async def survey(scheduler: Scheduler, stores: Mapping[str, StripeMap]) -> Survey:
    """Ask all shards of all stores, in the scheduler's event loop."""
    found = await asyncio.gather(
        *(_store_of(scheduler, name, store) for name, store in list(stores.items()))
    )
    return Survey(str(scheduler.address), time.monotonic(), tuple(found))


async def _store_of(scheduler: Scheduler, name: str, store: StripeMap) -> StoreFigures:
    members = {**store.shards, **store.leaving}
    shards = await asyncio.gather(
        *(_shard_of(scheduler, shard, one.address) for shard, one in members.items())
    )
    return StoreFigures(
        store=name,
        page_size=store.page_size,
        replicas=store.options["replicas"],
        epoch=store.epoch,
        clients=len(store.clients),
        lost_stripes=len(store.lost),
        shards=(*shards, *_lost_of(store)),
    )


async def _shard_of(scheduler: Scheduler, shard: str, address: str) -> ShardFigures:
    state = scheduler.workers.get(address)
    name = "" if state is None else str(state.name)
    asking = getattr(scheduler.rpc(address), SHARD)(method="status", shard=shard, epoch=None)
    try:
        answer = await asyncio.wait_for(asking, _ASK_S)
    except TimeoutError:
        return ShardFigures(address, name, f"no answer in {_ASK_S:g} s")
    except Exception as error:  # noqa: BLE001 - mostly of the network
        return ShardFigures(address, name, f"no answer ({type(error).__name__}: {error})")
    if answer is None or answer["status"] != OK:
        return ShardFigures(address, name, "the worker no longer has the shard")
    counters = pickle.loads(answer["counters"])
    return ShardFigures(
        worker=address,
        name=name,
        trouble="",
        pid=answer["pid"],
        pages=answer["pages"],
        page_stores=answer["page_stores"],
        page_loads=answer["page_loads"],
        pool_bytes=counters.pool_total_size,
        pool_limit_bytes=answer["max_pool_bytes"],
        file_bytes=counters.backing_file_size,
        refusals=sum(getattr(counters, one) for one in _REFUSALS),
        moving=answer["moving"],
    )


def _lost_of(store: StripeMap) -> list[ShardFigures]:
    """Return figures of lost workers that had pages."""
    stripes: dict[tuple[str, str], int] = {}
    for lost in store.lost.values():
        stripes[lost.address, lost.reason] = stripes.get((lost.address, lost.reason), 0) + 1
    return [
        ShardFigures(address, "", f"lost ({reason}): pages of {count} stripes")
        for (address, reason), count in stripes.items()
    ]
