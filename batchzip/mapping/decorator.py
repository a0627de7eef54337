"""cached: a decorator that caches the results of a function in a mapping.

    call ─▶ key ─▶ mapping ─▶ hit:  the value
                           └▶ miss: the function ─▶ the mapping ─▶ the value

If several threads miss the same key at once, each calls the function, as with functools.lru_cache.
Coroutines of one event loop wait for the first one instead. Exceptions of the function are not
cached.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from batchzip.arguments.checks import check_kind
from batchzip.core.records import MISSING
from batchzip.errors import BadArgument
from batchzip.mapping.compressed import CompressedMapping

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def cached(
    mapping: CompressedMapping,
    *,
    key: Callable[..., Any] | None = None,
    ttl: float | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Cache the results of a function or coroutine function in `mapping`.

        cache = batchzip.CompressedMapping(serializer="pickle", max_bytes=64 << 20, on_full="evict")

        @batchzip.cached(cache)
        def page(url): ...

    `key`   is called with the arguments and returns the mapping's key. By default, the key consists
            of the function's name and its arguments, which must then be valid in keys.
    `ttl`   is the time to live of a result, in seconds. By default it is the mapping's.

    The decorated function has two more attributes: `cache` is the mapping, and `cache_key` returns
    the key of a call. Raise BadArgument if `mapping` is no CompressedMapping or `key` no function.

    Examples:
        >>> import batchzip
        >>> with batchzip.CompressedMapping(serializer="pickle") as cache:
        ...     @batchzip.cached(cache, ttl=60)
        ...     def squares(n):
        ...         print("computing", n)
        ...         return [k * k for k in range(n)]
        ...     squares(4), squares(4)
        ...     squares.cache_key(4) in cache
        computing 4
        ([0, 1, 4, 9], [0, 1, 4, 9])
        True
    """
    check_kind(mapping, "mapping", CompressedMapping)
    if key is not None and not callable(key):
        raise BadArgument(f"key must be a function of the arguments, not {type(key).__name__}")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = f"{function.__module__}.{function.__qualname__}"

        def cache_key(*args: Any, **kwargs: Any) -> Any:
            if key is not None:
                return key(*args, **kwargs)
            return (name, args, tuple(sorted(kwargs.items())))

        if inspect.iscoroutinefunction(function):
            wrapper = _async(mapping, function, cache_key, ttl)
        else:

            @functools.wraps(function)
            def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
                where = cache_key(*args, **kwargs)
                value = mapping.get(where, MISSING)
                if value is MISSING:
                    value = function(*args, **kwargs)
                    mapping.set(where, value, ttl=ttl)
                return value  # type: ignore[no-any-return] # a result of the function

        wrapper.cache = mapping  # type: ignore[attr-defined]
        wrapper.cache_key = cache_key  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _async(
    mapping: CompressedMapping,
    function: Callable[..., Any],
    cache_key: Callable[..., Any],
    ttl: float | None,
) -> Callable[..., Any]:
    asked: dict[Any, _Asked] = {}

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        where = cache_key(*args, **kwargs)
        loop = asyncio.get_running_loop()
        turn = id(loop), where
        this = asked.setdefault(turn, _Asked())
        this.callers += 1
        try:
            answers = None
            while answers != this.answers:  # one came after the look into the mapping: look again
                answers = this.answers
                value = await mapping.aget(where, MISSING)
                if value is not MISSING:
                    return value
                while (first := this.first) is not None:
                    await asyncio.wait([first])
                    if not first.cancelled():
                        return first.result()
            mine = this.first = loop.create_future()
            try:
                value = await function(*args, **kwargs)
                await mapping.aset(where, value, ttl=ttl)
                mine.set_result(value)
                this.answers += 1
            finally:
                this.first = None
                mine.cancel()  # unless it is done: a waiting coroutine calls the function next
            return value
        finally:
            this.callers -= 1
            if not this.callers:
                del asked[turn]

    return wrapper


class _Asked:
    """A key that coroutines of one event loop ask for."""

    callers = 0
    answers = 0
    """Number of calls of the function that have succeeded."""
    first: asyncio.Future[Any] | None = None
    """The call under way, if there is one. The others wait for it."""
