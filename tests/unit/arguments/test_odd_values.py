"""Any value as any argument does its work or is refused with an error that a caller expects.

Every public function and constructor is called with every odd value as each argument. No other
error is raised, none has a private name in its text, and nothing that is stored suffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from support.store_pages import noise, text

import batchzip
from batchzip import (
    BatchzipError,
    CompressBatch,
    CompressedMapping,
    DecompressBatch,
    Engine,
    Group,
    NotStorable,
    PageNotStored,
    Pool,
    SwapStore,
    load_array,
    store_array,
)
from batchzip.advice import advise
from batchzip.codecs.zstd import Zstd
from batchzip.dask import ShardedStore, WorkerData
from batchzip.metrics import collector
from batchzip.numcodecs import Batchzip
from batchzip.zarr import BatchzipCodec
from batchzip_dask import DaskBackend
from batchzip_threads import ThreadsBackend
from batchzip_workers.backend import WorkersBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXPECTED = (BatchzipError, TypeError, ValueError, IndexError, KeyError)

PAGE = 4096


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


def masked(dtype: str = "u1") -> Any:
    return np.ma.masked_equal(np.ones((2, PAGE), dtype), 1)


def values() -> list[Any]:
    """Make them anew: some are used up."""
    numbers: list[Any] = [None, True, -1, 0, 1, 3, 64, 255, 256, 4096]
    numbers += [2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400), 10**5000]
    numbers += [0.5, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324]
    numbers += [*map(Decimal, ["NaN", "sNaN", "Infinity", "0.5", "7", "1E+400"]), Fraction(1, 3)]
    numbers += [Fraction(10**400), 1j]
    numpy: list[Any] = [np.int8(64), np.uint8(255), np.int64(-1), np.uint64(2**64 - 1)]
    numpy += [np.float32("nan"), np.float64(1), np.bool_(True), np.str_("lz4"), np.array(5)]
    numpy += [np.array([5]), np.array(True), np.array([True, False]), np.ma.masked]
    numpy += [np.ma.array(5, mask=True), np.datetime64("2020-01-01"), np.complex64(1)]
    arrays: list[Any] = [np.zeros((2, PAGE), np.int8), np.zeros((0, PAGE), np.uint8)]
    arrays += [np.zeros((PAGE, 0), np.uint8), np.zeros((2, PAGE)), np.zeros((2, 2, 2), np.uint8)]
    arrays += [
        np.zeros((2, 2 * PAGE), np.uint8)[:, ::2],
        np.array([None, 1]),
        masked(),
        masked("f8"),
    ]
    arrays += [np.array(["2020"], "M8[D]"), np.array(["a"]), np.zeros(3, "u1,i4"), np.array(1.5)]
    buffers: list[Any] = [b"", b"bytes", bytes(PAGE), bytearray(5), memoryview(b"ab")[::2]]
    buffers += [memoryview(bytes(12)).cast("i"), b"x" * (PAGE + 1)]
    texts: list[Any] = ["", "text", "zstd", "3", "tile-\udcff", "nul\0", "/", "é", "a" * 300]
    sequences: list[Any] = [
        [],
        (),
        {},
        {"a": 1},
        set(),
        range(3),
        range(2**64, 2**64 + 2),
        [1, None],
    ]
    sequences += [
        [np.uint64(1), 2],
        [np.uint64(1), -1],
        [2**64],
        [1.5],
        [True, False],
        [[1], [2, 3]],
    ]
    sequences += [[np.uint8(255), 300], (bytes(PAGE), None), [bytes(PAGE), b"short"], [masked()]]
    sequences += [iter([0, 1]), (n for n in [0]), [np.array(1), np.array([1, 2])]]
    others: list[Any] = [object(), object, len, Unprintable(), Ellipsis, NotImplemented, Zstd(1)]
    others += [DecompressBatch([b"a"], page_size=PAGE), CompressBatch(bytes(PAGE), page_size=PAGE)]
    return [*numbers, *numpy, *arrays, *buffers, *texts, *sequences, *others]


class World:
    """An engine, and what stores with it; made anew for each call that is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine("lz4", backend="sequential")
        self.store = SwapStore(self.engine, backing=folder, shrinker_enabled=False)
        self.store.store(0, [text(1), noise(1), bytes(PAGE)])
        self.group: Group = self.store.group("kept")
        self.group.store(0, [text(2), noise(2)])
        self.array = np.arange(3000)
        self.ticket = store_array(self.store.group("array"), 5, self.array)
        self.mapping = CompressedMapping(self.store, name="mapping", serializer="pickle")
        self.mapping["kept"] = text(3)
        self.raw = CompressedMapping(self.store)
        self.view = batchzip.attach(self.store.share())
        self.pool = Pool()
        self.handle = self.pool.put(b"kept")
        self.batch = CompressBatch([text(4), text(5)])
        self.engine.compress(self.batch)

    def check(self) -> None:
        """Raise AssertionError where something that was stored has changed."""
        assert self.group.load(0) == text(2)
        assert self.group.load_many([0, 1])[1].tobytes() == noise(2)
        assert np.array_equal(load_array(self.store.group("array"), self.ticket), self.array)
        assert self.mapping["kept"] == text(3)
        assert self.pool.read(self.handle) == b"kept"
        self.store.check_invariants()
        self.mapping.check_invariants()

    def close(self) -> None:
        for each in (self.view, self.raw, self.mapping, self.store, self.pool, self.engine):
            each.close()


def closed(made: Any) -> None:
    made.close()


def array_of(world: World) -> Any:
    return world.store.group("array")


def written(world: World, value: Any) -> object:
    """Set a key and look whether it came back."""
    world.raw["key"] = value
    assert world.raw["key"] == memoryview(value).tobytes()
    return None


def kept_by(world: World, key: Any) -> None:
    world.mapping[key] = 5
    assert world.mapping.pop(key) == 5


def restored(world: World, index: Any) -> None:
    """Store at an index: it is what is meant, whatever the kind of integer."""
    group = world.store.group("other")
    group.store(index, [text(7), noise(7)])
    where = int(index)
    assert [each.tobytes() for each in group.load_many([where, where + 1])] == [text(7), noise(7)]
    assert len(group) == 2
    group.invalidate(index, 2)


def stored_array(world: World, index: Any) -> None:
    group = world.store.group("arrays")
    ticket = store_array(group, index, world.array)
    assert np.array_equal(load_array(group, ticket), world.array)
    assert json.dumps(ticket.index) == str(int(index))
    assert len(group) == ticket.pages
    group.invalidate(index, ticket.pages)


CALLS: dict[str, Callable[[World, Any], object]] = {
    # Engines and backends
    "Engine": lambda _, v: closed(Engine(v)),
    "Engine level": lambda _, v: closed(Engine("zstd", backend="sequential", level=v)),
    "Engine dictionary": lambda _, v: closed(Engine("zstd", backend="sequential", dictionary=v)),
    "Engine acceleration": lambda _, v: closed(Engine("lz4", backend="sequential", acceleration=v)),
    "Engine high": lambda _, v: closed(Engine("lz4", backend="sequential", high_compression=v)),
    "Engine lz4hc": lambda _, v: closed(Engine("lz4hc", backend="sequential", level=v)),
    "Engine brotli": lambda _, v: closed(Engine("brotli", backend="sequential", level=v)),
    "Engine deflate": lambda _, v: closed(Engine("deflate", backend="sequential", level=v)),
    "Engine unknown": lambda _, v: closed(Engine("lz4", backend="sequential", strength=v)),
    "Engine backend": lambda _, v: closed(Engine("lz4", backend=v)),
    "Engine workers": lambda _, v: closed(Engine("lz4", backend="sequential", workers=v)),
    "Engine page_size": lambda _, v: closed(Engine("lz4", backend="sequential", page_size=v)),
    "Engine shuffle": lambda _, v: closed(Engine("lz4", backend="sequential", shuffle=v)),
    "threads": lambda _, v: ThreadsBackend(workers=v),
    "workers": lambda _, v: WorkersBackend(workers=v),
    "dask seconds": lambda _, v: DaskBackend("tcp://127.0.0.1:1", workerless_s=v),
    "compress": lambda w, v: w.engine.compress(v),
    "decompress": lambda w, v: w.engine.decompress(v),
    "submit": lambda w, v: w.engine.submit(v).wait(),
    "submit timeout_s": lambda w, v: w.engine.submit(w.batch, timeout_s=v).wait(),
    "submit deadline_s": lambda w, v: w.engine.submit(w.batch, deadline_s=v).wait(),
    "wait": lambda w, v: w.engine.submit(w.batch).wait(v),
    "compress_async": lambda w, v: asyncio.run(w.engine.compress_async(w.batch, deadline_s=v)),
    "wait_ready": lambda w, v: w.engine.wait_ready(v),
    "arena rows": lambda w, v: w.engine.arena(v, 1),
    "arena width": lambda w, v: w.engine.arena(1, v),
    "compress_page": lambda w, v: w.engine.compress_page(v),
    "decompress_page": lambda w, v: w.engine.decompress_page(v),
    # Batches
    "CompressBatch": lambda _, v: CompressBatch(v),
    "CompressBatch flat": lambda _, v: CompressBatch(v, page_size=PAGE),
    "CompressBatch dsts": lambda _, v: CompressBatch([text(1)], dsts=v),
    "CompressBatch capacity": lambda _, v: CompressBatch([text(1)], capacity=v),
    "CompressBatch page_size": lambda _, v: CompressBatch(bytes(2 * PAGE), page_size=v),
    "CompressBatch page_size of list": lambda _, v: CompressBatch([text(1)], page_size=v),
    "refill": lambda _, v: CompressBatch([text(1), text(2)]).refill(v),
    "output": lambda w, v: w.batch.output(v),
    "DecompressBatch": lambda _, v: DecompressBatch(v),
    "DecompressBatch lengths": lambda _, v: DecompressBatch((np.zeros((2, 9), np.uint8), v)),
    "DecompressBatch pages": lambda _, v: DecompressBatch([b"a"], v),
    "DecompressBatch page_size": lambda _, v: DecompressBatch([b"a"], page_size=v),
    # Stores
    "SwapStore": lambda _, v: closed(SwapStore(v)),
    "max_pool_bytes": lambda w, v: closed(SwapStore(w.engine, max_pool_bytes=v)),
    "percent": lambda w, v: closed(SwapStore(w.engine, accept_threshold_percent=v)),
    "max_backing_bytes": lambda w, v: closed(
        SwapStore(w.engine, backing=w.folder, max_backing_bytes=v)
    ),
    "max_batch": lambda w, v: closed(SwapStore(w.engine, max_batch=v)),
    "set max_pool_bytes": lambda w, v: setattr(w.store, "max_pool_bytes", v),
    "set max_backing_bytes": lambda w, v: setattr(w.store, "max_backing_bytes", v),
    "set percent": lambda w, v: setattr(w.store, "accept_threshold_percent", v),
    "set engine": lambda w, v: setattr(w.store, "engine", v),
    "set max_bytes": lambda w, v: setattr(w.group, "max_bytes", v),
    "group": lambda w, v: w.store.group(v).store(0, text(1)),
    "group max_bytes": lambda w, v: w.store.group("new", max_bytes=v),
    "drop_group": lambda w, v: w.store.drop_group(v),
    "store index": restored,
    "store pages": lambda w, v: w.store.store(100, v),
    "load": lambda w, v: w.store.load(v),
    "load out": lambda w, v: w.store.load(0, v),
    "load_many": lambda w, v: w.store.load_many(v),
    "load_many out": lambda w, v: w.store.load_many([0, 1], v),
    "astore": lambda w, v: asyncio.run(w.store.astore(v, text(1))),
    "aload": lambda w, v: asyncio.run(w.store.aload(v)),
    "aload_many": lambda w, v: asyncio.run(w.store.aload_many(v)),
    "invalidate": lambda w, v: w.store.invalidate(v),
    "invalidate count": lambda w, v: w.store.invalidate(0, v),
    "writeback": lambda w, v: w.store.writeback(v),
    "recompress": lambda w, v: w.store.recompress(v),
    "recompress idle_for_s": lambda w, v: w.store.recompress(idle_for_s=v),
    "recompress min_length": lambda w, v: w.store.recompress(min_length=v),
    "recompress level": lambda w, v: w.store.recompress("zstd", level=v),
    "store dictionary size": lambda w, v: w.store.train_dictionary(size=v),
    "store dictionary level": lambda w, v: w.store.train_dictionary(level=v, size=1024),
    "in": lambda w, v: v in w.store,
    # Views
    "view load": lambda w, v: w.view.load(v),
    "view load_many": lambda w, v: w.view.load_many(v),
    "view out": lambda w, v: w.view.load(0, v),
    "view in": lambda w, v: v in w.view,
    "view group": lambda w, v: w.view.group(v),
    # Arrays
    "store_array store": lambda w, v: store_array(v, 0, w.array),
    "store_array index": stored_array,
    "store_array": lambda w, v: store_array(w.store, 200, v),
    "load_array store": lambda w, v: load_array(v, w.ticket),
    "load_array": lambda w, v: load_array(array_of(w), v),
    "load_array out": lambda w, v: load_array(array_of(w), w.ticket, v),
    # Mappings
    "mapping store": lambda _, v: closed(CompressedMapping(v)),
    "mapping name": lambda w, v: closed(CompressedMapping(w.store, name=v)),
    "mapping max_bytes": lambda w, v: closed(CompressedMapping(w.store, max_bytes=v)),
    "mapping serializer": lambda w, v: closed(CompressedMapping(w.store, serializer=v)),
    "mapping key": kept_by,
    "mapping get": lambda w, v: w.mapping.get(v),
    "mapping []": lambda w, v: w.mapping[v],
    "mapping pop": lambda w, v: w.mapping.pop(v),
    "mapping in": lambda w, v: v in w.mapping,
    "mapping value": lambda w, v: w.mapping.__setitem__("new", v),
    "mapping of bytes": written,
    "mapping update": lambda w, v: w.mapping.copy().update(v),
    "mapping |": lambda w, v: w.mapping | v,
    # The pool
    "Pool": lambda _, v: closed(Pool(v)),
    "Pool page_size": lambda _, v: closed(Pool(page_size=v)),
    "Pool name": lambda _, v: closed(Pool(name=v)),
    "pool max_bytes": lambda w, v: setattr(w.pool, "max_bytes", v),
    "malloc": lambda w, v: w.pool.malloc(v),
    "malloc_many": lambda w, v: w.pool.malloc_many(v),
    "put": lambda w, v: w.pool.put(v),
    "put_many": lambda w, v: w.pool.put_many(v),
    "pool read": lambda w, v: w.pool.read(v),
    "pool read_many": lambda w, v: w.pool.read_many(v),
    "pool free": lambda w, v: w.pool.free(v),
    "pool write": lambda w, v: w.pool.write(v, b"kept"),
    "pool lengths": lambda w, v: w.pool.lengths(v),
    "class_size": lambda w, v: w.pool.class_size(v),
    # The rest
    "train_dictionary": lambda _, v: batchzip.train_dictionary(v),
    "dictionary size": lambda _, v: batchzip.train_dictionary([text(1)], size=v),
    "dictionary level": lambda _, v: batchzip.train_dictionary([text(1)], level=v),
    "dictionary shuffle": lambda _, v: batchzip.train_dictionary([text(1)], shuffle=v),
    "advise": lambda _, v: advise(v),
    "advise total_bytes": lambda _, v: advise(bytes(1 << 16), total_bytes=v, algorithms=["lz4"]),
    "advise max_load_us": lambda _, v: advise(bytes(1 << 16), max_load_us=v, algorithms=["lz4"]),
    "advise algorithms": lambda _, v: advise(bytes(1 << 16), algorithms=v),
    "collector": lambda _, v: collector(v),
    "collector of several": lambda w, v: list(collector({v: w.store}).collect()),
    "PageError": lambda _, v: str(batchzip.PageError(0, v)),
    "PageError index": lambda _, v: str(batchzip.PageError(v, -5)),
    "PageNotStored": lambda _, v: batchzip.PageNotStored(v),
    "CorruptPage": lambda _, v: batchzip.CorruptPage(v),
    "Batchzip": lambda _, v: json.dumps(Batchzip(v).get_config()),
    "Batchzip page_size": lambda _, v: json.dumps(Batchzip(page_size=v).get_config()),
    "Batchzip shuffle": lambda _, v: json.dumps(Batchzip(shuffle=v).get_config()),
    "Batchzip level": lambda _, v: json.dumps(Batchzip(level=v).get_config()),
    "Batchzip encode": lambda _, v: Batchzip().encode(v),
    "Batchzip decode": lambda _, v: Batchzip().decode(v),
    "Batchzip out": lambda _, v: Batchzip().decode(Batchzip().encode(text(1)), v),
    "BatchzipCodec": lambda _, v: json.dumps(BatchzipCodec(page_size=v).to_dict()),
    "BatchzipCodec from_dict": lambda _, v: BatchzipCodec.from_dict(v),
    "ShardedStore": lambda _, v: ShardedStore(v),
    "WorkerData live": lambda w, v: closed(
        WorkerData(str(w.folder), memory_limit=1 << 20, live=v)
    ),
}  # fmt: skip

ALSO: dict[str, tuple[type[Exception], ...]] = {
    "arena rows": (OSError,),  # there is no memory for so many
    "arena width": (OSError,),
    "CompressBatch capacity": (MemoryError,),
    "collector of several": (RuntimeError,),  # that of the name itself
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", CALLS)
def test_an_odd_value_works_or_raises_an_expected_error(world: World, name: str) -> None:
    faults = []
    expected: tuple[type[Exception], ...] = (*EXPECTED, *ALSO.get(name, ()))
    for number, value in enumerate(values()):
        kind = f"value {number}, {type(value).__name__}"
        try:
            CALLS[name](world, value)
        except expected as error:
            private = re.search(r"(?<![\w.])_[A-Z]\w+", said := _said(error))
            is_key = type(error) is KeyError  # a dict says nothing but the key
            if private or (len(said) > 1000 and not is_key):
                faults.append(f"{kind}: {said[:200]}")
        except Exception as error:  # noqa: BLE001 - that is the question
            faults.append(f"{kind}: {type(error).__name__}: {error}"[:300])
    world.check()
    assert not faults, "\n".join(faults[:6])


def _said(error: BaseException) -> str:
    with contextlib.suppress(RuntimeError, ValueError):  # KeyError(key) of a key that has no repr
        return str(error)
    return ""


@pytest.mark.parametrize("index", [np.uint8(254), np.int8(126), np.uint16(65535), np.int64(2**62)])
def test_small_integers_do_not_wrap_as_indices(store: SwapStore, index: Any) -> None:
    pages = [text(number) for number in range(5)]
    where = range(int(index), int(index) + 5)
    store.store(index, pages)
    assert [each.tobytes() for each in store.load_many(where)] == pages
    store.store(int(index) + 9, bytes(PAGE))
    ticket = store_array(store, index, np.arange(2000))
    assert ticket.index + ticket.pages == int(index) + 4
    assert len(store) == 6
    assert store.invalidate(index, np.uint8(4)) == 4
    assert int(index) + 9 in store


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        ([np.uint64(1), 0], [1, 0]),
        ([np.uint8(1), np.int64(2), 0], [1, 2, 0]),
        ((np.uint64(2), np.int8(1)), [2, 1]),
        (iter([np.uint64(0), 1]), [0, 1]),
        (np.array([2, 0], ">u8"), [2, 0]),
        (np.arange(6)[::2][::-1][1:], [2, 0]),
    ],
)
def test_indices_of_mixed_kinds_are_indices(
    store: SwapStore, indices: Any, found: list[int]
) -> None:
    pages = [text(number) for number in range(3)]
    store.store(0, pages)
    assert [each.tobytes() for each in store.load_many(indices)] == [pages[n] for n in found]


@pytest.mark.parametrize("far", [2**63, 2**64, 10**400, -1])
def test_an_index_that_cannot_be_among_others_is_not_stored(store: SwapStore, far: int) -> None:
    store.store(0, text(1))
    with pytest.raises(PageNotStored) as missing:
        store.load_many(cast("Any", [np.uint64(0), far]))
    assert missing.value.index == far


def test_a_masked_array_is_refused_with_advice(store: SwapStore) -> None:
    data: Any = np.ma.masked_greater(np.arange(5000.0), 10)
    pages: Any = masked()
    for refused in (
        lambda: store_array(store, 0, data),
        lambda: CompressedMapping(store).__setitem__("a", data),
    ):
        with pytest.raises(NotStorable, match=r"masked array.*serializer='pickle'"):
            refused()
    for call in (
        lambda: store.store(0, pages),
        lambda: CompressBatch(pages),
        lambda: CompressBatch([pages[0]]),
        lambda: store.load_many(np.ma.array([0, 1], mask=[False, True])),
        lambda: store.load(cast("Any", np.ma.array(0, mask=True))),
    ):
        with pytest.raises(ValueError, match=r"mask|Masked"):
            call()
    assert len(store) == 0
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["a"] = data
        assert mapping["a"].sum() == data.sum()
        assert (mapping["a"].mask == data.mask).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.load_many(np.zeros(3)), "not an array of float64, shape (3,)"),
        (lambda s: s.load(np.float32(1)), "not float32"),
        (lambda s: s.load(np.zeros(2)), "not ndarray of float64"),
        (lambda s: s.store(0, np.zeros((2, PAGE), np.float32)), "not float32"),
        (lambda s: s.store(0, np.array(["2020"], "M8[D]")), "not ndarray of datetime64[D]"),
        (lambda s: setattr(s, "max_pool_bytes", np.float64(1e6)), "not np.float64(1000000.0)"),
        (lambda s: s.recompress(min_length=np.arange(3)), "not ndarray of int64"),
    ],
)
def test_a_message_names_the_dtype(
    store: SwapStore, call: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call(store)
