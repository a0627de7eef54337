"""ShardService: the shards of one worker, and their leases.

    Worker.handlers["batchzip_shard"] ──▶ ShardService ──▶ Shard (one for each store)

It runs in the worker's event loop, where it only answers; pages are compressed in threads of its own, so that
what is asked for meanwhile is answered. It is placed there by the directory, and closed with the worker: what
its shards have is moved to others before, as far as the worker's end gives it time.

Rejected: an actor. Dask calls its methods one after the other, in one thread, so that a page is loaded after all
that was stored before; and it refuses to retire a worker that has one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

from batchzip.dask.shard import Shard
from batchzip.dask.wire import DIRECTORY, GONE, OK, SHARD, STALE, Answer, Stale, failed
from batchzip.dask.worker_end import end_with
from batchzip.errors import BatchzipError, ClosedError, ClusterLost

if TYPE_CHECKING:
    from distributed import Worker

_LOG = logging.getLogger("batchzip.dask")

_THREADS = 2
"""Threads that compress: one more than needed to have the next folio begin while one ends."""

_RENEW_S = 0.5
"""Seconds after which leases are renewed."""

_ASK_S = 5.0
"""Seconds that the directory has for an answer."""

_KNOWN_S = 60.0
"""Seconds after which the directory has told a shard of itself, or never will."""

_LEAVE_S = 3.0
"""Seconds to move pages away when the worker ends without having been retired: a nanny kills it after four."""


class ShardService:
    """All shards of a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.address: str = worker.address
        self.shards: dict[str, Shard] = {}
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="batchzip-shard")
        self._renewing: asyncio.Task[None] | None = None
        self._renewed = asyncio.Lock()
        self._renewals = 0
        self._closing = False

    async def handle(self, method: str, shard: str, **arguments: Any) -> Answer:
        """Answer a client, another shard, or the directory."""
        try:
            if method == "open":
                answer = await self._open(shard, **arguments)
            elif shard not in self.shards:
                answer = {"status": GONE}
            elif method == "close":
                answer = await self._close(shard)
            else:
                answer = await getattr(self.shards[shard], method)(**arguments)
        except Stale:
            answer = {"status": STALE}
        except BatchzipError as error:
            # Of one that was closed meanwhile, nothing else is to be said.
            answer = {"status": GONE} if isinstance(error, ClosedError) else failed(error)
        except Exception as error:  # noqa: BLE001 - it is logged, and told to whoever asked
            _LOG.exception("A shard failed to %s", method)
            answer = failed(
                BatchzipError(f"worker {self.address}: {type(error).__name__}: {error}")
            )
        return answer

    async def _open(self, shard: str, store: str, options: bytes) -> Answer:
        self._check_open()
        others = [one.pages for one in self.shards.values()]
        made = await asyncio.get_running_loop().run_in_executor(
            self.threads,
            lambda: Shard(self, shard, store, others=others, **pickle.loads(options)),
        )
        try:
            self._check_open()
        except ClusterLost:
            made.close()
            raise
        self.shards[shard] = made
        if self._renewing is None:
            self._renewing = asyncio.ensure_future(self._renew_often())
        return {"status": OK, "page_size": made.page_size}

    def _check_open(self) -> None:
        if self._closing or not end_with(self.worker, self):
            raise ClusterLost(f"worker {self.address} is closing")

    async def _close(self, shard: str) -> Answer:
        made = self.shards.pop(shard)
        made.end()
        # In a thread: what is under way there ends first.
        await asyncio.get_running_loop().run_in_executor(None, made.close)
        return {"status": OK}

    async def ask(self, address: str, shard: str, method: str, **arguments: Any) -> Answer:
        """Ask another worker's shard."""
        worker: Any = self.worker.rpc(address)
        answer = await getattr(worker, SHARD)(method=method, shard=shard, **arguments)
        return {"status": GONE} if answer is None else answer

    async def ask_directory(
        self, method: str, within_s: float = _ASK_S, **arguments: Any
    ) -> Answer:
        """Ask the directory."""
        scheduler: Any = self.worker.scheduler
        question = getattr(scheduler, DIRECTORY)(method=method, **arguments)
        answer = await asyncio.wait_for(question, within_s)
        return {"status": GONE} if answer is None else answer

    async def renew(self, asking: str = "") -> None:
        """Renew the leases, and learn what is new. Raise Stale if the directory does not answer.

        A shard that was just made is not yet known there, unless it is `asking`, as it was asked for a page.
        """
        seen = self._renewals
        async with self._renewed:
            if self._renewals != seen:
                return  # another request did, while this one waited
            begun = time.monotonic()
            known: list[tuple[str, str, int]] = [
                (one.store_name, name, one.epoch)
                for name, one in self.shards.items()
                if one.epoch or name == asking or begun > one.made + _KNOWN_S
            ]
            try:
                answer = await self.ask_directory("renew", address=self.address, shards=known)
            except Exception as error:
                raise Stale from error
            gone = {"status": GONE}
            news = answer["news"] if answer["status"] == OK else {}
            ended = [name for _, name, _ in known if news.get(name, gone)["status"] == GONE]
            for name in ended:  # all of them, before anything is waited for
                if name in self.shards:
                    self.shards[name].end()
            for name, new in news.items():
                if new["status"] == OK and name in self.shards:
                    self.shards[name].lease_until = begun + answer["lease_s"]
                    self.shards[name].learn(new)
            self._renewals += 1
        for name in ended:  # which takes as long as what is under way there
            if name in self.shards:
                await self._close(name)

    async def _renew_often(self) -> None:
        while self.shards:
            try:
                await self.renew()
            except Stale:
                pass
            except Exception:  # noqa: BLE001 - the leases of others do not end with one shard's trouble
                _LOG.exception("Failed to close a shard")
            await asyncio.sleep(_RENEW_S)
        self._renewing = None

    async def close(self) -> None:
        """End with the worker: give away what the shards have, then release it."""
        self._closing = True
        if self.shards:
            with suppress(Exception):
                await self.ask_directory(
                    "leave", _LEAVE_S + 1, address=self.address, timeout_s=_LEAVE_S
                )
        if self._renewing is not None:
            self._renewing.cancel()
        for shard in list(self.shards.values()):
            shard.end()
            shard.close()
        self.shards.clear()
        self.threads.shutdown(wait=False)


def install(dask_worker: Worker) -> None:
    """Have a worker answer what shards are asked; runs there, and does nothing the second time."""
    handler = dask_worker.handlers.get(SHARD)
    if handler is None:
        dask_worker.handlers[SHARD] = ShardService(dask_worker).handle
