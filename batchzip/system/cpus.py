"""The number of CPUs that this process may use, and the default number of lanes.

Two things limit the CPUs: the affinity mask, and the quotas of the process's control group and all
visible groups above it (control_groups.py). A quota is CPU time per period, rounded up to whole
CPUs.
"""

from __future__ import annotations

import os
from pathlib import Path

from batchzip.system.control_groups import own_groups, words

MOST_LANES = 15
"""Upper limit of the default number of lanes, besides the caller."""

MOST_WORKERS = 1024
"""Upper limit of `workers=`: more than any machine has CPUs."""


def usable_cpus() -> int:
    """Return how many CPUs this process may use, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except OSError:  # a filter of system calls refuses it
        count = os.cpu_count() or 1
    try:
        quota = cpu_quota()
    except (OSError, ValueError, IndexError):  # /proc is not mounted, or has an unknown format
        return count
    return count if quota is None else max(1, min(count, quota))


def default_lanes() -> int:
    """Return the default number of lanes besides the caller, 1 to MOST_LANES."""
    return min(max(1, usable_cpus() - 1), MOST_LANES)


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Return how many CPUs the control groups allow, rounded up; None if no group has a quota.

    `root` is the folder in which to find `proc` and the control groups.
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
    """Return quota / period, rounded up. Return None for no limit, which version 1 writes as −1."""
    return -(-int(quota) // int(period)) if int(quota) > 0 and int(period) > 0 else None
