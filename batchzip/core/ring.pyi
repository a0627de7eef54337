"""Rings and lanes: how a share of a batch reaches a thread of the core, or a worker process.

A Ring is one lane's, seen from the owner of the engine. `batchzip.core.division` posts shares to
it; what is here is its making, its figures and its end. A lane is started by ThreadLanes, or by a
worker process that calls `serve` over the same memory.

Whatever a worker writes into its ring is copied once and checked before it is believed. A worker
may die at any instruction. Its ring is not used again then.
"""

from typing import Final, Literal, Self, final

from batchzip.buffers import Buffer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Plan

ENDED: Final[int]
"""How `serve` ends: it was told to."""
BAD_DESCRIPTOR: Final[int]
"""How `serve` ends: a descriptor failed its check (EX_DATAERR)."""
FAILED: Final[int]
"""How `serve` ends: a failpoint or a codec ended it (EX_SOFTWARE)."""

FIGURES: Final[tuple[str, ...]]
"""The names of what `Ring.figures` returns."""

LOOK_NS: Final[int]
"""Nanoseconds that either side looks before it sleeps."""

STEPS: Final[tuple[str, ...]]
"""The steps of a lane's loop at which a failpoint can be set, in the order of a share's way."""

ACTIONS: Final[tuple[str, ...]]
"""What a failpoint does: SIGKILL, SIGSTOP, end the loop, or pause for 20 ms."""

def ring_bytes(page_size: int, *, staged: bool = True) -> int:
    """Return the bytes of a ring for pages of a size; without room for staging if not `staged`."""

def share_pages(page_size: int) -> int:
    """Return the most pages of a share that is staged."""

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

@final
class ThreadLanes:
    """Lanes that are threads of this process and never take the GIL.

    `codec`   a codec, or its plan, that is a C function here.
    `count`   how many threads.

    Raise BadArgument for a codec in Python, and OSError where a thread cannot be started: none is
    left then.

    The threads end with `close`, or when this object goes. They do not survive a fork, and in a
    forked child nothing is done about them.
    """

    def __new__(cls, codec: Codec | Plan, page_size: int, count: int) -> Self: ...
    @property
    def rings(self) -> tuple[Ring, ...]:
        """A ring for each thread."""

    def close(self) -> None:
        """End the threads once they have done what is posted. In a forked child, do nothing."""

    def set_failpoint(self, number: int, step: str, passes: int, action: Literal["pause"]) -> None:
        """Have a lane pause the `passes`-th time it comes to a step; for tests, before it has work.

        Raise BadArgument for other actions: they would end the process, or leave its pages undone.
        """

def serve(
    memory: Buffer,
    codec: Codec | Plan,
    page_size: int,
    number: int,
    arena_fd: int,
    failpoint: tuple[str, int, str] | None = None,
) -> int:
    """Run a worker process's loop over a ring, until its owner says stop. Return how it ended.

    `memory`     the ring's memory, shared with the owner: ENDED, BAD_DESCRIPTOR or FAILED is
                 returned instead of an error that something in it causes.
    `codec`      a codec, or its plan.
    `arena_fd`   the memfd of the engine's arena, which is mapped when a share first needs it.
    `failpoint`  (step, passes, action): what happens the `passes`-th time the loop comes to a step.

    Raise whatever the codec raises that is no page's error.
    """
