"""A store stays whole if the n-th allocation of the core fails, for every n, and beside threads."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from faults.test_store_interrupts import CALLS, filled
from support.faulty_object import FaultyObject
from support.thread_model import SIZE, Beside

from batchzip import BatchzipError, Engine, PageError, SwapStore
from batchzip.core.memory import allocations, fail_allocation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.reporting import Report
    from support.thread_model import Model

OUT_OF_MEMORY = (MemoryError, OSError, BatchzipError)
"""What a call may raise then."""


@pytest.fixture(params=["sequential", "threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    workers: dict[str, Any] = {"workers": 1} if request.param == "threads" else {}
    with Engine("lz4", backend=request.param, page_size=SIZE, **workers) as engine:
        yield engine


@pytest.fixture(scope="module")
def second() -> Iterator[Engine]:
    with Engine("zstd", backend="sequential", page_size=SIZE) as engine:
        yield engine


def share_a_table(model: Model) -> None:
    """Do what a reader in another process asks for."""
    os.close(model.group("model one")._share_table())
    model.store_some()


@pytest.mark.parametrize(
    "count",
    [pytest.param(1, id="one"), pytest.param(1000, id="all that follow", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("call", [*CALLS, "table"])
def test_an_allocation_that_fails_in_a_call_leaves_a_store_whole(
    engine: Engine,
    second: Engine,
    call: str,
    count: int,
    tmp_path: Path,
    report: Report,
) -> None:
    work, has_file, full = CALLS.get(call, (share_a_table, False, False))
    number, failed = 0, 0
    while True:
        number += 1
        with SwapStore(engine) as warm:  # what an engine keeps is there
            warm.store(0, bytes(range(256)) * 2)
        store, model = filled(engine, tmp_path if has_file else None, full=full)
        model.second = second
        before = allocations()
        fail_allocation(number, count)
        try:
            work(model)
            reached = allocations() - before >= number
            fail_allocation(0)
        except OUT_OF_MEMORY as error:
            reached = True
            fail_allocation(0)
            failed += 1
            model.resolve(error)
        store.max_pool_bytes = None
        store.check_invariants()
        model.check()
        model.store_some()
        model.check()
        store.close()
        if not reached:
            break
    report(
        f"memory: {engine.backend.name}, {call}: each of {number - 1} allocations, {failed} errors",
        allocations_failed=number - 1,
    )


def test_making_a_store_leaves_nothing_where_memory_is_out(engine: Engine, tmp_path: Path) -> None:
    for number in range(1, 100):
        before = allocations()
        fail_allocation(number)
        try:
            SwapStore(engine, backing=tmp_path / "file").close()
        except OUT_OF_MEMORY:
            assert not list(tmp_path.iterdir())
        finally:
            fail_allocation(0)
        if allocations() - before < number:
            break
    assert number > 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::batchzip.WorkerWarning")  # lanes that have no memory
@pytest.mark.parametrize(
    "steps", [pytest.param(1500), pytest.param(30_000, marks=pytest.mark.stress, id="stress")]
)
def test_allocations_that_fail_at_random_beside_other_threads_lose_nothing(
    engine: Engine, steps: int, report: Report, seed: int
) -> None:
    rng = random.Random(steps + seed)
    tried = 0
    with SwapStore(engine, backing=FaultyObject(), max_pool_bytes=1 << 16) as store:
        with Beside(store, steps, (*OUT_OF_MEMORY, PageError)) as others:
            while others.are_at_work(0.0002):
                tried += 1
                fail_allocation(rng.randrange(1, 40), rng.choice([1, 1, 2, 5]))
            fail_allocation(0)
        store.check_invariants()
    report(
        f"memory: {engine.backend.name}, {tried} moments, {others.met} errors, 0 lost",
        allocations_failed=others.met,
    )
