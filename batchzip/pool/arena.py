"""Arena: the loops that allocate and free a batch, and what undoes a batch that cannot be finished.

One object is a dozen steps on integers and a copy; a method call for each of them would be most of
the time. So the steps of HandleTable and SpanTable are written out here, on locals, and nowhere
else. Rejected: numpy for the steps on handles. They are 10 array operations, 13 us a batch however
short, and the lists of holes would still need the loop.

    handle ──HandleTable──▶ address, length ──▶ segment
    size ──SizeClasses──▶ class ──SpanTable──▶ address of a hole

A batch is all or nothing, by two ways:
* an error of ours (PoolFull, BadHandle, BadArgument) comes between two objects, and what was done
  is undone exactly, in the time of the batch.
* anything else, such as KeyboardInterrupt, may come between any two steps. Then only the handle
  words are set right, each in one step, and `repair` makes all else anew from them. It may itself
  be interrupted and run again.

Invariants: those of HandleTable and SpanTable; objects and stored are the count and the sum of the
live lengths.

Locks: none; the pool's lock is around every call, save `views`, which reads a word at once.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument, BatchzipError
from batchzip.pool import audit
from batchzip.pool.handles import ONE, RETIRED, SLOT, HandleTable, bad_handle
from batchzip.pool.size_classes import SPAN_SHIFT, SizeClasses
from batchzip.pool.span import PLACE, SpanTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class Arena:
    """Handles, spans and the segment as one thing; no lock and no life cycle."""

    def __init__(self, page_size: int, limit: int | None, name: str) -> None:
        self.classes = SizeClasses(page_size)
        self.handles = HandleTable(page_size)
        self.spans = SpanTable(self.classes, limit, name)
        self.objects = 0
        self.stored = 0

    def allocate(self, sizes: Sequence[int], buffers: Sequence[Any] | None) -> list[int]:
        """Allocate for sizes that are known to be right; fill from `buffers` if there are any."""
        table, spans, lookup = self.handles, self.spans, self.classes.lookup
        words, lengths, current = table.words, table.lengths, spans.current
        shift, up = self.classes.shift, self.classes.grain - 1
        handles: list[int] = []
        spans.journal.clear()
        table.ensure(len(sizes), self.objects)
        head = table.head
        view = spans.segment.view
        try:
            for size, data in zip(sizes, buffers or repeat(None), strict=False):
                kind = lookup[(size + up) >> shift]
                stock, base = current[kind]
                if not stock:
                    stock, base = spans.refill(kind)
                    view = spans.segment.view
                at = base + stock.pop()
                word = words[head]
                after = word & SLOT
                word += ONE - after
                handles.append(word + head)
                lengths[head] = size
                words[head] = word + at
                head = after
                if data is not None:
                    start = at << shift
                    view[start : start + size] = data
            table.head = head
            self.objects += len(handles)
            self.stored += sum(sizes)
            return handles  # noqa: TRY300 - an interrupt here, too, must undo
        except (BatchzipError, TypeError, ValueError, BufferError) as error:
            table.head = head
            for handle in handles:
                spans.put_back(table.drop(handle))
            spans.rollback()
            if isinstance(error, BatchzipError):
                raise
            # Only the copy raises these, and it is the last step of an object.
            raise BadArgument(f"not a buffer of {size} bytes: {error}") from None
        except BaseException:
            for handle in handles:
                if words[handle & SLOT] & ~SLOT == handle & ~SLOT:
                    table.drop(handle)
            raise

    def free(self, handles: Sequence[int]) -> None:
        """Free every object, or none and raise BadHandle."""
        before: list[int] = []
        try:
            emptied, head, stored = self._free(handles, before)
        except BatchzipError:
            self._unfree(handles, before)
            raise
        except BaseException:
            for handle, word in zip(handles, before, strict=False):
                self.handles.words[handle & SLOT] = word
            raise
        self.handles.head = int(head)  # a handle may be numpy's integer
        self.objects -= len(handles)
        self.stored -= stored
        for span in emptied:
            self.spans.emptied(span)

    def _free(self, handles: Sequence[int], before: list[int]) -> tuple[list[int], int, int]:
        """Free up to the first bad handle; `before` gets the words as they were."""
        table, spans = self.handles, self.spans
        words, lengths = table.words, table.lengths
        holes, bump, places = spans.holes, spans.bump, spans.places
        emptied: list[int] = []
        head = table.head
        stored = 0
        for handle in handles:
            try:
                slot = handle & SLOT
                word = words[slot]
                at = word & SLOT
                generation = handle - slot
                if word - at != generation or not handle & ONE:
                    raise bad_handle(handle)
            except (IndexError, TypeError, OverflowError):
                raise bad_handle(handle) from None
            before.append(word)
            generation += ONE
            if generation < RETIRED:
                words[slot] = generation + head
                head = slot
            else:
                words[slot] = RETIRED
                table.retired += 1
            span = at >> SPAN_SHIFT
            stock = holes[span]
            if stock is None:
                stock = spans.open(span)
            stock.append(places[at & PLACE])
            if len(stock) == bump[span]:
                emptied.append(span)
            stored += lengths[slot]
        return emptied, head, stored

    def _unfree(self, handles: Sequence[int], before: list[int]) -> None:
        table, spans = self.handles, self.spans
        for handle, word in reversed(list(zip(handles, before, strict=False))):
            slot = handle & SLOT
            if table.words[slot] == RETIRED:
                table.retired -= 1
            table.words[slot] = word
            span = (word & SLOT) >> SPAN_SHIFT
            stock = spans.holes[span]
            if stock is not None:
                stock.pop()
                spans.shut(span)

    def view(self, handle: int) -> memoryview:
        """Read-only bytes of one object; `views` for one, at half the cost."""
        table = self.handles
        try:
            slot = handle & SLOT
            word = table.words[slot]
            at = word & SLOT
            if word - at != handle - slot or not handle & ONE:
                raise bad_handle(handle)
        except (IndexError, TypeError, OverflowError):
            raise bad_handle(handle) from None
        start = at << self.classes.shift
        return self.spans.readable[start : start + table.lengths[slot]]

    def views(self, handles: Iterable[int], segment: memoryview) -> list[memoryview]:
        """Cut the bytes of each object out of a view of the segment. Raises BadHandle."""
        words, lengths, shift = self.handles.words, self.handles.lengths, self.classes.shift
        views: list[memoryview] = []
        for handle in handles:
            try:
                slot = handle & SLOT
                word = words[slot]
                at = word & SLOT
                if word - at != handle - slot or not handle & ONE:
                    raise bad_handle(handle)
            except (IndexError, TypeError, OverflowError):
                raise bad_handle(handle) from None
            start = at << shift
            views.append(segment[start : start + lengths[slot]])
        return views

    def repair(self) -> None:
        """Make everything anew from the handle words; time and memory for every object."""
        live = list(self.handles.live())
        self.handles.rechain()
        self.spans.rebuild(at for at, _ in live)
        self.objects = len(live)
        self.stored = sum(length for _, length in live)

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        live = list(self.handles.live())
        count, stored = self.handles.check(), sum(length for _, length in live)
        if (self.objects, self.stored) != (count, stored):
            raise AssertionError(
                f"{count} objects of {stored} bytes are live, "
                f"counted are {self.objects} of {self.stored}"
            )
        sizes = self.classes.classes
        for at, length in live:
            size = sizes[self.spans.kind[at >> SPAN_SHIFT]].size
            if not 0 < length <= size:
                raise AssertionError(f"{length} bytes asked for lie in a class of {size}")
        audit.check(self.spans, (at for at, _ in live))
