"""IndexSpace: no index is given out twice, and what is dropped, wherever that is, comes back."""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchzip.core.index_space import IndexSpace
from batchzip.core.memory import fail_allocation

if TYPE_CHECKING:
    from batchzip.core.index_space import Reservation


def clear_up(space: IndexSpace) -> list[tuple[int, int]]:
    ranges = []
    while (gone := space.gone()) is not None:
        ranges.append((gone.first, gone.count))
        gone.free()
    return ranges


def indices_of(reservation: Reservation) -> set[int]:
    return {*range(reservation.first, reservation.first + reservation.count)}


def test_neighbours_that_are_free_are_one_range() -> None:
    space = IndexSpace()
    held = [space.reserve(1) for _ in range(1000)]
    last = space.reserve(1)
    assert space.end == 1001
    held.clear()
    assert len(clear_up(space)) == 1000
    held.extend(space.reserve(length) for length in (100, 700, 200))
    assert (space.end, space.taken()) == (1001, 1001)
    del last


def test_indices_are_not_given_out_while_anybody_holds_them() -> None:
    space = IndexSpace()
    first: Reservation | None = space.reserve(3)
    reader = first
    first = None
    assert space.reserve(3).first == 3
    assert clear_up(space) == [(3, 3)]
    del reader
    assert clear_up(space) == [(0, 3)]
    assert (space.end, first) == (0, None)


def test_what_was_not_cleared_up_to_the_end_waits_again() -> None:
    space = IndexSpace()
    space.reserve(5)
    for _ in range(3):  # an interrupt: free() is not reached
        assert space.gone() is not None
    assert space.reserve(1).first == 5
    assert sorted(clear_up(space)) == [(0, 5), (5, 1)]


def test_a_reservation_outlives_its_space() -> None:
    space = IndexSpace()
    held = space.reserve(7)
    del space
    gc.collect()
    assert indices_of(held) == {*range(7)}


def test_without_memory_nothing_is_taken() -> None:
    space = IndexSpace()
    held = [space.reserve(1)]
    refused = 0
    for number in range(1, 400):
        fail_allocation(number % 2 + 1)
        try:
            held.append(space.reserve(number))
        except MemoryError:
            refused += 1
        finally:
            fail_allocation(0)
        assert space.taken() == sum(each.count for each in held)
    assert refused > 5


@pytest.mark.parametrize("seed", range(4))
def test_the_first_range_that_is_large_enough_is_given_out(seed: int) -> None:
    rng = random.Random(seed)
    space = IndexSpace()
    held: list[Reservation] = []
    for _ in range(1500):
        if held and rng.random() < 0.45:
            del held[rng.randrange(len(held))]
            clear_up(space)
            continue
        count = rng.choice([1, 1, 2, 3, 17, 63, 64, 65, 200])
        taken = set().union(*map(indices_of, held))
        at = length = 0
        while length < count:
            length = 0 if at in taken else length + 1
            at += 1
        held.append(space.reserve(count))
        assert held[-1].first == at - count


class Indices(RuleBasedStateMachine):
    """Ranges that are held never meet, and what is given out again was cleared up."""

    def __init__(self) -> None:
        super().__init__()
        self.space = IndexSpace()
        self.held: list[Reservation] = []
        self.dirty: set[int] = set()

    @rule(count=st.integers(1, 9) | st.sampled_from([63, 64, 65, 129]))
    def reserve(self, count: int) -> None:
        reservation = self.space.reserve(count)
        assert not indices_of(reservation) & self.dirty
        self.dirty |= indices_of(reservation)
        self.held.append(reservation)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @rule(finish=st.booleans())
    def clear_up_one(self, finish: bool) -> None:
        gone = self.space.gone()
        if gone is not None and finish:
            self.dirty -= indices_of(gone)
            gone.free()

    @rule(times=st.integers(60, 140))
    def churn(self, times: int) -> None:
        for _ in range(times):
            self.dirty |= indices_of(self.space.reserve(2))

    @invariant()
    def whole(self) -> None:
        assert self.space.taken() == len(self.dirty)
        assert self.space.end == max(self.dirty, default=-1) + 1


TestIndices = Indices.TestCase
