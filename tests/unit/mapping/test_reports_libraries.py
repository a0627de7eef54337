"""What users met with compressors, arrays, caches and executors: each report as a program against batchzip.

The public tracker and number stand beside each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.entries import flip
from support.faulty_file import FaultyFile
from support.store_pages import SIZE, noise, text

from batchzip import (
    BadBatch,
    ClosedError,
    CompressBatch,
    CompressedMapping,
    CorruptPage,
    DecompressBatch,
    Engine,
    EngineBusy,
    NotStorable,
    Recompression,
    Request,
    StoreRejected,
    SwapStore,
    UnknownAlgorithm,
    UnknownBackend,
    load_array,
    store_array,
    train_dictionary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from batchzip import Group


@pytest.fixture
def mapping(store: SwapStore) -> Iterator[CompressedMapping]:
    with CompressedMapping(store) as mapping:
        yield mapping
        if not mapping.closed:
            mapping.check_invariants()


# Buffers


class _Structure(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int64), ("thing", ctypes.py_object))


REFERENCES: dict[str, Callable[[], Any]] = {
    "array": lambda: np.empty(512, object),
    "field": lambda: np.empty(512, [("thing", object)]),
    "second field": lambda: np.empty(256, [("number", "i8"), ("thing", object)]),
    "field of a field": lambda: np.empty(256, [("f", [("number", "i8"), ("thing", object)])]),
    "array in a field": lambda: np.empty(256, [("things", object, 2)]),
    "structure": _Structure * 256,
    "pointers": ctypes.py_object * 512,
}
USES: dict[str, Callable[[SwapStore, Any], object]] = {
    "store": lambda s, buffer: s.store(0, [buffer]),
    "load": lambda s, buffer: s.load(1, out=buffer),
    "load_many": lambda s, buffer: s.load_many([1], out=buffer),
    "compress": lambda _, buffer: CompressBatch([buffer]),
    "compress a page": lambda s, buffer: s.engine.compress_page(buffer),
    "decompress to": lambda _, buffer: DecompressBatch([b"source"], pages=[buffer]),
    "map": lambda s, buffer: CompressedMapping(s).update(key=buffer),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", REFERENCES)
def test_references_to_objects_are_neither_read_nor_written_as_bytes(
    store: SwapStore, kind: str, use: str
) -> None:
    """numpy#6811, numpy#32289: bytes written over references end the process."""
    store.store(1, noise(1))
    buffer = REFERENCES[kind]()
    with pytest.raises((BadBatch, NotStorable), match="references to Python objects"):
        USES[use](store, buffer)
    assert len(store) == 1
    gc.collect()


def test_a_field_may_have_any_name(store: SwapStore) -> None:
    fields = np.arange(1024, dtype="i4").view([("O", "i4")])
    store.store(0, [fields])
    assert store.load(0) == fields.tobytes()


@pytest.mark.parametrize("algorithm", ["lz4", "lz4hc", "zstd", "deflate", "snappy", "brotli"])
def test_pages_and_sources_are_any_kind_of_buffer(algorithm: str) -> None:
    """cramjam#34: a bytearray came back cut. msgpack-python#182: elements were counted as bytes."""
    page = text(1)
    with Engine(algorithm, backend="sequential") as engine:
        source = engine.compress_page(page)
        kinds: list[Callable[[bytes], Any]] = [
            bytearray,
            memoryview,
            lambda data: memoryview(bytearray(data)).toreadonly(),
            lambda data: np.frombuffer(data, np.uint8),
            lambda data: (ctypes.c_char * len(data)).from_buffer_copy(data),
            pickle.PickleBuffer,
        ]
        for kind in kinds:
            assert engine.decompress_page(kind(source)) == page
            assert engine.decompress_page(engine.compress_page(kind(page))) == page
        for wide in ("u2", ">f8", "c16", "i1"):
            array = np.frombuffer(page, wide)
            assert engine.decompress_page(engine.compress_page(array.reshape(2, -1))) == page


def test_a_length_beyond_32_bits_is_not_taken_for_a_shorter_one() -> None:
    """steeve/python-lz4#5, libarchive#1393: a length that wrapped decoded the beginning of its buffer."""
    with Engine("lz4", backend="sequential") as engine:
        source = np.frombuffer(engine.compress_page(text(1)), np.uint8)
        sources = np.zeros((1, (1 << 32) + len(source)), np.uint8)  # untouched, but for one page
        sources[0, : len(source)] = source
        for length in ([sources.shape[1]], np.array(sources.shape[1:], np.uint64)):
            batch = DecompressBatch((sources, length))
            engine.decompress(batch)
            assert batch.has_errors
        batch = DecompressBatch((sources, np.array([len(source)], np.int8)))
        engine.decompress(batch)
        assert bytes(batch.pages[0]) == text(1)


@pytest.mark.parametrize("capacity", [(1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_outputs_lie_beyond_4_gib(capacity: int) -> None:
    """python-lz4#44, python-lzo#28: sizes of 2³¹ and 2³² bytes."""
    pages = [text(1), text(2), text(3)]
    with Engine("lz4", backend="sequential") as engine:
        batch = CompressBatch(pages, dsts=np.empty((3, capacity), np.uint8))  # hardly touched
        engine.compress(batch)
        back = DecompressBatch((batch.dsts, batch.dlens))
        engine.decompress(back)
        assert [bytes(page) for page in back.pages] == pages


# Descriptors


def test_what_a_view_receives_is_not_inherited_by_programs(
    store: SwapStore, tmp_path: Path
) -> None:
    """cpython#128881: socket.recv_fds ignores its flags, so descriptors went to every program started."""

    def inheritable() -> set[str]:
        found = list(Path("/proc/self/fd").iterdir())
        return {fd.name for fd in found if fd.exists() and os.get_inheritable(int(fd.name))}

    before = inheritable()
    with SwapStore(store.engine, backing=tmp_path) as backed:
        backed.store(0, [noise(n) for n in range(9)])
        backed.group("more").store(0, text(1))
        backed.writeback(5)
        with backed.share().attach() as view:
            assert view.load(0) == noise(0)
            assert view.group("more").load(0) == text(1)
            assert inheritable() == before


# asyncio


class _Pages(np.ndarray):
    """An array that can be referred to weakly."""


def _pages() -> _Pages:
    return np.frombuffer(noise(1, 4 * SIZE), np.uint8).reshape(4, SIZE).copy().view(_Pages)


async def _cancelled(work: Coroutine[Any, Any, object]) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _astore(store: SwapStore, pages: Any) -> None:
    with contextlib.suppress(StoreRejected):
        await store.astore(0, pages)
        raise AssertionError("pages of noise were stored")


async def _await_failed(_: SwapStore, pages: Any) -> None:
    requests = [Request(CompressBatch(pages))]
    assert requests[0].take_up()
    requests[0].finish(OSError("failed"))
    with pytest.raises(OSError, match="failed"):
        await requests.pop()


def _wait_failed(_: SwapStore, pages: Any) -> None:
    requests = [Request(CompressBatch(pages))]
    requests[0].add_done_callback(lambda _: None)
    assert requests[0].take_up()
    requests[0].finish(OSError("failed"))
    with pytest.raises(OSError, match="failed"):
        requests.pop().wait()


KEEPERS: dict[str, Callable[[SwapStore, Any], Any]] = {
    "astore, rejected": _astore,
    "astore, cancelled": lambda s, pages: _cancelled(s.astore(0, pages)),
    "compress_async": lambda s, pages: s.engine.compress_async(CompressBatch(pages)),
    "compress_async, cancelled": lambda s, pages: _cancelled(
        s.engine.compress_async(CompressBatch(pages))
    ),
    "submit": lambda s, pages: s.engine.submit(CompressBatch(pages)).wait(),
    "await": lambda s, pages: asyncio.wait_for(s.engine.submit(CompressBatch(pages)), 60),
    "await, failed": _await_failed,
    "wait, failed": _wait_failed,
}


@pytest.mark.parametrize("call", KEEPERS)
def test_pages_go_with_the_last_reference_and_need_no_collection(call: str) -> None:
    """cpython#80111, cpython#74028: an exception, its frames and its future kept each other, and the data."""
    with (
        Engine("lz4", backend="threads", workers=1) as engine,
        SwapStore(engine, keep_incompressible=False) as store,
    ):

        async def alone() -> bool:
            pages = _pages()
            seen = weakref.ref(pages)
            done = KEEPERS[call](store, pages)
            del pages
            if asyncio.iscoroutine(done):
                await done
            del done
            for _ in range(50):  # the thread that did it may be about to let go
                if seen() is None:
                    break
                await asyncio.sleep(0.01)
            return seen() is not None

        gc.collect()
        gc.disable()
        try:
            assert asyncio.run(alone()) is False
        finally:
            gc.enable()


def test_event_loops_are_not_kept_by_an_engine_that_they_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """anyio#1203: what a WeakKeyDictionary keeps for a loop refers to the loop."""
    loops = []
    pages = np.zeros((1, SIZE), np.uint8)
    calls = itertools.count()
    with Engine("lz4", backend="threads", workers=1) as engine:
        submit = engine.submit

        def submit_if_there_is_room(batch: CompressBatch, **options: Any) -> Request[CompressBatch]:
            if next(calls) % 5 == 0:
                raise EngineBusy("full")
            return submit(batch, **options)

        monkeypatch.setattr(engine, "submit", submit_if_there_is_room)

        async def crowd() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            batches = [CompressBatch(pages) for _ in range(20)]
            await asyncio.gather(*map(engine.compress_async, batches))

        for _ in range(3):
            asyncio.run(crowd())
        gc.collect()
        assert [loop() for loop in loops] == [None] * 3


def test_a_loop_that_is_closed_at_the_last_moment_is_no_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """anyio#1265, python/asyncio#258: closed between the look whether it is and the call."""
    loop = asyncio.new_event_loop()
    request = Request(CompressBatch(np.zeros((1, SIZE), np.uint8)))
    assert request.take_up()

    async def wait() -> None:
        await request

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    call = loop.call_soon_threadsafe

    def close_and_call(*arguments: Any) -> Any:
        loop.close()
        return call(*arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", close_and_call)
    with caplog.at_level(logging.DEBUG, "concurrent.futures"):
        request.finish()
    assert not caplog.records
    task._log_destroy_pending = False  # type: ignore[attr-defined] # nobody is left to end it


# Alarms


class _Alarm(Exception):
    """What a signal handler raises."""


class _Late(TimeoutError):
    """What a signal handler raises, of a kind that waits know, too."""


@pytest.fixture
def alarm(request: pytest.FixtureRequest) -> Iterator[type[Exception]]:
    """Have the kind of exception that an alarm raises."""

    def handle(*_: object) -> None:
        raise request.param("too long")

    before = signal.signal(signal.SIGALRM, handle)
    yield request.param
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


ALARMS = pytest.mark.parametrize("alarm", [TimeoutError, _Late, _Alarm], indirect=True)


@ALARMS
@pytest.mark.parametrize("timeout_s", [None, 60])
def test_an_alarm_in_a_wait_is_not_taken_for_the_end_of_the_wait(
    alarm: type[Exception], timeout_s: float | None
) -> None:
    """ansible#53804, aioesphomeapi#565: TimeoutError of a handler was taken for another one."""
    request = Request(CompressBatch([text(1)]))

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        request.wait(timeout_s)

    with pytest.raises(alarm, match="too long") as raised:
        wait()
    assert type(raised.value) is alarm


@ALARMS
def test_an_alarm_in_a_submit_leaves_nothing_under_way(
    alarm: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request[Any]] = []
    with Engine("lz4", backend="threads", workers=1) as engine:
        queue = engine.backend._queue  # type: ignore[attr-defined]
        put = queue.put

        def put_and_raise(request: Request[Any], **options: Any) -> None:
            requests.append(request)
            put(request, **options)
            raise alarm("too long")

        monkeypatch.setattr(queue, "put", put_and_raise)
        batch = CompressBatch([text(number) for number in range(256)])
        with pytest.raises(alarm, match="too long"):
            engine.submit(batch)
        assert requests[0].done()


@ALARMS
def test_an_alarm_is_not_taken_for_a_lack_of_memory(
    alarm: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def arena(*_: object) -> None:
        raise alarm("too long")

    with Engine("lz4", backend="threads", workers=1) as engine, SwapStore(engine) as store:
        monkeypatch.setattr(engine, "arena", arena)
        with pytest.raises(alarm, match="too long"):
            store.store(0, [text(number) for number in range(256)])
        store.check_invariants()


# Mappings


class _Stubborn:
    """Serialises all, and restores all but "broken"."""

    dumps = staticmethod(pickle.dumps)

    def loads(self, data: bytes) -> object:
        value = pickle.loads(data)
        if value == "broken":
            raise KeyError("a class that is gone")
        return value


READERS: dict[str, Callable[[CompressedMapping], object]] = {
    "get": lambda m: m.get("key", "absent"),
    "items": lambda m: list(m.items()),
    "values": lambda m: list(m.values()),
    "in items": lambda m: ("key", 1) in m.items(),
    "in values": lambda m: 1 in m.values(),
    "pop": lambda m: m.pop("key", "absent"),
    "setdefault": lambda m: m.setdefault("key", "absent"),
    "==": lambda m: m == {"key": "broken"},
    "|": lambda m: m | {},
    "copy": lambda m: m.copy()["key"],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_value_that_cannot_be_restored_is_not_taken_for_absent(
    store: SwapStore, reader: str
) -> None:
    """joblib#896, litestar#4420, cpython#83057: a KeyError of the unpickler read as "not there"."""
    with CompressedMapping(store, serializer=_Stubborn()) as mapping:
        mapping["key"] = "broken"
        with pytest.raises(KeyError, match="a class that is gone"):
            READERS[reader](mapping)
        assert "key" in mapping
        mapping["key"] = "mended"
        assert mapping.get("key") == "mended"
        assert mapping.get("other") is None


class _Shy:
    def __repr__(self) -> str:
        raise RuntimeError("nobody is to see me")


def test_a_damaged_value_is_said_whatever_its_key_looks_like(mapping: CompressedMapping) -> None:
    """cachetools#12, fusil#264: an error could not be said, as the key in it had no repr."""
    for key in ((_Shy(),), 10**5000):
        mapping[key] = noise(1)
        flip(mapping.group, 1 << 63)  # the first value's entry
        with pytest.raises(CorruptPage):
            mapping[key]
        del mapping[key]


@pytest.mark.parametrize("view", ["items", "values"])
def test_a_key_that_goes_meanwhile_is_left_out(mapping: CompressedMapping, view: str) -> None:
    """filesystem_spec#893, stucchio/Python-LRU-cache#9: KeyError, as another thread deleted a key."""
    mapping.update({number: b"%d" % number for number in range(5)})
    found = iter(getattr(mapping, view)())
    next(found)
    del mapping[2]
    mapping[9] = b"9"
    left = [(1, b"1"), (3, b"3"), (4, b"4")]
    assert list(found) == (left if view == "items" else [value for _, value in left])
    assert (3, b"3") in mapping.items()
    assert (3, b"other") not in mapping.items()
    assert b"4" in mapping.values()


def test_threads_may_look_at_all_while_others_change_it(mapping: CompressedMapping) -> None:
    ends = threading.Event()

    def change() -> None:
        number = 0
        while not ends.is_set():
            mapping[number % 20] = b"value"
            mapping.pop(number * 7 % 20, None)
            number += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            assert {value for _, value in mapping.items()} <= {b"value"}
            assert set(mapping.values()) <= {b"value"}
            mapping.copy().close()
            (mapping | {}).close()
            assert mapping.get(3, b"value") == b"value"
    finally:
        ends.set()
        thread.join()


def test_mappings_are_made_in_no_more_time_the_more_there_are(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeCAD#16849, spox#140: each name was looked for from the first on."""
    asked: list[str] = []
    new_group = store._new_group

    def ask(name: str, most: int | None) -> Group | None:
        asked.append(name)
        return new_group(name, most)

    monkeypatch.setattr(store, "_new_group", ask)
    mappings = [CompressedMapping(store) for _ in range(50)]
    assert len({each.group.name for each in mappings}) == len(asked) == 50
    for each in mappings:
        each.close()


# Stores


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
        counts = []
        for level in range(1, 13):
            store.store(level * 100, pages)
            store.recompress("zstd", level=level)
            counts.append(len(os.listdir("/proc/self/task")))  # noqa: PTH208 - only how many
        assert max(counts) == counts[4]
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
    """Call it with so many frames left; RecursionError is what one expects."""
    frame, depth = sys._getframe(), 1
    while (back := frame.f_back) is not None:
        frame, depth = back, depth + 1

    def descend(frames: int) -> None:
        descend(frames - 1) if frames else call()

    with contextlib.suppress(RecursionError):
        descend(sys.getrecursionlimit() - depth - left)


def test_what_recursion_ends_is_whole_or_has_not_been(store: SwapStore) -> None:
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
    """cuda-python#1912, wiredtiger#1587: sizes that were counted while others changed fell below 0."""
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
    """A file whose calls are all done by a thread of its own, which collects garbage now and then."""

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


def test_a_thread_that_serves_the_file_may_drop_what_lies_in_it(engine: Engine) -> None:
    """h5py#2019, h5py#77: the thread that was waited for collected garbage that waited for its waiter."""
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


@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_the_engine_works_after_the_main_program_and_in_the_last_handlers(backend: str) -> None:
    """cpython#148280, more-executors#144: "cannot schedule new futures after interpreter shutdown"."""
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
