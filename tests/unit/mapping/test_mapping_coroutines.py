"""Coroutines of a mapping leave the event loop free; cached() takes both kinds of functions."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.store_pages import noise

from batchzip import (
    BadArgument,
    CompressedMapping,
    Engine,
    SwapStore,
    cached,
)
from batchzip.core.records import shift_clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie on pages."""


class Noting:
    """A serializer that notes the thread in which it restores a value."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def dumps(self, value: object, /) -> bytes:
        return pickle.dumps(value)

    def loads(self, data: bytes, /) -> object:
        self.threads.append(threading.get_ident())
        return pickle.loads(data)


def test_the_loop_restores_small_values_and_a_thread_restores_others(
    engine: Engine, tmp_path: Path
) -> None:
    noting = Noting()

    async def work(mapping: CompressedMapping) -> None:
        for _ in range(300):  # the time of some of them is measured
            assert await mapping.aget("small") == noise(1, 100)
        assert set(noting.threads) == {threading.get_ident()}
        for key, value in (("large", noise(2, 2 * MOST)), ("cold", noise(3, 100))):
            noting.threads.clear()
            assert await mapping.aget(key) == value
            assert noting.threads
            assert threading.get_ident() not in noting.threads

    with (
        SwapStore(engine, backing=tmp_path) as store,
        CompressedMapping(store, serializer=noting) as mapping,
    ):
        mapping["cold"] = noise(3, 100)
        assert mapping.group.writeback(10) == 1
        mapping.update(small=noise(1, 100), large=noise(2, 2 * MOST))
        asyncio.run(work(mapping))


def test_other_tasks_run_between_reads_of_small_values(mapping: CompressedMapping) -> None:
    order: list[str] = []

    async def read(name: str) -> None:
        for _ in range(3):
            await mapping.aget("key")
            order.append(name)

    async def work() -> None:
        await asyncio.gather(read("a"), read("b"))

    mapping["key"] = b"value"
    asyncio.run(work())
    assert order == ["a", "b"] * 3


# cached


def test_the_key_of_a_call_has_its_function_and_arguments_in_any_order(
    mapping: CompressedMapping,
) -> None:
    def named(*_: object, **__: object) -> bytes:
        return b"result"

    key: Callable[..., Any] = cached(mapping)(named).cache_key  # type: ignore[attr-defined]
    name = f"{__name__}.{named.__qualname__}"
    assert key(1, "a", y=2, x=(3,)) == (name, (1, "a"), (("x", (3,)), ("y", 2)))
    assert key(y=2, x=3) == key(x=3, y=2) != key((("x", 3), ("y", 2)))
    with pytest.raises(BadArgument, match="key must be a function of the arguments, not int"):
        cached(mapping, key=5)  # type: ignore[arg-type]


def test_a_coroutine_function_stays_one_and_its_results_expire(mapping: CompressedMapping) -> None:
    calls: list[int] = []

    @cached(mapping, ttl=5)
    async def twice(number: int) -> bytes:
        """Double it."""
        calls.append(number)
        return b"%d" % (2 * number)

    async def work() -> None:
        assert [await twice(2), await twice(2), await twice(3)] == [b"4", b"4", b"6"]
        assert calls == [2, 3]
        shift_clock(6)
        try:
            assert await twice(2) == b"4"
        finally:
            shift_clock(-6)
        assert calls == [2, 3, 2]

    assert asyncio.iscoroutinefunction(twice)
    assert (twice.__name__, twice.__doc__) == ("twice", "Double it.")
    assert twice.cache is mapping  # type: ignore[attr-defined]
    asyncio.run(work())
    assert twice.cache_key(2) in mapping  # type: ignore[attr-defined]


def test_a_coroutine_that_is_cancelled_leaves_the_call_to_the_next(
    mapping: CompressedMapping,
) -> None:
    begun: list[int] = []

    async def work() -> None:
        begins, go = asyncio.Event(), asyncio.Event()

        @cached(mapping)
        async def slow() -> bytes:
            begun.append(len(begun))
            begins.set()
            await go.wait()
            return b"result %d" % begun[-1]

        tasks = [asyncio.create_task(slow()) for _ in range(3)]
        await begins.wait()
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        go.set()
        assert await asyncio.gather(*tasks[1:]) == [b"result 1", b"result 1"]
        assert begun == [0, 1]

    asyncio.run(work())


def test_nothing_is_kept_of_a_key_that_no_coroutine_asks_for(mapping: CompressedMapping) -> None:
    @cached(mapping)
    async def slow(number: int) -> bytes:
        await asyncio.sleep(0)
        return b"%d" % (1 // number)

    async def work() -> None:
        assert await slow(-1) == b"-1"
        assert inspect.getclosurevars(slow).nonlocals["asked"] == {}
        for number in (0, 1):
            tasks = [asyncio.create_task(slow(number)) for _ in range(4)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[1], asyncio.CancelledError)
            assert number == 0 or {found[0], found[2], found[3]} == {b"1"}
            assert inspect.getclosurevars(slow).nonlocals["asked"] == {}

    asyncio.run(work())


def test_a_look_for_an_absent_key_takes_no_thread(
    mapping: CompressedMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping._resources.threads, "call", None)
    for _ in range(300):  # the time of some of them is measured
        assert asyncio.run(mapping.aget("absent", 5)) == 5


def test_one_that_gives_up_waiting_leaves_the_others_waiting(mapping: CompressedMapping) -> None:
    calls: list[int] = []

    async def work() -> None:
        begins, go = asyncio.Event(), asyncio.Event()

        @cached(mapping)
        async def slow() -> bytes:
            calls.append(1)
            begins.set()
            await go.wait()
            return b"result"

        first, second, third = (asyncio.create_task(slow()) for _ in range(3))
        await begins.wait()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        fourth = asyncio.create_task(slow())
        for _ in range(5):  # it gets as far as it can
            await asyncio.sleep(0)
        go.set()
        assert {*await asyncio.gather(first, third, fourth)} == {b"result"}

    asyncio.run(work())
    assert calls == [1]


def test_a_value_that_is_there_is_found_while_another_coroutine_looks_for_it(
    mapping: CompressedMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    look = mapping.aget

    @cached(mapping)
    async def slow() -> bytes:
        calls.append(1)
        return b"result"

    async def work() -> None:
        looked, go = asyncio.Event(), asyncio.Event()

        async def look_slowly(*arguments: Any) -> Any:
            monkeypatch.undo()
            found = await look(*arguments)
            looked.set()
            await go.wait()
            return found

        monkeypatch.setattr(mapping, "aget", look_slowly)
        late = asyncio.create_task(slow())
        await looked.wait()
        for _ in range(3):
            assert await slow() == b"result"
        go.set()
        assert await late == b"result"

    asyncio.run(work())
    assert calls == [1]
