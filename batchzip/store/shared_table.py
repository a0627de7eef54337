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

A reader takes no lock, and nothing of it reaches the owner: core/view.pyx says what it may meet.

Rejected: a sequence lock. A reader would wait for an owner that was stopped in the middle of a change,
and for each change of any page. Here it waits for nobody.

Stores must become visible in their order, as they do on x86; where they do not, checksums tell.

Locks: none. The owner writes under the store's.
"""

from __future__ import annotations

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
