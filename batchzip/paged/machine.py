"""The memory that this process may use: the machine's, or less if its control groups limit it."""

from __future__ import annotations

from pathlib import Path

from batchzip.system.control_groups import own_groups, words

_LIMITS = "memory.max", "memory.limit_in_bytes"
"""Files with the limit of a control group, in version 2 and in version 1."""


def memory_limit(root: Path = Path("/")) -> tuple[int, str] | None:
    """Return the bytes of memory that this process may use, and the name of what limits it.

    Return None if no limit is known. `root` is the folder that contains `proc` and `sys`.
    """
    found = []
    for line in (root / "proc/meminfo").read_text("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            found.append((int(value.split()[0]) << 10, "the machine"))
    try:
        folders = list(own_groups(root, "memory"))
    except (OSError, ValueError, IndexError):  # /proc has an unknown format
        folders = []
    for folder in folders:
        for name in _LIMITS:
            limit = words(folder / name)
            if limit and limit[0].isdigit():  # version 2 says "max" if there is no limit
                found.append((int(limit[0]), "its control group"))
    return min(found, default=None)
