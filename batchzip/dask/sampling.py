"""Sampler: finds the codec that compresses a buffer best, from a few samples.

A worker's values contain integers, floats, text and noise, and no buffer says which, because a
frame is pickled as a whole. So a few pages of each buffer are compressed with each codec. The
smallest result wins. A buffer that hardly shrinks stays uncompressed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import CompressBatch
from batchzip.engine import Engine
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Codec

_PAGE_SIZE = 4096
_MOST_SAMPLES = 4
_SAMPLED = 256 << 10
"""Bytes of a buffer for each sample."""

SHRINKS = 0.9
"""Maximum ratio of compressed to original size. Above it, compression is not worth its time."""


class Sampler(Closing):
    """Tries named codecs on samples of buffers. Thread-safe."""

    def __init__(self, codecs: Mapping[int, Codec]) -> None:
        with ExitStack() as stack:
            self._engines = {
                name: stack.enter_context(Engine(codec, backend="sequential", page_size=_PAGE_SIZE))
                for name, codec in codecs.items()
            }
            self._open = stack.pop_all()

    def best(self, buffer: Flat) -> int | None:
        """Return the name of the codec that compresses a buffer best, or None if none does."""
        count = max(1, min(_MOST_SAMPLES, len(buffer) // _SAMPLED))
        pages = len(buffer) // _PAGE_SIZE
        if not pages:
            return next(iter(self._engines))
        whole = np.frombuffer(buffer, np.uint8, pages * _PAGE_SIZE).reshape(pages, _PAGE_SIZE)
        # One sample from the middle of each part: the ends of a buffer are often unlike the rest.
        samples = whole[(2 * np.arange(count) + 1) * pages // (2 * count)]
        sizes = {}
        for name, engine in self._engines.items():
            batch = CompressBatch(samples)
            engine.compress(batch)
            sizes[name] = int(np.where(batch.errors == 0, batch.dlens, _PAGE_SIZE).sum())
        best = min(sizes, key=sizes.__getitem__)
        return best if sizes[best] <= SHRINKS * samples.size else None

    def close(self) -> None:
        """Close the engines. Further calls do nothing."""
        self._open.close()
