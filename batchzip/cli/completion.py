"""`batchzip completion`: a script for a shell, made from the parser by shtab. Extra `completion`.

The script is self-contained, so pressing Tab starts no Python. It knows the algorithms that were
usable when it was made.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchzip.cli.commands import make_parser
from batchzip.codecs import algorithms
from batchzip.codecs.shuffled import ELEMENT_SIZES, FLOATS
from batchzip.extras import load_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES = ("compare", "file", "plot", "values")
"""Arguments that are paths."""

_ALGORITHMS = ("algorithm", "algorithms")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    shell: str


def run(options: Options) -> int:
    """Print the script. Return 0. Raise MissingExtra without shtab."""
    shtab = load_extra("shtab", extra="completion", needed_by="batchzip completion")
    parser = make_parser()
    for action in _actions(parser):
        if action.dest in _FILES:
            action.complete = shtab.FILE
        elif action.dest in _ALGORITHMS:
            action.choices = algorithms()
        elif action.dest == "shuffle":
            action.choices = (*ELEMENT_SIZES, *FLOATS)
    sys.stdout.write(shtab.complete(parser, options.shell).rstrip() + "\n")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to list them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                yield from _actions(command)
