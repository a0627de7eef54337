"""Help in any width: paragraphs are filled, and the purposes of examples stand below each other."""

from __future__ import annotations

from batchzip.cli.help import fill_text

TEXT = """\
A paragraph whose lines
are filled.

examples:
  batchzip swap           a sample workload, every backend
  batchzip top --once     one look
  batchzip swap --json | python -m json.tool
"""


BESIDE = """\
A paragraph whose lines are filled.

examples:
  batchzip swap           a sample workload,
                          every backend
  batchzip top --once     one look
  batchzip swap --json | python -m json.tool"""

BELOW = """\
A paragraph whose lines are filled.

examples:
  batchzip swap
      a sample workload, every backend
  batchzip top --once
      one look
  batchzip swap --json | python -m json.tool"""

NARROW = """\
A paragraph whose
lines are filled.

examples:
  batchzip swap
      a sample
      workload,
      every backend
  batchzip top --once
      one look
  batchzip swap --json | python -m json.tool"""

LONG_WORD = """\
  batchzip bench --plot bench.png  draw
  batchzip bench  measure-everything-there-is
"""


def test_paragraphs_are_filled_and_examples_stay_lines() -> None:
    filled = TEXT.replace("lines\nare", "lines are").strip()
    assert fill_text(TEXT, 200) == fill_text(f"\n{TEXT}\n", 58) == filled


def test_purposes_go_below_the_commands_where_less_than_20_columns_are_beside_them() -> None:
    assert fill_text(TEXT, 46) == BESIDE
    assert fill_text(TEXT, 45) == BELOW
    assert fill_text(TEXT, 20) == NARROW


def test_a_purpose_is_beside_its_command_only_if_its_longest_word_fits() -> None:
    assert fill_text(LONG_WORD, 62).startswith("  batchzip bench --plot bench.png  draw\n")
    assert fill_text(LONG_WORD, 60).splitlines()[:2] == [
        "  batchzip bench --plot bench.png",
        "      draw",
    ]
