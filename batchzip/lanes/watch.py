"""Watch: supervises one batch while lanes have pages of it.

The core divides the batch and does the caller's share (core/division.pyx). It returns when it can
only wait. This module decides what happens then:

    a lane finishes no page for HANG_S,       the lane is killed and replaced
      or reports impossible results
    pages killed their lane                   they wait for another lane, up to REPLACE_S
    the deadline has passed                   pages that are not done get -ETIMEDOUT
    an interrupt, or a codec that gave up     pages that are not begun are taken back

Lanes that hang at the same time are noticed at the same time, because each has its own clock.

A Watch belongs to one thread at a time.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Protocol

from batchzip.core.division import DONE, GAVE_UP, LATE, NEGLECT_S
from batchzip.errors import ClosedError

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.core.division import Job
    from batchzip.core.ring import Ring

HANG_S = NEGLECT_S
"""Seconds without a finished page after which a lane that has pages is killed."""

REPLACE_S = 5.0
"""Seconds that pages for lanes only wait for a lane while none can be started."""

GRACE_S = 0.1
"""Seconds that a page may still take, once it has to end, before its lane is killed."""

LOOK_S = 0.05
"""Longest seconds of a step, after which the caller checks for other work."""


class Lanes(Protocol):
    """The methods of a backend that manage its lanes."""

    isolate: bool

    @property
    def rings(self) -> tuple[Ring, ...]:
        """Return the rings of the running lanes."""

    @property
    def may_replace(self) -> bool:
        """Return whether lanes that end will probably be replaced."""

    @property
    def closed(self) -> bool:
        """Return whether the engine is closed, or is finishing its requests before it closes."""

    @property
    def ends(self) -> bool:
        """Return whether no more lanes will be started."""

    def kill(self, ring: Ring) -> None:
        """Kill the lane of a ring, which hangs."""

    def replace_soon(self) -> None:
        """Start missing lanes soon."""


class Watch:
    """Supervises a batch that a backend has begun."""

    __slots__ = ("_backend", "_batch", "_give_up_at", "_job")

    def __init__(self, backend: Lanes, batch: Batch, job: Job) -> None:
        self._backend = backend
        self._batch = batch
        self._job = job
        self._give_up_at: float | None = None

    def run(self) -> None:
        """Do the batch, and return when every page has a result.

        If a codec ended the batch, raise its exception once no lane writes to the batch any more.
        """
        while not self.step(LOOK_S):
            pass

    def step(self, seconds: float, *, may_wait: bool = True) -> bool:
        """Continue for at most `seconds`. Return whether every page has a result."""
        job = self._job
        try:
            status = job.run(seconds, may_wait=may_wait)
            if status != DONE:
                if status == LATE:
                    withdraw(self._backend, job, -errno.ETIMEDOUT)
                elif status == GAVE_UP:
                    withdraw(self._backend, job, None)
                    job.raise_error()
                else:
                    self._look_after()
                    return False
        except BaseException:
            withdraw(self._backend, job, None)
            raise
        self._batch.has_errors = self._batch.pointers.failed > 0
        return True

    def give_up(self, code: int) -> None:
        """Give every page without a result the negative errno `code`.

        When this returns, no lane writes to the batch any more.
        """
        withdraw(self._backend, self._job, code)
        self._batch.has_errors = True

    @property
    def has_own_work(self) -> bool:
        """Whether there are pages that the caller of this Watch can do."""
        return self._job.mine > 0

    def _look_after(self) -> None:
        backend, job = self._backend, self._job
        for ring in job.untrusted(HANG_S):
            backend.kill(ring)
        if not job.only_lanes:
            return
        job.set_rings(backend.rings)
        now = time.monotonic()
        if backend.may_replace or self._give_up_at is None:
            self._give_up_at = now + REPLACE_S
        if backend.ends:
            if backend.closed and backend.isolate:
                raise ClosedError("this engine was closed before its workers began every page")
            job.fail_only_lanes(-errno.EOWNERDEAD)
        elif now >= self._give_up_at:
            job.fail_only_lanes(-errno.EOWNERDEAD)  # no lane will come
        elif not backend.rings:
            backend.replace_soon()


def withdraw(backend: Lanes, job: Job, code: int | None) -> None:
    """Take back pages that no lane has begun. On return no lane writes to the batch's memory.

    Pages without a result get the negative errno `code`, unless it is None. Do nothing if the job
    has ended.
    """
    while not job.withdraw(GRACE_S, code):
        for ring in job.holders():
            backend.kill(ring)
