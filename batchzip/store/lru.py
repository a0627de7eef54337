"""Lru: which entries were used longest ago, from two bytes in each entry.

Kernel counterpart: zswap's list_lru with its second chance, and the generations of the multi-gen LRU.
Rejected: a linked list, at 16 bytes a page and two writes elsewhere in memory a load; a bit and a
hand that goes round, which calls a page cold for where it stands, not for when it was used.

    epoch    0 ────▶ 1 ────▶ 2 ────▶ …        the store's; the next one begins when 1/256 of the pages
                                              were used, or a page is after a second
    entry    its lowest 16 bits, written when the page is stored or loaded

    coldest(n)  ─▶ a histogram of all ages ─▶ the oldest 1/64 of the entries, in order, kept as
                   candidates ─▶ given out n at a time until they are used up

A choice reads every entry, once for each 1/64 of them that is given out: an entry costs the same
however many there are. A store of fewer than 256 pages has an epoch for each call: its order is exact.

Second chance: a candidate that was used since it was chosen is passed over, as its epoch tells.

Idle for s seconds: `_times` knows when epochs began, and no page is used in an epoch that is a second
old. So an entry may be called busy for a second too long, and none idle that is not.

Invariants: no entry is older than `_OLDEST` + `_SWEEP` epochs, so that 16 bits tell its age
(`advance` sees to it that those which reach `_OLDEST` stay there).

Locks: none; the store's is held around every call.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from batchzip.store.page_table import COMPRESSED, RAW

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from batchzip.store.page_table import PageTable

_OLDEST = 1 << 15
"""Epochs; entries older than this count as this old."""

_SWEEP = 1 << 14
"""Epochs between two passes over the table that see to it."""

_SHARE_BITS = 8
"""An epoch ends when 1/2⁸ of the pages were used: candidates are that much finer than they need be."""

_CANDIDATE_BITS = 6
"""A choice is of 1/2⁶ of the entries: 64 entries are looked at for each that is given out, 0.3 µs."""

_LEAST = 1024
"""Entries chosen at once at the least: a choice takes 50 µs however small the table."""

_CHUNK = 1 << 20
"""Entries looked at in one go: bounds the memory a choice takes to some MiB."""

_SECOND = 1.0
"""Seconds an epoch lasts at the most: the grain of what is idle."""

_CHECKPOINT = 1 / 16
"""Seconds between two epochs whose beginnings are kept: 8 bytes twice, 16 times a second at most."""


class Lru:
    """The epoch of a group, and its coldest entries."""

    def __init__(self, table: PageTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock
        self.epoch = 0
        self.stamp = 0
        """The lowest 16 bits of the epoch: what is written in an entry that is used."""
        self.used = 0
        """Pages used in this epoch so far."""
        self.quota = 0
        """Pages used after which the next one begins."""
        self.until = clock() + _SECOND
        """When the next one begins at the latest."""
        self._epochs = [0]
        self._times = [self.until - _SECOND]
        self._candidates: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._stamps: npt.NDArray[np.uint16] = np.zeros(0, np.uint16)

    def advance(self, pages: int) -> None:
        """Begin the next epoch; `pages` is how many there are."""
        self.epoch += 1
        self.stamp = self.epoch & 0xFFFF
        self.used = 0
        self.quota = pages >> _SHARE_BITS
        now = self._clock()
        self.until = now + _SECOND
        if now - self._times[-1] >= _CHECKPOINT:
            self._epochs.append(self.epoch)
            self._times.append(now)
            if len(self._times) > _OLDEST:
                del self._epochs[: _OLDEST // 2], self._times[: _OLDEST // 2]
        if not self.epoch % _SWEEP:
            for entries in self._chunks():
                epochs = entries["epoch"]
                old = (self.stamp - epochs) > _OLDEST
                epochs[old] = (self.epoch - _OLDEST) & 0xFFFF

    def tick(self, count: int, pages: int) -> None:
        """Take note that `count` pages of `pages` are used; what they get is `stamp` thereafter."""
        self.used += count
        if self.used > self.quota or self._clock() >= self.until:
            self.advance(pages)

    def _chunks(self) -> list[np.ndarray]:
        entries = self._table.entries
        return [entries[at : at + _CHUNK] for at in range(0, len(entries), _CHUNK)]

    def _ages(self, entries: np.ndarray) -> npt.NDArray[np.uint16]:
        """Ages in epochs of the entries that lie in the pool; the others have none."""
        kinds = entries["kind"]
        held = (kinds == COMPRESSED) | (kinds == RAW)
        ages: npt.NDArray[np.uint16] = np.uint16(self.stamp) - entries["epoch"]
        # Those that are not in the pool are younger than any: 0 is what a page just used has.
        return np.where(held, np.minimum(ages, 0xFFFE) + np.uint16(1), np.uint16(0))

    def coldest(self, count: int) -> npt.NDArray[np.int64]:
        """Give the indices of up to `count` pages in the pool, that of the longest unused one first.

        Each is given out once, until a new choice has to be made. None means that there are none.
        `count` is 1 or more.
        """
        assert count > 0, count  # noqa: S101 - or the loop below would never end
        for _ in range(2):
            while len(self._candidates):
                rows, stamps = self._candidates[:count], self._stamps[:count]
                self._candidates, self._stamps = self._candidates[count:], self._stamps[count:]
                entries = self._table.entries[rows]
                still = (self._ages(entries) > 0) & (entries["epoch"] == stamps)
                if still.any():
                    return self._table.indices(rows[still])
            self._choose(count)
        return np.zeros(0, np.int64)

    def _choose(self, least: int) -> None:
        chunks = self._chunks()
        histogram = np.zeros(1 << 16, np.int64)
        for entries in chunks:
            histogram += np.bincount(self._ages(entries), minlength=1 << 16)
        histogram[0] = 0
        held = int(histogram.sum())
        want = min(held, max(least, _LEAST, held >> _CANDIDATE_BITS))
        if not want:
            return
        # How many are at least so old, from the oldest on.
        at_least = np.cumsum(histogram[::-1])[::-1]
        threshold = int(np.flatnonzero(at_least >= want)[-1])
        found, ages = [], []
        for number, entries in enumerate(chunks):
            age = self._ages(entries)
            rows = np.flatnonzero(age >= threshold)
            found.append(rows + number * _CHUNK)
            ages.append(age[rows])
        rows = np.concatenate(found)
        # Stable: those of one epoch come in the order of their rows.
        order = np.argsort(-np.concatenate(ages).astype(np.int32), kind="stable")[:want]
        self._candidates = rows[order]
        self._stamps = self._table.entries["epoch"][self._candidates]

    def idle(self, entries: np.ndarray, seconds: float) -> npt.NDArray[np.bool_]:
        """Tell which entries were last used at least so many seconds ago."""
        if seconds <= 0:
            return np.ones(len(entries), np.bool_)
        latest = self._clock() - seconds - _SECOND - _CHECKPOINT
        over = bisect_right(self._times, latest)
        if not over:
            return np.zeros(len(entries), np.bool_)
        # All epochs before the next one in the list began within a checkpoint of the one found.
        after = self._epochs[over] if over < len(self._epochs) else self.epoch + 1
        least = min(self.epoch + 1 - after, _OLDEST)
        ages: npt.NDArray[np.uint16] = np.uint16(self.stamp) - entries["epoch"]
        return ages >= least
