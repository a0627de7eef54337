"""Interrupts at every point of every call of a store, and at random moments while others use it.

After each, everything acknowledged is there, the store is whole, and it can be closed.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.interrupts import STORE, InterruptAt
from support.thread_model import INTERRUPTS, SIZE, Model, make_page

from batchzip import Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from support.reporting import Report

ENGINES: dict[str, Callable[[], Engine]] = {
    "sequential": lambda: Engine("lz4", backend="sequential", page_size=SIZE),
    "threads": lambda: Engine("lz4", backend="threads", workers=2, page_size=SIZE),
}


np.unique(
    [1]
)  # which imports more of numpy when it is first called: an import that is cut short keeps its lock


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with ENGINES[request.param]() as engine:
        assert engine.wait_ready()
        yield engine


@pytest.fixture(scope="module")
def second() -> Iterator[Engine]:
    """For recompression."""
    with Engine("zstd", backend="sequential", page_size=SIZE) as engine:
        yield engine


def filled(engine: Engine, backing: object, *, full: bool = False) -> tuple[SwapStore, Model]:
    """Make a store with pages and holes in memory and in the file. A `full` pool takes no more."""
    store = SwapStore(engine, backing=backing, shrinker_enabled=False)
    model = Model(store, "model", 1)
    for name in model.pages:
        for first in range(0, 40, 8):
            pages = [make_page(first + at) for at in range(8)]
            store.group(name).store(first, pages)
            model.note(name, range(first, first + 8), list(pages))
        if backing is not None:
            store.group(name).writeback(range(12, 28))
        store.group(name).invalidate(20, 3)
        model.note(name, range(20, 23), [None] * 3)
    if full:
        store.max_pool_bytes = 0
    return store, model


def in_the_file(model: Model) -> None:
    """Take pages out of the file and of memory, together."""
    name = "model one"
    folio = range(8, 19)
    pages = model.held(name, folio)
    gone = [None] * len(folio)
    model._doubt = name, folio, [pages, list(gone)]
    found = model.group(name).load_many(folio, exclusive=True)
    assert found.tobytes() == b"".join(page for page in pages if page is not None)
    model.done(name, folio, list(gone))


def closes(model: Model) -> None:
    model.store.close()


CALLS: dict[str, tuple[Callable[[Model], object], bool, bool]] = {
    # what is called; is there a file; is the pool full
    "store": (Model.store_some, False, False),
    "store, refused": (Model.store_some, False, True),
    "store, to the file": (Model.store_some, True, True),
    "load": (Model.load, False, False),
    "load many": (Model.load_many, True, False),
    "take": (Model.take, True, False),
    "take many": (in_the_file, True, False),
    "invalidate": (Model.invalidate, True, False),
    "writeback": (Model.write_back, True, False),
    "recompress": (Model.recompress, False, False),
    "drop": (Model.drop, True, False),
    "compact": (Model.compact, True, False),
    "shrink": (Model.shrink, True, True),
    "look": (Model.look, True, False),
    "share": (lambda model: model.store.share(), True, False),
    "group": (lambda model: model.store.group("new"), False, False),
    "engine": (lambda model: setattr(model.store, "engine", model.store.engine), False, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_at_any_point_of_a_call_leaves_a_store_whole(
    engine: Engine, second: Engine, call: str, tmp_path: Path, report: Report
) -> None:
    work, has_file, full = CALLS[call]
    point = 0
    happened = True
    while happened:
        point += 1
        store, model = filled(engine, tmp_path if has_file else None, full=full)
        model.second = second
        interrupt = InterruptAt(point, STORE)
        try:
            with interrupt:
                work(model)
        except KeyboardInterrupt as error:
            model.resolve(error)
        happened = interrupt.happened
        store.max_pool_bytes = None
        store.check_invariants()
        model.check()
        model.store_some()
        model.check()
        store.close()
    assert point > 2
    report(
        f"interrupts: {engine.backend.name}, {call}: at each of {point - 1} points, 0 wrong",
        points=point - 1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("has_file", [False, True])
def test_closing_that_was_cut_short_can_be_finished(
    engine: Engine, has_file: bool, tmp_path: Path, report: Report
) -> None:
    point = came = 0
    happened = True
    while happened:
        point += 1
        store, model = filled(engine, tmp_path / "file" if has_file else None)
        store.share()
        interrupt = InterruptAt(point, (*STORE, threading.__file__))
        try:
            with interrupt:
                store.close()
        except KeyboardInterrupt:
            came += 1
        happened = interrupt.happened
        store.close()
        assert store.closed
        assert not list(tmp_path.iterdir())
        del store, model
    assert came == point - 1 > 5
    report(
        f"interrupts: {engine.backend.name}, close: at each of {point - 1} points, 0 left behind",
        points=point - 1,
    )


def _is_in_a_finalizer(frame: FrameType | None) -> bool:
    """Return whether Python would swallow an exception, because a finalizer runs."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


class Interrupts:
    """Raises at random moments in the main thread, several in a row now and then."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0
        self._armed = self._came = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._raise)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _raise(self, _number: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        if _is_in_a_finalizer(frame):
            signal.setitimer(signal.ITIMER_REAL, 2e-5)
            return
        self._came = True
        self.count += 1
        raise self.random.choice(INTERRUPTS)

    def during(self, work: Callable[[], None]) -> BaseException | None:
        """Repeat work until it is interrupted. Return what ended it; None: it was swallowed."""
        again_s = self.random.choice([0, 0, 5e-5, 2e-4])
        until_s = self.random.expovariate(1 / 1e-3) + 1e-5
        found = None
        try:
            self._came, self._armed = False, True
            signal.setitimer(signal.ITIMER_REAL, until_s, again_s)
            while not self._came:
                work()
            self._armed = False
        except INTERRUPTS as error:
            self._armed = False
            found = error
        signal.setitimer(signal.ITIMER_REAL, 0)
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(60), pytest.param(3000, marks=pytest.mark.stress, id="stress")]
)
def test_signals_at_random_moments_lose_nothing_of_anybodys(
    engine: Engine, times: int, tmp_path: Path, report: Report
) -> None:
    """One thread is interrupted while two others store, load, write back, recompress, drop."""
    interrupts = Interrupts(times)
    steps = [0, 0]
    failures: list[BaseException] = []
    ended = threading.Event()
    with SwapStore(engine, backing=tmp_path, max_pool_bytes=1 << 16) as store:

        def work(number: int) -> None:
            model = Model(store, f"other {number}", times)
            try:
                while not ended.is_set():
                    model.step()
                    steps[number] += 1
                    if steps[number] % 50 == 0:
                        model.check()
                model.check()
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)

        others = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        before = sys.getswitchinterval()
        sys.setswitchinterval(2e-4)
        try:
            for other in others:
                other.start()
            model = Model(store, "interrupted", times)
            swallowed = 0
            with interrupts:
                for _ in range(times):
                    error = interrupts.during(model.step)
                    if error is None:
                        swallowed += 1
                    else:
                        model.resolve(error)
                    model.check()
        finally:
            ended.set()
            for other in others:
                other.join()
            sys.setswitchinterval(before)
        if failures:
            raise failures[0]
        store.check_invariants()
    assert swallowed < times / 4
    report(
        f"interrupts: {engine.backend.name}: {interrupts.count} signals beside "
        f"{sum(steps)} steps of others, 0 lost"
    )
