"""A codec that writes down what it does and in which process: lz4. Workers import it by name."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class RecordingCodec(Codec):
    """lz4 that adds a line to the file `log` for each page: process, what, bytes of the input."""

    name: ClassVar[str] = "recording"

    log: str

    def _note(self, what: str, length: int) -> None:
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, f"{os.getpid()} {what} {length}\n".encode())
        finally:
            os.close(fd)

    def calls(self) -> list[tuple[int, str, int]]:
        """Return what was written down, in order: process, what, bytes of the input."""
        lines = Path(self.log).read_text("ascii").splitlines()
        return [(int(pid), what, int(length)) for pid, what, length in map(str.split, lines)]

    def processes(self) -> Counter[int]:
        """Return how many pages each process did, by its number."""
        return Counter(pid for pid, _, _ in self.calls())

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as lz4
        def compress(page: Flat) -> bytes:
            self._note("compress", len(page))
            output: bytes = lz4.block.compress(page, store_size=False)
            return output

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(src: Flat) -> bytes:
            self._note("restore", len(src))
            output: bytes = lz4.block.decompress(src, uncompressed_size=page_size)
            return output

        return decompress
