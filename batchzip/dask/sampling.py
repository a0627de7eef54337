"""Sampler: what makes a buffer smaller, by a few samples of it.

Buffers of a worker's values are integers, floats, text and noise, and nobody says which is which: a frame is
pickled as a whole. So some pages of each buffer are compressed with each way there is. The smallest
result wins; a buffer that hardly shrinks is left as it is.
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
"""Of its size, at most, or it is not worth the time to compress and to restore it."""


class Sampler(Closing):
    """Tries codecs, by a name of theirs, on samples of buffers. Thread-safe."""

    def __init__(self, codecs: Mapping[int, Codec]) -> None:
        with ExitStack() as stack:
            self._engines = {
                name: stack.enter_context(Engine(codec, backend="sequential", page_size=_PAGE_SIZE))
                for name, codec in codecs.items()
            }
            self._open = stack.pop_all()

    def best(self, buffer: Flat) -> int | None:
        """Return the name of the codec that makes a buffer smallest, or None if none does."""
        count = max(1, min(_MOST_SAMPLES, len(buffer) // _SAMPLED))
        pages = len(buffer) // _PAGE_SIZE
        if not pages:
            return next(iter(self._engines))
        whole = np.frombuffer(buffer, np.uint8, pages * _PAGE_SIZE).reshape(pages, _PAGE_SIZE)
        # In the middle of equal parts: the ends of a buffer are often unlike the rest.
        samples = whole[(2 * np.arange(count) + 1) * pages // (2 * count)]
        sizes = {}
        for name, engine in self._engines.items():
            batch = CompressBatch(samples)
            engine.compress(batch)
            sizes[name] = int(np.where(batch.errors == 0, batch.dlens, _PAGE_SIZE).sum())
        best = min(sizes, key=sizes.__getitem__)
        return best if sizes[best] <= SHRINKS * samples.size else None

    def close(self) -> None:
        """Close the engines; further calls do nothing."""
        self._open.close()
