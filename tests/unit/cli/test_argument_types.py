"""Types of arguments: what each takes, at its bounds, and what it says of the rest."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.cli import arguments

if TYPE_CHECKING:
    from collections.abc import Callable

TAKEN: list[tuple[Callable[[str], Any], str, Any]] = [
    (arguments.size, "1", 1),
    (arguments.size, "512K", 512 << 10),
    (arguments.size, "1.5G", 3 << 29),
    (arguments.size, "64 MiB", 64 << 20),
    (arguments.size, "64mb", 64 << 20),
    (arguments.size, "2t", 2 << 40),
    (arguments.size, "7B", 7),
    (arguments.page_size, "512", 512),
    (arguments.page_size, "4096", 4096),
    (arguments.page_size, "2097152", 2 << 20),
    (arguments.shuffle, "2", 2),
    (arguments.shuffle, "8", 8),
    (arguments.shuffle, "f4", "f4"),
    (arguments.positive, "1", 1),
    (arguments.positive, "2147483647", (1 << 31) - 1),
    (arguments.positives, "8, 64,256", [8, 64, 256]),
    (arguments.png, "a.png", "a.png"),
    (arguments.png, "A.PNG", "A.PNG"),
    (arguments.natural, "0", 0),
    (arguments.natural, "12", 12),
    (arguments.microseconds, "0.5", 0.5),
    (arguments.microseconds, "1e9", 1e9),
    (arguments.seconds, "0.001", 0.001),
    (arguments.seconds, "86400", 86400.0),
]

REFUSED: list[tuple[Callable[[str], Any], list[str], str]] = [
    (arguments.size, ["0", "0K", "-1", "K", "1X", "1.K", "", "0.1", "٣"], "is not a size"),
    (
        arguments.page_size,
        ["256", "511", "513", "4095", "6144", "4194304", "4K", "-512", "0", ""],
        "use a power of two from 512 to 2097152 bytes",
    ),
    (arguments.shuffle, ["1", "3", "16", "f1", "", "F4"], "use 2, 4, 8, f2, f4, f8"),
    (arguments.positive, ["0", "-1", "2147483648", "1.5", "", "٣"], "whole number above 0"),
    (arguments.positives, ["", "1,", "1,0", "a"], "whole number above 0"),
    (arguments.png, ["a.svg", "png", ""], "end the name in .png"),
    (arguments.natural, ["-1", "1.0", "", "x"], "whole number, 0 or more"),
    (arguments.microseconds, ["0", "-1", "inf", "nan", "", "x"], "use µs above 0$"),
    (
        arguments.seconds,
        ["0", "86400.1", "inf", "nan", ""],
        "use seconds above 0 and at most 86400",
    ),
]


@pytest.mark.parametrize(("kind", "text", "value"), TAKEN)
def test_valid_text_becomes_its_value(kind: Callable[[str], Any], text: str, value: object) -> None:
    found = kind(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [(kind, text, said) for kind, texts, said in REFUSED for text in texts],
)
def test_invalid_text_is_refused_with_the_reason(
    kind: Callable[[str], Any], text: str, said: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said) as refused:
        kind(text)
    assert repr(text.rpartition(",")[2]) in str(refused.value)
