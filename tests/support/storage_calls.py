"""What a storage object may raise, and a store over one that was filled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batchzip import (
    BadArgument,
    ClosedError,
    EngineBusy,
    PageNotStored,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Own(BaseException):
    """Of the user's own, and no Exception."""


class Mute(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")

    __repr__ = __str__


class Unnumbered(OSError):
    """Does not tell its number."""

    def __getattribute__(self, name: str) -> Any:
        if name == "errno":
            raise RuntimeError("has no number")
        return super().__getattribute__(name)


OTHERS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("of the user's own"),
    MemoryError,
    KeyboardInterrupt,
    lambda: SystemExit(3),
    GeneratorExit,
    Own,
    asyncio.CancelledError,
    lambda: OSError("without a number"),
    lambda: OSError("no number", "no text"),
    lambda: OSError(0, "nothing"),
    lambda: OSError(-5, "negative"),
    lambda: OSError(10**30, "too large"),
    lambda: Unnumbered(5, "numbered"),
    StopIteration,
    lambda: ValueError("closed file"),
    Mute,
    RecursionError,
    lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    lambda: BadArgument("of batchzip's"),
    lambda: PageNotStored(5),
    EngineBusy,
    ClosedError,
    lambda: ExceptionGroup("several", [OSError(5, "five"), ValueError()]),
    lambda: BaseExceptionGroup("several", [KeyboardInterrupt()]),
)


def causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found
