"""Damage to the shared memory is always noticed, hurts one index only, and is never returned."""

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.entries import in_pool
from support.pool_memory import memory_of

from batchzip import CorruptPage, Engine, SwapStore
from batchzip.core.gather import gather
from batchzip.system.segment import PAGE
from batchzip.testing.plain import make_layered_codec

if TYPE_CHECKING:
    from batchzip.codecs import Codec

SIZE = 4096

KINDS = ["lz4", "zstd", "layered", "raw"]


def compressible(seed: int, size: int = SIZE) -> bytes:
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(3, 9)) for _ in range(12)]
    return b"".join(rng.choice(words) for _ in range(size))[:size]


def page_of(kind: str, seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size) if kind == "raw" else compressible(seed, size)


@contextlib.contextmanager
def opened(kind: str, *, backend: str = "sequential", size: int = SIZE) -> Iterator[SwapStore]:
    algorithms: dict[str, str | Codec] = {"raw": "lz4", "layered": make_layered_codec()}
    with (
        Engine(algorithms.get(kind, kind), backend=backend, page_size=size) as engine,
        SwapStore(engine) as store,
    ):
        yield store


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str) -> Iterator[SwapStore]:
    with opened(kind) as made:
        yield made
        made.check_invariants()


def assert_only_this_one_is_damaged(
    store: SwapStore, damaged: int, pages: dict[int, bytes]
) -> None:
    for index, page in pages.items():
        if index != damaged:
            assert store.load(index) == page
    others = [index for index in pages if index != damaged]
    assert store.load_many(others).tobytes() == b"".join(pages[index] for index in others)


@pytest.mark.slow
def test_every_single_bit_of_an_entry_is_guarded(store: SwapStore, kind: str) -> None:
    pages = {index: page_of(kind, index) for index in range(3)}
    store.store(0, b"".join(pages.values()))
    stored = in_pool(store, 1)
    assert (len(stored) == SIZE) == (kind == "raw")
    noticed = 0
    for bit in range(8 * len(stored)):
        stored[bit // 8] ^= 1 << bit % 8
        try:
            store.load(1)
        except CorruptPage as damage:
            noticed += damage.index == 1
        stored[bit // 8] ^= 1 << bit % 8
    assert noticed == 8 * len(stored)
    assert store.counters.decompress_fail == noticed
    assert store.load(1) == pages[1]
    assert_only_this_one_is_damaged(store, 1, pages)


def test_a_damaged_page_is_named_and_counted_and_the_others_are_readable(
    store: SwapStore, kind: str
) -> None:
    rng = random.Random(5)
    pages = {(1 << 33) + index: page_of(kind, index) for index in range(24)}
    pages |= {at: bytes(SIZE) for at in range((1 << 33) + 24, (1 << 33) + 27)}
    store.store(1 << 33, b"".join(pages.values()))
    for turn, index in enumerate(list(pages)[:24]):
        stored = in_pool(store, index)
        bit = rng.randrange(8 * len(stored))
        stored[bit // 8] ^= 1 << bit % 8

        with pytest.raises(CorruptPage, match=str(index)) as damage:
            store.load(index)
        assert damage.value.index == index
        assert store.counters.decompress_fail == 2 * turn + 1
        with pytest.raises(CorruptPage) as damage:
            store.load_many(pages)
        assert damage.value.index == index
        assert store.counters.decompress_fail == 2 * turn + 2
        assert_only_this_one_is_damaged(store, index, pages)
        assert store.counters.decompress_fail == 2 * turn + 2

        stored[bit // 8] ^= 1 << bit % 8
        assert store.load(index) == pages[index]
    assert store.load_many(pages).tobytes() == b"".join(pages.values())


@pytest.mark.slow
def test_random_bits_of_many_entries_are_noticed_by_load_and_load_many(
    store: SwapStore, kind: str
) -> None:
    rng = random.Random(6)
    pages = [page_of(kind, index) for index in range(64)]
    store.store(0, pages)
    for turn in range(1500):
        index = rng.randrange(64)
        stored = in_pool(store, index)
        bit = rng.randrange(8 * len(stored))
        stored[bit // 8] ^= 1 << bit % 8
        asked = [index ^ 1, index, index ^ 2]
        with pytest.raises(CorruptPage) as damage:
            store.load_many(asked) if turn % 2 else store.load(index)
        assert damage.value.index == index
        stored[bit // 8] ^= 1 << bit % 8
    assert store.counters.decompress_fail == 1500
    assert store.load_many(range(64)).tobytes() == b"".join(pages)


def test_of_several_damaged_pages_the_first_asked_for_is_named(store: SwapStore, kind: str) -> None:
    pages = {index: page_of(kind, index) for index in range(8)}
    store.store(0, b"".join(pages.values()))
    for index in (2, 5):
        in_pool(store, index)[0] ^= 0x80
    for asked, named in [([0, 1, 2, 5], 2), ([7, 5, 2], 5), ([5, 5], 5)]:
        with pytest.raises(CorruptPage) as damage:
            store.load_many(asked)
        assert damage.value.index == named


def test_bytes_that_changed_places_are_noticed(store: SwapStore, kind: str) -> None:
    store.store(0, [page_of(kind, index) for index in range(2)])
    first, second = in_pool(store, 0), in_pool(store, 1)
    length = min(len(first), len(second))
    kept = bytes(first)
    first[:length] = second[:length]  # both are sound, only not where they belong
    with pytest.raises(CorruptPage):
        store.load(0)
    first[:] = kept
    assert store.load(0) == page_of(kind, 0)


def test_a_caller_s_buffer_never_holds_a_damaged_page(store: SwapStore, kind: str) -> None:
    store.store(0, page_of(kind, 1))
    in_pool(store, 0)[3] ^= 1
    out = bytearray(b"\x55" * SIZE)
    with pytest.raises(CorruptPage):
        store.load(0, out=out)
    assert out == b"\x55" * SIZE


@pytest.mark.slow
def test_a_piece_of_memory_that_was_lost_reads_as_damage_never_as_zeros(
    store: SwapStore, kind: str
) -> None:
    pages = {index: page_of(kind, index) for index in range(64)}
    store.store(0, b"".join(pages.values()))
    segment = memory_of(store._resources.pool)
    whole = {index: bytes(in_pool(store, index)) for index in pages}
    handle = gather(store._entries, 7).value(0)
    offset = store._resources.pool.allocator.extent(handle)[0] // PAGE * PAGE
    content = bytes(segment.view[offset : offset + PAGE])

    segment.release(offset, PAGE)

    lost = {index for index in pages if bytes(in_pool(store, index)) != whole[index]}
    assert 7 in lost
    for index, page in pages.items():
        if index in lost:
            with pytest.raises(CorruptPage) as damage:
                store.load(index)
            assert damage.value.index == index
        else:
            assert store.load(index) == page
    assert store.counters.decompress_fail == len(lost)

    segment.reserve(offset, PAGE)
    segment.view[offset : offset + PAGE] = content
    assert store.load_many(pages).tobytes() == b"".join(pages.values())


def test_all_of_the_memory_lost_loses_no_same_filled_page_and_returns_no_other(
    store: SwapStore, kind: str
) -> None:
    store.store(0, [page_of(kind, 0), b"same" * (SIZE // 4), page_of(kind, 1), bytes(SIZE)])
    for index in (0, 2):
        stored = in_pool(store, index)
        stored[:] = bytes(len(stored))
    assert store.load(1) == b"same" * (SIZE // 4)
    assert store.load_many([3, 1]).tobytes() == bytes(SIZE) + b"same" * (SIZE // 4)
    for index in (0, 2):
        with pytest.raises(CorruptPage):
            store.load(index)


def test_a_damaged_page_can_be_dropped_or_stored_anew(store: SwapStore, kind: str) -> None:
    store.store(0, [page_of(kind, index) for index in range(3)])
    for index in (0, 1):
        in_pool(store, index)[1] ^= 2
    assert 0 in store
    assert store.counters.stored_pages == 3
    store.store(0, page_of(kind, 7))
    assert store.invalidate(1) == 1
    assert store.load(0) == page_of(kind, 7)
    assert store.load(2) == page_of(kind, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 1 << 16])
def test_pages_of_other_sizes_are_guarded_alike(kind: str, size: int) -> None:
    rng = random.Random(size)
    with opened(kind, size=size) as store:
        store.store(0, [page_of(kind, index, size) for index in range(3)])
        stored = in_pool(store, 1)
        for bit in rng.sample(range(8 * len(stored)), 50):
            stored[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptPage):
                store.load(1)
            with pytest.raises(CorruptPage):
                store.load_many([0, 1, 2])
            stored[bit // 8] ^= 1 << bit % 8
        assert store.load(1) == page_of(kind, 1, size)


@pytest.mark.slow
def test_damage_is_noticed_with_workers_too(kind: str) -> None:
    pages = [page_of(kind, index) for index in range(40)]
    with opened(kind, backend="workers") as store:
        assert store.engine.wait_ready()
        store.store(0, pages)
        stored = in_pool(store, 33)
        stored[len(stored) // 2] ^= 4
        with pytest.raises(CorruptPage) as damage:
            store.load_many(range(40))
        assert damage.value.index == 33
        assert store.load_many(range(33)).tobytes() == b"".join(pages[:33])
        stored[len(stored) // 2] ^= 4
        assert store.load_many(range(40)).tobytes() == b"".join(pages)
