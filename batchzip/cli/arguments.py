"""Types of arguments on the command line. Their errors say what would be right."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from batchzip.terminal.streams import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import SupportsWrite

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class OneOrTwo(argparse.Action):
    """An action that accepts one or two values."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the values, or end with an error that says how many are accepted."""
        if values is None or len(values) > 2:
            parser.error(f"{option_string} takes one or two results, not {len(values or ())}")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all errors of this command."""

    def error(self, message: str) -> NoReturn:
        """Print the message and where to read more. End with code 2."""
        say(f"batchzip: {message} (see {self.prog} --help)")
        raise SystemExit(2)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Write the help. argparse's own method ignores errors of writing."""
        (sys.stdout if file is None else file).write(self.format_help())


def size(text: str) -> int:
    """Return a number of bytes, given with or without a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if match is None or not (size := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size: write a number of bytes, or 512K, 64M, 1.5G"
        )
    return size


def page_size(text: str) -> int:
    """Return a page size, a power of two."""
    size = int(text) if text.isascii() and text.isdigit() else 0
    if not 512 <= size <= 2 << 20 or size & (size - 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a page size: use a power of two from 512 to {2 << 20} bytes"
        )
    return size


def shuffle(text: str) -> int | str:
    """Return the bytes of an integer, or the name of a floating-point type."""
    # Imported here, because the codecs need NumPy, and a mistyped option must not wait for that.
    from batchzip.codecs.shuffled import ELEMENT_SIZES, FLOATS  # noqa: PLC0415

    kinds = [*map(str, ELEMENT_SIZES), *FLOATS]
    if text not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number type: use {', '.join(kinds)}")
    return text if text in FLOATS else int(text)


def positive(text: str) -> int:
    """Return a whole number above 0."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def positives(text: str) -> list[int]:
    """Return whole numbers above 0, separated by commas."""
    return [positive(part.strip()) for part in text.split(",")]


def png(text: str) -> str:
    """Return the name of a PNG file."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a PNG file: end the name in .png")
    return text


def natural(text: str) -> int:
    """Return a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def microseconds(text: str) -> float:
    """Return a time above 0 in microseconds."""
    return _time(text, "µs", most=math.inf)


def seconds(text: str) -> float:
    """Return a time above 0 and of at most a day, in seconds."""
    return _time(text, "seconds", most=86400.0)


def _time(text: str, unit: str, *, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= most or number == math.inf:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: use {unit} above 0{limit}")
    return number
