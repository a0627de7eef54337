"""UnderWay: the shares of a batch that workers have, until each is done one way or another.

    post ─▶ posted ─▶ done: collected
                  ├─▶ its worker died before it began it: run again here, from the caller's memory
                  ├─▶ its worker died on it: run again in workers only, and halved as long as it kills
                  └─▶ given up: the deadline has passed, or an interrupt came

A page that killed by itself, a second time, gets -EOWNERDEAD: what kills workers shall never run in the
owner. A worker that finishes nothing for HANG_S is killed; that is a death as any other.

Invariant: a share is in the list before its worker can see it, and leaves it when nothing of it can
be written to the batch's memory any more; so `abandon` is right at any moment.

Belongs to one thread, for one batch.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.batch.descriptor import Batch, Placement
    from batchzip.codecs.context import Context
    from batchzip_workers.posted import Posted
    from batchzip_workers.ring import Ring
    from batchzip_workers.supervisor import Supervisor

HANG_S = 30.0
"""Seconds without a finished share after which a worker that has some is killed."""

REPLACE_S = 5.0
"""Seconds that pages which killed a worker wait for another where workers fail to start."""

_REPLACE_LOOK_S = 0.002

GRACE_S = 0.1
"""Seconds that a share which must end now may still take before its worker is killed."""

LOOK_S = 0.05
"""Seconds between two looks at what else there is, while waiting for a worker."""

clock = time.monotonic
"""What deadlines are measured on."""


class ExpiredError(Exception):
    """The deadline of the batch has passed."""


class UnderWay:
    """The shares of `batch` that workers of `supervisor` have.

    `deadline`   on `clock`, after which waiting raises ExpiredError.
    `meanwhile`  called now and then while there is nothing to do but wait.
    """

    __slots__ = (
        "_batch",
        "_context",
        "_deadline",
        "_meanwhile",
        "_placement",
        "_posted",
        "_supervisor",
        "_tally",
        "any_posted",
    )

    def __init__(
        self,
        batch: Batch,
        placement: Placement,
        context: Context,
        supervisor: Supervisor[Ring],
        deadline: float | None,
        meanwhile: Callable[[], None] | None,
    ) -> None:
        self._batch = batch
        self._placement = placement
        self._context = context
        self._supervisor = supervisor
        self._deadline = deadline
        self._meanwhile = meanwhile
        self._tally = context.tallies[batch.operation]
        self._posted: list[Posted] = []
        self.any_posted = False
        """Whether any worker was ever given a share."""
        for ring in supervisor.rings:
            if ring.given_up is not None and ring.is_neglected(HANG_S):
                supervisor.kill(ring)  # it gets no work any more, so no wait would notice

    @property
    def woke(self) -> bool:
        """Whether a worker slept, and had to be woken for one of the shares."""
        return any(posted.woke for posted in self._posted)

    def post(self, ring: Ring, share: Sequence[int]) -> bool:
        """Give a worker a share; False if it cannot take it now."""
        if not ring.post(self._batch, share, self._placement, self._posted):
            return False
        if not self.any_posted:
            self.any_posted = True
            self._tally.divided += 1
        return True

    def pages_of(self, ring: Ring) -> int:
        """Pages that a worker has."""
        return sum(len(posted.share) for posted in self._posted if posted.ring is ring)

    def collect(self) -> bool:
        """Collect the shares that are done; whether none is under way any more."""
        for posted in self._posted:
            if posted.ring.is_done(posted):
                break
        else:
            return not self._posted
        left = []
        for posted in self._posted:
            if posted.ring.is_done(posted):
                posted.ring.collect(posted)
            else:
                left.append(posted)
        self._posted = left
        return not left

    def finish(self) -> None:
        """Wait for all; raises ExpiredError when the deadline has passed."""
        while self._posted:
            self._finish(self._posted[0])

    def _finish(self, posted: Posted) -> None:
        """Wait for a share and collect it, or see that it is done some other way."""
        done = posted.ring.is_done(posted) or self._wait(posted)
        if self._settle(posted, done=done):
            return
        if posted.ring.was_started(posted):
            self._isolate(posted.share)
        else:
            self._tally.fallbacks += len(posted.share)
            self._batch.run_share(self._context, posted.share)

    def _settle(self, posted: Posted, *, done: bool) -> bool:
        """Collect a share that is `done`, drop one whose worker is dead; whether it is done.

        It is forgotten last: what an interrupt leaves in between, `abandon` still knows of.
        """
        (posted.ring.collect if done else posted.ring.drop)(posted)
        self._posted.remove(posted)
        return done

    def _wait(self, posted: Posted) -> bool:
        """Whether the share was done; False: its worker is dead."""
        started = clock()
        try:
            return self._await(posted, started)
        finally:
            self._tally.waits += 1
            self._tally.wait_s += clock() - started

    def _await(self, posted: Posted, started: float) -> bool:
        ring, done, since = posted.ring, posted.ring.done, started
        while not ring.wait(posted, self._patience(since)):
            if ring.dead:
                return False
            now = clock()
            if self._deadline is not None and now >= self._deadline:
                raise ExpiredError
            if ring.done != done:
                done, since = ring.done, now
            elif now - since >= HANG_S:
                self._supervisor.kill(ring)
            if self._meanwhile is not None:
                self._meanwhile()
        return True

    def _patience(self, since: float) -> float:
        """Seconds to wait until there is something else to look at."""
        now = clock()
        patience = max(since + HANG_S - now, LOOK_S)
        if self._deadline is not None:
            patience = min(patience, max(self._deadline - now, 0.0))
        return patience if self._meanwhile is None else min(patience, LOOK_S)

    def _isolate(self, share: Sequence[int]) -> None:
        """Run a share that killed a worker, in workers only; halve it as long as it kills."""
        while True:
            posted = self._post_to_any(share)
            if posted is None:
                self._batch.fail(share, -errno.EOWNERDEAD)  # no worker will come, and never here
                return
            if self._settle(posted, done=self._wait(posted)):
                return
            if posted.ring.was_started(posted):
                break
        if len(share) == 1:
            self._batch.fail(share, -errno.EOWNERDEAD)
            return
        middle = len(share) // 2
        self._isolate(share[:middle])
        self._isolate(share[middle:])

    def _post_to_any(self, share: Sequence[int]) -> Posted | None:
        """Post to the first worker that can take it; None when there is none for REPLACE_S."""
        supervisor, give_up = self._supervisor, clock() + REPLACE_S
        while True:
            for ring in self._supervisor.rings:
                if ring.wants_work() and self.post(ring, share):
                    return self._posted[-1]
            if supervisor.stopping:
                return None
            if not supervisor.failing:
                give_up = clock() + REPLACE_S
            elif clock() >= give_up:
                return None
            elif not supervisor.rings:
                supervisor.retry_soon()
            if self._deadline is not None and clock() >= self._deadline:
                raise ExpiredError
            if self._meanwhile is not None:
                self._meanwhile()
            time.sleep(_REPLACE_LOOK_S)

    def abandon(self, *, hung_too: bool = False) -> None:
        """Give up what workers have; on return none of them writes to the batch's memory.

        A share that a worker has begun, and which it would put in its own slot, is left to it unless
        `hung_too`: then, as where outputs are placed, it ends within GRACE_S or the worker does.
        """
        interrupt = None
        while self._posted:
            try:
                self._give_up(self._posted[-1], hung_too=hung_too)
                self._posted.pop()
            except KeyboardInterrupt as another:  # mostly one is on its way up already
                interrupt = another
        if interrupt is not None:
            raise interrupt

    def _give_up(self, posted: Posted, *, hung_too: bool) -> None:
        ring = posted.ring
        if not ring.was_announced(posted):
            ring.drop(posted)
            return
        ring.wake()
        if posted.placed or (hung_too and ring.was_started(posted)):
            self._end(posted)
            (ring.collect if ring.is_done(posted) else ring.drop)(posted)
        else:
            ring.abandon(posted)

    def _end(self, posted: Posted) -> None:
        """Wait until a share is done or its worker dead; a worker that takes long is killed."""
        ring = posted.ring
        while not ring.is_done(posted) and not ring.dead:
            try:
                if not ring.wait(posted, max(GRACE_S - ring.under_way_s(posted), 0.0)):
                    self._supervisor.kill(ring)
            except KeyboardInterrupt:  # one is on its way up already
                self._supervisor.kill(ring)
