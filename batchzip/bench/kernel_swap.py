"""KernelSwap: the kernel's swap on zram, switched on for a measurement and always off after it.

A separate process, the keeper, holds the swap area. When the program closes the swap or ends in any
way, even by SIGKILL, the keeper switches the area off and removes its device and all of the
program's groups.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

from batchzip.bench.memory_group import MemoryGroup, find_controller, remove_groups
from batchzip.bench.zram import Zram, aligned, end_orderly
from batchzip.errors import BackendUnavailable
from batchzip.system.interpreter import command_for
from batchzip.system.lifetime import Closing

_HEADER_AT = 1024
_MAGIC = b"SWAPSPACE2"
_PREFERRED, _PRIORITY = 0x8000, 32767
"""SWAP_FLAG_PREFER and the highest priority, so that the kernel uses this area first."""

_SUMMARY = "the kernel's swap on zram"


class KernelSwap(Closing):
    """Swap on a zram device of `size` bytes, and groups with memory limits. Both need root.

    `missing` says why there is no swap, and is None if there is one. `groups_missing` says the same
    of groups.
    """

    def __init__(self, size: int, algorithm: str = "lz4") -> None:
        self._keeper: subprocess.Popen[str] | None = None
        self._groups = 0
        self._folder = Path()
        if os.geteuid():
            self.missing: str | None = f"{_SUMMARY}: only root may switch it on"
            self.groups_missing: str | None = "memory limits: only root may set them"
            return
        command = command_for(
            "from batchzip.bench.kernel_swap import keep; keep()", "what holds the swap area"
        )
        self._keeper = subprocess.Popen(  # noqa: S603 - our own
            [*command, self._prefix, str(size), algorithm],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only the program
        )
        assert self._keeper.stdout is not None  # noqa: S101 - a pipe
        answer = json.loads(self._keeper.stdout.readline() or '{"missing": "its process ended"}')
        self.missing = answer["missing"]
        self.groups_missing = answer.get("groups_missing")
        self._folder = Path(answer.get("folder", ""))

    @property
    def _prefix(self) -> str:
        return f"batchzip-{os.getpid()}-"

    def group(self, limit: int | None = None) -> MemoryGroup:
        """Make a group with a limit in bytes. The keeper removes it if nothing else does."""
        self._groups += 1
        return MemoryGroup(f"{self._prefix}{self._groups}", limit)

    def forget_peak(self) -> None:
        """Reset `peak_bytes` to the device's current memory."""
        (self._folder / "mem_used_max").write_text("0", encoding="ascii")

    @property
    def peak_bytes(self) -> int:
        """The peak memory of the device since `forget_peak`."""
        return self._memory(4)

    @property
    def held_bytes(self) -> int:
        """The memory of the device, without its table."""
        return self._memory(2)

    def _memory(self, column: int) -> int:
        return int((self._folder / "mm_stat").read_text(encoding="ascii").split()[column])

    def close(self) -> None:
        """Switch the swap off and remove all groups."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.communicate()  # closes its stdin, which ends it


class _Area(Closing):
    """A swap area on a zram device, within the keeper."""

    def __init__(self, size: int, algorithm: str) -> None:
        self._zram = Zram(size, algorithm)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._on = False
        try:
            header = aligned(mmap.PAGESIZE)
            last = self._zram.size // mmap.PAGESIZE - 1
            struct.pack_into(
                "=III", header, _HEADER_AT, 1, last, 0
            )  # version, last page, bad pages
            header[-len(_MAGIC) :] = _MAGIC
            self._zram.write(header, 0)
            self._switch_on()
        except BaseException:
            self.close()
            raise

    def _switch_on(self) -> None:
        if self._libc.swapon(self._path, _PREFERRED | _PRIORITY):
            reason = os.strerror(ctypes.get_errno())
            raise BackendUnavailable(f"{_SUMMARY}: swapon failed ({reason})")
        self._on = True

    @property
    def _path(self) -> bytes:
        return self._zram.path.encode()

    @property
    def folder(self) -> str:
        """The device's folder in /sys."""
        return str(self._zram.folder)

    def close(self) -> None:
        """Switch the area off and remove the device."""
        if self._on and self._libc.swapoff(self._path):
            raise OSError(ctypes.get_errno(), "swapoff failed", self._path)
        self._on = False
        self._zram.close()


def keep() -> None:
    """Hold a swap area until stdin ends. This is the keeper's main function."""
    prefix, size, algorithm = sys.argv[1:]
    end_orderly()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    answer: dict[str, str | None] = {"missing": None, "groups_missing": None}
    with contextlib.ExitStack() as stack:
        try:
            find_controller()
            area = stack.enter_context(_Area(int(size), algorithm))
            answer["folder"] = area.folder
        except BackendUnavailable as error:
            answer["missing"] = str(error)
        try:
            # Groups are removed before swapoff, which would read their swapped pages back.
            find_controller()
            stack.callback(remove_groups, prefix)
        except BackendUnavailable as error:
            answer["groups_missing"] = str(error)
        with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            sys.stdin.read()
