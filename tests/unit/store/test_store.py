"""SwapStore stores folios all or nothing, restores every byte, and counts refusals by cause."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from support.entries import flip
from support.store_pages import (
    SIZE,
    ZEROS,
    assert_nothing_is_stored,
    grown,
    noise,
    strided,
    text,
    word,
)

from batchzip import (
    BadBatch,
    BatchzipError,
    CorruptPage,
    Counters,
    Engine,
    PageNotStored,
    StoreRejected,
    SwapStore,
)
from batchzip.core.coder import Coders
from batchzip.store.arguments import MAX_INDEX


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
    assert store.counters.pool_total_size <= 33 * SIZE  # what the pool keeps for the next


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


def test_an_empty_store_is_true(store: SwapStore) -> None:
    assert store
    assert len(store) == 0


def test_overwritten_pages_are_freed(store: SwapStore) -> None:
    for seed in range(20):
        store.store(0, [noise(seed), text(seed), word(seed)])
        assert store.load_many([2, 1, 0]).tobytes() == word(seed) + text(seed) + noise(seed)
    assert len(store) == 3
    assert store._resources.pool.objects == 2
    store.store(0, [ZEROS] * 3)
    assert store._resources.pool.objects == 0


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


@pytest.mark.parametrize("backend", ["sequential", "threads"])
def test_pages_come_back_one_by_one_as_in_one_go(backend: str) -> None:
    pages = [(text, noise, word)[number % 3](number) for number in range(60)]
    with (
        Engine("lz4", backend=backend) as engine,
        Engine("zstd", backend=backend, shuffle=4) as other,
        SwapStore(engine) as store,
    ):
        store.store(0, pages[:40])
        store.engine = other
        store.store(40, pages[40:])
        wanted = [*range(59, -1, -1), 3, 3, 45]
        for calls in (1, 2):
            assert store.load_many(wanted).tobytes() == b"".join(pages[at] for at in wanted)
            assert store.status()["groups"][""]["page_loads"] == calls * len(wanted)
        assert [store.load(at) for at in wanted] == [pages[at] for at in wanted]
        with pytest.raises(PageNotStored) as missing:
            store.load_many([0, 99, 98])
        assert missing.value.index == 99
        for index in (4, 42):
            flip(store, index)
        with pytest.raises(CorruptPage) as damaged:
            store.load_many([0, 42, 4])
        assert damaged.value.index == 42
        assert store.counters.decompress_fail == 1


def test_a_number_that_became_another_codecs_meanwhile_is_no_damage(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry is copied, its page stored anew, and the number of its codec given to another."""
    home, first = store._resources, store.engine
    with Engine("zstd", backend="sequential") as second:
        store.engine = second
        store.store(0, text(1))
        store.engine = first
    right = home.coders_of

    def give_numbers_away(number: int) -> Coders:
        monkeypatch.setattr(home, "coders_of", right)
        store.store(0, text(2))
        for level in range(-300, 0):
            with Engine("zstd", backend="sequential", level=level) as engine:
                store.engine = engine
        store.engine = first
        assert home.objects.reused > 0
        return right(number)

    monkeypatch.setattr(home, "coders_of", give_numbers_away)
    assert store.load(0) == text(2)
    assert store.counters.decompress_fail == 0


def test_load_many_into_rows_of_a_larger_array(store: SwapStore) -> None:
    store.store(0, [text(1), text(2)])
    memory = np.full((4, SIZE), 9, np.uint8)
    store.load_many([0, 1], memory[1:3])
    assert memory[1:3].tobytes() == text(1) + text(2)
    assert (memory[[0, 3]] == 9).all()


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
        "stored_values",
        "backed_values",
        "backing_file_size",
    ]


def test_every_refusal_is_an_error_of_batchzip(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=0) as store:
        with pytest.raises(BatchzipError):
            store.store(0, text(1))
        with pytest.raises(BatchzipError):
            store.load(0)
