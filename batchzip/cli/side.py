"""Side: one engine with its store in a round trip, timed, and the CPU time of its workers."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments.buffers import as_view
from batchzip.errors import CorruptPage, PageNotStored, StoreRejected
from batchzip.system.processes import process_stat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from batchzip import Engine, SwapStore
    from batchzip.arguments.buffers import Buffer

    Pages = NDArray[np.uint8]
    """(n, page_size)"""


@dataclass(slots=True)
class Side:
    """One engine with its store, and the outcome of the pages given to it.

    `lanes` are threads or worker processes besides the caller. Durations are in seconds.
    `own_cpu_s` is the time of this process with its threads during store() and load().
    `worker_cpu_s` is the time of the worker processes from start to end, including their waiting.
    """

    name: str
    engine: Engine
    store: SwapStore
    lanes: int
    kept: list[NDArray[np.bool_]] = field(default_factory=list)
    rejected_folios: Counter[str] = field(default_factory=Counter)
    offered_pages: int = 0
    rejected_pages: int = 0
    store_s: float = 0.0
    load_s: float = 0.0
    loaded_pages: int = 0
    single_load_ns: list[int] = field(default_factory=list)
    own_cpu_s: float = 0.0
    worker_cpu_s: float = 0.0
    differing: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def store_folios(self, folios: Sequence[tuple[int, Pages]]) -> None:
        """Store each (index, pages), all or nothing. Count rejected folios by reason."""
        kept = []
        cpu, wall = time.process_time(), time.perf_counter()
        for index, pages in folios:
            try:
                self.store.store(index, pages)
            except StoreRejected as rejection:
                self.rejected_folios[rejection.reason] += 1
                self.rejected_pages += len(pages)
                kept.append(False)
            else:
                kept.append(True)
        self.store_s += time.perf_counter() - wall
        self.own_cpu_s += time.process_time() - cpu
        sizes = [len(pages) for _, pages in folios]
        self.offered_pages += sum(sizes)
        self.kept.append(np.repeat(np.array(kept, np.bool_), sizes))

    def load_singly(self, indices: NDArray[np.int64]) -> tuple[Pages, dict[int, str]]:
        """Load page by page, and time each load. Return the pages, and failures by row."""
        wanted = indices.tolist()
        got: list[Buffer | CorruptPage | PageNotStored] = []
        durations = []
        clock, load = time.perf_counter_ns, self.store.load
        cpu = time.process_time()
        for index in wanted:
            start = clock()
            try:
                got.append(load(index))
            except (CorruptPage, PageNotStored) as error:
                got.append(error)
            durations.append(clock() - start)
        self.own_cpu_s += time.process_time() - cpu
        self.single_load_ns += durations
        out = np.zeros((len(wanted), self.engine.page_size), np.uint8)
        failed = {}
        for row, page in enumerate(got):
            if isinstance(page, (CorruptPage, PageNotStored)):
                failed[row] = str(page)
            elif len(view := as_view(page, "page")) != len(out[row]):
                failed[row] = f"{len(view)} bytes came back instead of {len(out[row])}"
            else:
                out[row] = view
        return out, failed

    def load_in_batches(
        self, indices: NDArray[np.int64], batch: int, out: Pages
    ) -> tuple[Pages, dict[int, str]]:
        """Load into `out`, `batch` pages at a time. Return its used part, and failures by row."""
        count = len(indices)
        parts = [(first, indices[first : first + batch]) for first in range(0, count, batch)]
        broken = []
        cpu, wall = time.process_time(), time.perf_counter()
        for first, part in parts:
            try:
                self.store.load_many(part, out=out[first : first + len(part)])
            except (CorruptPage, PageNotStored):
                broken.append((first, part))
        self.load_s += time.perf_counter() - wall
        self.own_cpu_s += time.process_time() - cpu
        self.loaded_pages += count
        failed = {}
        for first, part in broken:  # one bad page must not hide the others of its batch
            for row, index in enumerate(part.tolist(), start=first):
                try:
                    out[row] = as_view(self.store.load(index), "page")
                except (CorruptPage, PageNotStored) as error:
                    failed[row] = str(error)
        return out[:count], failed


class WorkerCpu:
    """CPU seconds of worker processes since this object was made.

    A worker that died counts with its last known time.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = {pid: _cpu_s(pid) or 0.0 for pid in pids}
        self._now = dict(self._before)

    def spent_s(self, pids: Sequence[int]) -> float:
        """Read the times of the current workers. Return the sum since the beginning."""
        for pid in pids:
            now = _cpu_s(pid)
            if now is not None:
                self._now[pid] = now
        return sum(self._now.values()) - sum(self._before.values())


def _cpu_s(pid: int) -> float | None:
    """Return the user and system time of a process with all its threads, or None if it ended."""
    try:
        _, fields = process_stat(pid)
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
