"""Records: values of a mapping in the core, against an ordered dict, with deadlines, and without memory."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.pool_memory import object_of
from support.store_pages import noise, text

from batchzip import Engine, PageError, SwapStore
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

    from batchzip.core.ring import Ring

PAGE = 4096
MOST = 64 << 10


def records_in(store: SwapStore, name: str = "values") -> Records:
    """Make the records of a group of a store, with its engine's codec."""
    made = Records(store.group(name)._entries, "CompressedMapping")
    writer = store._resources.writer
    made.use_codec(writer.number, writer.engine.backend.coders)
    return made


@pytest.fixture(params=["lz4", "zstd"])
def store(request: pytest.FixtureRequest) -> Iterator[SwapStore]:
    with Engine(request.param, backend="sequential") as engine, SwapStore(engine) as store:
        yield store


@pytest.fixture
def values(store: SwapStore) -> Iterator[Records]:
    made = records_in(store)
    yield made
    assert made.fault() is None
    store.check_invariants()


# Keys

PLAIN = st.recursive(
    st.text() | st.binary() | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)


@given(key=PLAIN)
def test_a_key_comes_back_as_it_was(key: Any) -> None:
    back = decode(encode(key))
    assert repr(back) == repr(key)


@given(one=PLAIN, other=PLAIN)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_keys_are_one_if_a_dict_has_them_as_one(one: Any, other: Any) -> None:
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


def test_tuples_in_tuples_have_an_end(values: Records) -> None:
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
@pytest.mark.parametrize("shuffle", [None, 2, 4, 8])
@pytest.mark.parametrize("algorithm", ["lz4", "lz4hc", "zstd", "deflate"])
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


def test_what_is_too_long_for_one_call_belongs_on_pages(values: Records) -> None:
    assert values.most_bytes == MOST
    with pytest.raises(ValueError, match="belongs on pages"):
        values.put("key", bytes(MOST + 1))
    with pytest.raises(ValueError, match="belongs on pages"):
        values.put_many(["a", "b"], [b"", bytes(MOST + 1)], 0)
    assert values.keys() == []


def test_what_takes_less_room_compressed_is_compressed(values: Records) -> None:
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


# Against an ordered dict


class AgainstAnOrderedDict(RuleBasedStateMachine):
    """Many keys, so that blocks fill, empty and join."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine("lz4", backend="sequential", page_size=512)
        self.store = SwapStore(self.engine)
        self.values = records_in(self.store)
        self.model: OrderedDict[int, tuple[bytes, float]] = OrderedDict()
        self.time = 0.0
        self.used: OrderedDict[int, None] = OrderedDict()

    def live(self) -> dict[int, bytes]:
        return {
            key: value
            for key, (value, until) in self.model.items()
            if not until or until > self.time
        }

    @rule(first=st.integers(0, 2000), count=st.integers(1, 700), seed=st.integers(0, 9))
    def put(self, first: int, count: int, seed: int) -> None:
        until = self.time + 5 if seed == 1 else 0
        deadline = now_ns() + 5 * 10**9 if until else 0
        keys = list(range(first, first + count))
        made = [noise(key + seed, (key * 7 + seed) % 40) for key in keys]
        assert self.values.put_many(keys, made, 0, deadline=deadline) == (count, 0)
        for key, value in zip(keys, made, strict=True):
            self.model[key] = value, until

    @rule(first=st.integers(0, 2000), count=st.integers(1, 700), step=st.integers(1, 3))
    def remove(self, first: int, count: int, step: int) -> None:
        live = self.live()
        for key in range(first, first + count, step):
            assert self.values.remove(key) == (key in live)
            self.model.pop(key, None)

    @rule(first=st.integers(0, 2000), count=st.integers(1, 200))
    def get(self, first: int, count: int) -> None:
        live = self.live()
        keys = list(range(first, first + count))
        assert self.values.get_many(keys) == [live.get(key, MISSING) for key in keys]

    @rule()
    def wait(self) -> None:
        shift_clock(6)
        self.time += 6
        self.values.expire()
        for key in [key for key in self.model if key not in self.live()]:
            del self.model[key]

    @precondition(lambda self: self.model)
    @rule(share=st.integers(0, 4))
    def shrink(self, share: int) -> None:
        before = len(self.values)
        target = self.values.entries.pool_bytes * share // 4
        gone = self.values.shrink(target)
        assert len(self.values) == before - gone
        assert self.values.entries.pool_bytes <= target
        kept = set(self.values.keys())
        for key in [key for key in self.model if key not in kept]:
            del self.model[key]

    @rule()
    def clear(self) -> None:
        self.values.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        assert self.values.fault() is None
        assert self.values.keys() == list(self.live())
        last = self.values.last()
        assert last == list(self.model)[-1:]

    def teardown(self) -> None:
        shift_clock(-self.time)
        self.store.check_invariants()
        self.store.close()
        self.engine.close()


TestAgainstAnOrderedDict = AgainstAnOrderedDict.TestCase


# Without memory


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


# Lanes


@pytest.fixture(params=["lz4", "zstd"])
def lanes(request: pytest.FixtureRequest) -> Iterator[tuple[SwapStore, Records, tuple[Ring, ...]]]:
    with (
        Engine(request.param, backend="threads", workers=3) as engine,
        SwapStore(engine) as store,
    ):
        made = records_in(store)
        assert engine.wait_ready()
        made.divider.generous = True  # whether it pays or not
        yield store, made, engine.backend.rings
        assert made.fault() is None
        store.check_invariants()
        for ring in engine.backend.rings:
            assert ring.is_unused
            ring.check_invariants()


def divided(store: SwapStore) -> tuple[int, int]:
    found = store.engine.statistics
    return found.compress.divided, found.decompress.divided


def some_values(count: int) -> list[bytes]:
    """Make values of all kinds: text, noise, none, single bytes, whole pages."""
    lengths = [1500, 0, 300, 1, PAGE, 2000, 77]
    return [
        (noise if key % 5 == 3 else text)(key, lengths[key % len(lengths)]) for key in range(count)
    ]


def test_lanes_help_with_batches(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(3000)), some_values(3000)
    assert made.put_many(keys, values, 0, rings=rings) == (3000, 0)
    assert made.keys() == keys
    assert made.get_many([*keys, "absent"], rings=rings) == [*values, MISSING]
    assert made.get_many(["absent"] * 500, rings=rings) == [MISSING] * 500
    assert made.get_many([], rings=rings) == []
    assert made.put_many([], [], 0, rings=rings) == (0, 0)
    assert min(divided(store)) > 10
    assert [made.get(key) for key in keys] == values
    # Once more, in the place of what is there, from the middle on, and a piece at a time.
    done, code = 1000, 0
    while done < 3000 and not code:
        before = done
        done, code = made.put_many(keys, values[::-1], done, most=100_000, rings=rings)
        assert before < done < before + 1000
    assert code == 0
    assert made.get_many(keys) == values[:1000] + values[::-1][1000:]


def test_a_limit_holds_with_lanes(lanes: tuple[SwapStore, Records, tuple[Ring, ...]]) -> None:
    store, made, rings = lanes
    keys, values = list(range(2000)), [noise(key, 1000) for key in range(2000)]
    assert made.put_many(keys, values, 0, limit=1_000_000, rings=rings) == (1000, -errno.EDQUOT)
    assert divided(store)[0] > 1
    assert made.keys() == keys[:1000]
    assert made.put_many(keys, values, 1000, rings=rings) == (2000, 0)
    assert made.get_many(keys, rings=rings) == values


def test_what_fails_in_a_batch_fails_with_lanes_too(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(1000)), some_values(1000)
    values[600:601] = [3]  # type: ignore[list-item] # no buffer
    with pytest.raises(TypeError):
        made.put_many(keys, values, 0, rings=rings)
    there = made.keys()
    assert there == keys[: len(there)]
    assert 400 < len(there) <= 600
    values[600:601] = [b"x" * (MOST + 1)]
    with pytest.raises(ValueError, match="page"):
        made.put_many(keys, values, 0, rings=rings)
    keys[600], values[600] = 0.5, b"x"  # type: ignore[call-overload]
    with pytest.raises(NotPlain):
        made.put_many(keys, values, 0, rings=rings)
    with pytest.raises(NotPlain):
        made.get_many(keys, rings=rings)
    assert made.get_many(there, rings=rings) == values[: len(there)]
    assert min(divided(store)) > 1


def test_damaged_values_are_told_apart_by_lanes(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(1000)), [text(key, 1500) for key in range(1000)]
    assert made.put_many(keys, values, 0, rings=rings) == (1000, 0)
    handles = np.frombuffer(made.entries.values(Kind.RECORD), np.uint64)
    damaged = store._resources.pool.read(int(handles[500]))
    store._resources.pool.write(int(handles[500]), bytes(reversed(damaged)))
    found = made.get_many(keys, rings=rings)
    failed = [key for key in keys if isinstance(found[key], PageError)]
    assert len(failed) == 1
    assert found[failed[0]].errno == -errno.EBADMSG
    assert [each for key, each in enumerate(found) if key not in failed] == [
        value for key, value in enumerate(values) if key not in failed
    ]
    assert made.entries.figures()["records"] == 1000


def test_values_go_on_where_lanes_have_ended(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(1000)), some_values(1000)
    assert made.put_many(keys, values, 0, rings=rings) == (1000, 0)
    before = divided(store)
    store.engine.close()
    assert made.put_many(keys, values[::-1], 0, rings=rings) == (1000, 0)
    assert made.get_many(keys, rings=rings) == values[::-1]
    assert divided(store) == before


def test_workers_take_no_values() -> None:
    with Engine("lz4", backend="workers", workers=1) as engine, SwapStore(engine) as store:
        made = records_in(store)
        keys, values = list(range(500)), some_values(500)
        for _ in range(2):
            assert made.put_many(keys, values, 0, rings=engine.backend.rings) == (500, 0)
            assert made.get_many(keys, rings=engine.backend.rings) == values
        assert made.fault() is None


def test_single_calls_wait_for_those_that_take_long(store: SwapStore) -> None:
    # They try to do without giving up the GIL, and `keys` has the mutex for longer than they try.
    made = records_in(store)
    assert made.put_many(list(range(20_000)), [b"value"] * 20_000, 0) == (20_000, 0)
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            made.keys()

    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        for turn in range(150):
            assert made.put(-turn - 1, b"%d" % turn) == 0
            assert made.get(-turn - 1) == b"%d" % turn
            assert made.contains(-turn - 1)
            assert made.remove(turn)
            assert len(made) == 20_000
        over.set()
        for each in looking:
            each.result()
    assert made.fault() is None


def test_the_largest_batches_are_done_in_pieces(values: Records) -> None:
    keys = list(range(64 * 3 + 1))
    assert values.put_many(keys, [b"%d" % key for key in keys], 0) == (len(keys), 0)
    assert values.get_many(keys[::-1]) == [b"%d" % key for key in keys[::-1]]
