"""What is asked of a store in a wrong way, or at a wrong time: a clear error, and nothing lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.forked import in_forked_child
from support.store_pages import SIZE, ZEROS, noise, strided, text, word

from batchzip import (
    BadArgument,
    BadBatch,
    ClosedError,
    Engine,
    ForkedProcess,
    PageNotStored,
    SwapStore,
)
from batchzip.store.arguments import MAX_INDEX
from batchzip.store.hysteresis import Hysteresis


@pytest.mark.parametrize("index", [-1, MAX_INDEX + 1, 1 << 64, 1.0, 1.5, "1", None, b"1"])
def test_an_invalid_index_is_refused_and_changes_nothing(store: SwapStore, index: Any) -> None:
    store.store(0, [text(0), text(1)])
    before = store.counters
    with pytest.raises(BadArgument):
        store.store(index, text(9))
    with pytest.raises(BadArgument):
        store.invalidate(index)
    with pytest.raises((BadArgument, PageNotStored, TypeError)):
        store.load(index)
    with pytest.raises((BadArgument, PageNotStored, TypeError)):
        store.load_many([0, index])
    assert store.counters == before
    assert store.load_many([0, 1]).tobytes() == text(0) + text(1)


def test_a_folio_that_would_end_beyond_the_last_index_is_refused(store: SwapStore) -> None:
    store.store(MAX_INDEX, text(1))
    with pytest.raises(BadArgument):
        store.store(MAX_INDEX, [text(2), text(3)])
    assert store.load(MAX_INDEX) == text(1)


@pytest.mark.parametrize("index", [1 << 63, (1 << 64) - 1])
def test_load_many_names_the_index_it_was_asked_for(store: SwapStore, index: int) -> None:
    store.store(0, text(1))
    with pytest.raises((PageNotStored, BadArgument)) as missing:
        store.load_many([index])
    assert getattr(missing.value, "index", index) == index


@pytest.mark.parametrize("count", [0, -1, MAX_INDEX + 2, 1 << 70])
def test_a_count_out_of_range_is_refused(store: SwapStore, count: int) -> None:
    store.store(0, text(1))
    with pytest.raises(BadArgument):
        store.invalidate(0, count)
    assert 0 in store


@pytest.mark.parametrize("count", [1.5, "2", None])
def test_a_count_that_is_no_integer_is_refused(store: SwapStore, count: Any) -> None:
    store.store(0, text(1))
    with pytest.raises((BadArgument, TypeError)):
        store.invalidate(0, count)
    assert 0 in store


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_numpy_integers_are_indices_as_any_other(store: SwapStore, dtype: Any) -> None:
    index = dtype(100)
    pages = [text(number) if number % 40 == 0 else word(number) for number in range(200)]
    store.store(index, pages)
    assert bytes(store.load(index)) == pages[0]
    assert index in store
    assert store.load(299) == pages[199]
    assert store.load_many(np.array([100, 101], dtype)).tobytes() == b"".join(pages[:2])
    assert store.invalidate(index, 200) == 200


@pytest.mark.parametrize(
    "indices",
    [[0.0], ["0"], [None], [[0]], np.zeros(1), np.zeros((1, 1), np.int64)],
    ids=["float", "text", "None", "nested", "floats", "2-D"],
)
def test_load_many_refuses_invalid_indices(store: SwapStore, indices: Any) -> None:
    store.store(0, text(1))
    with pytest.raises(BadArgument):
        store.load_many(indices)


BAD_PAGES: dict[str, Any] = {
    "a byte short": bytes(SIZE - 1),
    "a byte long": bytes(SIZE + 1),
    "no pages": [],
    "no bytes": b"",
    "no rows": np.empty((0, SIZE), np.uint8),
    "a short page in a list": [text(1), text(1)[:-1]],
    "a long page in a list": [text(1) * 2],
    "an empty page in a list": [text(1), b""],
    "another width": np.zeros((2, 512), np.uint8),
    "floats": np.zeros((1, SIZE), np.float64),
    "three dimensions": np.zeros((1, 1, SIZE), np.uint8),
    "not contiguous": strided(),
    "a page that is not contiguous": [strided()[0]],
    "text": "x" * SIZE,
    "texts": ["x" * SIZE],
    "an integer": 4096,
    "integers": [1, 2],
    "nothing": None,
}


@pytest.mark.parametrize("kind", BAD_PAGES)
def test_invalid_pages_are_refused_and_change_nothing(store: SwapStore, kind: str) -> None:
    store.store(0, [text(0), text(1)])
    before = store.counters
    with pytest.raises(BadBatch):
        store.store(0, BAD_PAGES[kind])
    assert store.counters == before
    assert store.load_many([0, 1]).tobytes() == text(0) + text(1)


@pytest.mark.parametrize("max_batch", [0, -1, 1.5, "8", None])
def test_a_batch_of_no_pages_is_refused(engine: Engine, max_batch: Any) -> None:
    with pytest.raises(BadArgument, match="max_batch"):
        SwapStore(engine, max_batch=max_batch)


@pytest.mark.parametrize("limit", [-1, 1.5, "1"])
def test_a_limit_that_cannot_be_is_refused(engine: Engine, limit: Any) -> None:
    with pytest.raises(BadArgument, match="max_pool_bytes"):
        SwapStore(engine, max_pool_bytes=limit)
    with SwapStore(engine, max_pool_bytes=4096) as store:
        with pytest.raises(BadArgument, match="max_pool_bytes"):
            store.max_pool_bytes = limit
        assert store.max_pool_bytes == 4096


@pytest.mark.parametrize("percent", [0, 100])
def test_an_accept_threshold_may_be_any_share(engine: Engine, percent: int) -> None:
    with SwapStore(engine, accept_threshold_percent=percent) as store:
        assert store.accept_threshold_percent == percent


def test_a_pool_that_was_full_is_open_again_exactly_at_the_threshold() -> None:
    limit = Hysteresis()
    assert limit.check(100, 100, 90) == (True, True)
    assert limit.check(91, 100, 90) == (False, True)
    assert limit.check(90, 100, 90) == (False, False)
    assert limit.check(99, 100, 90) == (False, False)


@pytest.mark.parametrize("percent", [-1, 101, 1.5, "90", None])
def test_an_accept_threshold_that_cannot_be_is_refused(engine: Engine, percent: Any) -> None:
    with pytest.raises(BadArgument, match="accept_threshold_percent"):
        SwapStore(engine, accept_threshold_percent=percent)


USES: dict[str, Callable[[SwapStore], object]] = {
    "store": lambda store: store.store(0, text(1)),
    "load": lambda store: store.load(0),
    "load_many": lambda store: store.load_many([0]),
    "invalidate": lambda store: store.invalidate(0),
    "in": lambda store: 0 in store,
    "counters": lambda store: store.counters,
    "counters_by_group": lambda store: store.counters_by_group(),
    "latencies": lambda store: store.latencies,
    "stored_bytes": lambda store: store.stored_bytes,
    "table_bytes": lambda store: store.table_bytes,
    "len": len,
    "writeback": lambda store: store.writeback(1),
    "recompress": lambda store: store.recompress(),
    "train_dictionary": lambda store: store.train_dictionary(),
    "shrink": lambda store: store.shrink(),
    "compact": lambda store: store.compact(),
    "share": lambda store: store.share(),
    "status": lambda store: store.status(),
    "check": lambda store: store.check(),
    "group": lambda store: store.group("new"),
    "drop a group": lambda store: store.drop_group("one"),
    "groups": lambda store: store.groups,
    "set the engine": lambda store: setattr(store, "engine", store.engine),
    "set the file's limit": lambda store: setattr(store, "max_backing_bytes", 1),
    "set the limit": lambda store: setattr(store, "max_pool_bytes", 1),
    "compressed_bytes": lambda store: store.compressed_bytes,
    "classes": lambda store: store.classes(),
    "check_invariants": lambda store: store.check_invariants(),
    "with": lambda store: store.__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_use_after_close_is_refused(store: SwapStore, use: str) -> None:
    store.store(0, text(1))
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        USES[use](store)


def test_closing_gives_the_memory_back_and_leaves_the_engine_open(engine: Engine) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    store = SwapStore(engine)
    store.store(0, text(1))
    assert len(list(descriptors.iterdir())) > before
    store.close()
    assert len(list(descriptors.iterdir())) == before
    assert engine.decompress_page(engine.compress_page(text(2))) == text(2)


def test_stored_pages_outlive_the_engine_and_new_ones_are_refused() -> None:
    engine = Engine("lz4", backend="sequential")
    with SwapStore(engine) as store:
        store.store(0, [text(0), ZEROS])
        engine.close()
        with pytest.raises(ClosedError, match="Engine"):
            store.store(5, text(5))
        assert store.load(0) == text(0)
        assert store.load_many([1, 0]).tobytes() == ZEROS + text(0)
        assert 5 not in store
        assert store.load(1) == ZEROS
        store.check_invariants()


def test_a_forked_child_is_refused_and_the_parent_unaffected(store: SwapStore) -> None:
    store.store(0, [text(0), noise(1), ZEROS])

    def use_in_every_way() -> None:
        for use in USES.values():
            with pytest.raises(ForkedProcess):
                use(store)
        store.close()

    in_forked_child(use_in_every_way)
    store.check_invariants()
    assert store.load_many(range(3)).tobytes() == text(0) + noise(1) + ZEROS
    store.store(0, text(5))
    assert store.load(0) == text(5)
