"""memory_usage(): each part is what the mapping has, and a dict is as large as Python's own."""

from __future__ import annotations

import random
import sys

import pytest

from batchzip import CompressedMapping, Engine, SwapStore
from batchzip.mapping.figures import dict_bytes


def test_each_object_in_the_pool_takes_its_words_and_its_entry(engine: Engine) -> None:
    noise = random.Random(1).randbytes(1 << 18)
    with SwapStore(engine) as store, CompressedMapping(store) as mapping:
        mapping.update({f"small {number}": b"value %d" % number for number in range(5)})
        mapping["noise"] = noise  # lies in pieces that no codec makes smaller
        mapping["text"] = b"what repeats itself, " * 20_000
        counters = mapping.group.counters
        objects = counters.stored_values + counters.stored_pages - counters.same_filled_pages
        assert objects > 7
        usage = mapping.memory_usage()
        assert usage.tables == mapping.group.table_bytes + 10 * objects
        assert usage.values == pytest.approx(store.counters.pool_total_size, abs=1)
        assert usage.index > sum(map(len, mapping))
        assert usage.dictionaries == 0


@pytest.mark.parametrize("count", [1, 5, 6, 10, 11, 170, 171, 40_000])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 1000])
def test_a_dict_of_the_same_values_is_as_large_as_it_is_said_to_be(count: int, length: int) -> None:
    there = {f"key {number:06}": bytes(length) for number in range(count)}
    objects = sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in there.items())
    said = dict_bytes(count, 10 * count, length * count)
    # malloc gives multiples of 16 bytes.
    assert objects + sys.getsizeof(there) <= said + 300
    assert said <= objects + sys.getsizeof(there) + 32 * count + 300


def test_nothing_takes_nothing(engine: Engine) -> None:
    with SwapStore(engine) as store, CompressedMapping(store) as mapping:
        usage = mapping.memory_usage()
        assert (usage.values, usage.dictionaries) == (0, 0)
        assert mapping.cratio == 1.0
