"""Division: one batch, divided between the caller and the workers as it goes.

    unclaimed pages ──▶ a region: its pages go in turn to each worker that wants work, and to the caller
                                     │ posted                          │ own: done 32 at a time
                                     ▼                                 ▼
                                  workers ◀── some of what is left ── caller, when nothing is unclaimed

Between two pieces of its own the caller looks after the workers: whoever has less than two shares
ahead gets another one first, and only then are outputs collected, so that no worker waits for the
caller's copying. Regions get smaller towards the end, and a worker that is done while the caller still
has pages is given some of those; nobody waits for another much longer than a piece takes.

Pages are dealt in turn, so that runs of hard ones spread; where workers read them from the arena, in one
piece each. Rejected: a fixed split (whoever is slower, for noise or harder pages, makes the other wait); rounds with
equal shares (a worker is faster than the caller, who also stages and collects, and then waits out the
round).

The order is the batch's: a decompressed one begins with its largest sources.

Belongs to one thread, for one batch.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip_workers.under_way import ExpiredError, UnderWay, clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.batch.descriptor import Batch, Placement
    from batchzip.codecs.context import Context
    from batchzip_workers.ring import Ring
    from batchzip_workers.supervisor import Supervisor

_PIECE = 32
"""Pages the caller does between two looks at the workers; a look costs 3 to 10 µs, as what it needs has left
the cache. 16 measured 2 % slower, 64 no faster."""

_SHORT_PIECE = 8
"""The same where there is a deadline to look at."""

_WHOLE = 32
"""Pages a lane up to which a batch is divided at once: further shares cost more than they even out."""

_LEAST = 8
"""Pages below which giving some away to even things out costs more than it brings."""


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
        "_in_pieces",
        "_order",
        "_own",
        "_piece",
        "_position",
        "_share_pages",
        "_spread",
        "_supervisor",
        "_under_way",
    )

    def __init__(
        self,
        batch: Batch,
        placement: Placement,
        context: Context,
        supervisor: Supervisor[Ring],
        share_pages: int,
        *,
        spread: bool = True,
        deadline: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._batch = batch
        self._context = context
        self._supervisor = supervisor
        self._share_pages = share_pages
        self._spread = spread
        self._deadline = deadline
        self._piece = _PIECE if deadline is None else _SHORT_PIECE
        self._in_pieces = placement[1] > 0
        """Whether workers read pages where they are."""
        self._order = batch.order()
        self._count = len(batch)
        self._position = 0
        """What lies before it in the order is claimed."""
        self._own: list[Sequence[int]] = []
        """Claimed by the caller and not done; the last is done first."""
        self._under_way = UnderWay(batch, placement, context, supervisor, deadline, meanwhile)

    def run(self) -> bool:
        """Do the batch; whether a worker slept and had to be woken."""
        try:
            more = self.step()
            woke = self._under_way.woke
            while more:
                more = self.step()
            self.finish()
        except BaseException:
            self.abandon()
            raise
        return woke

    def step(self) -> bool:
        """Look after the workers, and do a piece; whether there is more to do than to wait."""
        if self.end_if_late():
            return False
        self._feed()
        self._under_way.collect()
        if self._own:
            self._do_piece()
        return bool(self._own) or self._position < self._count

    def collect(self) -> bool:
        """Collect the shares that are done; whether none is under way any more."""
        return self._under_way.collect()

    def end_if_late(self) -> bool:
        """Give up what is under way if the deadline has passed; whether it has."""
        if self._deadline is None or clock() < self._deadline:
            return False
        self._expire()
        return True

    def finish(self) -> None:
        """Wait for what workers have; on return every page is done."""
        try:
            self._under_way.finish()
        except ExpiredError:
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
                self._position += min(left, self._piece)
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
        shares = self._deal(start, end, pages, lanes)
        self._own.insert(0, shares[0])
        for ring, share in zip(rings, shares[1:], strict=True):
            if share:
                self._post(ring, share)

    def _deal(self, start: int, end: int, pages: int, lanes: int) -> list[Sequence[int]]:
        """Deal a region out: in one piece each, or in turn."""
        order = self._order
        if self._in_pieces:
            starts = range(start, start + lanes * pages, pages)
            return [order[at : min(at + pages, end)] for at in starts]
        return [order[start + lane : end : lanes] for lane in range(lanes)]

    def _give_away(self, ring: Ring) -> None:
        """Give a worker so much of the caller's pages that both have as many left."""
        ahead = self._under_way.pages_of(ring)
        mine = self._own[0]
        spare = min((sum(map(len, self._own)) - ahead) // 2, len(mine) // 2)
        if spare >= _LEAST:
            self._own[0] = mine[:-spare]
            self._post(ring, mine[-spare:])

    def _post(self, ring: Ring, share: Sequence[int]) -> None:
        if not self._under_way.post(ring, share):
            self._own.append(share)

    def _do_piece(self) -> None:
        mine = self._own.pop()
        if len(mine) > self._piece:
            self._own.append(mine[self._piece :])
            mine = mine[: self._piece]
        self._batch.run_share(self._context, mine)

    def _expire(self) -> None:
        """End what is under way, soon; what is not done gets -ETIMEDOUT."""
        self._own.clear()
        self._position = self._count
        self._under_way.abandon(hung_too=True)
        batch = self._batch
        batch.fail(np.flatnonzero((batch.dlens == 0) & (batch.errors == 0)), -errno.ETIMEDOUT)

    def abandon(self) -> None:
        """Give up what workers have; on return none of them writes to the batch's memory."""
        self._under_way.abandon()
