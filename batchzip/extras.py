"""Extras: libraries that only some need, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from batchzip.errors import MissingExtra


def load_extra(module: str, *, extra: str, needed_by: str) -> Any:
    """Import `module`, which the extra of that name installs, for what is named.

    Raises MissingExtra with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        raise MissingExtra(needed_by, module.partition(".")[0], extra) from None
