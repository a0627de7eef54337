"""ShardService: the shards of one worker, and their leases.

    Worker.handlers["batchzip_shard"] ──▶ ShardService ──▶ Shard (one per store)

The service answers in the worker's event loop and compresses in threads of its own, so that the
event loop can answer other requests meanwhile. The directory installs it. It is closed with the
worker: the pages of its shards are first moved to other workers, as far as the time allows.

Rejected: a Dask actor. Dask calls an actor's methods one at a time in one thread, so a load would
wait for all earlier stores. Dask also refuses to retire a worker that has an actor.
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
"""Threads that compress. The second one begins the next folio while the first one ends."""

_RENEW_S = 0.5
"""Seconds between two renewals of the leases."""

_ASK_S = 5.0
"""Seconds that the directory has to answer."""

_KNOWN_S = 60.0
"""Seconds after which the directory knows a new shard, or never will."""

_LEAVE_S = 3.0
"""Seconds to move pages if the worker closes without being retired. A nanny kills it after 4 s."""


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
            # A shard that was closed meanwhile is simply gone.
            answer = {"status": GONE} if isinstance(error, ClosedError) else failed(error)
        except Exception as error:  # noqa: BLE001 - logged, and sent to whoever asked
            _LOG.exception("A shard failed to %s", method)
            answer = failed(
                BatchzipError(f"worker {self.address}: {type(error).__name__}: {error}")
            )
        return answer

    async def _open(self, shard: str, store: str, options: bytes) -> Answer:
        self._check_open()
        others = [one.pages for one in self.shards.values()]
        making = asyncio.get_running_loop().run_in_executor(
            self.threads,
            lambda: Shard(self, shard, store, others=others, **pickle.loads(options)),
        )
        try:
            made = await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_unused)
            raise
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
        # In a thread, because calls in progress must end first. Shielded, because nobody else would
        # close it if this task were cancelled.
        closing = asyncio.get_running_loop().run_in_executor(None, made.close)
        await asyncio.shield(closing)
        return {"status": OK}

    async def ask(self, address: str, shard: str, method: str, **arguments: Any) -> Answer:
        """Ask a shard of another worker."""
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

        The directory does not know a shard yet that was just made. Such a shard is left out, unless
        it is `asking`: a request for one of its pages shows that the directory knows it.
        """
        seen = self._renewals
        async with self._renewed:
            if self._renewals != seen:
                return  # another request renewed them while this one waited
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
            for name in ended:  # end all of them before waiting for anything
                if name in self.shards:
                    self.shards[name].end()
            for name, new in news.items():
                if new["status"] == OK and name in self.shards:
                    self.shards[name].lease_until = begun + answer["lease_s"]
                    self.shards[name].learn(new)
            self._renewals += 1
        for name in ended:  # takes until the calls in progress have ended
            if name in self.shards:
                await self._close(name)

    async def _renew_often(self) -> None:
        while self.shards:
            try:
                await self.renew()
            except Stale:
                pass
            except Exception:  # noqa: BLE001 - one shard must not end the others' leases
                _LOG.exception("Failed to close a shard")
            await asyncio.sleep(_RENEW_S)
        self._renewing = None

    async def close(self) -> None:
        """Move the pages of all shards away, then close the shards, as the worker closes."""
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


def _close_unused(making: asyncio.Future[Shard]) -> None:
    """Close a shard if it could be made."""
    if not making.cancelled() and making.exception() is None:
        making.result().close()


def install(dask_worker: Worker) -> None:
    """Install the service on a worker, in its process. Further calls do nothing."""
    handler = dask_worker.handlers.get(SHARD)
    if handler is None:
        dask_worker.handlers[SHARD] = ShardService(dask_worker).handle
