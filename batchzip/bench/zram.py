"""Zram: a device of the kernel's compressed RAM disk, made for a measurement and removed after it.

It needs root, the zram module with its control interface (/sys/class/zram-control), and the
algorithm in the kernel. Reads and writes bypass the page cache (O_DIRECT), so that the kernel
compresses in the calling thread.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path

from batchzip.errors import BackendUnavailable
from batchzip.system.lifetime import Closing

_CONTROL = Path("/sys/class/zram-control")
_DEVICE_TIMEOUT_S = 5.0
"""Time limit for the device's node to appear, which takes milliseconds."""


def end_orderly() -> None:
    """Make SIGTERM end this process as Ctrl-C does, so that its devices are removed.

    Only a program's main function may call it, because it sets the process's signal handler.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Zram(Closing):
    """A zram device of `size` bytes. Raises BackendUnavailable if it cannot be made.

    A process that is killed leaves its device and the memory in it behind. To remove them, write 1
    to /sys/block/zramN/reset and N to /sys/class/zram-control/hot_remove.
    """

    def __init__(self, size: int, algorithm: str = "lz4") -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if os.geteuid():
            raise BackendUnavailable("zram: only root may make a device")
        try:
            self._number = (_CONTROL / "hot_add").read_text(encoding="ascii").strip()
        except OSError as error:
            raise BackendUnavailable(f"zram: this kernel has none ({error.strerror})") from None
        self._fd = -1
        self._folder = Path(f"/sys/block/zram{self._number}")
        try:
            self._set("comp_algorithm", algorithm)
            self._set("disksize", str(self.size))
            self._fd = self._opened()
        except OSError as error:
            self.close()
            raise BackendUnavailable(f"zram with {algorithm}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """The device's node."""
        return f"/dev/zram{self._number}"

    @property
    def folder(self) -> Path:
        """The device's folder in /sys."""
        return self._folder

    def _opened(self) -> int:
        deadline = time.monotonic() + _DEVICE_TIMEOUT_S
        while True:
            try:
                return os.open(self.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _set(self, name: str, value: str) -> None:
        (self._folder / name).write_text(value, encoding="ascii")

    def write(self, view: memoryview, offset: int) -> None:
        """Write a view that begins at a multiple of the machine's page size."""
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)

    def read(self, view: memoryview, offset: int) -> None:
        """Read into a view that begins at a multiple of the machine's page size."""
        done = 0
        while done < len(view):
            done += os.preadv(self._fd, [view[done:]], offset + done)

    def reset(self) -> None:
        """Drop all stored pages."""
        os.close(self._fd)
        self._fd = -1
        self._set("reset", "1")
        self._set("disksize", str(self.size))
        self._fd = self._opened()

    @property
    def compressed_bytes(self) -> int:
        """Compressed bytes of the stored pages."""
        return int((self._folder / "mm_stat").read_text(encoding="ascii").split()[1])

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the device holds for objects, without its table (16 B per page)."""
        return int((self._folder / "mm_stat").read_text(encoding="ascii").split()[2])

    def close(self) -> None:
        """Remove the device."""
        number, self._number = self._number, ""
        if not number:
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._set("reset", "1")
        (_CONTROL / "hot_remove").write_text(number, encoding="ascii")


def aligned(size: int) -> memoryview:
    """Return page-aligned memory, which O_DIRECT needs. It is freed with its last view."""
    return memoryview(mmap.mmap(-1, size))
