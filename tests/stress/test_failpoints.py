"""A lane may fail at any step, in any way, at any pass: no result changes and nothing is left."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.batch_load import HANG_LIMIT_S, KINDS, Load, assert_all_slots_are_free, rings, state
from support.waiting import await_true

from batchzip import Engine
from batchzip.core.lane import ACTIONS, STEPS
from batchzip.lanes import watch
from batchzip_threads import ThreadsBackend
from batchzip_workers.failpoints import armed, waiting
from batchzip_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.core.ring import Ring

BATCHES = 64
"""A run; a worker gets at least one share of each of its batches."""

PAGES = 8

DEADLY_ACTIONS = [action for action in ACTIONS if action != "pause"]

NEEDS_REST = ("asleep", "awake")
"""Steps of a lane that sleeps between batches."""

_REST_S = 0.002
"""Seconds between batches that put a lane to sleep: it looks for work for 0.1 ms."""

IN_HAND = "took"
"""The step at which a lane has a page in hand."""

PAUSE_S = 0.02
"""What the action `pause` takes."""


@pytest.fixture
def only_hung_workers_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice soon that a worker hangs, and on a slow machine never take one for it that works."""
    kill = Supervisor.kill

    def kill_if_stopped(self: Supervisor, ring: Ring) -> None:
        for place in self._workers:
            has_it = place.ring is not None and place.ring.core is ring
            if has_it and place.process and state(place.process.pid) == "T":
                kill(self, ring)

    monkeypatch.setattr(Supervisor, "kill", kill_if_stopped)
    monkeypatch.setattr(watch, "HANG_S", 0.05)


class Run:
    """Batches of every kind, one after the other, over an engine."""

    def __init__(self, engine: Engine, lanes: int, *, rest: bool) -> None:
        self._engine = engine
        self._load = Load(engine.codec, PAGES // 2 * (lanes + 1))
        self._batches = [
            (kind, self._load.make_batch(engine, kind, 0, len(self._load.pages))) for kind in KINDS
        ]
        self._rest = rest
        self.turns = self.found_deadly = 0
        self.longest_s = 0.0

    def go_on(self, *, may_kill: bool = False) -> None:
        started = time.monotonic()
        kind, batch = self._batches[self.turns % len(KINDS)]
        self.found_deadly += self._load.run_again(self._engine, kind, batch, 0, may_kill=may_kill)
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        self.turns += 1
        if self._rest:
            time.sleep(_REST_S)


def needs_rest(specs: list[str]) -> bool:
    return any(spec.startswith(NEEDS_REST) for spec in specs)


def fail_at(specs: list[str], workers: int) -> Run:
    """Run batches until each of these failpoints has ended a worker; what that took.

    A page that two workers in a row had in hand when they failed is taken for a deadly one.
    """
    may_kill = specs[0].startswith(IN_HAND)
    deadline = time.monotonic() + HANG_LIMIT_S + len(specs)
    with armed(*specs), Engine("zstd", level=3, backend="workers", workers=workers) as engine:
        run = Run(engine, workers, rest=needs_rest(specs))
        while (ended := engine.statistics.restarts) < len(specs):
            assert time.monotonic() < deadline, (
                f"{ended} of {specs} were hit in {run.turns} batches"
            )
            await_true(lambda: any(ring.ready for ring in rings(engine)), "a worker")
            run.go_on(may_kill=may_kill)
        assert not waiting
        assert run.found_deadly <= len(specs) // 2
        # Who comes after the last of them has none: from here on everything holds.
        assert engine.wait_ready()
        for _ in KINDS:
            run.go_on()
        assert_all_slots_are_free(engine)
        assert engine.statistics.restarts == len(specs)
    return run


def pause_at(specs: list[str]) -> int:
    """Have two workers pause once each; how many batches were done around that."""
    with armed(*specs), Engine("zstd", level=3, backend="workers", workers=2) as engine:
        run = Run(engine, 2, rest=needs_rest(specs))
        assert engine.wait_ready()
        for _ in range(BATCHES + 8):
            run.go_on()
        assert not waiting
        assert_all_slots_are_free(engine)
        assert engine.statistics.restarts == 0
        # A lane comes to `rung` only where its owner sleeps, so perhaps not so often.
        if not specs[0].startswith(("ready", "rung")):
            assert run.longest_s >= PAUSE_S / 2, "a batch waits for the lane that pauses"
    return run.turns


@pytest.mark.slow
@pytest.mark.usefixtures("only_hung_workers_are_killed")
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_fails_at_each_step_at_its_first_pass(
    step: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_at([f"{step}:1:{action}" for action in DEADLY_ACTIONS], workers=1)
    assert capfd.readouterr().err == ""


@pytest.mark.stress
@pytest.mark.usefixtures("only_hung_workers_are_killed")
@pytest.mark.parametrize("action", DEADLY_ACTIONS)
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_fails_at_each_step_at_every_pass_of_a_run(
    step: str, action: str, report: Callable[[str], None]
) -> None:
    # A worker passes `ready` once in its life.
    passes = 1 if step == "ready" else BATCHES
    specs = [f"{step}:{nth}:{action}" for nth in range(1, passes + 1)]
    run = fail_at(specs, workers=2)
    report(
        f"failpoints: {action} at {step}, pass 1 to {passes}: {run.turns} batches, 0 wrong, "
        f"{run.found_deadly} pages that two failing workers had in hand"
    )


@pytest.mark.stress
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_pauses_at_each_step(step: str, report: Callable[[str], None]) -> None:
    passes = [(1, 1)] if step == "ready" else [(1, 2), (3, 8), (21, BATCHES)]
    turns = sum(pause_at([f"{step}:{nth}:pause" for nth in both]) for both in passes)
    report(f"failpoints: pause at {step}, {2 * len(passes)} times: {turns} batches, 0 wrong")


THREAD_STEPS = [step for step in STEPS if step != "ready"]
"""A thread has passed `ready` before anybody can set a failpoint."""


class PausingThreads:
    """Callers that load an engine of threads, whose lanes pause at random steps all the while."""

    def __init__(self, engine: Engine, seed: int) -> None:
        assert isinstance(engine.backend, ThreadsBackend)
        assert engine.backend._lanes is not None
        self._engine = engine
        self._lanes = engine.backend._lanes
        self._load = Load(engine.codec, 256, seed)
        self._over = threading.Event()
        self._failures: list[BaseException] = []
        self.batches = self.pauses = self.expired = 0
        self._lock = threading.Lock()

    def run(self, seconds: float, callers: int, seed: int) -> None:
        threads = [
            threading.Thread(target=self._work, args=(seed + number,)) for number in range(callers)
        ]
        for thread in threads:
            thread.start()
        rng = np.random.default_rng(seed)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._failures:
            number = int(rng.integers(len(self._lanes.rings)))
            step = THREAD_STEPS[rng.integers(len(THREAD_STEPS))]
            self._lanes.set_failpoint(number, step, int(rng.integers(1, 65)), "pause")
            self.pauses += 1
            time.sleep(rng.exponential(0.01))
        self._over.set()
        for thread in threads:
            thread.join()
        for failure in self._failures:
            raise failure

    def _work(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not self._over.is_set():
                kind = KINDS[rng.integers(len(KINDS))]
                count = int(2 ** rng.uniform(0, 8))
                start = int(rng.integers(256 - count + 1))
                deadline_s = 10 ** rng.uniform(-4, -1) if kind.submitted else None
                expired = self._load.run(self._engine, kind, start, count, deadline_s)
                with self._lock:
                    self.batches += 1
                    self.expired += expired
        except BaseException as failure:  # noqa: BLE001 - raised in the main thread
            self._failures.append(failure)


@pytest.mark.slow
@pytest.mark.parametrize("generous", [True, False], ids=["given", "taken back"])
@pytest.mark.parametrize(
    "seconds", [pytest.param(1.0), pytest.param(6.0, marks=pytest.mark.stress, id="stress")]
)
def test_threads_pause_at_random_steps_under_load(
    seconds: float, generous: bool, report: Callable[[str], None]
) -> None:
    with Engine("lz4", backend="threads", workers=3) as engine:
        assert isinstance(engine.backend, ThreadsBackend)
        engine.backend.divider.generous = generous
        assert engine.wait_ready()
        load = PausingThreads(engine, seed=int(seconds))
        load.run(seconds, 3, int(seconds))
        assert_all_slots_are_free(engine)
        for ring in rings(engine):
            ring.check_invariants()
        statistics = engine.statistics
        assert statistics.compress.pages > statistics.compress.inline_pages
    report(
        f"thread lanes: {load.pauses} pauses armed at random steps, "
        f"{load.batches} batches by 3 callers, "
        f"{load.expired} pages past their deadline, 0 wrong"
    )
