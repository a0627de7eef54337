"""What arguments of the command line may be; an error says what would be right."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from batchzip.cli.streams import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import SupportsWrite

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class OneOrTwo(argparse.Action):
    """Takes one value, or two."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        """Keep them, or end with an error that says how many there may be."""
        if values is None or len(values) > 2:
            parser.error(f"{option_string} takes one or two results, not {len(values or ())}")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        """End with the message and where to read more."""
        say(f"batchzip: {message} (see {self.prog} --help)")
        raise SystemExit(2)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Write the help; argparse's own takes no notice where that fails."""
        (sys.stdout if file is None else file).write(self.format_help())


def size(text: str) -> int:
    """Take bytes, with a unit or without."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if match is None or not (size := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write bytes, or 512K, 64M, 1.5G")
    return size


def page_size(text: str) -> int:
    """Take a power of two."""
    size = int(text) if text.isascii() and text.isdigit() else 0
    if not 512 <= size <= 2 << 20 or size & (size - 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no page size: a power of two from 512 to {2 << 20} bytes is"
        )
    return size


def positive(text: str) -> int:
    """Take a whole number above 0."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def positives(text: str) -> list[int]:
    """Take whole numbers above 0, with commas."""
    return [positive(part.strip()) for part in text.split(",")]


def png(text: str) -> str:
    """Take the name of a picture."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a picture: let it end in .png")
    return text


def natural(text: str) -> int:
    """Take a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def microseconds(text: str) -> float:
    """Take a time above 0."""
    return _time(text, "µs", most=math.inf)


def seconds(text: str) -> float:
    """Take a time above 0, of a day at the most."""
    return _time(text, "seconds", most=86400.0)


def _time(text: str, unit: str, *, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= most or number == math.inf:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is no time: {unit} above 0{limit} are")
    return number
