"""A storage object in memory whose calls fail as they are told to."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter


class FaultyFile:
    """Bytes by offset, with faults by the name of the call.

    `faults[name] = (code, times)`: the next `times` calls raise OSError(code). With code 0 they do
    half of what they are asked for, at least one byte.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.faults: dict[str, tuple[int, float]] = {}
        self.calls: Counter[str] = Counter()
        self.ranges: list[tuple[int, int]] = []
        self._lock = threading.RLock()

    def _portion(self, name: str, length: int) -> int:
        self.calls[name] += 1
        code, times = self.faults.get(name, (0, 0))
        if times <= 0:
            return length
        self.faults[name] = (code, times - 1)
        if code:
            raise OSError(code, os.strerror(code))
        return -(-length // 2)

    def pread(self, length: int, offset: int) -> bytes:
        with self._lock:
            length = self._portion("pread", length)
            return bytes(self.content[offset : offset + length])

    def pwrite(self, data: memoryview, offset: int) -> int:
        with self._lock:
            self.ranges.append((offset, offset + len(data)))
            length = self._portion("pwrite", len(data))
            if len(self.content) < offset + length:
                self.content.extend(bytes(offset + length - len(self.content)))
            self.content[offset : offset + length] = data[:length]
            return length

    def sync(self) -> None:
        with self._lock:
            self._portion("sync", 0)

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            self._portion("discard", 0)
            end = min(offset + length, len(self.content))
            if end > offset:
                self.content[offset:end] = bytes(end - offset)

    def truncate(self, size: int) -> None:
        with self._lock:
            self._portion("truncate", 0)
            del self.content[size:]


CODES = (errno.ENOSPC, errno.EIO)
