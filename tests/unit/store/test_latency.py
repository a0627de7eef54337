"""Latencies: of a random few calls, all that the caller waits for; and what is told of them."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.forked import in_forked_child

from batchzip import (
    ClosedError,
    CompressedMapping,
    Engine,
    ForkedProcess,
    Latency,
    PageNotStored,
    SwapStore,
)
from batchzip.core.latency import BOUNDS_S, EVERY, LOAD
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOME = 2 * EVERY - 1
"""Calls of which at least one is timed."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path / "cold") as store,
    ):
        yield store


class Slow:
    """A serializer that takes a millisecond each way."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def dumps(self, value: Any) -> bytes:
        self._wait()
        return pickle.dumps(value)

    def loads(self, data: bytes) -> Any:
        self._wait()
        return pickle.loads(data)

    def _wait(self) -> None:
        self.threads.add(threading.get_ident())
        end = time.monotonic_ns() + 1_000_000
        while time.monotonic_ns() < end:
            pass


# Which calls


def test_one_call_in_64_is_timed(store: SwapStore) -> None:
    store.store(0, make_pages(1))
    assert store.latencies["load"] == Latency()
    for _ in range(100 * SOME):
        store.load(0)
    found = store.latencies["load"]
    assert found.count == pytest.approx(100 * SOME / EVERY, rel=0.35)  # eight standard deviations
    assert BOUNDS_S[0] / 8 < found.total_s / found.count < 0.1
    assert store.latencies["get"].count == store.latencies["put"].count == 0


def test_timing_samples_periodic_calls_evenly(store: SwapStore) -> None:
    start = store._entries.start
    met = Counter(number % EVERY for number in range(2000 * EVERY) if start(LOAD))
    assert len(met) == EVERY
    assert min(met.values()) > 2
    assert max(met.values()) < 100


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_load_from_the_file_is_timed_to_its_end(store: SwapStore, exclusive: bool) -> None:
    store.store(0, np.random.default_rng(0).integers(0, 9, (SOME, 4096), np.uint8))
    assert store.writeback(SOME) == SOME
    for index in range(SOME):
        store.load(index, exclusive=exclusive)
    assert store.latencies["load"].count > 0


def test_folios_are_timed_as_a_whole_and_batches_of_loads_are_not(store: SwapStore) -> None:
    for _ in range(SOME):
        store.store(0, make_pages(3))
        store.load_many([0, 1, 2])
    assert 0 < store.latencies["store"].count <= SOME
    assert store.latencies["load"].count == 0


def test_failed_calls_are_not_timed(store: SwapStore) -> None:
    for _ in range(SOME):
        with pytest.raises(PageNotStored):
            store.load(7)
        with pytest.raises(ValueError, match="page"):
            store.store(0, b"no page")
    assert all(latency == Latency() for latency in store.latencies.values())


@pytest.mark.slow
@pytest.mark.parametrize("length", [100, 20_000])
def test_serializers_are_part_of_what_a_mapping_s_caller_waits_for(
    store: SwapStore, length: int
) -> None:
    with CompressedMapping(store, serializer=Slow()) as mapping:
        for number in range(SOME):
            mapping[number] = "x" * length
        for number in range(SOME):
            assert mapping[number] == "x" * length
        for latency in mapping.latencies.values():
            assert 0 < latency.count <= SOME
            assert latency.total_s > latency.count / 1000
            assert sum(latency.calls[:12]) == 0, "up to half a millisecond"
        assert mapping.stats().hits == SOME


def test_values_in_the_file_are_timed_and_misses_are_not(tmp_path: Path) -> None:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path / "cold") as store,
        CompressedMapping(store, max_bytes=3000) as mapping,
    ):
        for number in range(3 * SOME):
            mapping[number] = make_pages(1, seed=number)[0, :200].tobytes()
        assert store.counters.backed_values > SOME
        for number in range(3 * SOME):
            assert mapping.get(-1 - number) is None
        assert mapping.latencies["get"].count == 0
        for number in range(3 * SOME):
            assert mapping[number]
        assert mapping.latencies["get"].count > 0


@pytest.mark.slow
def test_a_value_that_is_timed_is_restored_by_the_loop_as_any_other(store: SwapStore) -> None:
    serializer = Slow()

    async def get(mapping: CompressedMapping) -> None:
        for _ in range(SOME):
            assert await mapping.aget("key") == "value"

    with CompressedMapping(store, serializer=serializer) as mapping:
        mapping["key"] = "value"
        asyncio.run(get(mapping))
        assert mapping.latencies["get"].count > 0
    assert serializer.threads == {threading.get_ident()}


def test_batches_of_values_are_not_timed(store: SwapStore) -> None:
    with CompressedMapping(store) as mapping:
        for _ in range(SOME):
            mapping.set_many({"a": b"1", "b": b"2"})
            mapping.get_many(["a", "b"])
        assert all(latency == Latency() for latency in mapping.latencies.values())


# What is told


def test_each_group_has_latencies_and_the_store_adds_them_up(store: SwapStore) -> None:
    groups = [store, store.group("a"), store.group("b")]
    for times, group in enumerate(groups, start=1):
        group.store(0, make_pages(1))
        for _ in range(times * SOME):
            group.load(0)
    found = [store.status()["groups"][name]["latencies"]["load"] for name in ("", "a", "b")]
    assert [each.count > 0 for each in found] == [True] * 3
    assert store.latencies["load"] == found[0] + found[1] + found[2]
    assert store.group("a").latencies["load"] == found[1]
    store.group("b").close()
    assert store.latencies["load"] == found[0] + found[1]


def test_a_closed_store_and_a_forked_child_have_none(store: SwapStore) -> None:
    def look() -> None:
        with pytest.raises(ForkedProcess):
            _ = store.latencies

    in_forked_child(look)
    with CompressedMapping(store) as mapping:
        pass
    with pytest.raises(ClosedError):
        _ = mapping.latencies
    store.close()
    with pytest.raises(ClosedError):
        _ = store.latencies


@pytest.mark.parametrize("bucket", [20, 22, 24])
def test_a_call_is_in_the_bucket_of_its_time(store: SwapStore, bucket: int) -> None:
    took_s = BOUNDS_S[bucket] * 0.75
    store._entries.end(LOAD, time.monotonic_ns() - round(took_s * 1e9))
    found = store.latencies["load"]
    assert found.calls == tuple(int(number == bucket) for number in range(len(BOUNDS_S) + 1))
    assert took_s <= found.total_s < BOUNDS_S[bucket]


def test_the_first_and_the_last_bucket_take_whatever_is_beyond(store: SwapStore) -> None:
    store._entries.end(LOAD, time.monotonic_ns() - int(3600e9))
    assert store.latencies["load"].calls[-1] == 1
    store._entries.end(LOAD, time.monotonic_ns() + int(3600e9))  # a clock that is no clock
    assert store.latencies["load"].calls[0] == 1


def histogram(**calls: int) -> Latency:
    numbers = [calls.get(f"b{number}", 0) for number in range(len(BOUNDS_S) + 1)]
    return Latency(tuple(numbers), float(sum(numbers)))


def test_quantiles_are_those_that_prometheus_computes() -> None:
    found = histogram(b2=10, b4=80, b5=10)
    longest = BOUNDS_S
    assert found.quantile(0.0) == longest[1]
    assert found.quantile(0.05) == pytest.approx((longest[1] + longest[2]) / 2)
    assert found.quantile(0.1) == pytest.approx(longest[2])
    assert found.quantile(0.5) == pytest.approx((longest[3] + longest[4]) / 2)
    assert found.quantile(0.95) == pytest.approx((longest[4] + longest[5]) / 2)
    assert found.quantile(1.0) == pytest.approx(longest[5])
    assert histogram(b0=2).quantile(0.5) == pytest.approx(longest[0] / 2)
    assert histogram(b27=3).quantile(0.5) == longest[-1], "longer than which nothing is told"
    assert Latency().quantile(0.5) is Latency().mean_s is None
    assert found.mean_s == 1.0


def test_a_difference_has_the_calls_since_or_all_of_a_new_group() -> None:
    before, now = histogram(b1=3, b7=2), histogram(b1=3, b7=5, b8=1)
    assert now - before == histogram(b7=3, b8=1)
    assert before + histogram(b7=3, b8=1) == now
    assert before - now == before
