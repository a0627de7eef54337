"""brotli, through the library of its authors. Extra `brotli`.

For what lies long: of what is here it makes text the smallest, and takes the longest for it. A
compressed page is a brotli stream (RFC 7932) with a window of 2^16 bytes. The header says how large
the window is, and the decoder takes memory for it, so any other is refused by the first bit. A
stream has no declared size; decoding stops a block of the library's (32 KiB) after it passes a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip.arguments.checks import as_integer
from batchzip.codecs.codec import Codec
from batchzip.extras import load_extra

if TYPE_CHECKING:
    from typing import Any

    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

_WINDOW = 16
"""log2 of bytes. The one window whose header is a single 0 bit (RFC 7932, 9.1)."""

_MIN_LEVEL, _MAX_LEVEL = 2, 11
"""Qualities 0 and 1 take a window of 2^18 whatever they are told, and are no match for zstd."""


@dataclass(frozen=True, slots=True)
class Brotli(Codec):
    """Brotli at quality `level` 2 … 11 (smallest, and 50 times as slow as 5)."""

    name: ClassVar[str] = "brotli"

    level: int = 5

    def __post_init__(self) -> None:
        level = as_integer(self.level, "brotli level", _MIN_LEVEL, _MAX_LEVEL)
        object.__setattr__(self, "level", level)

    @classmethod
    def require(cls) -> None:
        """Raise MissingExtra where brotli is not installed."""
        _library()

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - brotli sizes itself by input
        """Make a compressor; brotli's state lives in the call."""
        compress = _library().compress
        level = self.level

        def compress_page(page: Flat) -> bytes:
            output: bytes = compress(page, quality=level, lgwin=_WINDOW)
            return output

        return compress_page

    def decompressor(self, page_size: int) -> Transcode:
        """Make a decompressor of streams that end with the page."""
        stream_of = _library().Decompressor

        def decompress_page(src: Flat) -> bytes:
            if not len(src) or src[0] & 1:
                raise ValueError(f"the stream does not declare a window of {1 << _WINDOW} bytes")
            stream = stream_of()
            page: bytes = stream.process(src, output_buffer_limit=page_size)
            if not stream.is_finished():
                raise ValueError(f"the stream does not end with {page_size} bytes")
            return page

        return decompress_page


def _library() -> Any:
    return load_extra("brotli", extra="brotli", needed_by="brotli")
