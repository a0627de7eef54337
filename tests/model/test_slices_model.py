"""Values of all lengths against a dict: put in, replaced, spilled and deleted."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.faulty_file import FaultyFile
from support.sample_values import mixed
from support.store_pages import noise, text

from batchzip import (
    CompressedMapping,
    Engine,
    SwapStore,
)

MOST = 64 << 10


# Against a dict


class AgainstADict(RuleBasedStateMachine):
    """Values at all bounds, with a file, codecs that take turns, and a limit."""

    def __init__(self) -> None:
        super().__init__()
        self.engines = [
            Engine("lz4", backend="sequential", page_size=512),
            Engine("zstd", level=1, backend="sequential", page_size=512),
            Engine("deflate", backend="sequential", page_size=512),
        ]
        self.store = SwapStore(self.engines[0], backing=FaultyFile())
        self.mapping = CompressedMapping(self.store, max_bytes=200_000)
        self.model: dict[str, bytes] = {}

    keys = st.sampled_from("abcdefgh")
    lengths = st.sampled_from([0, 511, 512, 513, 1024, 1025, 5000, MOST - 1, MOST, MOST + 1])
    values = st.builds(
        lambda make, seed, length: make(seed, length),
        st.sampled_from([text, noise, mixed]),
        st.integers(0, 9),
        lengths,
    )

    @rule(key=keys, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.mapping[key] = self.model[key] = value

    @rule(items=st.dictionaries(keys, values, min_size=1))
    def update(self, items: dict[str, bytes]) -> None:
        self.mapping.update(items)
        self.model.update(items)

    @rule(key=keys, value=values)
    def setdefault(self, key: str, value: bytes) -> None:
        assert self.mapping.setdefault(key, value) == self.model.setdefault(key, value)

    @rule(key=keys)
    def pop(self, key: str) -> None:
        assert self.mapping.pop(key, None) == self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert self.mapping.get(key) == self.model.get(key)

    @rule(count=st.integers(1, 200))
    def spill(self, count: int) -> None:
        self.mapping.group.writeback(count)

    @rule(number=st.integers(0, 2))
    def change_engine(self, number: int) -> None:
        self.store.engine = self.engines[number]

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def clear(self) -> None:
        self.mapping.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        assert self.mapping.get_many("abcdefgh") == self.model
        assert list(self.mapping) == list(self.model)
        assert self.mapping.nbytes == sum(map(len, self.model.values()))
        self.mapping.check_invariants()

    def teardown(self) -> None:
        self.store.check_invariants()
        assert self.store.check().ok
        self.mapping.close()
        assert self.store.compressed_bytes == 0
        self.store.close()
        for engine in self.engines:
            engine.close()


TestAgainstADict = pytest.mark.slow(AgainstADict.TestCase)
