"""Records keep keys and values of a mapping in the core, with deadlines, and without memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.entries import records_in
from support.pool_memory import object_of
from support.store_pages import noise, text

from batchzip import BadArgument, Engine, PageError, SwapStore
from batchzip.core.gather import gather
from batchzip.core.keyindex import siphash
from batchzip.core.keys import NotPlain, Opaque, decode, encode
from batchzip.core.memory import allocations, fail_allocation
from batchzip.core.records import MISSING, Found, LargeValue, Records, now_ns, shift_clock
from batchzip.core.table import Kind
from batchzip.store.loader import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PAGE = 4096

MOST = 64 << 10


# Keys


PLAIN = st.recursive(
    st.text() | st.binary() | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)


@pytest.mark.slow
@given(key=PLAIN)
def test_a_key_comes_back_as_it_was(key: Any) -> None:
    back = decode(encode(key))
    assert repr(back) == repr(key)


@given(one=PLAIN, other=PLAIN)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_keys_are_equal_exactly_where_a_dict_says_so(one: Any, other: Any) -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        made = records_in(store)
        made.put(one, b"value")
        assert made.contains(other) == (other in {one: b"value"})


@pytest.mark.parametrize(
    "key",
    [
        *("", "\ud800", "a" * 255, "a" * 256, b""),
        *(0, -1, 127, 128, -128, -129, 2**63, -(2**63), 10**400),
        *(True, (True, 1), ((False,), "x" * 300), ((),), Opaque(7), Opaque(0, b"bytes")),
    ],
)
def test_keys_at_the_edges_come_back(values: Records, key: Any) -> None:
    assert values.put(key, b"value") == 0
    assert values.get(key) == b"value"
    assert repr(values.keys()) == repr([key])
    assert values.remove(key)
    assert values.keys() == []


@pytest.mark.parametrize("key", [1.5, frozenset(), ([],), (1, {}), np.int64(1), bytearray(b"a")])
def test_other_keys_are_left_to_the_mapping(values: Records, key: Any) -> None:
    for call in (values.get, values.contains, values.remove):
        with pytest.raises(NotPlain):
            call(key)
    with pytest.raises(NotPlain):
        values.put(key, b"value")


def test_a_key_of_tuples_nested_too_deep_is_refused(values: Records) -> None:
    key: Any = ()
    for _ in range(2000):
        key = (key,)
    with pytest.raises(NotPlain):
        values.put(key, b"value")


def test_the_hash_is_the_one_that_python_has() -> None:
    # Python's own, with the key that PYTHONHASHSEED=0 stands for: zero.
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip(f"this Python hashes with {sys.hash_info.algorithm}")
    samples = [b"a" * length for length in range(1, 40)]
    code = "import sys; print([hash(b'a' * n) for n in range(1, 40)])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    signed = [
        value - (1 << 64) if value >> 63 else value
        for value in (siphash(0, 0, each) for each in samples)
    ]
    assert str(signed) == done.stdout.strip()


# Values


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, PAGE - 1, PAGE, PAGE + 1, MOST - 1, MOST])
@pytest.mark.parametrize("make", [text, noise])
@pytest.mark.parametrize(
    ("algorithm", "shuffle"),
    [("lz4", None), ("lz4", 2), ("lz4hc", 4), ("zstd", None), ("zstd", 8), ("deflate", None)],
)
def test_values_of_any_length_come_back(
    algorithm: str, shuffle: int | None, make: Any, length: int
) -> None:
    with (
        Engine(algorithm, backend="sequential", shuffle=shuffle, verify=True) as engine,
        SwapStore(engine) as store,
    ):
        made = records_in(store)
        value = make(3, length)
        for source in (value, bytearray(value), memoryview(value)):
            assert made.put("key", source) == 0
            assert made.get("key") == value
        assert made.get_many(["key", "other", "key"]) == [value, MISSING, value]
        assert made.put_many(["a", "b"], [value, value[:5]], 0) == (2, 0)
        assert made.get("b") == value[:5]
        assert made.fault() is None


def test_a_value_too_long_for_one_call_is_refused_with_advice(values: Records) -> None:
    assert values.most_bytes == MOST
    with pytest.raises(ValueError, match="store it as pages"):
        values.put("key", bytes(MOST + 1))
    with pytest.raises(ValueError, match="store it as pages"):
        values.put_many(["a", "b"], [b"", bytes(MOST + 1)], 0)
    assert values.keys() == []


def test_values_are_compressed_where_that_saves_room(values: Records) -> None:
    values.put("text", text(1))
    values.put("noise", noise(1))
    values.put("short", b"abc")
    assert values.entries.pool_bytes < PAGE + 3 + PAGE // 8


def test_a_damaged_value_says_so_and_the_others_stay(store: SwapStore, values: Records) -> None:
    values.put("good", text(1))
    values.put("bad", text(2))
    handles = np.frombuffer(values.entries.values(Kind.RECORD), np.uint64)
    object_of(store._resources.pool, int(handles[1]))[3] ^= 16
    with pytest.raises(PageError) as damage:
        values.get("bad")
    assert damage.value.errno == -74  # EBADMSG
    good, bad, absent = values.get_many(["good", "bad", "absent"])
    assert (good, absent) == (text(1), MISSING)
    assert isinstance(bad, PageError)
    assert values.get("good") == text(1)
    assert values.remove("bad")


def test_a_value_in_the_file_is_found_there(tmp_path: Path) -> None:
    with (
        Engine("zstd", backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path) as store,
    ):
        made = records_in(store)
        group = store.group("values")
        for number in range(600):
            made.put(number, text(number, 700))
        assert group.writeback(600) == 600
        assert made.entries.pool_bytes == 0
        assert store.check().ok
        found: Any = made.get(77)
        assert isinstance(found, Found)
        gathered = gather(made.entries, found.indices)
        read(store._resources, gathered)
        assert made.finish(found, gathered) == text(77, 700)
        made.put(77, b"new")
        assert made.finish(found, gather(made.entries, found.indices)) is None
        assert not made.remove(77, found)
        assert made.get(77) == b"new"
        assert made.fault() is None
        store.check_invariants()


# Large values


def test_a_large_value_is_kept_as_long_as_its_key(values: Records) -> None:
    one, two = LargeValue([5000], None), LargeValue([6000], None)
    assert values.put_large("key", one) == 0
    assert values.get("key") is one
    assert values.put_large("key", two) == 0
    assert not values.remove("key", one)
    assert values.large_values() == [two]
    assert values.put("key", b"short") == 0
    assert values.large_values() == []
    assert values.put_large("key", one, if_absent=True) < 0
    assert values.large_values() == []
    assert values.put_large("other", one) == 0
    values.clear()
    assert values.large_values() == []


# Deadlines


@pytest.fixture
def clock() -> Iterator[list[float]]:
    moved: list[float] = []
    yield moved
    shift_clock(-sum(moved))


def later(clock: list[float], seconds: float) -> None:
    clock.append(seconds)
    shift_clock(seconds)


def test_a_value_is_gone_when_its_time_is_over(values: Records, clock: list[float]) -> None:
    values.put("short", b"1", deadline=now_ns() + 10**9)
    values.put("long", b"2", deadline=now_ns() + 10**10)
    values.put("ever", b"3")
    assert values.keys() == ["short", "long", "ever"]
    later(clock, 2)
    assert values.keys() == ["long", "ever"]
    assert not values.contains("short")
    assert values.get("short") is MISSING
    assert len(values) == 2
    assert values.put("long", b"4", if_absent=True) < 0
    later(clock, 10)
    assert values.put("long", b"5", if_absent=True) == 0
    assert values.get("long") == b"5"
    assert values.figures()["expirations"] == 2


@pytest.mark.parametrize(("keys", "count", "start"), [(3, 3, -1), (3, 3, 4), (3, 2, 0), (0, 1, 0)])
def test_values_are_as_many_as_keys_and_the_start_is_among_them(
    values: Records, keys: int, count: int, start: int
) -> None:
    with pytest.raises(BadArgument, match=f"{keys} keys need as many values"):
        values.put_many(list(range(keys)), [b"value"] * count, start)
    assert not len(values)


def test_values_whose_time_is_over_go_all_at_once(values: Records, clock: list[float]) -> None:
    soon = now_ns() + 10**9
    for number in range(5000):
        values.put(number, b"%d" % number, deadline=soon if number % 3 else 0)
    later(clock, 2)
    assert len(values) == 5000
    assert values.expire() == 3333
    assert values.keys() == list(range(0, 5000, 3))
    assert values.fault() is None
    assert values.expire() == 0


def test_values_whose_time_is_over_go_as_others_come(values: Records, clock: list[float]) -> None:
    for number in range(1000):
        values.put(number, b"value", deadline=now_ns() + 10**9)
    later(clock, 2)
    for number in range(1000, 2200):
        values.put(number, b"value")
    assert len(values) == 1200


# Without memory


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 1000], ids=["one", "all that follow"])
def test_an_allocation_that_fails_leaves_values_whole(count: int) -> None:
    rng = random.Random(1)
    number = 0
    while True:
        number += 1
        with (
            Engine("zstd", backend="sequential", page_size=512) as engine,
            SwapStore(engine) as store,
        ):
            made = records_in(store)
            made.put("warm", b"warm")
            model = {"warm": b"warm"}
            before = allocations()
            fail_allocation(number, count)
            try:
                for step in range(700):
                    key = f"key {step}"
                    value = rng.randbytes(10)
                    code = made.put(key, value, deadline=now_ns() + 10**15 if step % 50 == 7 else 0)
                    if code == 0:
                        model[key] = value
                    if step % 3 == 1 and made.remove(f"key {step - 1}"):
                        del model[f"key {step - 1}"]
            except MemoryError:
                pass
            reached = allocations() - before >= number
            fail_allocation(0)
            assert made.fault() is None
            store.check_invariants()
            assert dict(zip(made.keys(), made.get_many(made.keys()), strict=True)) == model
            made.put("after", b"after")
            assert made.get("after") == b"after"
        if not reached:
            break
    assert number > 5
