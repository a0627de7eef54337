"""deflate with isal: the software counterpart of the kernel's deflate-iaa. Extra `deflate`.

A compressed page is one raw deflate stream (RFC 1951), without the header and checksum of zlib or
gzip, because entries have their own checksum. A stream does not declare its size. Decoding stops
after one page, and a stream that does not end there is refused.

The same page may give an output that is a byte longer the next time: isal does not initialise its
hash tables, and a full flush does not clear them. The restored page is the same.

Rejected: zlib of the standard library. At an equal ratio it took 2.5 times as long to compress a
page, and 1.5 times as long to restore it.
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

_RAW = -15
"""Raw deflate with a window of 2^15 bytes, the largest of the format (zlib's wbits)."""

_MAX_LEVEL = 3
"""ISAL_BEST_COMPRESSION."""


@dataclass(frozen=True, slots=True)
class Deflate(Codec):
    """Deflate at ISA-L's `level` 0 (fastest) … 3 (smallest)."""

    name: ClassVar[str] = "deflate"

    level: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", as_integer(self.level, "deflate level", 0, _MAX_LEVEL))

    @property
    def deterministic(self) -> bool:
        """False: isal's outputs may differ by a byte."""
        return False

    @classmethod
    def require(cls) -> None:
        """Raise MissingExtra if isal is not installed."""
        _library()

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - isal sizes itself by input
        """Return a compressor. Each call has its own state."""
        compress = _library().compress
        level = self.level

        def compress_page(page: Flat) -> bytes:
            output: bytes = compress(page, level, _RAW)
            return output

        return compress_page

    def decompressor(self, page_size: int) -> Transcode:
        """Return a decompressor of streams that end exactly with the page."""
        stream_of = _library().decompressobj
        longest = 2 * page_size

        def decompress_page(src: Flat) -> bytes:
            if len(src) > longest:  # isal would copy the unused rest
                raise ValueError(f"{len(src)} bytes are too long for a page of {page_size} bytes")
            stream = stream_of(_RAW)
            page: bytes = stream.decompress(src, page_size)
            if not stream.eof or stream.unused_data:
                raise ValueError(f"the stream does not end after {page_size} bytes")
            return page

        return decompress_page


def _library() -> Any:
    return load_extra("isal.isal_zlib", extra="deflate", needed_by="deflate")
