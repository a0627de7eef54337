"""HandleTable: from a handle to the place of its object, through one word.

Handles are indirect, so that an object can move while its handle stays (zsmalloc's handles, for the
same end). Rejected: the address itself as handle, which nothing can move and nothing can check; a
dict, at 100 bytes an object; keeping the word inside the object, where damage to the shared memory
would reach the allocator.

    handle  = generation << 40 | slot
    words[slot]   63         40 39                                     0
                 | generation  | live: the object's address in grains   |   generation odd
                 | generation  | free: the next free slot               |   generation even
    lengths[slot] = bytes asked for

A slot's generation grows at each malloc and at each free, so a handle is valid if, and only if,
its generation is odd and is that of its slot. A slot that reaches `RETIRED` is never given out
again: a stale handle is refused for ever, not until the counter comes round.

Invariants
* head → words[head] → … visits each free slot once, save retired ones, and ends at len(words).
* len(lengths) >= len(words); 10 bytes a slot (12 for pages of 64 KiB or more).
* words is the truth: chain, counters and holes can all be told from it (see `rechain`).

Locks: the pool's. A word may be read without it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from batchzip.errors import BadHandle

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOT_BITS = 40
SLOT = (1 << SLOT_BITS) - 1
"""Mask of the lower part: a slot in a handle, an address or a next slot in a word."""

ONE = 1 << SLOT_BITS
"""One generation; also the bit that is set in a live word."""

RETIRED = ((1 << 24) - 2) << SLOT_BITS
"""The last even generation; the odd one after it would leave none to be free in."""

SHORT = 1 << 16
"""Page sizes below this many bytes fit the two-byte lengths."""

FIRST_SLOTS = 256
"""Slots the table grows by at the least: one allocation of a few KiB."""


class HandleTable:
    """The words and lengths of all objects, and the chain of free slots."""

    def __init__(self, page_size: int) -> None:
        self.words = array("Q")
        self.lengths = array("H" if page_size < SHORT else "I")
        self.head = 0  # first free slot, len(words) if there is none
        self.retired = 0  # slots at RETIRED

    def ensure(self, count: int, live: int) -> None:
        """Make the chain of free slots at least `count` long, `live` slots being in use."""
        slots = len(self.words)
        short = count - (slots - live - self.retired)
        if short > 0:
            # An eighth more: amortised growth at 1.25 bytes a slot.
            more = max(short, slots >> 3, FIRST_SLOTS)
            self.lengths.extend(bytes(slots + more - len(self.lengths)))
            # The old chain ends at `slots`, which is the first new slot.
            self.words.extend(range(slots + 1, slots + more + 1))

    def drop(self, handle: int) -> int:
        """Make the slot of a live handle free, and return the object's address."""
        slot = handle & SLOT
        at = self.words[slot] & SLOT
        word = handle - slot + ONE
        if word == RETIRED:
            self.words[slot] = RETIRED
            self.retired += 1
        else:
            self.words[slot] = word + self.head
            self.head = slot
        return at

    def live(self) -> Iterator[tuple[int, int]]:
        """Address and length of every live object."""
        for word, length in zip(self.words, self.lengths, strict=False):
            if word & ONE:
                yield word & SLOT, length

    def handles(self) -> list[int]:
        """Handle of every live object."""
        words = enumerate(self.words)
        return [(word & ~SLOT) | slot for slot, word in words if word & ONE]

    def rechain(self) -> None:
        """Rebuild the chain and the count of retired slots from the words alone."""
        words = self.words
        self.retired = 0
        head = len(words)
        for slot in range(len(words) - 1, -1, -1):
            generation = words[slot] & ~SLOT
            if generation == RETIRED:
                self.retired += 1
            elif not generation & ONE:
                words[slot] = generation + head
                head = slot
        self.head = head

    def check(self) -> int:
        """Count the live slots, or raise AssertionError where the chain is not as it must be."""
        slots = len(self.words)
        if len(self.lengths) < slots:
            raise AssertionError(f"{len(self.lengths)} lengths for {slots} words")
        seen = 0
        slot = self.head
        while slot != slots:
            if slot > slots or self.words[slot] & ONE or self.words[slot] & ~SLOT == RETIRED:
                raise AssertionError(f"slot {slot} is in the free chain and must not be")
            seen += 1
            if seen > slots:
                raise AssertionError("the free chain of handles has a loop")
            slot = self.words[slot] & SLOT
        live = sum(1 for _ in self.live())
        retired = sum(1 for word in self.words if word & ~SLOT == RETIRED)
        if retired != self.retired:
            raise AssertionError(f"{retired} slots are retired, counted are {self.retired}")
        if live + seen + retired != slots:
            raise AssertionError(f"{live} live + {seen} free + {retired} retired of {slots} slots")
        return live


def bad_handle(handle: object) -> BadHandle:
    """Build the error for a handle that is not live; the caller raises it."""
    return BadHandle(f"handle {handle!r} was never given out, or is freed")
