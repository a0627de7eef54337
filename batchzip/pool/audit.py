"""What a pool can say of itself: what each class holds, and whether all is as it must be.

Apart from the code that changes things, so that the two cannot err together: nothing here writes,
and every figure is counted anew from handle words, bumps and holes, never from a kept sum. Rejected:
figures kept by class, as zsmalloc does. They would cost every malloc and free a step, for a table
that somebody looks at once a minute.

    usage()   a line for each class that holds memory
    check()   AssertionError at the first invariant of SpanTable that does not hold

Locks: the pool's is held by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.pool.size_classes import SPAN_SHIFT
from batchzip.pool.span import PLACE, UNUSED
from batchzip.segment import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    count = len(table.spans)
    objects, free, pages = [0] * count, [0] * count, [0] * count
    for span, kind in enumerate(table.kind):
        if kind != UNUSED:
            objects[kind] += table.bump[span]
            free[kind] += len(table.holes[span] or ())
            pages[kind] += table.memory(kind, table.bump[span]) // PAGE
    lines = []
    for kind, (size, _, capacity) in enumerate(table.classes.classes):
        if table.spans[kind]:
            used = objects[kind] - free[kind]
            freeable = table.spans[kind] - -(-used // capacity)
            line = (size, table.spans[kind], objects[kind], used, pages[kind], freeable)
            lines.append(ClassUse(*line))
    return lines


def check(table: SpanTable, addresses: Iterable[int]) -> None:
    """Raise AssertionError where an invariant does not hold with these live objects."""
    live: dict[int, list[int]] = {}
    for at in addresses:
        live.setdefault(at >> SPAN_SHIFT, []).append(at & PLACE)
    held = 0
    in_use = [0] * len(table.spans)
    for span, kind in enumerate(table.kind):
        taken = live.pop(span, [])
        if kind != UNUSED:
            in_use[kind] += 1
            held += table.memory(kind, table.bump[span])
            _check_span(table, span, taken)
        elif taken or table.bump[span] or table.holes[span] is not None:
            raise AssertionError(f"span {span} is in no use and has objects or holes")
    if live:
        raise AssertionError(f"objects lie in spans {sorted(live)}, which do not exist")
    if sorted(table.unused) != [n for n, kind in enumerate(table.kind) if kind == UNUSED]:
        raise AssertionError("the list of unused spans is wrong")
    if in_use != table.spans:
        raise AssertionError("the spans counted by class are wrong")
    memory = table.segment.held_bytes()
    if not held == table.held == memory:
        raise AssertionError(f"spans hold {held} bytes, counted {table.held}, segment {memory}")


def _check_span(table: SpanTable, span: int, taken: list[int]) -> None:
    kind, bump, stock = table.kind[span], table.bump[span], table.holes[span]
    size, _, capacity = table.classes.classes[kind]
    grains = size >> table.classes.shift
    if sorted(taken + (stock or [])) != table.places[: bump * grains : grains]:
        raise AssertionError(f"span {span}: objects and holes are not its first {bump} objects")
    if not taken and span != table.spare:
        raise AssertionError(f"span {span} is empty, holds memory and is not the spare")
    if (bump < capacity) != (table.growing[kind] == span):
        raise AssertionError(f"span {span}: bump {bump} of {capacity}, growing is wrong")
    if stock is not None and stock is not table.current[kind][0]:
        if not stock:
            raise AssertionError(f"span {span} has an empty list of holes and is not current")
        if span not in table.heaps[kind]:
            raise AssertionError(f"span {span} has holes that its class cannot find")
