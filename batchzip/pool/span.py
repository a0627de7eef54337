"""SpanTable: spans of equal address space in one segment, the memory and the objects of each.

A span serves objects of one class (zsmalloc's zspage). Address space costs nothing and memory does,
so every span has the same stride of address space, any class can use any span number, and only
the pages that objects have reached are given memory. Rejected: committing whole spans. With
a hundred classes in use, half a span each is a megabyte. Rejected too: a Python object a span or
an object, and a list of holes a span: here a span costs 7 bytes and room for an object four.

    segment     | span 0            | span 1            | span 2            | …
    span        | live | hole | live | hole | not reached yet … |  never used  |
                |<---------- bump objects ---------->|
                |<-- memory: whole pages of the machine --->|
    owner       | slot | 0    | slot | 0    | 0 …               |   `capacity` cells from extent[span]

* hole: room for an object, below the bump, that is free; its cell in `owner` is 0. The reverse map
  from place to handle, which compaction needs, is thus also the truth about holes.
* stock: by class, a list of addresses of holes, last freed at its end. A cache that may be cleared at
  any time: an allocation is one pop. It is refilled from the fullest spans of the class that
  have holes; only where no hole is left does a span grow, or a new one begin.
* growing: by class, the spans whose bump is below their capacity.
* spares: spans that were emptied last. They keep their memory, so that a malloc and a free in turn
  are not two system calls each; any other span gives its memory back when its last object goes.

Invariants, for every span in use
* live objects and holes are disjoint and are together the first `bump` objects; used = live ones.
* it has memory for exactly those, rounded up to pages; held = the sum = segment.held_bytes().
* one without a live object is a spare. What stands in a stock is a hole, and stands there once.
By class: live, reached and spans are the sums of used and bump and the count of its spans.

Locks: the pool's. An interrupted change leaves memory only behind the bump of a span in use, where
`rebuild` finds it: memory comes before the bump that covers it, and goes before the class does.
"""

from __future__ import annotations

import errno
from array import array
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import PoolFull
from batchzip.pool.size_classes import SPAN_SHIFT
from batchzip.segment import PAGE, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from batchzip.pool.handles import Integers
    from batchzip.pool.size_classes import SizeClasses

UNUSED = 0xFF
"""Class of a span that is in no use."""

FIRST_BYTES = 1 << 34
"""Address space at the start, which costs no memory. It doubles when it runs out, and then every page is
mapped anew when it is next used: with ten million objects an allocation took 1 us more for long."""

FIRST_SPANS = 64
"""Spans that the tables have room for at the start, and the segment where it may not be large: 2 MiB."""

PLACE = (1 << SPAN_SHIFT) - 1
"""Mask of the place in an address."""

EAGER_SPANS = 16
"""A class commits one page more at a time for each so many spans it has: 0.3 % more memory and
0.2 us less an object in a fill of 64k objects."""

SPARE_SPANS = 64
"""One span in so many may be a spare: the largest classes have one object a span, and a batch that
frees some and one that allocates as many would else be two system calls an object."""

BATCH_SPANS = 32
"""So many more may, if they are not a fourth of all: a batch of 256 pages that is stored anew takes 25 new
spans and empties as many. They are 400 KiB or so, and without them the batch takes 1 us more a page."""

STOCK = 128
"""Holes that a stock is refilled with at the least: a refill takes 30 us."""

STOCK_SPANS = 512
"""It takes one hole more for each so many spans there are, as it looks at every span."""

MOST_BYTES = 1 << 40
"""Address space of a pool: that much can be told by a word, whatever the size of a page."""

MOST_STOCK = 512
"""Holes that a stock may have before the older half is forgotten: 20 KiB."""

STOCK_SHARE = 64
"""It may have one more for so many live objects of its class, at 0.6 bytes an object: a large pool that
forgot what a batch has freed would look at all its spans for the next batch."""

_ONE = np.uint8(1)

NO_MEMORY = (errno.ENOSPC, errno.ENOMEM)


class SpanTable:
    """Which span serves which class, which object is where, and what memory there is."""

    def __init__(self, classes: SizeClasses, limit: int | None, name: str) -> None:
        self.classes = classes
        self.limit = limit  # bytes `held` may grow to, None for no limit
        self.held = 0  # bytes of memory behind all spans
        try:
            self.segment = Segment(FIRST_BYTES, name=name)
        except OSError:  # a limit to the address space of the process, or to the size of files
            self.segment = Segment(FIRST_SPANS * classes.stride, name=name)
        self.readable = self.segment.view.toreadonly()
        shapes = np.array(classes.classes, np.int64)
        self.sizes, self.capacity = shapes[:, 0].copy(), shapes[:, 2].copy()  # by class
        self.grains = self.sizes >> classes.shift  # by class: grains of an object
        count = len(shapes)
        self.live, self.reached, self.spans = np.zeros((3, count), np.int64)  # by class
        self.stocks: list[list[int]] = [[] for _ in range(count)]
        self.pops = [stock.pop for stock in self.stocks]
        self.pushes = [stock.append for stock in self.stocks]
        self.growing: list[list[int]] = [[] for _ in range(count)]
        self.ready = np.zeros(count, np.int64)  # by class: length of its stock
        # By span:
        self.kind: npt.NDArray[np.uint8] = np.empty(0, np.uint8)  # index of its class, or UNUSED
        self.bump: npt.NDArray[np.uint8] = np.empty(0, np.uint8)  # objects that have memory
        self.used: npt.NDArray[np.uint8] = np.empty(0, np.uint8)  # objects that are live
        self.extent: npt.NDArray[np.uint32] = np.empty(0, np.uint32)  # its first cell of `owner`
        self.next = 0  # first span that was never used
        self.unused = array("I")  # other spans in no use
        self.spares: dict[int, None] = {}  # oldest first; some may be in use again
        self.owner: npt.NDArray[np.uint32] = np.empty(0, np.uint32)  # by cell: slot, 0 for a hole
        self.cells = 0  # cells of `owner` that were ever given out
        self.vacant: dict[int, list[int]] = {}  # by capacity: extents of spans that are gone
        self.journal: list[tuple[int, int]] = []  # spans that grew in this call, bump before

    def memory(self, kind: int, bump: int) -> int:
        """Bytes of memory that `bump` objects of a class need."""
        return -(-bump * self.classes.classes[kind].size // PAGE) * PAGE

    # Objects

    def locate(self, at: Integers) -> tuple[Integers, npt.NDArray[np.uint8], Integers]:
        """Span, class and cell of each address."""
        span = at >> SPAN_SHIFT
        kind = self.kind[span]
        cell = (at & PLACE) // self.grains[kind]
        cell += self.extent[span]
        return span, kind, cell

    def enter(self, at: Integers, slots: Integers, counts: Integers) -> None:
        """Note new objects at places taken from stocks; `counts` of them by class."""
        span, _, cell = self.locate(at)
        self.owner[cell] = slots
        np.add.at(self.used, span, _ONE)
        self.live += counts

    def leave(self, at: Integers) -> None:
        """Note that the objects at these addresses are gone."""
        span, kind, cell = self.locate(at)
        self.owner[cell] = 0
        np.subtract.at(self.used, span, _ONE)
        counts = np.bincount(kind, minlength=len(self.live))
        self.live -= counts
        pushes = self.pushes
        for one, address in zip(kind.tolist(), at.tolist()):  # noqa: B905 - they are equally long
            pushes[one](address)
        self.ready += counts
        if np.maximum.reduce(self.ready) > MOST_STOCK:
            self._trim_stocks()
        rest = self.used[span]
        if not np.logical_and.reduce(rest):
            self._emptied(dict.fromkeys(span[rest == 0].tolist()))

    def enter_one(self, at: int, slot: int, kind: int) -> None:
        """Note one new object, as `enter`."""
        span = at >> SPAN_SHIFT
        self.owner[int(self.extent[span]) + (at & PLACE) // int(self.grains[kind])] = slot
        self.used[span] += _ONE
        self.live[kind] += 1

    def leave_one(self, at: int) -> None:
        """Note that one object is gone, as `leave`."""
        span = at >> SPAN_SHIFT
        kind = int(self.kind[span])
        self.owner[int(self.extent[span]) + (at & PLACE) // int(self.grains[kind])] = 0
        self.used[span] -= _ONE
        self.live[kind] -= 1
        self.stocks[kind].append(at)
        self.ready[kind] += 1
        if self.ready[kind] > MOST_STOCK:
            self._trim_stocks()
        if not self.used[span]:
            self._emptied((span,))

    def _trim_stocks(self) -> None:
        """Forget the holes that a stock has had for longest, where it has too many."""
        most = MOST_STOCK + self.live // STOCK_SHARE
        for kind in np.flatnonzero(self.ready > most).tolist():
            del self.stocks[kind][: -int(most[kind]) // 2]
            self.ready[kind] = len(self.stocks[kind])

    def clear_stock(self, kind: int) -> None:
        """Forget the holes of a class, which only costs the time to find them again."""
        self.stocks[kind].clear()
        self.ready[kind] = 0

    # Taking room

    def provide(self, counts: Integers) -> None:
        """See that every stock has as many holes as `counts` says for its class.

        Raises PoolFull; `rollback` then takes back what was begun.
        """
        # More than once only where a spare, and with it holes in a stock, had to go for another class.
        while len(short := np.flatnonzero(self.ready < counts)):
            for kind in short.tolist():
                self.refill(kind, int(counts[kind]))

    def take(self, kinds: Integers, counts: Integers) -> Integers:
        """Take a place for each object from the stocks, which `provide` has filled."""
        self.ready -= counts
        pops = self.pops
        return np.array([pops[kind]() for kind in kinds.tolist()], np.int64)

    def refill(self, kind: int, count: int) -> None:
        """Bring the stock of one class to at least `count` holes. Raises PoolFull."""
        stock = self.stocks[kind]
        if self.reached[kind] - self.live[kind] > len(stock):
            self.clear_stock(kind)
            self._restock(kind, count)
            self.ready[kind] = len(stock)
        growing = self.growing[kind]
        while len(stock) < count:
            span = growing[-1] if growing else self._claim(kind)
            # Under those there are, which are in fuller spans.
            stock[:0] = self._grow(span, kind, count - len(stock))
            self.ready[kind] = len(stock)

    def _restock(self, kind: int, count: int) -> None:
        """Fill an empty stock from the fullest spans with holes."""
        spans = np.flatnonzero(self.kind[: self.next] == kind)
        room = self.bump[spans] - self.used[spans]
        order = np.argsort(room, kind="stable")
        order = order[np.searchsorted(room[order], 1) :]
        wanted = max(count, STOCK + self.next // STOCK_SPANS)
        enough = np.searchsorted(np.cumsum(room[order]), wanted) + 1
        holes, _ = self.list_cells(spans[order[:enough]], live=False)
        self.stocks[kind].extend(holes[::-1].tolist())

    def list_cells(self, spans: Integers, *, live: bool) -> tuple[Integers, Integers]:
        """Address and slot of each live object, or of each hole, in spans of one class, in order."""
        bumps = self.bump[spans].astype(np.int64)
        ends = np.cumsum(bumps)
        number = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - bumps, bumps)
        owners = self.owner[np.repeat(self.extent[spans], bumps) + number]
        wanted = np.flatnonzero(owners if live else owners == 0)
        grains = self.grains[self.kind[spans[0]]] if len(spans) else 0
        at = np.repeat(spans << SPAN_SHIFT, bumps) + number * grains
        return at[wanted], owners[wanted].astype(np.int64)

    def _claim(self, kind: int) -> int:
        if not self.unused:
            if (self.next + 1) * self.classes.stride > self.segment.size:
                self._grow_segment()
            if self.next == len(self.extent):
                self._lengthen(max(FIRST_SPANS, self.next >> 5))
        capacity = self.classes.classes[kind].capacity
        extent = self._new_extent(capacity)
        if self.unused:
            span = self.unused.pop()
        else:
            span = self.next
            self.next += 1
        self.extent[span] = extent
        self.kind[span] = kind
        self.spans[kind] += 1
        self.growing[kind].append(span)
        self.journal.append((span, 0))
        return span

    def _grow_segment(self) -> None:
        size = 2 * self.segment.size
        if size > MOST_BYTES:
            raise PoolFull(f"{size} bytes are more than a handle can address")
        try:
            self.segment.grow(size)
        except OSError as error:
            raise PoolFull(f"no address space for {size} bytes: {error}") from error
        self.readable = self.segment.view.toreadonly()

    def _lengthen(self, more: int) -> None:
        size = len(self.extent) + more
        known = len(self.kind)
        # In place: copies into fresh memory, a 64th more each time, cost a fill 0.8 us an object.
        for table in (self.kind, self.bump, self.used, self.extent):
            table.resize(size, refcheck=False)
        self.kind[known:] = UNUSED

    def _new_extent(self, capacity: int) -> int:
        vacant = self.vacant.get(capacity)
        if vacant:
            return vacant.pop()
        extent = self.cells
        if extent + capacity > len(self.owner):
            self.owner.resize(extent + max(capacity, 1024, extent >> 6), refcheck=False)
        self.cells = extent + capacity
        return extent

    def _grow(self, span: int, kind: int, count: int) -> list[int]:
        """Move the bump of a growing span, for `count` objects if it can; return the new holes."""
        size, _, capacity = self.classes.classes[kind]
        old = int(self.bump[span])
        self.journal.append((span, old))
        start = -(-old * size // PAGE) * PAGE
        least = -(-(old + 1) * size // PAGE) * PAGE
        wanted = -(-min(capacity, old + count) * size // PAGE) * PAGE
        eager = start + PAGE * (1 + int(self.spans[kind]) // EAGER_SPANS)
        for end in (max(wanted, least, eager), least):
            new = min(capacity, end // size)
            stop = -(-new * size // PAGE) * PAGE
            refusal = self._commit(span * self.classes.stride + start, stop - start)
            if not refusal:
                break
        else:
            self.drop_spares(span)
            refusal = self._commit(span * self.classes.stride + start, stop - start)
            if refusal:
                raise PoolFull(refusal, at_limit=self._at_limit(stop - start))
        self.held += stop - start
        self.bump[span] = new
        self.reached[kind] += new - old
        if new == capacity:
            self.growing[kind].remove(span)
        grains = size >> self.classes.shift
        first = span << SPAN_SHIFT
        return list(range(first + (new - 1) * grains, first + (old - 1) * grains, -grains))

    def _at_limit(self, length: int) -> bool:
        return self.limit is not None and self.held + length > self.limit

    def _commit(self, offset: int, length: int) -> str:
        """Reserve memory; return why that cannot be, or nothing."""
        if not length:
            return ""  # compaction lowered the bump, and the page it ends in has room for more
        if self._at_limit(length):
            return f"{self.held} of at most {self.limit} bytes are held, {length} more do not fit"
        try:
            self.segment.reserve(offset, length)
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            return f"{self.held} bytes are held, the system has not {length} more: {error}"
        if length > PAGE:
            self.segment.populate(offset, length)
        return ""

    def rollback(self) -> None:
        """Take back the memory given since the journal was cleared; its objects are all holes."""
        for span, old in reversed(self.journal):
            kind = int(self.kind[span])
            if kind == UNUSED:
                continue
            self.clear_stock(kind)
            if not old:
                self.retire([span])
            elif self.bump[span] > old:
                self.lower(span, old)
        self.journal.clear()

    # Giving room back

    def lower(self, span: int, bump: int) -> int:
        """Lower the bump to where only holes lie above it, in no stock; bytes given back."""
        kind, old = int(self.kind[span]), int(self.bump[span])
        if old == self.capacity[kind]:
            self.growing[kind].append(span)
        start, stop = self.memory(kind, bump), self.memory(kind, old)
        self.bump[span] = bump
        self.reached[kind] -= old - bump
        if stop > start:
            self.segment.release(span * self.classes.stride + start, stop - start)
            self.held -= stop - start
        return stop - start

    def _emptied(self, spans: Iterable[int]) -> None:
        """Take note that the last objects of these spans are gone: they become spares."""
        spares = self.spares
        for span in spans:
            spares.pop(span, None)
            spares[span] = None
        while len(spares) > (most := self._most_spares()):
            # Down to half of what may stay: of many at once, neighbours go in one system call.
            self._drop(list(islice(spares, len(spares) - (most + 1) // 2)))

    def _most_spares(self) -> int:
        spans = self.next - len(self.unused)
        return 1 + min(spans // 4, BATCH_SPANS + spans // SPARE_SPANS)

    def drop_spares(self, keep: int = -1) -> None:
        """Give the memory of all spares back, but for one that is about to be used."""
        self._drop([span for span in self.spares if span != keep])

    def _drop(self, spans: list[int]) -> None:
        """Put these spares out of use, save those that are in use again."""
        emptied = []
        gone: dict[int, set[int]] = {}
        for span in spans:
            if self.kind[span] != UNUSED and not self.used[span]:
                emptied.append(span)
                gone.setdefault(int(self.kind[span]), set()).add(span)
        for kind, some in gone.items():
            stock = self.stocks[kind]
            if len(stock) > MOST_STOCK:
                self.clear_stock(kind)
            else:
                stock[:] = [at for at in stock if at >> SPAN_SHIFT not in some]
                self.ready[kind] = len(stock)
        self.retire(emptied)
        for span in spans:
            self.spares.pop(span, None)

    def retire(self, spans: list[int]) -> None:
        """Put spans out of use that have no live object, nor a hole in any stock."""
        self._release(sorted(spans))
        for span in spans:
            kind, bump = int(self.kind[span]), int(self.bump[span])
            size, _, capacity = self.classes.classes[kind]
            self.held -= -(-bump * size // PAGE) * PAGE
            if bump < capacity:
                self.growing[kind].remove(span)
            self.reached[kind] -= bump
            self.spans[kind] -= 1
            self.vacant.setdefault(capacity, []).append(int(self.extent[span]))
            self.bump[span] = 0
            self.kind[span] = UNUSED
            self.unused.append(span)
            self.spares.pop(span, None)

    def _release(self, spans: list[int]) -> None:
        """Give the memory of these spans back, of neighbours in one call: 2 us and 1 us a page."""
        stride = self.classes.stride
        first = before = -2
        for span in [*spans, -1]:
            if span != before + 1:
                if first >= 0:
                    self.segment.release(first * stride, (before + 1 - first) * stride)
                first = span
            before = span

    # The whole

    def rebuild(self, at: Integers, slots: Integers) -> None:
        """Make everything anew from classes, bumps, and addresses and slots of live objects."""
        self.journal.clear()
        self.spares.clear()
        self.vacant.clear()
        for stock in self.stocks:
            stock.clear()
        self.ready[:] = 0
        self.readable = self.segment.view.toreadonly()
        tables = (self.kind, self.bump, self.used, self.extent)
        most = max(len(table) for table in tables)
        self._lengthen(most - len(self.extent))
        self.kind[self.next :] = UNUSED  # it may have been lengthened, and no more
        self.used = np.bincount(at >> SPAN_SHIFT, minlength=most).astype(np.uint8)
        self._forget_empty()
        spans = np.flatnonzero(self.kind != UNUSED)
        kinds = self.kind[spans]
        capacities, bumps = self.capacity[kinds], self.bump[spans].astype(np.int64)
        ends = np.cumsum(capacities)
        self.extent[spans] = ends - capacities
        self.cells = int(ends[-1]) if len(ends) else 0
        self.owner = np.zeros(self.cells, np.uint32)
        self.owner[self.locate(at)[2]] = slots
        memory = -(-bumps * self.sizes[kinds] // PAGE) * PAGE
        self.held = int(memory.sum())
        count = len(self.live)
        self.spans = np.bincount(kinds, minlength=count)
        self.reached = np.bincount(kinds, bumps, count).astype(np.int64)
        self.live = np.bincount(kinds, self.used[spans], count).astype(np.int64)
        self.growing = [[] for _ in range(count)]
        short = np.flatnonzero(bumps < capacities)
        for row, span in zip(short.tolist(), spans[short].tolist(), strict=True):
            self.growing[kinds[row]].append(span)
            start = span * self.classes.stride
            if memory[row] < self.classes.stride:
                rest = self.classes.stride - int(memory[row])
                self.segment.release(start + int(memory[row]), rest)

    def _forget_empty(self) -> None:
        stride = self.classes.stride
        empty = np.flatnonzero((self.kind != UNUSED) & (self.used == 0))
        for span in empty.tolist():
            self.segment.release(span * stride, stride)
        self.kind[empty] = UNUSED
        self.bump[self.kind == UNUSED] = 0
        self.unused = array("I", np.flatnonzero(self.kind[: self.next] == UNUSED)[::-1].tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the tables; those of the stocks as the list and its integers."""
        tables = (self.kind, self.bump, self.used, self.extent, self.owner)
        stocks = sum(stock.__sizeof__() + 32 * len(stock) for stock in self.stocks)
        return sum(table.nbytes for table in tables) + stocks + 4 * len(self.unused)

    def close(self) -> None:
        """Give all memory back; views that readers still hold keep theirs."""
        self.readable.release()
        self.segment.close()
