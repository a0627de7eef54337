"""What commands write: tables through rich or one JSON document to stdout, bars to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Output(Console):
    """A console that leaves a closed pipe to its caller instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console() -> Console:
    """Make the console of stdout. Colours only on a terminal, and none where NO_COLOR is set."""
    return _Output()


def print_json(document: object) -> None:
    """Write one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def duration(seconds: float | None) -> str:
    """Return a time for people, in three digits and the unit that fits; "-" for None."""
    if seconds is None:
        return "-"
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds:#.3g}".rstrip(".") + " s"


@contextlib.contextmanager
def progress_bars(
    unit: str, *, shown: bool
) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Progress bars on stderr, only where a person looks at it; yields a maker of bars."""
    progress = Progress(
        TextColumn("{task.description:22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        console=Console(stderr=True),
        # Drawn between the rounds: a thread of its own would be measured, too.
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not shown or not sys.stderr.isatty(),
    )

    def bar(what: str, total: int) -> Callable[[int], None]:
        task = progress.add_task(what, total=total)

        def advance(pages: int) -> None:
            progress.update(task, advance=pages)
            progress.refresh()

        return advance

    with progress:
        yield bar
