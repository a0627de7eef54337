"""Same-filled pages: every page of one repeated word is found, and no other page is."""

import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from batchzip.store.same_filled import WORD_BYTES, fill, find_same_filled

PAGE_SIZES = [512, 4096, 65536]
WORDS = [0, 1, 0xFF, 1 << 63, (1 << 64) - 1, 0x0101010101010101, 0xDEADBEEFCAFEF00D]

bounded = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def matrix(*pages: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(pages), np.uint8).reshape(len(pages), -1)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("word", WORDS)
def test_a_page_of_one_word_is_found_and_made_again_from_the_word(
    word: int, page_size: int
) -> None:
    page = word.to_bytes(8, "little") * (page_size // 8)
    pages = matrix(page)
    assert find_same_filled(pages)[0].tolist() == [0]
    words = find_same_filled(pages)[1].tolist()
    assert words == [word]
    assert fill(words[0], page_size) == page


@bounded
@given(word=st.sampled_from(WORDS), bit=st.integers(0, 512 * 8 - 1))
def test_one_other_bit_anywhere_is_enough_to_not_be_same_filled(word: int, bit: int) -> None:
    page = bytearray(word.to_bytes(8, "little") * 64)
    page[bit // 8] ^= 1 << bit % 8
    assert find_same_filled(matrix(bytes(page)))[0].tolist() == []


@pytest.mark.parametrize("word_at", range(64))
def test_one_other_word_at_any_place_is_noticed(word_at: int) -> None:
    words = np.zeros((1, 64), np.uint64)
    words[0, word_at] = 7
    assert find_same_filled(words.view(np.uint8))[0].tolist() == []


@pytest.mark.parametrize("period", [16, 24, 32, 64, 256])
def test_a_pattern_longer_than_a_word_is_not_same_filled(period: int) -> None:
    pattern = random.Random(period).randbytes(period)
    page = (pattern * (4096 // period + 1))[:4096]
    assert find_same_filled(matrix(page))[0].tolist() == []


@pytest.mark.parametrize("period", [1, 2, 4, 8])
def test_a_pattern_that_fits_a_word_evenly_is_same_filled(period: int) -> None:
    page = random.Random(period).randbytes(period) * (4096 // period)
    assert find_same_filled(matrix(page))[0].tolist() == [0]


@bounded
@given(
    kinds=st.lists(st.sampled_from(["same", "other"]), min_size=1, max_size=40),
    seed=st.integers(0, 999),
)
def test_among_many_pages_exactly_the_same_filled_ones_are_found(
    kinds: list[str], seed: int
) -> None:
    rng = random.Random(seed)
    pages = [rng.randbytes(8) * 64 if kind == "same" else rng.randbytes(512) for kind in kinds]
    expected = [row for row, kind in enumerate(kinds) if kind == "same"]
    found, filling = find_same_filled(matrix(*pages))
    assert found.tolist() == expected
    words = filling.tolist()
    assert [fill(word, 512) for word in words] == [pages[row] for row in expected]


def test_pages_that_start_at_an_odd_address_are_judged_alike() -> None:
    page = b"\xab" * 512
    other = b"\xab" * 511 + b"\xac"
    memory = b"x" + page + other
    pages = np.frombuffer(memory, np.uint8)[1:].reshape(2, 512)
    assert find_same_filled(pages)[0].tolist() == [0]


def test_the_pages_are_only_read() -> None:
    pages = matrix(bytes(512), random.Random(1).randbytes(512)).copy()
    before = pages.copy()
    pages.flags.writeable = False
    find_same_filled(pages)
    assert (pages == before).all()


def test_a_word_is_eight_bytes_the_least_that_divides_every_page() -> None:
    assert WORD_BYTES == 8
