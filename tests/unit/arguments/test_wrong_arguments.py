"""What is no store, engine or limit is refused where it is given, with the argument's own name."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchzip import (
    BadArgument,
    CompressedMapping,
    Engine,
    SwapStore,
    load_array,
    metrics,
    store_array,
)

CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an engine by name": (
        lambda _: SwapStore("lz4"),  # type: ignore[arg-type]
        "engine must be an Engine, not str",
    ),
    "a limit in float": (
        lambda store: SwapStore(store.engine, max_pool_bytes=1e6),  # type: ignore[arg-type]
        "max_pool_bytes must be a number of bytes, or None; not 1000000.0",
    ),
    "a limit below nothing": (
        lambda store: SwapStore(store.engine, backing="/tmp", max_backing_bytes=-1),
        "max_backing_bytes must be a number of bytes, or None; not -1",
    ),
    "a limit of no file": (
        lambda store: SwapStore(store.engine, max_backing_bytes=1),
        "max_backing_bytes limits a backing file: give one with backing=",
    ),
    "a limit set later": (
        lambda store: setattr(store, "max_pool_bytes", "1M"),
        "max_pool_bytes must be a number of bytes, or None; not '1M'",
    ),
    "a group's limit": (
        lambda store: store.group("one", max_bytes=True),
        "max_bytes must be a number of bytes, or None; not True",
    ),
    "an engine set by name": (
        lambda store: setattr(store, "engine", "zstd"),
        "engine must be an Engine, not str",
    ),
    "a mapping over an engine": (
        lambda store: CompressedMapping(store.engine),
        "store must be a SwapStore, not Engine",
    ),
    "a mapping over a group": (
        lambda store: CompressedMapping(store.group("one")),
        "store must be a SwapStore, not Group",
    ),
    "figures of an engine": (
        lambda store: metrics.collector(store.engine),
        (
            "store must be a SwapStore, a CompressedMapping or a ShardedStore, "
            "or a mapping of them, "
            "not Engine"
        ),
    ),
    "figures of a list": (
        lambda store: metrics.collector({"one": [store]}),  # type: ignore[dict-item]
        "store must be a SwapStore, a CompressedMapping or a ShardedStore, not list",
    ),
    "an array to an engine": (
        lambda _: store_array([], 0, np.zeros(3)),  # type: ignore[arg-type]
        "store must be a SwapStore, one of its groups or a view, not list",
    ),
    "an array of an index": (
        lambda store: load_array(store, 0),  # type: ignore[arg-type]
        "stored must be a StoredArray, not int",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_argument_error_says_what_would_be_right(name: str, store: SwapStore) -> None:
    call, text = CALLS[name]
    with pytest.raises(BadArgument) as refused:
        call(store)
    assert str(refused.value) == text


@pytest.mark.parametrize("spread", [pickle.dumps, copy.copy, copy.deepcopy])
def test_objects_bound_to_a_process_cannot_be_pickled_or_copied(
    engine: Engine, store: SwapStore, spread: Callable[[object], object]
) -> None:
    for owned, instead in (
        (engine, ": make one there"),
        (store, ": what the store's share() gives can"),
        (store.group("one"), ": what the store's share() gives can"),
        (CompressedMapping(store), ""),
    ):
        with pytest.raises(TypeError) as refused:
            spread(owned)
        assert str(refused.value) == (
            f"this {type(owned).__name__} is bound to its process: "
            f"it cannot be pickled or copied{instead}"
        )


def test_a_store_says_what_it_is(engine: Engine) -> None:
    with SwapStore(engine) as store:
        store.store(0, [b"page".ljust(4096), b"other".ljust(4096)])
        one = store.group("one")
        assert repr(store) == "<SwapStore of 2 pages, lz4>"
        assert repr(one) == "<Group 'one' of 0 pages, lz4>"
    assert repr(store) == "<SwapStore, closed>"
    assert repr(one) == "<Group 'one', closed>"
