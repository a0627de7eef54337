"""A codec for tests of verify=True: lz4 that spoils what it makes of marked pages.

It is a module of its own, as workers import it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

OTHER = b"OTHR"
"""Its output decodes to another page."""
CUT = b"CUT "
"""Its output cannot be decoded."""
SHORT = b"SHRT"
"""Its output decodes to less than a page."""

MARKS = (OTHER, CUT, SHORT)


@dataclass(frozen=True, slots=True)
class SpoilingCodec(Codec):
    """lz4 with an `acceleration`, which spoils marked pages."""

    name: ClassVar[str] = "spoiling"

    acceleration: int = 1

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as lz4
        def encode(page: Flat) -> bytes:
            output: bytes = lz4.block.compress(
                page, mode="fast", acceleration=self.acceleration, store_size=False
            )
            return output

        def compress(page: Flat) -> bytes:
            mark = bytes(page[:4])
            if mark == OTHER:
                return encode(bytes(page[:-1]) + b"\xee")
            if mark == CUT:
                return encode(page)[:-3]
            if mark == SHORT:
                return encode(page[:-1])
            return encode(page)

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(src: Flat) -> bytes:
            output: bytes = lz4.block.decompress(src, uncompressed_size=page_size)
            return output

        return decompress
