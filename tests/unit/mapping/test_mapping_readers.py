"""A reader of a mapping gets a value, or the error of its key, whatever happens meanwhile."""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING

import pytest
from support.entries import flip
from support.store_pages import noise

from batchzip import (
    CompressedMapping,
    CorruptPage,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip import Group


# Mappings


class _Stubborn:
    """Serialises all, and restores all but "broken"."""

    dumps = staticmethod(pickle.dumps)

    def loads(self, data: bytes) -> object:
        value = pickle.loads(data)
        if value == "broken":
            raise KeyError("a class that is gone")
        return value


READERS: dict[str, Callable[[CompressedMapping], object]] = {
    "get": lambda m: m.get("key", "absent"),
    "items": lambda m: list(m.items()),
    "values": lambda m: list(m.values()),
    "in items": lambda m: ("key", 1) in m.items(),
    "in values": lambda m: 1 in m.values(),
    "pop": lambda m: m.pop("key", "absent"),
    "setdefault": lambda m: m.setdefault("key", "absent"),
    "==": lambda m: m == {"key": "broken"},
    "|": lambda m: m | {},
    "copy": lambda m: m.copy()["key"],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_value_that_cannot_be_restored_is_not_taken_for_absent(
    store: SwapStore, reader: str
) -> None:
    """joblib#896, litestar#4420, cpython#83057: a KeyError of the unpickler read as "not there"."""
    with CompressedMapping(store, serializer=_Stubborn()) as mapping:
        mapping["key"] = "broken"
        with pytest.raises(KeyError, match="a class that is gone"):
            READERS[reader](mapping)
        assert "key" in mapping
        mapping["key"] = "mended"
        assert mapping.get("key") == "mended"
        assert mapping.get("other") is None


class _Shy:
    def __repr__(self) -> str:
        raise RuntimeError("nobody is to see me")


def test_a_damaged_value_is_said_whatever_its_key_looks_like(mapping: CompressedMapping) -> None:
    """cachetools#12, fusil#264: an error could not be said, as the key in it had no repr."""
    for key in ((_Shy(),), 10**5000):
        mapping[key] = noise(1)
        flip(mapping.group, 1 << 63)  # the first value's entry
        with pytest.raises(CorruptPage):
            mapping[key]
        del mapping[key]


@pytest.mark.parametrize("view", ["items", "values"])
def test_a_key_that_goes_meanwhile_is_left_out(mapping: CompressedMapping, view: str) -> None:
    """filesystem_spec#893, stucchio/Python-LRU-cache#9: a key deleted meanwhile was a KeyError."""
    mapping.update({number: b"%d" % number for number in range(5)})
    found = iter(getattr(mapping, view)())
    next(found)
    del mapping[2]
    mapping[9] = b"9"
    left = [(1, b"1"), (3, b"3"), (4, b"4")]
    assert list(found) == (left if view == "items" else [value for _, value in left])
    assert (3, b"3") in mapping.items()
    assert (3, b"other") not in mapping.items()
    assert b"4" in mapping.values()


@pytest.mark.slow
def test_threads_may_look_at_all_while_others_change_it(mapping: CompressedMapping) -> None:
    ends = threading.Event()

    def change() -> None:
        number = 0
        while not ends.is_set():
            mapping[number % 20] = b"value"
            mapping.pop(number * 7 % 20, None)
            number += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            assert {value for _, value in mapping.items()} <= {b"value"}
            assert set(mapping.values()) <= {b"value"}
            mapping.copy().close()
            (mapping | {}).close()
            assert mapping.get(3, b"value") == b"value"
    finally:
        ends.set()
        thread.join()


def test_mappings_are_made_in_no_more_time_the_more_there_are(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeCAD#16849, spox#140: each name was looked for from the first on."""
    asked: list[str] = []
    new_group = store._new_group

    def ask(name: str, most: int | None) -> Group | None:
        asked.append(name)
        return new_group(name, most)

    monkeypatch.setattr(store, "_new_group", ask)
    mappings = [CompressedMapping(store) for _ in range(50)]
    assert len({each.group.name for each in mappings}) == len(asked) == 50
    for each in mappings:
        each.close()
