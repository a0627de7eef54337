"""Checks of arguments: one function per kind, which returns a plain value or raises BadArgument.

    as_integer    counts, sizes, levels      any integer, NumPy's too, as an int in a range; no bool
    as_limit      limits                     bytes, or None
    as_index      indices                    any integer, as an int
    as_seconds    durations                  any real number, as a float that every clock can take
    as_positive   other measures             any real number above 0, as a float
    as_fraction   shares of something        any real number from 0 to 1, as a float
    check_kind    objects                    of a class

Small NumPy integers overflow in arithmetic. Neither they nor other numeric types can be written as
JSON or passed to C. So all numbers become Python's int or float here.
"""

from __future__ import annotations

import math
import operator
import sys

from batchzip.errors import BadArgument
from batchzip.wording import kind_of, shown

NEVER_S = 4e9
"""Seconds that stand for "never": 126 years. As nanoseconds, they fit 64 bits."""


def check_kind(value: object, what: str, *kinds: type) -> None:
    """Raise BadArgument unless `value` is of one of these classes. `what` names the argument."""
    if not isinstance(value, kinds):
        names = " or a ".join(kind.__name__ for kind in kinds)
        article = "an" if names[0] in "AEIOU" else "a"
        raise BadArgument(f"{what} must be {article} {names}, not {type(value).__name__}")


def as_integer(value: object, what: str, least: int | None = None, most: int | None = None) -> int:
    """Return an integer of any kind as an int. Raise BadArgument unless it is in least…most."""
    number = value if type(value) is int else _index(value)
    if (
        number is None
        or type(value) is bool
        or (least is not None and number < least)
        or (most is not None and number > most)
    ):
        if least is None:
            wanted = "an integer"
        elif most is None:
            wanted = f"an integer of at least {least}"
        else:
            wanted = f"an integer in {least}…{most}"
        raise BadArgument(f"{what} must be {wanted}, not {shown(value)}")
    return number


def as_limit(value: object, what: str) -> int | None:
    """Return a limit in bytes, or None for no limit. Raise BadArgument for anything else."""
    if value is None:
        return None
    number = None if type(value) is bool else _index(value)
    if number is None or number < 0:
        raise BadArgument(f"{what} must be a number of bytes, or None; not {shown(value)}")
    return number


def as_index(value: object, what: str = "an index") -> int:
    """Return an integer of any kind as an int, and True as 1. Raise BadArgument for other types."""
    number = _index(value)
    if number is None:
        raise BadArgument(f"{what} must be an integer, not {kind_of(value)}")
    return number


def as_seconds(value: object, what: str, *, least: float = 0.0) -> float:
    """Return seconds as a float, at most NEVER_S. Raise BadArgument below `least` and for NaN."""
    number = _real(value)
    if number is None or not number >= least:
        wanted = "seconds" if least < 0 else f"seconds, {least:g} or more"
        raise BadArgument(f"{what} must be {wanted}, not {shown(value)}")
    return min(number, NEVER_S)


def as_positive(value: object, what: str) -> float:
    """Return a real number above 0 as a float, infinite if it is too large. Raise BadArgument."""
    number = _real(value)
    if number is None or not number > 0:
        raise BadArgument(f"{what} must be a number above 0, not {shown(value)}")
    return number


def as_fraction(value: object, what: str) -> float:
    """Return a number from 0 to 1 as a float. Raise BadArgument."""
    number = _real(value)
    if number is None or not 0 <= number <= 1:
        raise BadArgument(f"{what} must be a number from 0 to 1, not {shown(value)}")
    return number


def is_masked(value: object) -> bool:
    """Return whether this is a masked array, of which a view would lose the mask."""
    masked = sys.modules.get("numpy.ma")  # not imported as long as there is no masked array
    # While another thread is importing it, no such array exists yet.
    kind = getattr(masked, "MaskedArray", None)
    return kind is not None and isinstance(value, kind)


def _index(value: object) -> int | None:
    if is_masked(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type] # raises TypeError for others
    except TypeError:
        return None


def _real(value: object) -> float | None:
    """Return a real number as a float, infinite if it is too large. Return None for other types."""
    kind = type(value)
    if kind is float:
        return value  # type: ignore[return-value]
    if kind is bool or isinstance(value, (str, bytes, complex)) or hasattr(value, "__len__"):
        return None
    try:
        return float(value)  # type: ignore[arg-type] # raises TypeError for others
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):  # ValueError: Decimal's signalling NaN
        return None
