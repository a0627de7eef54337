"""A codec for batchzip in a package of its own: zlib from the standard library.

    pip install ./examples/custom_codec
    batchzip algorithms                 # lists it
    batchzip.Engine("zlib", level=6)    # uses it

A codec is a frozen dataclass whose fields are its parameters, with two methods that return
callables, and an entry point in pyproject.toml. This codec never decodes more than a page, whatever
the input contains: `decompressobj` stops at `page_size` bytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip import BadArgument, Codec

if TYPE_CHECKING:
    from collections.abc import Callable

    Flat = bytes | memoryview

__all__ = ["Zlib"]


@dataclass(frozen=True, slots=True)
class Zlib(Codec):
    """zlib at `level` 1 (fastest) … 9 (smallest)."""

    name: ClassVar[str] = "zlib"

    level: int = 6

    def __post_init__(self) -> None:
        """Raise BadArgument for an invalid level. The message says which levels are valid."""
        if type(self.level) is not int or not 1 <= self.level <= 9:
            raise BadArgument(f"zlib level must be an integer in 1…9, not {self.level!r}")

    def compressor(self, page_size: int) -> Callable[[Flat], bytes]:  # noqa: ARG002 - not needed
        """Return a compressor for one thread."""
        level = self.level
        return lambda page: zlib.compress(page, level)

    def decompressor(self, page_size: int) -> Callable[[Flat], bytes]:
        """Return a decompressor for one thread. A stream must end with the page."""
        longest = 2 * page_size

        def decompress_page(src: Flat) -> bytes:
            if len(src) > longest:  # zlib would copy the unused rest
                raise ValueError(f"{len(src)} bytes are too long for a page of {page_size}")
            stream = zlib.decompressobj()
            page = stream.decompress(src, page_size)
            # The next call reads the checksum behind the data. It must not return another byte.
            page += stream.decompress(stream.unconsumed_tail, 1)
            if not stream.eof or stream.unused_data:
                raise ValueError(f"the stream does not end with {page_size} bytes")
            return page

        return decompress_page
