"""Extras: optional libraries, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from batchzip.errors import MissingExtra


def load_extra(module: str, *, extra: str, needed_by: str) -> Any:
    """Return `module`, which the extra `extra` installs. `needed_by` names the user in the error.

    Raise MissingExtra, with the command to install it, if it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is installed, but one of its own imports is missing
        raise MissingExtra(needed_by, module.partition(".")[0], extra) from None
