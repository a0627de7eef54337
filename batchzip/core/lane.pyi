"""Lanes: threads of the core, and the loop of a worker process.

Each lane has a ring (`batchzip.core.ring`), from which it takes shares of batches.
"""

from typing import Final, Literal, Self, final

from batchzip.arguments.buffers import Buffer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Plan
from batchzip.core.ring import LOOK_NS as LOOK_NS
from batchzip.core.ring import Ring

ENDED: Final[int]
"""`serve` ended because the owner stopped the lane."""
BAD_DESCRIPTOR: Final[int]
"""`serve` ended because a descriptor failed its check (EX_DATAERR)."""
FAILED: Final[int]
"""`serve` ended because of a failpoint or an exception of a codec (EX_SOFTWARE)."""

STEPS: Final[tuple[str, ...]]
"""The steps of a lane's loop at which a failpoint can be set, in the order of a share's way."""

ACTIONS: Final[tuple[str, ...]]
"""The actions of a failpoint: SIGKILL, SIGSTOP, end the loop, or pause for 20 ms."""

@final
class ThreadLanes:
    """Lanes that are threads of this process and never take the GIL.

    `codec`   a codec, or its plan, that is a C function in this process.
    `count`   the number of threads.

    Raises BadArgument for a codec in Python, MemoryError, and LimitReached or another OSError if a
    thread cannot be started. No thread is left then.

    The threads end with `close`, or when this object is freed. They do not survive a fork. In a
    forked child, `close` and the destructor do nothing.
    """

    def __new__(cls, codec: Codec | Plan, page_size: int, count: int) -> Self: ...
    @property
    def rings(self) -> tuple[Ring, ...]:
        """One ring per thread."""

    def close(self) -> None:
        """End the threads after they have done all posted shares. Do nothing in a forked child."""

    def set_failpoint(self, number: int, step: str, passes: int, action: Literal["pause"]) -> None:
        """Make a lane pause the `passes`-th time it reaches a step. For tests, before it has work.

        Raise BadArgument for other actions: they would kill the process or leave pages undone.
        """

def serve(
    memory: Buffer,
    codec: Codec | Plan,
    page_size: int,
    number: int,
    arena_fd: int,
    failpoint: tuple[str, int, str] | None = None,
) -> int:
    """Run the loop of a worker process over a ring, until the owner stops it.

    `memory`     the ring's memory, which is shared with the owner.
    `codec`      a codec, or its plan.
    `arena_fd`   the memfd of the engine's arena. It is mapped when a share first needs it.
    `failpoint`  (step, passes, action): the action to take the `passes`-th time the loop reaches a
                 step.

    Return ENDED, BAD_DESCRIPTOR or FAILED. Nothing in `memory` makes it raise an error. Raise the
    exception of a codec that ended the loop.
    """
