"""Plug-ins by name: classes registered under an entry-point group.

Both registries (codecs, backends) are this: names come from the installed distributions, a class
is imported when it is first asked for, so that a broken plug-in hurts only who names it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from batchzip.descriptors import above_standard

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


_DESCRIPTORS = 3
"""What the search has open at a time: a folder, or a file in a folder of a zip."""


@cache
def plugin_entry_points(group: str) -> dict[str, EntryPoint]:
    """Entry points of `group` by name, as they stood when first asked for.

    Raise LimitReached where descriptors are out: the search takes that for empty folders, and remembers it.
    """
    with above_standard(), ExitStack() as spare:
        for _ in range(_DESCRIPTORS):
            spare.callback(os.close, os.open(os.sep, os.O_PATH | os.O_CLOEXEC))
    from importlib.metadata import entry_points  # noqa: PLC0415 - 4 MiB that no worker needs

    return {point.name: point for point in entry_points(group=group)}
