"""KeyboardInterrupt anywhere in compress, decompress, submit, wait and store: all stays as it was.

The memory of a batch is the caller's again once an interrupt has ended its call, also while the
exception and its traceback are still kept: that is what is looked at here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import interrupts
from support.batch_load import (
    HANG_LIMIT_S,
    KINDS,
    PAGE,
    Kind,
    Load,
    assert_all_slots_are_free,
    blank,
    do,
)
from support.codecs.interrupted import INTERRUPTS, InterruptedCodec
from support.interrupts import SHARING, InterruptAt
from support.waiting import await_true

from batchzip import CompressBatch, DecompressBatch, Engine, PageNotStored, StoreView, SwapStore
from batchzip.lanes import LanesBackend, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.reporting import Report, Turns

    from batchzip.batch import Batch
    from batchzip.request import Request

PAGES = 24
LATE_S = 5.0
"""Seconds after which an interrupt that was due in milliseconds went elsewhere."""

ENGINES: dict[str, Callable[[], Engine]] = {
    "workers": lambda: Engine("lz4", backend="workers", workers=2),
    "threads": lambda: Engine("lz4", backend="threads", workers=2),
    "sequential": lambda: Engine("lz4", backend="sequential"),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    # Nothing here hangs, so no worker that is slow to answer shall be killed for it.
    monkeypatch.setattr(watch, "GRACE_S", HANG_LIMIT_S)
    with ENGINES[request.param]() as engine:
        assert engine.wait_ready()
        yield engine


def outputs(batch: Batch) -> np.ndarray:
    return batch.dsts if isinstance(batch, CompressBatch) else batch.pages  # type: ignore[attr-defined]


def check_nobody_writes_any_more(engine: Engine, batch: Batch) -> None:
    """What the caller writes to a batch's memory after an interrupt stays there."""
    blank(batch)
    blanked = outputs(batch).copy()
    if isinstance(engine.backend, LanesBackend):
        # A request that nobody knows of would be done by then.
        queue = engine.backend._queue
        await_true(lambda: queue._pages == 0, "the end of all requests")
        assert_all_slots_are_free(engine)
    np.testing.assert_array_equal(outputs(batch), blanked)


class Calls:
    """What a program does with an engine, and what it has in hand when it is interrupted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.request: Request[Batch] | None = None

    def do(self, batch: Batch, *, submitted: bool) -> None:
        if not submitted:
            do(self._engine, batch)
            return
        self.request = None
        self.request = self._engine.submit(batch)
        self.request.wait(HANG_LIMIT_S)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_interrupt_at_any_point_leaves_nothing_under_way(
    engine: Engine, kind: Kind, report: Report
) -> None:
    interrupt_everywhere(engine, kind, report)


@pytest.mark.parametrize(
    ("backend", "placed"),
    [
        pytest.param("threads", False, marks=pytest.mark.stress),
        pytest.param("workers", False, marks=pytest.mark.stress),
        pytest.param("workers", True, marks=pytest.mark.stress),
    ],
)
def test_an_interrupt_at_any_point_of_a_batch_that_takes_long_leaves_nothing_under_way(
    backend: str, placed: bool, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core comes back to Python from time to time."""
    monkeypatch.setattr(watch, "GRACE_S", HANG_LIMIT_S)
    monkeypatch.setattr(watch, "LOOK_S", 0.03)
    with Engine("zstd", level=19, backend=backend, workers=2) as engine:
        assert engine.wait_ready()
        kind = Kind(compress=True, placed=placed, submitted=False)
        interrupt_everywhere(engine, kind, report, pages=1600, at_least=9)


def interrupt_everywhere(
    engine: Engine, kind: Kind, report: Report, pages: int = PAGES, at_least: int = 3
) -> None:
    load = Load(engine.codec, pages)
    calls = Calls(engine)
    pids, point, missed, came = engine.worker_pids, 1, 0, 0
    while missed < 3:  # how often a wait looks is never the same
        batch = load.make_batch(engine, kind, 0, pages)
        interrupted: BaseException | None = None
        interrupt = InterruptAt(point)
        try:
            with interrupt:
                calls.do(batch, submitted=kind.submitted)
        except KeyboardInterrupt as error:
            interrupted = error
            came += 1
        missed = 0 if interrupt.happened else missed + 1
        point += 1
        assert interrupt.happened == (interrupted is not None), interrupt.where
        if interrupted is not None:
            if calls.request is not None:
                calls.request.wait(HANG_LIMIT_S)
                load.check(batch, 0)
            check_nobody_writes_any_more(engine, batch)
        load.run_again(engine, kind, batch, 0)
    assert came >= at_least
    assert engine.worker_pids == pids, "no worker was killed"
    report(
        f"interrupts: {engine.backend.name}, {kind}: at each of {came} points, 0 wrong",
        points=came,
    )


class Alarms:
    """Lets SIGALRM do what Ctrl-C does: the kernel sends it at any microsecond, unlike a thread.

    Python ignores an exception that a finalizer raises, whatever the finalizer belongs to. Such an
    interrupt is sent again. One that goes elsewhere is a failure.
    """

    def __init__(self) -> None:
        self.ignored: list[str] = []
        """Where interrupts were ignored."""
        self._known = 0
        self._late = 0.0
        self._pass_on = sys.unraisablehook

    def send(self, after_s: float) -> None:
        """Send an interrupt after some seconds."""
        self._late = time.monotonic() + LATE_S
        signal.setitimer(signal.ITIMER_REAL, after_s)

    def look(self) -> None:
        """Send it again if it should have come long ago."""
        if time.monotonic() < self._late:
            return
        assert len(self.ignored) > self._known, "an interrupt did not come"
        self._known = len(self.ignored)
        self.send(1e-3)

    def note(self, ignored: sys.UnraisableHookArgs) -> None:
        """Note an exception that Python ignores."""
        if ignored.exc_type is KeyboardInterrupt:
            self.ignored.append(repr(ignored.object))
        else:
            self._pass_on(ignored)


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alarms]:
    made = Alarms()
    monkeypatch.setattr(sys, "unraisablehook", made.note)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def was_raised_here(error: BaseException) -> bool:
    """Whether a signal came between two calls of the engine: in the code of this module."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code.co_filename == __file__


@pytest.mark.slow
@pytest.mark.parametrize("generous", [True, False], ids=["given", "taken back"])
@pytest.mark.parametrize(
    "times", [pytest.param(50), pytest.param(400, marks=pytest.mark.stress, id="stress")]
)
def test_signals_at_random_moments_leave_nothing_under_way(
    engine: Engine,
    times: int,
    generous: bool,
    report: Report,
    turns: Turns,
    seed: int,
    alarms: Alarms,
) -> None:
    """One batch in eight is large: the others make many interrupts cheap."""
    if isinstance(engine.backend, LanesBackend):
        engine.backend.divider.generous = generous
    load = Load(engine.codec, 300)
    rng = np.random.default_rng((seed, times))
    batches = [
        (kind, load.make_batch(engine, kind, 0, count), count / 300 * 3e-3)
        for count in (300, 40, 40, 40, 40, 40, 40, 40)
        for kind in KINDS
    ]
    between = came = 0
    for turn in turns(times):
        kind, batch, takes_s = batches[turn % len(batches)]
        came += 1
        calls = Calls(engine)  # the signal may come before it has a request
        try:
            alarms.send(rng.uniform(20e-6, takes_s))
            while True:
                alarms.look()
                calls.do(batch, submitted=kind.submitted)
        except KeyboardInterrupt as error:
            if kind.submitted and calls.request is not None:
                calls.request.wait(HANG_LIMIT_S)
                load.check(batch, 0)
            elif kind.submitted and was_raised_here(error):
                # It came when `submit` had returned and nobody had the request yet.
                between += 1
                time.sleep(0.05)
                continue
            check_nobody_writes_any_more(engine, batch)
        load.run_again(engine, kind, batch, 0)
    assert between < came / 4
    assert engine.statistics.restarts == 0
    report(
        f"interrupts: {engine.backend.name}: {came} signals at random moments, 0 wrong"
        + (f", ignored by Python in {alarms.ignored}" if alarms.ignored else ""),
        interrupts=came,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [pytest.param(50), pytest.param(400, marks=pytest.mark.stress, id="stress")]
)
def test_signals_at_random_moments_leave_a_store_whole(
    engine: Engine, times: int, report: Report, turns: Turns, seed: int, alarms: Alarms
) -> None:
    folios, length = 16, 8
    load = Load(engine.codec, length)
    rng = np.random.default_rng((seed, times))
    version = came = 0
    stored = dict.fromkeys(range(folios), 0)
    """The version that each folio has; 0: none."""
    with SwapStore(engine) as store:
        for came in turns(times):
            folio = new = 0
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - wherever it comes
                alarms.send(rng.uniform(20e-6, 2e-3))
                while True:
                    alarms.look()
                    folio, new = int(rng.integers(folios)), version + 1
                    pages = load.pages.copy()
                    pages[:, :4] = np.frombuffer(new.to_bytes(4, "big"), np.uint8)
                    version = new
                    store.store(folio * length, pages)
                    stored[folio] = new
                    store.load_many(range(folio * length, (folio + 1) * length))
            found = find_version(store, load, folio, length)
            assert found in (stored[folio], new, 0)
            stored[folio] = found
            if came % 16:
                continue
            store.check_invariants()
            for other in range(folios):
                assert find_version(store, load, other, length) == stored[other]
    report(
        f"interrupts: store on {engine.backend.name}: "
        f"{came + 1} signals at random moments, 0 wrong"
        + (f", ignored by Python in {alarms.ignored}" if alarms.ignored else ""),
        interrupts=came + 1,
    )


def find_version(store: SwapStore, load: Load, folio: int, length: int) -> int:
    """Return which version of a folio there is, of all its pages; 0: none of any."""
    indices = range(folio * length, (folio + 1) * length)
    if not any(index in store for index in indices):
        return 0
    try:
        pages = store.load_many(indices)
    except PageNotStored as error:
        raise AssertionError(f"half of folio {folio} is stored") from error
    versions = {bytes(page[:4]) for page in pages}
    assert len(versions) == 1
    np.testing.assert_array_equal(pages[:, 4:], load.pages[:, 4:])
    return int.from_bytes(versions.pop(), "big")


@pytest.mark.slow
@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("backend", ["workers", "sequential"])
def test_an_interrupt_within_a_codec_in_python_ends_the_batch(
    backend: str, submitted: bool
) -> None:
    with Engine(InterruptedCodec(os.getpid()), backend=backend) as engine:
        assert engine.wait_ready()
        load = Load(engine.codec, PAGES)
        pages = load.pages.copy()
        pages[:, : len(INTERRUPTS)] = np.frombuffer(INTERRUPTS, np.uint8)
        batch = CompressBatch(pages, dsts=np.empty((PAGES, 2 * PAGE), np.uint8))
        with pytest.raises(KeyboardInterrupt):
            do(engine, batch, submitted=submitted)
        check_nobody_writes_any_more(engine, batch)
        load.run(engine, KINDS[-1], 0, PAGES)
        back = DecompressBatch(load.outputs)
        engine.decompress(back)
        assert not back.has_errors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # what is dropped closes itself
@pytest.mark.parametrize("attaches", [False, True], ids=["share", "attach"])
def test_an_interrupt_at_any_point_of_sharing_leaves_no_descriptor(
    attaches: bool, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    # threading itself keeps a thread for ever that an interrupt has kept from starting.
    monkeypatch.setattr(interrupts, "_ON_BEHALF", ())
    point, came, happened = 0, 0, True
    with Engine("lz4", backend="sequential") as engine:
        while happened:
            point += 1
            before = open_descriptors()
            with SwapStore(engine) as store:
                store.store(0, bytes(PAGE))
                act = store.share().attach if attaches else store.share
                interrupt, done = InterruptAt(point, SHARING), None
                try:
                    with interrupt:
                        done = act()
                except KeyboardInterrupt:
                    came += 1
                happened = interrupt.happened
                if isinstance(done, StoreView):
                    done.close()
                with store.share().attach() as view:
                    assert view.load(0) == bytes(PAGE)
            left = {
                name: target for name, target in open_descriptors().items() if name not in before
            }
            assert not left, interrupt.where
    assert came == point - 1 > 3
    report(
        f"interrupts: {'attach' if attaches else 'share'}: at each of {point - 1} points",
        points=came,
    )


def open_descriptors() -> dict[str, str]:
    """List this process's descriptors, but for the one that lists them, with what they are."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = str(path.readlink())
    return found
