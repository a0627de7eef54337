"""The CPUs that this process may use, and how many lanes that makes by default.

Two things limit them: the affinity mask, and the quota of each control group from the process's own up
to the topmost one that can be seen. A quota is CPU time per period: half a CPU more counts as one.

    /proc/self/cgroup     the process's group, by hierarchy    0::/a/b  or  4:cpu,cpuacct:/a/b
    /proc/self/mountinfo  where a hierarchy is mounted, and which group that shows at its top
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        for folder in _own_groups(root)
        if (quota := _quota_v2(folder) or _quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _own_groups(root: Path) -> Iterator[Path]:
    """Yield the folder of each control group that the process is in, and of those above it."""
    groups = dict(_memberships(root))
    for line in (root / "proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        shown, mounted_at = before.split()[3:5]
        kind, *_, options = after.split()
        if kind == "cgroup2":
            group = groups.get("")
        elif kind == "cgroup" and "cpu" in options.split(","):
            group = groups.get("cpu")
        else:
            continue
        if group is None:
            continue
        top = root / mounted_at.lstrip("/")
        # Of a group outside what the mount shows, only the mount's top is known to be above it.
        below = PurePosixPath(group)
        inside = below.relative_to(shown) if below.is_relative_to(shown) else PurePosixPath()
        folder = top / inside
        yield from (folder, *folder.parents[: len(inside.parts)])


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Yield controller ("" for version 2) and group for each hierarchy the process is in."""
    for line in (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, group


def _quota_v2(folder: Path) -> int | None:
    words = _words(folder / "cpu.max")
    if len(words) != 2 or words[0] == b"max":
        return None
    return _as_cpus(*words)


def _quota_v1(folder: Path) -> int | None:
    words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    return None if len(words) != 2 else _as_cpus(*words)


def _words(path: Path) -> list[bytes]:
    try:
        # Bytes: a process that changed its root or user may find no decoder of ASCII any more.
        return path.read_bytes().split()
    except OSError:  # the root group has no such file, nor has one without the controller
        return []


def _as_cpus(quota: bytes, period: bytes) -> int | None:
    """Divide, rounded up; None where there is no limit, which version 1 writes as −1."""
    return -(-int(quota) // int(period)) if int(quota) > 0 and int(period) > 0 else None
