"""A CompressedMapping gives back what was put in, whatever fails, is cut short, or happens at once."""

from __future__ import annotations

import itertools
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.entries import flip
from support.forked import in_forked_child
from support.interrupt_lines import interrupted_at
from support.store_pages import noise, text

from batchzip import (
    BadArgument,
    BatchzipError,
    ClosedError,
    CompressedMapping,
    CorruptPage,
    Engine,
    ForkedProcess,
    NotStorable,
    StoreRejected,
    SwapStore,
)
from batchzip.core.indices import IndexSpace
from batchzip.mapping.serializers.pickles import PicklePacker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchzip.core.indices import IndexReservation

PAGE = 4096
MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie on pages."""


@pytest.fixture
def mapping(store: SwapStore) -> Iterator[CompressedMapping]:
    with CompressedMapping(store) as mapping:
        yield mapping
        mapping.check_invariants()


# Values


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
def test_what_has_no_bytes_is_refused_and_the_key_keeps_what_it_had(
    mapping: CompressedMapping, value: object
) -> None:
    mapping["key"] = b"old"
    with pytest.raises(NotStorable, match="the value"):
        mapping["key"] = value
    assert mapping["key"] == b"old"


def test_sizes_are_those_of_the_values_and_of_what_is_stored(mapping: CompressedMapping) -> None:
    assert (mapping.nbytes, mapping.cbytes, mapping.cratio) == (0, 0, 1.0)
    mapping["zeros"] = bytes(20 * PAGE)
    assert (mapping.nbytes, mapping.cbytes) == (20 * PAGE, 0)
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
def test_what_is_no_serializer_is_refused(store: SwapStore, serializer: Any) -> None:
    with pytest.raises(BadArgument, match=r"serializer is 'arrow', 'bytes', .* or an object"):
        CompressedMapping(store, serializer=serializer)
    assert not store.groups


# The store it lies in


def test_others_in_the_store_are_not_touched(store: SwapStore) -> None:
    store.store(0, text(0))
    one, two = CompressedMapping(store), CompressedMapping(store)
    named = CompressedMapping(store, name="named", max_bytes=1 << 20)
    for number, each in enumerate((one, two, named)):
        each["key"] = b"%d" % number
    assert [each["key"] for each in (one, two, named)] == [b"0", b"1", b"2"]
    assert store.load(0) == text(0)
    assert named.group.max_bytes == 1 << 20
    with pytest.raises(BadArgument, match="a group 'named' already"):
        CompressedMapping(store, name="named")


def test_cold_values_go_to_the_backing_file_and_come_from_there(
    engine: Engine, tmp_path: Path
) -> None:
    values = {f"key {n}": noise(n, MOST + 1000) for n in range(30)}
    with (
        SwapStore(engine, max_pool_bytes=1 << 20, backing=tmp_path) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping.update(values)
        counters = mapping.group.counters
        assert counters.backed_pages > 0
        assert mapping.cbytes >= 30 * MOST > store.counters.pool_total_size
        assert dict(mapping) == values
        mapping.group.writeback(600)
        assert mapping.group.counters.stored_pages == 0
        assert dict(mapping) == values
        mapping.check_invariants()


@pytest.mark.parametrize("limits", [(1 << 20, None), (None, 1 << 20)], ids=["store", "mapping"])
def test_a_value_that_is_rejected_leaves_the_old_one(
    engine: Engine, limits: tuple[int | None, int | None]
) -> None:
    with (
        SwapStore(engine, max_pool_bytes=limits[0]) as store,
        CompressedMapping(store, max_bytes=limits[1]) as mapping,
    ):
        mapping["old"] = text(1, 50_000)
        for key in ("old", "new"):
            with pytest.raises(StoreRejected) as rejection:
                mapping[key] = noise(1, 4 << 20)
            mapping.check_invariants()
            assert rejection.value.reason == "pool_limit_hit"
            assert dict(mapping) == {"old": text(1, 50_000)}
        with pytest.raises(StoreRejected):
            mapping.setdefault("new", noise(1, 4 << 20))
        assert list(mapping) == ["old"]


def test_a_value_of_several_buffers_that_is_rejected_halfway_leaves_the_old_one(
    engine: Engine,
) -> None:
    with (
        SwapStore(engine, max_pool_bytes=1 << 20) as store,
        CompressedMapping(store, serializer="pickle") as mapping,
    ):
        mapping["key"] = "old"
        random = np.random.default_rng(1)
        with pytest.raises(StoreRejected):
            mapping["key"] = [random.bytes(100), *random.random((20, 1 << 14))]
        mapping.check_invariants()
        assert mapping["key"] == "old"


def test_a_full_backing_file_leaves_the_old_value(engine: Engine, tmp_path: Path) -> None:
    with (
        SwapStore(
            engine, max_pool_bytes=1 << 20, backing=tmp_path, max_backing_bytes=1 << 20
        ) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping["key"] = b"old"
        with pytest.raises(StoreRejected) as rejection:
            mapping["key"] = noise(1, 8 << 20)
        assert rejection.value.reason == "reject_reclaim_fail"
        assert mapping["key"] == b"old"
        mapping.check_invariants()


def test_a_damaged_value_is_named_and_others_stay_readable(mapping: CompressedMapping) -> None:
    mapping["good"] = text(1, 100_000)
    mapping["bad"] = noise(2, 100_000)
    flip(mapping.group, 30)
    for call in (mapping.__getitem__, mapping.pop):
        with pytest.raises(CorruptPage) as damage:
            call("bad")
        assert "key 'bad'" in str(damage.value)
    assert mapping["good"] == text(1, 100_000)
    assert "bad" in mapping
    del mapping["bad"], damage  # whose frames hold the value


# Indices


def test_indices_of_values_that_are_gone_are_used_again(mapping: CompressedMapping) -> None:
    for turn in range(50):
        for length in (1, 5000, 20_000, MOST + 1, MOST + 9000, 300):
            mapping["key", length] = noise(turn, length)
        if turn % 3:
            del mapping["key", 5000]
            del mapping["key", MOST + 1]
    mapping.check_invariants()
    assert mapping._pages.space.end < 80


def test_neighbours_that_are_free_are_joined(store: SwapStore) -> None:
    space = IndexSpace(store.group("numbered")._entries)
    held = [space.reserve(1) for _ in range(1000)]
    assert space.end == 1000
    held.clear()
    held.extend(space.reserve(length) for length in (100, 700, 200))
    assert space.end == 1000
    space.check_invariants()


def test_indices_are_not_given_out_while_anybody_holds_them(store: SwapStore) -> None:
    group = store.group("numbered")
    space = IndexSpace(group._entries)
    first: IndexReservation | None = space.reserve(3)
    reader = first
    group.store(0, [noise(at) for at in range(6)])
    first = None
    assert space.reserve(3).first == 3
    assert [at in group for at in range(6)] == [True] * 3 + [False] * 3
    del reader
    assert len(group) == 0
    assert first is None


class Indices(RuleBasedStateMachine):
    """Ranges that are held never meet, and what is free has no pages."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine("lz4", backend="sequential", page_size=512)
        self.store = SwapStore(self.engine)
        self.group = self.store.group("numbered")
        self.space = IndexSpace(self.group._entries)
        self.held: list[IndexReservation] = []

    @rule(count=st.integers(1, 9))
    def reserve(self, count: int) -> None:
        reservation = self.space.reserve(count)
        indices = range(reservation.first, reservation.first + count)
        assert not any(index in self.group for index in indices)
        self.group.store(reservation.first, [text(index, 512) for index in indices])
        self.held.append(reservation)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @rule(times=st.integers(60, 140))
    def churn(self, times: int) -> None:
        for _ in range(times):
            self.space.reserve(2)

    @invariant()
    def whole(self) -> None:
        self.space.check_invariants()
        assert len(self.group) == self.space.taken == sum(each.count for each in self.held)

    def teardown(self) -> None:
        self.store.close()
        self.engine.close()


TestIndices = Indices.TestCase


# Against a dict


class AgainstADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine("lz4", backend="sequential", page_size=512)
        self.store = SwapStore(self.engine)
        self.mapping = CompressedMapping(self.store)
        self.model: dict[str, bytes] = {}

    keys = st.sampled_from("abcdef")
    lengths = st.integers(0, 2000) | st.sampled_from([511, 512, 513, MOST - 1, MOST, MOST + 1])
    values = st.builds(noise, st.integers(0, 99), lengths) | st.builds(text, st.just(1), lengths)

    @rule(key=keys, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.mapping[key] = self.model[key] = value

    @rule(key=keys, value=values)
    def setdefault(self, key: str, value: bytes) -> None:
        assert self.mapping.setdefault(key, value) == self.model.setdefault(key, value)

    @rule(key=keys)
    def pop(self, key: str) -> None:
        assert self.mapping.pop(key, None) == self.model.pop(key, None)

    @rule()
    def popitem(self) -> None:
        if self.model:
            assert self.mapping.popitem() == self.model.popitem()

    @rule()
    def clear(self) -> None:
        self.mapping.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        assert list(self.mapping.items()) == list(self.model.items())
        assert self.mapping.nbytes == sum(map(len, self.model.values()))
        self.mapping.check_invariants()

    def teardown(self) -> None:
        self.store.check_invariants()
        self.mapping.close()
        assert self.store.counters.stored_pages == 0
        self.store.close()
        self.engine.close()


TestAgainstADict = AgainstADict.TestCase


# At once, cut short, at the end


def test_threads_that_read_and_replace_one_key_get_whole_values(
    mapping: CompressedMapping,
) -> None:
    values = {text(n, 9000 + n) for n in range(20)} | {text(n, MOST + n) for n in range(1, 20)}
    mapping["key"] = next(iter(values))
    wrong: list[object] = []
    done = threading.Event()

    def write() -> None:
        for value in [*values] * 5:
            mapping["key"] = value

    def read() -> None:
        while not done.is_set():
            try:
                if (value := mapping["key"]) not in values:
                    wrong.append(value)
            except BaseException as error:  # noqa: BLE001 - told by the test
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not wrong


def test_of_threads_that_pop_or_set_a_default_one_gets_it(mapping: CompressedMapping) -> None:
    got: list[object] = []
    start = threading.Barrier(4)

    def work() -> None:
        for turn in range(50):
            start.wait()
            mapping.setdefault("key", b"%d" % turn)
            start.wait()
            got.append(mapping.pop("key", None))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(value for value in got if isinstance(value, bytes)) == sorted(
        b"%d" % turn for turn in range(50)
    )
    assert len(got) == 200


def of_the_mapping(file: Path) -> bool:
    return file.parent.name == "mapping"


# On pages: what is shorter is stored in one step.
OLD, NEW = noise(1, MOST + 9000), text(2, MOST + 5000)
INTERRUPTED: dict[str, tuple[Callable[[CompressedMapping], object], list[object]]] = {
    "replace": (lambda m: m.__setitem__("key", NEW), [OLD, NEW]),
    "new": (lambda m: m.__setitem__("new", NEW), [OLD]),
    "get": (lambda m: m["key"], [OLD]),
    "delete": (lambda m: m.__delitem__("key"), [OLD, None]),
    "pop": (lambda m: m.pop("key"), [OLD, None]),
    "popitem": (lambda m: m.popitem(), [OLD, None]),
    "setdefault": (lambda m: m.setdefault("new", NEW), [OLD]),
    "clear": (lambda m: m.clear(), [OLD, None]),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", INTERRUPTED)
def test_an_interrupt_at_any_line_leaves_the_old_value_or_the_new_one(
    engine: Engine, call: str
) -> None:
    work, allowed = INTERRUPTED[call]
    torn = []
    for step in itertools.count(1):
        with SwapStore(engine) as store, CompressedMapping(store) as mapping:
            mapping["gap"] = NEW
            mapping["other"] = NEW
            mapping["key"] = OLD
            del mapping["gap"]
            place = interrupted_at(
                step,
                lambda mapping=mapping: work(mapping),  # type: ignore[misc]
                of_the_mapping,
            )
            try:
                assert mapping.get("key") in allowed
                assert mapping.get("new") in (NEW, None)
                assert mapping.get("other", NEW) == NEW
                mapping.check_invariants()
                mapping["key"] = mapping["after"] = OLD
                assert mapping["key"] == mapping["after"] == OLD
                mapping.check_invariants()
                store.check_invariants()
            except (AssertionError, BatchzipError) as error:
                torn.append(f"{place}: {error}")
        if place is None:
            break
    assert not torn, "\n".join(torn)


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
