"""SharedTable: a page table in shared memory, so that other processes find entries in it.

    bytes of the segment   what                                           who writes
    0 … 7                  changes: how often blocks were given or taken  owner
    8 … 15                 blocks that have memory                        owner
    16 … 23                codecs: how many numbers were given out        owner
    24 … 31                1 once the store is closed                     owner
    4096 …                 directory: the block in each place, -1: none   owner
    4096 + 8 MiB …         entries, 512 of 16 bytes for each block        owner

A table moves here when it is first shared (PageTable.share), and grows here from then on. Directory and
entries have address space for all blocks there can be and memory for those there are.

A reader takes no lock, and nothing of it reaches the owner. What it may meet, and what tells:

* a block that is taken back, or another's, while its entry is read: `changes` grew, as it does before
  anything else. The reader looks again.
* an entry half old and half new, as two words make it: what it names does not have its checksum, which
  covers the codec's number, too. Entries of same-filled pages have a checksum of their word for
  this. The caller looks again.
* an object that is gone, as its page was stored anew: its handle is never given out twice
  (PoolReader). The caller looks again, and finds the new entry.

Rejected: a sequence lock. A reader would wait for an owner that was stopped in the middle of a change,
and for each change of any page. Here it waits for nobody.

Stores must become visible in their order, as they do on x86; where they do not, checksums tell.

Locks: none. The owner writes under the store's.
"""

from __future__ import annotations

import contextlib

import numpy as np

from batchzip.errors import ClosedError
from batchzip.lifetime import Closing
from batchzip.segment import PAGE, Segment

CHANGES, BLOCKS, CODECS, CLOSED = range(4)
"""Words of the header."""

HEADER_WORDS = 8

BLOCK_BITS = 9
BLOCK = 1 << BLOCK_BITS
"""Indices a block covers: 2 MiB of 4 KiB pages, one PMD folio."""

BLOCK_BYTES = BLOCK * 16

MOST_BLOCKS = 1 << 20
"""Blocks a shared table may have: entries of 2 TiB of 4 KiB pages, and 8 MiB of address space here."""

DIRECTORY = PAGE
ENTRIES = DIRECTORY + 8 * MOST_BLOCKS

NONE = -1
"""In the directory: no block."""


def make_room(segment: Segment, have: int, blocks: int) -> None:
    """Give memory to so many blocks, of which some have it. Raises MemoryError."""
    if blocks > MOST_BLOCKS:
        raise MemoryError(f"a shared table has {MOST_BLOCKS} blocks at most, not {blocks}")
    try:
        if segment.size < ENTRIES + blocks * BLOCK_BYTES:
            segment.grow(ENTRIES + max(blocks, 2 * have) * BLOCK_BYTES)
        segment.reserve(DIRECTORY + 8 * have, 8 * (blocks - have))
        segment.reserve(ENTRIES + have * BLOCK_BYTES, (blocks - have) * BLOCK_BYTES)
    except OSError as error:
        raise MemoryError(f"no memory for a table of {blocks} blocks: {error}") from error


def new_segment(blocks: int) -> Segment:
    """Make a segment with memory for the header and so many blocks. Raises MemoryError."""
    try:
        segment = Segment(ENTRIES + max(blocks, 1) * BLOCK_BYTES, name="batchzip-table")
        segment.reserve(0, PAGE)
    except OSError as error:
        raise MemoryError(f"no memory for a table: {error}") from error
    try:
        if blocks:
            make_room(segment, 0, blocks)
    except BaseException:
        segment.close()
        raise
    return segment


class TableReader(Closing):
    """Entries of a table in another process. Takes ownership of the descriptor. Thread-safe."""

    def __init__(self, fd: int) -> None:
        self._segment = Segment.attach(fd, writable=False)
        self._block_at: dict[int, int] = {}
        self._map()

    def _map(self) -> None:
        view = self._segment.view
        self._header = view[: 8 * HEADER_WORDS].cast("Q")
        # Others of this process may still look at the old mapping: it goes with its last view.
        self._directory = np.frombuffer(view[DIRECTORY:ENTRIES], np.int64)
        self._words = view[ENTRIES:].cast("Q")

    @property
    def codecs(self) -> int:
        """How many numbers of codecs were given out; grows before any entry has the number."""
        self._check()
        return self._header[CODECS]

    def _check(self) -> None:
        try:
            closed = self._header[CLOSED]
        except ValueError:  # its memoryview is released
            raise ClosedError("this view is closed") from None
        if closed:
            raise ClosedError("the store is closed")

    def get(self, index: int) -> tuple[int, int]:
        """Both words of an entry: its value, and checksum, kind, codec and epoch. (0, 0) for none.

        The entry was the index's during the call, if it was not written at that very moment.
        """
        self._check()
        header, block, place = self._header, index >> BLOCK_BITS, index & (BLOCK - 1)
        while True:
            changes = header[CHANGES]
            at = self._block_at.get(block)
            if at is None or self._directory[at] != block:
                at = self._find(block)
            if at is None:
                found = 0, 0
            else:
                words = self._words
                row = (at << BLOCK_BITS | place) * 2
                if row >= len(words):
                    self._segment.remap()
                    self._map()
                    words = self._words
                found = words[row], words[row + 1]
            if header[CHANGES] == changes:
                return found

    def _find(self, block: int) -> int | None:
        """Look through the directory, 8 bytes for 512 pages."""
        places = np.flatnonzero(self._directory[: self._header[BLOCKS]] == block)
        if not len(places):
            self._block_at.pop(block, None)
            return None
        at = self._block_at[block] = int(places[0])
        return at

    def close(self) -> None:
        """Drop mapping and descriptor."""
        with contextlib.suppress(AttributeError):
            self._header.release()
            self._words.release()
            del self._directory, self._words
        self._segment.close()
