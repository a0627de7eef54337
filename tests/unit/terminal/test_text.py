"""Text for people: paragraphs, sizes, durations, and the width of output."""

from __future__ import annotations

import io
import sys

import pytest

from batchzip.terminal.text import (
    ENDLESS,
    duration_text,
    output_columns,
    paragraph_columns,
    size_text,
    wrapped,
)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 Bytes"),
        (1, "1 Byte"),
        (1023, "1023 Bytes"),
        (1024, "1.0 KiB"),
        (1023 << 10, "1023.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 40, "1.0 TiB"),
    ],
)
def test_sizes_have_the_unit_that_fits(size: int, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (2.56e-7, "256 ns"),
        (1.5e-6, "1.50 µs"),
        (99.96e-6, "100 µs"),
        (0.9994e-3, "999 µs"),
        (0.9996e-3, "1.00 ms"),
        (0.0305, "30.5 ms"),
        (17.18, "17.2 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float | None, shown: str) -> None:
    assert duration_text(seconds) == shown


def test_a_duration_can_be_written_in_latin_1() -> None:
    assert duration_text(1e-6).encode("latin-1")


def test_paragraphs_are_wrapped_between_words() -> None:
    text = "one two-three four\nand-a-word-that-is-too-long ends"
    assert wrapped(text, 10).splitlines() == [
        "one",
        "two-three",
        "four",
        "and-a-word-that-is-too-long",
        "ends",
    ]
    assert wrapped("one two three", 8, indent="  ").splitlines() == ["one two", "  three"]


@pytest.mark.parametrize(
    ("columns", "output", "paragraph"),
    [("60", 60, 60), ("80", 80, 80), ("200", 200, 100), (None, ENDLESS, 80)],
)
def test_the_width_is_that_of_columns_and_else_a_pipe_has_no_edge(
    monkeypatch: pytest.MonkeyPatch, columns: str | None, output: int, paragraph: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "__stdout__", None)  # whose size is asked for
    assert output_columns() == output
    assert paragraph_columns() == paragraph
