"""Record against a set of indices; owners of stripes against what rendezvous hashing promises."""

from __future__ import annotations

import random

import numpy as np
import pytest

from batchzip.dask.members import Member, Members, patience_s
from batchzip.dask.record import STRIPE, Record, cut, joined

PLACES = [["2", "0"], ["0", "1"], ["1", "4"], ["2", "1"]]
"""The two owners of some stripes, of five members."""


def same(record: Record, indices: set[int]) -> None:
    stripes = {index // STRIPE for index in indices}
    assert record.stripes() == stripes
    assert record.count(lambda _: True) == len(indices)
    assert [index for part in record.ranges(lambda _: True) for index in part] == sorted(indices)
    for stripe in stripes:
        own = {index for index in indices if index // STRIPE == stripe}
        assert record.indices(stripe) == sorted(own)
        assert record.mask(stripe) == sum(1 << index % STRIPE for index in own)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_record_is_a_set_of_indices(seed: int) -> None:
    rng = random.Random(seed)
    record, model = Record(), set[int]()
    taken: list[tuple[dict[int, int], set[int]]] = []
    for _ in range(150):
        first = rng.choice([rng.randrange(3000), rng.randrange(6) * STRIPE])
        count = rng.choice([1, 2, STRIPE - 1, STRIPE, STRIPE + 1, 3 * STRIPE])
        part = set(range(first, first + count))
        action = rng.randrange(5)
        if action < 2:
            record.add(first, count)
            model |= part
        elif action == 2:
            record.discard(first, count)
            model -= part
        elif action == 3:
            taken.append((record.take(first, count), model & part))
            model -= part
            assert sum(mask.bit_count() for mask in taken[-1][0].values()) == len(taken[-1][1])
        elif taken:
            masks, indices = taken.pop()
            record.give(masks)
            model |= indices
        same(record, model)
        for index in (first - 1, first, first + count - 1, first + count):
            assert (index in record) == (index in model)


def test_forget_returns_the_forgotten_ranges_and_keeps_the_rest() -> None:
    record = Record()
    record.add(0, 3 * STRIPE)
    record.add(5 * STRIPE + 7, 1)
    assert record.forget(lambda stripe: stripe in {1, 2, 5}) == [
        range(STRIPE, 3 * STRIPE),
        range(5 * STRIPE + 7, 5 * STRIPE + 8),
    ]
    same(record, set(range(STRIPE)))
    assert record.count(lambda stripe: stripe > 0) == 0


def test_ranges_are_cut_and_joined_at_stripes() -> None:
    assert list(cut(STRIPE - 1, STRIPE + 2)) == [
        (0, STRIPE - 1, 1),
        (1, STRIPE, STRIPE),
        (2, 2 * STRIPE, 1),
    ]
    assert list(cut(5, 0)) == []
    parts = [range(7, 9), range(3), range(3, 7), range(10, 11)]
    assert joined(parts) == [range(9), range(10, 11)]


def members(count: int, replicas: int = 1, epoch: int = 1) -> Members:
    return Members(epoch, [(f"shard-{n}", f"tcp://{n}") for n in range(count)], replicas)


def test_only_the_stripes_of_a_member_that_goes_move() -> None:
    before, after = members(8), members(7)
    moved = 0
    for stripe in range(2000):
        (one,), (other,) = before.owners(stripe), after.owners(stripe)
        if one.name == "shard-7":
            moved += 1
        else:
            assert one == other
    assert 180 < moved < 320  # an eighth of them is 250


def test_owners_are_as_many_as_copies_and_all_agree_on_the_primary() -> None:
    found = members(5, replicas=3)
    stripes = np.arange(3000)
    positions = found.primaries(stripes)
    for stripe, position in zip(stripes.tolist(), positions.tolist(), strict=True):
        owners = found.owners(stripe)
        assert len({owner.name for owner in owners}) == 3
        assert owners[0] == found.members[position]
        assert found.owners(stripe) == owners
    assert members(2, replicas=3).owners(0) != ()
    assert len(members(2, replicas=3).owners(0)) == 2
    assert members(0).owners(0) == ()
    assert found.by_name["shard-1"] == Member("shard-1", "tcp://1")


def test_the_place_of_a_stripe_is_the_same_in_every_version() -> None:
    found = members(5, replicas=2)
    places = [[owner.name[-1] for owner in found.owners(stripe)] for stripe in (0, 1, 2, 1 << 40)]
    assert places == PLACES


@pytest.mark.parametrize(
    ("timeout_s", "replicas", "patience"), [(30, 1, 30), (30, 2, 5), (3, 2, 3), (3, 1, 3)]
)
def test_a_shard_that_has_copies_is_waited_for_shortly(
    timeout_s: float, replicas: int, patience: float
) -> None:
    assert patience_s(timeout_s, replicas) == patience
