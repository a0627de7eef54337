"""The CPUs that this process may use, and how many lanes that makes by default.

Two things limit them: the affinity mask, and the quota of each control group from the process's own up
to the topmost one that can be seen. A quota is CPU time per period: half a CPU more counts as one.

Where the groups are found is control_groups.py's.
"""

from __future__ import annotations

import os
from pathlib import Path

from batchzip.system.control_groups import own_groups, words

MOST_LANES = 15
"""Lanes besides the caller that an engine has at most unless more are asked for."""

MOST_WORKERS = 1024
"""Lanes that can be asked for: more than there are CPUs in any machine that is to be had."""


def usable_cpus() -> int:
    """Return how many CPUs this process may use: at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except OSError:  # a filter of system calls has none of it
        count = os.cpu_count() or 1
    try:
        quota = cpu_quota()
    except (OSError, ValueError, IndexError):  # /proc is not mounted, or unlike any known one
        return count
    return count if quota is None else max(1, min(count, quota))


def default_lanes() -> int:
    """Return how many lanes an engine has besides the caller unless told: 1 to MOST_LANES."""
    return min(max(1, usable_cpus() - 1), MOST_LANES)


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Return how many CPUs the control groups allow, rounded up; None if no group has a quota.

    `root` is the folder under which `proc` and the control groups are looked for.
    """
    quotas = [
        quota
        for folder in own_groups(root, "cpu")
        if (quota := _quota_v2(folder) or _quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> int | None:
    found = words(folder / "cpu.max")
    if len(found) != 2 or found[0] == b"max":
        return None
    return _as_cpus(*found)


def _quota_v1(folder: Path) -> int | None:
    found = words(folder / "cpu.cfs_quota_us") + words(folder / "cpu.cfs_period_us")
    return None if len(found) != 2 else _as_cpus(*found)


def _as_cpus(quota: bytes, period: bytes) -> int | None:
    """Divide, rounded up; None where there is no limit, which version 1 writes as −1."""
    return -(-int(quota) // int(period)) if int(quota) > 0 and int(period) > 0 else None
