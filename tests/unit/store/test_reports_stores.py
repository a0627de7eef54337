"""What users reported of other stores and caches, tried on this one.

Each test names the report. What else failed has its test where its subject is.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.forked import in_forked_child
from support.store_pages import SIZE, noise, text, word

from batchzip import (
    ClosedError,
    CompressBatch,
    CompressedMapping,
    CorruptPage,
    Engine,
    ForkedProcess,
    PageNotStored,
    StoreRejected,
    SwapStore,
    attach,
    load_array,
    store_array,
)
from batchzip.metrics import collector

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.store.group import Group


class Index:
    """An index that does something when it is asked for its number, once."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    def __index__(self) -> int:
        action, self.action = self.action, None
        if action is not None:
            action()
        return 1


CALLS: dict[str, Callable[[Group, Any], object]] = {
    "load": lambda group, index: group.load(index),
    "load to a buffer": lambda group, index: group.load(index, bytearray(SIZE)),
    "take": lambda group, index: group.load(index, exclusive=True),
    "load_many": lambda group, index: group.load_many([0, index, 2]),
    "store": lambda group, index: group.store(index, text(7)),
    "store a folio": lambda group, index: group.store(index, [text(7), noise(8)]),
    "store_array": lambda group, index: store_array(group, index, np.arange(5000)),
    "invalidate": lambda group, index: group.invalidate(index),
    "invalidate so many": lambda group, index: group.invalidate(0, index),
    "in": lambda group, index: index in group,
    "writeback": lambda group, index: group.writeback([index]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("closes", ["store", "group", "engine"])
def test_an_index_may_close_what_it_is_an_index_of(call: str, closes: str) -> None:
    """cpython 103987: mmap crashed where an index's __index__ closed it."""
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=io.BytesIO()) as store,
    ):
        group = store.group("one")
        group.store(0, [text(0), noise(1), word(2)])
        group.writeback([0])
        index = Index({"store": store, "group": group, "engine": engine}[closes].close)
        try:
            CALLS[call](group, index)
        except ClosedError:
            pass
        else:
            assert closes == "engine"
        assert index.action is None
        if closes == "engine":
            store.check_invariants()


@pytest.mark.parametrize("call", CALLS)
def test_an_index_may_change_what_it_is_an_index_of(engine: Engine, call: str) -> None:
    """cpython 157335: mmap wrote beyond its end where a value's __index__ made it shorter."""
    pages = [text(seed) for seed in range(8)]
    with SwapStore(engine, backing=io.BytesIO()) as store:
        actions: list[Callable[[], object]] = [
            lambda: store.invalidate(0, 8),
            lambda: store.store(0, [noise(seed) for seed in range(8)]),
            store.compact,
            lambda: store.writeback(8),
        ]
        for action in actions:
            store.store(0, pages)
            try:
                CALLS[call](store, Index(action))
            except PageNotStored:
                assert action is actions[0]
            store.check_invariants()
            assert store.check().ok


@pytest.mark.parametrize("where", ["store", "view"])
def test_indices_may_change_while_they_are_used(store: SwapStore, where: str) -> None:
    """cpython 148650: a buffer that another thread changes while it is read."""
    count, seconds = 1024, 0.3
    store.store(0, [text(number) for number in range(count)])
    indices = np.arange(count)
    until = time.monotonic() + seconds

    def change() -> None:
        rng = np.random.default_rng(0)
        while time.monotonic() < until:
            indices[:] = rng.integers(-(1 << 62), 1 << 62, count)
            indices[:] = np.arange(count)

    with attach(store.share()) as view, ThreadPoolExecutor(1) as threads:
        done = threads.submit(change)
        while time.monotonic() < until:
            with contextlib.suppress(PageNotStored):
                (store if where == "store" else view).load_many(indices)
        done.result()
    assert store.check().ok


@pytest.mark.parametrize("method", ["dumps", "loads"])
@pytest.mark.parametrize("closes", ["mapping", "store", "group", "engine"])
def test_a_serializer_may_close_what_it_serves(method: str, closes: str) -> None:
    """cpython 151030, 145040: sqlite3 crashed where a callback closed its connection."""

    class Closes:
        action: Callable[[], object] | None = None

        def dumps(self, value: Any) -> bytes:
            return self.act("dumps", value)

        def loads(self, data: bytes) -> bytes:
            return self.act("loads", data)

        def act(self, name: str, data: bytes) -> bytes:
            if name == method and self.action is not None:
                self.action()
            return data

    calls: list[Callable[[CompressedMapping], object]] = [
        lambda mapping: mapping["a"],
        lambda mapping: mapping.__setitem__("b", b"y" * 9000),
        lambda mapping: mapping.setdefault("c", b"y" * 9000),
        lambda mapping: mapping.pop("a"),
        lambda mapping: mapping.popitem(),
        lambda mapping: mapping.copy(),
        lambda mapping: mapping | {"d": b"z"},
    ]
    for call in calls:
        with (
            Engine("lz4", backend="sequential") as engine,
            SwapStore(engine) as store,
            CompressedMapping(store, serializer=(serializer := Closes())) as mapping,
        ):
            mapping["a"] = b"x" * 9000
            owners = {"mapping": mapping, "store": store, "group": mapping.group}
            serializer.action = {**owners, "engine": engine}[closes].close
            with contextlib.suppress(ClosedError):
                call(mapping)  # never KeyError: the key was there
            mapping.close()
            if not store.closed:
                store.check_invariants()
                assert len(store._resources.pool) == 0


def test_values_that_are_rejected_take_nothing_in_the_long_run(engine: Engine) -> None:
    """LMCache 987, 2559: what was allocated for a chunk that was not kept was never given back."""
    with (
        SwapStore(engine, max_pool_bytes=1 << 18) as store,
        CompressedMapping(store) as mapping,
    ):
        for number in range(500):
            try:
                mapping[number % 50] = noise(number % 7, 9000)
            except StoreRejected:
                continue
        assert 0 < len(mapping) < 50
        mapping.check_invariants()
        mapping.clear()
        store.compact()
        assert store.counters.pool_total_size == store.counters.stored_pages == 0
        mapping["key"] = noise(1, 9000)


def test_where_nothing_can_be_evicted_stores_are_rejected_at_once(engine: Engine) -> None:
    """LMCache 2942, ray 62093: allocation spun for ever where nothing could be evicted."""
    with SwapStore(
        engine, max_pool_bytes=16 * SIZE, backing=io.BytesIO(), max_backing_bytes=16 * SIZE
    ) as store:
        rejected = 0
        for number in range(100):
            try:
                store.store(number, noise(number))
            except StoreRejected:
                rejected += 1
        assert 60 < rejected < 100
        assert all(store.load(number) == noise(number) for number in range(100) if number in store)
        store.invalidate(0, 100)
        store.store(0, noise(0))
        store.check_invariants()


def test_figures_are_read_while_garbage_is_collected(engine: Engine) -> None:
    """client_python 322, 363: the collector came while a lock was held, and wanted it, too."""
    with SwapStore(engine) as store, CompressedMapping(store, serializer="pickle") as mapping:
        registry = CollectorRegistry()
        registry.register(collector(store, classes=True))
        scrapes = 0

        def scrape(phase: str, _: object) -> None:
            nonlocal scrapes
            if phase == "start" and gc.isenabled():
                gc.disable()
                scrapes += bool(generate_latest(registry))
                gc.enable()

        before = gc.get_threshold()
        gc.callbacks.append(scrape)
        gc.set_threshold(200)
        try:
            for number in range(30):
                mapping[number % 5] = [{"a": [each]} for each in range(100)]
                store.store(number, [text(number)] * 3)
                assert store.load(number) == text(number)
        finally:
            gc.callbacks.remove(scrape)
            gc.set_threshold(*before)
        assert scrapes


def test_figures_and_pages_are_there_after_the_engine_is_closed() -> None:
    """client_python 84: a collector that raised left a scrape empty."""
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        store.store(0, text(0))
        engine.close()
        found = {sample.name for family in collector(store).collect() for sample in family.samples}
        assert {"batchzip_stored_pages", "batchzip_engine_workers"} < found
        assert store.load(0) == text(0)
        assert store.status()["pages"] == 1


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
    lambda: mapping.__setitem__("a", pages[1]), lambda: mapping["a"], lambda: view.load_many(range(100)),
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


def threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_cpus_may_be_taken_away_while_they_compress(backend: str) -> None:
    """CVE-2025-21693: zswap used what belonged to a CPU that had been unplugged meanwhile."""
    cpus = sorted(os.sched_getaffinity(0))
    pages = [noise(number) if number % 2 else text(number) for number in range(64)]
    with Engine("lz4", backend=backend) as engine, SwapStore(engine) as store:
        try:
            for turn in range(20):
                for task in threads():
                    os.sched_setaffinity(task, {cpus[turn % len(cpus)]})
                store.store(0, pages)
                assert store.load_many(range(64)).tobytes() == b"".join(pages)
        finally:
            for task in threads():
                os.sched_setaffinity(task, cpus)


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


def test_an_exclusive_load_that_fails_takes_nothing(engine: Engine) -> None:
    """lkml 2403.3/03624: zswap dropped a page whose load was then thrown away."""
    with SwapStore(engine, backing=io.BytesIO()) as store:
        store.store(0, [text(number) for number in range(4)])
        store.writeback([0])
        for out in (bytearray(10), b"x" * SIZE, np.empty(2 * SIZE, np.uint8)[::2]):
            with pytest.raises(ValueError, match="out"):
                store.load(1, out, exclusive=True)
        with pytest.raises(PageNotStored):
            store.load_many([0, 1, 99], exclusive=True)
        assert store.load_many(range(4)).tobytes() == b"".join(map(text, range(4)))


UNION = np.dtype({"names": ["x", "y", "xy"], "formats": ["f4", "f4", "2f4"], "offsets": [0, 4, 0]})


def test_arrays_of_dtypes_whose_fields_overlap_come_back(store: SwapStore) -> None:
    """numpy 9184: a dtype whose fields lie over one another has no format as a buffer."""
    array = np.arange(4000, dtype="f4").view(UNION)
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["array"] = array
        for found in (load_array(store, store_array(store, 0, array)), mapping["array"]):
            assert found.dtype == UNION
            assert found["xy"].tolist() == array["xy"].tolist()


@pytest.mark.parametrize("offset", [0, SIZE, 2 * SIZE])
def test_empty_parts_of_a_file_are_arrays_as_others(
    store: SwapStore, tmp_path: Path, offset: int
) -> None:
    """numpy 27722: an empty array at some places of a file could not be mapped."""
    path = tmp_path / "file"
    path.write_bytes(text(1) * 3)
    mapped = np.memmap(path, np.uint8, "r")
    with CompressedMapping(store, serializer="pickle") as mapping:
        for array in (mapped[offset:], mapped[offset:offset]):
            mapping["array"] = array
            for found in (load_array(store, store_array(store, 0, array)), mapping["array"]):
                assert found.tobytes() == array.tobytes()


class Far:
    """Storage that keeps only what was written last, so that a file of gigabytes takes no memory."""

    def __init__(self) -> None:
        self.last = 0, b""

    def pwrite(self, data: memoryview, offset: int) -> int:
        self.last = offset, bytes(data)
        return len(data)

    def pread(self, length: int, offset: int) -> bytes:
        begin = offset - self.last[0]
        return self.last[1][begin : begin + length] if begin >= 0 else b""


@pytest.mark.slow
def test_a_page_beyond_4_gib_of_the_backing_file_comes_back() -> None:
    """mosaicml/streaming 671: offsets of 32 bits wrapped around, and other data was read."""
    size, count = 2 << 20, 2100
    page = noise(1, size)
    with (
        Engine("lz4", backend="sequential", page_size=size) as engine,
        SwapStore(engine, max_pool_bytes=0, backing=Far()) as store,
    ):
        for index in range(count):
            store.store(index, page)
        assert store.counters.backing_file_size == store.stored_bytes == count * size > 1 << 32
        assert store.load(count - 1) == page
        with pytest.raises(CorruptPage):
            store.load(count - 2049)  # 4 GiB and a page before: not taken for the last one
        store.check_invariants()


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
