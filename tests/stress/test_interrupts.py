"""KeyboardInterrupt anywhere in compress, decompress, submit and wait: the engine stays as it was."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
from stress.interrupts import InterruptAt
from stress.load import (
    HANG_LIMIT_S,
    KINDS,
    Kind,
    Load,
    assert_all_slots_are_free,
    blank,
    do,
)

from batchzip import CompressBatch, Engine
from batchzip.lanes import watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.batch import Batch

PAGES = 24


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    # Nothing here hangs, so no worker that is slow to answer shall be killed for it.
    monkeypatch.setattr(watch, "GRACE_S", HANG_LIMIT_S)
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready()
        yield engine


def outputs(batch: Batch) -> np.ndarray:
    return batch.dsts if isinstance(batch, CompressBatch) else batch.pages  # type: ignore[attr-defined]


def check_nobody_writes_any_more(engine: Engine, batch: Batch) -> None:
    """What the caller writes to a batch's memory after an interrupt stays there."""
    blank(batch)
    blanked = outputs(batch).copy()
    assert_all_slots_are_free(engine)
    np.testing.assert_array_equal(outputs(batch), blanked)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_interrupt_at_any_point_leaves_nothing_under_way(
    engine: Engine, kind: Kind, report: Callable[[str], None]
) -> None:
    load = Load(engine.codec, PAGES)
    pids, point, missed = engine.worker_pids, 1, 0
    while missed < 3:  # how often a wait looks is never the same
        batch = load.make_batch(engine, kind, 0, PAGES)
        with contextlib.suppress(KeyboardInterrupt), InterruptAt(point) as interrupt:
            do(engine, batch, submitted=kind.submitted)
        missed = 0 if interrupt.happened else missed + 1
        point += 1
        if interrupt.happened:
            check_nobody_writes_any_more(engine, batch)
        load.run_again(engine, kind, batch, 0)
    assert_all_slots_are_free(engine)
    assert engine.worker_pids == pids, "no worker was killed"
    report(f"interrupts: {kind}: at each of {point - missed} points, 0 wrong")


@pytest.fixture
def alarms() -> Iterator[None]:
    """Let SIGALRM do what Ctrl-C does: the kernel sends it at any microsecond, unlike a thread."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize(
    "times", [pytest.param(50), pytest.param(1000, marks=pytest.mark.stress, id="stress")]
)
def test_signals_at_random_moments_leave_nothing_under_way(
    engine: Engine, times: int, report: Callable[[str], None]
) -> None:
    load = Load(engine.codec, 300)
    rng = np.random.default_rng(times)
    kinds = [kind for kind in KINDS if not kind.submitted]
    batches = [(kind, load.make_batch(engine, kind, 0, 300)) for kind in kinds]
    for turn in range(times):
        kind, batch = batches[turn % len(batches)]
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(20e-6, 3e-3))
            while True:
                do(engine, batch)
        check_nobody_writes_any_more(engine, batch)
        load.run_again(engine, kind, batch, 0)
    assert engine.statistics.restarts == 0
    report(f"interrupts: {times} signals at random moments, 0 wrong")
