"""lz4 blocks, with lz4.block.

A compressed page is one raw lz4 block, without the size that python-lz4 would put in front of it.
The page size is known, and a size within the data could be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from batchzip.arguments.checks import as_integer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Native
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.codecs.codec import Transcode

_MAX_ACCELERATION = 65537
"""LZ4_ACCELERATION_MAX: larger values have the same effect."""

MAX_HC_LEVEL = 12
"""LZ4HC_CLEVEL_MAX."""


@dataclass(frozen=True, slots=True)
class Lz4(Codec):
    """LZ4 with `acceleration` 1 (best ratio) … 65537, or `high_compression` at level 1 … 12.

    Only one of the two can be set: high compression has its own, slower match finder.
    """

    name: ClassVar[str] = "lz4"

    acceleration: int = 1
    high_compression: int | None = None

    def __post_init__(self) -> None:
        acceleration = as_integer(self.acceleration, "lz4 acceleration", 1, _MAX_ACCELERATION)
        object.__setattr__(self, "acceleration", acceleration)
        if self.high_compression is None:
            return
        level = as_integer(self.high_compression, "lz4 high_compression", 1, MAX_HC_LEVEL)
        object.__setattr__(self, "high_compression", level)
        if self.acceleration != 1:
            raise BadArgument("lz4 takes either acceleration or high_compression, not both")

    def native(self) -> Native:
        """Return lz4's C function for these parameters."""
        if self.high_compression is not None:
            return Native("lz4hc", self.high_compression)
        return Native("lz4", self.acceleration)

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - lz4 sizes itself by input
        """Return a compressor. lz4's state is on the C stack of each call."""
        if self.high_compression is not None:
            return partial(
                lz4.block.compress,
                mode="high_compression",
                compression=self.high_compression,
                store_size=False,
            )
        if self.acceleration != 1:
            return partial(
                lz4.block.compress, mode="fast", acceleration=self.acceleration, store_size=False
            )
        return partial(lz4.block.compress, store_size=False)

    def decompressor(self, page_size: int) -> Transcode:
        """Return a decompressor. Its output buffer has `page_size` bytes for any block."""
        return partial(lz4.block.decompress, uncompressed_size=page_size)
