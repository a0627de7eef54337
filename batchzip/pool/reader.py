"""PoolReader: copies of a pool's objects in another process, which neither waits nor makes wait.

    owner    bytes to a place ──▶ word names the place ──▶ … ──▶ word changes ──▶ place is another's
    reader   word ──▶ copy of what it names ──▶ the same word? epoch as before? ──▶ that is the object

Rejected: a lock, which a reader that dies would keep; a mapping of the objects: where the owner has given
a page back meanwhile, a read through a mapping gives it memory again, which nobody counts and nobody
returns, while pread() sees zeros and leaves the hole. And with pread() there is nothing to map again as the
pool grows. A copy is 0.5 us slower for it.

The epoch (word 0) is what makes the same word enough: an object that was moved away and back has the same
word again, and what the reader copied in between may be another's bytes. It takes two calls of
compact() to get there, and each begins with a new epoch. A reader tries again only while the owner compacts.

Everything is read-only here. Stores of the owner must become visible in their order, as they do on
x86; on processors that reorder them the checksum of the store's entry is what tells.

Locks: none. Threads may share a reader, save for close().
"""

from __future__ import annotations

import os
from operator import index
from typing import TYPE_CHECKING

from batchzip.errors import BadHandle, ClosedError
from batchzip.lifetime import Closing
from batchzip.pool.audit import FIRST_SLOT, GENERATION_SHIFT, ONE, SLOT
from batchzip.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterable


class PoolReader(Closing):
    """A read-only view of a pool, made from `Pool.descriptors` and its page size.

    Takes ownership of both descriptors, which are of this process: inherited, received, or duplicates.
    Works in any process, a forked one too. It shows the pool as it is at each call, and what it held
    last once the owner has closed it or is gone; it keeps that memory alive until close().
    """

    def __init__(self, data_fd: int, words_fd: int, page_size: int = 4096) -> None:
        self._shift = max(page_size.bit_length() - 9, 4)
        self._bits = page_size.bit_length() - 1
        self._segment = Segment.attach(words_fd, writable=False)
        self._words = self._segment.view.cast("Q")
        self._fd = data_fd

    def copy(self, handle: int) -> bytes | None:
        """Copy an object that was live during the call; None if it is not live.

        Raises BadHandle for what is no integer. Costs about 2 us.
        """
        try:
            number = index(handle)
        except TypeError:
            raise BadHandle(f"a handle is an integer, not {handle!r}") from None
        if self._fd < 0:
            raise ClosedError("this reader is closed")
        slot = number & SLOT
        words = self._words
        while FIRST_SLOT <= slot < words[1]:
            if slot >= len(words):
                words = self._grown()
            epoch, word = words[0], words[slot]
            if word >> GENERATION_SHIFT != number >> GENERATION_SHIFT or not word & ONE:
                return None
            place = word & SLOT
            length = (place & (1 << self._bits) - 1) + 1
            data = os.pread(self._fd, length, (place >> self._bits << self._shift) + 4)
            if words[slot] == word and words[0] == epoch and not epoch & 1:
                return data
        return None

    def copy_many(self, handles: Iterable[int]) -> list[bytes | None]:
        """Copy each object as `copy`, one after the other."""
        return [self.copy(handle) for handle in handles]

    def _grown(self) -> memoryview:
        # Other threads may still look at the old mapping: it goes with its last view.
        self._segment.remap()
        self._words = self._segment.view.cast("Q")
        return self._words

    def close(self) -> None:
        """Drop the mapping and both descriptors."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._words.release()
        self._segment.close()
