"""ClusterConnection: the connection to a Dask scheduler, and the questions that it answers.

A client of the caller is used and stays open. A client made for an address is closed here. Apart
from `open`, `close`, `check_workers`, `threads` and `wait_for_worker`, nothing here waits for an
answer. A callback receives the answer in the thread of the client's event loop, so that the asking
thread can wait for several answers at once.
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
"""Seconds that workers have to report what they lack. Failing batches wait meanwhile."""

_CLOSE_S = 5.0
"""Seconds that the client's event loop has to end its pending calls."""


class ClusterConnection:
    """A Dask cluster, given by a client or by the scheduler's address. Thread-safe."""

    def __init__(self, cluster: str | Client | None, *, connect_timeout_s: float) -> None:
        if cluster is None:
            cluster = _current()
        if not isinstance(cluster, (str, Client)):
            raise BadArgument(
                "cluster must be a distributed.Client or a scheduler's address, "
                f"not {shown(cluster)}"
            )
        if isinstance(cluster, Client) and cluster.asynchronous:
            raise BadArgument(
                "threads cannot wait for an asynchronous Client: pass one made with "
                "asynchronous=False, or the scheduler's address"
            )
        self._given = cluster
        self._connect_timeout_s = connect_timeout_s
        self._close_client: Callable[[], object] = lambda: None
        """Closes the client if it was made here."""
        self._waiting: set[Future[None]] = set()
        self._lock = threading.RLock()  # a finalizer may call in again

    def open(self) -> None:
        """Connect. Raise BackendUnavailable if no scheduler answers."""
        if isinstance(self._given, Client):
            self.client = self._given
            self.check()
            return
        try:
            self.client = OwnClient(
                self._given, timeout=self._connect_timeout_s, direct_to_workers=True
            )
        except Exception as error:  # noqa: BLE001 - bad address, certificate, version, …
            raise BackendUnavailable(f"no Dask scheduler at {self._given}: {error}") from None
        # This also runs at the interpreter's exit, while there is still an event loop to close it.
        self._close_client = weakref.finalize(self, _close_here, self.client, os.getpid())

    @property
    def address(self) -> str:
        """Return the scheduler's address."""
        scheduler = self.client.scheduler
        return self._given if isinstance(self._given, str) else str(scheduler and scheduler.address)

    @property
    def is_connected(self) -> bool:
        """Return whether the scheduler is connected."""
        return self.client.status == "running"

    def check(self) -> None:
        """Raise ClusterLost unless the scheduler is connected."""
        if not self.is_connected:
            raise ClusterLost(
                f"the Dask scheduler at {self.address} is gone (the client is {self.client.status})"
            )

    def named(self, error: BaseException) -> BatchzipError:
        """Return the error to raise for a failed task. Tasks do not fail where batchzip runs."""
        if isinstance(error, BatchzipError):
            return error
        unavailable = BackendUnavailable(
            f"a worker of the cluster at {self.address} cannot run its task: {shown(error)}"
        )
        unavailable.__cause__ = error
        return unavailable

    def hand_out(self, share: TaskPages, tell: Tell) -> Callable[[], None]:
        """Submit a task. `tell` is called with its outcome, or with the reason why there is none.

        Return a function that drops the task: `tell` is not called any more, and the task does not
        run if no worker has begun it.
        """
        try:
            future: Any = self.client.submit(
                as_task(share), key=f"batchzip-{uuid.uuid4().hex}", pure=False
            )
        except Exception as error:
            self.check()
            raise self.named(error) from error
        # Rejected: Client.gather. If it is cancelled, it leaves tasks behind that log complaints.
        waiting = self._ask(future._result(), tell)  # noqa: SLF001

        def drop() -> None:
            waiting.cancel()
            future.release()

        return drop

    def count_threads(self, tell: Callable[[int | None], object]) -> None:
        """Ask for the number of all workers' threads. `tell` gets None without a scheduler."""

        async def count() -> int:
            scheduler: Any = self.client.scheduler  # its methods are made as they are called
            threads: dict[str, int] = await scheduler.ncores()
            return sum(threads.values())

        def told(answer: int | BaseException) -> None:
            tell(answer if isinstance(answer, int) else None)

        self._ask(count(), told)

    def ask_workers(self, tell: Callable[[BackendUnavailable | None], object]) -> None:
        """Ask all workers whether they can run batchzip. `tell` gets an error, or None."""

        def told(answer: BaseException | None) -> None:
            tell(answer if isinstance(answer, BackendUnavailable) else None)

        self._ask(acheck_workers(self.client, timeout_s=_WORKERS_S, must_answer=False), told)

    def check_workers(self) -> None:
        """Raise BackendUnavailable if a current worker cannot run batchzip."""
        check_workers(self.client, timeout_s=self._connect_timeout_s, must_answer=False)

    def threads(self) -> int:
        """Return the number of all workers' threads. Raise BackendUnavailable without an answer."""
        try:
            return sum(self.client.nthreads().values())
        except Exception as error:  # noqa: BLE001 - a closing client raises anything
            raise BackendUnavailable(
                f"the Dask scheduler at {self.address} does not answer: {error}"
            ) from None

    def wait_for_worker(self, timeout_s: float) -> bool:
        """Wait until there is a worker. Return whether there is one."""
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
            except BaseException as error:  # noqa: BLE001 - whoever asked is told
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
        """Cancel all questions, and close the client if it was made here."""
        with self._lock:
            waiting = list(self._waiting)
        for one in waiting:
            one.cancel()
        self._close_client()


def pickled(codec: Codec) -> bytes:
    """Pickle a codec as Dask would. Raise BadArgument if that fails."""
    try:
        dumped: bytes = pickle.dumps(codec)
    except Exception as error:
        raise BadArgument(f"{codec} cannot be pickled for workers: {error}") from error
    return dumped


def _close_here(client: Client, pid: int) -> None:
    """Close a client in the process that made it. A forked child has no event loop to do so."""
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
