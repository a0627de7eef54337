"""A backing file whose calls use the store, and one that fails beside other threads."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.faulty_object import CALLS, STREAM_CALLS, FaultyObject, FaultyStream
from support.storage_calls import OTHERS, causes
from support.thread_model import SIZE, Beside, make_page

from batchzip import (
    BatchzipError,
    ClosedError,
    Engine,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRNOS = sorted(errno.errorcode)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential", page_size=SIZE) as engine:
        yield engine


# Calls back.


NESTED: dict[str, Callable[[SwapStore], object]] = {
    "load": lambda store: store.load(3),
    "load from memory": lambda store: store.load(30),
    "load many": lambda store: store.load_many(range(40)),
    "store": lambda store: store.store(50, [make_page(50), make_page(51)]),
    "take": lambda store: store.load(31, exclusive=True),
    "invalidate": lambda store: store.invalidate(50, 2),
    "write back": lambda store: store.writeback(range(30, 40)),
    "shrink": lambda store: store.shrink(),
    "compact": lambda store: store.compact(),
    "check": lambda store: store.check(),
    "look": lambda store: (store.status(), store.counters, store.groups, store.classes()),
    "group": lambda store: store.group("other").store(0, make_page(1)),
    "drop a group": lambda store: store.drop_group("other"),
    "recompress": lambda store: store.recompress(store.engine),
    "limits": lambda store: setattr(store, "max_pool_bytes", 0),
    "engine": lambda store: setattr(store, "engine", store.engine),
    "second store": lambda store: SwapStore(store.engine, backing=store._resources.backing),
}


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("make", [FaultyObject, FaultyStream])
def test_every_call_of_the_file_may_call_the_store(
    engine: Engine, make: type[FaultyObject | FaultyStream], nested: str
) -> None:
    kept = [make_page(at) for at in range(30)]
    visits = 0
    target = make()
    with SwapStore(engine, backing=target, shrinker_enabled=False) as store:
        store.store(0, kept)
        store.writeback(range(20))
        store.store(30, [make_page(at) for at in range(30, 40)])
        busy = False

        def visit(call: str) -> None:
            nonlocal busy, visits
            if busy:
                return
            busy, visits = True, visits + 1
            try:
                NESTED[nested](store)
            except (BatchzipError, OSError) as error:
                # What is cut off cannot be given to the very thread that cuts.
                full = [cause for cause in causes(error) if isinstance(cause, BlockingIOError)]
                assert call == "truncate" or not full
            finally:
                busy = False

        for turn in range(3):
            target.visit = visit
            store.writeback(range(10, 20 + turn))
            assert store.load_many(range(20)).tobytes() == b"".join(kept[:20])
            store.store(60, [make_page(at) for at in range(60, 90)])
            store.writeback(range(60, 90))
            store.invalidate(60, 30)
            store.compact()
            target.visit = None
            store.check_invariants()
            assert store.check().ok
            assert store.load_many(range(30)).tobytes() == b"".join(kept)
    assert visits > 10


@pytest.mark.parametrize("call", [*CALLS, *STREAM_CALLS[:-1]])
def test_every_call_of_the_file_may_close_the_store(engine: Engine, call: str) -> None:
    target = FaultyObject() if call in CALLS else FaultyStream()
    kept = [make_page(at) for at in range(30)]
    with SwapStore(engine, backing=target, shrinker_enabled=False) as store:
        store.store(0, kept)
        store.writeback(range(20))
        store.store(60, kept)

        def visit(name: str) -> None:
            if name == call:
                store.close()

        target.visit = visit
        works: list[Callable[[], object]] = [
            lambda: store.load_many(range(20)),
            lambda: store.writeback(range(60, 90)),
            lambda: store.invalidate(0, 90),
        ]
        for work in works:
            if not store.closed:
                with contextlib.suppress(ClosedError):
                    work()
        target.visit = None
        assert store.closed
    with SwapStore(engine, backing=target) as store:
        store.store(0, kept)
        assert store.writeback(30) > 20
        assert store.load_many(range(30)).tobytes() == b"".join(kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [pytest.param(1500), pytest.param(30_000, marks=pytest.mark.stress, id="stress")]
)
@pytest.mark.parametrize("make", [FaultyObject, FaultyStream])
def test_faults_at_random_beside_other_threads_lose_nothing(
    engine: Engine,
    make: type[FaultyObject | FaultyStream],
    steps: int,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(steps)
    makes: list[Callable[[], BaseException]] = [make for make in OTHERS for _ in range(10)]
    makes += [partial(OSError, code, "made up") for code in ERRNOS]
    file = make()

    def storm() -> BaseException | None:
        if isinstance(file, FaultyObject) and rng.random() < 0.1:
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
        f"storage: {file.met} random faults, {others.met} told, {len(told)} in the shrinker, 0 lost"
    )
