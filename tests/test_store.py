"""SwapStore: folios all or nothing, pages back byte for byte, every refusal counted by its cause."""

import dataclasses
import errno
import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from forked import in_forked_child
from interrupt_lines import interrupted_at
from store_pages import SIZE, ZEROS, grown, noise, text, word

from batchzip import (
    Backend,
    BadArgument,
    BadBatch,
    BatchzipError,
    ClosedError,
    Codec,
    CorruptPage,
    Counters,
    Engine,
    ForkedProcess,
    PageError,
    PageNotStored,
    PoolFull,
    StoreRejected,
    SwapStore,
)
from batchzip.batch import Batch
from batchzip.core.memory import fail_allocation
from batchzip.pool import Pool
from batchzip.store.hysteresis import Hysteresis
from batchzip.store.page_table import PageTable

MAX_INDEX = (1 << 63) - 1


def assert_nothing_is_stored(store: SwapStore) -> None:
    store.check_invariants()
    counters = store.counters
    assert len(store) == counters.stored_pages == 0
    assert counters.stored_incompressible_pages == counters.same_filled_pages == 0
    assert store.compressed_bytes == store._home.objects.pool.objects == 0


# What is stored comes back


@pytest.mark.parametrize("backend", ["sequential", "workers"])
@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_pages_of_every_kind_come_back_byte_for_byte(algorithm: str, backend: str) -> None:
    pages = [(text, noise, word)[number % 3](number) for number in range(600)]
    with Engine(algorithm, backend=backend) as engine, SwapStore(engine) as store:
        assert engine.wait_ready()
        store.store(7, pages)
        store.check_invariants()
        order = random.Random(1).sample(range(600), 600)
        assert all(store.load(7 + number) == pages[number] for number in order)
        loaded = store.load_many([7 + number for number in order])
        assert loaded.tobytes() == b"".join(pages[number] for number in order)
        assert loaded.shape == (600, SIZE)
        assert loaded.dtype == np.uint8


@pytest.mark.parametrize("page_size", [512, 1 << 16, 2 << 20])
def test_pages_of_every_size_come_back_byte_for_byte(page_size: int) -> None:
    pages = [make(1, page_size) for make in (text, noise, word)]
    with (
        Engine("zstd", level=1, backend="sequential", page_size=page_size) as engine,
        SwapStore(engine) as store,
    ):
        store.store(0, pages)
        store.check_invariants()
        assert [bytes(page) for page in store.load_many(range(3))] == pages
        counters = store.counters
        assert counters.same_filled_pages == counters.stored_incompressible_pages == 1


@pytest.mark.slow
def test_zswap_selftest_24_megabytes_are_loaded_back_intact(store: SwapStore) -> None:
    rng = np.random.default_rng(1)
    pages = rng.integers(0, 256, (24 << 20 >> 12, SIZE), np.uint8)
    pages[:, 1024:] = 7
    pages[::5] = 0
    pages[1::9] = rng.integers(0, 256, (len(pages[1::9]), SIZE), np.uint8)
    for at in range(0, len(pages), 512):
        store.store(at, pages[at : at + 512])
    assert len(store) == len(pages)
    store.check_invariants()
    assert (store.load_many(rng.permutation(len(pages))).sum()) == pages.sum()
    assert (store.load_many(range(len(pages))) == pages).all()
    assert store.counters.pool_total_size < pages.nbytes


def test_zswap_selftest_random_data_raises_the_count_of_incompressible_pages(
    store: SwapStore,
) -> None:
    store.store(0, text(1))
    assert store.counters.stored_incompressible_pages == 0
    store.store(1, [noise(seed) for seed in range(10)])
    assert store.counters.stored_incompressible_pages == 10
    assert store.compressed_bytes >= 10 * SIZE
    store.invalidate(1, 4)
    assert store.counters.stored_incompressible_pages == 6


def test_zswap_selftest_at_limit_0_nothing_is_stored_and_what_was_stored_reads_right(
    store: SwapStore,
) -> None:
    store.store(0, [text(0), noise(1)])
    store.max_pool_bytes = 0
    for index, page in [(1, text(5)), (2, noise(5)), (3, text(6))]:
        with pytest.raises(StoreRejected):
            store.store(index, page)
    assert store.load(0) == text(0)
    assert len(store) == 1
    store.max_pool_bytes = 1 << 20
    store.store(1, text(5))
    assert store.load(1) == text(5)


def test_zswap_selftest_memory_used_is_counted_and_given_back(store: SwapStore) -> None:
    assert store.counters.pool_total_size == 0
    store.store(0, [noise(seed) for seed in range(64)])
    counters = store.counters
    assert counters.stored_pages == 64
    assert counters.pool_total_size >= 64 * SIZE
    store.invalidate(0, 64)
    assert store.counters.stored_pages == 0
    assert store.counters.pool_total_size <= 33 * SIZE  # a few that the pool keeps


def test_zram_selftest_only_zeros_take_no_memory_and_divide_nothing_by_zero(
    store: SwapStore,
) -> None:
    store.store(0, bytes(100 * SIZE))
    counters = store.counters
    assert counters.same_filled_pages == counters.stored_pages == 100
    assert counters.pool_total_size == store.compressed_bytes == 0
    assert store.classes() == []
    assert store.load(99) == ZEROS
    assert not store.load_many(range(100)).any()
    store.check_invariants()


def test_each_word_of_a_same_filled_page_is_kept(store: SwapStore) -> None:
    words = [0, 1, (1 << 64) - 1, 1 << 63, 0x8000000000000001, 0x5555555555555555]
    pages = [value.to_bytes(8, "little") * (SIZE // 8) for value in words]
    store.store(0, pages)
    assert store.counters.same_filled_pages == len(words)
    assert [store.load(index) for index in range(len(words))] == pages
    assert store.load_many(range(len(words))).tobytes() == b"".join(pages)


@pytest.mark.parametrize("count", [511, 512, 513, 1025])
@pytest.mark.parametrize("start", [0, 511, 1 << 62, MAX_INDEX - 1024])
def test_a_folio_of_any_length_lies_anywhere(engine: Engine, start: int, count: int) -> None:
    pages = [text(number) if number % 50 == 0 else word(number) for number in range(count)]
    with SwapStore(engine) as store:
        store.store(start, pages)
        assert start + count - 1 in store
        assert start - 1 not in store
        assert store.load_many(range(start, start + count)).tobytes() == b"".join(pages)
        store.check_invariants()
        assert store.invalidate(start, count) == count
        assert_nothing_is_stored(store)


def test_a_store_is_true_however_empty(store: SwapStore) -> None:
    assert store
    assert len(store) == 0


def test_what_is_overwritten_is_freed(store: SwapStore) -> None:
    for seed in range(20):
        store.store(0, [noise(seed), text(seed), word(seed)])
        assert store.load_many([2, 1, 0]).tobytes() == word(seed) + text(seed) + noise(seed)
    assert len(store) == 3
    assert store._home.objects.pool.objects == 2
    store.store(0, [ZEROS] * 3)
    assert store._home.objects.pool.objects == 0


def test_loading_keeps_the_page(store: SwapStore) -> None:
    store.store(3, text(3))
    assert store.load(3) == store.load(3) == text(3)
    assert 3 in store


def test_a_loaded_page_does_not_change_when_its_index_is_stored_again(store: SwapStore) -> None:
    store.store(0, [noise(1), text(1)])
    pages = store.load(0), store.load(1), store.load_many([0, 1])
    store.store(0, [noise(2), text(2)])
    store.invalidate(0, 2)
    assert bytes(pages[0]) + bytes(pages[1]) == pages[2].tobytes() == noise(1) + text(1)


def test_the_pages_stored_do_not_change_with_the_caller_s_buffer(store: SwapStore) -> None:
    memory = bytearray(noise(1) + text(1) + word(1))
    store.store(0, memory)
    memory[:] = bytes(len(memory))
    assert store.load_many(range(3)).tobytes() == noise(1) + text(1) + word(1)


@pytest.mark.parametrize("form", ["flat", "list", "array"])
def test_once_stored_the_caller_s_buffer_is_the_caller_s_again(store: SwapStore, form: str) -> None:
    memory = bytearray(noise(1) + text(1) + word(1))
    if form == "flat":
        store.store(0, memory)
    elif form == "list":
        with memoryview(memory) as view:
            store.store(0, [view[:SIZE], view[SIZE:-SIZE], view[-SIZE:]])
    else:
        store.store(0, np.frombuffer(memory, np.uint8).reshape(3, SIZE))
    memory.clear()  # BufferError while anything holds a view of it
    assert store.load(0) == noise(1)


def test_pages_between_same_filled_ones_stay_in_their_places(engine: Engine) -> None:
    makes = [ZEROS, text(1), ZEROS, noise(2), noise(3), word(4), text(5), text(6), ZEROS]
    for max_batch in (1, 2, 3, 100):
        with SwapStore(engine, max_batch=max_batch) as store:
            store.store(0, makes)
            assert [bytes(store.load(index)) for index in range(len(makes))] == makes


def test_an_engine_serves_several_stores_and_outlives_them(engine: Engine) -> None:
    with SwapStore(engine) as one, SwapStore(engine) as other:
        one.store(0, text(1))
        other.store(0, text(2))
        assert one.load(0) == text(1)
        assert other.load(0) == text(2)
    with SwapStore(engine) as third:
        third.store(0, text(3))
        assert third.load(0) == text(3)


# out=


def outs(size: int) -> dict[str, Any]:
    return {
        "bytearray": bytearray(size),
        "array": np.empty(size, np.uint8),
        "view": memoryview(bytearray(size + 1))[1:],
        "words": np.empty(size // 8, np.uint64),
    }


@pytest.mark.parametrize("form", outs(SIZE))
@pytest.mark.parametrize("page", [text(1), noise(1), word(1)], ids=["text", "noise", "word"])
def test_load_fills_the_caller_s_buffer_and_returns_it(
    store: SwapStore, page: bytes, form: str
) -> None:
    store.store(0, page)
    out = outs(SIZE)[form]
    assert store.load(0, out=out) is out
    assert bytes(out) == page


@pytest.mark.parametrize("form", outs(SIZE))
def test_load_many_fills_the_caller_s_buffer(store: SwapStore, form: str) -> None:
    pages = [text(1), noise(1), word(1), text(2)]
    store.store(0, pages)
    out = outs(4 * SIZE)[form]
    loaded = store.load_many([3, 2, 1, 0], out=out)
    assert bytes(out) == loaded.tobytes() == b"".join(reversed(pages))
    assert np.shares_memory(loaded, np.frombuffer(out, np.uint8))


def test_few_pages_and_many_come_back_alike(store: SwapStore) -> None:
    pages = [text(1), noise(1), word(1), ZEROS, text(2), text(3)]
    store.store(0, pages)
    with Engine("zstd", backend="sequential", shuffle=4) as other:
        store.engine = other
        store.store(6, text(4))
    pages.append(text(4))
    wanted = [6, 3, 3, 0, 1, 2, 5, 4]
    for few_bytes in (64 << 10, 0):
        store._loader.few_bytes = few_bytes
        before = store.status()["groups"][""]["page_loads"]
        assert store.load_many(wanted).tobytes() == b"".join(pages[index] for index in wanted)
        assert store.status()["groups"][""]["page_loads"] == before + len(wanted)
        with pytest.raises(PageNotStored) as missing:
            store.load_many([0, 99, 98])
        assert missing.value.index == 99
        store._table.entries["checksum"][[4, 5]] ^= 1
        with pytest.raises(CorruptPage) as damaged:
            store.load_many([0, 5, 4])
        assert damaged.value.index == 5
        store._table.entries["checksum"][[4, 5]] ^= 1
    assert store.counters.decompress_fail == 2


@pytest.mark.parametrize("few_bytes", [64 << 10, 0])
def test_a_number_that_became_another_codecs_meanwhile_is_no_damage(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch, few_bytes: int
) -> None:
    """An entry is copied, its page stored anew, and the number of its codec given to another."""
    store.store(0, text(1))
    store._loader.few_bytes = few_bytes
    codecs, right = store._home.codecs, store._home.codecs.decompress

    def wrong(*_: object) -> bytes:
        monkeypatch.setattr(codecs, "decompress", right)
        codecs.reused += 1
        raise PageError(0, -errno.EBADMSG)

    monkeypatch.setattr(codecs, "decompress", wrong)
    assert store.load(0) == text(1)
    with Engine("zstd", backend="sequential") as other:
        store.engine = other  # so that a batch has a page of another codec, too
        monkeypatch.setattr(codecs, "decompress", wrong)
        assert store.load_many([0]).tobytes() == text(1)
    assert store.counters.decompress_fail == 0


def test_load_many_into_rows_of_a_larger_array(store: SwapStore) -> None:
    store.store(0, [text(1), text(2)])
    memory = np.full((4, SIZE), 9, np.uint8)
    store.load_many([0, 1], memory[1:3])
    assert memory[1:3].tobytes() == text(1) + text(2)
    assert (memory[[0, 3]] == 9).all()


def strided() -> np.ndarray:
    return np.empty((2, SIZE, 2), np.uint8)[:, :, 0]


@pytest.mark.parametrize(
    "out",
    [
        bytes(SIZE),
        bytearray(SIZE - 1),
        bytearray(SIZE + 1),
        bytearray(),
        strided()[0],
        "x" * SIZE,
        7,
    ],
    ids=["read-only", "short", "long", "empty", "strided", "text", "int"],
)
def test_a_wrong_buffer_for_a_page_is_refused(store: SwapStore, out: Any) -> None:
    store.store(0, text(1))
    with pytest.raises(BadBatch, match="out"):
        store.load(0, out=out)
    assert store.counters.decompress_fail == 0


@pytest.mark.parametrize(
    "out",
    [
        bytes(2 * SIZE),
        bytearray(2 * SIZE - 1),
        np.empty((3, SIZE), np.uint8),
        np.empty((2, SIZE + 1), np.uint8),
        np.empty((2, SIZE), np.float32),
        np.empty((1, 2, SIZE), np.uint8),
        strided(),
        [bytearray(SIZE)],
    ],
    ids=["read-only", "short", "rows", "width", "floats", "3-D", "strided", "list"],
)
def test_a_wrong_buffer_for_pages_is_refused(store: SwapStore, out: Any) -> None:
    store.store(0, [text(1), noise(1)])
    with pytest.raises(BadBatch, match="out"):
        store.load_many([0, 1], out=out)


def test_load_many_of_nothing_is_nothing(store: SwapStore) -> None:
    assert store.load_many([]).shape == (0, SIZE)
    assert store.load_many(iter(())).shape == (0, SIZE)
    assert store.load_many(np.array([], np.int64)).shape == (0, SIZE)


# Absent pages


def test_a_page_that_is_not_stored_is_a_key_error_that_names_it(store: SwapStore) -> None:
    store.store(5, text(5))
    for index in (4, 6, 5 + 512, MAX_INDEX):
        assert index not in store
        with pytest.raises(PageNotStored, match=str(index)) as missing:
            store.load(index)
        assert isinstance(missing.value, KeyError)
        assert missing.value.index == index
        with pytest.raises(PageNotStored) as missing:
            store.load_many([5, index])
        assert missing.value.index == index


def test_an_absent_page_counts_as_no_failure(store: SwapStore) -> None:
    before = store.counters
    with pytest.raises(PageNotStored):
        store.load(1)
    assert store.invalidate(1) == 0
    assert grown(store, before) == {}


def test_invalidate_forgets_exactly_what_it_is_told(store: SwapStore) -> None:
    store.store(500, [text(number) for number in range(30)])
    assert store.invalidate(505, 10) == 10
    assert store.invalidate(500, 20) == 10
    assert [index for index in range(490, 540) if index in store] == list(range(520, 530))
    assert store.invalidate(0, MAX_INDEX + 1) == 10
    assert_nothing_is_stored(store)


# Bad input: a clear error, and nothing lost


@pytest.mark.parametrize("index", [-1, MAX_INDEX + 1, 1 << 64, 1.0, 1.5, "1", None, b"1"])
def test_what_is_no_index_is_refused_and_changes_nothing(store: SwapStore, index: Any) -> None:
    store.store(0, [text(0), text(1)])
    before = store.counters
    with pytest.raises(BadArgument):
        store.store(index, text(9))
    with pytest.raises(BadArgument):
        store.invalidate(index)
    with pytest.raises((BadArgument, PageNotStored, TypeError)):
        store.load(index)
    with pytest.raises((BadArgument, PageNotStored, TypeError)):
        store.load_many([0, index])
    assert store.counters == before
    assert store.load_many([0, 1]).tobytes() == text(0) + text(1)


def test_a_folio_that_would_end_beyond_the_last_index_is_refused(store: SwapStore) -> None:
    store.store(MAX_INDEX, text(1))
    with pytest.raises(BadArgument):
        store.store(MAX_INDEX, [text(2), text(3)])
    assert store.load(MAX_INDEX) == text(1)


@pytest.mark.parametrize("index", [1 << 63, (1 << 64) - 1])
def test_load_many_names_the_index_it_was_asked_for(store: SwapStore, index: int) -> None:
    store.store(0, text(1))
    with pytest.raises((PageNotStored, BadArgument)) as missing:
        store.load_many([index])
    assert getattr(missing.value, "index", index) == index


@pytest.mark.parametrize("count", [0, -1, MAX_INDEX + 2, 1 << 70])
def test_a_count_out_of_range_is_refused(store: SwapStore, count: int) -> None:
    store.store(0, text(1))
    with pytest.raises(BadArgument):
        store.invalidate(0, count)
    assert 0 in store


@pytest.mark.parametrize("count", [1.5, "2", None])
def test_a_count_that_is_no_integer_is_refused(store: SwapStore, count: Any) -> None:
    store.store(0, text(1))
    with pytest.raises((BadArgument, TypeError)):
        store.invalidate(0, count)
    assert 0 in store


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_numpy_integers_are_indices_as_any_other(store: SwapStore, dtype: Any) -> None:
    index = dtype(100)
    pages = [text(number) if number % 40 == 0 else word(number) for number in range(200)]
    store.store(index, pages)
    assert bytes(store.load(index)) == pages[0]
    assert index in store
    assert store.load(299) == pages[199]
    assert store.load_many(np.array([100, 101], dtype)).tobytes() == b"".join(pages[:2])
    assert store.invalidate(index, 200) == 200


@pytest.mark.parametrize(
    "indices",
    [[0.0], ["0"], [None], [[0]], np.zeros(1), np.zeros((1, 1), np.int64), [1 << 70]],
    ids=["float", "text", "None", "nested", "floats", "2-D", "too large"],
)
def test_load_many_refuses_what_are_no_indices(store: SwapStore, indices: Any) -> None:
    store.store(0, text(1))
    with pytest.raises(BadArgument):
        store.load_many(indices)


BAD_PAGES: dict[str, Any] = {
    "a byte short": bytes(SIZE - 1),
    "a byte long": bytes(SIZE + 1),
    "no pages": [],
    "no bytes": b"",
    "no rows": np.empty((0, SIZE), np.uint8),
    "a short page in a list": [text(1), text(1)[:-1]],
    "a long page in a list": [text(1) * 2],
    "an empty page in a list": [text(1), b""],
    "another width": np.zeros((2, 512), np.uint8),
    "floats": np.zeros((1, SIZE), np.float64),
    "three dimensions": np.zeros((1, 1, SIZE), np.uint8),
    "not contiguous": strided(),
    "a page that is not contiguous": [strided()[0]],
    "text": "x" * SIZE,
    "texts": ["x" * SIZE],
    "an integer": 4096,
    "integers": [1, 2],
    "nothing": None,
}


@pytest.mark.parametrize("kind", BAD_PAGES)
def test_what_are_no_pages_is_refused_and_changes_nothing(store: SwapStore, kind: str) -> None:
    store.store(0, [text(0), text(1)])
    before = store.counters
    with pytest.raises(BadBatch):
        store.store(0, BAD_PAGES[kind])
    assert store.counters == before
    assert store.load_many([0, 1]).tobytes() == text(0) + text(1)


@pytest.mark.parametrize("max_batch", [0, -1, 1.5, "8", None])
def test_a_batch_of_no_pages_is_refused(engine: Engine, max_batch: Any) -> None:
    with pytest.raises(BadArgument, match="max_batch"):
        SwapStore(engine, max_batch=max_batch)


@pytest.mark.parametrize("limit", [-1, 1.5, "1"])
def test_a_limit_that_cannot_be_is_refused(engine: Engine, limit: Any) -> None:
    with pytest.raises(BadArgument, match="max_pool_bytes"):
        SwapStore(engine, max_pool_bytes=limit)
    with SwapStore(engine, max_pool_bytes=4096) as store:
        with pytest.raises(BadArgument, match="max_pool_bytes"):
            store.max_pool_bytes = limit
        assert store.max_pool_bytes == 4096


@pytest.mark.parametrize("percent", [0, 100])
def test_an_accept_threshold_may_be_any_share(engine: Engine, percent: int) -> None:
    with SwapStore(engine, accept_threshold_percent=percent) as store:
        assert store.accept_threshold_percent == percent


def test_a_pool_that_was_full_is_open_again_exactly_at_the_threshold() -> None:
    limit = Hysteresis()
    assert limit.check(100, 100, 90) == (True, True)
    assert limit.check(91, 100, 90) == (False, True)
    assert limit.check(90, 100, 90) == (False, False)
    assert limit.check(99, 100, 90) == (False, False)


@pytest.mark.parametrize("percent", [-1, 101, 1.5, "90", None])
def test_an_accept_threshold_that_cannot_be_is_refused(engine: Engine, percent: Any) -> None:
    with pytest.raises(BadArgument, match="accept_threshold_percent"):
        SwapStore(engine, accept_threshold_percent=percent)


USES: dict[str, Callable[[SwapStore], object]] = {
    "store": lambda store: store.store(0, text(1)),
    "load": lambda store: store.load(0),
    "load_many": lambda store: store.load_many([0]),
    "invalidate": lambda store: store.invalidate(0),
    "in": lambda store: 0 in store,
    "counters": lambda store: store.counters,
    "set the limit": lambda store: setattr(store, "max_pool_bytes", 1),
    "compressed_bytes": lambda store: store.compressed_bytes,
    "classes": lambda store: store.classes(),
    "check_invariants": lambda store: store.check_invariants(),
    "with": lambda store: store.__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_use_after_close_is_refused(store: SwapStore, use: str) -> None:
    store.store(0, text(1))
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        USES[use](store)


def test_closing_gives_the_memory_back_and_leaves_the_engine_open(engine: Engine) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    store = SwapStore(engine)
    store.store(0, text(1))
    assert len(list(descriptors.iterdir())) > before
    store.close()
    assert len(list(descriptors.iterdir())) == before
    assert engine.decompress_page(engine.compress_page(text(2))) == text(2)


def test_what_is_stored_outlives_its_engine_and_nothing_new_is_taken_without_one() -> None:
    engine = Engine("lz4", backend="sequential")
    with SwapStore(engine) as store:
        store.store(0, [text(0), ZEROS])
        engine.close()
        with pytest.raises(ClosedError, match="Engine"):
            store.store(5, text(5))
        assert store.load(0) == text(0)
        assert store.load_many([1, 0]).tobytes() == ZEROS + text(0)
        assert 5 not in store
        assert store.load(1) == ZEROS
        store.check_invariants()


def test_a_forked_child_is_refused_and_the_parent_unaffected(store: SwapStore) -> None:
    store.store(0, [text(0), noise(1), ZEROS])

    def use_in_every_way() -> None:
        for use in USES.values():
            with pytest.raises(ForkedProcess):
                use(store)
        store.close()

    in_forked_child(use_in_every_way)
    store.check_invariants()
    assert store.load_many(range(3)).tobytes() == text(0) + noise(1) + ZEROS
    store.store(0, text(5))
    assert store.load(0) == text(5)


# The limit


def fill_to_the_limit(store: SwapStore) -> int:
    """Store incompressible pages one by one until one is refused; the index that was."""
    index = 0
    while True:
        try:
            store.store(index, noise(index))
        except StoreRejected as rejection:
            if rejection.reason != "pool_limit_hit" or rejection.errors is not None:
                raise
            return index
        index += 1


def test_a_full_pool_refuses_counts_it_and_keeps_what_it_has(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=64 * SIZE) as store:
        refused = fill_to_the_limit(store)
        assert refused == 63  # an object is larger than its page by what the pool notes in it
        assert store.counters.pool_total_size == 64 * SIZE
        assert store.counters.pool_limit_hit == 1
        for hits in (2, 3):
            with pytest.raises(StoreRejected, match="pool_limit_hit"):
                store.store(refused, [noise(1), text(1)])
            assert store.counters.pool_limit_hit == hits
        assert refused not in store
        assert store.load_many(range(63)).tobytes() == b"".join(map(noise, range(63)))
        store.check_invariants()


def test_a_refused_store_drops_what_the_indices_held_for_it_is_stale(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE) as store:
        fill_to_the_limit(store)
        with pytest.raises(StoreRejected):
            store.store(3, [noise(100), noise(101)])
        assert [index for index in range(15) if index not in store] == [3, 4]
        store.check_invariants()


def test_even_a_same_filled_page_is_refused_by_a_full_pool(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE) as store:
        fill_to_the_limit(store)
        with pytest.raises(StoreRejected):
            store.store(3, ZEROS)
        assert 3 not in store


def test_a_folio_larger_than_the_pool_leaves_none_of_its_pages(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE, max_batch=4) as store:
        store.store(0, text(0))
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [noise(number) for number in range(20)])
        assert rejection.value.reason == "pool_limit_hit"
        assert grown(store, before) == {"pool_limit_hit": 1}
        assert_nothing_is_stored(store)
        store.store(0, [noise(number) for number in range(8)])  # the room is there again
        assert len(store) == 8


def limit_at(store: SwapStore, percent: int) -> None:
    """Set the limit so that the pool is filled to this share of it, or a hair below."""
    store.max_pool_bytes = -(-store.counters.pool_total_size * 100 // percent)


def test_a_pool_that_was_full_accepts_again_only_at_the_threshold(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=64 * SIZE, accept_threshold_percent=90) as store:
        fill_to_the_limit(store)
        for percent in (99, 95, 91):
            limit_at(store, percent)
            with pytest.raises(StoreRejected, match="pool_limit_hit"):
                store.store(100, ZEROS)
        limit_at(store, 90)
        store.store(100, ZEROS)
        limit_at(store, 99)  # not at its maximum: it has not become full again
        store.store(101, ZEROS)
        limit_at(store, 100)
        with pytest.raises(StoreRejected):
            store.store(102, ZEROS)
        limit_at(store, 95)
        with pytest.raises(StoreRejected):
            store.store(102, ZEROS)


def test_pool_limit_hit_grows_where_the_pool_is_at_its_maximum_and_only_there(
    engine: Engine,
) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE) as store:
        fill_to_the_limit(store)
        limit_at(store, 95)
        before = store.counters
        with pytest.raises(StoreRejected):
            store.store(100, ZEROS)  # refused by the hysteresis, below the maximum
        assert grown(store, before) == {}


def test_the_threshold_can_be_changed_at_run_time(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE, accept_threshold_percent=50) as store:
        fill_to_the_limit(store)
        limit_at(store, 95)
        with pytest.raises(StoreRejected):
            store.store(100, ZEROS)
        store.accept_threshold_percent = 95
        store.store(100, ZEROS)


def test_a_limit_that_is_lifted_lets_everything_in(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=0) as store:
        with pytest.raises(StoreRejected):
            store.store(0, ZEROS)
        store.max_pool_bytes = None
        store.store(0, [noise(number) for number in range(64)])
        assert len(store) == 64


def test_a_limit_below_what_is_held_refuses_but_takes_nothing_away(store: SwapStore) -> None:
    store.store(0, [noise(number) for number in range(64)])
    store.max_pool_bytes = 4 * SIZE
    with pytest.raises(StoreRejected):
        store.store(64, ZEROS)
    assert len(store) == 64
    assert store.load(63) == noise(63)


def test_swinging_the_limit_never_brings_an_older_page_back(engine: Engine) -> None:
    rng = random.Random(3)
    newest: dict[int, bytes] = {}
    with SwapStore(engine) as store:
        for turn in range(400):
            store.max_pool_bytes = rng.choice([20, 1]) * SIZE
            index = rng.randrange(30)
            page = rng.choice([noise, text])(turn)
            try:
                store.store(index, page)
                newest[index] = page
            except StoreRejected:
                newest.pop(index, None)
            for at in range(30):
                assert (at in store) == (at in newest)
        assert {at: bytes(store.load(at)) for at in newest} == newest
        store.check_invariants()


# Memory that is not there


def refuse_memory(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Have the system give pools no memory once `after` batches were put."""
    put_many, batches = Pool.put_many, itertools.count()

    def some(pool: Pool, buffers: list[bytes]) -> object:
        if next(batches) >= after:
            fail_allocation(2, 1 << 40)  # the first is for the addresses of the buffers
        try:
            return put_many(pool, buffers)
        finally:
            fail_allocation(0)

    monkeypatch.setattr(Pool, "put_many", some)


def test_memory_the_system_does_not_give_is_a_failed_allocation_not_the_limit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SwapStore(engine, max_pool_bytes=1 << 20, max_batch=4) as store:
        store.store(0, [text(0), ZEROS])
        before = store.counters
        with monkeypatch.context() as patched:
            refuse_memory(patched)
            with pytest.raises(PoolFull) as full:
                store._home.objects.pool.put_many([noise(1)] * 8)
            assert not full.value.at_limit
            with pytest.raises(StoreRejected) as rejection:
                store.store(0, [noise(number) for number in range(12)])
            assert rejection.value.reason == "reject_alloc_fail"
            assert rejection.value.errors is None
            assert grown(store, before) == {"reject_alloc_fail": 1}
            assert_nothing_is_stored(store)
            store.store(5, ZEROS)  # takes no memory, and the pool does not count as full
        store.store(0, noise(1))
        assert store.load(0) == noise(1)
        assert grown(store, before) == {"reject_alloc_fail": 1}


def test_memory_that_runs_out_within_a_folio_leaves_none_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SwapStore(engine, max_batch=4) as store:
        with monkeypatch.context() as patched:
            refuse_memory(patched, after=2)
            with pytest.raises(StoreRejected) as rejection:
                store.store(0, [noise(number) for number in range(20)])
        assert rejection.value.reason == "reject_alloc_fail"
        assert_nothing_is_stored(store)


def test_an_index_that_cannot_be_allocated_rejects_the_folio_and_leaks_nothing(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.counters

    def no_memory(_table: PageTable, _least: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(PageTable, "_grow", no_memory)
        with pytest.raises(StoreRejected, match="reject_alloc_fail"):
            store.store(510, [noise(1), text(1), noise(2)])
    assert grown(store, before) == {"reject_alloc_fail": 1}
    assert_nothing_is_stored(store)


# Pages that cannot be compressed


@dataclasses.dataclass(frozen=True, slots=True)
class MarkedCodec(Codec):
    """zlib, save for pages whose first bytes say what shall become of them."""

    name: ClassVar[str] = "marked"

    def compressor(self, page_size: int) -> Callable[[Any], bytes]:
        def compress(page: Any) -> bytes:
            mark = bytes(page[:8])
            if mark == b"FAILS!!!":
                raise RuntimeError("this page cannot be compressed")
            if mark == b"NOMEMORY":
                raise MemoryError
            if mark == b"TOOLARGE":
                return bytes(2 * page_size + 1)
            if mark == b"NOTHING!":
                return b""
            if mark == b"NOGAIN!!":
                return bytes(page_size)
            return zlib.compress(page, 1)

        return compress

    def decompressor(self, page_size: int) -> Callable[[Any], bytes]:
        def decompress(stored: Any) -> bytes:
            page = zlib.decompress(stored)
            mark = page[:8]
            if mark == b"UNREADAB":
                raise RuntimeError("this page cannot be decompressed")
            return page[: page_size // 2] if mark == b"SHORT!!!" else page

        return decompress


def marked(mark: bytes, seed: int = 0) -> bytes:
    return mark + text(seed)[len(mark) :]


FAILS, NO_MEMORY, TOO_LARGE, NO_GAIN, NO_OUTPUT = (
    marked(mark) for mark in (b"FAILS!!!", b"NOMEMORY", b"TOOLARGE", b"NOGAIN!!", b"NOTHING!")
)


@pytest.fixture
def marking() -> Iterator[Engine]:
    with Engine(MarkedCodec(), backend="sequential") as made:
        yield made


@pytest.mark.parametrize("max_batch", [1, 2, 256])
@pytest.mark.parametrize(
    ("bad", "code"),
    [(FAILS, -errno.EIO), (NO_MEMORY, -errno.ENOMEM), (NO_OUTPUT, -errno.EIO)],
    ids=["fails", "no memory", "no output"],
)
def test_a_page_that_cannot_be_compressed_rejects_its_whole_folio(
    marking: Engine, bad: bytes, code: int, max_batch: int
) -> None:
    with SwapStore(marking, max_batch=max_batch) as store:
        store.store(1, [text(1), ZEROS, noise(3)])
        before = store.counters
        with pytest.raises(StoreRejected, match="1 of 5 pages") as rejection:
            store.store(0, [text(9), text(8), ZEROS, bad, text(7)])
        assert rejection.value.reason == "reject_compress_fail"
        assert np.asarray(rejection.value.errors).tolist() == [0, 0, 0, code, 0]
        assert grown(store, before) == {"reject_compress_fail": 1}
        assert_nothing_is_stored(store)


def test_every_page_that_fails_is_counted_and_named(marking: Engine) -> None:
    with SwapStore(marking) as store:
        before = store.counters
        with pytest.raises(StoreRejected, match="4 of 7 pages") as rejection:
            store.store(0, [FAILS, text(1), FAILS, ZEROS, NO_MEMORY, TOO_LARGE, FAILS])
        assert rejection.value.reason == "reject_compress_fail"
        assert np.asarray(rejection.value.errors).tolist() == [
            -errno.EIO,
            0,
            -errno.EIO,
            0,
            -errno.ENOMEM,
            0,
            -errno.EIO,
        ]
        assert grown(store, before) == {"reject_compress_fail": 4}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("page", [TOO_LARGE, NO_GAIN], ids=["too large", "no gain"])
def test_a_page_that_does_not_shrink_is_kept_raw(marking: Engine, page: bytes) -> None:
    with SwapStore(marking) as store:
        store.store(0, [text(1), page, ZEROS])
        assert store.load(1) == page
        assert store.load_many([1, 0]).tobytes() == page + text(1)
        assert store.counters.stored_incompressible_pages == 1
        store.check_invariants()


def test_pages_that_do_not_shrink_reject_their_folio_where_raw_ones_are_not_wanted(
    marking: Engine,
) -> None:
    with SwapStore(marking, keep_incompressible=False) as store:
        store.store(0, [text(1), ZEROS])
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [text(1), TOO_LARGE, ZEROS, NO_GAIN])
        assert rejection.value.reason == "reject_compress_poor"
        assert np.asarray(rejection.value.errors).tolist() == [
            0,
            -errno.ENOSPC,
            0,
            -errno.ENOSPC,
        ]
        assert grown(store, before) == {"reject_compress_poor": 2}
        assert_nothing_is_stored(store)


def test_poor_and_failed_pages_of_one_folio_are_counted_apart(marking: Engine) -> None:
    with SwapStore(marking, keep_incompressible=False) as store:
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [FAILS, NO_GAIN, TOO_LARGE, text(1), NO_MEMORY, FAILS])
        assert rejection.value.reason == "reject_compress_fail"
        assert grown(store, before) == {"reject_compress_poor": 2, "reject_compress_fail": 3}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_noise_is_poor_whatever_the_codec(algorithm: str) -> None:
    with (
        Engine(algorithm, backend="sequential") as engine,
        SwapStore(engine, keep_incompressible=False) as store,
    ):
        before = store.counters
        with pytest.raises(StoreRejected, match="reject_compress_poor"):
            store.store(0, [text(1), noise(1), noise(2)])
        assert grown(store, before) == {"reject_compress_poor": 2}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("mark", [b"UNREADAB", b"SHORT!!!"], ids=["an error", "a wrong length"])
def test_a_page_that_cannot_be_decompressed_hurts_itself_only_and_is_kept(
    marking: Engine, mark: bytes
) -> None:
    with SwapStore(marking) as store:
        store.store(0, [text(0), marked(mark), noise(2)])
        before = store.counters
        with pytest.raises(CorruptPage) as damage:
            store.load(1)
        assert damage.value.index == 1
        with pytest.raises(CorruptPage) as damage:
            store.load_many([2, 0, 1])
        assert damage.value.index == 1
        assert grown(store, before) == {"decompress_fail": 2}
        assert store.load_many([0, 2]).tobytes() == text(0) + noise(2)
        assert 1 in store


# Backends that fail


class FailingBackend(Backend):
    """Does `good` batches as it should, and then whatever `trouble` does."""

    name = "failing"

    def __init__(self, good: int, trouble: Callable[[Batch], None]) -> None:
        self.good = good
        self.trouble = trouble
        self.taken = 0

    def run(self, batch: Batch) -> None:
        self.run_inline(batch)

    def run_inline(self, batch: Batch, deadline: float | None = None) -> None:
        self.taken += 1
        super().run_inline(batch, deadline)
        if self.taken == self.good + 1:
            self.trouble(batch)


def raising(error: BaseException) -> Callable[[Batch], None]:
    def trouble(_batch: Batch) -> None:
        raise error

    return trouble


@pytest.mark.parametrize("code", [-errno.EOWNERDEAD, -errno.ECANCELED, -errno.ETIMEDOUT])
def test_pages_that_a_backend_gives_up_reject_their_folio(code: int) -> None:
    backend = FailingBackend(1, lambda batch: batch.fail([1, 3], code))
    with Engine("lz4", backend=backend) as engine, SwapStore(engine, max_batch=4) as store:
        store.store(5, text(1))  # no batch of the backend
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [text(number) for number in range(12)])
        assert rejection.value.reason == "reject_compress_fail"
        assert np.flatnonzero(np.asarray(rejection.value.errors)).tolist() == [5, 7]
        assert grown(store, before) == {"reject_compress_fail": 2}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("good", range(4))
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), RuntimeError("the device is gone"), OSError(errno.EIO, "no answer")],
    ids=lambda error: type(error).__name__,
)
def test_a_folio_interrupted_in_any_of_its_batches_leaves_the_store_whole_and_empty_there(
    error: BaseException, good: int
) -> None:
    backend = FailingBackend(good + 1, raising(error))
    pages = [(text, noise)[number % 2](number) for number in range(16)]
    with Engine("lz4", backend=backend) as engine, SwapStore(engine, max_batch=4) as store:
        store.store(10, [text(1), noise(2), text(3), ZEROS, ZEROS])
        store.invalidate(10, 3)
        store.store(10, [word(1), word(2)])  # no batch of the backend
        with pytest.raises(type(error)):
            store.store(0, pages)
        store.check_invariants()
        assert len(store) == 0
        assert store._home.objects.pool.objects == 0
        store.store(0, pages)
        assert store.load_many(range(16)).tobytes() == b"".join(pages)
        store.check_invariants()


def test_a_backend_that_fails_at_loading_loses_no_page() -> None:
    backend = FailingBackend(1, raising(KeyboardInterrupt()))
    with Engine("lz4", backend=backend) as engine, SwapStore(engine) as store:
        pages = [text(number) for number in range(40)]  # few are not the backend's matter
        store.store(0, pages)
        with pytest.raises(KeyboardInterrupt):
            store.load_many(range(40))
        assert store.load_many(range(40)).tobytes() == b"".join(pages)
        assert store.counters.decompress_fail == 0
        store.check_invariants()


def of_the_store(file: Path) -> bool:
    return file.parent.parts[-2:] == ("batchzip", "store")


INTERRUPTED: dict[str, Callable[[SwapStore, list[bytes]], object]] = {
    "store": lambda store, pages: store.store(509, pages),
    "invalidate": lambda store, pages: store.invalidate(509, len(pages)),
    "load": lambda store, _: [store.load(index) for index in (509, 510, 511)],
    "load_many": lambda store, pages: store.load_many(range(509, 509 + len(pages))),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", INTERRUPTED)
def test_an_interrupt_at_any_line_of_the_store_leaves_all_or_nothing(
    engine: Engine, call: str
) -> None:
    old = [text(1), noise(2), ZEROS, word(3), text(4), noise(5)]
    new = [noise(11), ZEROS, text(12), text(13), noise(14), word(15)]
    allowed = {"store": [old, new, []], "invalidate": [old, []]}.get(call, [old])
    where = range(509, 515)  # across a block of the table
    torn = []
    for step in itertools.count(1):
        with SwapStore(engine, max_batch=2) as store:
            store.store(509, old)
            place = interrupted_at(
                step,
                lambda store=store: INTERRUPTED[call](store, new),  # type: ignore[misc]
                of_the_store,
            )
            try:
                store.check_invariants()
                there = [bytes(store.load(index)) for index in where if index in store]
                assert there in allowed
                store.store(509, new)
                store.check_invariants()
                assert store.load_many(where).tobytes() == b"".join(new)
            except (AssertionError, BatchzipError) as error:
                torn.append(f"{place}: {error}")
        if place is None:
            break
    assert not torn, "\n".join(torn)


# Counters


def test_counters_start_at_zero_and_a_snapshot_does_not_change(store: SwapStore) -> None:
    first = store.counters
    assert set(dataclasses.asdict(first).values()) == {0}
    store.store(0, [text(1), noise(1), ZEROS])
    assert set(dataclasses.asdict(first).values()) == {0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.stored_pages = 1  # type: ignore[misc] # which is what is tried


def test_storing_loading_and_forgetting_grow_no_counter_of_failures(store: SwapStore) -> None:
    before = store.counters
    for turn in range(5):
        store.store(0, [text(turn), noise(turn), word(turn)])
        store.load(turn % 3)
        store.load_many([2, 1, 0])
        store.invalidate(1)
    assert grown(store, before) == {}


def test_counters_are_named_as_zswap_s_are() -> None:
    assert [field.name for field in dataclasses.fields(Counters)] == [
        "pool_limit_hit",
        "reject_alloc_fail",
        "reject_compress_poor",
        "reject_compress_fail",
        "reject_reclaim_fail",
        "decompress_fail",
        "written_back_pages",
        "pool_total_size",
        "stored_pages",
        "stored_incompressible_pages",
        "same_filled_pages",
        "backed_pages",
        "backing_file_size",
    ]


def test_the_sum_of_what_is_in_the_pool_is_exact(marking: Engine) -> None:
    with SwapStore(marking) as store:
        pages = [text(number) for number in range(5)]
        store.store(0, [*pages, noise(1), ZEROS])
        assert store.compressed_bytes == SIZE + sum(len(zlib.compress(page, 1)) for page in pages)


def test_every_refusal_is_an_error_of_batchzip(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=0) as store:
        with pytest.raises(BatchzipError):
            store.store(0, text(1))
        with pytest.raises(BatchzipError):
            store.load(0)
