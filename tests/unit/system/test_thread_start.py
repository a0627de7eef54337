"""Threads that may fail to start: what an interrupt leaves of them."""

from __future__ import annotations

import itertools
import threading

from support.interrupts import InterruptAt

from batchzip.system import limits
from batchzip.testing.plain import SLACK_S

PLACES = (limits.__file__, threading.__file__)


def test_a_thread_whose_start_is_interrupted_runs_or_is_forgotten() -> None:
    ran = forgotten = 0
    for nth in itertools.count(1):
        end, runs = threading.Event(), threading.Event()

        def work(runs: threading.Event = runs, end: threading.Event = end) -> None:
            runs.set()
            end.wait(SLACK_S)

        thread = threading.Thread(target=work, daemon=True)
        with InterruptAt(nth, PLACES) as interrupt:
            try:
                limits.begin(thread)
            except KeyboardInterrupt:
                assert interrupt.happened
        if thread in threading.enumerate():
            assert runs.wait(SLACK_S), interrupt.where
            end.set()
            thread.join(SLACK_S)
            ran += 1
        else:
            assert not runs.is_set(), interrupt.where
            forgotten += 1
        assert thread not in threading.enumerate()
        if not interrupt.happened:
            break
    assert ran > 1
    assert forgotten > 1
