"""store.train_dictionary learns from the store's pages for the engine that takes over."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.entries import flip
from support.store_pages import SIZE, ZEROS, noise, text

from batchzip import BadArgument, Engine, SwapStore


def record(seed: int) -> bytes:
    """A page of the kind dictionaries are for: the same names, with other values."""
    rng = random.Random(seed)
    lines = [
        json.dumps({"customer": rng.randrange(10**9), "balance": rng.random(), "open": True})
        for _ in range(80)
    ]
    return "\n".join(lines).encode()[:SIZE]


@pytest.fixture
def store() -> Iterator[SwapStore]:
    with Engine("zstd", level=1, backend="sequential") as engine, SwapStore(engine) as store:
        yield store


@pytest.mark.slow
def test_a_dictionary_of_its_own_pages_shrinks_them(store: SwapStore) -> None:
    count = 2000
    store.store(0, [record(seed) for seed in range(count)])
    before = store.compressed_bytes
    counters = store.counters
    dictionary = store.train_dictionary(size=16 << 10, level=1)
    assert store.counters == counters
    with Engine("zstd", level=1, backend="sequential", dictionary=dictionary) as engine:
        store.engine = engine
        done = store.recompress(engine)
        assert done.recompressed > count // 2
        assert store.compressed_bytes < before
        assert [store.load(seed) for seed in range(0, count, 97)] == [
            record(seed) for seed in range(0, count, 97)
        ]
        store.check_invariants()


@pytest.mark.slow
def test_pages_in_the_file_and_of_other_codecs_are_samples_too(tmp_path: Path) -> None:
    with (
        Engine("lz4", backend="sequential") as first,
        Engine("zstd", backend="sequential", shuffle=2) as second,
        SwapStore(first, backing=tmp_path) as store,
    ):
        store.store(0, [record(seed) for seed in range(200)])
        store.writeback(200)
        store.engine = second
        store.store(200, [record(seed) for seed in range(200, 400)])
        store.store(1000, [noise(1), ZEROS])
        dictionary = store.train_dictionary(size=4096)
        assert b"customer" in dictionary


@pytest.mark.slow
def test_a_damaged_page_teaches_nothing(store: SwapStore) -> None:
    store.store(0, [record(seed) for seed in range(400)])
    for index in range(100):
        flip(store, index)
    assert b"customer" in store.train_dictionary(size=4096)
    assert store.counters.decompress_fail == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, -1, 100, "64k", 1 << 40])
def test_a_size_that_cannot_be_is_refused(store: SwapStore, size: int) -> None:
    store.store(0, [record(seed) for seed in range(400)])
    with pytest.raises(BadArgument, match="size"):
        store.train_dictionary(size=size)


def test_too_few_pages_are_named(store: SwapStore) -> None:
    with pytest.raises(BadArgument, match="pages"):
        store.train_dictionary()
    store.store(0, [text(0)] * 20)
    with pytest.raises(BadArgument, match="differ"):
        store.train_dictionary()


@pytest.mark.slow
def test_a_group_learns_from_its_own_pages(store: SwapStore) -> None:
    store.store(0, [record(seed) for seed in range(400)])
    group = store.group("texts")
    group.store(0, [text(seed) + b"" for seed in range(400)])
    assert b"customer" not in group.train_dictionary(size=4096)
