"""The full screen of `batchzip top`, by textual. Extra `top`.

    thread: look, wait, look, … ──▶ event loop: TopApp ──▶ title, facts, warnings
                                                       ──▶ names of the tables
                                                       ──▶ Grid: the visible rows of one table

Looks are taken in a thread, so that the screen answers while an owner does not. Grid draws the visible rows
only, so that thousands of groups cost as much as twenty.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from batchzip.terminal.table import GAP, SHORTEST_NAME, cut, fitting

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual import events
    from textual.app import ComposeResult

    from batchzip.cli.look import Look, Row, Section

_BAR = 24
"""Columns of the bar of the pool."""

_LEAVE_S = 1.0
"""Seconds that the last look may take when the user quits."""


class Ended(BaseException):
    """A signal ended the screen."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def watch(look: Callable[[], Look], interval: float) -> bool:
    """Show looks until the user quits. Return whether the thread that takes them has ended.

    Raises whatever `look` raises, KeyboardInterrupt for Ctrl-C, and SystemExit for SIGTERM and SIGHUP.
    """
    app = TopApp(look, interval)
    try:
        failure = app.run()
    finally:
        ended = app.stop(_LEAVE_S)
    if isinstance(failure, Ended):
        if failure.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + failure.number)
    if failure is not None:
        raise failure
    return ended


class Grid(ScrollView, can_focus=True):
    """A table of any number of rows below a line of headings, which stays when the rows scroll."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"grid--heading", "grid--row", "grid--total"}
    DEFAULT_CSS = """
    Grid { height: 1fr; overflow-x: hidden; }
    Grid .grid--heading { text-style: bold; color: $primary; }
    Grid .grid--total { text-style: bold; }
    """

    class Sorted(Message):
        """The user clicked on the heading of a column."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self) -> None:
        super().__init__()
        self._section: Section | None = None
        self._rows: list[Row] = []
        self._order: int | None = None
        self._largest_first = True
        self._widths: list[int] = []
        self.shown: list[int] = []
        """The numbers of the columns that there is room for."""

    def show(
        self, section: Section, rows: list[Row], order: int | None, *, largest_first: bool
    ) -> None:
        """Show these rows of a section, which are sorted by the column `order`."""
        if self._section is None or section.name != self._section.name:
            self.scroll_to(y=0, animate=False)
            self._widths = []
        if order != self._order:
            self._widths = []
        self._section, self._rows = section, rows
        self._order, self._largest_first = order, largest_first
        lines = 1 + len(rows) + (section.total is not None)
        self.virtual_size = Size(self.size.width, lines)
        self._measure()
        self.refresh()

    def on_resize(self) -> None:
        """Choose the columns anew."""
        self._measure()
        self.refresh()

    def watch_scroll_y(self, old: float, new: float) -> None:
        """Make room for the rows that come into view."""
        super().watch_scroll_y(old, new)
        self._measure()

    def _measure(self) -> None:
        """Choose columns by the widths of the visible rows. Columns never become narrower while one scrolls."""
        section = self._section
        if section is None:
            return
        top = int(self.scroll_offset.y)
        lines = [section.cells(row) for row in self._rows[top : top + self.size.height]]
        if section.total is not None:
            lines.append(section.cells(section.total))
        widths = [
            max(
                len(column.heading) + 2 * (at == self._order), *(len(line[at]) for line in lines), 0
            )
            for at, column in enumerate(section.columns)
        ]
        if len(widths) == len(self._widths):
            widths = [max(pair) for pair in zip(widths, self._widths, strict=True)]
        self._widths = widths
        needed = [min(widths[0], SHORTEST_NAME), *widths[1:]]
        room = self.scrollable_content_region.width
        self.shown = fitting(needed, [column.rank for column in section.columns], room)

    def render_line(self, y: int) -> Strip:
        """Draw a line: the headings, a row, the total, or nothing."""
        section = self._section
        width = self.scrollable_content_region.width
        if section is None:
            return Strip.blank(width, self.rich_style)
        at = y - 1 + int(self.scroll_offset.y)
        if y == 0:
            arrow = "▼" if self._largest_first else "▲"
            cells = [
                f"{column.heading} {arrow}" if number == self._order else column.heading
                for number, column in enumerate(section.columns)
            ]
            return self._strip(section, cells, "grid--heading", width)
        if at < len(self._rows):
            return self._strip(section, section.cells(self._rows[at]), "grid--row", width)
        if at == len(self._rows) and section.total is not None:
            return self._strip(section, section.cells(section.total), "grid--total", width)
        return Strip.blank(width, self.rich_style)

    def lines(self) -> list[str]:
        """Return the visible lines as text, without the blanks around them."""
        drawn = (self.render_line(y).text.rstrip() for y in range(self.size.height))
        return [line for line in drawn if line]

    def _strip(self, section: Section, cells: list[str], kind: str, width: int) -> Strip:
        style = self.rich_style + self.get_component_rich_style(kind, partial=True)
        text = (" " * GAP).join(
            self._padded(cells[at], at, left=section.columns[at].left) for at in self.shown
        )
        return Strip([Segment(text, style)]).adjust_cell_length(width, style)

    def _padded(self, text: str, at: int, *, left: bool) -> str:
        width = self._width(at)
        text = cut(text, width)
        return text.ljust(width) if left else text.rjust(width)

    def _width(self, at: int) -> int:
        """Return the width of a column; names have what the figures leave."""
        if at:
            return self._widths[at]
        others = sum(self._widths[other] + GAP for other in self.shown if other)
        return max(1, min(self._widths[0], self.scrollable_content_region.width - others))

    def on_click(self, event: events.Click) -> None:
        """Sort by the column whose heading was clicked."""
        if event.y:
            return
        right = 0
        for at in self.shown:
            right += self._width(at) + GAP
            if event.x < right:
                self.post_message(self.Sorted(at))
                return


class TopApp(App[BaseException]):
    """Shows looks. The result is what ended it: an exception, or None if the user quit."""

    TITLE = "batchzip top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #facts { height: auto; max-height: 40%; }
    #tables { height: auto; margin-top: 1; link-style: none; link-color: $text; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #filter.asked { display: block; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("s", "sort", "Sort"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "unfilter", show=False),
        Binding("space", "pause", "Pause"),
        Binding("left", "step(-1)", show=False, priority=True),
        Binding("right", "step(1)", show=False, priority=True),
        *(Binding(str(key), f"choose({key})", show=False) for key in range(1, 10)),
    ]

    def __init__(self, look: Callable[[], Look], interval: float) -> None:
        super().__init__()
        self._take = look
        self._interval = interval
        self._look: Look | None = None
        self._chosen = ""
        self._orders: dict[str, tuple[int | None, bool]] = {}
        self._words = ""
        self._paused = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take_looks, name="batchzip-top", daemon=True)

    def compose(self) -> ComposeResult:
        """Make the parts of the screen."""
        yield Static("", id="facts")
        yield Static("", id="tables")
        yield Input(placeholder="show only lines with …", id="filter")
        yield Grid()
        yield Footer()

    def on_mount(self) -> None:
        """Begin to take looks, and end by the signals that end a process."""
        self._own_loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Tests run the app in threads, which get no signals.
            with contextlib.suppress(ValueError, RuntimeError):
                self._own_loop.add_signal_handler(number, self.exit, Ended(number))
        self.query_one(Grid).focus()
        self.call_after_refresh(self._thread.start)

    def exit(self, *args: Any, **options: Any) -> None:
        """End, and show no look that is still under way."""
        self._over.set()
        super().exit(*args, **options)

    # Looks

    def _take_looks(self) -> None:
        while not self._over.is_set():
            try:
                look = self._take()
            except BaseException as error:  # noqa: BLE001 - it is raised where the app was run
                self._tell(self.exit, error)
                return
            self._tell(self.show, look)
            self._over.wait(self._interval)

    def _tell(self, what: Callable[[Any], Any], value: object) -> None:
        if not self._over.is_set():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._own_loop.call_soon_threadsafe(what, value)

    def stop(self, timeout_s: float) -> bool:
        """Stop taking looks. Return whether the thread that takes them has ended."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def show(self, look: Look) -> None:
        """Show a look, unless the screen is paused."""
        if not self._paused and not self._over.is_set():
            self._look = look
            self._draw()

    # Drawing

    def _draw(self) -> None:
        look = self._look
        if look is None:
            return
        self.query_one("#facts", Static).update(_head(look, paused=self._paused))
        names = self._names()
        if self._chosen not in names:
            self._chosen = names[0] if names else ""
        self._draw_grid()

    def _draw_grid(self) -> None:
        names = self._names()
        self.query_one("#tables", Static).update("  ".join(map(self._link, names, count(1))))
        section = self._section()
        if section is None:
            return
        order, largest_first = self._order(section)
        rows = section.ordered(order, largest_first=largest_first)
        if self._words:
            rows = [row for row in rows if self._words.lower() in _names_of(section, row).lower()]
        self.query_one(Grid).show(section, rows, order, largest_first=largest_first)

    def _link(self, name: str, number: int) -> str:
        """Return the name of a table, as markup that chooses the table when it is clicked."""
        style = "bold reverse" if name == self._chosen else "bold"
        return f"[{style}][@click=app.choose({number})]{number} {name}[/][/]"

    def _names(self) -> list[str]:
        return [] if self._look is None else [section.name for section in self._look.sections]

    def _section(self) -> Section | None:
        sections = [] if self._look is None else self._look.sections
        return next((section for section in sections if section.name == self._chosen), None)

    # Keys

    def action_interrupt(self) -> None:
        """End as by Ctrl-C in any other command."""
        self.exit(Ended(signal.SIGINT))

    def action_choose(self, number: int) -> None:
        """Show the table of that number."""
        names = self._names()
        if number <= len(names):
            self._chosen = names[number - 1]
            self._draw_grid()

    def action_step(self, by: int) -> None:
        """Show the table before or after, or move in the text of the filter."""
        if isinstance(self.focused, Input):
            (self.focused.action_cursor_left if by < 0 else self.focused.action_cursor_right)()
            return
        names = self._names()
        if self._chosen in names:
            self.action_choose((names.index(self._chosen) + by) % len(names) + 1)

    def on_grid_sorted(self, event: Grid.Sorted) -> None:
        """Sort by the column that was clicked; a second click reverses the order."""
        section = self._section()
        if section is not None:
            if self._order(section)[0] == event.column:
                self.action_reverse()
            else:
                self._sort(section, event.column)

    def action_sort(self) -> None:
        """Sort by the next column that is visible."""
        section = self._section()
        if section is not None:
            shown = self.query_one(Grid).shown
            order, _ = self._order(section)
            at = shown.index(order) + 1 if order in shown else 0
            self._sort(section, shown[at % len(shown)])

    def action_reverse(self) -> None:
        """Reverse the order."""
        section = self._section()
        if section is not None:
            order, largest_first = self._order(section)
            self._orders[section.name] = order, not largest_first
            self._draw_grid()

    def _order(self, section: Section) -> tuple[int | None, bool]:
        """Return the column by which a table is sorted, None if by none, and whether in falling order."""
        return self._orders.get(section.name, (section.order, True))

    def _sort(self, section: Section, column: int) -> None:
        """Sort figures in falling order, and names from A to Z."""
        self._orders[section.name] = column, not section.columns[column].left
        self._draw_grid()

    def action_pause(self) -> None:
        """Keep what is shown, or go on."""
        self._paused = not self._paused
        self._draw()

    def action_filter(self) -> None:
        """Ask which lines to show."""
        asked = self.query_one("#filter", Input)
        asked.add_class("asked")
        asked.focus()

    def action_unfilter(self) -> None:
        """Show all lines."""
        asked = self.query_one("#filter", Input)
        asked.value = ""
        asked.remove_class("asked")
        self.query_one(Grid).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show the lines that contain the text."""
        self._words = event.value
        self._draw_grid()

    def on_input_submitted(self) -> None:
        """Keep the filter, and give the keys back to the table."""
        if not self._words:
            self.query_one("#filter").remove_class("asked")
        self.query_one(Grid).focus()


def _names_of(section: Section, row: Row) -> str:
    """Return the texts of a row that are names."""
    cells = zip(section.columns, row, strict=True)
    return "\n".join(column.text(value) for column, value in cells if column.left)


def _head(look: Look, *, paused: bool) -> Text:
    """Return the lines above the tables."""
    text = Text(look.title + ("  (paused)" if paused else ""), style="bold")
    for name, fact in look.facts:
        text.append(f"\n{name:8}", Style(bold=False, dim=True)).append(fact, Style(bold=False))
        if name == "pool" and look.filled is not None:
            done = round(_BAR * min(look.filled, 1))
            text.append("  " + "█" * done, Style(bold=False, color="magenta"))
            text.append("░" * (_BAR - done), Style(bold=False, dim=True))
    for warning in look.warnings:
        text.append(f"\n{warning}", Style(bold=True, color="red"))
    return text
