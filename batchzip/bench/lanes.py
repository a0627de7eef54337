"""The cost of lanes when they help little: with batches of two pages, and without work.

A batch of two pages is the smallest that can be divided. "Awake" means that batches follow each
other without a pause, so that lanes still poll for work. "Asleep" means that lanes go to sleep in a
pause before each batch. The excess over `sequential` in the same run is the caller's cost of
deciding and handing over, minus the work that lanes took over.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import batchzip
from batchzip.bench.rounds import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batchzip import Engine
    from batchzip.bench.pages import Pages

BATCH_PAGES = 2

PAUSE_S = 0.02
"""Seconds of a pause: far longer than any lane polls for work."""

_AWAKE_BATCHES = 300
_WARM_UP = 50
"""Batches before the measurement, to wake the lanes and to let adaptive parts settle."""
_ASLEEP_BATCHES = 8


_CPUCLOCK_SCHED = 2
"""From the kernel's posix-timers.h: the clock of a process that the scheduler advances."""


@dataclass
class HandOver:
    """The times of one engine for batches of two pages, by state: "awake" or "asleep"."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"awake": [], "asleep": []})
    """Seconds until the caller had its result: the median of each round."""
    handed: dict[str, int] = field(default_factory=lambda: {"awake": 0, "asleep": 0})
    """Pages that lanes compressed."""
    pages: dict[str, int] = field(default_factory=lambda: {"awake": 0, "asleep": 0})
    """All pages that were compressed."""

    def share(self, state: str) -> float:
        """Return the share of the pages that lanes compressed."""
        return self.handed[state] / self.pages[state]


def hand_over(engines: dict[str, Engine], pages: Pages, rounds: int) -> dict[str, HandOver]:
    """Time batches of two pages on each engine, awake and asleep, in rounds."""
    found = {name: HandOver() for name in engines}
    batches = {name: _Batches(engine, pages) for name, engine in engines.items()}
    for turn, name in in_turns(engines, rounds):
        one, batch = found[name], batches[name]
        for state, pause, count in (
            ("awake", None, _AWAKE_BATCHES),
            ("asleep", PAUSE_S, _ASLEEP_BATCHES),
        ):
            if pause is None:
                batch.run(None, _WARM_UP)
            before = engines[name].statistics.compress
            seconds = batch.run(pause, count)
            after = engines[name].statistics.compress
            if turn:
                one.seconds[state].append(statistics.median(seconds))
                one.pages[state] += after.pages - before.pages
                inline = after.inline_pages - before.inline_pages
                one.handed[state] += after.pages - before.pages - inline
    return found


class _Batches:
    """Batches of two pages, which cycle through all pages."""

    def __init__(self, engine: Engine, pages: Pages) -> None:
        self._compress: Callable[[batchzip.CompressBatch], None] = engine.compress
        self._pages = pages
        self._batch = batchzip.CompressBatch(pages[:BATCH_PAGES])
        self._at = 0

    def run(self, pause_s: float | None, count: int) -> list[float]:
        """Compress `count` batches, each after a pause. Return the seconds of each batch."""
        clock, compress, batch = time.perf_counter, self._compress, self._batch
        found = []
        for _ in range(count):
            if pause_s is not None:
                time.sleep(pause_s)
            batch.refill(self._pages[self._at : self._at + BATCH_PAGES])
            self._at = (self._at + BATCH_PAGES) % (len(self._pages) - BATCH_PAGES)
            started = clock()
            compress(batch)
            found.append(clock() - started)
        return found


def idle(engines: Iterable[Engine], duration_s: float) -> dict[str, float]:
    """Sleep for `duration_s`. Return the CPU seconds of the owner and of all workers meanwhile."""
    groups = {
        "owner": [os.getpid()],
        "workers": [pid for engine in engines for pid in engine.worker_pids],
    }
    time.sleep(0.1)  # lanes stop polling and go to sleep
    before = {name: sum(map(cpu_seconds, pids)) for name, pids in groups.items()}
    time.sleep(duration_s)
    return {name: sum(map(cpu_seconds, pids)) - before[name] for name, pids in groups.items()}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process in seconds, including all threads.

    It is utime + stime of /proc/PID/stat, but from the clock of clock_getcpuclockid(3), which
    counts nanoseconds instead of ticks of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
