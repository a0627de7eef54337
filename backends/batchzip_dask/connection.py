"""Cluster: the connection to a Dask scheduler, and the few things that are asked of it.

A client that the caller made is used and left as it is; one made for an address is closed here. Nothing
here waits for an answer but `open` and `close`: answers are given to a callback, in the thread of the
client's event loop, so that whoever asked can wait for several things at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
import weakref
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import dask
from distributed import Client, default_client
from distributed.protocol import pickle
from distributed.scheduler import KilledWorker

from batchzip.dask.connect import OwnClient
from batchzip.dask.probe import acheck_workers, check_workers
from batchzip.errors import BackendUnavailable, BadArgument, BatchzipError, ClusterLost
from batchzip.wording import shown
from batchzip_dask.task_pages import as_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from batchzip.codecs import Codec
    from batchzip_dask.task_pages import Outcome, TaskPages

    Tell: TypeAlias = Callable[[Outcome | BaseException], object]

__all__ = ["CancelledError", "ClusterConnection", "KilledWorker"]

_WORKERS_S = 1.0
"""Seconds that workers have to say what they lack, while batches wait to fail."""

_CLOSE_S = 5.0
"""Seconds that the client's event loop has for ending what still waits there."""


class ClusterConnection:
    """A Dask cluster, by a client or by the scheduler's address. Thread-safe."""

    def __init__(self, cluster: str | Client | None, *, connect_timeout_s: float) -> None:
        if cluster is None:
            cluster = _current()
        if not isinstance(cluster, (str, Client)):
            raise BadArgument(
                f"a cluster is a distributed.Client or a scheduler's address, not {cluster!r}"
            )
        if isinstance(cluster, Client) and cluster.asynchronous:
            raise BadArgument(
                "an asynchronous Client cannot be waited for by threads: pass one made with "
                "asynchronous=False, or the scheduler's address"
            )
        self._given = cluster
        self._connect_timeout_s = connect_timeout_s
        self._close_client: Callable[[], object] = lambda: None
        """Closes the client that was made here."""
        self._waiting: set[Future[None]] = set()
        self._lock = threading.RLock()  # a finalizer may come here again

    def open(self) -> None:
        """Connect; raises BackendUnavailable where nobody answers."""
        if isinstance(self._given, Client):
            self.client = self._given
            self.check()
            return
        try:
            self.client = OwnClient(
                self._given, timeout=self._connect_timeout_s, direct_to_workers=True
            )
        except Exception as error:  # noqa: BLE001 - no address, no certificate, no such version, …
            raise BackendUnavailable(f"no Dask scheduler at {self._given}: {error}") from None
        # At the interpreter's exit, too: later there is no event loop that could do it.
        self._close_client = weakref.finalize(self, _close_here, self.client, os.getpid())

    @property
    def address(self) -> str:
        """The scheduler's address."""
        scheduler = self.client.scheduler
        return self._given if isinstance(self._given, str) else str(scheduler and scheduler.address)

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler is connected."""
        return self.client.status == "running"

    def check(self) -> None:
        """Raise ClusterLost unless the scheduler is connected."""
        if not self.is_connected:
            raise ClusterLost(
                f"the Dask scheduler at {self.address} is gone (the client is {self.client.status})"
            )

    def named(self, error: BaseException) -> BatchzipError:
        """Return what to raise where a share failed, as no share does where batchzip runs."""
        if isinstance(error, BatchzipError):
            return error
        unavailable = BackendUnavailable(
            f"a worker of the cluster at {self.address} cannot do a share: {shown(error)}"
        )
        unavailable.__cause__ = error
        return unavailable

    def hand_out(self, share: TaskPages, tell: Tell) -> Callable[[], None]:
        """Have a share done by some worker; `tell` is called with the outcome, or why there is none.

        What is returned drops the share: it is done no more if it was not begun, and nobody is told.
        """
        try:
            future: Any = self.client.submit(
                as_task(share), key=f"batchzip-{uuid.uuid4().hex}", pure=False
            )
        except Exception as error:
            self.check()
            raise self.named(error) from error
        # Not the client's gather: where that is cancelled, it leaves tasks behind, which complain.
        waiting = self._ask(future._result(), tell)  # noqa: SLF001

        def drop() -> None:
            waiting.cancel()
            future.release()

        return drop

    def count_threads(self, tell: Callable[[int | None], object]) -> None:
        """Have the threads of all workers counted; None is told where the scheduler is gone."""

        async def count() -> int:
            scheduler: Any = self.client.scheduler  # its methods are made as they are called
            threads: dict[str, int] = await scheduler.ncores()
            return sum(threads.values())

        def told(answer: int | BaseException) -> None:
            tell(answer if isinstance(answer, int) else None)

        self._ask(count(), told)

    def ask_workers(self, tell: Callable[[BackendUnavailable | None], object]) -> None:
        """Have all workers asked whether they can run batchzip; what is told names those that cannot."""

        def told(answer: BaseException | None) -> None:
            tell(answer if isinstance(answer, BackendUnavailable) else None)

        self._ask(acheck_workers(self.client, timeout_s=_WORKERS_S, must_answer=False), told)

    def check_workers(self) -> None:
        """Raise BackendUnavailable if a worker that is there now cannot run batchzip."""
        check_workers(self.client, timeout_s=self._connect_timeout_s, must_answer=False)

    def threads(self) -> int:
        """Count the threads of all workers now."""
        try:
            return sum(self.client.nthreads().values())
        except Exception as error:  # noqa: BLE001 - whatever a client raises whose scheduler is going
            raise BackendUnavailable(
                f"the Dask scheduler at {self.address} does not answer: {error}"
            ) from None

    def wait_for_worker(self, timeout_s: float) -> bool:
        """Wait until there is a worker; whether there is."""
        try:
            self.client.wait_for_workers(1, timeout=timeout_s)
        except TimeoutError:
            return False
        except Exception as error:
            self.check()
            raise self.named(error) from error
        return True

    def _ask(
        self, question: Coroutine[Any, Any, Any], tell: Callable[[Any], object]
    ) -> Future[None]:
        async def ask() -> None:
            try:
                answer = await question
            except asyncio.CancelledError as error:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr] # this is a task
                    raise
                answer = error
            except BaseException as error:  # noqa: BLE001 - told to who asked
                answer = error
            tell(answer)

        event_loop: Any = self.client.loop
        loop: asyncio.AbstractEventLoop = event_loop.asyncio_loop
        asking = ask()
        try:
            waiting = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:  # the loop is closed
            asking.close()
            question.close()
            raise ClusterLost(f"the client of {self.address} is closed") from None
        with self._lock:
            self._waiting.add(waiting)
        waiting.add_done_callback(self._forget)
        return waiting

    def _forget(self, waiting: Future[None]) -> None:
        with self._lock:
            self._waiting.discard(waiting)

    def close(self) -> None:
        """Ask nothing any more; close the client if it was made here."""
        with self._lock:
            waiting = list(self._waiting)
        for one in waiting:
            one.cancel()
        self._close_client()


def pickled(codec: Codec) -> bytes:
    """Pickle a codec as Dask would. Raise BadArgument where that cannot be done."""
    try:
        dumped: bytes = pickle.dumps(codec)
    except Exception as error:
        raise BadArgument(f"{codec} cannot be pickled for workers: {error}") from error
    return dumped


def _close_here(client: Client, pid: int) -> None:
    """Close a client in the process that made it: a forked child has no event loop to do it."""
    if os.getpid() == pid:
        client.close(timeout=_CLOSE_S)


def _current() -> Client | str:
    with suppress(ValueError):
        client: Client = default_client()
        return client
    address = dask.config.get("scheduler-address", None)
    if address is None:
        raise BackendUnavailable(
            "the dask backend needs a cluster: make a distributed.Client first, set "
            "DASK_SCHEDULER_ADDRESS, or pass backend=DaskBackend(client or address)"
        )
    return str(address)
