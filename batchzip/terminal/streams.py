"""Standard streams in any state: closed, full, without a reader, or with a limited encoding."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from batchzip.system.descriptors import open_nowhere

if TYPE_CHECKING:
    from typing import TextIO


def open_streams() -> None:
    """Open /dev/null in place of closed streams, so that the exit code still tells the outcome.

    A character that stdout cannot encode becomes "?", so that the rest of the report is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In ascending order of descriptors, so that nothing else is opened as 0, 1 or 2.
            stream = open(open_nowhere(), mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(line: str) -> None:
    """Write a line to stderr, if stderr can be written to."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that flushing its buffer at exit does not fail again."""
    nowhere = open_nowhere()
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
