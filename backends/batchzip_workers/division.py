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

A share whose worker died is run again from the caller's memory. If the worker died *on* it, that is
done by workers only, halving the share each time, until a page that killed by itself twice is alone
and gets -EOWNERDEAD: what kills workers shall never run in the owner.

Belongs to one thread, for one batch.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchzip.batch import Batch
    from batchzip.codecs.context import Context
    from batchzip_workers.ring import Posted, Ring
    from batchzip_workers.supervisor import Supervisor

_PIECE = 16
"""Pages the caller does between two looks at the workers; a look costs 2 µs."""

_WHOLE = 32
"""Pages a lane up to which a batch is divided at once: further shares cost more than they even out."""

_LEAST = 8
"""Pages below which giving some away to even things out costs more than it brings."""

HANG_S = 30.0
"""Seconds after which a worker that does not finish a share is killed."""


class Division:
    """Runs one batch with one context and the workers of one supervisor."""

    __slots__ = (
        "_batch",
        "_context",
        "_count",
        "_own",
        "_position",
        "_posted",
        "_share_pages",
        "_supervisor",
        "woke",
    )

    def __init__(
        self,
        batch: Batch,
        context: Context,
        supervisor: Supervisor,
        share_pages: int,
    ) -> None:
        self._batch = batch
        self._context = context
        self._supervisor = supervisor
        self._share_pages = share_pages
        self._count = len(batch)
        self._position = 0
        """Pages before it are claimed."""
        self._own: list[range] = []
        """Claimed by the caller and not done; the last is done first."""
        self._posted: list[Posted] = []
        self.woke = False
        """Whether a worker slept and had to be woken."""

    def run(self) -> None:
        """Do the batch."""
        try:
            while True:
                self._feed()
                if self._posted:
                    self._posted = [p for p in self._posted if not self._collect_if_done(p)]
                if self._own:
                    self._do_piece()
                elif self._position >= self._count:
                    break
            while self._posted:
                self._finish(self._posted[0])
                del self._posted[0]
        except BaseException:
            # KeyboardInterrupt above all: the slots must come back, the workers may go on.
            for left in self._posted:
                left.ring.abandon(left)
            raise

    def _feed(self) -> None:
        """Give work to the workers that want it; claim some for the caller if it has none."""
        rings = [ring for ring in self._supervisor.rings if ring.wants_work()]
        if self._position < self._count:
            self._claim(rings)
        elif self._own and rings:
            self._give_away(rings[0])

    def _claim(self, rings: list[Ring]) -> None:
        """Claim a region for these workers and the caller; for the caller alone if it has none."""
        start, left = self._position, self._count - self._position
        if not rings:
            if not self._own:
                self._position += min(left, _PIECE)
                self._own.append(range(start, self._position))
            return
        lanes = len(rings) + 1
        pages = -(-left // lanes)
        if pages > _WHOLE:
            pages = max(_WHOLE, pages * 3 // 4)
        pages = min(pages, self._share_pages)
        end = self._position = min(start + lanes * pages, self._count)
        self._own.insert(0, range(start, end, lanes))
        for lane, ring in enumerate(rings, start=1):
            share = range(start + lane, end, lanes)
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

    def _post(self, ring: Ring, share: range) -> None:
        posted = ring.post(self._batch, share)
        if posted is None:
            self._own.append(share)
        else:
            self._posted.append(posted)
            self.woke |= posted.woke

    def _do_piece(self) -> None:
        mine = self._own.pop()
        if len(mine) > _PIECE:
            self._own.append(mine[_PIECE:])
            mine = mine[:_PIECE]
        self._batch.run_share(self._context, mine)

    def _collect_if_done(self, posted: Posted) -> bool:
        if not posted.ring.is_done(posted):
            return False
        posted.ring.collect(posted)
        return True

    def _finish(self, posted: Posted) -> None:
        """Wait for a share and collect it, or see that it is done some other way."""
        if self._await(posted):
            posted.ring.collect(posted)
            return
        died_on_it = posted.ring.was_started(posted)
        posted.ring.drop(posted)
        if died_on_it:
            self._isolate(posted.share)
        else:
            self._batch.run_share(self._context, posted.share)

    def _await(self, posted: Posted) -> bool:
        """Whether the share was done; False: its worker is dead."""
        ring = posted.ring
        if ring.wait(posted, HANG_S):
            return True
        if not ring.dead:
            self._supervisor.kill(ring)
            return ring.wait(posted, HANG_S)
        return False

    def _isolate(self, share: range) -> None:
        """Run a share that killed a worker, in workers only; halve it as long as it kills."""
        while True:
            posted = self._post_to_any(share)
            if posted is None:
                self._batch.fail(share, -errno.EOWNERDEAD)  # no worker will come, and never here
                return
            if self._await(posted):
                posted.ring.collect(posted)
                return
            died_on_it = posted.ring.was_started(posted)
            posted.ring.drop(posted)
            if died_on_it:
                break
        if len(share) == 1:
            self._batch.fail(share, -errno.EOWNERDEAD)
            return
        middle = len(share) // 2
        self._isolate(share[:middle])
        self._isolate(share[middle:])

    def _post_to_any(self, share: range) -> Posted | None:
        """Post to the first worker that can take it; None when there will be none."""
        while True:
            for ring in self._supervisor.rings:
                posted = ring.post(self._batch, share) if ring.wants_work() else None
                if posted is not None:
                    return posted
            if self._supervisor.hopeless:
                return None
            time.sleep(0.001)
