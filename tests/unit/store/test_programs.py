"""A program may fork, end, lose CPUs or get signals in the middle of any call of a store."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.forked import in_forked_child
from support.store_pages import noise, text
from support.waiting import tasks

from batchzip import (
    ClosedError,
    CompressBatch,
    CompressedMapping,
    Engine,
    ForkedProcess,
    PageNotStored,
    StoreRejected,
    SwapStore,
    attach,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.slow
def test_a_child_that_is_forked_in_the_middle_of_anything_makes_a_store_of_its_own(
    tmp_path: Path,
) -> None:
    """diskcache 300, 325: a child waited for a lock that a thread of its parent had held."""
    stop = threading.Event()
    with (
        Engine("lz4", backend="threads", workers=1) as engine,
        SwapStore(engine, max_pool_bytes=1 << 20, backing=tmp_path) as store,
        CompressedMapping(store) as mapping,
    ):

        def use(seed: int) -> None:
            while not stop.is_set():
                try:
                    store.store(seed * 1000, [noise(number) for number in range(20)])
                    mapping[seed] = noise(seed, 9000)
                    store.writeback(5)
                    store.compact()
                except StoreRejected:
                    continue

        def live() -> None:
            calls: list[Callable[[], object]] = [
                lambda: store.load(0),
                lambda: store.store(0, text(0)),
                lambda: mapping.__setitem__(1, b"x"),
            ]
            for call in calls:
                with pytest.raises(ForkedProcess):
                    call()
            with (
                Engine("zstd", backend="threads", workers=1) as own_engine,
                SwapStore(own_engine, max_pool_bytes=1 << 16, backing=tmp_path) as own,
            ):
                own.store(0, [noise(number) for number in range(64)])
                assert own.load(63) == noise(63)

        with ThreadPoolExecutor(2) as threads:
            users = [threads.submit(use, seed) for seed in range(2)]
            try:
                for _ in range(4):
                    in_forked_child(live, timeout_s=30)
            finally:
                stop.set()
            for user in users:
                user.result()
        store.check_invariants()


SCRIPT = """
import batchzip, os, sys, tempfile, threading, time
engine = batchzip.Engine("lz4", backend={backend!r})
store = batchzip.SwapStore(engine, backing=tempfile.gettempdir(), max_pool_bytes=1 << 20)
mapping = batchzip.CompressedMapping(store)
view = batchzip.attach(store.share())
pages = [os.urandom(4096) if number % 3 else b"ab" * 2048 for number in range(100)]
store.store(0, pages)
mapping["a"] = pages[1]
"""

DAEMONS = (
    SCRIPT
    + """
def use(call):
    while True:
        try:
            call()
        except (batchzip.BatchzipError, KeyError):
            pass

for call in (
    lambda: store.store(0, pages), lambda: store.load_many(range(100)), lambda: store.writeback(10),
    lambda: mapping.__setitem__("a", pages[1]), lambda: mapping["a"],
    lambda: view.load_many(range(100)),
    lambda: view.counters, lambda: engine.submit(batchzip.CompressBatch(pages)).wait(5),
):
    threading.Thread(target=use, args=(call,), daemon=True).start()
time.sleep(0.1)
"""
)

FINALIZER = (
    SCRIPT
    + """
class Wrapper:
    def __init__(self):
        self.parts = mapping, view, store, engine
        self.itself = self  # a cycle: it is found when all else goes
        self.request = engine.submit(batchzip.CompressBatch(pages))

    def __del__(self):
        assert self.parts[2].closed or self.parts[2].load(0) == pages[0]
        for part in self.parts:
            part.close()

pages_kept, Wrapper.first = pages, Wrapper()
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sequential", "threads", "workers"])
@pytest.mark.parametrize(
    "script",
    [
        # cpython 96387, 87135: daemon threads that come back from C code while the interpreter ends
        pytest.param(DAEMONS, id="daemon threads"),
        # cpython 91577, grain 1386: what a finalizer closes when the modules are gone
        pytest.param(FINALIZER, id="finalizer"),
    ],
)
def test_a_program_may_end_in_the_middle_of_everything(script: str, backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script.format(backend=backend)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_cpus_may_be_taken_away_while_they_compress(backend: str) -> None:
    """CVE-2025-21693: zswap used what belonged to a CPU that had been unplugged meanwhile."""
    cpus = sorted(os.sched_getaffinity(0))
    pages = [noise(number) if number % 2 else text(number) for number in range(64)]
    with Engine("lz4", backend=backend) as engine, SwapStore(engine) as store:
        try:
            for turn in range(20):
                for task in tasks():
                    os.sched_setaffinity(task, {cpus[turn % len(cpus)]})
                store.store(0, pages)
                assert store.load_many(range(64)).tobytes() == b"".join(pages)
        finally:
            for task in tasks():
                os.sched_setaffinity(task, cpus)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_store_is_closed_in_the_middle_of_everything(seed: int) -> None:
    """zsmalloc, zs_destroy_pool: a pool went while its objects were being moved."""
    rng = random.Random(seed)
    with (
        Engine("lz4", backend="threads", workers=1) as engine,
        tempfile.TemporaryDirectory() as folder,
        SwapStore(engine, backing=folder, max_pool_bytes=1 << 20) as store,
    ):
        store.store(0, [noise(number) if number % 2 else text(number) for number in range(200)])
        calls: list[Callable[[], object]] = [
            store.compact,
            store.check,
            store.shrink,
            store.status,
            lambda: store.counters,
            lambda: store.writeback(20),
            lambda: store.recompress("zstd"),
            lambda: store.load_many(range(0, 200, 7)),
            lambda: store.store(rng.randrange(1000), [noise(1)] * 20),
        ]

        def use(call: Callable[[], object]) -> None:
            try:
                while True:
                    try:
                        call()
                    except (PageNotStored, StoreRejected):
                        continue
            except ClosedError:
                pass

        with ThreadPoolExecutor(len(calls)) as threads:
            users = [threads.submit(use, call) for call in calls]
            for turn in range(5 + 5 * seed):
                store.store(5000 + turn, text(turn))
            store.close()
            for user in users:
                user.result()


@pytest.mark.slow
def test_signals_may_come_in_thousands(tmp_path: Path) -> None:
    """pymemcache 47, pyownet 8: calls that a signal cut short were not made again."""
    pages = [noise(number) if number % 2 else text(number) for number in range(100)]
    came = 0

    def note(*_: object) -> None:
        nonlocal came
        came += 1

    before = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with (
            Engine("lz4", backend="workers", workers=1) as engine,
            SwapStore(engine, backing=tmp_path, max_pool_bytes=1 << 20) as store,
        ):
            for _ in range(20):
                store.store(0, pages)
                store.writeback(50)
                with attach(store.share()) as view:
                    assert view.load(3) == pages[3]
                    assert view.counters.backed_pages >= 50
                batch = CompressBatch(pages)
                engine.submit(batch).wait(20)
                assert not batch.errors.any()
                assert store.load_many(range(100)).tobytes() == b"".join(pages)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came > 20
