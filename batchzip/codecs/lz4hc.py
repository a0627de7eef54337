"""lz4hc: lz4 blocks from the slower, stronger match finder, through lz4.block.

The same as Lz4(high_compression=level), under the name it has in the kernel and with its level:
what it compresses, lz4 restores, and the other way round.
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

    level: int = 9  # LZ4HC_DEFAULT_CLEVEL, the kernel's too

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", as_integer(self.level, "lz4hc level", 1, MAX_HC_LEVEL))

    def native(self) -> Native:
        """Return lz4's C function for this level."""
        return Native("lz4hc", self.level)

    def compressor(self, page_size: int) -> Transcode:
        """Make a compressor; lz4's state lives in the call."""
        return Lz4(high_compression=self.level).compressor(page_size)

    def decompressor(self, page_size: int) -> Transcode:
        """Make lz4's decompressor."""
        return Lz4().decompressor(page_size)
