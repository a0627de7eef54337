"""Plug-ins by name: classes registered under an entry-point group.

Both registries (codecs, backends) are this: names come from the installed distributions, a class
is imported when it is first asked for, so that a broken plug-in hurts only who names it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@cache
def plugin_entry_points(group: str) -> dict[str, EntryPoint]:
    """Entry points of `group` by name, as they stood when first asked for."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - 4 MiB that no worker needs

    return {point.name: point for point in entry_points(group=group)}
