"""cached() calls a function once for each key, also where it is a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from batchzip import (
    BadArgument,
    ClosedError,
    CompressedMapping,
    SwapStore,
    cached,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# Time


# cached


def test_a_function_is_called_once_for_each_key(zstd: SwapStore) -> None:
    calls: list[object] = []
    with CompressedMapping(zstd, serializer="pickle") as mapping:

        @cached(mapping)
        def square(x: int, *, offset: int = 0) -> int | None:
            """Square it."""
            calls.append((x, offset))
            return x * x + offset if x else None

        assert [square(3), square(3), square(3, offset=1), square(0), square(0)] == [
            9,
            9,
            10,
            None,
            None,
        ]
        assert calls == [(3, 0), (3, 1), (0, 0)]
        assert square.__doc__ == "Square it."
        assert square.cache is mapping  # type: ignore[attr-defined]
        del mapping[square.cache_key(3)]  # type: ignore[attr-defined]
        square(3)
        assert calls[-1] == (3, 0)


def test_a_key_of_ones_own_and_a_time_are_used(
    zstd: SwapStore, later: Callable[[float], None]
) -> None:
    calls: list[str] = []
    with CompressedMapping(zstd) as mapping:

        @cached(mapping, key=str.lower, ttl=5)
        def page(url: str) -> bytes:
            calls.append(url)
            return url.encode()

        assert page("A") == page("a") == b"A"
        later(6)
        assert page("a") == b"a"
        assert calls == ["A", "a"]
        assert list(mapping) == ["a"]


def test_errors_of_the_function_are_not_cached(zstd: SwapStore) -> None:
    with CompressedMapping(zstd) as mapping:

        @cached(mapping)
        def fail() -> bytes:
            raise KeyError("it failed")

        for _ in range(2):
            with pytest.raises(KeyError, match="it failed"):
                fail()
        assert len(mapping) == 0


def test_coroutines_wait_for_the_first_of_their_key(zstd: SwapStore) -> None:
    calls: list[int] = []
    with CompressedMapping(zstd, serializer="pickle") as mapping:

        @cached(mapping)
        async def slow(number: int) -> int:
            calls.append(number)
            await asyncio.sleep(0)
            if not number and calls.count(0) == 1:
                raise ZeroDivisionError
            return number

        async def work() -> list[Any]:
            return await asyncio.gather(
                *(slow(number % 2) for number in range(20)), return_exceptions=True
            )

        found = asyncio.run(work())
        assert sum(isinstance(each, ZeroDivisionError) for each in found) == 1
        assert len(calls) == 3
        assert all(each == number % 2 for number, each in enumerate(found) if isinstance(each, int))


def test_a_coroutine_that_looked_before_the_first_had_stored_does_not_call_again(
    zstd: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    with CompressedMapping(zstd, serializer="pickle") as mapping:
        look = mapping.aget

        @cached(mapping)
        async def slow(number: int) -> int:
            calls.append(number)
            return number

        async def work() -> None:
            looked, stored = asyncio.Event(), asyncio.Event()

            async def look_slowly(*arguments: Any) -> Any:
                monkeypatch.undo()
                found = await look(*arguments)
                looked.set()
                await stored.wait()
                return found

            monkeypatch.setattr(mapping, "aget", look_slowly)
            late = asyncio.create_task(slow(7))
            await looked.wait()
            assert await slow(7) == 7
            stored.set()
            assert await late == 7

        asyncio.run(work())
        assert calls == [7]


@pytest.mark.parametrize("options", [{"key": 5}, {"mapping": {}}])
def test_odd_arguments_of_cached_are_refused(zstd: SwapStore, options: dict[str, Any]) -> None:
    with CompressedMapping(zstd) as mapping, pytest.raises(BadArgument):
        cached(options.pop("mapping", mapping), **options)


def test_a_mapping_whose_group_was_dropped_refuses_calls(zstd: SwapStore) -> None:
    mapping = CompressedMapping(zstd)
    mapping["key"] = b"value"
    zstd.drop_group(mapping.group.name)
    for call in (lambda: mapping["key"], lambda: mapping.update(a=b"a"), lambda: "key" in mapping):
        with pytest.raises(ClosedError):
            call()
    with contextlib.suppress(ClosedError):
        mapping.close()
