"""Where a batch's compressed outputs lie: in rows that the caller gave, or packed.

    Rows      output i at the beginning of row i of the caller's `dsts`
    Packed    one behind the other, share by share: | share: o o o o … | share: o o … |

Packed is what a batch has that was given no `dsts`. Outputs are a third of a page and their places two
pages: written densely they touch a sixth of the memory, stay in the cache, and what a worker did of a
share is taken with one copy. Rows are made of it when somebody asks for them.

A share that is begun has room for all its pages at full capacity, so outputs never move.

Not thread-safe: one thread at a time gives a batch its outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip import buffers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.buffers import Bytes, Flat
    from batchzip.codecs.context import Context

_CACHE_LINE = 64


class Rows:
    """Outputs in the rows of an array (n, capacity)."""

    __slots__ = ("array", "capacity", "flat", "pitch")

    def __init__(self, array: Bytes, capacity: int) -> None:
        self.array = array
        self.capacity = capacity
        self.pitch = array.shape[1]
        """Bytes from one output to the next."""
        self.flat = buffers.flat(array)

    def compress(
        self, context: Context, pages: Sequence[Flat], lengths: memoryview, share: range
    ) -> dict[int, int]:
        """Compress a share's pages to their rows; errors by index."""
        return context.compress_into(pages, self.flat, self.pitch, lengths, share, self.capacity)

    def take(self, share: range, memory: memoryview, lengths: Sequence[int], total: int) -> None:
        """Copy a share's outputs, `total` bytes one behind the other in `memory`."""
        del total
        rows, source = self.flat, 0
        at, leap = share.start * self.pitch, share.step * self.pitch
        for length in lengths:
            if length > 0:
                end = source + length
                rows[at : at + length] = memory[source:end]
                source = end
            at += leap

    def views(self, lengths: Sequence[int]) -> list[memoryview]:
        """View every output."""
        rows, pitch = self.flat, self.pitch
        starts = range(0, len(lengths) * pitch, pitch)
        return [rows[at : at + length] for at, length in zip(starts, lengths, strict=True)]

    def reset(self) -> None:
        """Forget the outputs."""


class Packed:
    """Outputs of `count` pages of at most `capacity` bytes each, one behind the other."""

    __slots__ = ("_shares", "_used", "_views", "capacity", "flat")

    def __init__(self, count: int, capacity: int) -> None:
        self.capacity = capacity
        self.flat = buffers.flat(np.empty(count * capacity, np.uint8))
        self._shares: list[tuple[range, int]] = []
        """Shares done, and where the outputs of each begin."""
        self._used = 0
        self._views: list[memoryview] | None = None

    def _begin(self, share: range) -> int:
        at = self._used
        self._used += len(share) * self.capacity
        self._shares.append((share, at))
        return at

    def compress(
        self, context: Context, pages: Sequence[Flat], lengths: memoryview, share: range
    ) -> dict[int, int]:
        """Compress a share's pages, packed; errors by index."""
        memory = self.flat[self._begin(share) :]
        return context.compress_into(pages, memory, 0, lengths, share, self.capacity)

    def take(self, share: range, memory: memoryview, lengths: Sequence[int], total: int) -> None:
        """Copy a share's outputs, `total` bytes one behind the other in `memory`."""
        del lengths
        at = self._begin(share)
        self.flat[at : at + total] = memory[:total]

    def views(self, lengths: Sequence[int]) -> list[memoryview]:
        """View every output; made once for each run, as a view of one page needs all of them."""
        if self._views is None:
            flat = self.flat
            self._views = views = [flat[:0]] * len(lengths)
            for share, start in self._shares:
                at = start
                for index in share:
                    end = at + lengths[index]
                    views[index] = flat[at:end]
                    at = end
        return self._views

    def reset(self) -> None:
        """Forget the outputs."""
        self._shares.clear()
        self._used = 0
        self._views = None

    def as_rows(self, count: int, lengths: Sequence[int]) -> Rows:
        """Make rows for `count` outputs, and put those there that there are."""
        # Rows a power of two apart would all start in the same set of the cache.
        rows = Rows(np.empty((count, self.capacity + _CACHE_LINE), np.uint8), self.capacity)
        for index, view in enumerate(self.views(lengths)):
            at = index * rows.pitch
            rows.flat[at : at + len(view)] = view
        return rows
