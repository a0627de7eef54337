"""Compaction: objects move from the emptiest spans to the fullest, and what they leave goes back.

    class, by used       ▏9 ▏14 ▏15 ▏     ▏3 ▏5 ▏                 ▏15 ▏15 ▏8 ▏
    spans of 15             fullest first ◀── emptiest first  ──▶     two given back, one lowered

Rejected: moving on every free (zsmalloc does not either: churn fills holes by itself), and a copy of a
whole class at once (unbounded work under the lock).

For one class:
1. the emptiest spans, as many as fit the holes of the others, are emptied and put out of use;
2. of the next emptiest one, as much as fits the holes of the others is moved there, what remains is
   moved down, and the bump is lowered: the pages above it go back. It can grow again.
What a call may not move any more is left for the next one: it finds the emptiest span emptier.

In order, for readers of other processes and for an interrupt at any point: the epoch, which tells readers
that the same word may name the same place with another history; the bytes; the words, in one
step; only then is the old place a hole. An object moves only to holes, so both copies are whole.

Locks: the pool's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.pool import audit
from batchzip.pool.size_classes import SPAN_SHIFT

if TYPE_CHECKING:
    from batchzip.pool.arena import Arena
    from batchzip.pool.handles import Integers


def compact(arena: Arena, most: int) -> int:
    """Move at most so many objects; return the bytes given back."""
    spans = arena.spans
    held = spans.held
    spans.drop_spares()
    arena.handles.words[0] += np.uint64(1)
    gains = audit.freeable(spans)
    kinds = np.flatnonzero(gains)
    for kind in kinds[np.argsort(-gains[kinds])].tolist():
        if most <= 0:
            break
        spans.clear_stock(kind)
        most -= _empty_spans(arena, kind, most)
        if most > 0:
            most -= _lower_one(arena, kind, most)
    return held - spans.held


def _with_holes(arena: Arena, kind: int) -> tuple[Integers, Integers, Integers]:
    """Spans of a class that have holes, fullest last; their objects, and their holes."""
    spans = arena.spans
    found = np.flatnonzero(spans.kind[: spans.next] == kind)
    found = found[spans.used[found] < spans.bump[found]]
    found = found[np.argsort(spans.used[found], kind="stable")]
    used = spans.used[found].astype(np.int64)
    return found, used, spans.bump[found] - used


def _empty_spans(arena: Arena, kind: int, most: int) -> int:
    """Empty as many of the emptiest spans as the holes of the others allow."""
    found, used, holes = _with_holes(arena, kind)
    behind = holes.sum() - np.cumsum(holes)
    count = int(np.searchsorted(np.cumsum(used) > behind, True))
    if not count:
        return 0
    sources, slots = arena.spans.list_cells(found[:count], live=True)
    return _move(arena, sources[:most], slots[:most], found[: count - 1 : -1])


def _lower_one(arena: Arena, kind: int, most: int) -> int:
    """Lower the bump of the emptiest span to what the holes of the others cannot take."""
    spans = arena.spans
    found, used, holes = _with_holes(arena, kind)
    if not len(found):
        return 0
    span = int(found[0])
    out = min(int(holes[1:].sum()), int(used[0]))
    left = int(used[0]) - out
    if spans.memory(kind, left) == spans.memory(kind, int(spans.bump[span])):
        return 0
    sources, slots = spans.list_cells(found[:1], live=True)
    sources, slots = sources[::-1], slots[::-1]
    moved = _move(arena, sources[: min(out, most)], slots[: min(out, most)], found[:0:-1])
    if moved < out or not left:
        return moved
    grains = int(spans.grains[kind])
    end = (span << SPAN_SHIFT) + left * grains
    above = int(np.count_nonzero(sources[out:] >= end))
    if moved + above > most:
        return moved
    moved += _move(arena, sources[out : out + above], slots[out : out + above], found[:1])
    spans.lower(span, left)
    return moved


def _move(arena: Arena, sources: Integers, slots: Integers, targets: Integers) -> int:
    """Move objects to the first holes of the spans `targets`; put spans left empty out of use."""
    if not len(sources):
        return 0
    spans, table = arena.spans, arena.handles
    room = np.cumsum(spans.bump[targets].astype(np.int64) - spans.used[targets])
    targets = targets[: int(np.searchsorted(room, len(sources))) + 1]
    places = spans.list_cells(targets, live=False)[0][: len(sources)]
    words = table.words[slots]
    lengths = table.places(words)[1]
    shift = arena.classes.shift
    memory = spans.segment.memory
    starts, froms = (places << shift).tolist(), sources << shift
    ends = (froms + lengths).tolist()
    copies = zip(starts, froms.tolist(), ends, strict=True)
    for to, start, end in copies:
        memory[to : to + end - start] = memory[start:end]
    step = (places - sources).view(np.uint64) << table.length_bits
    table.words[slots] = words + step
    left, _, old = spans.locate(sources)
    entered, _, new = spans.locate(places)
    spans.owner[old] = 0
    spans.owner[new] = slots
    np.subtract.at(spans.used, left, np.uint16(1))
    np.add.at(spans.used, entered, np.uint16(1))
    spans.retire(list(dict.fromkeys(left[spans.used[left] == 0].tolist())))
    return len(sources)
