"""Records against an ordered dict with deadlines."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.entries import records_in
from support.store_pages import noise

from batchzip import Engine, SwapStore
from batchzip.core.records import MISSING, now_ns, shift_clock

# Against an ordered dict


class AgainstAnOrderedDict(RuleBasedStateMachine):
    """Many keys, so that blocks fill, empty and join."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine("lz4", backend="sequential", page_size=512)
        self.store = SwapStore(self.engine)
        self.values = records_in(self.store)
        self.model: OrderedDict[int, tuple[bytes, float]] = OrderedDict()
        self.time = 0.0
        self.used: OrderedDict[int, None] = OrderedDict()

    def live(self) -> dict[int, bytes]:
        return {
            key: value
            for key, (value, until) in self.model.items()
            if not until or until > self.time
        }

    @rule(first=st.integers(0, 2000), count=st.integers(1, 700), seed=st.integers(0, 9))
    def put(self, first: int, count: int, seed: int) -> None:
        until = self.time + 5 if seed == 1 else 0
        deadline = now_ns() + 5 * 10**9 if until else 0
        keys = list(range(first, first + count))
        made = [noise(key + seed, (key * 7 + seed) % 40) for key in keys]
        assert self.values.put_many(keys, made, 0, deadline=deadline) == (count, 0)
        for key, value in zip(keys, made, strict=True):
            self.model[key] = value, until

    @rule(first=st.integers(0, 2000), count=st.integers(1, 700), step=st.integers(1, 3))
    def remove(self, first: int, count: int, step: int) -> None:
        live = self.live()
        for key in range(first, first + count, step):
            assert self.values.remove(key) == (key in live)
            self.model.pop(key, None)

    @rule(first=st.integers(0, 2000), count=st.integers(1, 200))
    def get(self, first: int, count: int) -> None:
        live = self.live()
        keys = list(range(first, first + count))
        assert self.values.get_many(keys) == [live.get(key, MISSING) for key in keys]

    @rule()
    def wait(self) -> None:
        shift_clock(6)
        self.time += 6
        self.values.expire()
        for key in [key for key in self.model if key not in self.live()]:
            del self.model[key]

    @precondition(lambda self: self.model)
    @rule(share=st.integers(0, 4))
    def shrink(self, share: int) -> None:
        before = len(self.values)
        target = self.values.entries.pool_bytes * share // 4
        gone = self.values.shrink(target)
        assert len(self.values) == before - gone
        assert self.values.entries.pool_bytes <= target
        kept = set(self.values.keys())
        for key in [key for key in self.model if key not in kept]:
            del self.model[key]

    @rule()
    def clear(self) -> None:
        self.values.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        assert self.values.fault() is None
        assert self.values.keys() == list(self.live())
        last = self.values.last()
        assert last == list(self.model)[-1:]

    def teardown(self) -> None:
        shift_clock(-self.time)
        self.store.check_invariants()
        self.store.close()
        self.engine.close()


TestAgainstAnOrderedDict = pytest.mark.slow(AgainstAnOrderedDict.TestCase)
