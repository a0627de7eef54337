"""Indices, serializers and finalizers of the user may use, change or close the store."""

from __future__ import annotations

import contextlib
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.store_pages import SIZE, noise, text, word

from batchzip import (
    ClosedError,
    CompressedMapping,
    Engine,
    PageNotStored,
    SwapStore,
    attach,
    store_array,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.store.group import Group


class Index:
    """An index that does something when it is asked for its number, once."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    def __index__(self) -> int:
        action, self.action = self.action, None
        if action is not None:
            action()
        return 1


CALLS: dict[str, Callable[[Group, Any], object]] = {
    "load": lambda group, index: group.load(index),
    "load to a buffer": lambda group, index: group.load(index, bytearray(SIZE)),
    "take": lambda group, index: group.load(index, exclusive=True),
    "load_many": lambda group, index: group.load_many([0, index, 2]),
    "store": lambda group, index: group.store(index, text(7)),
    "store a folio": lambda group, index: group.store(index, [text(7), noise(8)]),
    "store_array": lambda group, index: store_array(group, index, np.arange(5000)),
    "invalidate": lambda group, index: group.invalidate(index),
    "invalidate so many": lambda group, index: group.invalidate(0, index),
    "in": lambda group, index: index in group,
    "writeback": lambda group, index: group.writeback([index]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("closes", ["store", "group", "engine"])
def test_an_index_may_close_what_it_is_an_index_of(call: str, closes: str) -> None:
    """cpython 103987: mmap crashed where an index's __index__ closed it."""
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=io.BytesIO()) as store,
    ):
        group = store.group("one")
        group.store(0, [text(0), noise(1), word(2)])
        group.writeback([0])
        index = Index({"store": store, "group": group, "engine": engine}[closes].close)
        try:
            CALLS[call](group, index)
        except ClosedError:
            pass
        else:
            assert closes == "engine"
        assert index.action is None
        if closes == "engine":
            store.check_invariants()


@pytest.mark.parametrize("call", CALLS)
def test_an_index_may_change_what_it_is_an_index_of(engine: Engine, call: str) -> None:
    """cpython 157335: mmap wrote beyond its end where a value's __index__ made it shorter."""
    pages = [text(seed) for seed in range(8)]
    with SwapStore(engine, backing=io.BytesIO()) as store:
        actions: list[Callable[[], object]] = [
            lambda: store.invalidate(0, 8),
            lambda: store.store(0, [noise(seed) for seed in range(8)]),
            store.compact,
            lambda: store.writeback(8),
        ]
        for action in actions:
            store.store(0, pages)
            try:
                CALLS[call](store, Index(action))
            except PageNotStored:
                assert action is actions[0]
            store.check_invariants()
            assert store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize("where", ["store", "view"])
def test_indices_may_change_while_they_are_used(store: SwapStore, where: str) -> None:
    """cpython 148650: a buffer that another thread changes while it is read."""
    count, seconds = 1024, 0.3
    store.store(0, [text(number) for number in range(count)])
    indices = np.arange(count)
    until = time.monotonic() + seconds

    def change() -> None:
        rng = np.random.default_rng(0)
        while time.monotonic() < until:
            indices[:] = rng.integers(-(1 << 62), 1 << 62, count)
            indices[:] = np.arange(count)

    with attach(store.share()) as view, ThreadPoolExecutor(1) as threads:
        done = threads.submit(change)
        while time.monotonic() < until:
            with contextlib.suppress(PageNotStored):
                (store if where == "store" else view).load_many(indices)
        done.result()
    assert store.check().ok


@pytest.mark.parametrize("method", ["dumps", "loads"])
@pytest.mark.parametrize("closes", ["mapping", "store", "group", "engine"])
def test_a_serializer_may_close_what_it_serves(method: str, closes: str) -> None:
    """cpython 151030, 145040: sqlite3 crashed where a callback closed its connection."""

    class Closes:
        action: Callable[[], object] | None = None

        def dumps(self, value: Any) -> bytes:
            return self.act("dumps", value)

        def loads(self, data: bytes) -> bytes:
            return self.act("loads", data)

        def act(self, name: str, data: bytes) -> bytes:
            if name == method and self.action is not None:
                self.action()
            return data

    calls: list[Callable[[CompressedMapping], object]] = [
        lambda mapping: mapping["a"],
        lambda mapping: mapping.__setitem__("b", b"y" * 9000),
        lambda mapping: mapping.setdefault("c", b"y" * 9000),
        lambda mapping: mapping.pop("a"),
        lambda mapping: mapping.popitem(),
        lambda mapping: mapping.copy(),
        lambda mapping: mapping | {"d": b"z"},
    ]
    for call in calls:
        with (
            Engine("lz4", backend="sequential") as engine,
            SwapStore(engine) as store,
            CompressedMapping(store, serializer=(serializer := Closes())) as mapping,
        ):
            mapping["a"] = b"x" * 9000
            owners = {"mapping": mapping, "store": store, "group": mapping.group}
            serializer.action = {**owners, "engine": engine}[closes].close
            with contextlib.suppress(ClosedError):
                call(mapping)  # never KeyError: the key was there
            mapping.close()
            if not store.closed:
                store.check_invariants()
                assert len(store._resources.pool) == 0
