"""One batch, done by the caller and the lanes together.

    divider = Divider(coders)                           # one for an engine
    job = divider.execute(batch.pointers, rings)        # a batch; None: it is done already
    while job is not None and job.run(0.05) != DONE:
        …                                               # look after lanes, deadlines, signals

`batchzip.lanes.watch` is that loop. Each method is one step: an interrupt comes before or after it,
never in the middle. A job belongs to one thread at a time; a divider may be used by any number.

A job that is dropped takes back what no lane has begun, and waits for lanes that write to the
batch's memory: for threads until they are done, for workers a second.
"""

from typing import Final, final

from batchzip.core.batch import Blocks, Pointers
from batchzip.core.coder import Coders
from batchzip.core.ring import LOOK_NS as LOOK_NS
from batchzip.core.ring import Ring

DONE: Final[int]
"""`Job.run`: every page has a result."""
WAITING: Final[int]
"""`Job.run`: there is nothing to do but wait, or the time is up."""
LATE: Final[int]
"""`Job.run`: the deadline has passed. `Job.withdraw` ends the job."""
GAVE_UP: Final[int]
"""`Job.run`: a codec raised an exception that ends the batch. `Job.withdraw` ends the job."""

NEGLECT_S: Final[float]
"""Seconds that a share which was given up may be under way before its lane counts as hung."""

@final
class Divider:
    """What the batches of one engine have in common. Thread-safe.

    `coders`   of the engine's codec; the caller's pages are done with one of them, and counted
               there.
    `blocks`   which memory workers share, so that pages and outputs there are not staged.
    `isolate`  no page is done by a caller.
    `eager`    lanes get all of a batch that is started: its caller has other work until it runs it.
    `verify`   workers hash what they verified, and the hash is compared with what arrived.
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
    """May be set by tests: every batch is divided between all lanes, callers take nothing back."""

    def execute(self, batch: Pointers, rings: tuple[Ring, ...]) -> Job | None:
        """Do a batch, with the lanes of these rings where that pays, and count it.

        Return None when it is done, and the job where that takes longer than 50 ms. Runs without
        the GIL but for codecs in Python, and raises what such a codec raises that is no page's
        error, or leaves that to the job. Raise ForkedProcess in a forked child.
        """

    def start(self, batch: Pointers, rings: tuple[Ring, ...], deadline: int = -1) -> Job:
        """Begin a batch as `execute` does. The caller does no page before `Job.run`.

        `deadline` is in nanoseconds of the monotonic clock; −1: there is none. Raise ForkedProcess
        in a forked child.
        """

@final
class Job:
    """One batch under way; made by a divider. Belongs to one thread at a time."""

    @property
    def only_lanes(self) -> int:
        """Pages that wait for a lane, as they must not be done here."""

    @property
    def mine(self) -> int:
        """Pages that the caller has still to do."""

    def run(self, seconds: float = 0.05, *, may_wait: bool = True) -> int:
        """Go on for at most so many seconds. Return DONE, WAITING, LATE or GAVE_UP.

        Where there is nothing to do but wait for lanes, wait if that is allowed. Runs without the
        GIL.
        """

    def set_rings(self, rings: tuple[Ring, ...]) -> None:
        """Use these rings from now on; others were replaced."""

    def untrusted(self, patience_s: float) -> list[Ring]:
        """Return the rings whose lanes are to be killed.

        Those that reported what cannot be, and those that had pages of this batch, or shares that
        were given up, for so many seconds without finishing one.
        """

    def holders(self) -> list[Ring]:
        """Return the rings of the lanes that have pages of this batch."""

    def fail_only_lanes(self, code: int) -> None:
        """Give the pages that wait for a lane the negative errno `code`."""

    def withdraw(self, wait_s: float, code: int | None = None) -> bool:
        """Take back what no lane has begun, and wait for what still writes to the caller's memory.

        Pages without a result get the negative errno `code`; without one they have no result.
        Return whether the job has ended; False after `wait_s` seconds otherwise: kill the lanes of
        `holders`, and call it again.
        """

    def raise_error(self) -> None:
        """Raise the exception of a codec that ended the batch, once the job has ended."""
