"""A codec whose marked pages kill whoever compresses or restores them, but for its owner.

A module of its own, as workers import it by name.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

KILLS_COMPRESSOR = b"KILLCOMP"
KILLS_DECOMPRESSOR = b"KILLDECO"


@dataclass(frozen=True, slots=True)
class KillerCodec(Codec):
    """lz4, deadly by mark; nothing happens in the process `owner`."""

    name: ClassVar[str] = "killer"

    owner: int

    def _meet(self, page: Flat, deadly: bytes) -> None:
        if bytes(page[:8]) == deadly and os.getpid() != self.owner:
            os.kill(os.getpid(), signal.SIGKILL)

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as lz4
        def compress(page: Flat) -> bytes:
            self._meet(page, KILLS_COMPRESSOR)
            output: bytes = lz4.block.compress(page, store_size=False)
            return output

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(src: Flat) -> bytes:
            page: bytes = lz4.block.decompress(src, uncompressed_size=page_size)
            self._meet(page, KILLS_DECOMPRESSOR)
            return page

        return decompress
