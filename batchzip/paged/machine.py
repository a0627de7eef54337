"""The memory that this process may use: the machine's, or what its control groups allow of it."""

from __future__ import annotations

from pathlib import Path

from batchzip.system.control_groups import own_groups, words

_LIMITS = "memory.max", "memory.limit_in_bytes"
"""Where a control group says its limit, in version 2 and in version 1."""


def memory_limit(root: Path = Path("/")) -> tuple[int, str] | None:
    """Return the bytes of memory that there are for this process, and what says so; None: nothing does.

    `root` is the folder under which `proc` and the control groups are looked for.
    """
    found = []
    for line in (root / "proc/meminfo").read_text("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            found.append((int(value.split()[0]) << 10, "the machine"))
    try:
        folders = list(own_groups(root, "memory"))
    except (OSError, ValueError, IndexError):  # /proc is unlike any known one
        folders = []
    for folder in folders:
        for name in _LIMITS:
            limit = words(folder / name)
            if limit and limit[0].isdigit():  # version 2 has "max" where there is none
                found.append((int(limit[0]), "its control group"))
    return min(found, default=None)
