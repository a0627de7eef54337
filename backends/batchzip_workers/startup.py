"""Startup: what a worker's process does before its work.

A worker dies with its owner: PR_SET_PDEATHSIG delivers SIGKILL when the thread that started it ends,
which is the supervisor's and lives as long as the backend; getppid is looked at afterwards, for an
owner that died before. SIGINT is the owner's matter and ignored.

Little is imported here: a worker is back after a death in the time that Python takes to start, and does
not keep 1.6 MiB of `typing` and 0.8 MiB of `enum`, which `signal` is made with.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import ctypes
import os
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED_EXIT = 70
"""Exit status (EX_SOFTWARE) after an exception that is no page's."""

_PR_SET_PDEATHSIG = 1


def run(
    memory: int, owner_pid: int, module: str, arguments: Sequence[object], fds: Sequence[int]
) -> None:
    """Run `module.main(*arguments)`; an exception is told to the owner, behind its task in `memory`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:
        return
    try:
        for fd in (memory, *fds):  # not for what a codec starts
            os.set_inheritable(fd, False)
        _open_standard()
        main = import_module(module).main
        main(*arguments)
    except Exception as error:  # noqa: BLE001 - nobody here would catch it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        os.lseek(memory, 0, os.SEEK_END)
        os.write(memory, reason.encode(errors="replace"))
        sys.exit(FAILED_EXIT)


def _open_standard() -> None:
    """Lead stdin nowhere, and what the owner has closed: nothing of ours is opened there."""
    null = _open_nowhere()
    os.dup2(null, 0)
    while null <= 2:
        null = _open_nowhere()
    os.close(null)


def _open_nowhere() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:  # there is no /dev, as after chroot
        from batchzip.system.descriptors import open_nowhere  # noqa: PLC0415 - it brings typing

        return open_nowhere()
