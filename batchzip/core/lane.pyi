"""Lanes: threads of the core, and the loop of a worker process.

Each lane has a ring (`batchzip.core.ring`), from which it takes the pages of batches.
"""

from typing import Final, Literal, Self, final

from batchzip.arguments.buffers import Buffer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Plan
from batchzip.core.ring import LOOK_NS as LOOK_NS
from batchzip.core.ring import Ring

ENDED: Final[int]
"""How `serve` ends: it was told to."""
BAD_DESCRIPTOR: Final[int]
"""How `serve` ends: a descriptor failed its check (EX_DATAERR)."""
FAILED: Final[int]
"""How `serve` ends: a failpoint or a codec ended it (EX_SOFTWARE)."""

STEPS: Final[tuple[str, ...]]
"""The steps of a lane's loop at which a failpoint can be set, in the order of a share's way."""

ACTIONS: Final[tuple[str, ...]]
"""What a failpoint does: SIGKILL, SIGSTOP, end the loop, or pause for 20 ms."""

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

    Raise the exception of a codec that ends the loop.
    """
