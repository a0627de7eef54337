"""MemoryGroup: a cgroup with a memory limit, made for a measurement and removed after it.

When a process moves into a group, its memory stays charged to its old group. A limit therefore
applies only to memory that the process allocates afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from batchzip.errors import BackendUnavailable
from batchzip.system.lifetime import Closing

_REMOVAL_TIMEOUT_S = 10.0
"""The kernel refuses to remove a group until its last process has ended completely."""


@dataclass(frozen=True, slots=True)
class _Version:
    limit: str
    unlimited: str
    peak: str


_VERSIONS = {
    1: _Version("memory.limit_in_bytes", "-1", "memory.max_usage_in_bytes"),
    2: _Version("memory.max", "max", "memory.peak"),
}


def find_controller() -> tuple[int, Path]:
    """Return the version of the memory controller and the folder of its root group.

    Raise BackendUnavailable if there is no memory controller.
    """
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    kinds = [line.split()[1:4] for line in mounts]
    for folder, kind, options in kinds:
        if kind == "cgroup" and "memory" in options.split(","):
            return 1, Path(folder)
    for folder, kind, _ in kinds:
        controllers = Path(folder, "cgroup.controllers")
        if kind == "cgroup2" and "memory" in controllers.read_text(encoding="ascii").split():
            return 2, Path(folder)
    raise BackendUnavailable("memory limit: no cgroup with a memory controller is mounted")


class MemoryGroup(Closing):
    """A group with an optional limit in bytes. Raises BackendUnavailable if it cannot be made."""

    def __init__(self, name: str, limit: int | None = None) -> None:
        version, top = find_controller()
        self._files = _VERSIONS[version]
        self._folder = top / name
        try:
            if version == 2:
                (top / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
            self._folder.mkdir()
        except OSError as error:
            raise BackendUnavailable(
                f"memory limit: no group can be made in {top} ({error.strerror})"
            ) from None
        text = self._files.unlimited if limit is None else str(limit)
        try:
            (self._folder / self._files.limit).write_text(text, encoding="ascii")
        except BaseException:
            self.close()
            raise

    def take(self, pid: int) -> None:
        """Move a process into the group."""
        (self._folder / "cgroup.procs").write_text(str(pid), encoding="ascii")

    @property
    def peak_bytes(self) -> int:
        """The peak memory charged to the group. 0 if unknown (cgroup v2 before Linux 5.19)."""
        try:
            return int((self._folder / self._files.peak).read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Kill the processes in the group and remove it."""
        _remove(self._folder)


def remove_groups(prefix: str) -> None:
    """Remove all groups whose names begin with `prefix`."""
    _, top = find_controller()
    for folder in top.glob(f"{prefix}*/"):
        _remove(folder)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVAL_TIMEOUT_S
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
