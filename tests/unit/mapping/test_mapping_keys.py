"""Keys of any type go through their serializer, and leave with their values."""

from __future__ import annotations

import pytest

from batchzip import (
    CompressedMapping,
    NotStorable,
    SwapStore,
)
from batchzip.core.records import shift_clock

# Keys


class Text:
    """A serializer of keys."""

    def dumps(self, key: object, /) -> bytes:
        return repr(key).encode()

    def loads(self, data: bytes, /) -> object:
        return eval(data)


def test_other_keys_go_through_their_serializer(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, key_serializer=Text()) as mapping:
        mapping[1.5] = b"float"  # type: ignore[index] # the serializer knows it
        mapping["1.5"] = b"str"
        mapping[1.0] = b"int"  # type: ignore[index]
        assert (mapping[1.5], mapping[1], 2.5 in mapping) == (b"float", b"int", False)  # type: ignore[index]
        assert list(mapping) == [1.5, "1.5", 1]
        assert mapping.pop(1.5) == b"float"  # type: ignore[arg-type]
    with CompressedMapping(zstd) as mapping, pytest.raises(NotStorable, match="key_serializer="):
        mapping[1.5] = b"value"  # type: ignore[index]


def test_objects_of_keys_go_with_their_values(zstd: SwapStore) -> None:
    class Id:
        pass

    with CompressedMapping(zstd) as mapping:
        keys = [(Id(), number) for number in range(500)]
        for key in keys:
            mapping[key] = b"value"
        assert list(mapping) == keys
        for key in keys[:-1]:
            del mapping[key]
        assert len(mapping._keys._objects) == 1
        mapping.clear()
        assert not mapping._keys.has_objects


def test_objects_of_keys_whose_time_is_over_do_not_pile_up(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, ttl=1) as mapping:
        for turn in range(20):
            for number in range(50):
                mapping[(1.5, turn, number),] = b"value"
            shift_clock(2)
        shift_clock(-40)
        assert len(mapping._keys._objects) < 500
