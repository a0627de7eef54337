"""The tables and keys of the full screen: what stands where, to the last column."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.top_screen import drive, facts, lines, names, until
from textual.widgets import Input

from batchzip import ClosedError
from batchzip.cli import top_app
from batchzip.cli.look import Column, Look, Section, name_column
from batchzip.cli.top_app import Ended, Grid, TopApp, watch
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from textual.pilot import Pilot

COLUMNS = (
    name_column("group"),
    Column("pages", rank=2),
    Column("in the pool", size_text, rank=0),
    Column("limit", size_text, rank=5),
)
ROWS: Any = [("beta", 3, 2048, 1 << 20), ("Alpha", 70, 1024, 4096), ("gamma", None, 512, 1024)]
GROUPS = Section("Groups", COLUMNS, ROWS, order=2, total=("all", 73, 3584, 5 << 20))
KINDS = Section("Kinds", (name_column("kind"), Column("count")), [("x", 1), ("y", 2)])
LOOK = Look("a title", [("store", "/proc/1/fd/2"), ("pool", "half")], ["hot"], [GROUPS, KINDS], 0.5)


def show(look: Look) -> Any:
    return lambda: look


@pytest.mark.slow
def test_columns_are_aligned_below_their_headings_and_the_total_is_last() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        assert lines(app) == [
            "group  pages  in the pool ▼    limit",
            "beta       3        2.0 KiB  1.0 MiB",
            "Alpha     70        1.0 KiB  4.0 KiB",
            "gamma      -      512 Bytes  1.0 KiB",
            "all       73        3.5 KiB  5.0 MiB",
        ]
        await pilot.press("r")
        await until(lambda: "▲" in lines(app)[0])
        assert [line.split()[0] for line in lines(app)[1:]] == ["gamma", "Alpha", "beta", "all"]

    drive(test, show(LOOK))


@pytest.mark.parametrize(
    ("width", "heading"),
    [
        (37, "group  pages  in the pool ▼    limit"),
        (35, "group  pages  in the pool ▼"),
        (26, "group  in the pool ▼"),
        (17, "g…  in the pool ▼"),
    ],
)
@pytest.mark.slow
def test_columns_that_do_not_fit_are_left_out_and_names_are_cut(width: int, heading: str) -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        del pilot
        assert lines(app)[0] == heading

    drive(test, show(LOOK), size=(width, 24))


@pytest.mark.slow
def test_facts_stand_above_with_a_bar_of_the_pool() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.pause()
        bar = "█" * 12 + "░" * 12
        assert facts(app).splitlines() == [
            "a title",
            "store   /proc/1/fd/2",
            f"pool    half  {bar}",
            "hot",
        ]
        assert names(app) == "1 Groups  2 Kinds"

    drive(test, show(LOOK))


@pytest.mark.parametrize(("filled", "done"), [(None, 0), (0.0, 0), (0.98, 24), (1.7, 24)])
@pytest.mark.slow
def test_a_pool_above_its_limit_fills_the_bar(filled: float | None, done: int) -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        del pilot
        assert facts(app).count("█") == done
        assert facts(app).count("░") == (0 if filled is None else 24 - done)

    drive(test, show(replace(LOOK, filled=filled)))


@pytest.mark.slow
def test_tables_follow_each_other_in_a_circle() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        for key, heading in (
            ("left", "kind"),
            ("right", "group"),
            ("right", "kind"),
            ("1", "grou"),
        ):
            await pilot.press(key)
            await until(lambda heading=heading: lines(app)[0].startswith(heading))  # type: ignore[misc]
        await pilot.press("3")
        assert lines(app)[0].startswith("group")

    drive(test, show(LOOK))


@pytest.mark.slow
def test_sorting_goes_through_all_columns_and_each_table_keeps_its_order() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        seen = []
        for _ in range(5):
            await pilot.press("s")
            await pilot.pause()
            first = lines(app)[1].split()[0]
            seen.append(
                (next(part for part in lines(app)[0].split("  ") if part[-1] in "▼▲"), first)
            )
        assert [(heading.strip(), first) for heading, first in seen] == [
            ("limit ▼", "beta"),
            ("group ▲", "Alpha"),
            ("pages ▼", "Alpha"),
            ("in the pool ▼", "beta"),
            ("limit ▼", "beta"),
        ]
        await pilot.press("r", "2", "s")
        await until(lambda: lines(app)[0] == "kind ▲  count")
        await pilot.press("1")
        await until(lambda: lines(app)[0].endswith("limit ▲"))

    drive(test, show(LOOK))


@pytest.mark.slow
def test_a_click_on_a_heading_sorts_by_it() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        for offset, heading in ((7, "pages ▼"), (8, "pages ▲"), (0, "group ▲"), (36, "limit ▼")):
            await pilot.click(Grid, offset=(offset, 0))
            await until(lambda heading=heading: heading in lines(app)[0])  # type: ignore[misc]
        before = lines(app)
        await pilot.click(Grid, offset=(70, 0))
        await pilot.click(Grid, offset=(3, 1))
        await pilot.pause()
        assert lines(app) == before, "there is no heading"

    drive(test, show(LOOK))


@pytest.mark.slow
def test_a_filter_is_for_names_in_any_case() -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        asked = app.query_one("#filter", Input)
        assert not asked.has_class("asked")
        await pilot.press("slash", *"LPHX", "left", "delete", "enter")
        await until(lambda: len(lines(app)) == 3)
        assert [line.split()[0] for line in lines(app)] == ["group", "Alpha", "all"]
        assert asked.has_class("asked")
        assert asked.value == "LPH"
        assert app.focused is app.query_one(Grid)
        await pilot.press("slash", "right", *["backspace"] * 3, "enter")
        await until(lambda: len(lines(app)) == 5)
        assert not asked.has_class("asked")
        await pilot.press("slash", *"70")
        await until(lambda: len(lines(app)) == 2)
        await pilot.press("escape")
        await until(lambda: len(lines(app)) == 5)
        assert not asked.has_class("asked")
        assert app.focused is app.query_one(Grid)

    drive(test, show(LOOK))


@pytest.mark.slow
def test_columns_get_wider_for_rows_that_come_into_view_and_stay_so() -> None:
    rows: Any = [(f"row {number:03}", 1 if number < 90 else 10**9) for number in range(100)]
    section = Section("Rows", (name_column("row"), Column("count")), rows)

    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        assert lines(app)[:2] == ["row      count", "row 000      1"]
        await until(lambda: app.query_one(Grid).max_scroll_y > 0)
        await pilot.press("end")
        await until(lambda: lines(app)[-1] == "row 099  1,000,000,000")
        assert lines(app)[0] == "row              count"
        await pilot.press("home")
        await until(lambda: lines(app)[1] == "row 000              1")
        assert len(lines(app)) == app.query_one(Grid).size.height

    drive(test, show(replace(LOOK, sections=[section])))


@pytest.mark.slow
def test_another_table_begins_at_its_top_with_widths_of_its_own() -> None:
    rows: Any = [(f"row {number:03}", 10**9) for number in range(100)]
    columns = (name_column("row"), Column("count"))
    sections = [Section("Many", columns, rows), Section("Few", columns, [("a", 1)] * 50)]

    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await until(lambda: app.query_one(Grid).max_scroll_y > 0)
        await pilot.press("end")
        await until(lambda: lines(app)[-1].startswith("row 099"))
        await pilot.press("2")
        await until(lambda: lines(app)[:2] == ["row  count", "a        1"])
        assert app.query_one(Grid).scroll_offset.y == 0

    drive(test, show(replace(LOOK, sections=sections)))


# How it ends


@pytest.mark.parametrize(
    ("failure", "raised", "code"),
    [
        (Ended(signal.SIGINT), KeyboardInterrupt, None),
        (Ended(signal.SIGTERM), SystemExit, 143),
        (Ended(signal.SIGHUP), SystemExit, 129),
        (ClosedError("gone"), ClosedError, None),
    ],
)
def test_watch_raises_the_error_that_ended_the_screen(
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    code: int | None,
) -> None:
    stopped: list[float] = []
    monkeypatch.setattr(TopApp, "run", lambda _: failure)
    monkeypatch.setattr(TopApp, "stop", lambda _, timeout_s: stopped.append(timeout_s))
    with pytest.raises(raised) as caught:
        watch(show(LOOK), 1.0)
    assert getattr(caught.value, "code", None) == code
    assert stopped == [top_app._LEAVE_S]


@pytest.mark.parametrize("ended", [True, False])
def test_leaving_tells_whether_the_last_look_has_ended(
    monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    monkeypatch.setattr(TopApp, "run", lambda _: None)
    monkeypatch.setattr(TopApp, "stop", lambda _, timeout_s: ended and timeout_s > 0)
    assert watch(show(LOOK), 1.0) is ended


@pytest.mark.parametrize("keys", ["ctrl+c", "q"])
@pytest.mark.slow
def test_ctrl_c_and_q_end_it(keys: str) -> None:
    async def test(app: TopApp, pilot: Pilot[Any]) -> None:
        await pilot.press(keys)
        await until(lambda: app._exit)

    result = drive(test, show(LOOK)).return_value
    assert (result.number if isinstance(result, Ended) else None) == (
        signal.SIGINT if keys == "ctrl+c" else None
    )
