"""A codec that compresses with an engine of its own, also inside another engine's worker.

A module of its own, as workers import it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip import CompressBatch, Engine
from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class NestingCodec(Codec):
    """lz4, by a workers backend that it keeps as long as its compressor lives."""

    name: ClassVar[str] = "nesting"

    def compressor(self, page_size: int) -> Transcode:
        engine = Engine("lz4", backend="workers", workers=1, page_size=page_size)

        def compress(page: Flat) -> bytes:
            # A page alone is done inline, so its worker gets one with a mate.
            batch = CompressBatch([page] * 40, page_size=page_size)
            engine.submit(batch).wait()
            return bytes(batch.output(39))

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        return Engine("lz4", backend="sequential", page_size=page_size).codec.decompressor(
            page_size
        )
