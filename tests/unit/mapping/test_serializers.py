"""What a mapping's serializers take comes back as it was; what they cannot give back is refused."""

from __future__ import annotations

import datetime as dt
import enum
import math
import pickle
import subprocess
import sys
from collections import OrderedDict, namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.round_trip import PAGE, back, packed, read_damaged, restored

from batchzip import BatchzipError, CompressedMapping, NotStorable, UnreadableValue
from batchzip.mapping.serializers import packer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = ["json", "msgpack"]


@pytest.fixture(scope="module", params=TEXTS)
def mapping(request: pytest.FixtureRequest) -> Iterator[CompressedMapping]:
    with CompressedMapping(serializer=request.param) as mapping:
        yield mapping


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, with all types, the order of keys, and zeros of one sign."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    return repr(one) == repr(other)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
MSGPACK_LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.binary()
)
JSON = st.recursive(
    JSON_LEAVES, lambda each: st.lists(each) | st.dictionaries(TEXT, each), max_leaves=20
)
MSGPACK = st.recursive(
    MSGPACK_LEAVES,
    lambda each: st.lists(each) | st.dictionaries(MSGPACK_LEAVES, each),
    max_leaves=20,
)


@pytest.mark.slow
@given(value=JSON)
@settings(max_examples=60)
def test_every_json_value_comes_back(value: Any) -> None:
    assert same(back(packer_of("json", PAGE), value), value)


@pytest.mark.slow
@given(value=MSGPACK)
@settings(max_examples=60)
def test_every_msgpack_value_comes_back(value: Any) -> None:
    assert same(back(packer_of("msgpack", PAGE), value), value)


@pytest.mark.parametrize("count", [0, 1, 50, 5000])
def test_trees_of_any_size_come_back_from_a_mapping(mapping: CompressedMapping, count: int) -> None:
    value = {"items": [{"name": f"number {each}", "price": each / 7} for each in range(count)]}
    mapping["key"] = value
    mapping.update(other=value, none=None)
    assert same(mapping["key"], value)
    assert same(mapping.get_many(["other", "none"]), {"other": value, "none": None})


class Colour(enum.IntEnum):
    RED = 1


class Word(str):
    __slots__ = ()


Point = namedtuple("Point", "x y")  # noqa: PYI024 - as in much code
CYCLE: list[Any] = [1]
CYCLE.append(CYCLE)
DEEP: Any = 0
for _ in range(300):
    DEEP = {"in": [DEEP]}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ((1, 2), "a value of tuple"),
        ({"a": [1, {2}]}, "a value of set"),
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "a value of datetime"),
        ([Colour.RED], "a value of Colour"),
        ([Word("a")], "a value of Word"),
        ({Word("a"): 1}, "a key of Word"),
        ({(1, 2): 3}, "a key of tuple"),
        (OrderedDict(a=1), "a value of OrderedDict"),
        ([Point(1, 2)], "a value of Point"),
        (bytearray(b"a"), "a value of bytearray"),
        (1j, "a value of complex"),
        (object(), "a value of object"),
        (CYCLE, "more than 200 levels of nested lists and dicts"),
        (DEEP, "more than 200 levels of nested lists and dicts"),
        (["\ud800"], "surrogates not allowed"),
    ],
    ids=lambda given: type(given).__name__ if not isinstance(given, str) else given,
)
def test_values_that_a_round_trip_would_change_are_refused(
    mapping: CompressedMapping, value: Any, why: str
) -> None:
    mapping["key"] = 1
    with pytest.raises(NotStorable, match=f"takes str, .*, not .*{why}"):
        mapping["key"] = value
    assert mapping["key"] == 1


@pytest.mark.parametrize("value", [math.nan, [1.0, -math.inf], b"a", {1: 2}, {None: 1}])
def test_json_refuses_what_msgpack_takes(value: Any) -> None:
    assert same(back(packer_of("msgpack", PAGE), value), value)
    with pytest.raises(NotStorable, match="serializer='json' takes str, int, finite float"):
        packer_of("json", PAGE).pack(value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_msgpack_refuses_numbers_that_json_takes(value: int) -> None:
    assert back(packer_of("json", PAGE), [value]) == [value]
    with pytest.raises(NotStorable, match=r"int of up to 64 bits, .* not can't serialize ints"):
        packer_of("msgpack", PAGE).pack([value])


def test_the_deepest_allowed_value_is_read_from_deep_in_the_stack() -> None:
    value: Any = 0
    for _ in range(200):
        value = [value]
    packer = packer_of("json", PAGE)
    parts = packed(packer, value)

    def deeper(levels: int) -> Any:
        return deeper(levels - 1) if levels else restored(packer, parts)

    assert deeper(500) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bytes", b"value"),
        ("json", ["value"]),
        ("msgpack", {b"a": 1}),
        ("pickle", {1}),
        ("numpy", np.arange(6, dtype=">i2").reshape(2, 3).T),
        ("arrow", pa.table({"a": [1, 2]})),
    ],
)
def test_a_small_value_can_lie_on_pages(name: str, value: Any) -> None:
    # An engine that isolates its codec compresses pages only.
    packer = packer_of(name, PAGE)
    (part,) = packed(packer, value)
    found: Any = packer.unpack([memoryview(bytearray(part))])
    assert type(found) is type(value)
    assert np.array_equal(found, value) if name == "numpy" else found == value


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_text_is_refused_or_another_tree(name: str) -> None:
    packer = packer_of(name, PAGE)
    value = {"a": [1, 2.5, None, True, "text"], "b": {"c": -70000, "long": "x" * 40}}
    assert read_damaged(packer, packed(packer, value), repr) > 100


@pytest.mark.parametrize("name", ["arrow", *TEXTS, "numpy"])
@given(data=st.binary(max_size=200), other=st.none() | st.binary(max_size=50))
def test_any_bytes_are_a_value_or_refused(name: str, data: bytes, other: bytes | None) -> None:
    packer = packer_of(name, PAGE)
    parts = [data] if other is None else [data, other]
    try:
        restored(packer, parts)
    except UnreadableValue as error:
        assert isinstance(error, (BatchzipError, ValueError))  # noqa: PT017 - most bytes are


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff"])
@pytest.mark.parametrize("name", TEXTS)
def test_bytes_that_ask_for_too_much_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(UnreadableValue, match=f"the bytes are not valid {name}"):
        packer_of(name, PAGE).unpack_one(data)


class Runs:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


@pytest.mark.parametrize("name", ["arrow", *TEXTS, "numpy"])
def test_a_pickle_is_not_run_by_others(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableValue):
        packer_of(name, PAGE).unpack_one(pickle.dumps(Runs()))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_missing_library_is_named_with_what_installs_it() -> None:
    script = """
import sys
import batchzip
from batchzip.mapping.serializers import packer_of
others = {"arrow": "pyarrow", "json": "msgspec", "msgpack": "msgspec", "torch": "torch"}
for works in ("bytes", "pickle", "numpy"):
    packer_of(works, 4096)
assert not {*others.values()} & sys.modules.keys()
sys.modules.update(dict.fromkeys(others.values()))
with batchzip.SwapStore(batchzip.Engine("lz4", backend="sequential")) as store:
    for name, module in others.items():
        try:
            batchzip.CompressedMapping(store, serializer=name)
        except batchzip.MissingExtra as error:
            assert f"serializer={name!r} needs {module}, which is not installed" in str(error)
            assert f"pip install '{module}>=" in str(error), error
            assert error.extra in ("arrow", "msgspec", "torch")
        else:
            raise AssertionError(name)
    assert not store.groups
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=60, check=True)
