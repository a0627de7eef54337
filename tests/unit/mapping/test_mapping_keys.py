"""Keys of any type go through their serializer, and leave with their values."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from batchzip import (
    CompressedMapping,
    NotStorable,
    SwapStore,
)
from batchzip.core.keys import Opaque
from batchzip.core.records import shift_clock
from batchzip.mapping.keys import Keys
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.core.keys import Pin

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


def test_tuples_of_objects_do_not_go_through_the_serializer_of_keys(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, key_serializer=Text()) as mapping:
        mapping["a", 1.5] = b"first"
        mapping["a", 1.5] = b"second"
        assert list(mapping.items()) == [(("a", 1.5), b"second")]
        assert ("a", 1.5) in mapping
        assert mapping.pop(("a", 1.5)) == b"second"
        assert not mapping._keys.has_objects


def test_a_value_that_is_refused_leaves_no_key(zstd: SwapStore) -> None:
    with CompressedMapping(zstd) as mapping:
        with pytest.raises(NotStorable):
            mapping["a", 1.5] = 7
        assert not mapping._keys.has_objects
        assert not mapping._keys._known


class Hashed:
    """An object whose `__hash__` calls a function, once it is set."""

    call: Callable[[], None] | None = None

    def __hash__(self) -> int:
        call, Hashed.call = Hashed.call, None
        if call is not None:
            call()
        return 7


def when_one_is_absent(mapping: CompressedMapping, call: Callable[[], None]) -> list[None]:
    """Call something in a thread the first time that a key is found to have no value.

    Return a list that is empty until then.
    """
    has_value = mapping._keys._has_value
    called: list[None] = []

    def asked(plain: object) -> bool:
        found = has_value(plain)
        if not found and not called:
            called.append(None)
            in_threads(1, lambda _: call())
        return found

    mapping._keys._has_value = asked
    return called


REMOVALS: dict[str, Callable[[CompressedMapping, Any], object]] = {
    "del": lambda mapping, key: mapping.__delitem__(key),
    "pop": lambda mapping, key: mapping.pop(key),
    "delete_many": lambda mapping, key: mapping.delete_many([key]),
    "popitem": lambda mapping, _: mapping.popitem(),
    "clear": lambda mapping, _: mapping.clear(),
}


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("moment", ["hash", "has_value"])
def test_a_value_stored_while_another_is_removed_is_found(
    zstd: SwapStore, removal: str, moment: str
) -> None:
    key = (Hashed(),)
    with CompressedMapping(zstd) as mapping:
        mapping[key] = b"old"
        stored: list[None] = []

        def store(_: int = 0) -> None:
            mapping[key] = b"new"

        def store_now() -> None:
            stored.append(None)
            in_threads(1, store)

        if moment == "hash":
            Hashed.call = store_now
        else:
            stored = when_one_is_absent(mapping, store)
        REMOVALS[removal](mapping, key)
        Hashed.call = None
        found = mapping.get(key)
        if moment == "hash":  # before the value is removed, if at all
            assert len(stored) == (removal not in {"popitem", "clear"})
            assert found is None
        else:
            assert len(stored) == 1
            assert found == b"new"
        assert len(mapping) == len(list(mapping)) == (found is not None)
        mapping.check_invariants()
        mapping[key] = b"again"
        assert list(mapping.items()) == [(key, b"again")]


def test_a_value_whose_storing_began_before_another_was_removed_is_found() -> None:
    values: set[object] = set()
    pins: list[Pin] = []

    def has_value(plain: object) -> bool:
        found = number_of(plain) in values
        while pins:  # the other call stores its value now
            values.add(number_of(plain))
            keys.unpin(pins.pop())
        return found

    def number_of(plain: object) -> int:
        assert isinstance(plain, Opaque)
        return plain.number

    keys = Keys(None, has_value)
    plain, pin = keys.add(("page", 1.5))
    assert pin is not None
    pins.append(pin)
    keys.forget(plain)
    assert values
    assert keys.back([plain]) == [("page", 1.5)]
    assert keys.fault([plain]) is None
    values.clear()
    keys.forget(plain)
    assert not keys.has_objects


@pytest.mark.slow
@pytest.mark.parametrize("removal", ["pop", "del", "popitem"])
def test_threads_remove_each_value_of_a_key_once(zstd: SwapStore, removal: str) -> None:
    key = ("page", 1.5)
    until = time.monotonic() + 1
    stored, removed = [0] * 2, [0] * 2

    def store(number: int) -> None:
        while time.monotonic() < until:
            value = b"value %d" % stored[number]
            stored[number] += mapping.setdefault(key, value) is value

    def remove(number: int) -> None:
        while time.monotonic() < until:
            try:
                REMOVALS[removal](mapping, key)
                removed[number] += 1
            except KeyError:
                pass

    before = sys.getswitchinterval()
    with CompressedMapping(zstd) as mapping:
        sys.setswitchinterval(1e-5)
        try:
            in_threads(4, lambda number: (store, remove)[number % 2](number // 2))
        finally:
            sys.setswitchinterval(before)
        left = len(mapping)
        assert left == len(list(mapping)) == mapping.delete_many([key])
        assert sum(stored) == sum(removed) + left
        mapping.check_invariants()
        assert not mapping._keys.has_objects
        assert not mapping._keys._known


def test_a_key_stored_again_during_a_sweep_is_found(zstd: SwapStore) -> None:
    keys = [(Hashed(), number) for number in range(63)]
    with CompressedMapping(zstd) as mapping:
        for key in keys:
            mapping.set(key, b"value", ttl=1)
        shift_clock(2)
        try:
            mapping.expire()
            stored = when_one_is_absent(mapping, lambda: mapping.set(keys[-1], b"again"))
            mapping["more", 1.5] = b"value"
            assert len(stored) == 1
            assert mapping[keys[-1]] == b"again"
            assert len(mapping) == len(list(mapping)) == len(mapping._keys._known) == 2
            mapping.check_invariants()
        finally:
            shift_clock(-2)
