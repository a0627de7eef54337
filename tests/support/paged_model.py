"""Threads that use paged arrays at random, and know every byte that must be in them.

Each thread has
    own     an array of its own: blocks of all kinds of pages, moved, sorted, added to and compared
    copy    the same in ordinary memory
    strip   every n-th word of an array that all share, so that several write to each page

A word of the shared array tells its writer, its place and its number. Whoever reads a word of
another thread sees one that was written there, and none older than it has seen before.
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING

import numpy as np
from support.paged_region import KINDS, Region, content

from batchzip import BadArgument
from batchzip.core.region import AccessAdvice
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

_WRITER = 56
_PLACE = 32
"""Where in a word its writer's number and its place begin; below is the version."""

_LIMIT_S = 600.0
"""Seconds after which threads hang: with two pages in memory each word may be a fault."""

_MOST_PINNED = 4
"""A thread's share of the budget that it pins, at most, is one in so many."""


class Shared:
    """An array that all write to, each thread to words of its own."""

    def __init__(self, region: Region, words: int, threads: int) -> None:
        self.words: Words = region.array(words, np.uint64)
        self.threads = threads


class Worker:
    """What one thread does, and must find."""

    def __init__(
        self, region: Region, shared: Shared, number: int, own_words: int, seed: int
    ) -> None:
        self.region = region
        self.shared = shared
        self.number = number
        self.may_fail: tuple[type[BaseException], ...] = ()
        self.touches = 0
        self.failed = 0
        self.most_touches = 2000
        self._rng = np.random.default_rng([seed, number])
        self._choose = random.Random(seed << 8 | number)
        self._own: Words = region.array(own_words, np.uint64)
        self._copy: Words = np.zeros(own_words, np.uint64)
        self._strip: Words = shared.words[number :: shared.threads]
        self._stamps: Words = np.zeros(len(self._strip), np.uint64)
        self._seen: Words = np.zeros(len(shared.words), np.uint64)
        self._version = 0
        self._pinned: list[tuple[int, int]] = []
        self._file = os.memfd_create("copy")

    # What uses the arrays.

    def write_words(self) -> None:
        """Write to random words of the shared array."""
        chosen = self._positions(len(self._strip))
        self._version += 1
        places = chosen.astype(np.uint64) * np.uint64(self.shared.threads) + np.uint64(self.number)
        stamps = (
            np.uint64(self.number + 1 << _WRITER)
            | (places & np.uint64(0xFFFFFF)) << np.uint64(_PLACE)
            | np.uint64(self._version)
        )
        self._strip[chosen] = stamps
        self._stamps[chosen] = stamps

    def read_words(self) -> None:
        """Read back words of this thread."""
        chosen = self._positions(len(self._strip))
        np.testing.assert_array_equal(self._strip[chosen], self._stamps[chosen])

    def read_others(self) -> None:
        """Read words of all threads."""
        chosen = np.unique(self._positions(len(self._seen)))
        found = self.shared.words[chosen]
        written = found != 0
        writers = (found >> np.uint64(_WRITER)).astype(np.int64)
        places = (found >> np.uint64(_PLACE) & np.uint64(0xFFFFFF)).astype(np.int64)
        assert (writers[written] == chosen[written] % self.shared.threads + 1).all()
        assert (places[written] == chosen[written] & 0xFFFFFF).all()
        versions = found & np.uint64(0xFFFFFFFF)
        assert (versions >= self._seen[chosen]).all()
        self._seen[chosen] = versions

    def write_block(self) -> None:
        """Overwrite a block with pages of some kind."""
        a, b = self._block()
        kind = self._choose.choice(KINDS)
        self._own[a:b] = self._copy[a:b] = content(
            kind, self._choose.randrange(1 << 30), 8 * (b - a)
        ).view(np.uint64)

    def write_own_words(self) -> None:
        """Change single words of blocks."""
        chosen = np.unique(self._positions(len(self._own)))
        values = self._rng.integers(0, 1 << 63, len(chosen), np.uint64)
        self._own[chosen] = values
        self._copy[chosen] = values

    def read_block(self) -> None:
        a, b = self._block()
        np.testing.assert_array_equal(self._own[a:b], self._copy[a:b])

    def move_block(self) -> None:
        """Copy a block to somewhere else, both ends of it paged."""
        a, b = self._block()
        to = self._choose.randrange(len(self._own) - (b - a) + 1)
        self._own[to : to + b - a] = self._own[a:b].copy() if a < to < b else self._own[a:b]
        self._copy[to : to + b - a] = self._copy[a:b].copy()

    def sort_block(self) -> None:
        a, b = self._block()
        self._own[a:b].sort()
        self._copy[a:b].sort()

    def add_to_all(self) -> None:
        self._own += np.uint64(self._version)
        self._copy += np.uint64(self._version)

    def compare_all(self) -> None:
        np.testing.assert_array_equal(self._own, self._copy)
        np.testing.assert_array_equal(self._strip, self._stamps)

    def read_with_the_gil(self) -> None:
        """Read, and write, by what never lets go of the GIL."""
        a, b = self._block()
        view = self._own.data
        assert view[a:b].tobytes() == self._copy[a:b].tobytes()
        view[a:b] = self._copy[b - 1 : a - 1 if a else None : -1].copy().data
        self._copy[a:b] = self._copy[a:b][::-1].copy()

    # What changes where the pages are.

    def evict(self) -> None:
        self.region.pager.evict(*self._pages())

    def prefetch(self) -> None:
        self.region.pager.prefetch(*self._pages())

    def advise(self) -> None:
        advice = self._choose.choice(list(AccessAdvice))
        self.region.pager.advise(*self._pages(), advice)

    def pin_some(self) -> None:
        """Pin pages, let a system call read them, and perhaps keep them pinned for a while."""
        first, count = self.region.pages_of(self._own)
        most = self.region.pager.budget // (_MOST_PINNED * self.shared.threads)
        if not most:
            return
        count = min(count, most)
        try:
            self.region.pager.pin(first, count)
        except BadArgument:  # the others' leave too little of the budget
            return
        self._pinned.append((first, count))
        size = count * self.region.pager.page_size
        part = self._own[: size // 8]
        assert os.pwrite(self._file, part.data, 0) == part.nbytes
        assert os.pread(self._file, part.nbytes, 0) == self._copy[: len(part)].tobytes()
        if self._choose.random() < 0.7:
            self.unpin_all()

    def unpin_all(self) -> None:
        while self._pinned:
            self.region.pager.unpin(*self._pinned.pop())

    def change_budget(self) -> None:
        """Give the region from two pages to all of them."""
        pages = self.region.pager.pages
        budget = self._choose.choice([2, 3, pages // 16, pages // 4, pages // 2, pages])
        pinned = self.region.figures["pinned_pages"]
        if pinned:  # the others need some, too
            budget = max(budget, pinned + 4 * self.shared.threads)
        with contextlib.suppress(BadArgument):  # more was pinned meanwhile
            self.region.pager.budget = min(budget, pages)

    def use_another_array(self) -> None:
        """Take memory, which must be empty, fill it, and give it back."""
        size = self._choose.randrange(1, 9 * self.region.pager.page_size)
        try:
            array = self.region.array(size)
        except MemoryError:
            return
        assert not array.any()
        filled = content(self._choose.choice(KINDS), self._version, size + 8)[:size]
        array[:] = filled
        np.testing.assert_array_equal(array, filled)

    def tidy_the_store(self) -> None:
        self.region.store.compact()

    def write_back(self) -> None:
        """Have the store move entries to its file."""
        if self.region.store._resources.backing is not None:
            self.region.group.writeback(self._choose.randrange(1, 20))

    # How it goes on.

    WORK: tuple[Callable[[Worker], None], ...] = (
        *[write_words, read_words, read_others] * 4,
        *[write_block, write_own_words, read_block] * 3,
        *[move_block, sort_block, add_to_all, compare_all, read_with_the_gil] * 1,
        *[evict, prefetch, advise, pin_some, unpin_all, use_another_array, change_budget] * 1,
        *[tidy_the_store, write_back] * 1,
    )
    TOUCHING = (write_words, read_words, read_others, write_own_words)

    def run(self, steps: int) -> None:
        """Take so many steps; whatever failed for a reason that may be is tried no more."""
        for _ in range(steps):
            self.step(self._choose.choice(self.WORK))

    def touch(self, count: int) -> None:
        """Touch so many words at random."""
        while self.touches < count:
            self.step(self._choose.choice(self.TOUCHING))

    def step(self, work: Callable[[Worker], None]) -> None:
        try:
            work(self)
        except self.may_fail:
            self.failed += 1

    def end(self) -> None:
        """Let go of what is pinned, and look at everything once more."""
        self.unpin_all()
        self.compare_all()
        os.close(self._file)

    def _positions(self, length: int) -> npt.NDArray[np.int64]:
        count = self._choose.randrange(1, self.most_touches)
        self.touches += count
        if self._choose.random() < 0.2:  # with a stride, as readahead likes it
            return np.arange(0, length, max(1, length // count))
        return self._rng.integers(0, length, count)

    def _block(self) -> tuple[int, int]:
        """Choose a range of words: of some pages, and mostly not at their borders."""
        words = len(self._own)
        pages = self._choose.randrange(1, 12)
        length = min(words, pages * self.region.pager.page_size // 8)
        start = self._choose.randrange(words - length + 1)
        if self._choose.random() < 0.5:
            start -= start % (self.region.pager.page_size // 8)
        return start, start + length

    def _pages(self) -> tuple[int, int]:
        """Choose pages of either array."""
        array = self._choose.choice([self._own, self.shared.words])
        first, count = self.region.pages_of(array)
        skipped = self._choose.randrange(count)
        return first + skipped, self._choose.randrange(1, count - skipped + 1)


def run_model(
    region: Region,
    work: Callable[[Worker], object],
    *,
    threads: int = 3,
    seed: int = 0,
    may_fail: tuple[type[BaseException], ...] = (),
    beside: Callable[[], object] | None = None,
) -> list[Worker]:
    """Let `threads` threads use two thirds of a region's pages, and another run `beside`."""
    words = region.pager.pages * region.pager.page_size // 8 * 2 // 3
    shared = Shared(region, words // (threads + 1) // threads * threads, threads)
    own = words // (threads + 1)
    workers = [Worker(region, shared, number, own, seed) for number in range(threads)]
    for worker in workers:
        worker.may_fail = may_fail

    def run(number: int) -> None:
        if number == threads:
            assert beside is not None
            beside()
        else:
            work(workers[number])

    in_threads(threads + (beside is not None), run, limit_s=_LIMIT_S)
    for worker in workers:
        worker.may_fail = ()
        worker.end()
    return workers
