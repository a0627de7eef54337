"""The command's standard streams, whatever they are: closed, full, without a reader, of few characters."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from batchzip.system.descriptors import open_nowhere

if TYPE_CHECKING:
    from typing import TextIO


def open_streams() -> None:
    """Lead streams that are closed to nowhere: the exit code still says how the command went.

    What stdout has no character for becomes "?": it must not cost the report.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # They come in the order of their numbers: nothing else is opened as 0, 1 or 2.
            stream = open(open_nowhere(), mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(line: str) -> None:
    """Write a line to stderr, if that can be written to."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Send what a stream still has in its buffer nowhere: at exit, writing it would fail once more, loudly."""
    nowhere = open_nowhere()
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
