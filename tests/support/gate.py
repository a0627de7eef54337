"""A storage object in memory whose writes wait until a test lets them go on."""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Gate:
    """A file object in memory, which holds writes until it is told to let them through."""

    def __init__(self) -> None:
        self.memory = bytearray()
        self.writing = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.fail: Callable[[str], None] = lambda _call: None

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        self.fail("write")
        self.writing.set()
        self.open.wait()
        end = offset + len(data)
        self.memory.extend(bytes(max(0, end - len(self.memory))))
        self.memory[offset:end] = data
        return len(data)

    def pread(self, length: int, offset: int) -> bytes:
        self.fail("read")
        return bytes(self.memory[offset : offset + length])

    def sync(self) -> None:
        self.fail("sync")
