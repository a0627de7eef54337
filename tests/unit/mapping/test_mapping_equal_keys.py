"""A key that is equal to a plain one is that one, and objects of keys leave with their values."""

from __future__ import annotations

import decimal
import enum
import fractions
import math
import numbers
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

from batchzip import (
    CompressedMapping,
    NotStorable,
    SwapStore,
)
from batchzip.core.records import shift_clock

MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie on pages."""


class Plain(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not its own text"


class PlainBytes(bytes):
    def __getitem__(self, _: Any) -> Any:
        return b"not its own bytes"


class Number(enum.IntEnum):
    SEVEN = 7


class Odd(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd)

    def __hash__(self) -> int:
        return 1


class SameHash(numbers.Number):
    """A number that has the hash of 7 and is not equal to it."""

    def __int__(self) -> int:
        return 7

    def __hash__(self) -> int:
        return hash(7)


class SameValue(SameHash):
    """A number that is equal to 7 and has another hash."""

    def __eq__(self, other: object) -> bool:
        return other == 7

    def __hash__(self) -> int:
        return 1


Point = namedtuple("Point", "x y")  # noqa: PYI024 - as in much code


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        (Plain("a"), "a"),
        (PlainBytes(b"a"), b"a"),
        (Number.SEVEN, 7),
        (7.0, 7),
        (decimal.Decimal(7), 7),
        (fractions.Fraction(7), 7),
        (np.float32(7), 7),
        (np.int8(7), 7),
        (np.bool_(1), True),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (Point(1, Plain("a")), (1, "a")),
        ((1.0, (Number.SEVEN,)), (1, (7,))),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_key_that_is_equal_to_a_plain_one_is_that_one(
    mapping: CompressedMapping, key: Any, plain: Any
) -> None:
    mapping[key] = b"first"
    assert mapping[plain] == b"first"
    assert [(type(each), each) for each in mapping] == [(type(plain), plain)]
    assert not mapping._keys.has_objects
    mapping[plain] = b"second"
    assert mapping.pop(key) == b"second"
    assert key not in mapping


@pytest.mark.parametrize(
    "key",
    [
        SameHash(),
        SameValue(),
        7.5,
        math.nan,
        math.inf,
        7j,
        decimal.Decimal("NaN"),
        Odd("a"),
        frozenset(),
    ],
    ids=lambda each: f"{type(each).__name__} {each}"[:20],
)
def test_a_key_that_is_equal_to_no_plain_one_is_refused(
    mapping: CompressedMapping, key: Any
) -> None:
    mapping["a"] = mapping[7] = b"value"
    assert key not in mapping
    assert mapping.get(key) is None
    with pytest.raises(NotStorable, match=f"a key must be .*, not {type(key).__name__}: give"):
        mapping[key] = b"value"
    mapping[(key,)] = b"kept as an object"
    assert mapping[(key,)] == b"kept as an object"
    assert list(mapping)[-1] == (key,)
    del mapping[(key,)]
    assert not mapping._keys.has_objects
    assert not mapping._keys._known


def test_keys_that_are_objects_leave_with_their_values_however_these_go(
    store: SwapStore,
) -> None:
    with CompressedMapping(store) as mapping:
        for number in range(10):
            mapping[number, 0.5] = b"value"
        del mapping[0, 0.5]
        mapping.pop((1, 0.5))
        mapping.popitem()
        mapping.delete_many([(2, 0.5), (3, 0.5), (2, 0.5)])
        assert list(mapping) == [(number, 0.5) for number in range(4, 9)]
        assert list(reversed(mapping)) == [(number, 0.5) for number in range(8, 3, -1)]
        assert len(mapping._keys._objects) == len(mapping._keys._known) == 5
        assert mapping._keys.shown(mapping._records.keys()[0]) == "(4, 0.5)"
        gone = mapping._records.keys()[0]
        del mapping[4, 0.5]
        assert mapping._keys.shown(gone) == "that was removed meanwhile"


def test_objects_of_expired_keys_are_dropped_once_there_are_64_more(store: SwapStore) -> None:
    with CompressedMapping(store, ttl=1) as mapping:
        try:
            for number in range(63):
                mapping[number, 0.5] = b"value"
            shift_clock(2)
            mapping.expire()
            assert len(mapping._keys._objects) == 63
            mapping["new", 0.5] = b"value"
            assert list(mapping) == [("new", 0.5)]
            assert len(mapping._keys._objects) == len(mapping._keys._known) == 1
        finally:
            shift_clock(-2)


def test_the_next_sweep_comes_at_64_more_than_twice_the_objects_that_are_left(
    store: SwapStore,
) -> None:
    with CompressedMapping(store) as mapping:

        def add(start: int, count: int, ttl: float | None = None) -> int:
            for number in range(start, start + count):
                mapping.set((number, 0.5), b"value", ttl=ttl)
            return len(mapping._keys._objects)

        assert add(0, 64) == 64  # a sweep came, and found no stale one
        assert add(100, 60, ttl=1) == 124
        shift_clock(2)
        try:
            assert mapping.expire() == 60
            assert add(200, 67) == 191
            assert add(300, 1) == len(mapping) == 132
        finally:
            shift_clock(-2)


def test_a_key_whose_object_was_dropped_meanwhile_is_left_out(store: SwapStore) -> None:
    with CompressedMapping(store) as mapping:
        for key in ("before", (1, 0.5), None, (2, 0.5)):
            mapping[key] = b"value"
        plain = mapping._records.keys()  # what an iterator has in mind
        for left in (["before", None, (2, 0.5)], ["before", None]):
            del mapping[(1, 0.5) if (2, 0.5) in left else (2, 0.5)]
            assert mapping._keys.back(plain) == left
            assert [key for _, key in mapping._keys.pairs(plain)] == left
        assert mapping._keys.shown(plain[1]) == "that was removed meanwhile"
