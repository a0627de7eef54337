"""Checks of arguments that several parts share: objects of a kind, limits in bytes."""

from __future__ import annotations

from batchzip.errors import BadArgument


def check_kind(value: object, what: str, *kinds: type) -> None:
    """Raise BadArgument unless `value` is of one of these classes; `what` is the argument's name."""
    if not isinstance(value, kinds):
        names = " or a ".join(kind.__name__ for kind in kinds)
        article = "an" if names[0] in "AEIOU" else "a"
        raise BadArgument(f"{what} is {article} {names}, not {type(value).__name__}")


def check_limit(value: int | None, what: str) -> int | None:
    """Give a limit back; raise BadArgument unless it is a number of bytes, or None for no limit."""
    if value is not None and (type(value) is not int or value < 0):
        raise BadArgument(f"{what} is a number of bytes from 0, or None; not {value!r}")
    return value
