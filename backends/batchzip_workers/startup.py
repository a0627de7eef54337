"""Startup: prepares a worker's process for its work.

A worker dies with its owner. PR_SET_PDEATHSIG delivers SIGKILL when the thread that started it
ends, which is the supervisor's and lives as long as the backend. getppid is checked afterwards,
because the owner may have died before. The worker ignores SIGINT, which is for the owner.

This module imports little. So a successor works as soon as Python has started, and a worker does
not keep 1.6 MiB of `typing` and 0.8 MiB of `enum`, which `signal` would import.
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
"""Exit status (EX_SOFTWARE) after an exception outside a page."""

_PR_SET_PDEATHSIG = 1


def run(
    memory: int, owner_pid: int, module: str, arguments: Sequence[object], fds: Sequence[int]
) -> None:
    """Run `module.main(*arguments)`. Write an exception to `memory` for the owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:
        return
    try:
        for fd in (memory, *fds):  # processes that a codec starts must not inherit them
            os.set_inheritable(fd, False)
        _open_standard()
        main = import_module(module).main
        main(*arguments)
    except Exception as error:  # noqa: BLE001 - the owner reports it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        os.lseek(memory, 0, os.SEEK_END)
        os.write(memory, reason.encode(errors="replace"))
        sys.exit(FAILED_EXIT)


def _open_standard() -> None:
    """Open /dev/null as stdin and as closed standard streams, so that no file gets 0 to 2."""
    null = _open_nowhere()
    os.dup2(null, 0)
    while null <= 2:
        null = _open_nowhere()
    os.close(null)


def _open_nowhere() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:  # there is no /dev, as after chroot
        from batchzip.system.descriptors import open_nowhere  # noqa: PLC0415 - it imports typing

        return open_nowhere()
