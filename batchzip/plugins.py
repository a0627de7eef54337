"""Plug-ins by name: classes registered under an entry-point group.

Codecs and backends are registered this way. Names come from the installed distributions. A class is
imported when it is first used by name, so that a broken plug-in affects only its users.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from batchzip.system.descriptors import above_standard

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


_DESCRIPTORS = 3
"""Descriptors that the search opens at a time: a folder, or a file in a folder of a zip."""


@cache
def plugin_entry_points(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of `group` by name. The first call searches; later ones remember.

    If two distributions have the same name in the group, the first on the path counts, as with
    imports. Raise LimitReached if descriptors are exhausted: the search would take that for empty
    folders, and remember it.
    """
    with above_standard(), ExitStack() as spare:
        for _ in range(_DESCRIPTORS):
            spare.callback(os.close, os.open(os.sep, os.O_PATH | os.O_CLOEXEC))
    from importlib.metadata import distributions  # noqa: PLC0415 - 4 MiB that no worker needs

    found: dict[str, EntryPoint] = {}
    # Imports skip path entries that are not strings, but importlib.metadata fails on them.
    for distribution in distributions(path=[part for part in sys.path if isinstance(part, str)]):
        try:
            points = distribution.entry_points
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001, S112 - damaged metadata may raise anything
            continue
        for point in points:
            if point.group == group:
                found.setdefault(point.name, point)
    return found
