"""Arena: the steps that allocate, free and copy a batch, and what undoes one that cannot be finished.

One array operation a step, for all objects at once: 256 objects cost what 30 cost. Only what NumPy
cannot do is a loop: taking places from the stocks, and the copies. A single object, which would pay for
twenty array operations by itself, is freed and copied by plain steps on integers. Rejected: plain
steps for everything, 2 us an object.

    handle ──HandleTable──▶ address, length ──▶ segment
    size ──SizeClasses──▶ class ──SpanTable──▶ address of a hole

A batch is all or nothing, by two ways:
* an error of ours (PoolFull, BadHandle, BadArgument) comes before the words are written, and what
  was done is undone exactly, in the time of the batch.
* anything else, such as KeyboardInterrupt, may come between any two steps. The words are written in
  one step, after the bytes they speak of, and `repair` makes all else anew from them. It may itself
  be interrupted and run again.

Invariants: those of HandleTable and SpanTable; objects and stored are the count and the sum of the
live lengths.

Locks: none; the pool's lock is around every call, save `view` and `views`, which read a word at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import BadArgument, BatchzipError
from batchzip.pool import audit
from batchzip.pool.handles import GENERATION_SHIFT, ONE, SLOT, HandleTable, bad_handle
from batchzip.pool.size_classes import SPAN_SHIFT, SizeClasses
from batchzip.pool.span import SpanTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from batchzip.pool.handles import Integers, Words


class Arena:
    """Handles, spans and the segment as one thing; no lock and no life cycle."""

    def __init__(self, page_size: int, limit: int | None, name: str) -> None:
        self.classes = SizeClasses(page_size)
        self.handles = HandleTable(page_size, name)
        try:
            self.spans = SpanTable(self.classes, limit, name)
        except BaseException:
            self.handles.close()
            raise
        self.lookup = np.array(self.classes.lookup, np.int64)
        self.objects = 0
        self.stored = 0

    def allocate(self, sizes: Integers, buffers: Sequence[Any] | None) -> Words:
        """Allocate for sizes that are known to be right; fill from `buffers` if there are any."""
        table, spans = self.handles, self.spans
        count = len(sizes)
        kinds = self.lookup[(sizes + (self.classes.grain - 1)) >> self.classes.shift]
        counts = np.bincount(kinds, minlength=len(spans.live))
        spans.journal.clear()
        slots = before = None
        try:
            slots = table.peek(count)
            before = table.words[slots]
            spans.provide(counts)
            at = spans.take(kinds, counts)
            if buffers is not None:
                _fill(spans.segment, at << self.classes.shift, sizes, buffers)
            lower = (at << table.length_bits) + (sizes - 1)
            words = (before + ONE) | lower.view(np.uint64)
            table.words[slots] = words
            table.take(count)
            spans.enter(at, slots, counts)
            self.objects += count
            self.stored += int(np.add.reduce(sizes))
            handles: Words = (words & ~np.uint64(SLOT)) | slots.view(np.uint64)
            return handles  # noqa: TRY300 - an interrupt here, too, must undo
        except BatchzipError:
            for kind in counts.nonzero()[0].tolist():
                spans.clear_stock(kind)
            spans.rollback()
            raise
        except BaseException:
            if before is not None:
                table.words[slots] = before
            raise

    def allocate_one(self, size: int, data: Any) -> int:
        """Allocate one object, as `allocate`: three times as fast for one, and only for one."""
        table, spans = self.handles, self.spans
        kind = self.classes.index(size)
        spans.journal.clear()
        slot = -1
        before = 0
        try:
            slot = int(table.peek(1)[0])
            before = table.view[slot]
            stock = spans.stocks[kind]
            if not stock:
                spans.refill(kind, 1)
            spans.ready[kind] -= 1
            at = stock.pop()
            start = at << self.classes.shift
            if data is not None:
                _fill_any(spans.segment.view, [start], [start + size], (data,))
            word = before + ONE + (at << table.length_bits) + size - 1
            table.view[slot] = word
            table.take(1)
            spans.enter_one(at, slot, kind)
            self.objects += 1
            self.stored += size
            return (word & ~SLOT) | slot
        except BatchzipError:
            spans.clear_stock(kind)
            spans.rollback()
            raise
        except BaseException:
            if slot >= 0:
                table.view[slot] = before
            raise

    def free_one(self, handle: int) -> int:
        """Free one object, as `free`: five times as fast for one, and only for one."""
        table = self.handles
        slot, word = table.find(handle)
        freed = (word | SLOT) + 1
        table.view[slot] = freed
        table.give(np.array([slot]), np.array([freed], np.uint64))
        place = word & SLOT
        self.spans.leave_one(place >> table.length_bits)
        self.objects -= 1
        length = (place & (1 << table.length_bits) - 1) + 1
        self.stored -= length
        return length

    def free(self, handles: Words) -> int:
        """Free every object, or none and raise BadHandle; the sum of their lengths."""
        if not len(handles):
            return 0
        table = self.handles
        slots, words = table.find_many(handles)
        ordered = np.sort(slots)
        twice = ordered[1:] == ordered[:-1]
        if np.logical_or.reduce(twice):
            slot = ordered[1:][twice][0]
            raise bad_handle(int(handles[slots == slot][1]))
        at, lengths = table.places(words)
        freed: Words = (words | np.uint64(SLOT)) + np.uint64(
            1
        )  # the next generation, nothing below
        table.words[slots] = freed
        table.give(slots, freed)
        self.spans.leave(at)
        self.objects -= len(slots)
        total = int(np.add.reduce(lengths))
        self.stored -= total
        return total

    def view(self, handle: int) -> memoryview:
        """Read-only bytes of one object."""
        start, stop = self.extent(handle)
        return self.spans.readable[start:stop]

    def extent(self, handle: int) -> tuple[int, int]:
        """Where the bytes of one object begin and end in the segment. Raises BadHandle."""
        bits = self.handles.length_bits
        word = self.handles.find(handle)[1] & SLOT
        start = word >> bits << self.classes.shift
        return start, start + (word & (1 << bits) - 1) + 1

    def copy(self, handle: int) -> bytes:
        """Copy the bytes of one object. Raises BadHandle."""
        # `extent` and `find` in one, as each load of a page is one of these: 0.2 us less.
        table = self.handles
        word = 0
        if type(handle) is int and (slot := handle & SLOT) < table.slots:
            word = table.view[slot]
        if not word & ONE or (word ^ handle) >> GENERATION_SHIFT:
            word = table.find(handle)[1]  # an integer of another type, or BadHandle
        bits = table.length_bits
        start = (word & SLOT) >> bits << self.classes.shift
        return self.spans.segment.memory[start : start + (word & (1 << bits) - 1) + 1]

    def lengths(self, handles: Words) -> Integers:
        """Bytes asked for each object. Raises BadHandle."""
        if not len(handles):
            return np.empty(0, np.int64)
        return self.handles.places(self.handles.find_many(handles)[1])[1]

    def extents(self, handles: Words) -> tuple[list[int], list[int]]:
        """Where the bytes of each object begin and end in the segment. Raises BadHandle."""
        if not len(handles):
            return [], []
        at, lengths = self.handles.places(self.handles.find_many(handles)[1])
        starts = at << self.classes.shift
        return starts.tolist(), (starts + lengths).tolist()

    def views(self, handles: Words, segment: memoryview) -> list[memoryview]:
        """Cut the bytes of each object out of a view of the segment. Raises BadHandle."""
        starts, stops = self.extents(handles)
        return [segment[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def copies(self, handles: Words) -> list[bytes]:
        """Copy the bytes of each object. Raises BadHandle."""
        starts, stops = self.extents(handles)
        memory = self.spans.segment.memory
        return [memory[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def repair(self) -> None:
        """Make everything anew from the handle words; time and memory for every object."""
        self.handles.rebuild()
        slots, words = self.handles.live()
        at, lengths = self.handles.places(words)
        self.spans.rebuild(at, slots)
        self.objects = len(slots)
        self.stored = int(lengths.sum())

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self.handles.check()
        slots, words = self.handles.live()
        at, lengths = self.handles.places(words)
        count, stored = len(slots), int(lengths.sum())
        if (self.objects, self.stored) != (count, stored):
            raise AssertionError(
                f"{count} objects of {stored} bytes are live, "
                f"counted are {self.objects} of {self.stored}"
            )
        audit.check(self.spans, at, slots)
        sizes = self.spans.sizes[self.spans.kind[at >> SPAN_SHIFT]]
        if (lengths > sizes).any():
            raise AssertionError("more bytes than an object's class has were asked for")

    def close(self) -> None:
        """Give all memory back."""
        self.handles.close()
        self.spans.close()


def _fill(segment: Any, starts: Integers, sizes: Integers, buffers: Sequence[Any]) -> None:
    memory = segment.memory
    stops = (starts + sizes).tolist()
    try:
        for start, stop, data in zip(starts.tolist(), stops, buffers, strict=False):
            memory[start:stop] = data
    except (TypeError, IndexError, BufferError):
        _fill_any(segment.view, starts.tolist(), stops, buffers)


def _fill_any(
    view: memoryview, starts: list[int], stops: list[int], buffers: Sequence[Any]
) -> None:
    """Fill as `_fill`, at twice the cost, from buffers with gaps too. Raises BadArgument."""
    for start, stop, data in zip(starts, stops, buffers, strict=False):
        try:
            view[start:stop] = data
        except (TypeError, ValueError, BufferError) as error:
            raise BadArgument(f"not a buffer of {stop - start} bytes: {error}") from None
