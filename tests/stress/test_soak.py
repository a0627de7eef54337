"""A soak: threads do mixed batches while workers are killed and stopped and engines come and go."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.batch_load import HANG_LIMIT_S, KINDS, PAGE, Load, assert_all_slots_are_free, blank

from batchzip import CompressBatch, Engine
from batchzip.lanes import LanesBackend, watch
from batchzip_workers import supervisor as supervisor_module

if TYPE_CHECKING:
    from support.reporting import Report

THREADS = 4
MOST_PAGES = 1024


MOST_GROWTH = {"descriptors": 40, "threads": 6, "KiB": 48 << 10}
"""How much more of each there may be in the second half of a soak than there was in the first.

Workers that are starting, rings of dead ones that a batch still looks at, and engines that come and
go make these go up and down; what is lost with each of hundreds of kills and engines is far more.
"""


def held() -> dict[str, int]:
    """Count what this process holds: descriptors, threads, and memory of its own and shared."""
    status = Path("/proc/self/status").read_text()
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),  # type: ignore[index]
        "KiB": int(re.search(r"VmRSS:\s+(\d+)", status)[1]),  # type: ignore[index]
    }


class Soak:
    """Batches until there were so many, and so many seconds are over."""

    def __init__(self, engines: list[Engine], batches: int, seconds: float, seed: int) -> None:
        self._seed = seed
        self._engines = engines
        self._loads = [Load(engine.codec, 2 * MOST_PAGES) for engine in engines]
        self._left = batches
        self._until = time.monotonic() + seconds
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.batches = self.kills = self.stops = self.expired_pages = 0
        self.cancelled = self.engines = 0
        self.samples: list[dict[str, int]] = []
        self.failures: list[BaseException] = []

    def run(self) -> None:
        chaos = threading.Thread(target=self._do_harm, name="chaos")
        comings = threading.Thread(target=self._come_and_go, name="comings and goings")
        workers = [threading.Thread(target=self._work, args=(seed,)) for seed in range(THREADS)]
        chaos.start()
        comings.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._over.set()
        chaos.join()
        comings.join()

    def _take_one(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0 or time.monotonic() < self._until

    def _work(self, seed: int) -> None:
        rng = np.random.default_rng((self._seed, seed))
        try:
            while not self.failures and self._take_one():
                self._do_one(rng)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self.failures.append(error)

    def _do_one(self, rng: np.random.Generator) -> None:
        which = int(rng.integers(len(self._engines)))
        kind = KINDS[rng.integers(len(KINDS))]
        count = int(2 ** rng.uniform(1, 10))
        start = int(rng.integers(2 * MOST_PAGES - count))
        if kind.submitted and rng.random() < 0.2:
            self._cancel_one(which, start, count)
            return
        deadline_s = None
        if kind.submitted and rng.random() < 0.5:
            deadline_s = 10 ** rng.uniform(-4, 0)
        expired = self._loads[which].run(self._engines[which], kind, start, count, deadline_s)
        with self._lock:
            self.batches += 1
            self.expired_pages += expired

    def _cancel_one(self, which: int, start: int, count: int) -> None:
        """Submit two batches and cancel the second, which may be under way by then."""
        engine, load = self._engines[which], self._loads[which]
        batches = [load.make_batch(engine, kind, start, count) for kind in (KINDS[2], KINDS[6])]
        for batch in batches:
            blank(batch)
        first, second = [engine.submit(batch) for batch in batches]
        cancelled = second.cancel()
        if cancelled:
            assert set(batches[1].errors.tolist()) == {-errno.ECANCELED}
        else:
            second.wait(HANG_LIMIT_S)
            load.check(batches[1], start)
        first.wait(HANG_LIMIT_S)
        load.check(batches[0], start)
        with self._lock:
            self.batches += 2
            self.cancelled += cancelled

    def _come_and_go(self) -> None:
        """Open engines, use them at once, and close them; look at what there is in between."""
        try:
            pages = self._loads[0].pages[:64]
            while not self._over.is_set():
                backend = ("workers", "threads")[self.engines % 2]
                with Engine("lz4", backend=backend, workers=1) as engine:
                    requests = [engine.submit(CompressBatch(pages)) for _ in range(3)]
                    batch = CompressBatch(engine.arena(64, PAGE))
                    engine.compress(batch)
                    assert not batch.has_errors
                assert all(request.done() for request in requests)
                self.engines += 1
                self.samples.append(held())
                self._over.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self.failures.append(error)

    def growth(self) -> dict[str, int]:
        """Tell how much more there was at most in the second half than in the first."""
        half = len(self.samples) // 2
        return {
            name: max(sample[name] for sample in self.samples[half:])
            - max(sample[name] for sample in self.samples[:half])
            for name in MOST_GROWTH
        }

    def _victims(self, engine: Engine, rng: np.random.Generator) -> list[int]:
        """Workers to harm: seldom ones that are starting, as the next try is put off each time."""
        if rng.random() < 0.05:
            return list(engine.worker_pids)
        return [worker.pid for worker in engine.statistics.workers if worker.shares]

    def _do_harm(self) -> None:
        rng = np.random.default_rng((self._seed, 99))
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::batchzip.WorkerWarning")  # some die while they start
@pytest.mark.parametrize(
    "batches", [pytest.param(150), pytest.param(1000, marks=pytest.mark.stress, id="stress")]
)
def test_no_result_is_wrong_while_workers_are_killed_and_stopped(
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
    stress_s: float,
    seed: int,
    report: Report,
) -> None:
    monkeypatch.setattr(watch, "HANG_S", 0.3)
    monkeypatch.setattr(supervisor_module, "START_S", 3.0)
    seconds = 0.0 if batches < 1000 else stress_s
    with ExitStack() as stack:
        engines = [
            stack.enter_context(engine)
            for engine in (
                Engine("lz4", backend="workers", workers=2),
                Engine("zstd", level=1, backend="workers", workers=1),
                Engine("lz4", backend="workers", workers=1, verify=True),
                Engine("lz4", backend="threads", workers=2),
                Engine("zstd", level=1, backend="threads", workers=1),
            )
        ]
        for engine in engines[::2]:  # their callers take pages back
            assert isinstance(engine.backend, LanesBackend)
            engine.backend.divider.generous = False
        soak = Soak(engines, batches, seconds, seed)
        soak.run()
        for failure in soak.failures:
            raise failure
        restarts = sum(engine.statistics.restarts for engine in engines)
        for engine in engines:
            # A stopped worker of an idle engine is left alone, and so is the share that it holds.
            for pid in engine.worker_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            assert_all_slots_are_free(engine)
        growth = soak.growth()
        if batches >= 1000:
            for name, most in MOST_GROWTH.items():
                assert growth[name] <= most, growth
    report(
        f"soak: {soak.batches} batches, {soak.kills} kills, {soak.stops} stops, "
        f"{restarts} workers replaced, "
        f"{soak.expired_pages} pages past their deadline, {soak.cancelled} requests cancelled, "
        f"{soak.engines} engines opened and closed, growth {growth}, 0 wrong",
        kills_and_stops=soak.kills + soak.stops,
    )
