"""A connection to a Dask cluster whose scheduler and workers are the test."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

from batchzip import BackendUnavailable, ClusterLost
from batchzip_dask.connection import ClusterConnection
from batchzip_dask.task_pages import TaskPages, as_task

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 15.0
"""Seconds after which a test counts as hung."""


class Task:
    """A task on the cluster, which ends when the test says so."""

    def __init__(self, share: TaskPages, tell: Callable[[Any], object]) -> None:
        self.share = share
        self.tell = tell
        self.busy_s = 1e-4
        """The seconds that it says it took."""
        self.dropped = threading.Event()

    @property
    def pages(self) -> int:
        return len(self.share.lengths)

    def do(self) -> None:
        outcome = pickle.loads(pickle.dumps(as_task(self.share)))()
        self.tell(replace(outcome, busy_s=self.busy_s))


class PlainConnection(ClusterConnection):
    """A connection whose scheduler and workers are the test."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self.worker_threads = 1
        self.is_here = True
        self.answers = True
        self.closes = 0
        self.handed_out = 0
        self.lack: BackendUnavailable | None = None
        self.asked = 0
        """How often workers were asked what they lack."""
        self.error: Exception | None = None

    @property
    def address(self) -> str:
        return "plain://scheduler"

    @property
    def is_connected(self) -> bool:
        return self.is_here

    def check(self) -> None:
        if not self.is_here:
            raise ClusterLost("the scheduler is gone")

    def open(self) -> None:
        self.check()

    def check_workers(self) -> None:
        if self.lack is not None:
            raise self.lack

    def threads(self) -> int:
        return self.worker_threads

    def wait_for_worker(self, _: float) -> bool:
        return self.worker_threads > 0

    def hand_out(self, share: TaskPages, tell: Any) -> Callable[[], None]:
        if self.error is not None:
            raise self.error
        task = Task(share, tell)
        self.handed_out += 1
        self.tasks.put(task)
        return task.dropped.set

    def count_threads(self, tell: Callable[[int | None], object]) -> None:
        if self.answers:
            tell(self.worker_threads)

    def ask_workers(self, tell: Callable[[BackendUnavailable | None], object]) -> None:
        self.asked += 1
        tell(self.lack)

    def close(self) -> None:
        self.closes += 1

    def next(self) -> Task:
        """Return the next task that was handed out."""
        return self.tasks.get(timeout=LIMIT_S)

    def work(self, count: int) -> list[int]:
        """Do tasks until they had as many pages. Return how many each had."""
        done: list[int] = []
        while sum(done) < count:
            task = self.next()
            task.do()
            done.append(task.pages)
        return done
