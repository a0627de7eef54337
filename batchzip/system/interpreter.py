"""Interpreter: how this process starts another Python: which program, with which flags and import path.

The current directory is never imported from. Where Python itself put it in this process's path (-c, -m, a
session), the other's has it not; or last, if a module that is needed there was found in it.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from batchzip.errors import BatchzipError

if TYPE_CHECKING:
    from collections.abc import Collection


def why_no_python() -> str | None:
    """Return why no Python can be started from here, or None where one can.

    `sys.executable` is the application itself where that is frozen or has Python built in. It would
    begin its own work once more, so a program that is not called python is none.
    """
    program = sys.executable
    if getattr(sys, "frozen", False) or not isinstance(program, (str, bytes)) or not program:
        return "a frozen or embedded application has none to start"
    import shutil  # noqa: PLC0415 - a worker needs none of it

    name = os.fsdecode(program)
    found = shutil.which(name)
    if found is None:
        return f"sys.executable is {name!r}, which this user cannot run"
    names = (os.path.basename(path) for path in (found, os.path.realpath(found)))  # noqa: PTH119 - text
    if not any(re.search("py|ython", name, re.IGNORECASE) for name in names):  # mayapy, hython
        return f"sys.executable is {name!r}, an application that is not called python"
    return None


def command() -> list[str]:
    """Return the command that starts Python with this one's flags, and -P."""
    import subprocess  # noqa: PLC0415 - 10 ms, off the caller's path

    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does
    if not sys.flags.safe_path:
        flags.append("-P")
    return [sys.executable, *flags]


def command_for(
    statement: str, what: str, needs: Collection[str] = frozenset({"batchzip"})
) -> list[str]:
    """Return the command of a Python that has this one's import path and runs a statement.

    `needs` are the modules that it needs. Raise BatchzipError, which begins with `what`, where no Python can be started.
    """
    reason = why_no_python()
    if reason is not None:
        raise BatchzipError(f"{what} is a Python process, and {reason}")
    path = import_path(needs)
    return [*command(), "-c", f"import sys; sys.path[:] = {path!a}; {statement}"]


def import_path(needs: Collection[str] = ()) -> list[str]:
    """Return this process's sys.path for another that needs these modules.

    The current directory is not in it if Python itself put it there, or comes last if one of the
    modules was found in it.
    """
    path = [str(entry) for entry in sys.path if entry and isinstance(entry, str)]
    here = _implied_folder()
    if here is None:
        return path
    if "" not in sys.path:
        path.remove(here)  # the first: it may be there once more, because somebody wants it to
    if here not in path and any(here in _folders_of(module) for module in needs):
        path.append(here)
    return path


def _implied_folder() -> str | None:
    """Return the current directory if Python itself put it in sys.path; else None."""
    try:
        here = os.getcwd()  # noqa: PTH109 - text is what the path has
    except OSError:  # it was removed
        return None
    by_module = getattr(sys.modules.get("__main__"), "__spec__", None) is not None
    is_implied = "" in sys.path or (by_module and not sys.flags.safe_path and here in sys.path)
    return here if is_implied else None


def _folders_of(module: str) -> list[str]:
    """Return where a module's topmost package was found."""
    top = sys.modules.get(module.partition(".")[0])
    places = [*getattr(top, "__path__", ())] or [getattr(top, "__file__", None)]
    return [os.path.dirname(place) for place in places if place]  # noqa: PTH120 - as above
