"""WorkerSlot: the slot of one worker: its current process and ring, failed starts, and figures.

Only the supervisor's thread writes to it. Other threads read each field once.
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
"""Failed starts of one worker in a row after which callers no longer wait for it."""

FIRST_RETRY_S, LAST_RETRY_S = 0.05, 5.0
"""Shortest and longest delay before another start, in seconds; doubled each time. A shortage of
memory or processes may be short or long, and a worker that cannot start must cost little
CPU time."""


class Attempts:
    """Counts failed starts in a row, and decides when to try again."""

    def __init__(self) -> None:
        self.failed = 0
        self.retry_at = 0.0

    def note_failure(self) -> None:
        """Count a failed attempt, and delay the next one."""
        delay = min(FIRST_RETRY_S * 2**self.failed, LAST_RETRY_S)
        self.failed += 1
        self.retry_at = time.monotonic() + delay

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return self.retry_at <= time.monotonic()

    @property
    def failing(self) -> bool:
        """Whether it failed so often that callers should not wait for it."""
        return self.failed >= START_ATTEMPTS


class WorkerSlot:
    """The slot of the `number`-th worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.ring: WorkerRing | None = None
        self.starts = Attempts()
        self.must_prove = False
        """Whether its predecessors ended at their first share, so that `ready` is not enough."""
        self.ready_by: float | None = None
        """Time at which it is killed unless it is ready. None: it is ready."""

    @property
    def failing(self) -> bool:
        """Whether its start failed so often that callers should not wait for it."""
        return self.starts.failing and not self._is_up()

    def _is_up(self) -> bool:
        ring = self.ring
        if ring is None or not ring.ready:
            return False
        return not (self.starts.failing and self.must_prove) or ring.did_pages

    @property
    def works(self) -> bool:
        """Whether its worker takes work and is alive. An end counts even before it is reaped."""
        process, ring = self.process, self.ring
        if process is None or ring is None or ring.core.dead or not self._is_up():
            return False
        return not process.ended

    def note_ready(self) -> None:
        """Clear `ready_by` if the worker is ready."""
        if self.ring is not None and self.ring.ready:
            self.ready_by = None

    def statistics(self) -> WorkerStatistics | None:
        """Return the figures of the running worker, or None if there is none."""
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
    """Return the pages and bytes of one operation from a worker's figures."""
    kind = ("compressed", "restored")[operation]
    return Counter({name: figures[f"{kind}_{name}"] for name in ("pages", "bytes_in", "bytes_out")})
