"""Reach: the folder of a shared store's socket, and an explanation if a store is unreachable."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

_ELSEWHERE = "/dev/shm"  # noqa: S108 - mkdtemp makes a name that nobody else has
"""Second choice for the socket if the temporary folder is not writable, as often in containers."""


def make_folder() -> Path:
    """Create a folder for a socket that only this user can access.

    Raise OSError if no folder can be created, or if /proc is not mounted.
    """
    if not Path("/proc/self/fd").exists():
        raise FileNotFoundError(
            errno.ENOENT, "sharing a store needs /proc, which is not mounted", "/proc"
        )
    try:
        folder = Path(tempfile.mkdtemp(prefix="batchzip-"))
    except OSError as error:
        try:
            folder = Path(tempfile.mkdtemp(prefix="batchzip-", dir=_ELSEWHERE))
        except OSError:
            raise error from None
    folder.chmod(0o700)  # despite any umask
    return folder


def why_unreachable(number: int, pid: int, address: str) -> str:
    """Return why a store of process `pid` is unreachable. `number` is the errno of the attempt."""
    reason = os.strerror(number)
    more = ""
    if number == errno.ENOENT and not Path("/proc/self").exists():
        more = "/proc is not mounted"
    elif number == errno.EACCES:
        with contextlib.suppress(OSError, ValueError, IndexError):  # the process is hidden or gone
            more = _why_denied(pid, address)
    return f"no store can be reached there: {reason}" + (f", because {more}" if more else "")


def _why_denied(pid: int, address: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    user = int(next(line for line in lines if line.startswith(b"Uid:")).split()[2])
    if user != os.geteuid():
        return f"process {pid} belongs to user {user}, and this one to user {os.geteuid()}"
    if Path(f"/proc/{pid}/fd").stat().st_uid != user:
        return (
            f"process {pid} changed its user or gave up privileges, so other processes cannot open "
            "its descriptors: call prctl(PR_SET_DUMPABLE, 1) in it"
        )
    if Path(address).stat().st_uid != user:
        return f"process {pid} changed its user after it shared the store: share it afterwards"
    return ""
