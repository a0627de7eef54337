"""snappy with cramjam, which python-snappy uses, too. Extra `snappy`.

A compressed page is one raw block, without the framing format. The block declares its size. Its
destination has the size of a page, and a block that declares more is refused before decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip.codecs.codec import Codec
from batchzip.extras import load_extra

if TYPE_CHECKING:
    from typing import Any

    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class Snappy(Codec):
    """Snappy, which has no parameters."""

    name: ClassVar[str] = "snappy"

    @classmethod
    def require(cls) -> None:
        """Raise MissingExtra if cramjam is not installed."""
        _library()

    def compressor(self, page_size: int) -> Transcode:
        """Return a compressor with a buffer for one page's output."""
        library = _library()
        compress_into = library.compress_raw_into
        room = bytearray(library.compress_raw_max_len(bytes(page_size)))
        view = memoryview(room)

        def compress_page(page: Flat) -> bytes:
            return view[: compress_into(page, room)].tobytes()

        return compress_page

    def decompressor(self, page_size: int) -> Transcode:
        """Return a decompressor with a buffer for one page."""
        decompress_into = _library().decompress_raw_into
        room = bytearray(page_size)

        def decompress_page(src: Flat) -> bytes:
            if decompress_into(src, room) != page_size:
                raise ValueError(f"the block does not decode to {page_size} bytes")
            return bytes(room)

        return decompress_page


def _library() -> Any:
    return load_extra("cramjam", extra="snappy", needed_by="snappy").snappy
