"""The control groups of this process, in versions 1 and 2.

    /proc/self/cgroup     the process's group, by hierarchy    0::/a/b  or  4:cpu,cpuacct:/a/b
    /proc/self/mountinfo  where a hierarchy is mounted, and which group is at the mount's top

The limit of a group also applies to the groups below it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's control group for `controller` and of the groups above it.

    `root` is the folder in which to find `proc` and the control groups. Raise OSError, ValueError
    or IndexError if /proc is not mounted, or its files have an unknown format.
    """
    groups = dict(_memberships(root))
    for line in (root / "proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        shown, mounted_at = before.split()[3:5]
        kind, *_, options = after.split()
        if kind == "cgroup2":
            group = groups.get("")
        elif kind == "cgroup" and controller in options.split(","):
            group = groups.get(controller)
        else:
            continue
        if group is None:
            continue
        top = root / mounted_at.lstrip("/")
        # If the mount does not show the group, only the mount's top is known to be above it.
        below = PurePosixPath(group)
        inside = below.relative_to(shown) if below.is_relative_to(shown) else PurePosixPath()
        folder = top / inside
        yield from (folder, *folder.parents[: len(inside.parts)])


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Yield controller ("" for version 2) and group for each hierarchy of the process."""
    for line in (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, group


def words(path: Path) -> list[bytes]:
    """Return the words of a control group's file; none if there is no such file."""
    try:
        # Bytes: after a change of root or user, Python may not be able to import a decoder.
        return path.read_bytes().split()
    except OSError:  # the root group, and groups without the controller, have no such file
        return []
