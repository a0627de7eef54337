"""Keys, serializers, finalizers and signals can use a CompressedMapping within its own calls.

No call hangs, and none sees another one half done.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import pickle
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.store_pages import noise, text

from batchzip import BadArgument, CompressedMapping, Engine, StoreRejected, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

WAIT_S = 20.0
"""Far more than any call takes: what is not done by then hangs."""


def in_time(work: Callable[[], object]) -> None:
    """Have it done in a thread, so that what hangs is a failure and no end of the run."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures.pop()


# Keys

CALLS: dict[str, Callable[[CompressedMapping, Any], object]] = {
    "get": lambda m, key: m.get(key),
    "set": lambda m, key: m.__setitem__(key, noise(2, 90_000)),
    "setdefault": lambda m, key: m.setdefault(key, noise(2, 90_000)),
    "pop": lambda m, key: m.pop(key, None),
    "popitem": lambda m, _: len(m) and m.popitem(),
    "del": lambda m, key: operator.delitem(m, key) if key in m else None,
    "in": lambda m, key: key in m,
    "clear": lambda m, _: m.clear(),
    "copy": lambda m, _: m.copy().close(),
    "or": lambda m, key: (m | {key: b"value"}).close(),
    "items": lambda m, _: (list(m.items()), list(reversed(m))),
    "update": lambda m, key: m.update({key: b"other", "more": b"more"}),
}


class Meddler:
    """Equal to others of its number. All have one hash, so that a dict has to ask."""

    def __init__(self, number: int, meddle: Callable[[], object]) -> None:
        self.number, self.meddle = number, meddle

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        meddle, self.meddle = self.meddle, lambda: None
        meddle()
        return isinstance(other, Meddler) and self.number == other.number


@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", CALLS)
def test_a_key_may_call_the_mapping_while_it_is_compared(
    mapping: CompressedMapping, outer: str, inner: str
) -> None:
    met = (Meddler(1, lambda: None),)
    mapping[met] = text(1, 90_000)
    mapping[Meddler(2, lambda: None),] = text(2)
    mapping["other"] = b"other"

    def meddle() -> None:
        try:
            CALLS[inner](mapping, "other")
            CALLS[inner](mapping, (Meddler(1, lambda: None),))
        except KeyError:  # as a dict's: it went in between
            pass

    def work() -> None:
        for number in (1, 2, 3):
            with contextlib.suppress(KeyError):
                CALLS[outer](mapping, (Meddler(number, meddle),))
            mapping.check_invariants()

    in_time(work)
    assert all(value for _, value in mapping.items())


@pytest.mark.parametrize("outer", CALLS)
def test_a_key_may_wait_for_a_thread_that_uses_the_mapping(
    mapping: CompressedMapping, outer: str
) -> None:
    mapping[Meddler(1, lambda: None),] = text(1)

    def use() -> None:
        mapping["other"] = noise(1)
        mapping.setdefault("third", b"third")
        assert mapping.pop("other", noise(1)) == noise(1)

    in_time(lambda: CALLS[outer](mapping, (Meddler(1, lambda: in_time(use)),)))


def test_the_last_item_is_taken_out_even_if_its_hash_has_changed(
    mapping: CompressedMapping,
) -> None:
    class Changing:
        def __init__(self) -> None:
            self.hash = 1

        def __hash__(self) -> int:
            return self.hash

    one, two = Changing(), Changing()
    mapping["first"] = b"first"
    mapping[one,], mapping[two,] = b"one", b"two"
    one.hash = two.hash = 2
    assert mapping.pop((two,), None) is None
    with pytest.raises(KeyError):
        del mapping[two,]
    assert mapping.popitem() == ((two,), b"two")
    assert mapping.copy().popitem() == ((one,), b"one")
    assert mapping.popitem() == ((one,), b"one")
    assert list(mapping) == ["first"]


class Wrapping(CompressedMapping):
    """Keys of any kind, in tuples."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__((key,), value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__((key,))

    def __delitem__(self, key: Any) -> None:
        super().__delitem__((key,))

    def pop(self, key: Any, *default: Any) -> Any:
        return super().pop((key,), *default)


def test_a_subclass_that_translates_its_keys_is_not_asked(store: SwapStore) -> None:
    with Wrapping(store) as mapping:
        mapping[1.5] = b"value"
        assert mapping.setdefault((1.5,), b"other") == b"value"
        assert mapping.copy().popitem() == ((1.5,), b"value")
        in_time(mapping.popitem)
        assert len(mapping) == 0
        mapping.check_invariants()


# Serializers


class Calling:
    """Calls the mapping once from `dumps` and once from `loads`."""

    def __init__(self) -> None:
        self.call: Callable[[], object] = lambda: None

    def _call(self) -> None:
        call, self.call = self.call, lambda: None
        call()

    def dumps(self, value: object, /) -> bytes:
        self._call()
        return pickle.dumps(value)

    def loads(self, data: bytes, /) -> object:
        self._call()
        return pickle.loads(data)


@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", CALLS)
def test_a_serializer_may_call_the_mapping(store: SwapStore, outer: str, inner: str) -> None:
    serializer = Calling()
    with CompressedMapping(store, serializer=serializer) as mapping:
        for number in (1, 2):
            mapping["key"], mapping["other"] = text(number, 90_000), b"other"
            serializer.call = partial(CALLS[inner], mapping, ("key", "other")[number - 1])
            try:
                in_time(lambda: CALLS[outer](mapping, "key"))
            except KeyError:
                assert inner in ("pop", "popitem", "del", "clear")
            mapping.check_invariants()
            assert mapping.get("key") in (
                None,
                b"value",
                b"other",
                text(number, 90_000),
                noise(2, 90_000),
            )


def test_a_value_that_is_replaced_while_it_is_taken_out_is_not_lost(store: SwapStore) -> None:
    serializer = Calling()
    with CompressedMapping(store, serializer=serializer) as mapping:
        takes: list[Callable[[], object]] = [
            lambda: mapping.pop("key"),
            lambda: mapping.popitem()[1],
        ]
        for take in takes:
            mapping["key"] = "old"
            serializer.call = lambda: mapping.__setitem__("key", "new")
            assert take() == "new"
            assert "key" not in mapping


def test_a_value_that_cannot_be_read_is_not_taken_out(store: SwapStore) -> None:
    class Refusing(Calling):
        def loads(self, data: bytes, /) -> object:
            if (value := super().loads(data)) == "unreadable":
                raise ZeroDivisionError
            return value

    serializer = Refusing()
    with CompressedMapping(store, serializer=serializer) as mapping:
        takes: list[Callable[[], object]] = [lambda: mapping.pop("key"), mapping.popitem]
        for take in takes:
            mapping["key"] = "unreadable"
            with pytest.raises(ZeroDivisionError):
                take()
            mapping["key"] = "readable"
            serializer.call = lambda: mapping.__setitem__("key", "unreadable")
            with pytest.raises(ZeroDivisionError):
                take()
            assert list(mapping) == ["key"]
            mapping.check_invariants()


# Finalizers, signal handlers


def every_call(mapping: CompressedMapping) -> None:
    for name, call in CALLS.items():
        if name not in ("clear", "popitem"):
            call(mapping, "mine")
    mapping.pop("mine", None)
    assert mapping.setdefault("mine", text(3)) == text(3)
    del mapping["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("outer", CALLS)
def test_it_can_be_used_before_every_line_of_every_call(
    mapping: CompressedMapping, outer: str
) -> None:
    step = 0
    reached = True
    while reached:
        step += 1
        mapping["key"] = text(1, 90_000)
        left, reached = step, False

        def on_line(_frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal left, reached
            left -= event == "line"
            if left == 0 and not reached:
                reached = True
                sys.settrace(None)
                every_call(mapping)
            return on_line

        def on_call(frame: FrameType, _event: str, _arg: object) -> Any:
            return on_line if Path(frame.f_code.co_filename).parent.name == "mapping" else None

        before = sys.gettrace()
        sys.settrace(on_call)
        try:
            CALLS[outer](mapping, "key")
        finally:
            sys.settrace(before)
        mapping.check_invariants()
    assert step > 1


@pytest.mark.slow
def test_a_finalizer_may_drop_keys_wherever_the_collector_comes(mapping: CompressedMapping) -> None:
    class Tile:
        def __init__(self, number: int) -> None:
            self.number, self.me = number, self  # a cycle: only the collector frees it

        def __del__(self) -> None:
            assert mapping.pop(("tile", self.number)) == bytes([self.number % 256]) * 900

    before = gc.get_threshold()

    def work() -> None:
        for number in range(3000):
            gc.set_threshold(5 + number % 97)
            mapping["tile", number] = bytes([number % 256]) * 900
            mapping["one"] = b"value"
            Tile(number)

    try:
        in_time(work)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert list(mapping) == ["one"]


@pytest.mark.slow
def test_signal_handlers_use_it_in_the_middle_of_anything(mapping: CompressedMapping) -> None:
    handled = 0

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal handled
        handled = number = handled + 1  # the next signal may come before this one is done
        mapping["mine", number] = noise(number)
        assert mapping.pop(("mine", number)) == noise(number)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        turn = 0
        while handled < 200:
            turn += 1
            mapping["key"] = text(turn, 90_000)
            assert mapping["key"] == text(turn, 90_000)
            assert mapping.pop("key") == text(turn, 90_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(mapping) == 0


# What is closed, lost, or fails


def test_a_mapping_that_is_lost_gives_its_pages_back(store: SwapStore) -> None:
    mapping = CompressedMapping(store, name="lost")
    mapping["key"] = noise(1, 50_000)
    group = mapping.group
    with pytest.raises(BadArgument, match="already has a group 'lost'"):
        CompressedMapping(store, name="lost")
    del mapping
    assert group.closed
    assert not store.groups
    with CompressedMapping(store, name="lost") as again:
        assert len(again) == 0


def test_joining_and_copying_are_as_with_dicts(mapping: CompressedMapping) -> None:
    mapping.update({"a": b"1", "b": text(2, 90_000)})
    model = dict(mapping)
    with mapping.copy() as copy, mapping | {"b": b"2", "c": b"3"} as more:
        first: Any = {"b": b"0", "c": b"3"}
        with first | mapping as other, mapping | mapping as same:
            assert list(other.items()) == list(({"b": b"0", "c": b"3"} | model).items())
            assert dict(same) == model
        mapping["a"] = b"9"
        assert dict(copy) == model
        assert list(more.items()) == list((model | {"b": b"2", "c": b"3"}).items())
        assert list(reversed(more)) == ["c", "b", "a"]
    mapping |= [("d", b"4")]
    mapping |= {"e": b"5"}
    assert list(mapping) == ["a", "b", "d", "e"]
    wrong: Any = [("d", b"4")]
    with pytest.raises(TypeError):
        mapping | wrong
    with pytest.raises(TypeError):
        wrong | mapping


def test_a_copy_of_an_array_is_written_to_as_the_first_was(store: SwapStore) -> None:
    with CompressedMapping(store, serializer="pickle", max_bytes=1 << 20) as mapping:
        mapping["a"] = [1, "two", bytearray(10_000)]
        with mapping.copy() as copy:
            assert copy["a"] == mapping["a"]
            assert copy.group.max_bytes == 1 << 20
            copy["a"] = None
        assert mapping["a"] == [1, "two", bytearray(10_000)]


def test_a_copy_that_finds_no_room_leaves_nothing(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=1 << 20) as store, CompressedMapping(store) as mapping:
        mapping["one"], mapping["two"] = noise(1, 300_000), noise(2, 300_000)
        for call in (mapping.copy, lambda: mapping | {"three": noise(3, 300_000)}):
            with pytest.raises(StoreRejected):
                call()
            assert list(store.groups) == [mapping.group.name]
        mapping.check_invariants()
