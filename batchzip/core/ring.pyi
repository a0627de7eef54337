"""Rings: how a share of a batch reaches a lane, a thread of the core or a worker process.

A Ring is one lane's, seen from the owner of the engine. `batchzip.core.division` posts shares to
it; what is here is its making, its figures and its end. `batchzip.core.lane` has the lane's side.

Whatever a worker writes into its ring is copied once and checked before it is believed. A worker
may die at any instruction. Its ring is not used again then.
"""

from typing import Final, Self, final

from batchzip.arguments.buffers import Buffer

FIGURES: Final[tuple[str, ...]]
"""The names of what `Ring.figures` returns."""

LOOK_NS: Final[int]
"""Nanoseconds that either side looks before it sleeps."""

def ring_bytes(page_size: int, *, staged: bool = True) -> int:
    """Return the bytes of a ring for pages of a size; without room for staging if not `staged`."""

def share_pages(page_size: int) -> int:
    """Return the most pages of a share for a worker."""

@final
class Ring:
    """One lane's ring, seen from its owner. Thread-safe.

    `number`  which of the lanes it is, from 0.
    `memory`  a writable buffer of `ring_bytes(page_size)` zero bytes that a worker shares. It is
              exported as long as the ring lives, so that nobody can unmap what a batch still uses.
              Without it, the lane is a thread, and the ring has memory of its own.

    Raise BadArgument if the memory is too small.
    """

    def __new__(cls, page_size: int, number: int, memory: Buffer | None = None) -> Self: ...
    @property
    def number(self) -> int:
        """Which of the lanes it is."""

    @property
    def ready(self) -> bool:
        """Whether the lane takes descriptors. Once it was so it stays so, whatever the word becomes."""

    @property
    def posted(self) -> int:
        """Shares ever posted, modulo 2³²."""

    @property
    def done(self) -> int:
        """Shares ever finished, modulo 2³²."""

    @property
    def asleep(self) -> bool:
        """Whether the lane sleeps for want of work."""

    @property
    def dead(self) -> bool:
        """Whether the lane ended, or is to be trusted no more."""

    def mark_gone(self) -> None:
        """Say that the lane has ended: post no more, and wake whoever waits for it.

        Only once it writes nothing any more: its process is reaped, or its thread joined.
        """

    @property
    def is_unused(self) -> bool:
        """Whether every share is finished, and no batch looks at a slot."""

    def stop(self) -> None:
        """Tell the lane to end once it has done what is posted. Return at once."""

    def is_neglected(self, patience_s: float) -> bool:
        """Whether a share that was given up so many seconds ago is still under way."""

    def figures(self) -> dict[str, int]:
        """Return what the lane did, by the names in FIGURES. Those of a worker are what it says."""

    def check_invariants(self) -> None:
        """Raise AssertionError where the ring is not as the header of ring.pyx says."""
