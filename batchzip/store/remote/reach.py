"""Reach: by what a shared store is reached, and why one cannot be, in words."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

_ELSEWHERE = "/dev/shm"  # noqa: S108 - mkdtemp makes a name that nobody else has
"""Where there may be a socket if nothing can be written where temporary files go: often so in containers."""


def make_folder() -> Path:
    """Make a folder for a socket, of this user's only.

    Raise OSError, which says so, where there is no place for it, or no /proc to reach it by.
    """
    if not Path("/proc/self/fd").exists():
        raise FileNotFoundError(
            errno.ENOENT, "a shared store is reached by way of /proc, which is not mounted", "/proc"
        )
    try:
        folder = Path(tempfile.mkdtemp(prefix="batchzip-"))
    except OSError as error:
        try:
            folder = Path(tempfile.mkdtemp(prefix="batchzip-", dir=_ELSEWHERE))
        except OSError:
            raise error from None
    folder.chmod(0o700)  # of which a umask may have taken something away
    return folder


def why_unreachable(number: int, pid: int, address: str) -> str:
    """Say why a store of process `pid` cannot be reached, where connecting ended with this errno."""
    reason = os.strerror(number)
    more = ""
    if number == errno.ENOENT and not Path("/proc/self").exists():
        more = "/proc is not mounted"
    elif number == errno.EACCES:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it is hidden, or gone
            more = _why_denied(pid, address)
    return f"no store can be reached there: {reason}" + (f", as {more}" if more else "")


def _why_denied(pid: int, address: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    user = int(next(line for line in lines if line.startswith(b"Uid:")).split()[2])
    if user != os.geteuid():
        return f"process {pid} is of user {user}, and this one of user {os.geteuid()}"
    if Path(f"/proc/{pid}/fd").stat().st_uid != user:
        return (
            f"process {pid} changed its user or gave up privileges, and lets nobody look into it "
            "since: prctl(PR_SET_DUMPABLE, 1) in it allows that"
        )
    if Path(address).stat().st_uid != user:
        return f"process {pid} changed its user after it shared the store: share it afterwards"
    return ""
