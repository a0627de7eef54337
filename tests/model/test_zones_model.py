"""Zones against a dict of positions: no two objects share a byte, and no room is lost or reused."""

from __future__ import annotations

import itertools
import random
import threading
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchzip.core.zones import Emptied, ZoneReservation, Zones

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = 16384
ZONE = 1 << 20
BASE = 4096
LIMIT = 6 * ZONE


class Storage:
    """What is told to sync and to cut; `size` is where the file ends."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.error: BaseException | None = None
        self.size = 1 << 63

    def sync(self) -> None:
        if self.error is not None:
            raise self.error

    def truncate(self, size: int) -> None:
        if self.error is not None:
            raise self.error
        self.size = min(self.size, size)


def ranges(positions: Iterable[int]) -> list[tuple[int, int]]:
    return sorted((at >> 21, (at >> 21) + (at & (1 << 21) - 1) + 1) for at in positions)


class ZonesAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.storage = Storage()
        self.zones = Zones(PAGE, BASE)
        self.live: set[int] = set()
        self.held: dict[ZoneReservation, list[int]] = {}
        self.emptied: list[tuple[Emptied, list[tuple[int, int]]]] = []
        self.poisoned: set[int] = set()

    def of_all(self) -> set[int]:
        return self.live.union(*self.held.values())

    @rule(
        count=st.integers(0, 200),
        seed=st.integers(0, 1 << 30),
        small=st.booleans(),
        cleaning=st.booleans(),
    )
    def reserve(self, count: int, seed: int, small: bool, cleaning: bool) -> None:
        chance = random.Random(seed)
        lengths = [chance.randint(1, 300 if small else PAGE) for _ in range(count)]
        held, _, objects = self.zones.figures
        limit = self.zones.max_bytes
        most = None if limit is None else limit - (0 if cleaning else self.zones.spare)
        try:
            reservation = self.zones.reserve(
                np.array(lengths, np.uint32), self.storage.lock, cleaning=cleaning
            )
        except OSError:
            assert most is not None
            assert held + sum(lengths) > most
            assert not (cleaning and limit is not None and held > limit)
            assert self.zones.figures[::2] == (held, objects)
            return
        assert most is None or held + sum(lengths) <= most or (cleaning and held > most)
        positions = reservation.to_array().tolist()
        assert [at & (1 << 21) - 1 for at in positions] == [length - 1 for length in lengths]
        runs = reservation.runs()
        assert [last for _, last, _ in runs[:-1]] == [first for first, _, _ in runs[1:]]
        for first, last, offset in runs:
            starts = offset + np.cumsum([0, *lengths[first:last]])
            assert [at >> 21 for at in positions[first:last]] == starts[:-1].tolist()
            assert (offset - BASE) // ZONE not in self.poisoned
        self.storage.size = 1 << 63  # it is written to
        for start, end in ranges(positions):
            for _, gone in self.emptied:
                assert not any(start < at + size and at < end for at, size in gone)
        self.held[reservation] = positions

    def pick(self, seed: int) -> ZoneReservation:
        return random.Random(seed).choice(list(self.held))

    @precondition(lambda self: self.held)
    @rule(seed=st.integers(0, 1 << 30))
    def commit(self, seed: int) -> None:
        reservation = self.pick(seed)
        self.live.update(self.held.pop(reservation))
        reservation.keep()
        reservation.undo()

    @precondition(lambda self: self.held)
    @rule(seed=st.integers(0, 1 << 30), explicitly=st.booleans())
    def give_up(self, seed: int, explicitly: bool) -> None:
        reservation = self.pick(seed)
        del self.held[reservation]
        if explicitly:
            reservation.undo()

    @precondition(lambda self: self.held)
    @rule(seed=st.integers(0, 1 << 30), error=st.sampled_from([OSError, KeyboardInterrupt]))
    def fail_to_sync(self, seed: int, error: type[BaseException]) -> None:
        failed = self.pick(seed)
        self.storage.error = error()
        with pytest.raises(error):
            self.zones.sync(self.storage, failed)
        self.storage.error = None
        for reservation in self.held:
            if reservation is not failed or error is OSError:
                with pytest.raises(OSError, match=r".*"):
                    self.zones.sync(self.storage, reservation)
                self.poisoned.update((at - BASE) // ZONE for _, _, at in reservation.runs())
        self.held.clear()

    @precondition(lambda self: self.held)
    @rule(seed=st.integers(0, 1 << 30))
    def sync(self, seed: int) -> None:
        self.zones.sync(self.storage, self.pick(seed))

    @rule(seed=st.integers(0, 1 << 30), share=st.sampled_from([0.1, 0.9, 1]))
    def free(self, seed: int, share: float) -> None:
        chance = random.Random(seed)
        gone = [at for at in sorted(self.live) if chance.random() < share]
        self.zones.free(np.array(gone, np.uint64))
        self.live.difference_update(gone)

    @rule(position=st.integers(0, (1 << 64) - 1))
    def free_what_is_no_position(self, position: int) -> None:
        zone = ((position >> 21) - BASE) // ZONE
        if position >> 21 < BASE or zone not in {
            (at - BASE) // ZONE for at, _ in ranges(self.of_all())
        }:
            self.zones.free(np.array([position], np.uint64))

    @rule()
    def claim(self) -> None:
        emptied = self.zones.emptied()
        self.emptied.append((emptied, emptied.runs()))

    @precondition(lambda self: self.emptied)
    @rule(seed=st.integers(0, 1 << 30), discarded=st.booleans())
    def end_claim(self, seed: int, discarded: bool) -> None:
        emptied, _ = self.emptied.pop(seed % len(self.emptied))
        if discarded:
            emptied.put_back()
            assert emptied.runs() == []

    @rule(error=st.sampled_from([None, OSError, KeyboardInterrupt]))
    def cut(self, error: type[BaseException] | None) -> None:
        self.storage.error = None if error is None else error()
        try:
            self.zones.cut(self.storage)
        except KeyboardInterrupt:
            assert self.zones.unsettled
        self.storage.error = None

    @rule(limit=st.sampled_from([None, 0, LIMIT]))
    def limit(self, limit: int | None) -> None:
        self.zones.max_bytes = limit
        assert self.zones.max_bytes == limit

    @invariant()
    def what_lives_is_counted_and_apart(self) -> None:
        live = self.of_all()
        held, bytes_, objects = self.zones.figures
        found = ranges(live)
        assert (bytes_, objects) == (sum(end - start for start, end in found), len(live))
        assert held >= bytes_
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))
        assert all((start - BASE) // ZONE == (end - 1 - BASE) // ZONE for start, end in found)
        assert not found or found[-1][1] <= self.storage.size
        for _, gone in self.emptied:
            for at, size in gone:
                assert not any(start < at + size and at < end for start, end in found)
        if not any(gone for _, gone in self.emptied):
            self.zones.check(np.array(sorted(live), np.uint64))

    @invariant()
    def sparse_zones_are_those_of_which_little_lives(self) -> None:
        lives: dict[int, int] = {}
        for start, end in ranges(self.of_all()):
            lives[(start - BASE) // ZONE] = lives.get((start - BASE) // ZONE, 0) + end - start
        sparse = self.zones.sparse()
        assert all(0 < lives[zone] < ZONE // 2 for zone in sparse)
        assert all(self.zones.uses(zone) == uses > 0 for zone, uses in sparse.items())
        for reservation in self.held:  # what its positions are entered for is not known yet
            assert not {(at - BASE) // ZONE for _, _, at in reservation.runs()} & set(sparse)
        if self.zones.max_bytes is not None:
            assert sum(lives[zone] for zone in sparse) <= max(self.zones.spare, ZONE)

    def teardown(self) -> None:
        self.zones.free(np.array(sorted(self.live), np.uint64))
        self.held.clear()
        self.emptied.clear()
        emptied = self.zones.emptied()
        assert sum(size for _, size in emptied.runs()) % ZONE == 0
        emptied.put_back()
        self.zones.cut(self.storage)
        assert self.zones.figures == (0, 0, 0)
        assert self.storage.size <= BASE + ZONE * (max(self.poisoned, default=-1) + 1) or (
            self.storage.size == 1 << 63
        )
        self.zones.check(np.zeros(0, np.uint64))


TestZonesAgainstADict = pytest.mark.slow(ZonesAgainstDict.TestCase)
TestZonesAgainstADict.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
