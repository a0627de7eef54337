"""What a pool can say of itself: what each class holds, and whether all is as it must be.

Apart from the code that changes things, so that the two cannot err together: nothing here writes,
and every invariant is checked against what the words, the bumps and the reverse map tell.

    usage()       a line for each class that holds memory
    freeable()    bytes that compaction would give back, from the sums kept by class
    check()       AssertionError at the first invariant of SpanTable that does not hold

Locks: the pool's is held by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchzip.pool.size_classes import SPAN_SHIFT
from batchzip.pool.span import PLACE, UNUSED
from batchzip.segment import PAGE

if TYPE_CHECKING:
    from batchzip.pool.handles import Integers
    from batchzip.pool.span import SpanTable


@dataclass(frozen=True, slots=True)
class ClassUse:
    """A line of `Pool.classes()`: what one size class holds."""

    size: int
    """Bytes an object of the class may have at the most."""
    spans: int
    """Spans in use."""
    objects: int
    """Objects for which there is memory."""
    used: int
    """Objects allocated."""
    pages: int
    """Pages of the machine that are held."""
    freeable: int
    """Spans that would be free if the objects were moved together."""


def usage(table: SpanTable) -> list[ClassUse]:
    """Count what each class in use holds."""
    spans = np.flatnonzero(table.kind != UNUSED)
    kinds = table.kind[spans]
    memory = _pages(table, kinds, table.bump[spans])
    pages = np.bincount(kinds, memory, len(table.live)).astype(int)
    lines = []
    for kind in np.flatnonzero(table.spans).tolist():
        size, _, capacity = table.classes.classes[kind]
        used, count = int(table.live[kind]), int(table.spans[kind])
        line = (size, count, int(table.reached[kind]), used, int(pages[kind]))
        lines.append(ClassUse(*line, count - -(-used // capacity)))
    return lines


def freeable(table: SpanTable) -> Integers:
    """Bytes of each class that compaction would give back, if its objects were moved together."""
    pages: Integers = _packed(table, table.reached) - _packed(table, table.live)
    return pages * PAGE


def _packed(table: SpanTable, objects: Integers) -> Integers:
    """Pages of so many objects by class, all spans but one of them full."""
    whole, rest = np.divmod(objects, table.capacity)
    pages: Integers = whole * _pages(table, slice(None), table.capacity)
    pages += _pages(table, slice(None), rest)
    return pages


def _pages(table: SpanTable, kinds: np.ndarray | slice, bumps: np.ndarray) -> Integers:
    pages: Integers = -(-bumps.astype(np.int64) * table.sizes[kinds] // PAGE)
    return pages


def check(table: SpanTable, at: Integers, slots: Integers) -> None:
    """Raise AssertionError where an invariant does not hold with these live objects."""
    _expect(bool((at >> SPAN_SHIFT < table.next).all()), "objects lie in spans that do not exist")
    used = np.bincount(at >> SPAN_SHIFT, minlength=len(table.kind))
    _expect(np.array_equal(used, table.used), "the objects counted by span are wrong")
    spans = np.flatnonzero(table.kind != UNUSED)
    idle = table.kind == UNUSED
    _expect(not (table.used[idle].any() or table.bump[idle].any()), "an unused span has objects")
    _expect(
        sorted(table.unused) == np.flatnonzero(idle[: table.next]).tolist()
        and bool(idle[table.next :].all()),
        "the list of unused spans is wrong",
    )
    kinds = table.kind[spans]
    capacities, bumps = table.capacity[kinds], table.bump[spans].astype(np.int64)
    _expect(bool((bumps <= capacities).all()), "a span has more objects than its capacity")
    empty = spans[table.used[spans] == 0]
    _expect(set(empty.tolist()) <= table.spares.keys(), "an empty span is not a spare")
    _check_cells(table, at, slots, spans)
    count = len(table.live)
    for kept, found in (
        (table.spans, np.bincount(kinds, minlength=count)),
        (table.reached, np.bincount(kinds, bumps, count)),
        (table.live, np.bincount(kinds, table.used[spans], count)),
    ):
        _expect(np.array_equal(kept, found), f"sums by class: {kept} kept, {found} found")
    short = spans[bumps < capacities]
    growing = sorted((kind, span) for kind, some in enumerate(table.growing) for span in some)
    _expect(
        growing == sorted(zip(table.kind[short].tolist(), short.tolist(), strict=True)),
        "the spans that can grow are not those listed",
    )
    held = int(_pages(table, kinds, bumps).sum()) * PAGE
    memory = table.segment.held_bytes()
    if not held == table.held == memory:
        raise AssertionError(f"spans hold {held} bytes, counted {table.held}, segment {memory}")


def _check_cells(table: SpanTable, at: Integers, slots: Integers, spans: Integers) -> None:
    """Check the reverse map and the stocks."""
    span, kind, cell = table.locate(at)
    grains = table.grains[kind]
    place = at & PLACE
    sound = (place % grains == 0) & (place // grains < table.bump[span])
    _expect(bool(sound.all()), "an object is not at a place that its span has reached")
    owner = np.zeros_like(table.owner)
    owner[cell] = slots
    _expect(len(np.unique(cell)) == len(cell), "two objects are at one place")
    _expect(np.array_equal(owner, table.owner), "the reverse map is not what the words tell")
    extents = [
        (int(extent), capacity)
        for extent, capacity in zip(
            table.extent[spans], table.capacity[table.kind[spans]].tolist(), strict=True
        )
    ]
    extents += [(one, capacity) for capacity, some in table.vacant.items() for one in some]
    ends = [extent + capacity for extent, capacity in sorted(extents)]
    _expect(
        [0, *ends] == [*(extent for extent, _ in sorted(extents)), table.cells],
        "extents overlap, or cells are lost",
    )
    _expect(table.ready.tolist() == list(map(len, table.stocks)), "stocks are not as long as noted")
    for number, stock in enumerate(table.stocks):
        holes = np.array(stock, np.int64)
        _expect(len(set(stock)) == len(stock), "a stock has a hole twice")
        if not stock:
            continue
        span, kind, cell = table.locate(holes)
        step = int(table.grains[number])
        sound = (kind == number) & (table.owner[cell] == 0)
        sound &= (holes & PLACE) % step == 0
        sound &= (holes & PLACE) // step < table.bump[span]
        _expect(bool(sound.all()), f"the stock of class {number} has what is no hole of its")


def _expect(right: bool, what: str) -> None:
    if not right:
        raise AssertionError(what)
