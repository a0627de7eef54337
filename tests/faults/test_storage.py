"""A backing file that fails with every errno, writes short, or raises anything, from each of its calls."""

from __future__ import annotations

import errno
import random
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from faults.faulty_object import CALLS, FaultyObject
from faults.model import SIZE, Beside, Model, make_page

from batchzip import Engine, PageError, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRNOS = sorted(errno.errorcode)

OTHERS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("of the user's own"),
    MemoryError,
    KeyboardInterrupt,
    lambda: SystemExit(3),
    GeneratorExit,
    lambda: OSError("without a number"),
    StopIteration,
    lambda: ValueError("closed file"),
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential", page_size=SIZE) as engine:
        yield engine


def faults() -> list[BaseException]:
    return [*(OSError(code, "made up") for code in ERRNOS), *(make() for make in OTHERS)]


def fill(model: Model) -> None:
    """Have pages in memory and in the file, and zones to clean."""
    for name in model.pages:
        for first in range(0, 40, 8):
            pages = [make_page(model.version + first + at) for at in range(8)]
            model.group(name).store(first, pages)
            model.note(name, range(first, first + 8), list(pages))
        model.group(name).writeback(range(12, 28))
        model.group(name).invalidate(20, 3)
        model.note(name, range(20, 23), [None] * 3)


def attempt(operation: Callable[[Model], None], model: Model) -> BaseException | None:
    """Return what an operation raises."""
    try:
        operation(model)
    except BaseException as error:  # noqa: BLE001 - the caller looks at it
        return error
    return None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_a_call_of_the_file_raises_nothing_is_lost(
    engine: Engine, call: str, after: bool, report: Callable[[str], None]
) -> None:
    operations: list[Callable[[Model], None]] = [
        Model.store_some,
        Model.load_many,
        Model.take,
        Model.take_many,
        Model.write_back,
        Model.invalidate,
        Model.clear,
        Model.store_some,
        Model.drop,
        Model.compact,
        Model.look,
    ]
    tried = 0
    for number, fault in enumerate(faults()):
        file = FaultyObject()
        with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
            model = Model(store, "model", number)
            model.second = engine
            fill(model)
            for turn, operation in enumerate(operations):
                store.max_pool_bytes = 0 if turn % 2 else None
                file.fail(call, 1 + number % 2, fault, after=after)
                raised = attempt(operation, model)
                if raised is not None:
                    # A load tells what the file said; a look says what is unreadable.
                    told = call == "pread" and isinstance(raised, (PageError, AssertionError))
                    assert told or raised is fault or raised.__cause__ is fault, raised
                    model.resolve(raised)
                file.mend()
                store.check_invariants()
                model.check()
            tried += file.raised
    report(f"storage: {call}, {tried} faults in all, 0 lost")
    assert tried or call == "truncate"


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [pytest.param(1500), pytest.param(30_000, marks=pytest.mark.stress, id="stress")]
)
def test_faults_at_random_beside_other_threads_lose_nothing(
    engine: Engine,
    steps: int,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(steps)
    makes: list[Callable[[], BaseException]] = [make for make in OTHERS for _ in range(10)]
    makes += [partial(OSError, code, "made up") for code in ERRNOS]
    file = FaultyObject()

    def storm() -> BaseException | None:
        if rng.random() < 0.1:
            file.faults[rng.choice(CALLS)] = 0, 1  # a short one
        return rng.choice(makes)() if rng.random() < 0.05 else None

    told: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: told.append(hook.exc_value))
    with SwapStore(engine, backing=file, max_pool_bytes=1 << 16) as store:
        with Beside(store, steps, (BaseException,)) as others:
            file.storm = storm
            while others.are_at_work(0.01):
                pass
            file.mend()
        file.mend()
        store.check_invariants()
    report(
        f"storage: {file.raised} faults at random, {others.met} told, {len(told)} in the shrinker, 0 lost"
    )
