"""PageTable: what the store knows of each index, in arrays.

Kernel counterpart: zswap's xarray of zswap_entry. Rejected: a Python object, or a dict item, for
each page (100 B and up, and nothing to vectorise); one array indexed by page number itself (an index
may be an address >> 12, and nobody has 2⁵² entries of memory).

    index ─▶ block = index // 512 ─▶ _block_at[block] ─▶ row = that × 512 + index % 512
                                          dict               of one growing array of entries

    entry, 16 bytes    value     u64   pool handle; position in the backing file; the word of a
                                       same-filled page
                       checksum  u32   xxh3 of the stored bytes, low half, XOR codec
                       kind      u8    ABSENT, COMPRESSED, RAW, SAME_FILLED, BACKED
                       codec     u8    number of the codec that made the bytes; 0: they are the page
                       epoch     u16   when it was used last, as `lru.py` counts

A block is given out when an index in it is first stored and taken back when its last page goes.
Dense indices thus cost 16.3 bytes a page; an index alone in its block costs 8 KiB.

Invariants
* A row of a free block, and every row of an index not stored, is all zero (kind ABSENT).
* _block_of[row >> 9] is the block whose entries stand in these rows.
* Where these are free it is none, -1.
* _live[block row] is the number of its rows that are not ABSENT, and never 0 for a block in use.

A table that is shared has entries and _block_of in a segment, whose header tells readers of other processes
when blocks change (shared_table.py). Before that they are arrays of this process, and the header is too.

Entries are written and copied as numbers of 16 bytes. NumPy copies structs field by field: readers
found new bytes with the codec of the old ones; and 512 entries took 8 µs, not 1.

Locks: none; the store's lock covers every call. Views of `entries` do not outlive that lock, as the
array moves when it grows.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

import numpy as np

from batchzip.buffers import flat
from batchzip.store.shared_table import (
    BLOCK,
    BLOCK_BITS,
    BLOCKS,
    CHANGES,
    CLOSED,
    CODECS,
    DIRECTORY,
    ENTRIES,
    HEADER_WORDS,
    NONE,
    make_room,
    new_segment,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from batchzip.segment import Segment

ABSENT, COMPRESSED, RAW, SAME_FILLED, BACKED = KINDS = range(5)

ENTRY = np.dtype(
    [
        ("value", np.uint64),
        ("checksum", np.uint32),
        ("kind", np.uint8),
        ("codec", np.uint8),
        ("epoch", np.uint16),
    ]
)
"""One entry, for whole folios at a time."""

_ENTRY = struct.Struct("<QIBBH")
"""The same for one entry: a tenth of what NumPy takes for a single element."""


class PageTable:
    """Entries by index. Not thread-safe: its store's lock is held around every call."""

    def __init__(self) -> None:
        self.entries = np.zeros(0, ENTRY)
        self._match_entries()
        self._block_at: dict[int, int] = {}
        self._block_of: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._live = array("H")
        self._free: list[int] = []
        self._header = memoryview(bytearray(8 * HEADER_WORDS)).cast("Q")
        self._segment: Segment | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tables, not counting the dict of blocks."""
        return self.entries.nbytes + self._block_of.nbytes + len(self._live) * self._live.itemsize

    def get(self, index: int) -> tuple[int, int, int, int, int]:
        """Value, checksum, kind, codec and epoch of one index; all 0 if nothing is stored there."""
        block = self._block_at.get(index >> BLOCK_BITS)
        if block is None:
            return 0, 0, ABSENT, 0, 0
        return _ENTRY.unpack_from(self._bytes, ((block << BLOCK_BITS) | (index & (BLOCK - 1))) * 16)

    def use(self, index: int, epoch: int) -> tuple[int, int, int, int, int]:
        """Give an entry as `get`, and note the epoch in it if there is one."""
        block = self._block_at.get(index >> BLOCK_BITS)
        if block is None:
            return 0, 0, ABSENT, 0, 0
        row = (block << BLOCK_BITS) | (index & (BLOCK - 1))
        entry = _ENTRY.unpack_from(self._bytes, row * 16)
        if entry[2]:
            self._epochs[row * 8 + 7] = epoch
        return entry

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of these indices; negative where no block covers the index."""
        # Looking up each index's block takes less than finding out which blocks differ.
        find = self._block_at.get
        at = np.array([find(block, -1) for block in (indices >> BLOCK_BITS).tolist()], np.int64)
        rows: npt.NDArray[np.int64] = (at << BLOCK_BITS) | (indices & (BLOCK - 1))
        return rows

    def indices(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the indices whose entries stand in these rows, which are in use."""
        first = self._block_of[rows >> BLOCK_BITS] << BLOCK_BITS
        indices: npt.NDArray[np.int64] = first | (rows & (BLOCK - 1))
        return indices

    def get_many(self, indices: npt.NDArray[np.int64]) -> np.ndarray:
        """Entries of these indices, a copy; absent ones are all zero."""
        return self._get_rows(self.rows(indices))

    def _get_rows(self, rows: npt.NDArray[np.int64]) -> np.ndarray:
        absent = rows < 0
        if not absent.any():
            return self._whole[rows].view(ENTRY)
        if absent.all():
            return np.zeros(len(rows), ENTRY)
        entries = self._whole[rows]
        entries[absent] = 0
        return entries.view(ENTRY)

    def use_many(self, indices: npt.NDArray[np.int64], epoch: int) -> np.ndarray:
        """Give entries as `get_many`, and note the epoch in those there are."""
        rows = self.rows(indices)
        entries = self._get_rows(rows)
        present = entries["kind"] != ABSENT
        self.entries["epoch"][rows if present.all() else rows[present]] = epoch
        return entries

    def exchange(
        self, indices: npt.NDArray[np.int64], old: np.ndarray, new: np.ndarray
    ) -> npt.NDArray[np.bool_]:
        """Put `new` entries where the `old` ones still are; which those were.

        Epochs do not matter and stay. No index comes twice.
        """
        rows = self.rows(indices)
        now = self._get_rows(rows)
        same: npt.NDArray[np.bool_] = now["kind"] != ABSENT
        for field in ("value", "checksum", "kind", "codec"):
            same &= now[field] == old[field]
        changed = new[same]
        changed["epoch"] = now["epoch"][same]
        self._whole[rows[same]] = _whole(changed)
        return same

    def _make_room(self, index: int, count: int) -> None:
        """Have a free block for every one that these indices need and have not."""
        blocks = range(index >> BLOCK_BITS, ((index + count - 1) >> BLOCK_BITS) + 1)
        missing = sum(block not in self._block_at for block in blocks)
        if missing > len(self._free):
            self._grow(missing - len(self._free))

    def replace(self, index: int, entries: np.ndarray) -> np.ndarray:
        """Put `entries` at `index` and on, and return what was there, ABSENT included.

        Raises MemoryError where the table cannot grow; nothing changed then.
        """
        self._make_room(index, len(entries))
        old = np.zeros(len(entries), ENTRY)
        done = 0
        for block, start, stop in _runs(index, len(entries)):
            part = slice(done, done + stop - start)
            done = part.stop
            row = self._give_block(block) << BLOCK_BITS
            rows = slice(row + start, row + stop)
            _whole(old)[part] = self._whole[rows]
            self._whole[rows] = _whole(entries)[part]
            self._live[row >> BLOCK_BITS] += int(
                np.count_nonzero(entries["kind"][part]) - np.count_nonzero(old["kind"][part])
            )
        return old

    def replace_one(self, index: int, entries: np.ndarray) -> tuple[int, int, int, int, int]:
        """Put one entry at `index`, as `replace`, by plain steps; what was there as `get` gives it."""
        self._make_room(index, 1)
        old = self.get(index)
        at = self._give_block(index >> BLOCK_BITS)
        row = at << BLOCK_BITS | index & (BLOCK - 1)
        self._whole[row : row + 1] = _whole(entries)
        self._live[at] += int(entries["kind"][0] != ABSENT) - (old[2] != ABSENT)
        return old

    def clear(self, index: int, count: int) -> np.ndarray:
        """Make `count` indices absent, and return the entries that were there, ABSENT left out."""
        removed = []
        for block, start, stop in self._runs_in_use(index, count):
            at = self._block_at[block]
            rows = slice((at << BLOCK_BITS) + start, (at << BLOCK_BITS) + stop)
            old = self.entries[rows]
            old = old[old["kind"] != ABSENT]
            removed.append(old)
            self._whole[rows] = 0
            self._live[at] -= len(old)
            if not self._live[at]:
                self._take_back(block, at)
        return np.concatenate(removed) if removed else np.zeros(0, ENTRY)

    def clear_one(self, index: int) -> tuple[int, int, int, int, int]:
        """Make one index absent, and give what was there as `get`."""
        entry = self.get(index)
        if entry[2] != ABSENT:
            block = index >> BLOCK_BITS
            at = self._block_at[block]
            self._whole[at << BLOCK_BITS | index & (BLOCK - 1)] = 0
            self._live[at] -= 1
            if not self._live[at]:
                self._take_back(block, at)
        return entry

    def remove(self, indices: npt.NDArray[np.int64]) -> np.ndarray:
        """Make these indices absent, none of which is or comes twice; return their entries."""
        rows = self.rows(indices)
        old = self._whole[rows].view(ENTRY)
        self._whole[rows] = 0
        for at, count in zip(*np.unique(rows >> BLOCK_BITS, return_counts=True), strict=True):
            self._live[at] -= count
            if not self._live[at]:
                self._take_back(int(self._block_of[at]), int(at))
        return old

    def _runs_in_use(self, index: int, count: int) -> list[tuple[int, int, int]]:
        """Give the runs of `_runs` whose block is in use, in the time of the fewer of the two."""
        if count >> BLOCK_BITS <= len(self._block_at):
            return [run for run in _runs(index, count) if run[0] in self._block_at]
        found = []
        for block in self._block_at:
            start = max(index - (block << BLOCK_BITS), 0)
            stop = min(index + count - (block << BLOCK_BITS), BLOCK)
            if start < stop:
                found.append((block, start, stop))
        return found

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Pairs of a block's first index and its 512 entries, for every block in use."""
        for block, at in self._block_at.items():
            yield block << BLOCK_BITS, self.entries[at << BLOCK_BITS : (at + 1) << BLOCK_BITS]

    def _give_block(self, block: int) -> int:
        at = self._block_at.get(block)
        if at is None:
            at = self._free.pop()
            self._header[CHANGES] += 1  # first: see shared_table.py
            self._block_of[at] = block
            self._block_at[block] = at
        return at

    def _take_back(self, block: int, at: int) -> None:
        self._header[CHANGES] += 1
        self._block_of[at] = NONE
        del self._block_at[block]
        self._free.append(at)

    def _grow(self, least: int) -> None:
        """Add an eighth more rows: a table that doubled would often be half empty."""
        have = len(self._live)
        more = max(least, have // 8)
        if self._segment is None:
            entries = np.concatenate([self.entries, np.zeros(more * BLOCK, ENTRY)])
            block_of = np.concatenate([self._block_of, np.full(more, NONE)])
        else:
            make_room(self._segment, have, have + more)
            entries, block_of = self._map(self._segment, have + more)
            block_of[have:] = NONE
            self._header[BLOCKS] = have + more
        self._block_of = block_of
        self._live.extend([0] * more)
        self._free.extend(range(have + more - 1, have - 1, -1))
        self.entries = entries
        self._match_entries()

    def _map(self, segment: Segment, blocks: int) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
        self._header = segment.view[: 8 * HEADER_WORDS].cast("Q")
        return (
            np.frombuffer(segment.view, ENTRY, blocks * BLOCK, ENTRIES),
            np.frombuffer(segment.view, np.int64, blocks, DIRECTORY),
        )

    def share(self) -> Segment:
        """Move to a segment, if that was not done before; it stays the table's. Raises MemoryError."""
        if self._segment is None:
            blocks = len(self._live)
            segment = new_segment(blocks)
            header = self._header.tolist()
            entries, block_of = self._map(segment, blocks)
            entries[:], block_of[:] = self.entries, self._block_of
            for number, word in enumerate(header):
                self._header[number] = word
            self._header[BLOCKS] = blocks
            self._block_of = block_of
            self.entries = entries
            self._segment = segment
            self._match_entries()
        return self._segment

    def note_codecs(self, count: int) -> None:
        """Tell readers how many numbers of codecs there were."""
        self._header[CODECS] = count

    def close(self) -> None:
        """Tell readers that the store is closed, and give up the segment."""
        self._header[CLOSED] = 1
        if self._segment is not None:
            self._header = memoryview(bytearray(8 * HEADER_WORDS)).cast("Q")
            self.entries, self._block_of = np.zeros(0, ENTRY), np.zeros(0, np.int64)
            self._match_entries()
            self._segment.close()

    def _match_entries(self) -> None:
        self._whole = _whole(self.entries)
        self._bytes = flat(self.entries.view(np.uint8))
        self._epochs = self._bytes.cast("H")

    def rebuild(self, index: int, count: int) -> None:
        """Make `count` indices absent, and the bookkeeping anew from the entries and blocks in use.

        For a call that was cut short anywhere: an index concerned holds nothing afterwards.
        """
        for block, start, stop in self._runs_in_use(index, count):
            at = self._block_at[block] << BLOCK_BITS
            self._whole[at + start : at + stop] = 0
        blocks = len(self.entries) >> BLOCK_BITS
        live = np.count_nonzero(self.entries["kind"].reshape(blocks, BLOCK), axis=1).tolist()
        self._live = array("H", live)
        self._block_at = {block: at for block, at in self._block_at.items() if live[at]}
        in_use = set(self._block_at.values())
        self._free = [at for at in range(blocks) if at not in in_use]
        self._header[CHANGES] += 1
        if self._segment is None:
            self._block_of = np.resize(self._block_of, blocks)
        else:
            self.entries, self._block_of = self._map(self._segment, blocks)
            self._header[BLOCKS] = blocks
        self._block_of[self._free] = NONE
        self._match_entries()

    def count_kinds(self) -> npt.NDArray[np.int64]:
        """Count the entries of each kind; that of ABSENT is given as 0."""
        counts = np.bincount(self.entries["kind"], minlength=len(KINDS))
        counts[ABSENT] = 0
        return counts

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant of the header does not hold."""
        blocks = self.entries["kind"].reshape(-1, BLOCK)
        live = np.count_nonzero(blocks, axis=1)
        in_use = set(self._block_at.values())
        if live.tolist() != self._live.tolist():
            raise AssertionError("a block's count of live entries is wrong")
        if len(in_use) != len(self._block_at) or in_use & set(self._free):
            raise AssertionError("a block is in use twice, or in use and free")
        if len(in_use) + len(self._free) != len(self._live):
            raise AssertionError("a block is neither in use nor free")
        if any(not self._live[at] for at in in_use):
            raise AssertionError("a block in use holds nothing")
        if any(self._block_of[at] != block for block, at in self._block_at.items()):
            raise AssertionError("a block's rows do not name it")
        if (self._block_of[self._free] != NONE).any():
            raise AssertionError("free rows name a block")
        absent = self.entries[self.entries["kind"] == ABSENT]
        if absent.tobytes().strip(b"\0"):
            raise AssertionError("an absent entry is not all zero")


def _whole(entries: np.ndarray) -> npt.NDArray[np.complex128]:
    """View entries as the only plain type of 16 bytes that NumPy has; nobody computes with it."""
    return entries.view(np.complex128)


def _runs(index: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut `count` indices from `index` on into (block, first, end) runs within one block each."""
    end = index + count
    while index < end:
        block, start = index >> BLOCK_BITS, index & (BLOCK - 1)
        stop = min(BLOCK, start + end - index)
        yield block, start, stop
        index += stop - start
