"""What commands write to stdout: tables through rich, or one JSON document."""

from __future__ import annotations

import io
import json
import sys

from rich.console import Console


class _Output(Console):
    """A console that leaves a closed pipe to its caller instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console() -> Console:
    """Make the console of stdout. Colours only on a terminal, and none where NO_COLOR is set."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without "µ", or a file name that is no text, must not cost the report.
        sys.stdout.reconfigure(errors="replace")
    return _Output()


def print_json(document: object) -> None:
    """Write one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
