"""Tables leave columns out where there is no room, and break no cell."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from rich.text import Text

from batchzip.terminal.console import as_text
from batchzip.terminal.table import SHORTEST_NAME, Table, cut, fitting


def a_table() -> Table:
    table = Table("a title")
    table.add_column("name")
    table.add_column("seldom read", rank=9)
    table.add_column("bytes", rank=1, footer="3,003")
    table.add_column("rate", rank=5)
    table.add_row("[red]", "1", "3,000", "0.25")
    table.add_row("b", "2", "3", Text("12.50"))
    return table


def test_all_of_it_is_shown_where_there_is_room() -> None:
    assert as_text(a_table(), 80).splitlines() == [
        "",
        "a title",
        "name   seldom read  bytes   rate",
        "[red]            1  3,000   0.25",
        "b                2      3  12.50",
        "                    3,003",
    ]


def test_the_highest_rank_is_left_out_first_and_named() -> None:
    assert as_text(a_table(), 30).splitlines()[2:] == [
        "name   bytes   rate",
        "[red]  3,000   0.25",
        "b          3  12.50",
        "       3,003",
        "left out for lack of room:",
        "seldom read",
    ]
    assert "left out for lack of room: seldom read, rate" in " ".join(
        as_text(a_table(), 18).split()
    )


def test_names_give_way_to_figures_down_to_a_width() -> None:
    table = Table()
    table.add_column("group")
    table.add_column("pages")
    table.add_row("a" * 50, "12345")
    table.add_row("tiles-" + "a" * 40 + "-17", "12345")
    line = as_text(table, SHORTEST_NAME + 7).splitlines()[2]
    assert line == "tiles-aaaa…aaaaaa-17  12345"
    assert as_text(table, SHORTEST_NAME + 6).splitlines()[2] == "tiles-aaaaaaa…aaaaaaaaa-17"


def test_prose_is_wrapped_between_words() -> None:
    table = Table()
    table.add_column("", rank=0)
    table.add_column("about", rank=0, left=True, wraps=True)
    table.add_row("lz4", "fast, and its ratio is low")
    assert as_text(table, 20).splitlines() == [
        "     about",
        "lz4  fast, and its",
        "     ratio is low",
    ]


def test_sections_of_a_table_are_separated() -> None:
    table = Table()
    table.add_column("a")
    table.add_row("1")
    table.add_section()
    table.add_row("2")
    table.add_section()
    assert as_text(table, 20).splitlines() == ["a", "1", "", "2"]


def test_markdown_has_all_columns_and_no_mark_of_its_own() -> None:
    table = Table("µs per page")
    table.add_column("pages\nper batch")
    table.add_column("8")
    table.add_column("goal", left=True)
    table.add_row("bare | loop", "*4.1", "≤ 5 met")
    assert table.as_markdown().splitlines() == [
        "µs per page:",
        "",
        "| pages per batch | 8 | goal |",
        "| --- | ---: | --- |",
        r"| bare \| loop | \*4.1 | ≤ 5 met |",
    ]


def test_a_row_has_a_cell_for_each_column() -> None:
    table = Table()
    table.add_column("a")
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        table.add_row("1", "2")


def test_a_table_without_headings_or_title_is_its_rows() -> None:
    table = Table()
    for _ in range(2):
        table.add_column("")
    table.add_row("a", "1")
    table.add_row("bb", "22")
    assert table.row_count == 2
    assert as_text(table, 80).splitlines() == ["a    1", "bb  22"]


def test_a_column_of_figures_may_be_first_and_one_of_names_last() -> None:
    table = Table()
    table.add_column("at", left=False)
    table.add_column("name", left=True, footer="all")
    table.add_row("5", "a")
    table.add_row("123", Text("red"))
    assert as_text(table, 80).splitlines() == [" at  name", "  5  a", "123  red", "     all"]


def test_of_equal_ranks_the_last_column_is_left_out_first() -> None:
    assert fitting([5, 5, 5, 5], [0, 1, 2, 2], 26) == [0, 1, 2, 3]
    assert fitting([5, 5, 5, 5], [0, 1, 2, 2], 25) == [0, 1, 2]
    assert fitting([5, 5, 5, 5], [0, 1, 2, 2], 18) == [0, 1]
    assert fitting([5, 5, 5, 5], [0, 1, 0, 2], 1) == [0, 2]


@pytest.mark.parametrize(
    ("width", "kept"),
    [(9, "123456789"), (8, "1234…789"), (7, "123…789"), (2, "1…"), (1, "…"), (0, "123456789")],
)
def test_a_name_that_is_cut_keeps_both_ends(width: int, kept: str) -> None:
    assert cut("123456789", width) == kept


CELL = st.text(st.sampled_from("abc123,.%µ"), min_size=1, max_size=24)


@pytest.mark.slow
@given(
    columns=st.lists(
        st.tuples(st.integers(1, 9), st.lists(CELL, min_size=3, max_size=3)), max_size=9
    ),
    names=st.lists(CELL, min_size=3, max_size=3),
    width=st.sampled_from([30, 60, 80, 200]),
)
def test_no_line_is_too_wide_and_no_figure_is_broken(
    columns: list[tuple[int, list[str]]], names: list[str], width: int
) -> None:
    table = Table()
    table.add_column("name")
    for number, (rank, _) in enumerate(columns):
        table.add_column(f"h{number}", rank=rank)
    for at, name in enumerate(names):
        table.add_row(name, *(cells[at] for _, cells in columns))
    text = as_text(table, width)
    lines = text.splitlines()
    assert all(len(line) <= width and line == line.rstrip() for line in lines)
    shown = lines[0].split()[1:]
    for at in range(3):
        words = lines[1 + at].split()[1:]
        assert words == [columns[int(heading[1:])][1][at] for heading in shown]
    left_out = {f"h{number}" for number in range(len(columns))} - {*shown}
    assert {word.strip(",") for line in lines[4:] for word in line.split()} >= left_out


@pytest.mark.slow
@given(
    columns=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), min_size=1, max_size=9),
    room=st.integers(1, 120),
)
def test_columns_are_left_out_by_rank_and_no_more_than_needed(
    columns: list[tuple[int, int]], room: int
) -> None:
    widths, ranks = zip(*columns, strict=True)
    shown = fitting(widths, ranks, room)
    assert {at for at, rank in enumerate(ranks) if not rank} <= {*shown}
    gone = sorted({*range(len(columns))} - {*shown}, key=lambda at: (ranks[at], at))
    if gone:
        assert all((ranks[at], at) < (ranks[gone[0]], gone[0]) for at in shown)
        back = [*shown, gone[0]]
        assert sum(widths[at] + 2 for at in back) - 2 > room
