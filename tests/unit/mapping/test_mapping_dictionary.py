"""A mapping learns a dictionary from its values, and uses it where that pays."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from support.sample_values import row
from support.store_pages import noise

import batchzip
from batchzip import (
    CompressedMapping,
    Engine,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# Dictionaries


def test_a_dictionary_is_learnt_and_pays(zstd: SwapStore) -> None:
    rows = {f"user:{number}": row(number) for number in range(6000)}
    with (
        CompressedMapping(zstd) as plain,
        CompressedMapping(zstd, dictionary="auto") as learnt,
    ):
        plain.update(rows)
        learnt.update(rows)
        assert dict(learnt) == rows
        assert learnt.cbytes * 1.7 < plain.cbytes  # the first thousand are as they were
        assert learnt.memory_usage().dictionaries > 0
        learnt.check_invariants()


@pytest.mark.slow
def test_a_dictionary_is_learnt_from_values_above_a_page(zstd: SwapStore) -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=7)).encode() for _ in range(1500)]
    values = {number: b" ".join(rng.choices(words, k=1200)) for number in range(300)}
    with (
        CompressedMapping(zstd) as plain,
        CompressedMapping(zstd, dictionary="auto") as learnt,
    ):
        for mapping in (plain, learnt):
            mapping.update(values)  # a third of them teaches
            mapping.update(values)
            assert dict(mapping) == values
            mapping.check_invariants()
        assert learnt.cbytes < 0.9 * plain.cbytes


@pytest.mark.slow
def test_a_dictionary_is_learnt_again_when_values_change(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, dictionary="auto") as mapping:
        mapping.update((number, row(number)) for number in range(12_000))
        first = mapping._trainer
        assert first is not None
        before = first.dictionary_bytes
        others = {
            -number: b"<entry><key>%d</key><language>de</language><kind>article</kind></entry>"
            % number
            for number in range(1, 40_000)
        }
        mapping.update(others)
        assert first.dictionary_bytes > before
        assert mapping[77] == row(77)
        assert mapping.get_many(others) == others


@pytest.mark.parametrize("make", [noise, lambda _, size: bytes(size)])
def test_values_that_gain_nothing_are_kept_without_a_dictionary(
    zstd: SwapStore, make: Callable[[int, int], bytes]
) -> None:
    with CompressedMapping(zstd, dictionary="auto") as mapping:
        values = {number: make(number, 300) for number in range(3000)}
        mapping.update(values)
        assert mapping.memory_usage().dictionaries == 0
        assert dict(mapping) == values


def test_a_given_dictionary_is_used(zstd: SwapStore) -> None:
    trained = batchzip.train_dictionary([row(number) for number in range(2000)], size=2048, level=1)
    with CompressedMapping(zstd, dictionary=trained) as mapping:
        mapping["key"] = row(1)
        assert mapping.cbytes < len(row(1)) // 2
        assert mapping["key"] == row(1)


@pytest.mark.parametrize("dictionary", ["auto", "given"])
def test_a_dictionary_goes_with_the_engine_of_the_store(zstd: SwapStore, dictionary: str) -> None:
    given: Any = dictionary
    if dictionary == "given":
        rows = [row(number) for number in range(2000)]
        given = batchzip.train_dictionary(rows, size=2048, level=1)
    with (
        CompressedMapping(zstd, dictionary=given) as mapping,
        Engine("lz4", backend="sequential") as other,
        Engine("zstd", level=3, backend="sequential") as third,
    ):
        mapping.update((number, row(number)) for number in range(2000))
        for engine in (other, third):
            zstd.engine = engine
            mapping.update((-number, row(number)) for number in range(2000))
            codec: Any = zstd._resources.objects.codec(mapping._records.number)
            assert (getattr(codec, "dictionary", None) is not None) == (engine is third)
        assert mapping.get_many(range(2000)) == {number: row(number) for number in range(2000)}
