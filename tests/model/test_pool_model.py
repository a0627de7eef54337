"""Pool against a dict from handle to bytes, after every step."""

import random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from support.pool_memory import content, figures, memory_of, put

from batchzip.core.memory import fail_allocation
from batchzip.errors import BadHandle, PoolFull
from batchzip.pool import Pool
from batchzip.system.segment import PAGE

PAGE_SIZES = [512, 4096, 65536, 2 << 20]


class PoolAgainstDict(RuleBasedStateMachine):
    """A pool and a dict from handle to bytes go through the same steps."""

    handles = Bundle("handles")

    @initialize(page_size=st.sampled_from(PAGE_SIZES))
    def start(self, page_size: int) -> None:
        self.pool = Pool(page_size=page_size)
        self.page_size = page_size
        self.model: dict[int, bytes] = {}
        self.dead: set[int] = set()

    batches = st.lists(st.floats(0, 1), max_size=24)
    seeds = st.integers(0, 1000)
    failing = st.just((0, 0)) | st.tuples(st.integers(1, 6), st.sampled_from([1, 100]))

    @rule(
        target=handles,
        shares=batches,
        seed=seeds,
        times=st.integers(1, 8),
        failing=failing,
        how=seeds,
    )
    def store(
        self, shares: list[float], seed: int, times: int, failing: tuple[int, int], how: int
    ) -> Any:
        data = [content(max(1, int(share * self.page_size)), seed) for share in shares] * times
        fail_allocation(*failing)
        try:
            if how % 2:
                handles = put(self.pool, data)
            else:
                handles = self.pool.malloc_many(map(len, data)).tolist()
        except (PoolFull, MemoryError):
            assert any(failing) or self.pool.max_bytes is not None
            return multiple()
        finally:
            fail_allocation(0)
        if how % 2 == 0:
            self.pool.write_many(handles, data)
        assert not set(handles) & (self.model.keys() | self.dead)
        self.model.update(zip(handles, data, strict=True))
        return multiple(*handles)

    def forget(self, handles: list[int]) -> None:
        for one in handles:
            del self.model[one]
        self.dead.update(handles)

    @rule(picked=st.lists(handles, max_size=12))
    def free_many(self, picked: list[int]) -> None:
        if len(set(picked)) == len(picked) and all(one in self.model for one in picked):
            self.pool.free_many(picked)
            self.forget(picked)
        else:
            with pytest.raises(BadHandle):
                self.pool.free_many(picked)

    @rule(handle=consumes(handles))
    def free(self, handle: int) -> None:
        if handle in self.model:
            assert self.pool.free(handle) == len(self.model[handle])
            self.forget([handle])
        with pytest.raises(BadHandle):
            self.pool.free(handle)

    @rule(seed=seeds)
    def free_most(self, seed: int) -> None:
        gone = [one for one in self.model if random.Random(one ^ seed).random() < 0.8]
        self.pool.free_many(gone)
        self.forget(gone)

    @rule(most=st.sampled_from([1, 5, 1000]), failing=failing)
    def compact(self, most: int, failing: tuple[int, int]) -> None:
        held = self.pool.held_bytes
        fail_allocation(*failing)
        assert self.pool.compact(most) == held - self.pool.held_bytes
        fail_allocation(0)

    @rule(handle=handles, seed=seeds)
    def overwrite(self, handle: int, seed: int) -> None:
        data = content(len(self.model.get(handle, b"?")), seed)
        if handle in self.model:
            self.pool.write(handle, data)
            self.model[handle] = data
        else:
            with pytest.raises(BadHandle):
                self.pool.write(handle, data)

    @rule(pages=st.none() | st.integers(-8, 8))
    def limit(self, pages: int | None) -> None:
        held = self.pool.held_bytes
        self.pool.max_bytes = None if pages is None else max(0, held + pages * PAGE)

    @rule()
    def spoil_headers(self) -> None:
        view = memory_of(self.pool).view
        for start, _ in map(self.pool.allocator.extent, self.model):
            view[start - 4] ^= 0x55

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_invariants()
        assert figures(self.pool) == (len(self.model), sum(map(len, self.model.values())))
        assert self.pool.read_many(self.model) == list(self.model.values())
        assert sorted(self.pool.handles().tolist()) == sorted(self.model)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


PoolAgainstDict.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
TestPoolAgainstDict = pytest.mark.slow(PoolAgainstDict.TestCase)
