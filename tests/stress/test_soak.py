"""A soak: mixed batches from several threads while workers are killed and stopped at random."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
from stress.load import KINDS, Load, assert_all_slots_are_free

from batchzip import Engine
from batchzip_workers import supervisor as supervisor_module
from batchzip.lanes import watch

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 4
MOST_PAGES = 1024


class Soak:
    """Batches until there were so many, and so many seconds are over."""

    def __init__(self, engines: list[Engine], batches: int, seconds: float) -> None:
        self._engines = engines
        self._loads = [Load(engine.codec, 2 * MOST_PAGES) for engine in engines]
        self._left = batches
        self._until = time.monotonic() + seconds
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.batches = self.kills = self.stops = self.expired_pages = 0
        self.failures: list[BaseException] = []

    def run(self) -> None:
        chaos = threading.Thread(target=self._do_harm, name="chaos")
        workers = [threading.Thread(target=self._work, args=(seed,)) for seed in range(THREADS)]
        chaos.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._over.set()
        chaos.join()

    def _take_one(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0 or time.monotonic() < self._until

    def _work(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not self.failures and self._take_one():
                self._do_one(rng)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self.failures.append(error)

    def _do_one(self, rng: np.random.Generator) -> None:
        which = rng.integers(len(self._engines))
        kind = KINDS[rng.integers(len(KINDS))]
        count = int(2 ** rng.uniform(1, 10))
        start = int(rng.integers(2 * MOST_PAGES - count))
        deadline_s = None
        if kind.submitted and rng.random() < 0.5:
            deadline_s = 10 ** rng.uniform(-4, 0)
        expired = self._loads[which].run(self._engines[which], kind, start, count, deadline_s)
        with self._lock:
            self.batches += 1
            self.expired_pages += expired

    def _victims(self, engine: Engine, rng: np.random.Generator) -> list[int]:
        """Workers to harm: seldom ones that are starting, as the next try is put off each time."""
        if rng.random() < 0.05:
            return list(engine.worker_pids)
        return [worker.pid for worker in engine.statistics.workers if worker.shares]

    def _do_harm(self) -> None:
        rng = np.random.default_rng(99)
        while not self._over.wait(rng.exponential(0.015)):
            pids = self._victims(self._engines[rng.integers(len(self._engines))], rng)
            if pids:
                stop = rng.random() < 0.25
                with contextlib.suppress(ProcessLookupError):
                    os.kill(
                        pids[rng.integers(len(pids))], signal.SIGSTOP if stop else signal.SIGKILL
                    )
                    self.stops += stop
                    self.kills += not stop


@pytest.mark.filterwarnings("ignore::batchzip.WorkerWarning")  # some die while they start
@pytest.mark.parametrize(
    "batches", [pytest.param(150), pytest.param(1000, marks=pytest.mark.stress, id="stress")]
)
def test_no_result_is_wrong_while_workers_are_killed_and_stopped(
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    report: Callable[[str], None],
) -> None:
    monkeypatch.setattr(watch, "HANG_S", 0.3)
    monkeypatch.setattr(supervisor_module, "START_S", 3.0)
    seconds = 0.0 if batches < 1000 else pytestconfig.getoption("--stress-s")
    with ExitStack() as stack:
        engines = [
            stack.enter_context(engine)
            for engine in (
                Engine("lz4", backend="workers", workers=2),
                Engine("zstd", level=1, backend="workers", workers=1),
                Engine("lz4", backend="workers", workers=1, verify=True),
            )
        ]
        soak = Soak(engines, batches, seconds)
        soak.run()
        for failure in soak.failures:
            raise failure
        restarts = sum(engine.statistics.restarts for engine in engines)
        for engine in engines:
            assert_all_slots_are_free(engine)
    report(
        f"soak: {soak.batches} batches, {soak.kills} kills, {soak.stops} stops, {restarts} workers replaced, "
        f"{soak.expired_pages} pages past their deadline, 0 wrong"
    )
