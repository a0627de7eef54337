"""Checks of arguments, a function for each kind: it returns what the code behind takes, or says what is wrong.

    as_integer    counts, sizes, levels      any integer, NumPy's too, as an int in a range; no bool
    as_limit      limits                     bytes, or None
    as_index      indices                    any integer, as an int
    as_seconds    durations                  any real number, as a float that every clock can take
    as_positive   other measures             any real number above 0, as a float
    as_fraction   shares of something        any real number from 0 to 1, as a float
    check_kind    objects                    of a class

Small NumPy integers overflow in arithmetic, and neither they nor arbitrary numbers can be written as JSON or
handed to C: nothing of them goes on.
"""

from __future__ import annotations

import math
import operator
import sys

from batchzip.errors import BadArgument
from batchzip.wording import kind_of, shown

NEVER_S = 4e9
"""Seconds that no clock reaches: 126 years. As nanoseconds, they fit 64 bits."""


def check_kind(value: object, what: str, *kinds: type) -> None:
    """Raise BadArgument unless `value` is of one of these classes; `what` is the argument's name."""
    if not isinstance(value, kinds):
        names = " or a ".join(kind.__name__ for kind in kinds)
        article = "an" if names[0] in "AEIOU" else "a"
        raise BadArgument(f"{what} is {article} {names}, not {type(value).__name__}")


def as_integer(value: object, what: str, least: int | None = None, most: int | None = None) -> int:
    """Return an integer of any kind as an int, from `least` to `most`; raise BadArgument."""
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
    """Return a limit in bytes; raise BadArgument unless it is a number from 0, or None for no limit."""
    if value is None:
        return None
    number = None if type(value) is bool else _index(value)
    if number is None or number < 0:
        raise BadArgument(f"{what} is a number of bytes from 0, or None; not {shown(value)}")
    return number


def as_index(value: object, what: str = "an index") -> int:
    """Return an integer of any kind as an int; raise BadArgument. As for a list, True is 1."""
    number = _index(value)
    if number is None:
        raise BadArgument(f"{what} is an integer, not {kind_of(value)}")
    return number


def as_seconds(value: object, what: str, *, least: float = 0.0) -> float:
    """Return seconds as a float, NEVER_S at the most; raise BadArgument below `least` and for NaN."""
    number = _real(value)
    if number is None or not number >= least:
        wanted = "seconds" if least < 0 else f"seconds, {least:g} or more"
        raise BadArgument(f"{what} must be {wanted}, not {shown(value)}")
    return min(number, NEVER_S)


def as_positive(value: object, what: str) -> float:
    """Return a real number above 0 as a float, infinite where it is too large; raise BadArgument."""
    number = _real(value)
    if number is None or not number > 0:
        raise BadArgument(f"{what} must be a number above 0, not {shown(value)}")
    return number


def as_fraction(value: object, what: str) -> float:
    """Return a number from 0 to 1 as a float; raise BadArgument."""
    number = _real(value)
    if number is None or not 0 <= number <= 1:
        raise BadArgument(f"{what} must be a fraction, 0…1, not {shown(value)}")
    return number


def is_masked(value: object) -> bool:
    """Return whether this is an array with a mask, which a view of its memory would drop."""
    masked = sys.modules.get("numpy.ma")  # not imported before there is one
    # Another thread may be importing it just now; then nobody has such an array yet.
    kind = getattr(masked, "MaskedArray", None)
    return kind is not None and isinstance(value, kind)


def _index(value: object) -> int | None:
    if is_masked(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type] # that is the question
    except TypeError:
        return None


def _real(value: object) -> float | None:
    """Return a real number of any kind as a float, infinite where it is too large; None for others."""
    kind = type(value)
    if kind is float:
        return value  # type: ignore[return-value]
    if kind is bool or isinstance(value, (str, bytes, complex)) or hasattr(value, "__len__"):
        return None
    try:
        return float(value)  # type: ignore[arg-type] # that is the question
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):  # ValueError: a signalling NaN of Decimal
        return None
