"""Plug-ins by name: classes registered under an entry-point group.

Both registries (codecs, backends) are this: names come from the installed distributions, a class
is imported when it is first asked for, so that a broken plug-in hurts only who names it.
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
"""What the search has open at a time: a folder, or a file in a folder of a zip."""


@cache
def plugin_entry_points(group: str) -> dict[str, EntryPoint]:
    """Entry points of `group` by name, as they stood when first asked for.

    Where two distributions have the same name in it, the first on the path counts, as with imports. Raise
    LimitReached where descriptors are out: the search takes that for empty folders, and remembers it.
    """
    with above_standard(), ExitStack() as spare:
        for _ in range(_DESCRIPTORS):
            spare.callback(os.close, os.open(os.sep, os.O_PATH | os.O_CLOEXEC))
    from importlib.metadata import distributions  # noqa: PLC0415 - 4 MiB that no worker needs

    found: dict[str, EntryPoint] = {}
    # Imports leave out what is no text, and importlib.metadata fails at it.
    for distribution in distributions(path=[part for part in sys.path if isinstance(part, str)]):
        try:
            points = distribution.entry_points
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001, S112 - somebody's metadata, damaged in whatever way
            continue
        for point in points:
            if point.group == group:
                found.setdefault(point.name, point)
    return found
