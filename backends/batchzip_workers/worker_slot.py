"""Place: one of a backend's workers: who has it now, how often starting one failed, what it did.

Written by the supervisor's thread only; others read it, and look at each field once.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from batchzip.statistics import WorkerStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchzip_workers.launch import Process
    from batchzip_workers.ring import WorkerRing

START_ATTEMPTS = 3
"""Starts of one worker in a row that end before it is ready, until nobody waits for it any more."""

FIRST_RETRY_S, LAST_RETRY_S = 0.05, 5.0
"""Seconds before such an attempt, doubled each time: what a worker lacks, memory or a process limit,
may be short for a moment or for long, and a worker that cannot start shall cost no more than a few
percent of a CPU."""


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


class WorkerSlot:
    """The place of the `number`-th worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.ring: WorkerRing | None = None
        self.starts = Attempts()
        self.must_prove = False
        """Whether those before ended themselves at their first share: being ready is not enough then."""
        self.ready_by: float | None = None
        """When it is killed unless it is ready; None once it was seen to be."""

    @property
    def failing(self) -> bool:
        """Whether it could not be started so often that nobody should wait for it."""
        return self.starts.failing and not self._is_up()

    def _is_up(self) -> bool:
        ring = self.ring
        if ring is None or not ring.ready:
            return False
        return not (self.starts.failing and self.must_prove) or ring.did_pages

    @property
    def works(self) -> bool:
        """Whether its worker takes work, and is alive: also where nobody has noticed its end yet."""
        process, ring = self.process, self.ring
        if process is None or ring is None or ring.core.dead or not self._is_up():
            return False
        return not process.ended

    def note_ready(self) -> None:
        """See whether it is ready, and need not be watched for that any more."""
        if self.ring is not None and self.ring.ready:
            self.ready_by = None

    def statistics(self) -> WorkerStatistics | None:
        """Tell what the worker that runs now did, if there is one."""
        process, ring = self.process, self.ring
        if process is None or ring is None:
            return None
        figures = ring.figures()
        restored = worked(figures, 1)
        return WorkerStatistics(
            pid=process.pid,
            shares=figures["shares"],
            sleeps=figures["sleeps"],
            busy_s=figures["busy_ns"] * 1e-9,
            **{name: count + restored[name] for name, count in worked(figures, 0).items()},
        )


def worked(figures: Mapping[str, int], operation: int) -> Counter[str]:
    """Return the pages and bytes of one operation, of a worker's figures."""
    kind = ("compressed", "restored")[operation]
    return Counter({name: figures[f"{kind}_{name}"] for name in ("pages", "bytes_in", "bytes_out")})
