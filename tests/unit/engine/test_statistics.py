"""Statistics: totals are exact, no figure ever falls, and asking disturbs nobody."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import threading
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.codecs.faulty import KILL, KILL_ONCE
from support.dividing import divide_never
from support.held_lane import Hold
from support.waiting import await_true

from batchzip import CompressBatch, DecompressBatch, Engine, ForkedProcess, PageError, SwapStore
from batchzip.testing.plain import PAGE, SLACK_S, check_round_trip, in_threads, make_pages
from batchzip_workers.failpoints import armed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.arguments.buffers import Bytes
    from batchzip.statistics import Statistics

pytestmark = pytest.mark.usefixtures("always_hand_over")


@pytest.fixture(params=["sequential", "threads 1", "threads 2", "workers 1", "workers 2"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    backend, _, lanes = request.param.partition(" ")
    how: dict[str, Any] = {"workers": int(lanes)} if lanes else {}
    with Engine("lz4", backend=backend, **how) as engine:
        assert engine.wait_ready(SLACK_S)
        yield engine


class Expected:
    """What should be counted, added up by whoever does the work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.figures: Counter[str] = Counter()
        self.errors: Counter[int] = Counter()

    def add(self, kind: str, batches: int, pages: int, bytes_in: int, bytes_out: int) -> None:
        with self._lock:
            for name, number in (
                ("batches", batches),
                ("pages", pages),
                ("bytes_in", bytes_in),
                ("bytes_out", bytes_out),
            ):
                self.figures[f"{kind} {name}"] += number

    def add_errors(self, codes: list[int]) -> None:
        with self._lock:
            self.errors.update(code for code in codes if code)

    def check(self, statistics: Statistics) -> None:
        found = {
            f"{kind} {name}": getattr(getattr(statistics, kind), name)
            for kind in ("compress", "decompress")
            for name in ("batches", "pages", "bytes_in", "bytes_out")
        }
        assert found == {name: self.figures[name] for name in found}
        assert statistics.errors == dict(self.errors)


def figures_that_only_grow(statistics: Statistics) -> dict[str, float]:
    flat: dict[str, float] = {"restarts": statistics.restarts}
    for kind in ("compress", "decompress"):
        for name, number in asdict(getattr(statistics, kind)).items():
            flat[f"{kind} {name}"] = number
    for code, number in statistics.errors.items():
        flat[f"error {code}"] = number
    return flat


def check_none_fell(before: dict[str, float], after: dict[str, float]) -> None:
    fell = {name: (before[name], after.get(name)) for name in before if after[name] < before[name]}
    assert not fell


def mixed_work(engine: Engine, seed: int, expected: Expected) -> None:
    """Batches of all kinds, some with bad pages, some of them submitted."""
    rng = np.random.default_rng(seed)
    for turn in range(13):
        count = int(rng.integers(1, 100))
        pages: list[bytes] = [bytes(page) for page in make_pages(count, seed=seed)]
        unfit = turn % 3 == 0
        if unfit:
            pages[count // 2] = b"short"
        batch = CompressBatch(pages, page_size=PAGE, capacity=1800 if turn % 2 else None)
        if turn % 4 < 2:
            engine.compress(batch)
        else:
            engine.submit(batch).wait(SLACK_S)
        expected.add("compress", 1, count, (count - unfit) * PAGE, int(batch.dlens.sum()))
        expected.add_errors(batch.errors.tolist())

        srcs: list[Any] = [output for output in batch.outputs() if output]
        if turn % 5 == 0:
            srcs += [b"bad", bytes(3 * PAGE)]
        if not srcs:
            continue
        back = DecompressBatch(srcs)
        if turn % 4 < 2:
            engine.submit(back).wait(SLACK_S)
        else:
            engine.decompress(back)
        bytes_in = sum(len(src) for src in srcs if len(src) <= 2 * PAGE)
        expected.add("decompress", 1, len(srcs), bytes_in, int(back.dlens.sum()))
        expected.add_errors(back.errors.tolist())


@pytest.mark.slow
def test_totals_of_mixed_work_in_threads_that_end_are_exact(engine: Engine) -> None:
    expected = Expected()
    expected.check(engine.statistics)
    for round_ in range(2):
        in_threads(4, lambda seed, r=round_: mixed_work(engine, 10 * r + seed, expected))  # type: ignore[misc]
        gc.collect()
        expected.check(engine.statistics)
    statistics = engine.statistics
    inline = statistics.compress.inline_pages + statistics.decompress.inline_pages
    done = statistics.compress.pages + statistics.decompress.pages
    if engine.backend.name == "threads":
        assert 0 < inline < done
    else:
        assert inline + sum(worker.pages for worker in statistics.workers) == done
    assert [worker.pid for worker in statistics.workers] == list(engine.worker_pids)
    for worker in statistics.workers:
        assert worker.shares
        assert worker.pages
        assert worker.bytes_in > 0
        assert worker.bytes_out > 0
        assert 0 < worker.busy_s < SLACK_S
    assert statistics.restarts == statistics.compress.fallbacks == 0
    assert 0 <= statistics.compress.divided <= statistics.compress.batches
    assert bool(statistics.compress.divided) == (engine.backend.name != "sequential")


@pytest.mark.slow
def test_totals_are_still_there_after_close() -> None:
    expected = Expected()
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready(SLACK_S)
        mixed_work(engine, 1, expected)
        before = figures_that_only_grow(engine.statistics)
    check_none_fell(before, figures_that_only_grow(engine.statistics))
    expected.check(engine.statistics)
    assert engine.statistics.workers == ()


@pytest.mark.slow
def test_no_figure_falls_while_others_work_and_workers_die() -> None:
    expected = Expected()
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready(SLACK_S)
        stop = threading.Event()

        def work(number: int) -> None:
            if number:
                try:
                    mixed_work(engine, number, expected)
                    mixed_work(engine, number + 10, expected)
                finally:
                    stop.set()
                return
            seen = figures_that_only_grow(engine.statistics)
            kills = 0
            while not stop.is_set():
                if kills < 3 and engine.wait_ready(SLACK_S):
                    kills += 1
                    with contextlib.suppress(ProcessLookupError, IndexError):  # it is dead already
                        os.kill(engine.worker_pids[0], signal.SIGKILL)
                for _ in range(20):
                    now = figures_that_only_grow(engine.statistics)
                    check_none_fell(seen, now)
                    seen = now

        in_threads(3, work)
        statistics = engine.statistics
        # A share whose worker died just after it counted it is counted again where it is run again.
        for kind in ("compress", "decompress"):
            operation = getattr(statistics, kind)
            assert operation.batches == expected.figures[f"{kind} batches"]
            for name in ("pages", "bytes_in", "bytes_out"):
                assert getattr(operation, name) >= expected.figures[f"{kind} {name}"]
        assert statistics.errors == dict(expected.errors)


@pytest.mark.slow
def test_workers_that_die_at_rest_take_no_figure_along() -> None:
    expected = Expected()
    with Engine("lz4", backend="workers", workers=1) as engine:
        for seed in range(3):
            assert engine.wait_ready(SLACK_S)
            mixed_work(engine, seed, expected)
            expected.check(engine.statistics)
            (pid,) = engine.worker_pids
            os.kill(pid, signal.SIGKILL)
            await_true(lambda: engine.statistics.restarts == seed + 1)  # noqa: B023
            expected.check(engine.statistics)
        assert engine.wait_ready(SLACK_S)
        (worker,) = engine.statistics.workers
        assert (worker.pages, worker.shares, worker.bytes_in, worker.bytes_out) == (0, 0, 0, 0)


def marked(count: int, mark: bytes, *indices: int) -> Bytes:
    pages = np.zeros((count, PAGE), np.uint8)
    for index in indices:
        pages[index, :4] = np.frombuffer(mark, np.uint8)
    return pages


@pytest.mark.slow
def test_the_pages_of_a_share_that_is_run_again_count_once(stopping: Engine) -> None:
    batch = CompressBatch(marked(8, KILL_ONCE, 3))
    stopping.compress(batch)
    compress = stopping.statistics.compress
    assert (compress.pages, compress.batches, compress.divided) == (8, 1, 1)
    assert compress.bytes_out == batch.dlens.sum()
    assert compress.waits
    assert compress.wait_s > 0
    await_true(lambda: stopping.statistics.restarts == 1)


@pytest.mark.slow
def test_a_page_that_kills_is_an_error_and_not_done(stopping: Engine) -> None:
    batch = CompressBatch(marked(8, KILL, 3))
    stopping.compress(batch)
    statistics = stopping.statistics
    assert statistics.errors == {-errno.EOWNERDEAD: 1}
    assert statistics.compress.pages == 7
    assert statistics.compress.bytes_out == batch.dlens.sum()
    await_true(lambda: stopping.statistics.restarts >= 2)


@pytest.mark.slow
def test_pages_of_a_worker_that_dies_before_it_says_so_are_counted_once() -> None:
    with (
        armed("noted:1:kill"),
        Engine("lz4", backend="workers", workers=1) as engine,
    ):
        assert engine.wait_ready(SLACK_S)
        engine.compress(CompressBatch(make_pages(8)))
        assert engine.statistics.compress.pages == 8


@pytest.mark.slow
def test_pages_done_in_process_in_place_of_a_dead_worker_are_fallbacks(stopping: Engine) -> None:
    """The worker dies on the first of its pages: that is done by another one, the rest here."""
    batch = CompressBatch(marked(8, KILL_ONCE, 0))
    stopping.compress(batch)
    assert not batch.errors.any()
    await_true(lambda: stopping.statistics.restarts == 1)
    compress = stopping.statistics.compress
    assert (compress.inline_pages, compress.pages) == (7, 8)
    assert 3 <= compress.fallbacks < 7


def test_single_pages_count_as_pages_of_no_batch(engine: Engine) -> None:
    page = make_pages(1)[0]
    output = engine.compress_page(page)
    assert engine.decompress_page(output) == page.tobytes()
    with pytest.raises(PageError):
        engine.decompress_page(b"bad")
    found = engine.statistics
    assert (found.compress.batches, found.decompress.batches) == (0, 0)
    assert (found.compress.pages, found.compress.inline_pages) == (1, 1)
    assert (found.compress.bytes_in, found.compress.bytes_out) == (PAGE, len(output))
    assert (found.decompress.pages, found.decompress.inline_pages) == (2, 2)
    assert (found.decompress.bytes_in, found.decompress.bytes_out) == (len(output) + 3, PAGE)
    assert found.errors == {-errno.EBADMSG: 1}


def test_statistics_count_a_store_s_pages_including_single_ones(engine: Engine) -> None:
    pages = np.random.default_rng(1).integers(0, 6, (20, PAGE), np.uint8)
    with SwapStore(engine) as store:
        before = engine.statistics
        store.store(0, pages)
        store.store(100, pages[:1])
        stored = engine.statistics
        assert stored.compress.pages - before.compress.pages == 21
        for index in (0, 3, 100):
            assert store.load(index) == pages[index % 100].tobytes()
        loaded = engine.statistics
        assert loaded.decompress.pages - stored.decompress.pages == 3
        assert loaded.decompress.bytes_out - stored.decompress.bytes_out == 3 * PAGE
        store.load_many(range(20))
        assert engine.statistics.decompress.pages - loaded.decompress.pages == 20


def test_pages_given_up_count_as_errors_and_cancelled_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        hold = Hold(monkeypatch)
        hold.stop(engine)
        late = engine.submit(CompressBatch(make_pages(20)), deadline_s=0)
        assert engine.submit(CompressBatch(make_pages(30))).cancel()
        hold.release()
        late.wait(SLACK_S)
        engine.submit(CompressBatch(make_pages(1))).wait(SLACK_S)
        statistics = engine.statistics
        assert statistics.errors == {-errno.ETIMEDOUT: 20}
        assert statistics.compress.batches == 3
        assert statistics.compress.pages == 2


def test_a_batch_that_no_worker_had_a_share_of_is_not_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divide_never(monkeypatch)
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        check_round_trip(engine, make_pages(30))
        compress = engine.statistics.compress
        assert (compress.batches, compress.divided, compress.inline_pages) == (1, 0, 30)


@pytest.mark.slow
def test_threads_that_ended_leave_their_figures() -> None:
    with Engine("lz4", backend="sequential") as engine:
        for _ in range(10):
            in_threads(5, lambda _: engine.compress(CompressBatch(make_pages(3))))
        gc.collect()
        assert engine.statistics.compress.pages == 150


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused(engine: Engine) -> None:
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            _ = engine.statistics
        except ForkedProcess:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
