"""Lanes do batches of values: the same results, limits and errors as without them."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.entries import records_in
from support.store_pages import noise, text

from batchzip import Engine, PageError, SwapStore
from batchzip.core.keys import NotPlain
from batchzip.core.records import MISSING, Records
from batchzip.core.table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.core.ring import Ring

PAGE = 4096

MOST = 64 << 10


# Lanes


@pytest.fixture(params=["lz4", "zstd"])
def lanes(request: pytest.FixtureRequest) -> Iterator[tuple[SwapStore, Records, tuple[Ring, ...]]]:
    with (
        Engine(request.param, backend="threads", workers=3) as engine,
        SwapStore(engine) as store,
    ):
        made = records_in(store)
        assert engine.wait_ready()
        made.divider.generous = True  # whether it pays or not
        yield store, made, engine.backend.rings
        assert made.fault() is None
        store.check_invariants()
        for ring in engine.backend.rings:
            assert ring.is_unused
            ring.check_invariants()


def divided(store: SwapStore) -> tuple[int, int]:
    found = store.engine.statistics
    return found.compress.divided, found.decompress.divided


def some_values(count: int) -> list[bytes]:
    """Make values of all kinds: text, noise, none, single bytes, whole pages."""
    lengths = [1500, 0, 300, 1, PAGE, 2000, 77]
    return [
        (noise if key % 5 == 3 else text)(key, lengths[key % len(lengths)]) for key in range(count)
    ]


def test_lanes_help_with_batches(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(3000)), some_values(3000)
    assert made.put_many(keys, values, 0, rings=rings) == (3000, 0)
    assert made.keys() == keys
    assert made.get_many([*keys, "absent"], rings=rings) == [*values, MISSING]
    assert made.get_many(["absent"] * 500, rings=rings) == [MISSING] * 500
    assert made.get_many([], rings=rings) == []
    assert made.put_many([], [], 0, rings=rings) == (0, 0)
    assert min(divided(store)) > 10
    assert [made.get(key) for key in keys] == values
    # Once more, in the place of what is there, from the middle on, and a piece at a time.
    done, code = 1000, 0
    while done < 3000 and not code:
        before = done
        done, code = made.put_many(keys, values[::-1], done, most=100_000, rings=rings)
        assert before < done < before + 1000
    assert code == 0
    assert made.get_many(keys) == values[:1000] + values[::-1][1000:]


def test_a_limit_holds_with_lanes(lanes: tuple[SwapStore, Records, tuple[Ring, ...]]) -> None:
    store, made, rings = lanes
    keys, values = list(range(2000)), [noise(key, 1000) for key in range(2000)]
    assert made.put_many(keys, values, 0, limit=1_000_000, rings=rings) == (1000, -errno.EDQUOT)
    assert divided(store)[0] > 1
    assert made.keys() == keys[:1000]
    assert made.put_many(keys, values, 1000, rings=rings) == (2000, 0)
    assert made.get_many(keys, rings=rings) == values


def test_errors_in_a_batch_are_raised_with_lanes_too(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(1000)), some_values(1000)
    values[600:601] = [3]  # type: ignore[list-item] # no buffer
    with pytest.raises(TypeError):
        made.put_many(keys, values, 0, rings=rings)
    there = made.keys()
    assert there == keys[: len(there)]
    assert 400 < len(there) <= 600
    values[600:601] = [b"x" * (MOST + 1)]
    with pytest.raises(ValueError, match="page"):
        made.put_many(keys, values, 0, rings=rings)
    keys[600], values[600] = 0.5, b"x"  # type: ignore[call-overload]
    with pytest.raises(NotPlain):
        made.put_many(keys, values, 0, rings=rings)
    with pytest.raises(NotPlain):
        made.get_many(keys, rings=rings)
    assert made.get_many(there, rings=rings) == values[: len(there)]
    assert min(divided(store)) > 1


def test_damaged_values_are_told_apart_by_lanes(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(1000)), [text(key, 1500) for key in range(1000)]
    assert made.put_many(keys, values, 0, rings=rings) == (1000, 0)
    handles = np.frombuffer(made.entries.values(Kind.RECORD), np.uint64)
    damaged = store._resources.pool.read(int(handles[500]))
    store._resources.pool.write(int(handles[500]), bytes(reversed(damaged)))
    found = made.get_many(keys, rings=rings)
    failed = [key for key in keys if isinstance(found[key], PageError)]
    assert len(failed) == 1
    assert found[failed[0]].errno == -errno.EBADMSG
    assert [each for key, each in enumerate(found) if key not in failed] == [
        value for key, value in enumerate(values) if key not in failed
    ]
    assert made.entries.figures()["records"] == 1000


def test_values_go_on_where_lanes_have_ended(
    lanes: tuple[SwapStore, Records, tuple[Ring, ...]],
) -> None:
    store, made, rings = lanes
    keys, values = list(range(1000)), some_values(1000)
    assert made.put_many(keys, values, 0, rings=rings) == (1000, 0)
    before = divided(store)
    store.engine.close()
    assert made.put_many(keys, values[::-1], 0, rings=rings) == (1000, 0)
    assert made.get_many(keys, rings=rings) == values[::-1]
    assert divided(store) == before


def test_workers_take_no_values() -> None:
    with Engine("lz4", backend="workers", workers=1) as engine, SwapStore(engine) as store:
        made = records_in(store)
        keys, values = list(range(500)), some_values(500)
        for _ in range(2):
            assert made.put_many(keys, values, 0, rings=engine.backend.rings) == (500, 0)
            assert made.get_many(keys, rings=engine.backend.rings) == values
        assert made.fault() is None


def test_single_calls_wait_for_those_that_take_long(store: SwapStore) -> None:
    # They try to do without giving up the GIL, and `keys` has the mutex for longer than they try.
    made = records_in(store)
    assert made.put_many(list(range(20_000)), [b"value"] * 20_000, 0) == (20_000, 0)
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            made.keys()

    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        for turn in range(150):
            assert made.put(-turn - 1, b"%d" % turn) == 0
            assert made.get(-turn - 1) == b"%d" % turn
            assert made.contains(-turn - 1)
            assert made.remove(turn)
            assert len(made) == 20_000
        over.set()
        for each in looking:
            each.result()
    assert made.fault() is None


def test_the_largest_batches_are_done_in_pieces(values: Records) -> None:
    keys = list(range(64 * 3 + 1))
    assert values.put_many(keys, [b"%d" % key for key in keys], 0) == (len(keys), 0)
    assert values.get_many(keys[::-1]) == [b"%d" % key for key in keys[::-1]]
