"""SpanTable: spans of equal address space in one segment, and the memory each of them holds.

A span serves objects of one class (zsmalloc's zspage). Address space costs nothing and memory does,
so every span has the same stride of address space, any class can use any span number, and only
the pages that objects have reached are given memory. Rejected: committing whole spans. With
a hundred classes in use, half a span each is a megabyte. Rejected too: a Python object a span or
an object; here a span costs 12 bytes, and a list while it has holes.

    segment     | span 0            | span 1            | span 2            | …
    span        | live | hole | live | hole | not reached yet … |  never used  |
                |<---------- bump objects ---------->|
                |<-- memory: whole pages of the machine --->|

* hole: room for an object, below the bump, that is free. `holes[span]` lists them as places: grains
  from the start of the span, always taken from one shared list, so that a hole costs 8 bytes.
* current: the span a class allocates from; its holes are `current[class]`'s list.
* growing: the one span of a class whose bump is below its capacity.
* spare: the span that was emptied last. It keeps its memory, so that a malloc and a free in turn
  are not two system calls each; any other span gives its memory back when its last object goes.
* Room is looked for in the current span, then the lowest span with holes, then the growing one,
  then a new span: the high ones empty of themselves.

Invariants, for every span in use
* live objects and holes are disjoint and are together the first `bump` objects.
* it has memory for exactly those, rounded up to pages; held = the sum = segment.held_bytes().
* one without a live object is the spare. One with holes is current or in its class's heap.
The heap may hold spans that have no holes any more: they are passed over.

Locks: the pool's. An interrupted change leaves memory only behind the bump of a span in use, where
`rebuild` finds it: memory comes before the bump that covers it, and goes before the class does.
"""

from __future__ import annotations

import errno
from array import array
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from batchzip.errors import PoolFull
from batchzip.pool.handles import SLOT
from batchzip.pool.size_classes import SPAN_SHIFT
from batchzip.segment import PAGE, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchzip.pool.size_classes import SizeClasses

UNUSED = 0xFFFF
"""Class of a span that is in no use."""

FIRST_SPANS = 64
"""Spans of address space at the start: 2 MiB for pages of 4 KiB. It doubles when they run out."""

PLACE = (1 << SPAN_SHIFT) - 1
"""Mask of the place in an address."""

EAGER_SPANS = 16
"""A class commits one page more at a time for each so many spans it has: 0.3 % more memory and
0.2 us less an object in a fill of 64k objects."""

NO_MEMORY = (errno.ENOSPC, errno.ENOMEM)


class SpanTable:
    """Which span serves which class, where its holes are, and what memory it holds."""

    def __init__(self, classes: SizeClasses, limit: int | None, name: str) -> None:
        self.classes = classes
        self.limit = limit  # bytes `held` may grow to, None for no limit
        self.held = 0  # bytes of memory behind all spans
        self.segment = Segment(FIRST_SPANS * classes.stride, name=name)
        self.readable = self.segment.view.toreadonly()
        self.kind = array("H")  # by span: index of its class, or UNUSED
        self.bump = array("H")  # by span: objects that have memory
        self.holes: list[list[int] | None] = []  # by span: places of its holes
        self.unused: list[int] = []  # span numbers in no use
        self.spare = -1  # the span that was emptied last, maybe in use again
        self.places = list(range(1 << SPAN_SHIFT))
        self.journal: list[tuple[int, int]] = []  # spans that grew in this call, bump before
        none: tuple[list[int], int] = ([], 0)
        count = len(classes.classes)
        self.current = [none] * count  # by class: holes and first address of its current span
        self.growing = [-1] * count  # by class
        self.heaps: list[list[int]] = [[] for _ in range(count)]  # by class: spans with holes
        self.spans = [0] * count  # by class: spans in use
        self._none = none
        self._match_segment()

    def _match_segment(self) -> None:
        count = self.segment.size // self.classes.stride
        self.readable = self.segment.view.toreadonly()
        for table, blank in ((self.kind, UNUSED), (self.bump, 0)):
            table.extend([blank] * (count - len(table)))
        self.holes.extend([None] * (count - len(self.holes)))
        self.unused = [span for span in range(count - 1, -1, -1) if self.kind[span] == UNUSED]

    def memory(self, kind: int, bump: int) -> int:
        """Bytes of memory that `bump` objects of a class need."""
        return -(-bump * self.classes.classes[kind].size // PAGE) * PAGE

    # Taking room

    def refill(self, kind: int) -> tuple[list[int], int]:
        """Find a span with holes for a class whose current one has none; make it current.

        Raises PoolFull; `rollback` then takes back what was begun.
        """
        stock, base = self.current[kind]
        if self.holes[base >> SPAN_SHIFT] is stock:
            self.holes[base >> SPAN_SHIFT] = None
        self.current[kind] = self._none
        heap = self.heaps[kind]
        while heap:
            span = heappop(heap)
            found = self.holes[span]
            if found and self.kind[span] == kind:
                break
        else:
            span = self.growing[kind]
            if span < 0:
                span = self._claim(kind)
            found = self._grow(span, kind)
        self.current[kind] = found, span << SPAN_SHIFT
        return self.current[kind]

    def _claim(self, kind: int) -> int:
        if not self.unused:
            size = 2 * self.segment.size
            if size >> self.classes.shift > SLOT:
                raise PoolFull(f"{size} bytes are more than a handle can address")
            try:
                self.segment.grow(size)
            except OSError as error:
                raise PoolFull(f"no address space for {size} bytes: {error}") from error
            self._match_segment()
        span = self.unused.pop()
        self.kind[span] = kind
        self.spans[kind] += 1
        self.growing[kind] = span
        self.journal.append((span, 0))
        return span

    def _grow(self, span: int, kind: int) -> list[int]:
        """Move the bump of a span whose objects are all live; return the places gained."""
        size, _, capacity = self.classes.classes[kind]
        old = self.bump[span]
        self.journal.append((span, old))
        start = self.memory(kind, old)
        least = self.memory(kind, old + 1)
        eager = start + PAGE * (1 + self.spans[kind] // EAGER_SPANS)
        for end in (max(least, eager), least):
            new = min(capacity, end // size)
            stop = self.memory(kind, new)
            refusal = self._commit(span * self.classes.stride + start, stop - start)
            if not refusal:
                break
        else:
            self._drop_spare()
            refusal = self._commit(span * self.classes.stride + start, stop - start)
            if refusal:
                raise PoolFull(refusal, at_limit=self._at_limit(stop - start))
        self.held += stop - start
        self.bump[span] = new
        self.growing[kind] = span if new < capacity else -1
        grains = size >> self.classes.shift
        found = self.places[old * grains : new * grains : grains]
        found.reverse()
        self.holes[span] = found
        return found

    def _at_limit(self, length: int) -> bool:
        return self.limit is not None and self.held + length > self.limit

    def _commit(self, offset: int, length: int) -> str:
        """Reserve memory; return why that cannot be, or nothing."""
        if self._at_limit(length):
            return f"{self.held} of at most {self.limit} bytes are held, {length} more do not fit"
        try:
            self.segment.reserve(offset, length)
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            return f"{self.held} bytes are held, the system has not {length} more: {error}"
        return ""

    def rollback(self) -> None:
        """Take back the memory given since the journal was cleared; its objects are free again."""
        for span, old in reversed(self.journal):
            kind = self.kind[span]
            if not old:
                if kind != UNUSED:
                    self._retire(span)
            elif self.bump[span] > old:
                size = self.classes.classes[kind].size
                stock = self.holes[span] or []
                stock[:] = [place for place in stock if place << self.classes.shift < old * size]
                start, stop = self.memory(kind, old), self.memory(kind, self.bump[span])
                self.bump[span] = old
                self.segment.release(span * self.classes.stride + start, stop - start)
                self.held -= stop - start
                self.growing[kind] = span
                self.shut(span)
        self.journal.clear()

    # Giving room back

    def open(self, span: int) -> list[int]:
        """Start the list of holes of a span that had none."""
        stock: list[int] = []
        self.holes[span] = stock
        heappush(self.heaps[self.kind[span]], span)
        return stock

    def shut(self, span: int) -> None:
        """Drop the list of holes of a span if it is empty and not the one its class takes from."""
        stock = self.holes[span]
        if stock is not self.current[self.kind[span]][0] and not stock:
            self.holes[span] = None

    def put_back(self, at: int) -> None:
        """Make a hole of the object at `at`."""
        span = at >> SPAN_SHIFT
        stock = self.holes[span]
        if stock is None:
            stock = self.open(span)
        stock.append(self.places[at & PLACE])

    def emptied(self, span: int) -> None:
        """Take note that the last object of a span is gone: it becomes the spare."""
        if span != self.spare:
            self._drop_spare()
            self.spare = span

    def _drop_spare(self) -> None:
        span = self.spare
        if span >= 0 and self.kind[span] != UNUSED:
            stock = self.holes[span]
            if stock is not None and len(stock) == self.bump[span]:
                self._retire(span)
        self.spare = -1

    def _retire(self, span: int) -> None:
        kind = self.kind[span]
        length = self.memory(kind, self.bump[span])
        if length:
            self.segment.release(span * self.classes.stride, length)
            self.held -= length
        stock, base = self.current[kind]
        if stock is self.holes[span] and base >> SPAN_SHIFT == span:
            self.current[kind] = self._none
        if self.growing[kind] == span:
            self.growing[kind] = -1
        self.holes[span] = None
        self.bump[span] = 0
        self.spans[kind] -= 1
        self.kind[span] = UNUSED
        self.unused.append(span)

    # The whole

    def rebuild(self, addresses: Iterable[int]) -> None:
        """Make everything anew from classes, bumps and the addresses of live objects."""
        self.journal.clear()
        self.spare = -1
        self.held = 0
        self._match_segment()
        live: dict[int, set[int]] = {}
        for at in addresses:
            live.setdefault(at >> SPAN_SHIFT, set()).add(at & PLACE)
        for kind in range(len(self.current)):
            self.current[kind] = self._none
            self.growing[kind] = -1
            self.heaps[kind] = []
            self.spans[kind] = 0
        for span, kind in enumerate(self.kind):
            if kind != UNUSED:
                self._rebuild_span(span, kind, live.get(span, set()))
        self._match_segment()

    def _rebuild_span(self, span: int, kind: int, live: set[int]) -> None:
        stride = self.classes.stride
        size, _, capacity = self.classes.classes[kind]
        if not live:
            self.segment.release(span * stride, stride)
            self.holes[span] = None
            self.bump[span] = 0
            self.kind[span] = UNUSED
            return
        bump = self.bump[span]
        length = self.memory(kind, bump)
        if length < stride:
            self.segment.release(span * stride + length, stride - length)
        self.held += length
        self.spans[kind] += 1
        if bump < capacity:
            self.growing[kind] = span
        grains = size >> self.classes.shift
        stock = [p for p in self.places[: bump * grains : grains] if p not in live]
        self.holes[span] = stock[::-1] or None
        if stock:
            # Spans are visited in rising order, which is heap order.
            self.heaps[kind].append(span)

    def close(self) -> None:
        """Give all memory back; views that readers still hold keep theirs."""
        self.readable.release()
        self.segment.close()
