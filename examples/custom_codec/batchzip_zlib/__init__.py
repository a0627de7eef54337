"""A codec for batchzip in a package of its own: zlib, as every Python has it.

    pip install ./examples/custom_codec
    batchzip algorithms                 # lists it
    batchzip.Engine("zlib", level=6)    # and there it is

What makes it one: a frozen dataclass whose fields are its parameters, two methods that make
callables, and the entry point in pyproject.toml. It never decodes more than a page, whatever the
input says: `decompressobj` stops at `page_size` bytes.
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
    """zlib at `level` 1 … 9 (smallest)."""

    name: ClassVar[str] = "zlib"

    level: int = 6

    def __post_init__(self) -> None:
        """Refuse what cannot be; the message says what would be right."""
        if type(self.level) is not int or not 1 <= self.level <= 9:
            raise BadArgument(f"zlib level must be an integer in 1…9, not {self.level!r}")

    def compressor(self, page_size: int) -> Callable[[Flat], bytes]:  # noqa: ARG002 - not needed
        """Make one thread's compressor."""
        level = self.level
        return lambda page: zlib.compress(page, level)

    def decompressor(self, page_size: int) -> Callable[[Flat], bytes]:
        """Make one thread's decompressor, of streams that end with the page."""
        longest = 2 * page_size

        def decompress_page(src: Flat) -> bytes:
            if len(src) > longest:  # zlib would copy what it does not use of it
                raise ValueError(f"{len(src)} bytes are no compressed page of {page_size}")
            stream = zlib.decompressobj()
            page = stream.decompress(src, page_size)
            # The checksum behind the data is read with the next call, which may give no byte more.
            page += stream.decompress(stream.unconsumed_tail, 1)
            if not stream.eof or stream.unused_data:
                raise ValueError(f"the stream does not end with {page_size} bytes")
            return page

        return decompress_page
