"""`batchzip top --dask` with a scheduler that stands in: whom it asks, and what it shows."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.cli import cluster
from batchzip.cli.cluster import Cluster, cluster_look
from batchzip.dask.survey import ShardFigures, StoreFigures, Survey
from batchzip.errors import ClusterLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
ONE = ShardFigures("tcp://w1:1", "one", "", 11, 1000, 5000, 700, 30 * MIB, 40 * MIB, 5 * MIB)
TWO = ShardFigures("tcp://w2:1", "", "", 12, 2000, 0, 0, 10 * MIB, None, 0)
GONE = ShardFigures("tcp://w3:1", "three", "no answer in 5 s")
ALPHA = StoreFigures("alpha", 4096, 1, 3, 2, 0, (ONE, TWO))
BETA = StoreFigures("beta", 8192, 2, 5, 1, 1200, (GONE, replace(ONE, pages=1)))
SURVEY = Survey("tcp://inner:1", 50.0, (ALPHA, BETA))


class Scheduler:
    """Stands in for the connection to a scheduler, and keeps how it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[Any] = []
        self.closed = 0
        self.answer: Survey | BaseException | None = SURVEY
        monkeypatch.setattr(cluster, "rpc", self.rpc)
        monkeypatch.setattr(cluster, "ask_survey", self.ask)

    @asynccontextmanager
    async def rpc(self, address: str, **options: Any) -> AsyncIterator[str]:
        self.opened.append((address, sorted(options)))
        yield "scheduler"
        self.closed += 1

    async def ask(self, scheduler: str, timeout_s: float) -> Survey | None:
        assert (scheduler, timeout_s) == ("scheduler", 15)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    return Scheduler(monkeypatch)


@pytest.mark.parametrize(
    ("address", "asked", "stores"),
    [
        ("tcp://host:8786", "tcp://host:8786", (ALPHA, BETA)),
        ("tcp://host:8786/batchzip/beta", "tcp://host:8786", (BETA,)),
        ("tcp://host:8786/batchzip/gamma", "tcp://host:8786", ()),
    ],
)
def test_a_scheduler_has_all_its_stores_and_a_store_s_address_only_that_one(
    scheduler: Scheduler, address: str, asked: str, stores: tuple[StoreFigures, ...]
) -> None:
    with Cluster(address) as found:
        for _ in range(2):
            assert found.survey() == Survey(asked, 50.0, stores)
    assert scheduler.opened == [(asked, ["connection_args", "timeout"])] * 2
    assert scheduler.closed == 2


def test_a_scheduler_without_stores_is_told_as_such(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.answer = None
    monkeypatch.setattr(time, "monotonic", lambda: 77.0)
    with Cluster("tcp://host:1") as found:
        assert found.survey() == Survey("tcp://host:1", 77.0, ())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TimeoutError(), "no answer in 15 s"),
        (OSError("connection refused"), "connection refused"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_named_with_the_reason(
    scheduler: Scheduler, error: Exception, why: str
) -> None:
    scheduler.answer = error
    with (
        Cluster("tcp://host:1/batchzip/beta") as found,
        pytest.raises(ClusterLost, match=f"^no Dask scheduler at tcp://host:1: {why}$"),
    ):
        found.survey()


def test_a_look_has_the_facts_of_each_store_and_what_is_wrong() -> None:
    look = cluster_look(SURVEY, None)
    assert look.title == "Dask scheduler tcp://inner:1: 2 sharded stores"
    assert look.facts == [
        ("store", "alpha"),
        ("", "3,000 pages of 4,096 bytes, kept once; clients: 2, epoch: 3"),
        ("store", "beta"),
        ("", "1 pages of 8,192 bytes, kept 2 times; clients: 1, epoch: 5"),
    ]
    assert look.warnings == ["pages of 1,200 stripes are lost", "three: no answer in 5 s"]
    (shards,) = look.sections
    assert [column.heading for column in shards.columns] == [
        *("worker", "store", "pages", "pool", "full", "on disk", "stored/s", "loaded/s"),
    ]
    assert [shards.cells(row) for row in shards.rows] == [
        ["one", "alpha", "1,000", "30.0 MiB", "75%", "5.0 MiB", "-", "-"],
        ["tcp://w2:1", "alpha", "2,000", "10.0 MiB", "-", "0 Bytes", "-", "-"],
        ["one", "beta", "1", "30.0 MiB", "75%", "5.0 MiB", "-", "-"],
    ]


def test_a_second_look_has_rates_and_what_happens_seldom() -> None:
    busy = replace(ONE, page_stores=5500, page_loads=720, moving=3)
    now = replace(SURVEY, taken_s=60.0, stores=(replace(ALPHA, shards=(busy, TWO)),))
    look = cluster_look(now, SURVEY)
    assert look.title.endswith(": 1 sharded store")
    (shards,) = look.sections
    assert [column.heading for column in shards.columns] == [
        *("worker", "pages", "pool", "full", "on disk", "stored/s", "loaded/s", "moving"),
    ]
    assert [shards.cells(row)[-3:] for row in shards.rows] == [["50", "2", "3"], ["0", "0", "0"]]
    refused = replace(SURVEY, stores=(replace(ALPHA, shards=(replace(TWO, refusals=1),)),))
    assert cluster_look(refused, None).sections[0].columns[-1].heading == "refused"


def test_a_look_at_shards_that_do_not_answer_has_no_table() -> None:
    look = cluster_look(replace(SURVEY, stores=(replace(BETA, shards=(GONE,)),)), None)
    assert look.sections == []
    assert cluster_look(replace(SURVEY, stores=()), None).title.endswith(": no sharded store")
