"""The kernel's own: a zram device of our own, written and read with O_DIRECT in blocks of one size.

    hot_add ─▶ comp_algorithm, disksize ─▶ pwrite/pread of a whole block ─▶ reset ─▶ hot_remove

zram compresses page by page in the context of whoever writes, so a write of 32 KiB is a batch of eight. Two
writers are two processes' worth of cores: threads here, as the work is done in the kernel, without the GIL.

For root, where the kernel has zram. Nothing of other devices is touched.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument
from batchzip.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.buffers import Bytes

_CONTROL = Path("/sys/class/zram-control")

_APPEARS_S = 5.0
"""Seconds in which the system makes a new device's node."""

_MM_STAT_ORIGINAL, _MM_STAT_COMPRESSED, _MM_STAT_HELD = 0, 1, 2


def why_not() -> str:
    """Say why zram cannot be measured here; nothing if it can."""
    if not (_CONTROL / "hot_add").exists():
        return "this kernel has no zram (or its module is not loaded)"
    if os.geteuid() != 0:
        return "only root may make a zram device"
    return ""


class Zram(Closing):
    """A zram device of `size` bytes. Raises BadArgument where there can be none, OSError."""

    def __init__(self, size: int, algorithm: str = "lz4") -> None:
        reason = why_not()
        if reason:
            raise BadArgument(reason)
        self._number = int((_CONTROL / "hot_add").read_text())
        self._fd = -1
        self._folder = Path(f"/sys/block/zram{self._number}")
        try:
            (self._folder / "comp_algorithm").write_text(algorithm)
            (self._folder / "disksize").write_text(str(size))
            path = Path(f"/dev/zram{self._number}")
            until = time.monotonic() + _APPEARS_S
            while not path.exists() and time.monotonic() < until:
                time.sleep(0.01)
            self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview, block: int, writers: int = 1) -> None:
        """Write everything in blocks of so many bytes. `data` begins where a page of the machine does."""
        self._each(
            lambda at: os.pwrite(self._fd, data[at : at + block], at), len(data), block, writers
        )

    def read(self, room: memoryview, block: int, readers: int = 1) -> None:
        """Read everything in blocks of so many bytes."""
        self._each(
            lambda at: os.preadv(self._fd, [room[at : at + block]], at), len(room), block, readers
        )

    def read_at(self, room: memoryview, offset: int) -> int:
        """Read what lies at one place; bytes read."""
        return os.preadv(self._fd, [room], offset)

    @staticmethod
    def _each(call: Callable[[int], int], length: int, block: int, lanes: int) -> None:
        def lane(number: int) -> None:
            for at in range(number * block, length, lanes * block):
                call(at)

        if lanes == 1:
            lane(0)
            return
        with ThreadPoolExecutor(lanes) as executor:
            list(executor.map(lane, range(lanes)))

    @property
    def compressed_bytes(self) -> int:
        """Bytes of the compressed pages."""
        return self._stat(_MM_STAT_COMPRESSED)

    @property
    def held_bytes(self) -> int:
        """Bytes of memory its allocator holds."""
        return self._stat(_MM_STAT_HELD)

    def _stat(self, field: int) -> int:
        return int((self._folder / "mm_stat").read_text().split()[field])

    def close(self) -> None:
        """Remove the device."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._number >= 0:
            number, self._number = self._number, -1
            with contextlib.suppress(OSError):
                (self._folder / "reset").write_text("1")
            (_CONTROL / "hot_remove").write_text(str(number))


def aligned(pages: Bytes) -> memoryview:
    """Copy pages to where O_DIRECT takes them from."""
    room = mmap.mmap(-1, pages.nbytes)
    room[:] = pages.tobytes()
    return memoryview(room)
