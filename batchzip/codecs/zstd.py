"""zstd, through python-zstandard.

Compressed pages are standard zstd frames that declare their size; any zstd tool reads them.

`ZstdDecompressor.decompress(max_output_size=…)` is no guard: it is ignored when the frame declares
a size, and 1.6 KB of input became 50 MiB. So the declared size is read from the header first,
and only frames that declare exactly a page are decoded. A whole frame of known size is decoded in one
pass, without a window; `max_window_size` bounds the window that a truncated one would be given.

With a dictionary, frames bear its id. A frame with another id, or with one where there is no dictionary,
is refused by libzstd; a frame without an id needs no dictionary and is read. So a dictionary must have
an id: rejected are raw-content ones, whose frames nothing tells from each other, and which gain less
(64 KiB for JSON text: ratio 5.67, trained 6.03, with none 5.07).

Planes of a page, as those of floating-point numbers, are blocks of one frame. A block has a Huffman
table of its own, or lies there as it is; in one block, the table of noise spoils the exponents.
Rejected: a frame per plane, with lengths to check, which is 0.3 % larger in 4 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import zstandard

from batchzip.arguments.checks import as_integer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Native
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

_MIN_WINDOW = 1 << 10
"""Bytes; the least window the format knows (RFC 8878, 3.1.1.1.2)."""

DEFAULT_LEVEL = 3
"""ZSTD_CLEVEL_DEFAULT; what level 0 means, too."""

MAX_DICTIONARY = 2 << 20
"""Bytes, those of the largest page. Every thread and worker holds the dictionary and tables as large;
what is larger than 256 KiB gained nothing worth that."""


LEAST_PLANE = 64
"""Bytes; what a block's header and Huffman table cost is more than smaller planes gain."""

_FEW_REPEATS = {"compression_level": 1, "strategy": 1, "hash_log": 6, "min_match": 7}
"""How planes are compressed at levels 1 to 3, as `core/coder.pyx` does: a table of 64 places finds next
to no repeats but runs. Among exponents repeats are chance, and cost more than their Huffman codes:
4 KiB of bf16 became 1.43 times smaller with level 1's own table, 1.40 with level 3's, 1.48 so."""


@dataclass(frozen=True, slots=True)
class Zstd(Codec):
    """Zstandard at `level`: −131072 (fastest) … −1, 1 … 22 (smallest); 0 and no word mean 3.

    `dictionary` is what pages have in common: bytes from `batchzip.train_dictionary` or `zstd --train`,
    at most 2 MiB, kept as a copy. Only a codec with the same dictionary restores what it compressed.
    """

    name: ClassVar[str] = "zstd"

    level: int = DEFAULT_LEVEL
    dictionary: bytes | None = None

    def __post_init__(self) -> None:
        lowest = -131072  # ZSTD_minCLevel(): the window's log limits what negative levels mean
        highest = zstandard.MAX_COMPRESSION_LEVEL
        object.__setattr__(self, "level", as_integer(self.level, "zstd level", lowest, highest))
        if self.dictionary is not None:
            object.__setattr__(self, "dictionary", _checked_dictionary(self.dictionary))

    def __repr__(self) -> str:
        if self.dictionary is None:
            return f"Zstd(level={self.level})"
        number = zstandard.ZstdCompressionDict(self.dictionary).dict_id()
        return f"Zstd(level={self.level}, dictionary=<{len(self.dictionary)} bytes, id {number}>)"

    def native(self) -> Native:
        """Return zstd's C function for these parameters."""
        return Native("zstd", self.level or DEFAULT_LEVEL, self.dictionary)

    def for_planes(self, planes: int) -> Codec:
        """Return a codec whose frames have blocks for each plane; a subclass compresses as it does."""
        return _ZstdPlanes(self, planes) if type(self) is Zstd else self

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - zstd sizes itself by level
        """Make one thread's compressor; the frame declares its content's size."""
        return self._made().compress

    def _made(self) -> zstandard.ZstdCompressor:
        if self.dictionary is None:
            return zstandard.ZstdCompressor(level=self.level, write_content_size=True)
        dictionary = zstandard.ZstdCompressionDict(self.dictionary)
        level = self.level or DEFAULT_LEVEL  # precompute_compress takes 0 for none given
        dictionary.precompute_compress(level=level)
        return zstandard.ZstdCompressor(
            level=level, dict_data=dictionary, write_content_size=True, write_dict_id=True
        )

    def decompressor(self, page_size: int) -> Transcode:
        """Make one thread's decompressor, of frames that declare exactly `page_size`."""
        window = max(page_size, _MIN_WINDOW)
        if self.dictionary is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=window)
        else:
            decompressor = zstandard.ZstdDecompressor(
                dict_data=zstandard.ZstdCompressionDict(self.dictionary), max_window_size=window
            )
        decompress = decompressor.decompress
        declared_size = zstandard.frame_content_size

        def decompress_page(src: Flat) -> bytes:
            if declared_size(src) != page_size:
                raise ValueError(f"the frame does not declare {page_size} bytes")
            return decompress(src, allow_extra_data=False)

        return decompress_page


@dataclass(frozen=True, slots=True)
class _ZstdPlanes(Codec):
    """`codec`, with blocks of their own for each of the `planes` of a page."""

    name: ClassVar[str] = "zstd"

    codec: Zstd
    planes: int

    def native(self) -> Native:
        """Return zstd's C function, told of the planes."""
        return self.codec.native()._replace(planes=self.planes)

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as Zstd's
        """Make one thread's compressor: a block, or more, for each plane."""
        level = self.codec.level or DEFAULT_LEVEL
        if 1 <= level <= DEFAULT_LEVEL and self.codec.dictionary is None:
            parameters = zstandard.ZstdCompressionParameters(
                **_FEW_REPEATS, write_content_size=True
            )
            compressor = zstandard.ZstdCompressor(compression_params=parameters)
        else:
            compressor = self.codec._made()  # noqa: SLF001 - this is its other half

        def compress_planes(page: Flat) -> bytes:
            width = len(page) // self.planes
            if width < LEAST_PLANE:
                return compressor.compress(page)
            frame = compressor.compressobj(size=len(page))
            output = []
            for start in range(0, width * (self.planes - 1), width):
                output.append(frame.compress(page[start : start + width]))
                output.append(frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            output.append(frame.compress(page[width * (self.planes - 1) :]))
            return b"".join([*output, frame.flush()])

        return compress_planes

    def decompressor(self, page_size: int) -> Transcode:
        """Make one thread's decompressor; the frame is one like any other."""
        return self.codec.decompressor(page_size)


def _checked_dictionary(given: object) -> bytes:
    """Copy a dictionary; raise BadArgument if zstd could not compress and decompress with it."""
    try:
        dictionary = given if type(given) is bytes else bytes(memoryview(given))  # type: ignore[arg-type] # that is the question
    except (TypeError, ValueError, BufferError):
        raise BadArgument(
            f"zstd dictionary must be bytes or None, not {type(given).__name__}"
        ) from None
    if len(dictionary) > MAX_DICTIONARY:
        raise BadArgument(
            f"zstd dictionary must have at most {MAX_DICTIONARY} bytes, not {len(dictionary)}"
        )
    compressing, restoring = (zstandard.ZstdCompressionDict(dictionary) for _ in range(2))
    try:
        if not compressing.dict_id():
            raise BadArgument(
                f"zstd dictionary of {len(dictionary)} bytes has no id: it must be one that "
                "batchzip.train_dictionary or `zstd --train` made"
            )
        compressing.precompute_compress(level=1)  # the cheapest; whether it can be read is the same
        output = zstandard.ZstdCompressor(level=1, dict_data=compressing).compress(b"page")
        zstandard.ZstdDecompressor(dict_data=restoring).decompress(output)
    except zstandard.ZstdError as error:
        raise BadArgument(
            f"zstd dictionary of {len(dictionary)} bytes is damaged: {error}"
        ) from None
    return dictionary
