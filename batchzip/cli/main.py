"""The `batchzip` command.

Exit codes: 0 success, 1 a page came back different (swap) or a figure became slower (bench), 2 bad
input (one line on stderr says what to change), 3 a figure of the old result was not measured
(bench), 130 interrupted by Ctrl-C, 141 the reader of the output closed it.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from batchzip.cli.commands import make_parser
from batchzip.errors import BatchzipError
from batchzip.terminal.streams import abandon, open_streams, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def _run(arguments: argparse.Namespace) -> int:
    """Run the command. Its module has a class `Options` and a function `run` that takes them."""
    # Imported here, because --help and a mistyped option must not wait for rich and the engine.
    command = import_module(f"batchzip.cli.{arguments.command}")
    values = vars(arguments)
    options = command.Options(**{name: values[name] for name in command.Options.__match_args__})
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment] # *_where takes the rest
        code: int = command.run(options)
        return code


def _show_warning(message: Warning | str, *_where: object) -> None:
    # Warnings of the library begin with its name, because they may appear in any program.
    say(f"batchzip: warning: {str(message).removeprefix('batchzip: ')}")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        return (
            error.strerror if name is None else f"{os.fsdecode(name) or repr('')}: {error.strerror}"
        )
    return " ".join(str(error).split()) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments). Return its exit code.

    Raise SystemExit after --help, --version and invalid arguments.
    """
    open_streams()
    try:
        try:
            parser = make_parser()
            arguments = parser.parse_args(argv)
            if arguments.command is None:
                parser.print_help()
                return 0
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        abandon(sys.stdout)
        return 141
    except KeyboardInterrupt:
        say("batchzip: interrupted")
        return 130
    except (BatchzipError, OSError, MemoryError) as error:
        say(f"batchzip: {_one_line(error)}")
        try:
            sys.stdout.flush()
        except OSError:  # a full disk
            abandon(sys.stdout)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
