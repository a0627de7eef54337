"""BackingFile against a dict: whatever fails and is freed, what was acknowledged is there."""

from __future__ import annotations

import contextlib
import errno
import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.backing import free, write
from support.faulty_file import FaultyFile

from batchzip.store.backing.backing_file import BackingFile

PAGE = 16384
CALLS = ["pread", "pwrite", "sync", "discard", "truncate"]


class BackingFileAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.storage = FaultyFile()
        self.file = BackingFile(self.storage, page_size=PAGE)
        self.model: dict[int, bytes] = {}

    def teardown(self) -> None:
        self.file.close()

    def live(self) -> np.ndarray:
        return np.array(list(self.model), np.uint64)

    def some(self, seed: int, share: float) -> list[int]:
        return [at for at in self.model if random.Random(f"{seed} {at}").random() < share]

    @rule(count=st.integers(1, 150), seed=st.integers(0, 1 << 30))
    def write(self, count: int, seed: int) -> None:
        chance = random.Random(seed)
        batch = [chance.randbytes(1) * chance.randint(1, PAGE) for _ in range(count)]
        try:
            positions = write(self.file, batch)
        except OSError:
            return
        for position, content in zip(positions.tolist(), batch, strict=True):
            assert position not in self.model
            self.model[position] = content

    @precondition(lambda self: self.model)
    @rule(seed=st.integers(0, 1 << 30), share=st.sampled_from([0.01, 0.3, 1]))
    def read(self, seed: int, share: float) -> None:
        asked = self.some(seed, share)
        random.Random(seed).shuffle(asked)
        try:
            found = self.file.read(np.array(asked, np.uint64))
        except OSError:
            return
        assert found == [self.model[position] for position in asked]

    @rule(seed=st.integers(0, 1 << 30), share=st.sampled_from([0.1, 0.9, 1]))
    def free(self, seed: int, share: float) -> None:
        gone = self.some(seed, share)
        free(self.file, np.array(gone, np.uint64))
        for position in gone:
            del self.model[position]

    @rule()
    def clean(self) -> None:
        live = self.live()
        moved = live[np.isin(self.file.zone_of(live), list(self.file.zones.sparse()))].tolist()
        try:
            new = write(self.file, self.file.read(np.array(moved, np.uint64)))
        except OSError:
            return
        free(self.file, np.array(moved, np.uint64))
        for before, after in zip(moved, new.tolist(), strict=True):
            self.model[after] = self.model.pop(before)

    @rule(count=st.integers(1, 150))
    def write_and_drop(self, count: int) -> None:
        with contextlib.suppress(OSError):
            self.file.write([b"x" * PAGE] * count)

    @rule(
        call=st.sampled_from(CALLS),
        code=st.sampled_from([0, errno.ENOSPC, errno.EIO]),
        times=st.integers(1, 3),
    )
    def fail(self, call: str, code: int, times: int) -> None:
        self.storage.faults[call] = (code, times)

    @rule(limit=st.sampled_from([None, 0, 1 << 18, 3 << 20]))
    def limit(self, limit: int | None) -> None:
        self.file.max_bytes = limit

    @invariant()
    def bookkeeping_is_that_of_what_lives(self) -> None:
        self.file.check_invariants(self.live())
        assert self.file.objects == len(self.model)
        assert self.file.live_bytes == sum(map(len, self.model.values())) <= self.file.held_bytes

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        for position, content in self.model.items():
            offset = position >> 21
            assert self.storage.content[offset : offset + len(content)] == content


TestBackingFileAgainstADict = pytest.mark.slow(BackingFileAgainstDict.TestCase)
TestBackingFileAgainstADict.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
