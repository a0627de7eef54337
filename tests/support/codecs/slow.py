"""A codec for tests of deadlines: lz4 that waits at each page. Workers import it by name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class SlowCodec(Codec):
    """lz4 at `page_s` seconds a page, both ways."""

    name: ClassVar[str] = "slow"

    page_s: float

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as lz4
        def compress(page: Flat) -> bytes:
            time.sleep(self.page_s)
            output: bytes = lz4.block.compress(page, store_size=False)
            return output

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(src: Flat) -> bytes:
            time.sleep(self.page_s)
            output: bytes = lz4.block.decompress(src, uncompressed_size=page_size)
            return output

        return decompress
