"""Division: one batch, divided between the caller and the workers as it goes.

    unclaimed pages ──▶ a region: its pages go in turn to each worker that wants work, and to the caller
                                     │ posted                          │ own: done 16 at a time
                                     ▼                                 ▼
                                  workers ◀── some of what is left ── caller, when nothing is unclaimed

Between two pieces of its own the caller looks after the workers: whoever has less than two shares
ahead gets another one first, and only then are outputs collected, so that no worker waits for the
caller's copying. Regions get smaller towards the end, and a worker that is done while the caller still
has pages is given some of those; nobody waits for another much longer than a piece takes.

Rejected: a fixed split (whoever is slower, for noise or harder pages, makes the other wait); rounds with
equal shares (a worker is faster than the caller, who also stages and collects, and then waits out the
round); contiguous shares (runs of hard pages would fall to one).

The order is the batch's: a decompressed one begins with its largest sources.

A share whose worker died is run again from the caller's memory. If the worker died *on* it, that is
done by workers only, halving the share each time, until a page that killed by itself twice is alone
and gets -EOWNERDEAD: what kills workers shall never run in the owner.

Belongs to one thread, for one batch.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.batch.descriptor import Batch, Placement
    from batchzip.codecs.context import Context
    from batchzip_workers.posted import Posted
    from batchzip_workers.ring import Ring
    from batchzip_workers.supervisor import Supervisor

_PIECE = 16
"""Pages the caller does between two looks at the workers; a look costs 2 µs."""

_WHOLE = 32
"""Pages a lane up to which a batch is divided at once: further shares cost more than they even out."""

_LEAST = 8
"""Pages below which giving some away to even things out costs more than it brings."""

HANG_S = 30.0
"""Seconds without a finished share after which a worker that has some is killed."""

GRACE_S = 0.1
"""Seconds that a share which must end now may still take before its worker is killed."""

_LOOK_S = 0.05
"""Seconds between two looks at what else there is, while waiting for a worker."""

clock = time.monotonic
"""What deadlines are measured on."""


class _ExpiredError(Exception):
    """The deadline of the batch has passed."""


class Division:
    """Runs one batch with one context and the workers of one supervisor.

    `spread`     divide it evenly between all: right where it is the only one. Else workers get
                 shares as large as may be, and other batches even out the rest.
    `deadline`   on `clock`, after which pages not done get -ETIMEDOUT.
    `meanwhile`  called now and then while there is nothing to do but wait.
    """

    __slots__ = (
        "_batch",
        "_context",
        "_count",
        "_deadline",
        "_meanwhile",
        "_order",
        "_own",
        "_placement",
        "_position",
        "_posted",
        "_share_pages",
        "_spread",
        "_supervisor",
        "_tally",
    )

    def __init__(
        self,
        batch: Batch,
        placement: Placement,
        context: Context,
        supervisor: Supervisor,
        share_pages: int,
        *,
        spread: bool = True,
        deadline: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._batch = batch
        self._placement = placement
        self._context = context
        self._supervisor = supervisor
        self._share_pages = share_pages
        self._spread = spread
        self._deadline = deadline
        self._meanwhile = meanwhile
        self._tally = context.tallies[batch.operation]
        self._tally.divided += 1
        self._order = batch.order()
        self._count = len(batch)
        self._position = 0
        """What lies before it in the order is claimed."""
        self._own: list[Sequence[int]] = []
        """Claimed by the caller and not done; the last is done first."""
        self._posted: list[Posted] = []
        for ring in supervisor.rings:
            if ring.given_up is not None and ring.is_neglected(HANG_S):
                supervisor.kill(ring)  # it gets no work any more, so no wait would notice

    def run(self) -> bool:
        """Do the batch; whether a worker slept and had to be woken."""
        woke = False
        try:
            more = self.step()
            for posted in self._posted:
                woke |= posted.woke
            while more:
                more = self.step()
            self.finish()
        except BaseException:
            self.abandon()
            raise
        return woke

    def step(self) -> bool:
        """Look after the workers, and do a piece; whether there is more to do than to wait."""
        if self._deadline is not None and clock() >= self._deadline:
            self._expire()
            return False
        self._feed()
        if self._posted:
            self.collect()
        if self._own:
            self._do_piece()
        return bool(self._own) or self._position < self._count

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
        """Wait for what workers have; on return every page is done."""
        try:
            while self._posted:
                self._finish(self._posted[0])
        except _ExpiredError:
            self._expire()

    def _feed(self) -> None:
        """Give work to the workers that want it; claim some for the caller if it has none."""
        if self._position < self._count:
            self._claim([ring for ring in self._supervisor.rings if ring.wants_work()])
        elif self._own and len(self._own[0]) >= 2 * _LEAST:
            for ring in self._supervisor.rings:
                if ring.wants_work():
                    self._give_away(ring)
                    return

    def _claim(self, rings: list[Ring]) -> None:
        """Claim a region for these workers and the caller; for the caller alone if it has none."""
        start, left = self._position, self._count - self._position
        if not rings:
            if not self._own:
                self._position += min(left, _PIECE)
                self._own.append(self._order[start : self._position])
            return
        if not self._spread:
            self._position += min(left, self._share_pages)
            self._post(rings[0], self._order[start : self._position])
            return
        lanes = len(rings) + 1
        pages = -(-left // lanes)
        if pages > _WHOLE:
            pages = max(_WHOLE, pages * 3 // 4)
        pages = min(pages, self._share_pages)
        end = self._position = min(start + lanes * pages, self._count)
        self._own.insert(0, self._order[start:end:lanes])
        for lane, ring in enumerate(rings, start=1):
            share = self._order[start + lane : end : lanes]
            if share:
                self._post(ring, share)

    def _give_away(self, ring: Ring) -> None:
        """Give a worker so much of the caller's pages that both have as many left."""
        ahead = sum(len(p.share) for p in self._posted if p.ring is ring)
        mine = self._own[0]
        spare = min((sum(map(len, self._own)) - ahead) // 2, len(mine) // 2)
        if spare >= _LEAST:
            self._own[0] = mine[:-spare]
            self._post(ring, mine[-spare:])

    def _post(self, ring: Ring, share: Sequence[int]) -> None:
        if not ring.post(self._batch, share, self._placement, self._posted):
            self._own.append(share)

    def _do_piece(self) -> None:
        mine = self._own.pop()
        if len(mine) > _PIECE:
            self._own.append(mine[_PIECE:])
            mine = mine[:_PIECE]
        self._batch.run_share(self._context, mine)

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
                raise _ExpiredError
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
        patience = max(since + HANG_S - now, _LOOK_S)
        if self._deadline is not None:
            patience = min(patience, max(self._deadline - now, 0.0))
        return patience if self._meanwhile is None else min(patience, _LOOK_S)

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
        """Post to the first worker that can take it; None when there will be none."""
        while True:
            for ring in self._supervisor.rings:
                if ring.wants_work() and ring.post(
                    self._batch, share, self._placement, self._posted
                ):
                    return self._posted[-1]
            if self._supervisor.hopeless:
                return None
            if self._deadline is not None and clock() >= self._deadline:
                raise _ExpiredError
            if self._meanwhile is not None:
                self._meanwhile()
            time.sleep(0.001)

    def _expire(self) -> None:
        """End what is under way, soon; what is not done gets -ETIMEDOUT."""
        self._own.clear()
        self._position = self._count
        self.abandon(hung_too=True)
        batch = self._batch
        batch.fail(np.flatnonzero((batch.dlens == 0) & (batch.errors == 0)), -errno.ETIMEDOUT)

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
