"""`batchzip top --dask`: ask a scheduler for its sharded stores, and show them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from distributed.core import rpc
from distributed.security import Security

from batchzip.cli.look import Column, Look, Section, name_column
from batchzip.dask.survey import Survey, ask_survey
from batchzip.errors import ClusterLost
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from batchzip.cli.look import Row
    from batchzip.dask.survey import ShardFigures

_CONNECT_S = 5.0
_ANSWER_S = 15.0


class Cluster:
    """A scheduler, or one of its stores, by address.

    The certificate for tls:// comes from Dask's configuration. Rejected: a Client, because it needs
    an event loop of its own.
    """

    def __init__(self, address: str) -> None:
        self._address, _, self._store = address.partition("/batchzip/")
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def survey(self) -> Survey:
        """Ask for the figures of the stores. Raise ClusterLost if no scheduler answers."""
        return self._runner.run(self._survey())

    async def _survey(self) -> Survey:
        try:
            arguments = Security().get_connection_args("client")
            async with rpc(
                self._address, timeout=_CONNECT_S, connection_args=arguments
            ) as scheduler:
                found = await ask_survey(scheduler, _ANSWER_S)
        except TimeoutError:
            why = f"no answer in {_ANSWER_S:g} s"
        except Exception as error:  # noqa: BLE001 - bad address, no certificate, no connection, …
            why = str(error) or type(error).__name__
        else:
            stores = () if found is None else found.stores
            if self._store:
                stores = tuple(one for one in stores if one.store == self._store)
            taken_s = time.monotonic() if found is None else found.taken_s
            return Survey(self._address, taken_s, stores)
        raise ClusterLost(f"no Dask scheduler at {self._address}: {why}")


def cluster_look(now: Survey, before: Survey | None) -> Look:
    """Return a look at `now`. Rates are those since `before`."""
    count = len(now.stores)
    what = f"{count} sharded store{'s' if count > 1 else ''}" if count else "no sharded store"
    facts, warnings = [], []
    for store in now.stores:
        pages = sum(shard.pages for shard in store.shards)
        copies = "once" if store.replicas == 1 else f"{store.replicas} times"
        state = (
            f"{pages:,} pages of {store.page_size:,} bytes, kept {copies}; clients: "
            f"{store.clients}, epoch: {store.epoch}"
        )
        facts += [("store", store.store), ("", state)]
        if store.lost_stripes:
            warnings.append(f"pages of {store.lost_stripes:,} stripes are lost")
        warnings += [f"{_name(one)}: {one.trouble}" for one in store.shards if one.trouble]
    title = f"Dask scheduler {now.scheduler}: {what}"
    shards = _shards(now, before)
    return Look(title, facts, warnings, [shards] if shards.rows else [])


def _name(shard: ShardFigures) -> str:
    return shard.name or shard.worker


def _shards(now: Survey, before: Survey | None) -> Section:
    """Return a line per shard that answers. The store's name is shown only if there are several."""
    several = len(now.stores) > 1
    well = [(store, shard) for store in now.stores for shard in store.shards if not shard.trouble]
    seldom = [
        (key, heading)
        for key, heading in (("refusals", "refused"), ("moving", "moving"))
        if any(getattr(shard, key) for _, shard in well)
    ]
    columns = (
        name_column("worker"),
        *[Column("store", str, rank=5, left=True)] * several,
        Column("pages", rank=0),
        Column("pool", size_text, rank=2),
        Column("full", _share, rank=1),
        Column("on disk", size_text, rank=4),
        Column("stored/s", rank=3),
        Column("loaded/s", rank=3),
        *(Column(heading, rank=1) for _, heading in seldom),
    )
    rows: list[Row] = [
        (
            _name(shard),
            *[store.store] * several,
            shard.pages,
            shard.pool_bytes,
            shard.pool_bytes / shard.pool_limit_bytes if shard.pool_limit_bytes else None,
            shard.file_bytes,
            now.rate("page_stores", store, shard, before),
            now.rate("page_loads", store, shard, before),
            *(getattr(shard, key) for key, _ in seldom),
        )
        for store, shard in well
    ]
    return Section("Shards", columns, rows)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
