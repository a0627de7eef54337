"""The n-th allocation of the core fails, for every n that a call reaches; and at random beside other threads."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from faults.faulty_object import FaultyObject
from faults.model import SIZE, Model
from faults.test_store_interrupts import CALLS, filled

from batchzip import BatchzipError, Engine, PageError, SwapStore
from batchzip.core.memory import allocations, fail_allocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OUT_OF_MEMORY = (MemoryError, OSError, BatchzipError)
"""What a call may raise then."""


@pytest.fixture(params=["sequential", "threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    workers: dict[str, Any] = {"workers": 1} if request.param == "threads" else {}
    with Engine("lz4", backend=request.param, page_size=SIZE, **workers) as engine:
        yield engine


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    yield
    fail_allocation(0)


@pytest.fixture(scope="module")
def second() -> Iterator[Engine]:
    with Engine("zstd", backend="sequential", page_size=SIZE) as engine:
        yield engine


@pytest.mark.parametrize("count", [1, 1000], ids=["one", "all that follow"])
@pytest.mark.parametrize("call", CALLS)
def test_an_allocation_that_fails_in_a_call_leaves_a_store_whole(
    engine: Engine,
    second: Engine,
    call: str,
    count: int,
    tmp_path: Path,
    report: Callable[[str], None],
) -> None:
    work, has_file, full = CALLS[call]
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
        f"memory: {engine.backend.name}, {call}: each of {number - 1} allocations, {failed} errors"
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
@pytest.mark.parametrize(
    "steps", [pytest.param(1500), pytest.param(30_000, marks=pytest.mark.stress, id="stress")]
)
def test_allocations_that_fail_at_random_beside_other_threads_lose_nothing(
    engine: Engine, steps: int, report: Callable[[str], None]
) -> None:
    rng = random.Random(steps)
    failures: list[BaseException] = []
    ended = threading.Event()
    failed = [0, 0, 0]
    with SwapStore(engine, backing=FaultyObject(), max_pool_bytes=1 << 16) as store:

        def work(number: int) -> None:
            model = Model(store, f"thread {number}", steps)
            step = 0
            while not ended.is_set() if number else step < steps:
                step += 1
                error: BaseException | None = None
                try:
                    model.step()
                except (*OUT_OF_MEMORY, PageError) as raised:
                    error = raised
                while error is not None:
                    failed[number] += 1
                    doubt, dropped = model._doubt, model._dropped
                    try:
                        model.resolve(error)
                        error = None
                    except OUT_OF_MEMORY:
                        model._doubt, model._dropped = doubt, dropped
                if step % 20 == 0:
                    check(model)

        def check(model: Model) -> None:
            while True:
                try:
                    model.check()
                except OUT_OF_MEMORY:
                    continue
                return

        def guarded(number: int) -> None:
            try:
                work(number)
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)
            finally:
                if not number:
                    ended.set()

        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        tried = 0
        while not ended.wait(0.0002):
            tried += 1
            fail_allocation(rng.randrange(1, 40), rng.choice([1, 1, 2, 5]))
        for thread in threads:
            thread.join()
        fail_allocation(0)
        if failures:
            raise failures[0]
        store.check_invariants()
    report(f"memory: {engine.backend.name}, {tried} moments, {sum(failed)} errors, 0 lost")
