"""Clients use a sharded store in real clusters while workers, schedulers and clients come and go.

What they saw is checked afterwards, see support/cluster/history.py.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from support.cluster.run import ELASTIC, FAULTS, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from support.cluster.history import Verdict

pytestmark = pytest.mark.slow

SILENT_S = 20.0
QUICK = {"engine": {"algorithm": "lz4"}, "timeout_s": SILENT_S}
NO_SCHEDULER = tuple(fault for fault in FAULTS if not fault.startswith("scheduler"))


@pytest.fixture
def report_verdict(report: Callable[[str], None]) -> Callable[[Verdict], None]:
    def judge(verdict: Verdict) -> None:
        assert verdict.wrong == [], str(verdict)
        assert verdict.unnamed == [], str(verdict)
        assert verdict.stored, str(verdict)
        report(str(verdict))

    return judge


def faulty_run(
    folder: Path,
    faults: Sequence[str],
    *,
    losses: bool = True,
    between_s: float = 3.0,
    settled: bool = False,
    replicas: int = 1,
    **options: Any,
) -> Verdict:
    """Cause these faults one after another, each once the one before has `settled`."""
    made = {**QUICK, "replicas": replicas}
    with Run(folder, options=made, **options) as run:
        run.begin()
        run.go_on(1)
        for fault in faults:
            if settled:
                run.settle()
            run.inflict(fault)
            run.go_on(between_s)
        if settled:
            run.settle()
        return run.end(losses=losses)


def waited_for_nothing(verdict: Verdict) -> dict[str, float]:
    """Return calls, rebalances aside, that took as long as a wait for a silent worker."""
    return {
        kind: seconds
        for kind, seconds in verdict.longest.items()
        if kind != "rebalance" and seconds >= SILENT_S
    }


@pytest.mark.stress
def test_without_faults_nothing_is_lost(
    tmp_path: Path, report_verdict: Callable[[Verdict], None]
) -> None:
    verdict = faulty_run(tmp_path, [], losses=False)
    report_verdict(verdict)
    assert waited_for_nothing(verdict) == {}


def test_a_killed_worker_loses_only_what_is_named(
    tmp_path: Path, report_verdict: Callable[[Verdict], None]
) -> None:
    report_verdict(faulty_run(tmp_path, ["kill a worker"]))


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(1))
def test_workers_and_clients_come_and_go(
    tmp_path: Path, report_verdict: Callable[[Verdict], None], seed: int
) -> None:
    faults = random.Random(seed).choices(NO_SCHEDULER, k=12)
    report_verdict(faulty_run(tmp_path, faults, seed=seed, workers=3))


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(1))
def test_schedulers_come_and_go_too(
    tmp_path: Path, report_verdict: Callable[[Verdict], None], seed: int
) -> None:
    faults = random.Random(seed).choices(FAULTS, k=8)
    faults.insert(2, "scheduler killed")
    faults.insert(6, "scheduler terminated")
    report_verdict(faulty_run(tmp_path, faults, seed=seed, between_s=6))


@pytest.mark.stress
def test_retiring_terminating_or_adding_workers_loses_nothing(
    tmp_path: Path, report_verdict: Callable[[Verdict], None]
) -> None:
    faults = [*ELASTIC, *ELASTIC]
    verdict = faulty_run(tmp_path, faults, losses=False, between_s=4, settled=True)
    report_verdict(verdict)
    assert waited_for_nothing(verdict) == {}


@pytest.mark.stress
@pytest.mark.parametrize(
    "fault", ["kill a worker", "kill a nanny", "terminate a worker", "stop a worker for long"]
)
def test_two_copies_outlive_one_worker_at_a_time(
    tmp_path: Path, report_verdict: Callable[[Verdict], None], fault: str
) -> None:
    faults = [fault] * 3
    report_verdict(faulty_run(tmp_path, faults, losses=False, replicas=2, workers=3, settled=True))
