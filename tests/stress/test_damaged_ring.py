"""Whatever is written over a ring's descriptors and control words, results stay right."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from stress.load import (
    KINDS,
    Load,
    assert_all_slots_are_free,
    rings,
)

from batchzip import Engine
from batchzip_workers import layout, under_way
from batchzip_workers.layout import LINE, SLOTS
from batchzip_workers.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

PAGES = 48


class Damage:
    """Writes random bytes over each descriptor behind the owner, before the worker can see it."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.count = 0

    def do(self, stage: Stage, sequence: int) -> None:
        descriptor = stage.slots[sequence % SLOTS].descriptor
        size = int(self._rng.integers(1, LINE))
        start = int(self._rng.integers(layout._SEALED.size))
        end = min(start + size, LINE)
        before = bytes(descriptor[: layout._SEALED.size])
        descriptor[start:end] = self._rng.bytes(end - start)
        self.count += before != bytes(descriptor[: layout._SEALED.size])


@pytest.mark.parametrize(
    "times", [pytest.param(5), pytest.param(60, marks=pytest.mark.stress, id="stress")]
)
def test_a_damaged_descriptor_ends_its_worker_and_its_share_is_run_again(
    times: int, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
) -> None:
    damage = Damage(times)
    fill = Stage.fill
    due = False

    def fill_and_damage(self: Stage, sequence: int, *arguments: object) -> None:
        nonlocal due
        fill(self, sequence, *arguments)  # type: ignore[arg-type]
        if due:
            due = False
            damage.do(self, sequence)

    monkeypatch.setattr(Stage, "fill", fill_and_damage)
    with Engine("lz4", backend="workers", workers=1) as engine:
        load = Load(engine.codec, PAGES)
        turn = 0
        while damage.count < times:
            assert engine.wait_ready()
            due = True
            load.run(engine, KINDS[turn % len(KINDS)], 0, PAGES)
            turn += 1
        assert_all_slots_are_free(engine)
        restarts = engine.statistics.restarts
        assert restarts >= times - 1  # the last may not be buried yet
    report(f"damaged descriptors: {damage.count}, {restarts} workers ended by them, 0 wrong")


@pytest.mark.parametrize(
    "times", [pytest.param(5), pytest.param(60, marks=pytest.mark.stress, id="stress")]
)
def test_any_number_of_posted_shares_changes_no_result(
    times: int, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
) -> None:
    """POSTED says there is more, or less, than there is; the worker meets slots of long ago."""
    monkeypatch.setattr(under_way, "HANG_S", 0.3)
    rng = np.random.default_rng(times)
    with Engine("lz4", backend="workers", workers=1) as engine:
        load = Load(engine.codec, PAGES)
        for turn in range(times):
            assert engine.wait_ready()
            (ring,) = rings(engine)
            for _ in range(turn % 6):  # so that slots hold shares that were valid once
                load.run(engine, KINDS[turn % len(KINDS)], 0, PAGES)
            far = int(rng.choice([1, 2, SLOTS, 1 << 40, (1 << 64) - 1]))
            ring._control[layout.POSTED] = (ring._control[layout.POSTED] + far) % (1 << 64)
            os.eventfd_write(ring._bell, 1)
            load.run(engine, KINDS[turn % len(KINDS)], 0, PAGES)
        assert engine.wait_ready()
        load.run(engine, KINDS[0], 0, PAGES)
        assert_all_slots_are_free(engine)
        restarts = engine.statistics.restarts
    report(f"damaged control words: {times}, {restarts} workers ended by them, 0 wrong")
