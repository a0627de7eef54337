"""Audit: checks the tables of a pool against each other.

It shares no code with the allocator, so that both cannot have the same bug. It relies only on the
layout in the header of batchzip/core/pool.pyx, and reads copies: `Allocator.tables()`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NoReturn

import numpy as np

if TYPE_CHECKING:
    from typing import Any

FIRST_SLOT = 8
GENERATION_SHIFT = 48
ONE = 1 << GENERATION_SHIFT
SLOT = ONE - 1
RETIRED = 0xFFFE << GENERATION_SHIFT
BACKED = 1 << 31
UNLISTED = 7
RANGE = np.dtype(
    [
        ("place", "u8"),
        ("live", "u8"),
        ("before", "u4"),
        ("after", "u4"),
        ("below", "u4"),
        ("above", "u4"),
    ]
)


class Span:
    """One range: `length` grains from `first`, with objects of `grains` each. Capacity 0: free."""

    def __init__(self, number: int, record: Any) -> None:
        place = int(record["place"])
        self.number = number
        self.first = place & (1 << 45) - 1
        self.group = place >> 45 & 7
        self.capacity = place >> 48 & 127
        self.grains = place >> 55
        self.live = int(record["live"])
        self.length = self.grains * self.capacity or self.live
        self.end = self.first + self.length
        self.before, self.after, self.below, self.above = (
            int(record[name]) for name in ("before", "after", "below", "above")
        )

    def __repr__(self) -> str:
        return f"range {self.number} [{self.first}, {self.end}) of {self.capacity}×{self.grains}"


def check(tables: dict[str, Any]) -> None:
    """Raise AssertionError for the first invariant that does not hold."""
    ranges = np.frombuffer(tables["ranges"], RANGE)
    spans = _tile(tables, ranges)
    _check_records(tables, ranges, spans)
    _check_free(tables, ranges, [span for span in spans if not span.capacity])
    zspages = [span for span in spans if span.capacity]
    _check_classes(tables, ranges, zspages)
    _check_pages(tables, zspages)
    _check_words(tables, zspages)


def _fail(what: object) -> NoReturn:
    raise AssertionError(what)


def _expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        _fail(f"{what}: {found}, expected {wanted}")


def _tile(tables: dict[str, Any], ranges: Any) -> list[Span]:
    """Return the ranges in the order of addresses, after checking that they leave no gap."""
    spans: list[Span] = []
    at = tables["last"]
    while at:
        spans.append(Span(at, ranges[at]))
        if len(spans) > len(ranges):
            _fail("the list of ranges is circular")
        at = spans[-1].below
    spans.reverse()
    _expect(spans[-1].end if spans else 0, tables["top"], "the last range ends")
    _expect(spans[0].first if spans else 0, 0, "the first range begins")
    if spans:
        _expect(bool(spans[-1].capacity), True, "the last range is a zspage")
        _expect(spans[-1].above, 0, "above the last")
    for span, other in itertools.pairwise(spans):
        _expect(other.first, span.end, f"behind {span}")
        _expect(span.above, other.number, f"above {span}")
        if not span.capacity and not other.capacity:
            _fail(f"{span} and {other} are free neighbours")
    return spans


def _chain(ranges: Any, at: int) -> list[int]:
    found: list[int] = []
    while at:
        found.append(at)
        if len(found) > len(ranges):
            _fail("a list is circular")
        at = int(ranges[at]["after"])
    return found


def _check_records(tables: dict[str, Any], ranges: Any, spans: list[Span]) -> None:
    spare = _chain(ranges, tables["spare_range"])
    used = [span.number for span in spans]
    _expect(sorted(spare + used), list(range(1, len(ranges))), "used and unused records")


def _check_list(ranges: Any, head: int, what: str) -> list[int]:
    found = _chain(ranges, head)
    for before, at in itertools.pairwise([0, *found]):
        _expect(int(ranges[at]["before"]), before, f"before range {at} in {what}")
    return found


def _list_of(length: int) -> int:
    if length < 16:
        return length
    log = length.bit_length() - 1
    return min((log - 3) * 16 + (length >> log - 4 & 15), 159)


def _check_free(tables: dict[str, Any], ranges: Any, free: list[Span]) -> None:
    _expect(sum(span.length for span in free), tables["free_grains"], "free grains")
    wanted: dict[int, list[int]] = {}
    for span in free:
        wanted.setdefault(_list_of(span.length), []).append(span.number)
    for number, head in enumerate(tables["free_lists"]):
        found = _check_list(ranges, head, f"free list {number}")
        _expect(sorted(found), sorted(wanted.get(number, [])), f"free list {number}")
        bit = tables["free_map"][number // 64] >> number % 64 & 1
        _expect(bool(bit), bool(found), f"bit of free list {number}")


def _check_classes(tables: dict[str, Any], ranges: Any, zspages: list[Span]) -> None:
    by_class: dict[int, list[Span]] = {}
    for span in zspages:
        by_class.setdefault(span.grains, []).append(span)
        if not span.live or span.live >> span.capacity:
            _fail(f"{span} has no object, or one beyond its capacity")
    for grains, (live, room, count, heads) in enumerate(tables["classes"]):
        members = by_class.pop(grains, [])
        _expect(live, sum(span.live.bit_count() for span in members), f"objects of class {grains}")
        _expect(room, sum(span.capacity for span in members), f"room of class {grains}")
        _expect(count, len(members), f"zspages of class {grains}")
        groups: list[list[int]] = [[] for _ in heads]
        for span in members:
            group = 4 * span.live.bit_count() // span.capacity
            if group < len(heads):
                groups[group].append(span.number)
            _expect(span.group, group if group < len(heads) else UNLISTED, f"group of {span}")
        for head, group_members in zip(heads, groups, strict=True):
            found = _check_list(ranges, head, f"class {grains}")
            _expect(sorted(found), sorted(group_members), f"a group of class {grains}")
    _expect(by_class, {}, "zspages without a class")


def _check_pages(tables: dict[str, Any], zspages: list[Span]) -> None:
    pages = np.frombuffer(tables["pages"], np.uint32)
    grain, page = 1 << tables["grain_shift"], 1 << tables["page_shift"]
    wanted = np.zeros(len(pages), np.uint32)
    for span in reversed(zspages):  # the first zspage of a page wins
        wanted[span.first * grain // page : -(-span.end * grain // page)] = span.number
    if not np.array_equal(wanted, pages & ~np.uint32(BACKED)):
        wrong = np.flatnonzero(wanted != pages & ~np.uint32(BACKED))[0]
        _fail(f"page {wrong} begins with range {wanted[wrong]}, but has {pages[wrong]:#x}")
    backed = (pages & BACKED) != 0
    if (wanted[~backed] != 0).any():
        _fail("a page in use has no memory")
    _expect(tables["idle"], np.count_nonzero(wanted[backed] == 0), "idle pages")
    _expect(tables["held"], np.count_nonzero(backed) * page, "bytes held")
    _expect(tables["held_by_kernel"], tables["held"], "bytes held according to the kernel")


def _check_words(tables: dict[str, Any], zspages: list[Span]) -> None:
    words = np.frombuffer(tables["words"], np.uint64)
    _expect(len(words), tables["slots"], "words")
    _expect(int(words[1]), tables["slots"], "slots according to the words")
    _expect(tables["words_by_kernel"], tables["slots"] * 8, "bytes of the words")
    _expect(int(words[0]) & 1, 0, "the epoch must be even while no object moves")
    next_slot = tables["next_slot"]
    if words[2:FIRST_SLOT].any() or words[next_slot:].any():
        _fail("an unused slot is not zero")
    used = words[:next_slot].copy()
    used[:FIRST_SLOT] = 0
    live = used[(used & ONE) != 0]
    bits = tables["length_bits"]
    places = (live & np.uint64(SLOT)) >> np.uint64(bits)
    lengths = (live & np.uint64((1 << bits) - 1)).astype(np.int64) + 1
    _expect(len(live), tables["objects"], "live words")
    _expect(int(lengths.sum()), tables["stored"], "bytes stored")
    wanted = {
        span.first + number * span.grains: span.grains << tables["grain_shift"]
        for span in zspages
        for number in range(span.capacity)
        if span.live >> number & 1
    }
    _expect(sorted(places.tolist()), sorted(wanted), "places of objects")
    for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
        if not 0 <= wanted[place] - (length + 4) < 1 << tables["grain_shift"]:
            _fail(f"an object of {length} bytes is in a class of {wanted[place]}")
    free = np.flatnonzero(((used & ONE) == 0) & (used < RETIRED))
    chain: list[int] = []
    at = tables["free_slot"]
    while at and len(chain) <= len(free):
        chain.append(at)
        at = int(words[at]) & SLOT
    _expect(sorted(chain), free[free >= FIRST_SLOT].tolist(), "the chain of free slots")
