"""A codec for fault tests: lz4, except that marked pages do harm to the worker they reach.

It is a module of its own, as workers import it by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

KILL = b"KILL"
"""Kills every worker that compresses the page."""
KILL_ONCE = b"ONCE"
"""Kills the first worker that does, which takes away the flag file."""
STOP_ONCE = b"STOP"
"""Stops it instead."""
RAISE = b"OOPS"
"""Raises."""
HUNGRY = b"EATS"
"""Raises MemoryError."""


@dataclass(frozen=True, slots=True)
class FaultyCodec(Codec):
    """lz4 with faults; none of them happens in the process `owner`."""

    name: ClassVar[str] = "faulty"

    owner: int
    flag: str = ""

    def _harm(self, mark: bytes) -> None:
        if mark == RAISE:
            raise RuntimeError("as the page asked for")
        if mark == HUNGRY:
            raise MemoryError
        if os.getpid() == self.owner:
            return
        if mark in (KILL_ONCE, STOP_ONCE):
            with contextlib.suppress(FileNotFoundError):
                Path(self.flag).unlink()
                os.kill(os.getpid(), signal.SIGKILL if mark == KILL_ONCE else signal.SIGSTOP)
        elif mark == KILL:
            os.kill(os.getpid(), signal.SIGKILL)

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as lz4
        def compress(page: Flat) -> bytes:
            self._harm(bytes(page[:4]))
            output: bytes = lz4.block.compress(page, store_size=False)
            return output

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(src: Flat) -> bytes:
            output: bytes = lz4.block.decompress(src, uncompressed_size=page_size)
            return output

        return decompress
