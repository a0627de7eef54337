"""What a mapping answers beside its values: texts, errors, views, batches and figures."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.sample_values import IN_CHUNKS_OR_PAGES
from support.store_pages import noise, text

from batchzip import (
    CompressedMapping,
    Engine,
    NotStorable,
    SwapStore,
    UnreadableValue,
)
from batchzip.core.records import shift_clock
from batchzip.mapping.figures import MemoryUsage
from batchzip.mapping.serializers import packer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie on pages."""


def test_its_repr_has_its_name_and_the_number_of_its_values(store: SwapStore) -> None:
    with CompressedMapping(store, name="rows") as mapping:
        mapping.update(a=b"1", b=b"2")
        assert repr(mapping) == "<CompressedMapping 'rows' of 2 values>"


def test_it_has_no_hash_and_is_equal_to_itself_and_to_a_dict(mapping: CompressedMapping) -> None:
    mapping["a"] = b"1"
    with pytest.raises(TypeError, match="unhashable"):
        hash(mapping)
    assert mapping == mapping  # noqa: PLR0124 - this is what is tested
    assert mapping == {"a": b"1"}
    assert mapping != {"a": b"2"}
    assert mapping != {}


def test_update_takes_what_a_dicts_does(mapping: CompressedMapping) -> None:
    class WithKeys:
        def keys(self) -> list[str]:
            return ["x", "y"]

        def __getitem__(self, key: str) -> bytes:
            return key.encode()

    mapping.update(WithKeys(), z=b"z")
    mapping.update([("x", b"2")])
    mapping.update()
    assert dict(mapping) == {"x": b"2", "y": b"y", "z": b"z"}
    with pytest.raises(TypeError, match="update takes at most one mapping or iterable, not 2"):
        mapping.update({}, {})


def test_views_are_those_of_a_dict(store: SwapStore) -> None:
    with CompressedMapping(store, serializer="pickle") as mapping:
        model: dict[Any, Any] = {"a": 1, "b": None, "c": (1, 2)}
        mapping.update(model)
        for view in ("keys", "values", "items"):
            ours, theirs = getattr(mapping, view)(), getattr(model, view)()
            assert list(ours) == list(theirs)
            if view != "keys":
                assert list(reversed(ours)) == list(reversed(theirs))
            assert len(ours) == 3
            for each in [*theirs, "z", 2, ("a", 2), ("z", None), ("b", None)]:
                if view != "items" or isinstance(each, tuple):
                    assert (each in ours) == (each in theirs), (view, each)


def test_absent_keys_are_told_as_by_a_dict(mapping: CompressedMapping) -> None:
    for call in (
        mapping.__getitem__,
        mapping.__delitem__,
        mapping.pop,
    ):
        with pytest.raises(KeyError) as missing:
            call("absent")
        assert missing.value.args == ("absent",)
    with pytest.raises(KeyError, match="the mapping is empty"):
        mapping.popitem()
    assert mapping.pop("absent", None) is mapping.get("absent") is None
    assert mapping.delete_many(["absent"]) == 0
    assert mapping.setdefault("new", b"1") == b"1"
    assert mapping.setdefault("new", b"2") == b"1"
    assert mapping.popitem() == ("new", b"1")


@pytest.mark.parametrize("length", [100, 3 * MOST])
def test_a_value_that_cannot_be_read_names_its_key(store: SwapStore, length: int) -> None:
    class Unreadable:
        def dumps(self, _: object, /) -> bytes:
            return bytes(length)

        def loads(self, _: bytes, /) -> object:
            raise UnreadableValue("no value")

    with CompressedMapping(store, serializer=Unreadable()) as mapping:
        mapping["the key"] = 1
        for read in (mapping.__getitem__, lambda key: mapping.get_many([key])):
            with pytest.raises(UnreadableValue) as failed:
                read("the key")
            assert failed.value.__notes__ == ["This is the value of key 'the key'."]


def test_the_shortest_time_to_live_is_over_at_once(store: SwapStore) -> None:
    with CompressedMapping(store, ttl=1e-12) as mapping:
        mapping["key"] = b"value"
        mapping.set_many({"other": b"value"})
        mapping.set("long", b"value", ttl=1e6)
        shift_clock(1)
        try:
            assert list(mapping) == ["long"]
        finally:
            shift_clock(-1)


def test_a_time_to_live_of_one_value_is_not_that_of_others(store: SwapStore) -> None:
    with CompressedMapping(store) as mapping:
        mapping.set("key", b"value", ttl=1e-12)
        mapping["kept"] = b"value"
        mapping.set_many({"two": b"value"}, ttl=2)
        mapping.set("max", b"value", ttl=1e300)
        try:
            for left in (["kept", "two", "max"], ["kept", "max"]):
                shift_clock(1.5)
                assert list(mapping) == left
            shift_clock(60 * 366 * 86400)
            assert list(mapping) == ["kept", "max"]
        finally:
            shift_clock(-3 - 60 * 366 * 86400)


def test_batches_are_of_1024_values_or_4_mib(store: SwapStore) -> None:
    lengths: list[int] = []

    def items(into: CompressedMapping, count: int, size: int) -> Iterator[tuple[int, bytes]]:
        for number in range(count):
            lengths.append(len(into))
            yield number, bytes([number % 256]) * size

    with CompressedMapping(store) as mapping:
        mapping.set_many(items(mapping, 3000, 10))
        assert sorted(set(lengths)) == [0, 1024, 2048]
        assert len(mapping) == 3000
        mapping.clear()
        lengths.clear()
        mapping.set_many(items(mapping, 200, MOST))
        assert sorted(set(lengths)) == [0, 64, 128, 192]
    with CompressedMapping(dictionary="auto") as mapping:  # used as soon as it is trained
        lengths.clear()
        mapping.set_many(items(mapping, 200, 10))
        assert sorted(set(lengths)) == [0, 64, 128, 192]


@pytest.mark.parametrize("size", [512, 1 << 20])
def test_batches_of_any_page_size_come_back(size: int) -> None:
    with (
        Engine("lz4", backend="sequential", page_size=size) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        values: dict[Any, bytes] = {number: text(number, 200 + number) for number in range(150)}
        values |= {"large": noise(1, 3 * max(size, MOST) + 17), "whole": noise(2, 2 << 20)}
        mapping.set_many(values)
        assert mapping.get_many(values) == values
        mapping.check_invariants()


def test_a_value_of_several_buffers_comes_back_from_whole_pages_and_tails(store: SwapStore) -> None:
    lengths = [MOST, MOST + 1, 2 * MOST - 1, MOST + 4095, MOST + 4096, 3 * MOST + 5]
    value = [np.frombuffer(noise(length, length), np.uint8) for length in lengths]
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["key"] = value
        assert all(map(np.array_equal, mapping["key"], value))
        assert mapping.group.counters.stored_pages <= sum(lengths) // 4096 + 3
        mapping.check_invariants()


@IN_CHUNKS_OR_PAGES
def test_values_of_several_buffers_come_back_from_a_batch(store: SwapStore) -> None:
    with CompressedMapping(store, serializer="pickle") as mapping:
        values = {number: np.arange(20_000) * number for number in range(5)}
        mapping.set_many(values)
        mapping.update({"small": 1, **{str(number): value for number, value in values.items()}})
        assert mapping["small"] == 1
        for number, value in values.items():
            assert np.array_equal(mapping[number], value)
            assert np.array_equal(mapping[str(number)], value)
        # Each value on pages takes 250 bytes of the index, beside its key.
        on_pages = mapping.group._entries.figures()["large"]
        assert on_pages in (0, 10)
        assert mapping.memory_usage().index == mapping.stats().index_bytes + on_pages * 250


@pytest.mark.slow
def test_an_empty_value_is_kept_though_the_codec_runs_elsewhere() -> None:
    with (
        Engine("zstd", backend="workers", workers=1, isolate=True) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        values = {"empty": b"", "short": b"short", "page": noise(1), "more": noise(2, 5000)}
        mapping.update(values)
        mapping["alone"] = values["alone"] = b""
        assert dict(mapping) == mapping.get_many(values) == values
        assert mapping.nbytes == 5 + 4096 + 5000
        assert mapping.memory_usage().dictionaries == 0
        mapping.check_invariants()


def test_the_total_of_the_memory_is_the_sum_of_its_parts() -> None:
    usage = MemoryUsage(values=1, tables=20, index=300, dictionaries=4000, in_dict=50_000)
    assert usage.total == 4321


@pytest.mark.parametrize("engine", ["deflate"], indirect=True)
def test_invariants_notice_indices_that_no_value_has(store: SwapStore) -> None:
    with CompressedMapping(store) as mapping:
        mapping["large"] = noise(1, 2 * MOST)
        mapping.check_invariants()
        lost = mapping._pages.space.reserve(3)
        with pytest.raises(AssertionError, match="large values have 32 pages at 32 indices, 35"):
            mapping.check_invariants()
        mapping.group.store(lost.first, noise(2))
        with pytest.raises(AssertionError, match="and the group has 33 pages"):
            mapping.check_invariants()
        del lost
        mapping.check_invariants()


# Serializers


def test_a_value_in_several_parts_where_one_is_expected_is_unreadable() -> None:
    for name in ("json", "msgpack"):
        for count in (0, 2):
            parts = [memoryview(b"1")] * count
            with pytest.raises(UnreadableValue, match=f"in {name} has one part, not {count}"):
                packer_of(name, 4096).unpack(parts)


def test_a_result_of_dumps_that_is_no_buffer_is_refused(store: SwapStore) -> None:
    class Wrong:
        def dumps(self, _: object, /) -> Any:
            return "text"

        def loads(self, data: bytes, /) -> object:
            return data

    with CompressedMapping(store, serializer=Wrong()) as mapping:
        with pytest.raises(NotStorable, match="the result of dumps"):
            mapping["key"] = 1
        assert "key" not in mapping


class Gaps:
    """What hands over a buffer with gaps, which no pickle has."""

    def __reduce_ex__(self, _: object) -> tuple[object, ...]:
        return bytes, (pickle.PickleBuffer(memoryview(bytes(2 * MOST))[::2]),)


def test_a_buffer_with_gaps_cannot_be_pickled_and_is_refused(store: SwapStore) -> None:
    with CompressedMapping(store, serializer="pickle") as mapping:
        with pytest.raises(NotStorable, match="the value, of Gaps, cannot be pickled"):
            mapping["key"] = Gaps()
        assert not mapping


def test_a_table_that_arrow_cannot_write_is_refused(store: SwapStore) -> None:
    value: Any = 1
    for _ in range(100):
        value = [value]
    with CompressedMapping(store, serializer="arrow") as mapping:
        with pytest.raises(NotStorable, match="Arrow cannot write the value"):
            mapping["key"] = pa.table({"deep": [value]})
        assert not mapping
