"""Interpreter: the program, flags and import path with which this process starts another Python.

If Python itself put the current directory in this process's import path (-c, -m, an interactive
session), the other process's path does not have it. It has it last if a module that the other
process needs was found there.
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
    """Return why this process cannot start Python, or None if it can.

    In a frozen or embedded application, `sys.executable` is the application itself, which would
    begin its own work again. So a program that is not called python does not count.
    """
    program = sys.executable
    if getattr(sys, "frozen", False) or not isinstance(program, (str, bytes)) or not program:
        return "a frozen or embedded application cannot start one"
    import shutil  # noqa: PLC0415 - a worker does not need it

    name = os.fsdecode(program)
    found = shutil.which(name)
    if found is None:
        return f"sys.executable is {name!r}, which this user cannot run"
    names = (os.path.basename(path) for path in (found, os.path.realpath(found)))  # noqa: PTH119
    if not any(re.search("py|ython", name, re.IGNORECASE) for name in names):  # mayapy, hython
        return f"sys.executable is {name!r}, an application that is not called python"
    return None


def command() -> list[str]:
    """Return the command that starts Python with this one's flags, and -P."""
    import subprocess  # noqa: PLC0415 - takes 10 ms, which the caller need not wait for

    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does
    if not sys.flags.safe_path:
        flags.append("-P")
    return [sys.executable, *flags]


def command_for(
    statement: str, what: str, needs: Collection[str] = frozenset({"batchzip"})
) -> list[str]:
    """Return the command of a Python with this process's import path that runs a statement.

    `needs` are the modules that it needs. Raise BatchzipError, whose text begins with `what`, if no
    Python can be started.
    """
    reason = why_no_python()
    if reason is not None:
        raise BatchzipError(f"{what} needs a Python process, but {reason}")
    path = import_path(needs)
    return [*command(), "-c", f"import sys; sys.path[:] = {path!a}; {statement}"]


def import_path(needs: Collection[str] = ()) -> list[str]:
    """Return this process's sys.path for another process that needs these modules.

    If Python itself put the current directory in sys.path, the result does not have it, or has it
    last if one of the modules was found there.
    """
    path = [str(entry) for entry in sys.path if entry and isinstance(entry, str)]
    here = _implied_folder()
    if here is None:
        return path
    if "" not in sys.path:
        path.remove(here)  # the first one: a second one was added by the user
    if here not in path and any(here in _folders_of(module) for module in needs):
        path.append(here)
    return path


def _implied_folder() -> str | None:
    """Return the current directory if Python itself put it in sys.path, or None."""
    try:
        here = os.getcwd()  # noqa: PTH109 - sys.path has strings
    except OSError:  # the directory was removed
        return None
    by_module = getattr(sys.modules.get("__main__"), "__spec__", None) is not None
    is_implied = "" in sys.path or (by_module and not sys.flags.safe_path and here in sys.path)
    return here if is_implied else None


def _folders_of(module: str) -> list[str]:
    """Return the folders in which a module's top-level package was found."""
    top = sys.modules.get(module.partition(".")[0])
    places = [*getattr(top, "__path__", ())] or [getattr(top, "__file__", None)]
    return [os.path.dirname(place) for place in places if place]  # noqa: PTH120 - as above
