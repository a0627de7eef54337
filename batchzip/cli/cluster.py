"""`batchzip top --dask`: asking a scheduler for its sharded stores, and what is shown of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from distributed.core import rpc
from distributed.security import Security
from rich.console import Group
from rich.table import Table
from rich.text import Text

from batchzip.advice import amount
from batchzip.dask.survey import Survey, ask_survey
from batchzip.errors import ClusterLost

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchzip.dask.survey import ShardFigures, StoreFigures

_CONNECT_S = 5.0
_ANSWER_S = 15.0


class Cluster:
    """A scheduler, or one store of it, by address. There is no Client: it would have to be served.

    The certificate for tls:// is what Dask's settings say. Raises MissingExtra.
    """

    def __init__(self, address: str) -> None:
        self._address, _, self._store = address.partition("/batchzip/")
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def survey(self) -> Survey:
        """Ask how the stores stand. Raise ClusterLost where there is no scheduler, or none that answers."""
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
        except Exception as error:  # noqa: BLE001 - no address, no certificate, no connection, …
            why = str(error) or type(error).__name__
        else:
            stores = () if found is None else found.stores
            if self._store:
                stores = tuple(one for one in stores if one.store == self._store)
            taken_s = time.monotonic() if found is None else found.taken_s
            return Survey(self._address, taken_s, stores)
        raise ClusterLost(f"no Dask scheduler at {self._address}: {why}")


def cluster_screen(now: Survey, before: Survey | None, *, height: int | None) -> RenderableType:
    """Draw it; it has as many lines as there are shards."""
    quits = height is not None
    count = len(now.stores)
    stores = f"{count} sharded store{'s' if count > 1 else ''}" if count else "no sharded store"
    parts: list[RenderableType] = [
        Text(f"Dask scheduler {now.scheduler}: {stores}{'   q quits' if quits else ''}")
    ]
    for store in now.stores:
        parts += [Text(), *_summary(store), _shards(now, before, store)]
        parts += [
            Text(f"{_named(shard)}: {shard.trouble}", style="red")
            for shard in store.shards
            if shard.trouble
        ]
    return Group(*parts)


def _named(shard: ShardFigures) -> str:
    return shard.name or shard.worker


def _summary(store: StoreFigures) -> list[Text]:
    pages = sum(shard.pages for shard in store.shards)
    copies = "once" if store.replicas == 1 else f"{store.replicas} times"
    lines = [
        Text(f"store {store.store}"),
        Text(
            f"{pages:,} pages of {store.page_size:,} bytes, kept {copies}; "
            f"clients: {store.clients}, epoch: {store.epoch}"
        ),
    ]
    if store.lost_stripes:
        lines.append(Text(f"pages of {store.lost_stripes:,} stripes are lost", style="red"))
    return lines


def _shards(now: Survey, before: Survey | None, store: StoreFigures) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    well = [shard for shard in store.shards if not shard.trouble]
    headings = ["worker", "pages", "pool", "full", "on disk", "stored/s", "loaded/s"]
    seldom = {"refusals": "refused", "moving": "moving"}
    seldom = {key: name for key, name in seldom.items() if any(getattr(one, key) for one in well)}
    for heading in (*headings, *seldom.values()):
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for shard in well:
        rates = (now.rate(what, store, shard, before) for what in ("page_stores", "page_loads"))
        limit = shard.pool_limit_bytes
        table.add_row(
            Text(_named(shard)),
            f"{shard.pages:,}",
            amount(shard.pool_bytes),
            f"{shard.pool_bytes / limit:.0%}" if limit else "-",
            amount(shard.file_bytes),
            *("-" if rate is None else f"{rate:,.0f}" for rate in rates),
            *(f"{getattr(shard, key):,}" for key in seldom),
        )
    return table
