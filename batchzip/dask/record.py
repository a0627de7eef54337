"""Record: which indices are stored, so that lost pages can be named.

Each stripe of STRIPE indices has one integer with a bit per page. A client has a Record to name its
lost pages, and each shard has one of the pages that it stores. Not thread-safe: it is used in one
event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

STRIPE = 512
"""Adjacent indices with the same owners. This is a block of a store's page table, so the tables of
all shards together are no larger than those of one store."""


class Record:
    """A set of stored indices."""

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
        """Note that these indices are not stored."""
        self.take(first, count)

    def take(self, first: int, count: int) -> dict[int, int]:
        """Note that these indices are not stored. Return masks of those that were, by stripe."""
        taken: dict[int, int] = {}
        start, stop = first // STRIPE, (first + count - 1) // STRIPE + 1
        few = stop - start < len(self._stripes)
        for stripe in range(start, stop) if few else list(self._stripes):
            if start <= stripe < stop and stripe in self._stripes:
                at = max(first - stripe * STRIPE, 0)
                end = min(first + count - stripe * STRIPE, STRIPE)
                mask = self._stripes[stripe] & _mask(at, end - at)
                if mask:
                    taken[stripe] = mask
                    self.set_mask(stripe, self._stripes[stripe] & ~mask)
        return taken

    def give(self, masks: Mapping[int, int]) -> None:
        """Note that the indices of these masks are stored after all."""
        for stripe, mask in masks.items():
            self.set_mask(stripe, self._stripes.get(stripe, 0) | mask)

    def mask(self, stripe: int) -> int:
        """Return a mask with a bit for each index of a stripe: whether it is stored."""
        return self._stripes.get(stripe, 0)

    def set_mask(self, stripe: int, mask: int) -> None:
        """Set the mask of a stripe."""
        if mask:
            self._stripes[stripe] = mask
        else:
            self._stripes.pop(stripe, None)

    def stripes(self) -> set[int]:
        """Return the stripes with stored indices."""
        return set(self._stripes)

    def indices(self, stripe: int) -> list[int]:
        """Return the stored indices of a stripe in ascending order."""
        return [index for part in self._runs([stripe]) for index in part]

    def count(self, stripes: Callable[[int], bool]) -> int:
        """Return the number of stored indices in the stripes for which `stripes` returns true."""
        return sum(bits.bit_count() for stripe, bits in self._stripes.items() if stripes(stripe))

    def forget(self, stripes: Callable[[int], bool]) -> list[range]:
        """Forget the stripes for which `stripes` returns true. Return what they had as ranges."""
        ranges = self.ranges(stripes)
        for stripe in [stripe for stripe in self._stripes if stripes(stripe)]:
            del self._stripes[stripe]
        return ranges

    def ranges(self, stripes: Callable[[int], bool]) -> list[range]:
        """Return the indices in stripes for which `stripes` returns true, as maximal ranges."""
        return joined(self._runs(stripe for stripe in list(self._stripes) if stripes(stripe)))

    def _runs(self, stripes: Iterable[int]) -> Iterator[range]:
        for stripe in stripes:
            bits, at = self._stripes.get(stripe, 0), stripe * STRIPE
            while bits:
                zeros = (bits & -bits).bit_length() - 1
                bits >>= zeros
                ones = (~bits & (bits + 1)).bit_length() - 1
                bits >>= ones
                yield range(at + zeros, at + zeros + ones)
                at += zeros + ones


def joined(ranges: Iterable[range]) -> list[range]:
    """Return the ranges in ascending order, with adjacent ones merged."""
    found: list[range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if found and found[-1].stop == part.start:
            found[-1] = range(found[-1].start, part.stop)
        else:
            found.append(part)
    return found


def cut(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range at stripe boundaries. Yield each part's stripe, first index and length."""
    end = first + count
    while first < end:
        stripe = first // STRIPE
        number = min(end, (stripe + 1) * STRIPE) - first
        yield stripe, first, number
        first += number


def _mask(at: int, number: int) -> int:
    return ((1 << number) - 1) << at
