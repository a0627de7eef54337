"""zstd, with python-zstandard.

Compressed pages are standard zstd frames that declare their size. Any zstd tool can read them.

`ZstdDecompressor.decompress(max_output_size=…)` does not limit the output: it is ignored if the
frame declares a size, and 1.6 KB of input became 50 MiB. So the declared size is read from the
header first, and only frames that declare exactly one page are decoded. A whole frame of known size
is decoded in one pass, without a window. `max_window_size` limits the window of a truncated frame.

With a dictionary, frames have its ID. libzstd refuses a frame with another ID, or with any ID if
there is no dictionary. It reads a frame without an ID, which needs no dictionary. So a dictionary
must have an ID. Rejected: raw-content dictionaries. Their frames cannot be told apart, and they
gain less (docs/decisions/codecs.md).

Planes of a page, as of floating-point numbers, are separate blocks of one frame. Each block has its
own Huffman table, or is stored raw. In a single block, noisy planes would spoil the table for the
exponents. Rejected: a frame per plane, whose lengths would have to be checked, and which is 0.3 %
larger for 4 KiB.
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
"""Smallest window of the format, in bytes (RFC 8878, 3.1.1.1.2)."""

DEFAULT_LEVEL = 3
"""ZSTD_CLEVEL_DEFAULT. Level 0 means the same."""

MAX_DICTIONARY = 2 << 20
"""Largest dictionary in bytes, equal to the largest page. Every thread and worker holds the
dictionary and tables of the same size. Sizes above 256 KiB gained too little for that."""


LEAST_PLANE = 64
"""Smallest plane in bytes. A smaller one gains less than its header and Huffman table cost."""

_FEW_REPEATS = {"compression_level": 1, "strategy": 1, "hash_log": 6, "min_match": 7}
"""Parameters for planes at levels 1 to 3, as in `core/coder.pyx`. A table of 64 places finds almost
no repeats except runs. Repeats of exponents are chance, and cost more than their Huffman codes: 4
KiB of
bf16 shrink by 1.48 with these parameters, and by 1.43 and 1.40 with those of levels 1 and 3."""


@dataclass(frozen=True, slots=True)
class Zstd(Codec):
    """Zstandard at `level`: −131072 (fastest) … −1, 1 … 22 (smallest). The default, and 0, mean 3.

    `dictionary` is the common content of pages: up to 2 MiB from `batchzip.train_dictionary` or
    `zstd --train`, of which the codec keeps a copy. Only a codec with the same dictionary restores
    its outputs.
    """

    name: ClassVar[str] = "zstd"

    level: int = DEFAULT_LEVEL
    dictionary: bytes | None = None

    def __post_init__(self) -> None:
        lowest = -131072  # ZSTD_minCLevel()
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
        """Return a codec whose frames have separate blocks per plane. A subclass returns itself."""
        return _ZstdPlanes(self, planes) if type(self) is Zstd else self

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - zstd sizes itself by level
        """Return a compressor for one thread. Its frames declare their size."""
        return self._made().compress

    def _made(self) -> zstandard.ZstdCompressor:
        if self.dictionary is None:
            return zstandard.ZstdCompressor(level=self.level, write_content_size=True)
        dictionary = zstandard.ZstdCompressionDict(self.dictionary)
        level = self.level or DEFAULT_LEVEL  # precompute_compress takes 0 for a missing level
        dictionary.precompute_compress(level=level)
        return zstandard.ZstdCompressor(
            level=level, dict_data=dictionary, write_content_size=True, write_dict_id=True
        )

    def decompressor(self, page_size: int) -> Transcode:
        """Return a decompressor for one thread, for frames that declare exactly `page_size`."""
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
                raise ValueError(f"the frame must declare {page_size} bytes")
            return decompress(src, allow_extra_data=False)

        return decompress_page


@dataclass(frozen=True, slots=True)
class _ZstdPlanes(Codec):
    """Wraps `codec`, with separate blocks for each of the `planes` of a page."""

    name: ClassVar[str] = "zstd"

    codec: Zstd
    planes: int

    def native(self) -> Native:
        """Return zstd's C function with the number of planes."""
        return self.codec.native()._replace(planes=self.planes)

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as Zstd's
        """Return a compressor for one thread, which makes at least one block per plane."""
        level = self.codec.level or DEFAULT_LEVEL
        if 1 <= level <= DEFAULT_LEVEL and self.codec.dictionary is None:
            parameters = zstandard.ZstdCompressionParameters(
                **_FEW_REPEATS, write_content_size=True
            )
            compressor = zstandard.ZstdCompressor(compression_params=parameters)
        else:
            compressor = self.codec._made()  # noqa: SLF001 - a class of this module

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
        """Return Zstd's decompressor for one thread: the frames are ordinary ones."""
        return self.codec.decompressor(page_size)


def _checked_dictionary(given: object) -> bytes:
    """Return a copy of a dictionary. Raise BadArgument if zstd cannot work with it."""
    try:
        view = memoryview(given)  # type: ignore[arg-type] # raises TypeError for others
        dictionary = given if type(given) is bytes else bytes(view)
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
                f"zstd dictionary of {len(dictionary)} bytes has no ID: it must come from "
                "batchzip.train_dictionary or `zstd --train`"
            )
        compressing.precompute_compress(level=1)  # the cheapest level is enough for the check
        output = zstandard.ZstdCompressor(level=1, dict_data=compressing).compress(b"page")
        zstandard.ZstdDecompressor(dict_data=restoring).decompress(output)
    except zstandard.ZstdError as error:
        raise BadArgument(
            f"zstd dictionary of {len(dictionary)} bytes is damaged: {error}"
        ) from None
    return dictionary
