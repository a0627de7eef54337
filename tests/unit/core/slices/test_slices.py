"""Values above a page: compressed in one call, in one object or in slices, wherever these are."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.entries import flip, in_file, in_pool
from support.sample_values import mixed
from support.store_pages import noise, text

from batchzip import (
    CompressedMapping,
    CorruptValue,
    Engine,
    PageError,
    StoreRejected,
    SwapStore,
)
from batchzip.core.coder import most_value_bytes
from batchzip.core.gather import gather
from batchzip.core.memory import allocations, fail_allocation
from batchzip.core.records import Found
from batchzip.core.table import Kind
from batchzip.store.loader import read
from batchzip.store.reclaim.writeback import write_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.faulty_file import FaultyFile

PAGE = 4096

MOST = 64 << 10

CHUNK = 128 << 10


def slices_of(mapping: CompressedMapping, kind: Kind = Kind.SLICE) -> list[int]:
    """Return the indices of all slices of a kind, in the order of the table."""
    found = np.frombuffer(mapping.group._entries.choose((kind,)), np.uint64)
    return [int(index) for index in found]


def write_slices(mapping: CompressedMapping, slices: list[int]) -> None:
    """Move slices to the file."""
    group = mapping.group
    moved = write_back(group._resources, group._entries, np.array(slices, np.uint64).view(np.int64))
    assert moved == len(slices)


def figures(mapping: CompressedMapping) -> tuple[int, int, int, int]:
    """Return how many values are records, sliced and on pages, and the number of slices."""
    found = mapping.group._entries.figures()
    return (
        found["records"] + found["backed_records"],
        found["sliced"],
        found["large"],
        found["slices"] + found["backed_slices"],
    )


# Where values lie


@pytest.mark.parametrize("page_size", [512, PAGE, MOST, 2 * MOST])
@pytest.mark.parametrize("algorithm", ["lz4", "lz4hc", "zstd"])
def test_values_at_every_bound_come_back(algorithm: str, page_size: int) -> None:
    most = most_value_bytes(page_size)
    assert most == max(page_size, MOST)
    lengths = {page_size, 2 * page_size, MOST, most, CHUNK, 2 * CHUNK}
    bounds = sorted({length + more for length in lengths for more in (-1, 0, 1)})
    with (
        Engine(algorithm, backend="sequential", page_size=page_size, verify=True) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        made: tuple[Callable[[int, int], bytes], ...] = (text, noise, mixed)
        values = {(f.__name__, size): f(size, size) for size in bounds for f in made}
        for key, value in values.items():
            mapping[key] = value
        assert dict(mapping.items()) == values
        assert mapping.get_many(values) == values
        assert figures(mapping)[2] == 0
        mapping.check_invariants()
        store.check_invariants()


@pytest.mark.parametrize("shuffle", [4, 8, "f2", "f4"])
def test_shuffled_values_above_a_page_come_back(shuffle: Any) -> None:
    steps = np.random.default_rng(1).integers(-9, 10, 12_000).cumsum().astype(np.float32)
    with (
        Engine("zstd", level=1, backend="sequential", shuffle=shuffle, verify=True) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, serializer="numpy") as mapping,
    ):
        for length in (1025, 3000, 12_000):
            mapping[length] = steps[:length]
            assert np.array_equal(mapping[length], steps[:length])
        assert figures(mapping)[2] == 0


def test_repetitions_far_apart_in_a_value_are_compressed(mapping: CompressedMapping) -> None:
    value = noise(1, PAGE) * 4
    mapping["key"] = value
    assert mapping.cbytes < PAGE + 200
    assert mapping["key"] == value


def test_a_value_that_fits_one_object_compressed_has_no_slices(mapping: CompressedMapping) -> None:
    mapping["text"], mapping["noise"] = text(1, 30_000), noise(1, 10_000)
    assert figures(mapping) == (1, 1, 0, 3)
    counters = mapping.group.counters
    assert (counters.stored_values, counters.stored_pages) == (1 + 3, 0)
    assert mapping.nbytes == 40_000
    assert mapping.cbytes < 10_500


def test_values_above_a_page_take_what_their_bytes_take(mapping: CompressedMapping) -> None:
    for number in range(200):
        mapping[f"key {number}"] = mixed(number, 12_000)
    usage = mapping.memory_usage()
    assert usage.total <= 1.05 * mapping.cbytes + 40_000
    assert (usage.tables + usage.index) / len(mapping) < 400


def test_an_engine_in_python_and_an_isolated_one_use_pages() -> None:
    with (
        Engine("deflate", backend="sequential") as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        values = {number: mixed(number, 9000) for number in range(5)}
        mapping.update(values)
        assert figures(mapping)[:3] == (0, 0, 5)
        with Engine("lz4", backend="sequential") as other:
            store.engine = other
            mapping[0] = values[0]
            assert figures(mapping)[:3] == (0, 1, 4)
            store.engine = engine
            mapping[1] = values[1]
            assert dict(mapping) == values
            mapping.check_invariants()


def test_numbers_of_slices_are_used_again(mapping: CompressedMapping) -> None:
    for turn in range(60):
        for key in range(8):
            mapping[key] = noise(turn, 5000 + 7919 * (key * turn % 7))
        if turn % 5 == 0:
            mapping.clear()
        mapping.check_invariants()
    index = mapping.stats().index_bytes
    for turn in range(60):
        mapping[turn % 8] = noise(turn, 5000 + 7919 * (turn % 7))
    assert mapping.stats().index_bytes == index


@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_batches_of_values_of_all_lengths_come_back(algorithm: str) -> None:
    rng = random.Random(1)
    lengths = [0, 300, PAGE, PAGE + 1, 12_000, 30_000, MOST, MOST + 1]
    made = [f(n, n * 7 % 999 + length) for n, length in enumerate(lengths) for f in (text, mixed)]
    values = {number: rng.choice(made) for number in range(500)}
    with (
        Engine(algorithm, backend="threads", workers=1) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        for _ in range(3):  # what a value takes is known the second time
            mapping.update(values)
            assert mapping.get_many(values) == values
        mapping.check_invariants()
        store.check_invariants()


# Limits


def test_a_limit_does_not_count_what_a_value_replaces(engine: Engine) -> None:
    with (
        SwapStore(engine) as store,
        CompressedMapping(store, max_bytes=50_000, on_full="raise") as mapping,
    ):
        mapping["key"] = noise(1, 40_000)
        mapping["key"] = noise(2, 45_000)
        with pytest.raises(StoreRejected, match="does not fit in the 50000 bytes"):
            mapping["other"] = noise(3, 9000)
        with pytest.raises(StoreRejected):
            mapping["key"] = noise(3, 51_000)
        assert dict(mapping) == {"key": noise(2, 45_000)}
        mapping.check_invariants()


def test_values_that_go_take_their_slices_along(engine: Engine) -> None:
    with (
        SwapStore(engine) as store,
        CompressedMapping(store, max_bytes=300_000, on_full="evict", ttl=1000) as mapping,
    ):
        for number in range(300):
            mapping[number] = noise(number, 12_000)
            mapping[0]
        assert mapping[0] == noise(0, 12_000)
        assert 20 <= len(mapping) <= 25
        assert list(mapping)[-10:] == list(range(290, 300))
        assert figures(mapping)[3] == 3 * len(mapping)
        assert mapping.stats().evictions == 300 - len(mapping)
        mapping.check_invariants()
        store.check_invariants()


# In the file


def test_a_value_may_lie_partly_in_the_file(store: SwapStore, mapping: CompressedMapping) -> None:
    values = {key: mixed(number, 40_000) for number, key in enumerate("abc")}
    mapping.update(values)
    some = slices_of(mapping)[1::3]
    write_slices(mapping, some)
    assert sorted(slices_of(mapping, Kind.BACKED_SLICE)) == sorted(some)
    counters = mapping.group.counters
    assert (counters.backed_values, counters.stored_values) == (
        len(some), figures(mapping)[3] - len(some)
    )  # fmt: skip
    assert dict(mapping) == values
    assert mapping.get_many("abc") == values
    assert store.check().ok
    assert mapping.pop("b") == values.pop("b")
    mapping.group.writeback(1000)
    assert slices_of(mapping) == []
    assert mapping.group.counters.stored_values == 0
    assert dict(mapping) == values
    mapping.check_invariants()
    store.compact()
    assert dict(mapping) == values
    mapping["a"] = values["a"] = noise(5, 9000)
    del mapping["c"]
    assert dict(mapping) == {"a": values["a"]}


def test_a_value_that_is_replaced_while_it_is_read_from_the_file_is_read_again(
    store: SwapStore, mapping: CompressedMapping
) -> None:
    mapping["key"] = mixed(1, 20_000)
    mapping.group.writeback(1000)
    records = mapping._records
    found: Any = records.get("key")
    assert isinstance(found, Found)
    gathered = gather(records.entries, found.indices)
    read(store._resources, gathered)
    assert records.finish(found, gathered) == mixed(1, 20_000)
    mapping["key"] = mixed(2, 20_000)
    mapping["other"] = mixed(3, 20_000)  # in the slices that the old one had
    again = gather(records.entries, found.indices)
    read(store._resources, again)
    assert records.finish(found, again) is None
    assert not records.remove("key", found)
    assert mapping["key"] == mixed(2, 20_000)
    del mapping["key"], mapping["other"]
    assert records.finish(found, gather(records.entries, found.indices)) is None


# Damage


def two_values(mapping: CompressedMapping) -> list[int]:
    """Put two values in. Return the indices of the slices of the second, "bad"."""
    mapping["good"] = mixed(1, 20_000)
    before = set(slices_of(mapping))
    mapping["bad"] = mixed(2, 20_000)
    return sorted(set(slices_of(mapping)) - before, reverse=True)


def see_that_bad_is_lost(mapping: CompressedMapping) -> None:
    for call in (mapping.__getitem__, mapping.pop, lambda key: mapping.get_many(["good", key])):
        with pytest.raises(CorruptValue, match="'bad'"):
            call("bad")
    assert mapping["good"] == mixed(1, 20_000)
    del mapping["bad"]
    mapping.check_invariants()


def test_a_damaged_slice_is_told(store: SwapStore, mapping: CompressedMapping) -> None:
    slices = two_values(mapping)
    flip(mapping.group, slices[-1])
    assert store.check().damaged == ((mapping.group.name, slices[-1]),)
    assert mapping.group.writeback(1000) > 0  # it stays where it is
    assert slices_of(mapping) == [slices[-1]]
    see_that_bad_is_lost(mapping)


def test_slices_in_another_order_are_told(mapping: CompressedMapping) -> None:
    one, two = (in_pool(mapping.group, index) for index in two_values(mapping)[:2])
    assert len(one) == len(two) == PAGE
    one[:], two[:] = bytes(two), bytes(one)
    see_that_bad_is_lost(mapping)


def test_a_slice_that_is_damaged_in_the_file_is_told(
    mapping: CompressedMapping, file: FaultyFile
) -> None:
    slices = two_values(mapping)
    write_slices(mapping, slices[1:2])
    file.content[in_file(mapping.group, slices[1])[0]] ^= 4
    see_that_bad_is_lost(mapping)


def test_a_file_that_cannot_be_read_says_so(mapping: CompressedMapping, file: FaultyFile) -> None:
    write_slices(mapping, two_values(mapping)[1:])
    file.faults["pread"] = errno.EIO, 100
    with pytest.raises(PageError) as failure:
        mapping["bad"]
    assert failure.value.errno == -errno.EIO
    assert mapping["good"] == mixed(1, 20_000)
    file.faults.clear()
    assert mapping["bad"] == mixed(2, 20_000)


@pytest.mark.parametrize("count", [1, 1000], ids=["one", "all that follow"])
def test_an_allocation_that_fails_leaves_values_whole(count: int) -> None:
    number = 0
    while True:
        number += 1
        with (
            Engine("zstd", backend="sequential", page_size=512) as engine,
            SwapStore(engine) as store,
            CompressedMapping(store) as mapping,
        ):
            model = {0: mixed(0, 600)}
            mapping[0] = model[0]
            before = allocations()
            fail_allocation(number, count)
            try:
                for step in range(40):
                    key, value = step % 7, noise(step, 600 * (1 + step % 13))
                    mapping[key] = value
                    model[key] = value
                    if step % 5 == 4:
                        del mapping[key]
                        del model[key]
            except (MemoryError, StoreRejected):
                pass
            reached = allocations() - before >= number
            fail_allocation(0)
            mapping.check_invariants()
            store.check_invariants()
            assert dict(mapping) == model
            mapping["after"] = noise(1, 20_000)
            assert mapping["after"] == noise(1, 20_000)
        if not reached:
            break
    assert number > 5


def test_slices_in_another_order_are_a_value_that_has_changed(mapping: CompressedMapping) -> None:
    value, entries = noise(1, 12_000), mapping.group._entries
    order = random.Random(1)

    def stored() -> Found:
        mapping["key"] = value
        mapping.group.writeback(1000)
        found = mapping._records.get(plain, peek=True)
        assert isinstance(found, Found)
        return found

    def is_misled() -> bool:
        """Return whether the indices begin as the value's now, and other slices are there, too."""
        there = gather(entries, old.indices)
        begins = new.indices[:8] == old.indices[:8] and new.indices != old.indices
        return begins and all(there.kind(row) != Kind.ABSENT for row in range(len(there)))

    plain = mapping._keys.find("key")
    old = new = stored()
    while not is_misled():
        for key in order.sample(range(8), 4):
            mapping[key] = noise(key, order.randrange(5000, 20_000))
        mapping["key"] = noise(2, order.randrange(5000, 20_000))
        for key in order.sample(range(8), 4):
            mapping.pop(key, None)
        new = stored()
    gathered = gather(entries, old.indices)
    read(mapping.group._resources, gathered)
    assert mapping._records.finish(old, gathered) is None
    assert mapping["key"] == value
    assert mapping.group.counters.decompress_fail == 0
