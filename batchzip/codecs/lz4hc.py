"""lz4hc: lz4 blocks from the slower, stronger match finder, through lz4.block.

The same as Lz4(high_compression=level), under the name it has in the kernel and with its level:
what it compresses, lz4 restores, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip.codecs.codec import Codec
from batchzip.codecs.lz4 import MAX_HC_LEVEL, Lz4
from batchzip.core.plan import Native
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class Lz4hc(Codec):
    """LZ4 high compression at `level` 1 … 12 (smallest)."""

    name: ClassVar[str] = "lz4hc"

    level: int = 9  # LZ4HC_DEFAULT_CLEVEL, the kernel's too

    def __post_init__(self) -> None:
        if type(self.level) is not int or not 1 <= self.level <= MAX_HC_LEVEL:
            raise BadArgument(
                f"lz4hc level must be an integer in 1…{MAX_HC_LEVEL}, not {self.level!r}"
            )

    def native(self) -> Native:
        """Return lz4's C function for this level."""
        return Native("lz4hc", self.level)

    def compressor(self, page_size: int) -> Transcode:
        """Make a compressor; lz4's state lives in the call."""
        return Lz4(high_compression=self.level).compressor(page_size)

    def decompressor(self, page_size: int) -> Transcode:
        """Make lz4's decompressor."""
        return Lz4().decompressor(page_size)
