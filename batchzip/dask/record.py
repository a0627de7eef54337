"""Record: which indices were stored where, so that those can be named that are lost.

A bit for each page, in one integer for each stripe of STRIPE indices; a store is told what is its own by
its shards, not by this. Not thread-safe: its store's lock is held around every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STRIPE = 512
"""Indices that follow one another and lie in one shard: a block of a store's page table, so that the
tables of all shards together are no larger than those of one store."""


class Record:
    """Indices that are stored, as far as one client knows."""

    def __init__(self) -> None:
        self._stripes: dict[int, int] = {}

    def __contains__(self, index: int) -> bool:
        return bool(self._stripes.get(index // STRIPE, 0) >> index % STRIPE & 1)

    def add(self, first: int, count: int) -> None:
        """Note that these indices are stored."""
        for stripe, at, number in cut(first, count):
            self._stripes[stripe] = self._stripes.get(stripe, 0) | _mask(
                at - stripe * STRIPE, number
            )

    def discard(self, first: int, count: int) -> None:
        """Note that these indices are not."""
        start, stop = first // STRIPE, (first + count - 1) // STRIPE + 1
        few = stop - start < len(self._stripes)
        for stripe in range(start, stop) if few else list(self._stripes):
            if start <= stripe < stop and stripe in self._stripes:
                at = max(first - stripe * STRIPE, 0)
                end = min(first + count - stripe * STRIPE, STRIPE)
                self._stripes[stripe] &= ~_mask(at, end - at)
                if not self._stripes[stripe]:
                    del self._stripes[stripe]

    def forget(self, stripes: Callable[[int], bool]) -> list[range]:
        """Forget all of the stripes of which `stripes` is true, and give what was stored there."""
        ranges = self.ranges(stripes)
        for stripe in [stripe for stripe in self._stripes if stripes(stripe)]:
            del self._stripes[stripe]
        return ranges

    def ranges(self, stripes: Callable[[int], bool]) -> list[range]:
        """Give what is stored in the stripes of which `stripes` is true, as ranges that are apart."""
        return joined(self._runs(stripe for stripe in self._stripes if stripes(stripe)))

    def _runs(self, stripes: Iterable[int]) -> Iterator[range]:
        for stripe in stripes:
            bits, at = self._stripes[stripe], stripe * STRIPE
            while bits:
                zeros = (bits & -bits).bit_length() - 1
                bits >>= zeros
                ones = (~bits & (bits + 1)).bit_length() - 1
                bits >>= ones
                yield range(at + zeros, at + zeros + ones)
                at += zeros + ones


def joined(ranges: Iterable[range]) -> list[range]:
    """Return ranges that are apart in order, those that follow one another as one."""
    found: list[range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if found and found[-1].stop == part.start:
            found[-1] = range(found[-1].start, part.stop)
        else:
            found.append(part)
    return found


def cut(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range at the stripes' ends: the stripe, the first index and the number of each part."""
    end = first + count
    while first < end:
        stripe = first // STRIPE
        number = min(end, (stripe + 1) * STRIPE) - first
        yield stripe, first, number
        first += number


def _mask(at: int, number: int) -> int:
    return ((1 << number) - 1) << at
