"""Place: one of a backend's workers: who has it now, how often starting one failed, what it did.

Written by the supervisor's thread only; others read it, and look at each field once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from batchzip.statistics import WorkerStatistics
from batchzip_workers.layout import BUSY_NS, BYTES_IN, BYTES_OUT, PAGES, SHARES, SLEEPS

if TYPE_CHECKING:
    from batchzip.statistics import Tally
    from batchzip_workers.launch import Process

START_ATTEMPTS = 3
"""Starts of one worker in a row that end before it is ready, until nobody waits for it any more."""

FIRST_RETRY_S, LAST_RETRY_S = 0.05, 5.0
"""Seconds before such an attempt, doubled each time: what a worker lacks, memory or a process limit,
may be short for a moment or for long, and a worker that cannot start shall cost no more than a few
percent of a CPU."""


class WorkerRing(Protocol):
    """What a supervisor knows of a worker's ring."""

    @property
    def ready(self) -> bool:
        """Whether the worker takes descriptors."""

    @property
    def was_ready(self) -> bool:
        """Whether the worker ever took descriptors, dead or not."""

    def set_sentinel(self, fd: int) -> None:
        """Watch a descriptor that becomes readable when the worker dies; it is not kept."""

    def stop_worker(self) -> None:
        """Tell the worker to exit once it has done what is posted."""

    def mark_dead(self) -> None:
        """Note that the worker is dead: nobody waits for it any more."""

    def figures(self) -> list[int]:
        """Read what the worker counted so far."""

    def close(self) -> None:
        """Release everything, now or when nobody uses it any more."""


RingT = TypeVar("RingT", bound=WorkerRing)


class Attempts:
    """How often in a row something could not be started, and when to try again."""

    def __init__(self) -> None:
        self.failed = 0
        self.retry_at = 0.0

    def note_failure(self) -> None:
        """Count an attempt that failed, and put off the next one."""
        delay = min(FIRST_RETRY_S * 2**self.failed, LAST_RETRY_S)
        self.failed += 1
        self.retry_at = time.monotonic() + delay

    @property
    def due(self) -> bool:
        """Whether it is time to try."""
        return self.retry_at <= time.monotonic()

    @property
    def failing(self) -> bool:
        """Whether it failed so often that nobody should wait for it."""
        return self.failed >= START_ATTEMPTS


class Place(Generic[RingT]):
    """The place of the `number`-th worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.ring: RingT | None = None
        self.starts = Attempts()
        self.ready_by: float | None = None
        """When it is killed unless it is ready; None once it was seen to be."""

    @property
    def failing(self) -> bool:
        """Whether it could not be started so often that nobody should wait for it."""
        ring = self.ring
        return self.starts.failing and (ring is None or not ring.was_ready)

    def note_ready(self) -> None:
        """See whether it is ready, and need not be watched for that any more."""
        if self.ring is not None and self.ring.was_ready:
            self.ready_by = None

    def statistics(self) -> WorkerStatistics | None:
        """Tell what the worker that runs now did, if there is one."""
        process, ring = self.process, self.ring
        if process is None or ring is None:
            return None
        figures = ring.figures()

        def both(first: int) -> int:
            return sum(figures[first - SHARES : first - SHARES + 2])

        return WorkerStatistics(
            pid=process.pid,
            shares=figures[0],
            sleeps=figures[SLEEPS - SHARES],
            busy_s=figures[BUSY_NS - SHARES] * 1e-9,
            pages=both(PAGES),
            bytes_in=both(BYTES_IN),
            bytes_out=both(BYTES_OUT),
        )


def add_figures(tally: Tally, figures: list[int], operation: int) -> None:
    """Add what a worker did of one operation, by its ring's figures."""
    tally.pages += figures[PAGES - SHARES + operation]
    tally.bytes_in += figures[BYTES_IN - SHARES + operation]
    tally.bytes_out += figures[BYTES_OUT - SHARES + operation]
