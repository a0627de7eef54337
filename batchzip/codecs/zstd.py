"""zstd, through python-zstandard.

Compressed pages are standard zstd frames that declare their size; any zstd tool reads them.

`ZstdDecompressor.decompress(max_output_size=…)` is no guard: it is ignored when the frame declares
a size, and 1.6 KB of input became 50 MiB. So the declared size is read from the header first,
and only frames that declare exactly a page are decoded. A whole frame of known size is decoded in one
pass, without a window; `max_window_size` bounds the window that a truncated one would be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import zstandard

from batchzip.codecs.codec import Codec
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.buffers import Flat
    from batchzip.codecs.codec import Transcode

_MIN_WINDOW = 1 << 10
"""Bytes; the least window the format knows (RFC 8878, 3.1.1.1.2)."""


@dataclass(frozen=True, slots=True)
class Zstd(Codec):
    """Zstandard at `level`: −131072 (fastest) … −1, 1 … 22 (smallest); 0 and no word mean 3."""

    name: ClassVar[str] = "zstd"

    level: int = 3

    def __post_init__(self) -> None:
        lowest = -131072  # ZSTD_minCLevel(): the window's log limits what negative levels mean
        if (
            type(self.level) is not int
            or not lowest <= self.level <= zstandard.MAX_COMPRESSION_LEVEL
        ):
            raise BadArgument(
                f"zstd level must be an integer in {lowest}…{zstandard.MAX_COMPRESSION_LEVEL}, not {self.level!r}"
            )

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - zstd sizes itself by level
        """Make one thread's compressor; the frame declares its content's size."""
        return zstandard.ZstdCompressor(level=self.level, write_content_size=True).compress

    def decompressor(self, page_size: int) -> Transcode:
        """Make one thread's decompressor, of frames that declare exactly `page_size`."""
        decompress = zstandard.ZstdDecompressor(
            max_window_size=max(page_size, _MIN_WINDOW)
        ).decompress
        declared_size = zstandard.frame_content_size

        def decompress_page(src: Flat) -> bytes:
            if declared_size(src) != page_size:
                raise ValueError(f"the frame does not declare {page_size} bytes")
            return decompress(src, allow_extra_data=False)

        return decompress_page
