"""Pages: values too large to be compressed in one call, and those of codecs in Python, on pages of the group.

    part 0, whole pages │ part 1, whole pages │ … │ the tails of all, joined

Whole pages of a part are compressed from where they are and restored to where they stay: an array of a
million bytes is not copied on its way in, and its tail of less than a page is the only copy. All tails
share the last pages.

Pages are never written over: a new value takes new indices. Those of the old one are free when nobody refers
to its LargeValue any more (core/indices.pyx), so a reader gets all of one value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments.buffers import flat
from batchzip.core.indices import IndexSpace
from batchzip.core.records import LargeValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.store.group import Group


class Pages:
    """Writes and reads the large values of one mapping. Thread-safe."""

    def __init__(self, group: Group) -> None:
        self.space = IndexSpace(group._entries)  # noqa: SLF001 - it erases what is gone
        self._group = group
        self._page_size = group.page_size

    def write(self, parts: Sequence[Flat]) -> LargeValue:
        """Store the parts of a value. Raise StoreRejected; nothing of it is stored then."""
        size = self._page_size
        lengths = [len(part) for part in parts]
        tails = b"".join(part[len(part) - len(part) % size :] for part in parts)
        tails += bytes(-len(tails) % size)
        count = sum(length // size for length in lengths) + len(tails) // size
        if not count:
            return LargeValue(lengths, None)
        reservation = self.space.reserve(count)
        try:
            at = reservation.first
            for part in (*parts, tails):
                pages = len(part) // size
                if pages:
                    whole = np.frombuffer(part, np.uint8, pages * size)
                    self._group.store(at, whole.reshape(pages, size))
                    at += pages
            return LargeValue(lengths, reservation)
        finally:
            # An exception keeps this frame, and the indices would be taken as long as it is kept.
            del reservation

    def read(self, value: LargeValue) -> list[memoryview]:
        """Return the parts of a value, in memory that becomes the caller's. Raise as `Group.load_many`."""
        if value.reservation is None:
            return [memoryview(bytearray(0)) for _ in value.lengths]
        size, at = self._page_size, value.reservation.first
        last = at + value.reservation.count
        rooms = [np.empty(length, np.uint8) for length in value.lengths]
        for room in rooms:
            pages = len(room) // size
            if pages:
                self._group.load_many(range(at, at + pages), room[: pages * size])
                at += pages
        if at < last:
            tails = self._group.load_many(range(at, last)).reshape(-1)
            taken = 0
            for room in rooms:
                tail = len(room) % size
                if tail:
                    room[-tail:] = tails[taken : taken + tail]
                    taken += tail
        return [flat(room) for room in rooms]
