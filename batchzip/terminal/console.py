"""The console and its progress bars. Nothing else makes a rich Console.

NO_COLOR, TERM=dumb and pipes give plain text.

On a terminal, output is as wide as the terminal. Elsewhere COLUMNS says how wide; without it
paragraphs have 80 columns and tables as many as they need, because a file has no edge.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.theme import Theme

from batchzip.terminal.styles import STYLES
from batchzip.terminal.text import output_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TextIO


class Console(rich.console.Console):
    """A console that prints text unchanged and raises BrokenPipeError for a closed pipe."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError instead of ending the process."""
        raise BrokenPipeError

    def write_line(self, text: str = "", style: str | None = None) -> None:
        """Print a line of text without wrapping it or reading it as markup."""
        self.print(text, style=style, soft_wrap=True)


def _console(stream: TextIO, width: int | None) -> Console:
    plain: dict[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    return Console(
        file=stream,
        width=width,
        height=None if width is None else 1_000_000,  # rich ignores a width alone in TERM=dumb
        theme=Theme(STYLES),
        markup=False,
        highlight=False,
        emoji=False,
        **plain,
    )


def make_console() -> Console:
    """Make the console of stdout."""
    return _console(sys.stdout, output_columns())


def as_text(renderable: object, width: int) -> str:
    """Return a renderable as plain text of `width` columns, without trailing blanks."""
    target = io.StringIO()
    Console(
        file=target, width=width, color_system=None, theme=Theme(STYLES), markup=False, emoji=False
    ).print(renderable, soft_wrap=False, highlight=False)
    return "\n".join(line.rstrip() for line in target.getvalue().rstrip("\n").split("\n"))


def print_json(document: object, *, indent: int = 2) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=indent) + "\n")


@contextlib.contextmanager
def progress_bars(
    unit: str = "", *, shown: bool
) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Yield a maker of progress bars. They are drawn on stderr, and only if it is a terminal.

    A bar is made from a description and a total. Calling it advances it by a number of steps.
    """
    progress = Progress(
        TextColumn("{task.description:22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        console=_console(sys.stderr, None),
        # Drawn between the rounds, because a thread of its own would be measured, too.
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not shown or not sys.stderr.isatty(),
    )

    def bar(what: str, total: int) -> Callable[[int], None]:
        task = progress.add_task(what, total=total)

        def advance(steps: int) -> None:
            progress.update(task, advance=steps)
            progress.refresh()

        return advance

    with progress:
        yield bar
