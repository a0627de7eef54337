"""A mapping and its indices against a dict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.store_pages import noise, text

from batchzip import (
    CompressedMapping,
    Engine,
    SwapStore,
)
from batchzip.core.indices import IndexSpace

if TYPE_CHECKING:
    from batchzip.core.indices import IndexReservation

MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie in chunks, or on pages."""


class Indices(RuleBasedStateMachine):
    """Ranges that are held never meet, and what is free has no pages."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine("lz4", backend="sequential", page_size=512)
        self.store = SwapStore(self.engine)
        self.group = self.store.group("numbered")
        self.space = IndexSpace(self.group._entries)
        self.held: list[IndexReservation] = []

    @rule(count=st.integers(1, 9))
    def reserve(self, count: int) -> None:
        reservation = self.space.reserve(count)
        indices = range(reservation.first, reservation.first + count)
        assert not any(index in self.group for index in indices)
        self.group.store(reservation.first, [text(index, 512) for index in indices])
        self.held.append(reservation)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @rule(times=st.integers(60, 140))
    def churn(self, times: int) -> None:
        for _ in range(times):
            self.space.reserve(2)

    @invariant()
    def whole(self) -> None:
        self.space.check_invariants()
        assert len(self.group) == self.space.taken == sum(each.count for each in self.held)

    def teardown(self) -> None:
        self.store.close()
        self.engine.close()


TestIndices = pytest.mark.slow(Indices.TestCase)


# Against a dict


class AgainstADict(RuleBasedStateMachine):
    algorithm = "lz4"

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(self.algorithm, backend="sequential", page_size=512)
        self.store = SwapStore(self.engine)
        self.mapping = CompressedMapping(self.store)
        self.model: dict[str, bytes] = {}

    keys = st.sampled_from("abcdef")
    lengths = st.integers(0, 2000) | st.sampled_from([511, 512, 513, MOST - 1, MOST, MOST + 1])
    values = st.builds(noise, st.integers(0, 99), lengths) | st.builds(text, st.just(1), lengths)

    @rule(key=keys, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.mapping[key] = self.model[key] = value

    @rule(key=keys, value=values)
    def setdefault(self, key: str, value: bytes) -> None:
        assert self.mapping.setdefault(key, value) == self.model.setdefault(key, value)

    @rule(key=keys)
    def pop(self, key: str) -> None:
        assert self.mapping.pop(key, None) == self.model.pop(key, None)

    @rule()
    def popitem(self) -> None:
        if self.model:
            assert self.mapping.popitem() == self.model.popitem()

    @rule()
    def clear(self) -> None:
        self.mapping.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        assert list(self.mapping.items()) == list(self.model.items())
        assert self.mapping.nbytes == sum(map(len, self.model.values()))
        self.mapping.check_invariants()

    def teardown(self) -> None:
        self.store.check_invariants()
        self.mapping.close()
        assert self.store.counters.stored_pages == 0
        self.store.close()
        self.engine.close()


class AgainstADictOnPages(AgainstADict):
    algorithm = "deflate"


TestAgainstADict = pytest.mark.slow(AgainstADict.TestCase)
TestAgainstADictOnPages = pytest.mark.slow(AgainstADictOnPages.TestCase)
