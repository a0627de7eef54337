"""Rings: how a share of a batch reaches a lane, a thread of the core or a worker process.

A Ring is the owner's side of one lane's ring. This module creates it, reports its figures and ends
it. `batchzip.core.division` posts shares to it. `batchzip.core.lane` has the lane's side.

The owner copies each word that a worker writes once, and checks the copy before it uses it. A
worker may die at any instruction. Its ring is not used again then.
"""

from typing import Final, Self, final

from batchzip.arguments.buffers import Buffer

FIGURES: Final[tuple[str, ...]]
"""The keys of the dict that `Ring.figures` returns."""

LOOK_NS: Final[int]
"""How long either side polls before it sleeps, in nanoseconds."""

def ring_bytes(page_size: int, *, staged: bool = True) -> int:
    """Return the size of a ring in bytes, with space for staged pages if `staged`."""

def share_pages(page_size: int) -> int:
    """Return the maximum number of pages in a worker's share."""

@final
class Ring:
    """The owner's side of one lane's ring. Thread-safe.

    `number`  the lane's number, from 0.
    `memory`  a writable buffer of `ring_bytes(page_size)` zero bytes, shared with a worker. The
              ring holds an export of it, so that memory in use by a batch cannot be unmapped.
              Without it, the lane is a thread, and the ring allocates its own memory.

    Raises BadArgument if the memory is too small.
    """

    def __new__(cls, page_size: int, number: int, memory: Buffer | None = None) -> Self: ...
    @property
    def number(self) -> int:
        """The lane's number, from 0."""

    @property
    def ready(self) -> bool:
        """Whether the lane has ever been ready to take descriptors."""

    @property
    def posted(self) -> int:
        """Number of shares posted so far, modulo 2³²."""

    @property
    def done(self) -> int:
        """Number of shares finished so far, modulo 2³², as reported by the lane."""

    @property
    def asleep(self) -> bool:
        """Whether the lane sleeps and has to be woken."""

    @property
    def dead(self) -> bool:
        """Whether the lane has ended or is no longer trusted."""

    def mark_gone(self) -> None:
        """Record that the lane has ended. Post no more shares, and wake all waiting threads.

        Call it only when the lane cannot write any more: its process is reaped or its thread
        joined.
        """

    @property
    def is_unused(self) -> bool:
        """Whether every share is finished and no batch uses a slot."""

    def stop(self) -> None:
        """Tell the lane to end once it has finished all posted shares. Return at once."""

    def is_neglected(self, patience_s: float) -> bool:
        """Return whether a share given up at least `patience_s` seconds ago is still under way."""

    def figures(self) -> dict[str, int]:
        """Return the lane's counters, with the keys in FIGURES. A worker reports its own."""

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant in the header of ring.pyx does not hold."""
