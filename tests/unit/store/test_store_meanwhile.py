"""Groups, engines, threads and files may come, go or fail in the middle of a store's work."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.faulty_file import FaultyFile
from support.store_pages import SIZE, noise, text
from support.waiting import await_true, tasks

from batchzip import (
    ClosedError,
    CompressBatch,
    CompressedMapping,
    Engine,
    NotStorable,
    Recompression,
    StoreRejected,
    SwapStore,
    UnknownAlgorithm,
    UnknownBackend,
    load_array,
    store_array,
    train_dictionary,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# Stores


@pytest.mark.slow
def test_folios_that_are_refused_leave_no_descriptor_until_a_collection() -> None:
    """python-zstandard#116, python-isal#166: what an error ended kept its buffers."""
    with (
        Engine("lz4", backend="workers", workers=1) as engine,
        SwapStore(engine, keep_incompressible=False) as store,
    ):
        assert engine.wait_ready()
        counts = []
        gc.disable()
        try:
            for _ in range(5):
                with pytest.raises(StoreRejected):
                    store.store(0, [noise(number) for number in range(64)])
                counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - only how many
        finally:
            gc.enable()
        assert len(set(counts)) == 1


class _Closing:
    """A number that closes a store when it is looked at."""

    def __init__(self, store: SwapStore) -> None:
        self.store = store

    def __index__(self) -> int:
        self.store.close()
        return 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda s, limit: s.group("group", max_bytes=limit),
        lambda s, limit: CompressedMapping(s, max_bytes=limit),
    ],
    ids=["group", "mapping"],
)
def test_a_group_of_a_store_that_is_closed_meanwhile_is_refused(
    store: SwapStore, make: Callable[[SwapStore, Any], object], capfd: pytest.CaptureFixture[str]
) -> None:
    """cpython#142558, msgpack-python#723: what `__index__` does comes between check and use."""
    with pytest.raises(ClosedError):
        make(store, _Closing(store))
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("backend", ["sequential", "threads"])
def test_pages_are_recompressed_with_what_an_engine_takes(backend: str) -> None:
    """socksio#58: parameters were a key of a cache, and a bytearray has no hash."""
    pages = [text(number) for number in range(100)]
    dictionary = train_dictionary(pages, size=1024, level=1)
    with Engine("lz4", backend=backend) as engine, SwapStore(engine) as store:
        for given in (dictionary, bytearray(dictionary), np.frombuffer(dictionary, np.uint8)):
            store.store(0, pages)
            assert store.recompress("zstd", level=1, dictionary=given).pages == 100
        assert len(store._resources._engines) == 1
        for options in ({"shuffle": 4}, {"verify": True}, {"level": np.int8(3)}):
            assert isinstance(store.recompress("zstd", **options), Recompression)
        assert store.load_many(range(100)).tobytes() == b"".join(pages)
        with pytest.raises(UnknownAlgorithm):
            store.recompress(["zstd"])  # type: ignore[arg-type]
        store.check_invariants()


def test_engines_for_recompression_do_not_pile_up() -> None:
    """distributed#1941, c-blosc2#647: each new set of parameters left its threads behind."""
    pages = [text(number) for number in range(10)]
    with Engine("lz4", backend="threads", workers=1) as engine, SwapStore(engine) as store:
        before = tasks()

        def recompress(level: int) -> int:
            store.store(level * 100, pages)
            store.recompress("zstd", level=level)
            return len(tasks() - before)

        most = max(recompress(level) for level in range(1, 6))
        for level in range(6, 13):
            recompress(level)
            await_true(lambda: len(tasks() - before) <= most)  # others may be ending
        for level in range(1, 13):
            assert store.load_many(range(level * 100, level * 100 + 10)).tobytes() == b"".join(
                pages
            )
        store.check_invariants()


def test_a_name_that_has_no_hash_is_unknown() -> None:
    with pytest.raises(UnknownAlgorithm):
        Engine(["zstd"])  # type: ignore[call-overload]
    with pytest.raises(UnknownBackend):
        Engine(backend=["threads"])  # type: ignore[call-overload]


def _with_frames_left(left: int, call: Callable[[], object]) -> None:
    """Call it with that number of frames left. It is expected to raise RecursionError."""
    frame, depth = sys._getframe(), 1
    while (back := frame.f_back) is not None:
        frame, depth = back, depth + 1

    def descend(frames: int) -> None:
        descend(frames - 1) if frames else call()

    with contextlib.suppress(RecursionError):
        descend(sys.getrecursionlimit() - depth - left)


@pytest.mark.slow
def test_a_call_that_recursion_ends_is_done_or_not_begun(store: SwapStore) -> None:
    """zict#29: an exception between two changes left a mapping that could not be used any more."""
    pages = [noise(number) for number in range(5)]
    array = np.arange(3000)
    with CompressedMapping(store, serializer="pickle") as mapping:
        calls: list[Callable[[], object]] = [
            lambda: store.store(0, pages),
            lambda: store.load_many(range(5)),
            lambda: store.recompress("zstd"),
            lambda: store.drop_group(store.group("group").name),
            lambda: store.engine.submit(CompressBatch(pages)).wait(),
            lambda: mapping.__setitem__("key", array),
            lambda: mapping.pop("key", None),
            lambda: mapping.copy().close(),
            lambda: store_array(store, 10, array),
            lambda: SwapStore(store.engine).close(),
        ]
        for call in calls:
            for left in range(3, 40, 2):
                with contextlib.suppress(NotStorable):  # pickle met it
                    _with_frames_left(left, call)
                mapping["key"] = array
                assert (mapping["key"] == array).all()
            store.check_invariants()
            mapping.check_invariants()
        store.store(0, pages)
        assert store.load_many(range(5)).tobytes() == b"".join(pages)
    other = SwapStore(store.engine)
    for left in range(3, 40):
        _with_frames_left(left, other.close)
    other.close()


def test_numpy_may_be_told_to_raise(tmp_path: Path) -> None:
    """Bytes, sizes and counts are no numbers that overflow, and divide by nothing."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        array = np.arange(20_000, dtype=">f4").reshape(100, 200, order="F")
        with (
            Engine("lz4", backend="sequential", shuffle=4) as engine,
            SwapStore(engine, backing=tmp_path, max_pool_bytes=60_000) as backed,
        ):
            backed.store(0, [noise(number) for number in range(30)])
            stored = store_array(backed, 100, array)
            backed.writeback(backed.writeback(10))
            assert (load_array(backed, stored) == array).all()
            assert backed.shrink() + backed.compact() >= 0
            assert backed.check().ok
            backed.check_invariants()
            assert backed.status()["pages"] == 30 + stored.pages


def test_figures_are_there_while_groups_come_and_go(store: SwapStore) -> None:
    """cuda-python#1912, wiredtiger#1587: sizes that were counted during changes fell below 0."""
    ends = threading.Event()
    pages = [text(number) for number in range(10)]

    def change(name: str) -> None:
        while not ends.is_set():
            with CompressedMapping(store) as mapping:
                mapping["key"] = pages[0] * 3
            store.group(name).store(0, pages)
            store.drop_group(name)

    threads = [threading.Thread(target=change, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            figures = [store.counters, *store.counters_by_group().values()]
            assert min(min(dataclasses.astuple(each)) for each in figures) >= 0
            assert min(group["pages"] for group in store.status()["groups"].values()) >= 0
            assert store.check().ok
            assert store.table_bytes > 0
            store.recompress("zstd")
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert store.counters.stored_pages == store.compressed_bytes == 0


class _ServedByThread:
    """A file whose calls are done by its own thread, which collects garbage now and then."""

    def __init__(self) -> None:
        self.file = FaultyFile()
        self.collect: Callable[[], object] = lambda: None
        self.calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while (call := self.calls.get()) is not None:
            function, future = call
            self.collect()
            future.set_result(function())

    def ask(self, function: Callable[[], Any]) -> Any:
        if threading.current_thread() is self.thread:
            return function()
        future: Future[Any] = Future()
        self.calls.put((function, future))
        return future.result(timeout=60)

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.ask(lambda: self.file.pread(size, offset)))

    def pwrite(self, data: memoryview, offset: int) -> int:
        return int(self.ask(lambda: self.file.pwrite(data, offset)))

    def sync(self) -> None:
        self.ask(self.file.sync)

    def discard(self, offset: int, length: int) -> None:
        self.ask(lambda: self.file.discard(offset, length))

    def close(self) -> None:
        self.calls.put(None)
        self.thread.join()


@pytest.mark.slow
def test_a_thread_that_serves_the_file_may_drop_what_lies_in_it(engine: Engine) -> None:
    """h5py#2019, h5py#77: a thread collected garbage whose finalizer waited for its waiter."""
    file = _ServedByThread()
    try:
        with SwapStore(engine, backing=file, max_pool_bytes=50_000) as store:

            def drop() -> None:
                mapping = CompressedMapping(store)
                with contextlib.suppress(StoreRejected):
                    mapping["key"] = noise(1, 9000)
                cycle = [mapping]
                cycle.append(cycle)  # type: ignore[arg-type]
                del cycle, mapping
                file.collect, again = (lambda: None), file.collect
                gc.collect()
                file.collect = again

            file.collect = drop
            for turn in range(3):
                store.store(0, [noise(turn * 100 + number) for number in range(40)])
                store.writeback(5)
                assert store.load_many(range(40)).shape == (40, SIZE)
                store.compact()
            file.collect = lambda: None
            store.check_invariants()
    finally:
        file.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_the_engine_works_after_the_main_program_and_in_the_last_handlers(backend: str) -> None:
    """cpython#148280, more-executors#144: "cannot schedule new futures after … shutdown"."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _AFTER_THE_END, backend],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "thread\nhandler\n", "")


_AFTER_THE_END = """
import atexit, asyncio, sys, threading

def at_end():
    assert store.load(3) == page
    work()
    print("handler")

atexit.register(at_end)  # before anything of batchzip's: it is called after it

import batchzip

page = b"line\\n" * 819 + b"!"
engine = batchzip.Engine("lz4", backend=sys.argv[1], workers=1)
store = batchzip.SwapStore(engine)

def work():
    async def go():
        await store.astore(0, [page] * 100)
        await engine.compress_async(batchzip.CompressBatch([page] * 100))
        return await store.aload_many(range(100))

    assert asyncio.run(go()).tobytes() == page * 100
    engine.submit(batchzip.CompressBatch([page] * 100)).wait(30)

def later():
    threading.main_thread().join()
    work()
    print("thread", flush=True)

threading.Thread(target=later).start()
"""
