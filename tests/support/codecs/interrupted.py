"""A codec whose marked pages interrupt their owner, as Ctrl-C does while a codec in Python runs.

A module of its own, as workers import it by name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

INTERRUPTS = b"CTRL-C"


@dataclass(frozen=True, slots=True)
class InterruptedCodec(Codec):
    """lz4; compressing a marked page in the process `owner` raises KeyboardInterrupt."""

    name: ClassVar[str] = "interrupted"

    owner: int

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as lz4
        def compress(page: Flat) -> bytes:
            if bytes(page[: len(INTERRUPTS)]) == INTERRUPTS and os.getpid() == self.owner:
                raise KeyboardInterrupt
            output: bytes = lz4.block.compress(page, store_size=False)
            return output

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(src: Flat) -> bytes:
            page: bytes = lz4.block.decompress(src, uncompressed_size=page_size)
            return page

        return decompress
