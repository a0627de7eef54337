"""Script: a benchmark of examples/benchmarks/ with the command line that all of them share.

A script measures a result, and makes tables, remarks and maybe a picture of it. They come from the
result alone, so that they can be made again from a result that was kept.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchzip.bench.figure import load
from batchzip.bench.style import require_matplotlib
from batchzip.bench.table import print_result
from batchzip.errors import BatchzipError
from batchzip.terminal.streams import abandon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchzip.bench.figure import Result
    from batchzip.terminal.table import Table


@dataclass(frozen=True, slots=True)
class Script:
    """A benchmark. `about` is its help, with the usage and a paragraph per contender."""

    about: str | None
    add_options: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[argparse.Namespace], Result]
    tables: Callable[[Result], Iterable[Table]]
    remarks: Callable[[Result], Iterable[str]] = lambda _: ()
    """Lines below the tables: goals, and who is ahead of batchzip."""
    draw: Callable[[Result, Path], None] | None = None

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Measure, or read a result, and show it. Write it to a file only if --json names one."""
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add_options(parser)
        parser.add_argument("--json", type=_new_file, metavar="FILE", help="keep the result here")
        parser.add_argument("--show", metavar="FILE", help="show a kept result, measure nothing")
        if self.draw is not None:
            parser.add_argument("--plot", type=_new_file, metavar="PNG", help="draw a picture")
        options = parser.parse_args(arguments)
        picture = getattr(options, "plot", None)
        try:
            if picture is not None:
                require_matplotlib()
            result = load(options.show) if options.show else self.measure(options)
        except (BatchzipError, OSError) as error:
            parser.error(str(error))
        if options.json is not None:
            result.save(options.json)
        if self.draw is not None and picture is not None:
            self.draw(result, picture)
        try:
            print_result(result, self.tables, self.remarks)
            sys.stdout.flush()
        except BrokenPipeError:  # as `batchzip` does
            abandon(sys.stdout)
            sys.exit(141)


def _new_file(text: str) -> Path:
    """Return the path of a file to write. Its folder must exist before minutes are spent."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {path.parent} is no folder")
    return path


def integers(text: str) -> list[int]:
    """Parse positive numbers with commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text} has a number below 1")
    return found


def chosen(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser of names with commas, each of which is one of `names`."""
    known = list(names)

    def parse(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return found

    return parse


def progress(text: str) -> None:
    """Tell on stderr what is measured now."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
