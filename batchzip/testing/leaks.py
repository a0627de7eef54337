"""LeakCheck: finds what a piece of code leaves behind, by reading /proc.

    with LeakCheck():
        ...                 an AssertionError names each child process, descriptor, thread and
                            shared segment that exists afterwards and did not before

It compares two snapshots. Only if they differ does it collect garbage and wait for things that are
ending. A check that finds nothing costs about a millisecond.

Not detected: a grandchild whose parent has exited, because it is init's child then; a second
mapping of a segment that was mapped before; and a segment that is mapped exactly where another one
was when a check last looked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from batchzip.system.processes import process_stat

if TYPE_CHECKING:
    from types import TracebackType

GRACE_S = 3.0
"""Seconds to wait for things that are ending: a worker takes some milliseconds to stop."""

_TRACKERS = re.compile(
    rb"(loky\.backend|multiprocessing)\.(resource|semaphore)_tracker import main"
)
"""Command lines of helper processes that are started once and live as long as this process."""

_SEGMENT = re.compile(r"^\S+ \S+ \S+ (\S+) (\d+)\s+(/memfd:batchzip.*|/dev/shm/.*)$", re.MULTILINE)
"""Device, inode and name of a shared mapping in /proc/self/maps."""

_last_seen: tuple[list[str], dict[object, str]] = [], {}
"""The addresses of mapped files, and the shared segments among them, when last looked at."""


class LeakCheck:
    """Raises an AssertionError that names each thing left behind by the code in its context.

    If that code raises, its exception is raised, and nothing is checked. In a pytest fixture,
    `with LeakCheck(): yield` checks the test and every fixture set up after this one. Call
    `start_resource_trackers()` first, or the pipes to the trackers count as left behind. A thing is
    ignored if the regular expression `ignore` is found in its description.

    Examples:
        >>> import os
        >>> from batchzip.testing import LeakCheck
        >>> with LeakCheck(grace_s=0.1):
        ...     fd = os.open("/dev/null", os.O_RDONLY)
        Traceback (most recent call last):
            ...
        AssertionError: ...
        >>> os.close(fd)
    """

    def __init__(self, *, grace_s: float = GRACE_S, ignore: str | None = None) -> None:
        self._grace_s = grace_s
        self._ignore = None if ignore is None else re.compile(ignore)
        self._before: dict[object, str] = {}

    def __enter__(self) -> Self:
        self._before = _snapshot()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        left = self.leftovers()
        if left:
            raise AssertionError("left behind:\n" + "\n".join(f"  {what}" for what in left))

    def leftovers(self) -> list[str]:
        """Return descriptions of new things that still exist after up to `grace_s` seconds."""
        left = self._new()
        if left:
            gc.collect()
            deadline = time.monotonic() + self._grace_s
            while (left := self._new()) and time.monotonic() < deadline:
                time.sleep(0.005)
        return left

    def _new(self) -> list[str]:
        return sorted(
            what
            for key, what in _snapshot().items()
            if key not in self._before and not (self._ignore and self._ignore.search(what))
        )


def start_resource_trackers() -> None:
    """Start multiprocessing's resource tracker now, so that no check counts it as left behind.

    No backend of batchzip needs it, but other code may.

    Examples:
        >>> from batchzip.testing import LeakCheck, start_resource_trackers
        >>> start_resource_trackers()
        >>> with LeakCheck():
        ...     pass
    """
    from multiprocessing import resource_tracker  # noqa: PLC0415 - rarely needed

    resource_tracker.ensure_running()


def is_alive(pid: int) -> bool:
    """Return whether the process exists and has not ended. A zombie has ended."""
    try:
        return _stat(pid)[2] != "Z"
    except OSError:
        return False


def _snapshot() -> dict[object, str]:
    """Return descriptions of all things, by keys that are never reused."""
    return {**_descriptors(), **_threads(), **_segments(), **_children(os.getpid())}


def _descriptors() -> dict[object, str]:
    found: dict[object, str] = {}
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a third of the time, for every test
        with contextlib.suppress(OSError):  # the descriptor of listdir itself is closed
            target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - as below
            found["fd", fd, target] = f"descriptor {fd}: {target}"
    return found


def _threads() -> dict[object, str]:
    return {thread: f"thread: {thread!r}" for thread in threading.enumerate()}


def _segments() -> dict[object, str]:
    found = _mapped_segments()
    pid = str(os.getpid())
    ours = re.compile(rf"batchzip|(?<!\d){pid}(?!\d)")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/dev/shm"):  # noqa: PTH208, S108 - as above; nothing is written
            if (pid in name or "batchzip" in name) and ours.search(name):
                found["shm", name] = f"shared memory file: /dev/shm/{name}"
    return found


def _mapped_segments() -> dict[object, str]:
    """Return the shared segments that are mapped.

    To read a thousand mappings takes 1.5 ms. To list the addresses at which files are mapped takes
    a third of that, and they are seldom others than last time.
    """
    global _last_seen  # noqa: PLW0603 - a cache
    try:
        addresses = os.listdir("/proc/self/map_files")  # noqa: PTH208 - as above
    except OSError:  # not every sandbox has it
        addresses = []
    seen, segments = _last_seen
    if not addresses or addresses != seen:
        maps = Path("/proc/self/maps").read_text("utf-8")
        segments = {
            ("segment", device, inode): f"shared memory mapped: {name}"
            for device, inode, name in _SEGMENT.findall(maps)
        }
        _last_seen = addresses, segments
    return dict(segments)


def _children(parent: int) -> dict[object, str]:
    found: dict[object, str] = {}
    for pid in _child_pids(parent):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if _TRACKERS.search(command):
                continue
            _, name, state, _, started = _stat(pid)
            shown = command.replace(b"\0", b" ").decode(errors="replace").strip() or f"({name})"
            found["child", pid, started] = f"child process {pid}, state {state}: {shown[:200]}"
            found.update(_children(pid))
    return found


def _child_pids(parent: int) -> list[int]:
    """Return the children of every thread of `parent`, zombies included."""
    tasks = Path(f"/proc/{parent}/task")
    try:
        lists = [(task / "children").read_text("ascii") for task in tasks.iterdir()]
    except FileNotFoundError:  # a thread has ended, or the kernel does not list children
        return [pid for pid in _pids() if _parent_of(pid) == parent]
    return [int(pid) for line in lists for pid in line.split()]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _parent_of(pid: int) -> int:
    try:
        return _stat(pid)[3]
    except OSError:
        return -1


def _stat(pid: int) -> tuple[int, str, str, int, int]:
    """Return PID, name, state, parent and start time of a process: see proc_pid_stat(5)."""
    name, fields = process_stat(pid)
    return pid, name, fields[0], int(fields[1]), int(fields[19])
