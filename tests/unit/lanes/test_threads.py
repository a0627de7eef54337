"""Thread lanes give the caller's results, and write nothing after a batch has ended."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.forked import in_forked_child
from support.waiting import await_true, tasks

import batchzip_threads
from batchzip import (
    BackendUnavailable,
    ClosedError,
    CompressBatch,
    DecompressBatch,
    Engine,
    ForkedProcess,
    WorkerWarning,
)
from batchzip.core.lane import ThreadLanes
from batchzip.testing.plain import (
    SLACK_S,
    check_compressed,
    check_restored,
    check_round_trip,
    in_threads,
    make_pages,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.arguments.buffers import Bytes

pytestmark = pytest.mark.usefixtures("always_hand_over")


LARGE = 65536
"""Bytes of pages that zstd takes some milliseconds for at a high level."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="threads", workers=2) as engine:
        assert engine.wait_ready(SLACK_S)
        yield engine


@pytest.fixture
def slow() -> Iterator[Engine]:
    """An engine that takes seconds for `long_batch`."""
    with Engine("zstd", level=19, backend="threads", workers=1, page_size=LARGE) as engine:
        assert engine.wait_ready(SLACK_S)
        yield engine


def long_batch() -> tuple[CompressBatch, Bytes]:
    """Make a batch of 600 pages, and the memory of its outputs."""
    pages = np.random.default_rng(1).integers(0, 60, (600, LARGE), np.uint8)
    dsts = np.empty((600, LARGE), np.uint8)
    return CompressBatch(pages, dsts=dsts), dsts


def check_nobody_writes(batch: CompressBatch, dsts: Bytes) -> None:
    dsts.fill(0xA5)
    dlens, errors = batch.dlens.copy(), batch.errors.copy()
    time.sleep(0.3)
    assert (dsts == 0xA5).all()
    np.testing.assert_array_equal(batch.dlens, dlens)
    np.testing.assert_array_equal(batch.errors, errors)


def lanes_of(engine: Engine) -> int:
    """Return the pages that lanes did."""
    figures = engine.statistics
    return sum(
        operation.pages - operation.inline_pages
        for operation in (figures.compress, figures.decompress)
    )


@contextmanager
def alarms(handler: Callable[[], object], first_s: float, again_s: float = 0) -> Iterator[None]:
    """Have a signal handler called in the main thread, once or again and again, never in itself."""

    def handle(*_: object) -> None:
        handler()
        if again_s:
            signal.setitimer(signal.ITIMER_REAL, again_s)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, first_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_script(source: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


# What they take, and what they do


@pytest.mark.parametrize("algorithm", ["deflate", "brotli"])
def test_a_codec_in_python_is_refused_and_told_where_it_works(algorithm: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"{algorithm} .*use backend='workers'"):
        Engine(algorithm, backend="threads")


@pytest.mark.parametrize("form", ["array", "list", "rows"])
def test_lanes_do_their_part_of_pages_in_any_memory(engine: Engine, form: str) -> None:
    pages = make_pages(300)
    dsts = np.empty((300, 9000), np.uint8) if form == "rows" else None
    batch = CompressBatch([bytes(p) for p in pages] if form == "list" else pages, dsts=dsts)
    engine.compress(batch)
    check_compressed(engine, batch, pages)
    rows = list(np.empty((300, 4096), np.uint8))
    back = DecompressBatch(batch.outputs(), pages=rows if form == "rows" else None)
    engine.decompress(back)
    check_restored(back, pages)
    assert lanes_of(engine) > 100
    assert engine.worker_pids == ()


def test_pages_that_fail_in_a_lane_are_errors_of_their_own(engine: Engine) -> None:
    pages: list[bytes] = [bytes(page) for page in make_pages(100)]
    pages[0] = pages[99] = b"odd"
    batch = CompressBatch(pages, page_size=4096)
    engine.compress(batch)
    assert np.flatnonzero(batch.errors == -errno.EINVAL).tolist() == [0, 99]
    srcs = [bytes(output) or b"bad" for output in batch.outputs()]
    back = DecompressBatch(srcs)
    engine.decompress(back)
    assert np.flatnonzero(back.errors == -errno.EBADMSG).tolist() == [0, 99]
    assert engine.statistics.errors == {-errno.EINVAL: 2, -errno.EBADMSG: 2}


# Their life


def test_closing_with_work_under_way_lets_it_end(engine: Engine) -> None:
    pages = make_pages(200)
    plain = [bytes(output) for output in CompressedBy(engine).outputs(pages)]
    wrong: list[int] = []
    closed = threading.Barrier(4)

    def work() -> None:
        try:
            while True:
                batch = CompressBatch(pages)
                engine.compress(batch)
                wrong.extend(n for n in range(200) if batch.output(n) != plain[n])
        except ClosedError:
            closed.wait(SLACK_S)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    requests = [engine.submit(CompressBatch(pages)) for _ in range(10)]
    engine.close()
    for request in requests:
        check_compressed(engine, request.wait(0), pages)
    closed.wait(SLACK_S)
    for thread in threads:
        thread.join(SLACK_S)
    assert not wrong


class CompressedBy:
    """What an engine makes of pages, by single pages."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def outputs(self, pages: Bytes) -> list[bytes]:
        return [self._engine.compress_page(page) for page in pages]


@pytest.mark.slow
def test_an_engine_that_is_dropped_ends_its_threads() -> None:
    before = tasks()
    engine = Engine("lz4", backend="threads", workers=3)
    check_round_trip(engine, make_pages(100))
    assert len(tasks() - before) == 3
    reference = weakref.ref(engine.backend)
    del engine
    gc.collect()
    assert reference() is None
    await_true(lambda: tasks() <= before)


@pytest.mark.slow
def test_a_forked_child_is_refused_and_harms_nobody(engine: Engine) -> None:
    pages = make_pages(100)
    check_round_trip(engine, pages)

    def work() -> None:
        with pytest.raises(ForkedProcess):
            engine.compress(CompressBatch(pages))
        engine.close()
        with Engine("lz4", backend="threads", workers=2) as own:
            for _ in range(100):  # lanes that just started may come too late for a batch
                check_round_trip(own, pages)
                if lanes_of(own):
                    break
            assert lanes_of(own)

    in_forked_child(work)
    before = lanes_of(engine)
    check_round_trip(engine, pages)
    assert lanes_of(engine) > before


ENGINE = """
import os, resource, signal, sys, time, warnings
import numpy as np, batchzip
pages = np.random.default_rng(1).integers(0, 60, (300, 65536), np.uint8)
engine = batchzip.Engine("zstd", level=19, backend="threads", workers=2, page_size=65536)
def work(count=8):
    batch = batchzip.CompressBatch(pages[:count])
    engine.compress(batch)
    back = batchzip.DecompressBatch(batch.outputs(), page_size=65536)
    engine.decompress(back)
    assert (back.pages == pages[:count]).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        "work()",
        "requests = [engine.submit(batchzip.CompressBatch(pages[:40])) for _ in range(3)]",
        "requests = [engine.submit(batchzip.CompressBatch(pages[:40]))]; sys.exit()",
        "work(); del engine",
        "work(); engine.close(); engine.close()",
        (
            "import threading; threading.Thread(target=work, args=(300,), daemon=True).start(); "
            "time.sleep(0.2)"
        ),
    ],
    ids=["idle", "in flight", "by sys.exit", "dropped", "closed twice", "a daemon at work"],
)
def test_an_interpreter_ends_quietly(ending: str) -> None:
    done = run_script(ENGINE + ending)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_at_the_end_of_an_interpreter_a_request_of_any_length_is_given_up() -> None:
    """It would take minutes; what is begun is done, and what is not begun was cancelled."""
    source = (
        "pages = np.random.default_rng(1).integers(0, 60, (2000, 65536), np.uint8)\n"
        "request = engine.submit(batchzip.CompressBatch(pages))\n"
        "while not engine.statistics.compress.pages: pass\n"
    )
    done = run_script(ENGINE + source)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_where_threads_cannot_be_started_it_is_said_once_and_they_come_later() -> None:
    """A limit on address space is kept for everybody; one on processes, not for root."""
    source = """
import resource, time, warnings
import numpy as np, batchzip, batchzip_threads
pages = np.random.default_rng(1).integers(0, 6, (8, 4096), np.uint8)
def work(engine):
    batch = batchzip.CompressBatch(pages)
    engine.compress(batch)
    assert not engine.submit(batchzip.CompressBatch(pages)).wait().has_errors
    back = batchzip.DecompressBatch(batch.outputs())
    engine.decompress(back)
    assert (back.pages == pages).all()
with batchzip.Engine("lz4", backend="sequential") as warm:
    work(warm)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (900 << 10), before[1]))  # a stack has 1 MiB
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    engine = batchzip.Engine("lz4", backend="threads", workers=2)
    assert not engine.wait_ready(0.01)
    for _ in range(20):
        work(engine)
    assert engine.statistics.compress.divided == 0
    resource.setrlimit(resource.RLIMIT_AS, before)
    while not engine.wait_ready(0.1):
        work(engine)
work(engine)
engine.close()
for one in caught:
    print(one.category.__name__, "threads could not be started" in str(one.message))
"""
    done = run_script(source)
    assert done.stdout == "WorkerWarning True\n"
    assert done.stderr == "batchzip: all threads work again\n"


# Deadlines and interrupts


@pytest.mark.slow
def test_at_a_deadline_what_is_not_done_times_out_and_nothing_is_written_after_it(
    slow: Engine,
) -> None:
    batch, dsts = long_batch()
    slow.submit(batch, deadline_s=0.2).wait(SLACK_S)
    assert set(batch.errors.tolist()) == {0, -errno.ETIMEDOUT}
    plain = CompressedBy(slow)
    pages = np.random.default_rng(1).integers(0, 60, (600, LARGE), np.uint8)
    for index in np.flatnonzero(batch.errors == 0).tolist()[:3]:
        assert [bytes(batch.output(index))] == plain.outputs(pages[index : index + 1])
    check_nobody_writes(batch, dsts)
    check_round_trip(slow, pages[:8])


@pytest.mark.slow
def test_after_an_interrupt_nothing_is_written_and_the_engine_works_on(slow: Engine) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        batch, dsts = long_batch()
        with pytest.raises(KeyboardInterrupt), alarms(interrupt, 0.15):
            slow.compress(batch)
        check_nobody_writes(batch, dsts)
    check_round_trip(slow, np.random.default_rng(2).integers(0, 60, (8, LARGE), np.uint8))


@pytest.mark.slow
def test_ctrl_c_ends_a_batch_and_not_the_program() -> None:
    source = ENGINE + (
        "dsts = np.empty((300, 65536), np.uint8)\n"
        "batch = batchzip.CompressBatch(pages, dsts=dsts)\n"
        "print('begins', flush=True)\n"
        "try:\n"
        "    while True: engine.compress(batch)\n"
        "except KeyboardInterrupt:\n"
        "    dsts.fill(7); time.sleep(0.2)\n"
        "    assert (dsts == 7).all()\n"
        "    work()\n"
        "    print('goes on')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(0.2)  # it may come at any time
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("goes on\n", "", 0)


# Anything may come in the middle of anything


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_a_signal_handler_may_use_the_engine_that_it_interrupts(backend: str) -> None:
    pages, small = make_pages(200), make_pages(20, seed=7)
    expected: list[bytes] = []
    wrong: list[int] = []
    handled = 0
    requests: list[Any] = []
    with Engine("lz4", backend=backend, workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        expected = CompressedBy(engine).outputs(small)

        def handle() -> None:
            nonlocal handled
            handled += 1
            batch = CompressBatch(small)
            engine.compress(batch)
            wrong.extend(n for n in range(20) if batch.output(n) != expected[n])
            if engine.decompress_page(expected[0]) != small[0].tobytes():
                wrong.append(-1)
            requests.append(engine.submit(CompressBatch(small)))
            _ = engine.statistics

        with alarms(handle, 0.001, 0.002):
            while handled < 200:
                batch = CompressBatch(pages)
                engine.compress(batch)
                requests.append(engine.submit(CompressBatch(small)))
                requests[-1].cancel()
                assert not batch.errors.any()
        check_compressed(engine, batch, pages)
        for request in requests:
            if not (request.done() and (request.batch.errors == -errno.ECANCELED).all()):
                check_compressed(engine, request.wait(SLACK_S), small)
    assert not wrong


@pytest.mark.slow
def test_a_finalizer_may_use_the_engine_that_it_interrupts(engine: Engine) -> None:
    small = make_pages(20, seed=7)
    expected = CompressedBy(engine).outputs(small)
    finished: list[bool] = []

    class Last:
        def __init__(self) -> None:
            self.me = self  # only the collector finds it

        def __del__(self) -> None:
            batch = CompressBatch(small)
            engine.compress(batch)
            request = engine.submit(CompressBatch(small))
            finished.append(
                [bytes(output) for output in batch.outputs()] == expected
                and not request.wait(SLACK_S).errors.any()
            )

    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        while len(finished) < 200:
            Last()
            check_round_trip(engine, make_pages(30))
            engine.submit(CompressBatch(make_pages(30))).wait(SLACK_S)
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert all(finished)


def test_threads_that_many_callers_start_at_once_are_started_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ThreadLanes] = []
    may_start = False

    def start(*arguments: Any) -> ThreadLanes:
        if not may_start:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        made.append(ThreadLanes(*arguments))
        return made[-1]

    def work(_: int) -> None:
        check_round_trip(made_late, make_pages(40))

    monkeypatch.setattr(batchzip_threads, "_RETRY_S", 0.0)
    monkeypatch.setattr(batchzip_threads, "ThreadLanes", start)
    with pytest.warns(WorkerWarning, match="threads could not be started"):
        made_late = Engine("lz4", backend="threads", workers=1)
    with made_late:
        work(0)
        may_start = True
        in_threads(8, work)
        assert made_late.wait_ready(SLACK_S)
        assert sum(not lanes.rings[0].dead for lanes in made) == 1
    assert all(lanes.rings[0].dead for lanes in made)
