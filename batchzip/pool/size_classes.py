"""SizeClasses: which sizes the pool rounds an object up to, and how each is laid out in a span.

Compressed pages have every length, and each is used as it is: rounding to powers of two, as a
general allocator does, wastes a quarter of the memory. Rejected too: packing objects end to end
whatever their size. It wastes nothing until the first free, after which only an object of the same
length or less fits the gap.

    size asked for ──▶ (size + grain - 1) / grain ──▶ lookup[…] ──▶ class: size, pages, capacity

    span, address space    |<------------------ 2048 grains = 8 pages ------------------>|
    a class of 3 pages     | object 0 | object 1 | object 2 | object 3 |tail|  never used |
                           |<------------- pages * page_bytes ------------->|

* grain: page_size / 256, at least 16 bytes: the step between classes, and the unit of every
  address in the pool. It is such that a span of 8 pages has 2048 grains whatever the page size.
* pages: 1 to 8, the fewest of those that leave the smallest part of the span as tail; no more than
  255 objects.
  Objects of a whole page waste nothing however many there are, and often come many at a time
  (what does not compress): a span has 32 KiB of them. One a span took 6 µs more an object.
* classes with equal pages and equal capacity are one class, of the larger size: they would cost
  the same memory, and fewer classes leave fewer spans half filled (zsmalloc merges likewise).

Invariants: sizes rise with the index; size * capacity <= pages * page_bytes; the largest size is
page_size. Immutable, hence no locks.
"""

from __future__ import annotations

from typing import NamedTuple

from batchzip.errors import BadArgument
from batchzip.segment import PAGE

SPAN_PAGES = 8
"""Pages of a span at the most. As zsmalloc: more would waste little less and be freed later."""

SPAN_SHIFT = 11
"""log2 of the grains in the address space of a span: 8 pages of 256 grains."""

SMALLEST = 2
"""Grains of the smallest class: 32 bytes for pages of 4 KiB. Below it the tables (13 bytes an object)
would not be small beside it, and a page would have more objects than a span may."""

RAW_BYTES = 8 * PAGE
"""Bytes of a span of objects that are as large as a page, if the page is no larger."""

CAPACITY = 255
"""Objects of a span at the most: they are counted in a byte. It costs 0.4 % of two small classes."""

PAGE_SIZES = (512, 2 << 20)
"""Bytes of the smallest and of the largest page a pool takes."""


class SizeClass(NamedTuple):
    """One class after merging."""

    size: int  # bytes of each object, a multiple of the grain
    pages: int  # pages of a span that are used
    capacity: int  # objects in a span


class SizeClasses:
    """The classes for one page size, and the table from a size to the index of its class."""

    def __init__(self, page_size: int) -> None:
        low, high = PAGE_SIZES
        if (
            type(page_size) is not int
            or page_size & (page_size - 1)
            or not low <= page_size <= high
        ):
            raise BadArgument(
                f"page_size is a power of two from {low} to {high} bytes, not {page_size!r}"
            )
        self.page_size = page_size
        self.page_bytes = max(PAGE, page_size)  # bytes of the pages that spans are made of
        self.stride = SPAN_PAGES * self.page_bytes  # bytes of address space of a span
        self.grain = self.stride >> SPAN_SHIFT
        self.shift = self.grain.bit_length() - 1
        self.classes: list[SizeClass] = []
        # Index 0 is never used: a size is at least 1.
        self.lookup = [0] * (page_size // self.grain + 1)
        self._fill()

    def _fill(self) -> None:
        steps = range(len(self.lookup) - 1, 0, -1)
        for step in steps:
            size = max(SMALLEST, step) * self.grain
            shape = self._shape(size)
            if not self.classes or self.classes[-1][1:] != shape:
                self.classes.append(SizeClass(size, *shape))
            self.lookup[step] = len(self.classes) - 1
        self.classes.reverse()
        for step in steps:
            self.lookup[step] = len(self.classes) - 1 - self.lookup[step]

    def _shape(self, size: int) -> tuple[int, int]:
        """Pages and capacity of the span that wastes the smallest part of itself."""

        def waste(pages: int) -> float:
            room = pages * self.page_bytes
            return room % size / room

        most = min(SPAN_PAGES, ((CAPACITY + 1) * size - 1) // self.page_bytes)
        if size == self.page_bytes:
            pages = max(1, RAW_BYTES // size)
        else:
            pages = min(range(1, most + 1), key=waste)
        return pages, pages * self.page_bytes // size

    def index(self, size: int) -> int:
        """Index of the class for an object of `size` bytes, 1 to page_size."""
        return self.lookup[(size + self.grain - 1) >> self.shift]
