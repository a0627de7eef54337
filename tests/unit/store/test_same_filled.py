"""Same-filled pages: every page of one repeated word is kept as the word, and no other page is."""

import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from batchzip import Engine, SwapStore

WORDS = [0, 1, 0xFF, 1 << 63, (1 << 64) - 1, 0x0101010101010101, 0xDEADBEEFCAFEF00D]

bounded = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def kept_as_a_word(*pages: bytes, backend: str = "sequential") -> list[bool]:
    """Store pages, see that they come back, and tell which the store keeps as a word."""
    found = []
    with (
        Engine("lz4", backend=backend, page_size=len(pages[0])) as engine,
        SwapStore(engine) as store,
    ):
        store.store(0, list(pages))
        assert store.load_many(range(len(pages))).tobytes() == b"".join(pages)
        for index, page in enumerate(pages):
            before = store.counters.same_filled_pages
            assert store.load(index, exclusive=True) == page
            found.append(store.counters.same_filled_pages < before)
    return found


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("word", WORDS)
def test_a_page_of_one_word_is_found(word: int, page_size: int) -> None:
    assert kept_as_a_word(word.to_bytes(8, "little") * (page_size // 8)) == [True]


@bounded
@given(word=st.sampled_from(WORDS), bit=st.integers(0, 512 * 8 - 1))
def test_one_other_bit_anywhere_is_enough_to_not_be_same_filled(word: int, bit: int) -> None:
    page = bytearray(word.to_bytes(8, "little") * 64)
    page[bit // 8] ^= 1 << bit % 8
    assert kept_as_a_word(bytes(page)) == [False]


@pytest.mark.parametrize("backend", ["sequential", "threads"])
def test_one_other_word_at_any_place_is_noticed(backend: str) -> None:
    pages = np.eye(64, dtype=np.uint64) * 7
    assert kept_as_a_word(*map(bytes, pages), backend=backend) == [False] * 64


@pytest.mark.parametrize("period", [1, 2, 4, 8, 16, 24, 32, 64, 256])
def test_a_pattern_is_same_filled_if_it_fits_a_word(period: int) -> None:
    page = (random.Random(period).randbytes(period) * 4096)[:4096]
    assert kept_as_a_word(page) == [period <= 8]


@pytest.mark.slow
@bounded
@given(
    same=st.lists(st.booleans(), min_size=1, max_size=40),
    seed=st.integers(0, 999),
    backend=st.sampled_from(["sequential", "threads"]),
)
def test_among_many_pages_exactly_the_same_filled_ones_are_found(
    same: list[bool], seed: int, backend: str
) -> None:
    rng = random.Random(seed)
    pages = [rng.randbytes(8) * 64 if one else rng.randbytes(512) for one in same]
    assert kept_as_a_word(*pages, backend=backend) == same


def test_pages_that_start_at_an_odd_address_are_judged_alike() -> None:
    memory = memoryview(b"x" + b"\xab" * 512 + b"\xab" * 511 + b"\xac")[1:]
    with (
        Engine("lz4", backend="sequential", page_size=512) as engine,
        SwapStore(engine) as store,
    ):
        store.store(0, memory)
        assert store.counters.same_filled_pages == 1
        assert store.load_many([0, 1]).tobytes() == memory
