"""Results stay right whatever is written over the words of a worker's ring, at any moment.

Owner and worker read only a share's words of each other. Staged pages and outputs have no checksum
unless the engine verifies, so this damages only words.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from support.batch_load import HANG_LIMIT_S, KINDS, PAGE, Kind, Load, is_alive, rings, state
from support.ring_map import CONTROL, NAMES, SLOTS, RingMap
from support.waiting import await_true

from batchzip import Engine
from batchzip.lanes import watch
from batchzip_workers.backend import WorkersBackend
from batchzip_workers.failpoints import armed
from batchzip_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.core.ring import Ring
    from batchzip.statistics import Statistics

PAGES = 96


def open_map(engine: Engine) -> RingMap:
    """View the ring of the first worker there is, by its owner's mapping: nobody else can write."""
    assert isinstance(engine.backend, WorkersBackend)
    while True:
        for place in engine.backend._supervisor._workers:
            ring = place.ring
            if ring is not None:
                with contextlib.suppress(AttributeError, ValueError):  # it was closed meanwhile
                    return RingMap.of(ring._segment.memory, engine.page_size)
        time.sleep(0.001)


class Vandal:
    """Writes over words of an engine's rings from a thread of its own, at random moments."""

    def __init__(self, engine: Engine, names: tuple[str, ...], seed: int, mean_s: float) -> None:
        self._engine = engine
        self._names = names
        self._rng = np.random.default_rng(seed)
        self._mean_s = mean_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failure: BaseException | None = None
        self.damage: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._rng.exponential(self._mean_s)):
                self.spoil(open_map(self._engine))
        except BaseException as failure:  # noqa: BLE001 - raised in the main thread
            self.failure = failure

    def spoil(self, ring: RingMap) -> None:
        """Change one word: a little, or to anything."""
        rng = self._rng
        name = self._names[rng.integers(len(self._names))]
        words = ring.words(name, int(rng.integers(SLOTS)))
        # Most shares are small, so the first words are those that somebody reads.
        at = int(rng.integers(min(len(words), 24 if rng.random() < 0.8 else len(words))))
        before = int(words[at])
        choice = rng.integers(4)
        after = (
            before ^ 1 << int(rng.integers(32)),
            before + int(rng.integers(-5, 6)),
            int(rng.integers(1 << 32)),
            int(rng.choice([0, 1, 0xFFFFFFFF, PAGE])),
        )[choice]
        words[at] = after & 0xFFFFFFFF
        self.damage[name] += after & 0xFFFFFFFF != before


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers that hang killed soon."""
    monkeypatch.setattr(watch, "HANG_S", 0.3)


ENGINES: dict[str, Callable[[], Engine]] = {
    "lz4": lambda: Engine("lz4", backend="workers", workers=1),
    "zstd": lambda: Engine("zstd", level=1, backend="workers", workers=2),
    "lz4, verify": lambda: Engine("lz4", backend="workers", workers=2, verify=True),
    "zstd, verify": lambda: Engine("zstd", level=1, backend="workers", workers=1, verify=True),
    "isolate": lambda: Engine("lz4", backend="workers", workers=2, isolate=True),
    "python": lambda: Engine("deflate", backend="workers", workers=1),
    "python, verify": lambda: Engine("deflate", backend="workers", workers=2, verify=True),
}


def run_beside(engine: Engine, vandal: Vandal, seconds: float, batches: int) -> tuple[int, int]:
    """Do batches while a vandal works. Return their number, and that of pages called deadly."""
    load = Load(engine.codec, PAGES)
    rng = np.random.default_rng(batches)
    until = time.monotonic() + seconds
    turn = deadly = 0
    while turn < batches or time.monotonic() < until:
        kind = KINDS[turn % len(KINDS)]
        count = int(rng.integers(2, PAGES + 1))
        start = int(rng.integers(PAGES - count + 1))
        batch = load.make_batch(engine, kind, start, count)
        deadly += load.run_again(engine, kind, batch, start, may_kill=True)
        turn += 1
        if vandal.failure is not None:
            raise vandal.failure
    return turn, deadly


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
@pytest.mark.filterwarnings("ignore::batchzip.WorkerWarning")  # some are spoilt while they start
@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize(
    ("seconds", "generous"),
    [
        pytest.param(0.7, False, id="short"),
        pytest.param(5.0, True, marks=pytest.mark.stress, id="stress, shares kept"),
        pytest.param(5.0, False, marks=pytest.mark.stress, id="stress, pages taken back"),
    ],
)
def test_spoilt_words_change_no_result(
    which: str, seconds: float, generous: bool, report: Callable[[str], None]
) -> None:
    with ENGINES[which]() as engine:
        assert isinstance(engine.backend, WorkersBackend)
        engine.backend.divider.generous = generous
        assert engine.wait_ready()
        # An isolated engine has nobody but workers, and it takes 0.1 s to start one.
        mean_s = 0.02 if engine.backend.isolate else 0.0005
        with Vandal(engine, NAMES, int(10 * seconds), mean_s) as vandal:
            turns, deadly = run_beside(engine, vandal, seconds, 20)
        if vandal.failure is not None:
            raise vandal.failure
        assert len(vandal.damage) > len(NAMES) // 2
        restarts = engine.statistics.restarts
        assert restarts
        load = Load(engine.codec, PAGES)
        deadline = time.monotonic() + HANG_LIMIT_S
        while engine.statistics.restarts < restarts or not engine.wait_ready(0.1):
            assert time.monotonic() < deadline, "spoilt workers are replaced"
            load.run_again(
                engine, KINDS[0], load.make_batch(engine, KINDS[0], 0, PAGES), 0, may_kill=True
            )
    report(
        f"spoilt words, {which}, {'shares kept' if generous else 'pages taken back'}: "
        f"{vandal.damage.total()} in {turns} batches, {restarts} workers ended by them, "
        f"{deadly} pages failed as deadly, 0 wrong"
    )


CHANGES: dict[str, Callable[[int], int]] = {
    "one less": lambda word: word - 1,
    "one more": lambda word: word + 1,
    "a bit": lambda word: word ^ 1 << 7,
    "zero": lambda _: 0,
    "all ones": lambda _: 0xFFFFFFFF,
}

PLACES = [
    ("posted:1:stop", ("claim", "descriptor", "lengths", "rows")),  # the worker has not looked yet
    ("took:3:stop", ("claim", "descriptor", "lengths", "rows")),
    (
        "noted:1:stop",
        ("claim", "finished", "results", "dlens", "errors", "hashes"),
    ),  # all but `done` is written
]


def _moments() -> Iterator[Any]:
    for failpoint, names in PLACES:
        for name in (*CONTROL, *names):
            for change in CHANGES:
                in_short = change == "one less" and (name in names or failpoint == "took:3:stop")
                yield pytest.param(
                    failpoint, name, change, marks=() if in_short else pytest.mark.stress
                )


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("failpoint", "name", "change"), list(_moments()))
def test_a_word_spoilt_while_its_reader_stands_still_changes_no_result(
    failpoint: str, name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stops itself with a share in hand, the word is changed, and it goes on."""
    kill = Supervisor.kill
    resumed = threading.Event()

    def kill_later(self: Supervisor, ring: Ring) -> None:
        if resumed.is_set():
            kill(self, ring)

    monkeypatch.setattr(Supervisor, "kill", kill_later)
    placed = name == "rows"
    kind = Kind(compress=placed or change != "zero", placed=placed, submitted=False)
    with armed(failpoint), Engine("lz4", backend="workers", workers=1, verify=True) as engine:
        assert engine.wait_ready()
        load = Load(engine.codec, PAGES)
        (pid,) = engine.worker_pids
        batch = load.make_batch(engine, kind, 0, 40)
        ring = open_map(engine)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(load.run_again, engine, kind, batch, 0, may_kill=True)
            await_true(lambda: state(pid) == "T", "the worker's stop")
            words = ring.words(name, 0)
            at = min(1, len(words) - 1)
            words[at] = CHANGES[change](int(words[at])) & 0xFFFFFFFF
            os.kill(pid, signal.SIGCONT)
            resumed.set()
            done.result(HANG_LIMIT_S)
        # Whatever became of that worker, one takes part again.
        before = engine.statistics
        deadline = time.monotonic() + HANG_LIMIT_S
        while not _took_part(engine, before):
            load.run_again(engine, kind, batch, 0, may_kill=True)
            assert time.monotonic() < deadline, "a worker takes part again"
        assert is_alive(engine.worker_pids[0])
        assert engine.wait_ready()


def _took_part(engine: Engine, before: Statistics) -> bool:
    """Whether a worker did pages since then."""
    return any(
        now.pages - now.inline_pages > then.pages - then.inline_pages
        for now, then in (
            (engine.statistics.compress, before.compress),
            (engine.statistics.decompress, before.decompress),
        )
    )


@pytest.mark.slow
def test_the_map_of_a_ring_is_right() -> None:
    """Words that a share leaves are where the map says."""
    with Engine("lz4", backend="workers", workers=1, verify=True) as engine:
        assert engine.wait_ready()
        load = Load(engine.codec, PAGES)
        ring = open_map(engine)
        load.run(engine, KINDS[2], 0, 40)
        (core,) = rings(engine)
        assert ring.control["ready"].tolist() == [1]
        assert ring.control["posted"].tolist() == [core.posted]
        assert ring.control["done"].tolist() == [core.done]
        slot = ring.slots[0]
        count = int(slot["descriptor"][2])
        assert slot["claim"].tolist() == [count, count]
        assert slot["lengths"][:count].tolist() == [PAGE] * count
        assert slot["dlens"][:count].tolist() == [len(output) for output in load.outputs[:count]]
        assert not slot["errors"][:count].any()
        assert slot["hashes"][: 2 * count].all()
        assert slot["results"].any()
        load.run(engine, KINDS[0], 0, 40)
        slot = ring.slots[(core.posted - 1) % SLOTS]
        assert slot["rows"][:2].tolist() == [int(slot["descriptor"][4]) + at for at in range(2)]
