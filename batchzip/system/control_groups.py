"""The control groups that this process is in, of both versions.

    /proc/self/cgroup     the process's group, by hierarchy    0::/a/b  or  4:cpu,cpuacct:/a/b
    /proc/self/mountinfo  where a hierarchy is mounted, and which group that shows at its top

What limits a group limits those below it, too.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of each control group that the process is in by `controller`, and of those above it.

    `root` is the folder under which `proc` and the control groups are looked for. Raise OSError, ValueError or
    IndexError where /proc is not mounted, or unlike any known one.
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


def words(path: Path) -> list[bytes]:
    """Return the words of a file of a control group; none where it has no such file."""
    try:
        # Bytes: a process that changed its root or user may find no decoder of ASCII any more.
        return path.read_bytes().split()
    except OSError:  # the root group has no such file, nor has one without the controller
        return []
