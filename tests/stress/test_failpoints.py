"""A worker may fail at any step, in any way, at any pass: no result changes and nothing is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from stress.load import (
    HANG_LIMIT_S,
    KINDS,
    Load,
    assert_all_slots_are_free,
    await_true,
    rings,
    state,
)

from batchzip import Engine
from batchzip_workers import ring as ring_module
from batchzip.lanes import watch
from batchzip_workers.failpoints import ACTIONS, STEPS, armed, waiting
from batchzip_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip_workers.ring import Ring

BATCHES = 64
"""A run; a worker gets one share of each of its batches."""

PAGES = 8

NEEDS_REST = ("asleep", "awake", "rung")
"""Steps of a worker that sleeps between batches, or whose owner waits for one that just woke."""

_REST_S = 0.002
"""Seconds between batches that put a worker to sleep: it looks for work for at most 1 ms."""


@pytest.fixture
def only_hung_workers_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice soon that a worker hangs, and on a slow machine never take one for it that works."""
    kill = Supervisor.kill

    def kill_if_stopped(self: Supervisor[Ring], ring: Ring) -> None:
        for place in self._workers:
            if place.ring is ring and place.process and state(place.process.pid) == "T":
                kill(self, ring)

    monkeypatch.setattr(Supervisor, "kill", kill_if_stopped)
    monkeypatch.setattr(watch, "HANG_S", 0.05)
    # An owner that waits sleeps at once, so that its bell is rung.
    monkeypatch.setattr(ring_module, "SPIN_S", 0.0)


def fail_at(specs: list[str], workers: int) -> int:
    """Run batches until each of these failpoints has ended a worker; how many batches that took."""
    rest = any(spec.startswith(NEEDS_REST) for spec in specs)
    deadline = time.monotonic() + HANG_LIMIT_S + len(specs)
    turn = 0
    with armed(*specs), Engine("zstd", level=3, backend="workers", workers=workers) as engine:
        load = Load(engine.codec, PAGES // 2 * (workers + 1))
        batches = [(kind, load.make_batch(engine, kind, 0, len(load.pages))) for kind in KINDS]
        while (ended := engine.statistics.restarts) < len(specs):
            assert time.monotonic() < deadline, f"{ended} of {specs} were hit in {turn} batches"
            await_true(lambda: any(ring.ready for ring in rings(engine)), "a worker")
            load.run_again(engine, *batches[turn % len(batches)], 0)
            turn += 1
            if rest:
                time.sleep(_REST_S)
        assert not waiting
        # Who comes after the last of them has none: from here on everything holds.
        assert engine.wait_ready()
        for kind, batch in batches:
            load.run_again(engine, kind, batch, 0)
        assert_all_slots_are_free(engine)
        assert engine.statistics.restarts == len(specs)
    return turn


@pytest.mark.usefixtures("only_hung_workers_are_killed")
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_fails_at_each_step_at_its_first_pass(
    step: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_at([f"{step}:1:{action}" for action in ACTIONS], workers=1)
    assert len(capfd.readouterr().err.splitlines()) == 1  # of `raise`


@pytest.mark.stress
@pytest.mark.usefixtures("only_hung_workers_are_killed")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_fails_at_each_step_at_every_pass_of_a_run(
    step: str, action: str, report: Callable[[str], None]
) -> None:
    # A worker passes `ready` once in its life.
    passes = 1 if step == "ready" else BATCHES
    specs = [f"{step}:{nth}:{action}" for nth in range(1, passes + 1)]
    turns = fail_at(specs, workers=2)
    report(f"failpoints: {action} at {step}, pass 1 to {passes}: {turns} batches, 0 wrong")
