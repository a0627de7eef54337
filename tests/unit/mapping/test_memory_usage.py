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
        assert usage.index > sum(len(str(key)) for key in mapping)
        assert usage.dictionaries == 0


@pytest.mark.parametrize(
    "count", [0, 1, 5, 6, 10, 11, 85, 86, 170, 171, 21_845, 21_846, 43_690, 43_691]
)
def test_a_dict_has_the_table_that_python_makes(count: int) -> None:
    there = {f"key {number:06}": b"" for number in range(count)}
    head_of_str, head_of_bytes, rounded = 49, 33, 16
    objects = count * (head_of_str + head_of_bytes + rounded)
    # Exact with Python 3.11; its header may differ in others.
    assert dict_bytes(count, 0, 0) - objects == pytest.approx(sys.getsizeof(there), abs=64)


def test_keys_and_values_add_their_bytes() -> None:
    assert dict_bytes(10, 70, 800) == dict_bytes(10, 0, 0) + 870
    there = {f"key {number:06}": bytes(1000) for number in range(1000)}
    real = sys.getsizeof(there) + sum(
        -(-sys.getsizeof(each) // 16) * 16 for pair in there.items() for each in pair
    )
    assert dict_bytes(1000, 10_000, 1_000_000) == pytest.approx(real, abs=16 * 1000)


def test_an_empty_mapping_has_no_memory_for_values(engine: Engine) -> None:
    with SwapStore(engine) as store, CompressedMapping(store) as mapping:
        usage = mapping.memory_usage()
        assert (usage.values, usage.dictionaries) == (0, 0)
        assert mapping.cratio == 1.0
