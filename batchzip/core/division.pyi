"""Division: run a batch on the caller and the lanes together.

    divider = Divider(coders)                           # one per engine
    job = divider.execute(batch.pointers, rings)        # a batch; None: it is done already
    while job is not None and job.run(0.05) != DONE:
        …                                               # supervise lanes, deadlines, signals

`batchzip.lanes.watch` is that loop. Each method is one step: an interrupt comes before or after it,
never in the middle. A job belongs to one thread at a time. A divider may be used by any number of
threads.

When a job is dropped, it takes back pages that no lane has begun. It then waits for lanes that
write to the batch's memory: for threads until they are done, for workers one second.
"""

from typing import Final, final

from batchzip.core.batch import Blocks, Pointers
from batchzip.core.coder import Coders
from batchzip.core.ring import LOOK_NS as LOOK_NS
from batchzip.core.ring import Ring

DONE: Final[int]
"""`Job.run`: every page has a result."""
WAITING: Final[int]
"""`Job.run`: only waiting is left, or the time is up."""
LATE: Final[int]
"""`Job.run`: the deadline has passed. `Job.withdraw` ends the job."""
GAVE_UP: Final[int]
"""`Job.run`: a codec raised an exception that ends the batch. `Job.withdraw` ends the job."""

NEGLECT_S: Final[float]
"""Seconds that a lane may work on a share that was given up before the lane counts as hung."""

@final
class Divider:
    """The state that the batches of one engine share. Thread-safe.

    `coders`   the coders of the engine's codec. The caller's pages are done with one of them, which
               counts them.
    `blocks`   the arrays in memory shared with workers. Pages and outputs there are not staged.
    `isolate`  whether callers do no pages.
    `eager`    whether lanes get all pages of a started batch, because its caller has other work
               before it calls `run`.
    `verify`   whether workers hash verified outputs. The owner compares the hash of what arrives.
    """

    def __init__(
        self,
        coders: Coders,
        blocks: Blocks | None = None,
        *,
        isolate: bool = False,
        eager: bool = False,
        verify: bool = False,
    ) -> None: ...
    generous: bool
    """For tests: divide every batch between all lanes, and let callers take nothing back."""

    def is_crowded(self, lanes: int) -> bool:
        """Return whether more calls are at work than there are lanes: no CPU is idle then.

        A call is at work while it uses a coder. Batches are not divided then.
        """

    def execute(self, batch: Pointers, rings: tuple[Ring, ...]) -> Job | None:
        """Run a batch, with the lanes of these rings if that pays, and count it.

        Return None if it is done, or the job if it takes longer than 50 ms. Run without the GIL,
        except for codecs in Python. If such a codec raises an exception that is not the error of a
        page, raise it, or leave it to the job. Raise ForkedProcess in a forked child.
        """

    def start(self, batch: Pointers, rings: tuple[Ring, ...], deadline: int = -1) -> Job:
        """Begin a batch as `execute` does. The caller does no page before `Job.run`.

        `deadline` is in nanoseconds of the monotonic clock; −1: there is none. Raise ForkedProcess
        in a forked child.
        """

@final
class Job:
    """One batch under way, made by a divider. It belongs to one thread at a time."""

    @property
    def only_lanes(self) -> int:
        """The number of pages that wait for a lane, because the caller must not do them."""

    @property
    def mine(self) -> int:
        """The number of pages left to the caller."""

    def run(self, seconds: float = 0.05, *, may_wait: bool = True) -> int:
        """Work for at most `seconds`. Return DONE, WAITING, LATE or GAVE_UP.

        When only waiting for lanes is left, wait if `may_wait` is set. Run without the GIL, except
        for codecs in Python.
        """

    def set_rings(self, rings: tuple[Ring, ...]) -> None:
        """Replace the rings, from now on."""

    def untrusted(self, patience_s: float) -> list[Ring]:
        """Return the rings whose lanes must be killed.

        These lanes reported impossible results. Or they have had pages of this batch, or a share
        that was given up, for `patience_s` seconds without finishing a page.
        """

    def holders(self) -> list[Ring]:
        """Return the rings of the lanes that have pages of this batch."""

    def fail_only_lanes(self, code: int) -> None:
        """Fail the pages that wait for a lane with the negative errno `code`."""

    def withdraw(self, wait_s: float, code: int | None = None) -> bool:
        """Take back pages that no lane has begun, and wait for lanes that write to caller's memory.

        Pages without a result get the negative errno `code`. Without `code` they have no result.
        Return whether the job has ended. After `wait_s` seconds return False: kill the lanes of
        `holders`, and call it again.
        """

    def raise_error(self) -> None:
        """Raise the exception of a codec that ended the batch, once the job has ended."""
