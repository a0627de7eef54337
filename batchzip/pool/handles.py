"""HandleTable: from a handle to the place of its object, through one word in shared memory.

Handles are indirect, so that an object can move while its handle stays (zsmalloc's handles, for the
same end). Rejected: the address itself as handle, which nothing can move and nothing can check; a
dict, at 100 bytes an object; lengths in an array of their own: a reader in another process could not
read both at once; a chain through the free slots, which is walked one by one where an array is cut.

    handle = generation << 48 | slot

    words, one u64 a slot, in a segment of their own; the owner of the pool writes all of them
    slot  bits
    0     0…63    epoch: how often objects began to be moved (Pool.compact)
    1     0…63    slots that have memory, these first ones included
    2…7           not used: slot 0 stands for "none" elsewhere, and objects start at a cache line
    8…    48…63   generation: odd while the object is live, even while the slot is free
          b…47    live: the object's address in grains          b = log2(page_size), and as a grain is
          0…b−1   live: its length in bytes − 1                 page_size / 256, that makes ≥ 1 TiB

A slot's generation grows at each malloc and at each free, so a handle is valid if, and only if,
its generation is odd and is that of its slot. A slot that reaches `RETIRED` is never given out
again: a stale handle is refused for ever, not until the counter comes round.

Invariants
* Each slot from FIRST to `next` is live, retired, or once in the stack of free slots; those from
  `next` on were never used and are zero. Memory is reserved for `slots` of them, a 64th ahead.
* A batch's words change in one statement, which no interrupt can cut: words are the truth, and
  everything else can be told from them.

Locks: the pool's. A word may be read without it.
"""

from __future__ import annotations

from array import array
from operator import index
from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import BadHandle, PoolFull
from batchzip.segment import PAGE, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    import numpy.typing as npt

    Words: TypeAlias = npt.NDArray[np.uint64]
    Integers: TypeAlias = npt.NDArray[np.int64]

GENERATION_SHIFT = 48
SLOT = (1 << GENERATION_SHIFT) - 1
"""Mask of the lower part: a slot in a handle, address and length in a word."""

ONE = 1 << GENERATION_SHIFT
"""One generation; also the bit that is set in a live word."""

RETIRED = 0xFFFE << GENERATION_SHIFT
"""The last even generation; the odd one after it would leave none to be free in."""

FIRST = 8
"""First slot of an object."""

MOST_SLOTS = 1 << 32
"""Slots there can be: the reverse map has four bytes for one."""

SLOTS_A_PAGE = PAGE // 8


class HandleTable:
    """The words of all objects, and the stack of free slots."""

    def __init__(self, page_size: int, name: str) -> None:
        self.length_bits = page_size.bit_length() - 1
        self.segment = Segment(PAGE, name=f"{name}-words")
        self.segment.reserve(0, PAGE)
        self.slots = SLOTS_A_PAGE  # slots that have memory
        self.next = FIRST  # first slot that was never used
        self.free = np.empty(0, np.uint32)  # stack of free slots below `next`
        self.top = 0  # how many
        self._map()
        self.words[1] = self.slots

    def _map(self) -> None:
        self.words: Words = np.frombuffer(self.segment.view, np.uint64)
        self.view = self.segment.view.cast("Q")  # the same: quicker for a single word

    def peek(self, count: int) -> Integers:
        """Show `count` slots that are free, and have memory; `take` takes them.

        Raises PoolFull.
        """
        fresh = count - self.top
        if fresh <= 0:
            return self.free[self.top - count : self.top].astype(np.int64)
        if self.next + fresh > self.slots:
            self._grow(self.next + fresh)
        new = np.arange(self.next, self.next + fresh, dtype=np.int64)
        return np.concatenate((self.free[: self.top].astype(np.int64), new))

    def take(self, count: int) -> None:
        """Take what `peek` showed."""
        fresh = max(0, count - self.top)
        self.top -= count - fresh
        self.next += fresh
        if self.top < len(self.free) >> 2:
            self.free = self.free[: len(self.free) >> 1].copy()

    def _grow(self, least: int) -> None:
        """Give memory to at least so many slots."""
        more = max(least, self.slots + (self.slots >> 6))
        slots = -(-more // SLOTS_A_PAGE) * SLOTS_A_PAGE
        if slots > MOST_SLOTS:
            raise PoolFull(f"a pool has {MOST_SLOTS} handles at most")
        try:
            while slots * 8 > self.segment.size:
                self.segment.grow(2 * self.segment.size)
            self.segment.reserve(self.slots * 8, (slots - self.slots) * 8)
        except OSError as error:
            raise PoolFull(f"no memory for {slots} handles: {error}") from error
        self._map()
        self.slots = slots
        self.words[1] = slots

    def give(self, slots: Integers, words: Words) -> None:
        """Take back slots whose words, just written, say that they are free."""
        if int(np.maximum.reduce(words)) >= RETIRED:
            slots = slots[words < RETIRED]
        top = self.top + len(slots)
        if top > len(self.free):
            self.free.resize(max(top, self.next >> 6), refcheck=False)  # in place: no copy
        self.free[self.top : top] = slots
        self.top = top

    def find(self, handle: int) -> tuple[int, int]:
        """Slot and word of a live handle. Raises BadHandle."""
        try:
            number = index(handle)
        except TypeError:
            raise bad_handle(handle) from None
        slot = number & SLOT
        word = self.view[slot] if slot < self.slots else 0
        if number >> GENERATION_SHIFT != word >> GENERATION_SHIFT or not word & ONE:
            raise bad_handle(handle)
        return slot, word

    def find_many(self, handles: Words) -> tuple[Integers, Words]:
        """Slots and words of live handles. Raises BadHandle for the first that is not."""
        slots = (handles & SLOT).view(np.int64)
        if int(np.maximum.reduce(slots)) >= self.slots:
            raise bad_handle(int(handles[slots >= self.slots][0]))
        words = self.words[slots]
        wrong = words ^ handles
        if int(np.bitwise_or.reduce(wrong)) >= ONE or not int(np.bitwise_and.reduce(words)) & ONE:
            raise bad_handle(int(handles[(wrong >= ONE) | (words & ONE == 0)][0]))
        return slots, words

    def places(self, words: Words) -> tuple[Integers, Integers]:
        """Addresses in grains and lengths in bytes that live words tell."""
        lower = (words & SLOT).view(np.int64)
        return lower >> self.length_bits, (lower & (1 << self.length_bits) - 1) + 1

    def live(self) -> tuple[Integers, Words]:
        """Slots and words of every live object."""
        words = self.words[FIRST : self.slots]
        live = np.flatnonzero(words & ONE)
        return live + FIRST, words[live]

    def handles(self) -> Words:
        """Handle of every live object."""
        slots, words = self.live()
        handles: Words = (words & ~np.uint64(SLOT)) | slots.view(np.uint64)
        return handles

    def rebuild(self) -> None:
        """Make the stack anew from the words."""
        if len(self.words) * 8 != self.segment.size:
            self._map()
        self.words[1] = self.slots
        words = self.words[FIRST : self.slots]
        free = np.flatnonzero(((words & ONE) == 0) & (words < RETIRED))[::-1]
        self.free = (free + FIRST).astype(np.uint32)
        self.top = len(free)
        self.next = self.slots

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the table."""
        return self.segment.held_bytes() + self.free.nbytes

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        words = self.words[: self.slots]
        if words[1] != self.slots or self.segment.held_bytes() != self.slots * 8:
            raise AssertionError(f"{self.slots} slots have memory, not {words[1]}")
        if words[2:FIRST].any() or words[self.next :].any():
            raise AssertionError("slots that were never used are not zero")
        used = words[FIRST : self.next]
        free = np.flatnonzero(((used & ONE) == 0) & (used < RETIRED)) + FIRST
        if not np.array_equal(np.sort(self.free[: self.top]), free):
            raise AssertionError("the stack of free slots is not what the words tell")

    def close(self) -> None:
        """Give the memory back; readers in other processes keep theirs."""
        self.view.release()
        self.words = np.empty(0, np.uint64)
        self.slots = 0
        self.segment.close()


def as_handles(handles: Iterable[int]) -> Words:
    """Make an array of whatever holds handles. Raises BadHandle for what cannot be one."""
    if isinstance(handles, np.ndarray) and handles.dtype == np.uint64 and handles.ndim == 1:
        return handles
    try:
        packed = array("Q", list(handles))
    except (TypeError, OverflowError) as error:
        raise BadHandle(f"a handle is an integer from 0 to 2⁶⁴−1: {error}") from None
    return np.array(packed, np.uint64)


def bad_handle(handle: object) -> BadHandle:
    """Build the error for a handle that is not live; the caller raises it."""
    return BadHandle(f"handle {handle!r} was never given out, or is freed")
