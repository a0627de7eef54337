"""The full screen of `batchzip top`, driven by textual's pilot."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support import top_screen
from support.top_screen import facts, lines, names, until
from textual.widgets import Input

from batchzip import ClosedError
from batchzip.cli.look import Column, Look, Section, name_column
from batchzip.cli.top_app import Grid, TopApp
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from textual.pilot import Pilot

GROUPS = Section(
    "Groups",
    (
        name_column("group"),
        Column("pages", rank=2),
        Column("in the pool", size_text, rank=0),
        Column("limit", size_text, rank=5),
    ),
    [(f"group {number:04}", number % 7, number << 10, None or 1 << 20) for number in range(5000)],
    order=2,
)
TRAFFIC = Section("Traffic", (name_column("pages"), Column("total")), [("stored", 12_345)])
LOOK = Look(
    "process 4711: lz4",
    [("pool", "1.0 MiB of 2.0 MiB (50%)")],
    ["pages of 3 stripes are lost"],
    [TRAFFIC, GROUPS],
    filled=0.5,
)


def drive(
    test: Callable[[TopApp, Pilot[Any]], Coroutine[Any, Any, None]],
    look: Callable[[], Look] = lambda: LOOK,
    size: tuple[int, int] = (80, 24),
) -> TopApp:
    return top_screen.drive(test, look, size)


def is_headed(app: TopApp, heading: str) -> bool:
    return lines(app)[0].startswith(heading)


@pytest.mark.slow
def test_it_shows_facts_warnings_and_the_first_table() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        shown = facts(app)
        assert shown.startswith("process 4711: lz4\npool    1.0 MiB of 2.0 MiB (50%)  ████")
        assert shown.count("█") == shown.count("░") == 12
        assert "pages of 3 stripes are lost" in shown
        assert lines(app) == ["pages    total", "stored  12,345"]
        await pilot.press("q")

    assert drive(test).return_value is None


@pytest.mark.slow
def test_tables_are_chosen_by_number_and_by_arrows() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        for key, heading in (("2", "group"), ("right", "pages"), ("left", "group"), ("1", "pages")):
            await pilot.press(key)
            await until(partial(is_headed, app, heading))
        await pilot.press("9")
        assert lines(app)[0].startswith("pages")

    drive(test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "heading"),
    [
        ((30, 14), "group       in the pool ▼"),
        ((60, 14), "group       pages  in the pool ▼    limit"),
        ((200, 40), "group       pages  in the pool ▼    limit"),
    ],
)
def test_thousands_of_groups_are_sorted_and_scrolled(size: tuple[int, int], heading: str) -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.press("2")
        await until(lambda: lines(app)[0] == heading)
        first = lines(app)[1]
        assert first.startswith("group 4999")
        assert "4.9 MiB" in first
        await pilot.press("end")
        await until(lambda: lines(app)[-1].startswith("group 0000"))
        assert lines(app)[0] == heading, "headings stay"
        await pilot.press("home")
        await until(lambda: lines(app)[1] == first)
        await pilot.press("r")
        await until(lambda: lines(app)[1].startswith("group 0000"))
        assert "▲" in lines(app)[0]

    drive(test, size=size)


@pytest.mark.slow
def test_the_sort_key_goes_through_the_columns_there_are() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.press("2")
        await until(lambda: "in the pool ▼" in lines(app)[0])
        await pilot.press("s")  # limit has no room, so it starts again at "group"
        await until(lambda: "group ▲" in lines(app)[0])
        assert lines(app)[1].startswith("group 0000")
        await pilot.press("s")
        await until(lambda: "pages ▼" in lines(app)[0])
        assert lines(app)[1].split()[2] == "6"

    drive(test, size=(40, 20))


@pytest.mark.slow
def test_a_click_on_a_heading_sorts_and_a_second_one_reverses() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.press("2")
        await until(lambda: "in the pool ▼" in lines(app)[0])
        await pilot.click(Grid, offset=(2, 0))
        await until(lambda: "group ▲" in lines(app)[0])
        await pilot.click(Grid, offset=(2, 0))
        await until(lambda: "group ▼" in lines(app)[0])
        await pilot.click(Grid, offset=(2, 3))
        assert lines(app)[1].startswith("group 4999"), "a row is no heading"

    drive(test)


@pytest.mark.slow
def test_a_filter_shows_only_lines_with_its_text() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.press("2", "slash", "4", "9", "9", "9", "enter")
        await until(lambda: len(lines(app)) == 2)
        assert lines(app)[1].startswith("group 4999")
        assert app.focused is app.query_one(Grid)
        await pilot.press("escape")
        await until(lambda: len(lines(app)) > 2)
        assert app.query_one("#filter", Input).value == ""

    drive(test)


@pytest.mark.slow
def test_top_shows_changes_unless_it_is_paused() -> None:
    count = 0

    def look() -> Look:
        nonlocal count
        count += 1
        return replace(LOOK, sections=[replace(TRAFFIC, rows=[("stored", count)])])

    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        def shown() -> int:
            return int(lines(app)[1].split()[1].replace(",", ""))

        first = shown()
        await until(lambda: shown() > first)
        await pilot.press("space")
        assert "(paused)" in facts(app)
        paused, taken = shown(), count
        await until(lambda: count > taken + 5)
        assert shown() == paused
        await pilot.press("space")
        await until(lambda: shown() > paused)

    drive(test, look)


@pytest.mark.slow
def test_a_click_on_the_name_of_a_table_shows_it() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        assert names(app) == "1 Traffic  2 Groups"
        await until(lambda: app.query_one("#tables").region.y == 4)  # below what is above it
        await pilot.click("#tables", offset=(15, 0))
        await until(lambda: lines(app)[0].startswith("group"))

    drive(test)


@pytest.mark.slow
def test_tables_come_and_go() -> None:
    sections = [TRAFFIC, GROUPS]

    def look() -> Look:
        return replace(LOOK, sections=list(sections))

    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.press("2")
        await until(lambda: lines(app)[0].startswith("group"))
        del sections[1]
        await until(lambda: lines(app)[0].startswith("pages"))
        assert names(app) == "1 Traffic"
        sections.append(GROUPS)
        await until(lambda: names(app) == "1 Traffic  2 Groups")
        assert lines(app)[0].startswith("pages")

    drive(test, look)


@pytest.mark.slow
def test_a_store_that_is_gone_ends_it_with_its_error() -> None:
    error = ClosedError("gone")
    gone = threading.Event()

    def look() -> Look:
        if gone.is_set():
            raise error
        return LOOK

    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        del pilot
        gone.set()
        await until(lambda: app.return_value is not None)

    assert drive(test, look).return_value is error


@pytest.mark.slow
def test_names_that_are_too_long_keep_both_ends() -> None:
    rows = [
        ("tiles of " + "a very " * 9 + "long name " + str(number), 1, 1, 1) for number in (1, 2)
    ]
    look = partial(replace, LOOK, sections=[replace(GROUPS, rows=rows)])

    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        del pilot
        assert [line.split("  ")[0] for line in lines(app)[1:]] == [
            "tiles of a…ng name 1",
            "tiles of a…ng name 2",
        ]

    drive(test, look, size=(50, 14))
