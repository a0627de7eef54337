"""A CompressedMapping gives back what was put in, and refuses what it cannot keep."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.forked import in_forked_child
from support.sample_values import IN_CHUNKS_OR_PAGES
from support.store_pages import noise, text

from batchzip import (
    BadArgument,
    ClosedError,
    CompressedMapping,
    Engine,
    ForkedProcess,
    NotStorable,
    SwapStore,
)
from batchzip.mapping.serializers.pickles import PicklePacker

if TYPE_CHECKING:
    from collections.abc import Callable


PAGE = 4096

MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie in chunks, or on pages."""


# Values


@IN_CHUNKS_OR_PAGES
@pytest.mark.parametrize(
    "length", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, MOST - 1, MOST, MOST + 1, 1_000_003]
)
@pytest.mark.parametrize("make", [text, noise])
def test_values_of_any_length_come_back(
    mapping: CompressedMapping, length: int, make: Callable[[int, int], bytes]
) -> None:
    value = make(1, length)
    mapping["key"] = value
    assert mapping["key"] == value
    assert type(mapping["key"]) is bytes
    assert mapping.nbytes == length


def test_any_contiguous_buffer_is_a_value(mapping: CompressedMapping) -> None:
    numbers: Any = np.arange(3000, dtype=np.int32)
    mapping["array"] = numbers
    mapping["view"] = memoryview(numbers)
    mapping["bytearray"] = bytearray(numbers.tobytes())
    assert {*mapping.values()} == {numbers.tobytes()}


def test_keys_are_told_apart_as_by_a_dict(mapping: CompressedMapping) -> None:
    keys: list[Any] = [
        "a",
        b"a",
        ("a",),
        ("a", 1),
        (),
        0,
        -1,
        10**400,
        None,
        (None, True),
        "1",
        b"1",
    ]
    # Equal to one of those before, or to each other: one key, the first.
    keys += [False, 1, True, np.int64(1), np.uint8(0), (None, 1), np.str_("a"), (1.0,), (True,)]
    model: dict[Any, bytes] = {}
    for number, key in enumerate(keys):
        mapping[key] = model[key] = b"%d" % number
    assert list(mapping.items()) == list(model.items())
    assert list(map(type, mapping)) == list(map(type, model))
    for key in keys:
        assert mapping.pop(key, None) == model.pop(key, None)


@pytest.mark.parametrize("key", [1.5, frozenset(), object(), ([],)])
def test_other_keys_are_refused_and_nothing_is_stored(mapping: CompressedMapping, key: Any) -> None:
    with pytest.raises(TypeError):
        mapping[key] = b"value"
    assert len(mapping.group) == 0


@pytest.mark.parametrize("value", ["text", 5, None, np.arange(100)[::2]])
def test_a_value_without_plain_bytes_is_refused_and_the_old_one_stays(
    mapping: CompressedMapping, value: object
) -> None:
    mapping["key"] = b"old"
    with pytest.raises(NotStorable, match="the value"):
        mapping["key"] = value
    assert mapping["key"] == b"old"


def test_sizes_are_those_of_the_values_and_of_what_is_stored(mapping: CompressedMapping) -> None:
    assert (mapping.nbytes, mapping.cbytes, mapping.cratio) == (0, 0, 1.0)
    mapping["zeros"] = bytes(20 * PAGE)
    assert mapping.nbytes == 20 * PAGE
    assert 0 < mapping.cbytes < 500
    mapping["text"] = text(1, 20 * PAGE)
    assert mapping.nbytes == 40 * PAGE
    assert mapping.cbytes == mapping.group.counters.pool_total_size > 0
    usage = mapping.memory_usage()
    assert mapping.cratio == usage.in_dict / usage.total
    mapping.clear()
    assert (len(mapping), mapping.nbytes, mapping.cbytes) == (0, 0, 0)


# Serializers


def test_arrays_are_pickled_without_a_copy_of_their_pages() -> None:
    array = np.arange(1 << 16)
    stream, *buffers, flags = PicklePacker(PAGE).pack({"array": array, "short": np.arange(5)})
    assert len(buffers) == len(flags) == 1
    assert np.shares_memory(np.frombuffer(buffers[0], np.uint8), array)
    assert len(stream) < PAGE


@pytest.mark.parametrize(
    "array",
    [
        np.arange(100_003),
        np.asfortranarray(np.arange(12_000.0).reshape(300, 40)),
        np.arange(40_000)[::3],
        np.zeros((0, 7)),
        np.arange(9, dtype=np.int8),
    ],
    ids=["odd", "fortran", "strided", "empty", "short"],
)
def test_arrays_come_back_as_they_were(store: SwapStore, array: np.ndarray) -> None:
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["a"] = {"array": array, "twice": [array, array], "other": text(1).decode()}
        got = mapping["a"]
        for back in (got["array"], *got["twice"]):
            assert np.array_equal(back, array)
            assert back.dtype == array.dtype
        got["array"][...] = 0
        assert np.array_equal(mapping["a"]["array"], array)
        mapping.check_invariants()


def test_an_array_that_was_read_only_is_again(store: SwapStore) -> None:
    frozen = np.arange(10_000)
    frozen.flags.writeable = False
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["a"] = [frozen, np.arange(10_000)]
        assert [array.flags.writeable for array in mapping["a"]] == [False, True]


def test_a_value_that_cannot_be_pickled_says_so_and_changes_nothing(store: SwapStore) -> None:
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["key"] = 1
        with pytest.raises(NotStorable, match="of function, cannot be pickled"):
            mapping["key"] = lambda: 0
        assert mapping["key"] == 1


class Reversed:
    def dumps(self, value: object, /) -> bytes:
        return pickle.dumps(value)[::-1]

    def loads(self, data: bytes, /) -> object:
        return pickle.loads(data[::-1])


def test_an_object_with_dumps_and_loads_serialises(store: SwapStore) -> None:
    with CompressedMapping(store, serializer=Reversed()) as mapping:
        mapping["key"] = {"a": [1, 2]}
        assert mapping["key"] == {"a": [1, 2]}


@pytest.mark.parametrize("serializer", ["yaml", None, 5, object()])
def test_an_unknown_serializer_is_refused(store: SwapStore, serializer: Any) -> None:
    with pytest.raises(BadArgument, match=r"serializer must be 'arrow', 'bytes', .* or an object"):
        CompressedMapping(store, serializer=serializer)
    assert not store.groups


@pytest.mark.parametrize(("size", "parts"), [(4095, 1), (4096, 3)])
def test_a_buffer_of_a_page_stays_out_of_the_pickle(size: int, parts: int) -> None:
    assert len(PicklePacker(4096).pack(np.zeros(size, np.uint8))) == parts


def test_close_gives_the_pages_back_and_use_after_it_is_refused(store: SwapStore) -> None:
    mapping = CompressedMapping(store)
    mapping["key"] = text(1, 50_000)
    mapping.close()
    mapping.close()
    assert store.counters.stored_pages == 0
    assert mapping.closed
    for call in (lambda: mapping["key"], lambda: mapping.__setitem__("key", b""), mapping.clear):
        with pytest.raises(ClosedError, match="CompressedMapping is closed"):
            call()


def test_a_value_that_is_put_in_while_it_is_closed_leaves_no_page(store: SwapStore) -> None:
    class Closing:
        def dumps(self, value: object, /) -> bytes:
            made.close()
            return str(value).encode()

        def loads(self, data: bytes, /) -> object:
            return data

    made = CompressedMapping(store, serializer=Closing())
    with pytest.raises(ClosedError):
        made["key"] = "value"
    assert len(made) == 0
    assert store.counters.stored_pages == 0


def test_a_mapping_whose_store_is_closed_says_so(engine: Engine) -> None:
    store = SwapStore(engine)
    mapping = CompressedMapping(store)
    mapping["key"] = b"value"
    store.close()
    with pytest.raises(ClosedError):
        mapping["key"]
    mapping.close()


def test_a_forked_child_is_refused(mapping: CompressedMapping) -> None:
    mapping["key"] = b"value"

    def use() -> None:
        with pytest.raises(ForkedProcess):
            mapping["key"]

    in_forked_child(use)
