"""Pages: store values as pages of the group, whose codec runs elsewhere.

The engine's backend compresses pages, wherever its codec runs: in worker processes, on a cluster,
or in Python. A mapping itself compresses only values that a native codec takes in one call, and
larger ones in chunks if threads of this process are all the backend has (core/chunks.pyx).

    part 0, whole pages │ part 1, whole pages │ … │ the tails of all parts, joined

The whole pages of a part are compressed from the caller's memory and decompressed into the memory
of the result. Of an array of a million bytes, only the tail of less than a page is copied. The
tails of all parts share the last pages.

Pages are never overwritten: a new value takes new indices. The indices of the old value are freed
when its LargeValue has no references any more (core/indices.pyx). A reader therefore gets all bytes
from one value.
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
        self.space = IndexSpace(group._entries)  # noqa: SLF001 - erases entries of freed indices
        self._group = group
        self._page_size = group.page_size

    def write(self, parts: Sequence[Flat]) -> LargeValue:
        """Store the parts of a value. Raise StoreRejected, after which no part of it is stored."""
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
            # An exception keeps this frame alive, and the frame would keep the indices taken.
            del reservation

    def read(self, value: LargeValue) -> list[memoryview]:
        """Return the parts of a value, in new memory. Raise as `Group.load_many`."""
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
