"""Recovery: how soon a killed worker has a successor that takes work, under load."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.batch_load import KINDS, Load, rings
from support.waiting import await_true

from batchzip import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.core.ring import Ring


def has_another(engine: Engine, ring: Ring) -> bool:
    return any(other.ready for other in rings(engine) if other is not ring)


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(3), pytest.param(40, marks=pytest.mark.stress, id="stress")]
)
def test_the_batch_that_meets_a_kill_finishes_and_the_worker_is_replaced(
    times: int, report: Callable[[str], None]
) -> None:
    took_s = []
    with Engine("zstd", level=1, backend="workers", workers=1) as engine:
        load = Load(engine.codec, 256)
        for turn in range(times):
            assert engine.wait_ready()
            (ring,), (pid,) = rings(engine), engine.worker_pids

            def do_until_replaced(turn: int = turn) -> None:
                load.run(engine, KINDS[turn % len(KINDS)], 0, 256)

            batch = threading.Thread(target=do_until_replaced)
            batch.start()
            os.kill(pid, signal.SIGKILL)
            took_s.append(
                await_true(
                    partial(has_another, engine, ring),
                    "a successor that is ready",
                )
            )
            batch.join()
            load.run(engine, KINDS[turn % len(KINDS)], 0, 256)
        assert engine.statistics.restarts == times
    p50, p99 = np.percentile(took_s, [50, 99])
    report(
        f"recovery: {times} kills, a successor was ready after {p50:.3f} s (p50), {p99:.3f} s (p99)"
    )
