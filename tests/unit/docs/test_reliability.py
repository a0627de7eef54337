"""The page about reliability has what the campaign's record has, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.paths import ROOT
from support.waiting import await_true

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def campaign() -> Iterator[Any]:
    """Load .ci/campaign.py."""
    spec = importlib.util.spec_from_file_location("campaign", ROOT / ".ci/campaign.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["campaign"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["campaign"]


def test_the_page_is_made_from_the_record(campaign: Any) -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    assert text == campaign.page(), "run .ci/campaign.py --page"


def test_every_test_of_the_campaign_is_there(campaign: Any) -> None:
    for part in campaign.PARTS.values():
        for name in part.tests:
            path, _, test = name.partition("::")
            source = (ROOT / path).read_text()
            assert f"def {test.partition('[')[0]}(" in source if test else source


def test_a_copy_without_git_is_told_its_revision(
    campaign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    monkeypatch.setenv("BATCHZIP_REVISION", "abc+")
    assert campaign.revision() == "abc+"


def test_a_part_named_twice_runs_twice_at_a_time(
    campaign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "RECORD", tmp_path / "record")
    monkeypatch.setenv("BATCHZIP_REVISION", "abc")
    names = ["restore", "worker", "restore"]
    run = campaign.Campaign(names, hours=1, seconds=60, jobs=4, revisions=("abc",))
    assert [run._next() for _ in range(4)] == [0, 1, 2, None]


FUZZER = """
trap 'echo stat::number_of_executed_units: 41; exit CODE' TERM
[ BEGUN = 0 ] || echo '#2 INITED cov: 7'
echo ready
while :; do sleep 0.01; done
"""
"""Ends as libFuzzer does after SIGTERM."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "begun", "recorded"),
    [(72, 1, [(41, 0)]), (77, 1, [(41, 1)]), (72, 0, [])],
    ids=["begun", "crashed", "not begun"],
)
def test_the_work_of_a_stopped_fuzzer_counts(
    campaign: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    begun: int,
    recorded: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(campaign, "RECORD", tmp_path / "record")
    monkeypatch.setattr(campaign, "WORK", tmp_path)
    monkeypatch.setenv("BATCHZIP_REVISION", "abc")
    run = campaign.Slice("restore", 60, 1)
    script = FUZZER.replace("CODE", str(code)).replace("BEGUN", str(begun))
    run._command = ["bash", "-c", script]
    thread = threading.Thread(target=run.run)
    thread.start()
    await_true(lambda: run._pid and "ready" in run._output())
    run.stop()
    thread.join()
    assert [(one["count"], one["wrong"]) for one in campaign.records()] == recorded


def test_the_page_reports_the_findings_of_each_slice(
    campaign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {
        "part": "kills", "count": 12_345, "unit": "kills and stops", "seed": 7, "command": "run it",
        "revision": "abc", "machine": "a machine", "begun": "2026-01-02T03:04:05+00:00",
        "cpu_s": 10.0, "wall_s": 60.0, "cause": "It slept.",
        "lost": 0, "wrong": 1, "hung": 0, "left over": 2,
    }  # fmt: skip
    record = tmp_path / "record"
    record.write_text(2 * (json.dumps(one) + "\n"))
    monkeypatch.setattr(campaign, "RECORD", record)
    page = campaign.page()
    assert (
        "* 2026-01-02, kills, revision abc, seed 7 and 1 more: wrong, left over. It slept." in page
    )
    assert "| 24,690 | 0 | 2 | 0 | 4 | 1,234 |" in page
    assert "| kills | a machine | abc | 2 | 24,690 kills and stops | 2 min |" in page
    assert campaign.done("kills", ("abc",)) == 24_690
    assert campaign.done("kills", ("another",)) == 0
