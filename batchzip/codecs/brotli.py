"""brotli, with the library of its authors. Extra `brotli`.

It suits pages that are kept for long: it makes text the smallest of all algorithms here, and takes
the longest. A compressed page is a brotli stream (RFC 7932) with a window of 2^16 bytes. The
decoder allocates the window that the header declares. So any other window is refused by the first
bit. A stream does not declare its size; decoding stops one block of the library (32 KiB) after the
end of a page.
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
"""log2 of the window in bytes: the only window whose header is a single 0 bit (RFC 7932, 9.1)."""

_MIN_LEVEL, _MAX_LEVEL = 2, 11
"""Range of `level`. Qualities 0 and 1 always use a window of 2^18, and zstd is better than both."""


@dataclass(frozen=True, slots=True)
class Brotli(Codec):
    """Brotli at quality `level` 2 … 11 (smallest output, 50 times slower than level 5)."""

    name: ClassVar[str] = "brotli"

    level: int = 5

    def __post_init__(self) -> None:
        level = as_integer(self.level, "brotli level", _MIN_LEVEL, _MAX_LEVEL)
        object.__setattr__(self, "level", level)

    @classmethod
    def require(cls) -> None:
        """Raise MissingExtra if brotli is not installed."""
        _library()

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - sized by input
        """Return a compressor. Each call has its own state."""
        compress = _library().compress
        level = self.level

        def compress_page(page: Flat) -> bytes:
            output: bytes = compress(page, quality=level, lgwin=_WINDOW)
            return output

        return compress_page

    def decompressor(self, page_size: int) -> Transcode:
        """Return a decompressor of streams that end exactly with the page."""
        stream_of = _library().Decompressor

        def decompress_page(src: Flat) -> bytes:
            if not len(src) or src[0] & 1:
                raise ValueError(f"the stream must declare a window of {1 << _WINDOW} bytes")
            stream = stream_of()
            page: bytes = stream.process(src, output_buffer_limit=page_size)
            if not stream.is_finished():
                raise ValueError(f"the stream does not end after {page_size} bytes")
            return page

        return decompress_page


def _library() -> Any:
    return load_extra("brotli", extra="brotli", needed_by="brotli")
