"""The API can be called within its own calls, by finalizers, weak references and a 1 kHz signal.

Nothing may wait for its own thread, and no page may be a mix of two. A page has a stamp
(support/stamps.py). Folios of a group are stored whole, so a loaded one has one version.
"""

from __future__ import annotations

import gc
import itertools
import random
import signal
import threading
import weakref
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from support.stamps import SIZE, stamp, stamped

from batchzip import BatchzipError, CompressedMapping, Engine, Pool, SwapStore, attach
from batchzip.codecs.codec import Codec
from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

INDICES = 40
FOLIO = 8
MOST_DEEP = 3
"""Calls in calls."""


class Api:
    """One of everything, and calls of it at random, each of which checks what it is given."""

    def __init__(self, engine: Engine, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.versions = itertools.count(1)
        self.calls: Counter[str] = Counter()
        self.deepest = 0
        self.wrong: list[BaseException] = []
        self._depth: dict[int, int] = {}
        self.engine = engine
        self.store = SwapStore(engine, backing=path, max_pool_bytes=1 << 16)
        self.group = self.store.group("group")
        self.mapping = CompressedMapping(self.store)
        self.pool = Pool(page_size=SIZE)
        self.file = BackingFile(path, page_size=SIZE)
        self.share = self.store.share()
        self.view = attach(self.share)
        self.handles: list[int] = []

    def visit(self) -> None:
        """Make a call, unless there are many in the middle of others already."""
        thread = threading.get_ident()
        depth = self._depth.get(thread, 0)
        if depth >= MOST_DEEP:
            return
        self._depth[thread] = depth + 1
        self.deepest = max(self.deepest, depth + 1)
        name = self.random.choice(NAMES)
        if name in ASKING and threading.current_thread().name == "batchzip-share":
            name = "call_load"  # a finalizer there would ask its own thread, for 30 s
        try:
            getattr(self, name)()
        except (BatchzipError, KeyError, OSError):
            pass
        except BaseException as error:  # noqa: BLE001 - told by the test
            error.add_note(name)
            self.wrong.append(error)
        finally:
            self._depth[thread] = depth
            self.calls[name] += 1

    # Calls.

    def _folio(self) -> range:
        first = self.random.randrange(INDICES // FOLIO) * FOLIO
        return range(first, first + FOLIO)

    def call_store(self) -> None:
        folio, version = self._folio(), next(self.versions)
        self.group.store(folio[0], [stamped(index, version) for index in folio])

    def call_store_array(self) -> None:
        folio, version = self._folio(), next(self.versions)
        pages = np.frombuffer(b"".join(stamped(index, version) for index in folio), np.uint8)
        self.group.store(folio[0], pages)

    def call_load(self) -> None:
        index = self.random.randrange(INDICES)
        assert stamp(self.group.load(index))[0] == index

    def call_load_many(self) -> None:
        folio = self._folio()
        found = [stamp(page.tobytes()) for page in self.group.load_many(folio)]
        assert [index for index, _ in found] == list(folio)
        assert len({version for _, version in found}) == 1, "half a folio"

    def call_take(self) -> None:
        folio = self._folio()
        found = [stamp(page.tobytes()) for page in self.group.load_many(folio, exclusive=True)]
        assert [index for index, _ in found] == list(folio)

    def call_invalidate(self) -> None:
        folio = self._folio()
        assert self.group.invalidate(folio[0], FOLIO) in (0, FOLIO)

    def call_writeback(self) -> None:
        self.group.writeback(3)
        self.group.writeback(self._folio())

    def call_recompress(self) -> None:
        if self.random.random() < 0.1:
            self.group.recompress("zstd")

    def call_compact(self) -> None:
        self.store.compact()

    def call_shrink(self) -> None:
        self.store.shrink()

    def call_look(self) -> None:
        assert self.store.check().ok
        assert self.store.counters.decompress_fail == 0
        self.store.status()
        self.store.counters_by_group()
        self.store.classes()

    def call_group(self) -> None:
        name = self.random.choice("abc")
        self.store.group(name).store(5, stamped(5, next(self.versions)))
        self.store.drop_group(name)

    def call_mapping(self) -> None:
        key = self.random.choice("xyz")
        match self.random.randrange(5):
            case 0:
                self.mapping[key] = stamped(1, next(self.versions)) * 3 + b"tail"
            case 1:
                value = self.mapping[key]
                assert value[3 * SIZE :] == b"tail"
                assert len({stamp(value[at : at + SIZE]) for at in range(0, 3 * SIZE, SIZE)}) == 1
            case 2:
                value = self.mapping.pop(key, None)
                assert value is None or value.endswith(b"tail")
            case 3:
                self.mapping.setdefault(key, stamped(1, next(self.versions)) * 3 + b"tail")
            case _:
                del self.mapping[key]

    def call_new_mapping(self) -> None:
        with CompressedMapping(self.store) as mapping:
            mapping["key"] = b"value"
            assert mapping["key"] == b"value"

    def call_pool(self) -> None:
        data = stamped(2, next(self.versions))[: self.random.randrange(8, SIZE)]
        handle = self.pool.put(data)
        assert self.pool.read(handle) == data
        self.pool.compact(10)
        self.pool.free(handle)

    def call_file(self) -> None:
        data = [stamped(3, next(self.versions)) for _ in range(3)]
        positions = self.file.write(data).keep()
        assert self.file.read(positions) == data
        self.file.zones.free(positions)
        self.file.settle()

    def call_view(self) -> None:
        index = self.random.randrange(INDICES)
        assert stamp(self.view.group("group").load(index))[0] == index

    def call_share(self) -> None:
        if self.random.random() < 0.1:
            with attach(self.store.share()) as view:
                assert view.page_size == SIZE

    def call_engine(self) -> None:
        self.store.engine = self.engine

    def call_other_store(self) -> None:
        with SwapStore(self.engine) as store:
            store.store(0, stamped(0, 1))
            assert stamp(store.load(0)) == (0, 1)

    def close(self) -> None:
        self.view.close()
        self.mapping.close()
        self.store.check_invariants()
        self.pool.check_invariants()
        self.store.close()
        self.pool.close()
        self.file.close()


ASKING = ("call_share", "call_view")
NAMES = [name for name in vars(Api) if name.startswith("call_")]


@pytest.fixture(params=["sequential", "threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    workers = 1 if request.param == "threads" else None
    with Engine("lz4", backend=request.param, page_size=SIZE, workers=workers) as engine:
        assert engine.wait_ready()
        yield engine


class Litter:
    """Garbage in a cycle, whose finalizer, and whose weak reference's callback, make calls."""

    def __init__(self, visit: Callable[[], None]) -> None:
        self.visit = visit
        self.me = self

    def __del__(self) -> None:
        self.visit()


def litter(api: Api, kept: list[Any]) -> None:
    one, two = Litter(api.visit), Litter(lambda: None)
    del kept[:-20]
    kept.append(weakref.ref(two, lambda _: api.visit()))
    del one, two


def signals(api: Api) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: api.visit())
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["signal", "finalizers", "both"])
@pytest.mark.parametrize(
    "steps", [pytest.param(400), pytest.param(20_000, marks=pytest.mark.stress, id="stress")]
)
def test_every_call_may_come_into_the_middle_of_every_other(
    engine: Engine, source: str, steps: int, tmp_path: Path, report: Callable[[str], None]
) -> None:
    api = Api(engine, tmp_path, steps)
    ended = threading.Event()

    def beside() -> None:
        while not ended.is_set():
            api.visit()

    other = threading.Thread(target=beside)
    other.start()
    alarms = signals(api) if source != "finalizers" else iter([None])
    thresholds = gc.get_threshold()
    kept: list[Any] = []
    try:
        next(alarms)
        if source != "signal":
            gc.set_threshold(1)
        for _ in range(steps):
            if source != "signal":
                litter(api, kept)
            api.visit()
    finally:
        gc.set_threshold(*thresholds)
        next(alarms, None)
        ended.set()
        other.join()
    kept.clear()
    gc.collect()
    if api.wrong:
        raise api.wrong[0]
    api.close()
    assert api.deepest > 1
    assert all(api.calls[name] for name in NAMES)
    report(f"re-entry: {engine.backend.name}, {source}: {api.calls.total()} calls, 0 wrong")


def nothing() -> None:
    """Do nothing."""


class _Calling(Codec):
    """A codec in Python that calls `visit` in the middle of each page, both ways."""

    name: ClassVar[str] = "calling"
    visit: ClassVar[Callable[[], None]] = nothing

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002
        def compress(page: Flat) -> bytes:
            _Calling.visit()
            return zlib.compress(page, 1)

        return compress

    def decompressor(self, page_size: int) -> Transcode:  # noqa: ARG002
        def decompress(data: Flat) -> bytes:
            _Calling.visit()
            return zlib.decompress(data)

        return decompress


@pytest.mark.slow
def test_a_codec_may_store_and_load_in_the_middle_of_a_store(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    steps = 300
    with Engine(_Calling(), backend="sequential", page_size=SIZE) as engine:
        api = Api(engine, tmp_path, steps)
        _Calling.visit = api.visit
        for _ in range(steps):
            api.visit()
        if api.wrong:
            raise api.wrong[0]
        _Calling.visit = nothing
        api.close()
    assert api.deepest == MOST_DEEP
    report(f"re-entry: from a codec: {api.calls.total()} calls, 0 wrong")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError, SystemExit])
def test_a_codec_that_raises_leaves_the_indices_empty_or_as_they_were_loaded(
    error: type[BaseException],
) -> None:
    def fail() -> None:
        raise error

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    with (
        Engine(_Calling(), backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine) as store,
    ):
        for visit in (fail, interrupt):
            pages = [stamped(index, 3 * index + 3) for index in range(4)]  # none is one word
            pages = [page for page in pages if page != page[:8] * (SIZE // 8)]
            store.store(0, pages)
            _Calling.visit = visit
            with pytest.raises((error, KeyboardInterrupt, BatchzipError)):
                store.load(0)
            with pytest.raises((error, KeyboardInterrupt, BatchzipError)):
                store.load(0, exclusive=True)
            _Calling.visit = nothing
            assert store.load(0) == pages[0]
            _Calling.visit = visit
            with pytest.raises((error, KeyboardInterrupt, BatchzipError)):
                store.store(0, pages)
            _Calling.visit = nothing
            assert len(store) == 0
            store.check_invariants()
