"""lz4hc: lz4 blocks from the slower, stronger match finder, with lz4.block.

The same as Lz4(high_compression=level), with the kernel's name and levels. lz4 and lz4hc restore
each other's outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip.arguments.checks import as_integer
from batchzip.codecs.codec import Codec
from batchzip.codecs.lz4 import MAX_HC_LEVEL, Lz4
from batchzip.core.plan import Native

if TYPE_CHECKING:
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class Lz4hc(Codec):
    """LZ4 high compression at `level` 1 … 12 (smallest)."""

    name: ClassVar[str] = "lz4hc"

    level: int = 9  # LZ4HC_DEFAULT_CLEVEL, also the kernel's default

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", as_integer(self.level, "lz4hc level", 1, MAX_HC_LEVEL))

    def native(self) -> Native:
        """Return lz4's C function for this level."""
        return Native("lz4hc", self.level)

    def compressor(self, page_size: int) -> Transcode:
        """Return a compressor. Each call has its own state."""
        return Lz4(high_compression=self.level).compressor(page_size)

    def decompressor(self, page_size: int) -> Transcode:
        """Return lz4's decompressor."""
        return Lz4().decompressor(page_size)
