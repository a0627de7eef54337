"""Batches do what single calls do: whole values, in lanes and beside other threads."""

from __future__ import annotations

import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.sample_values import row
from support.store_pages import noise, text

import batchzip
from batchzip import (
    ClosedError,
    CompressedMapping,
    Engine,
    NotStorable,
    StoreRejected,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


# Several at once


def test_batches_do_what_single_calls_do(zstd: SwapStore) -> None:
    values: dict[Any, bytes] = {number: row(number) for number in range(300)}
    values |= {("tuple", number): text(number, 5000) for number in range(20)}
    values |= {(0.5, number): noise(number, number) for number in range(20)}
    with CompressedMapping(zstd) as mapping:
        mapping.set_many(values)
        assert list(mapping.items()) == list(values.items())
        assert mapping.get_many([*values, "absent"]) == values
        assert mapping.delete_many([*range(100), "absent"]) == 100
        mapping.update([("x", b"1"), ("y", b"2")], z=b"3")
        assert mapping.get_many("xyz") == {"x": b"1", "y": b"2", "z": b"3"}
        with pytest.raises(NotStorable):
            mapping.update({"good": b"good", "bad": 5, "after": b"after"})
        assert "after" not in mapping
        mapping.check_invariants()


def test_a_batch_that_is_rejected_keeps_what_came_before(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, max_bytes=100_000) as mapping:
        with pytest.raises(StoreRejected):
            mapping.set_many((number, noise(number, 1000)) for number in range(1000))
        kept = list(mapping)
        assert kept == list(range(len(kept)))
        assert 90 < len(kept) <= 100


def test_items_before_an_error_are_stored(zstd: SwapStore) -> None:
    def items() -> Iterator[tuple[int, bytes]]:
        yield from ((number, row(number)) for number in range(100))
        raise ZeroDivisionError

    with CompressedMapping(zstd) as mapping:
        with pytest.raises(ZeroDivisionError):
            mapping.update(items())
        assert list(mapping.items()) == [(number, row(number)) for number in range(100)]


@pytest.mark.slow
@pytest.mark.parametrize("learnt", [False, True])
def test_lanes_use_the_codec_of_the_mapping(learnt: bool) -> None:
    values = {number: row(number) * 3 for number in range(2000)}
    dictionary = batchzip.train_dictionary(list(values.values()), size=2048) if learnt else None
    with (
        Engine("zstd", level=1, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, dictionary=dictionary) as mapping,
        CompressedMapping(store, dictionary=dictionary) as alone,
    ):
        assert engine.wait_ready()
        mapping._records.divider.generous = True  # whether it pays or not
        mapping.set_many(values)
        for key, value in values.items():
            alone[key] = value
        assert mapping.get_many(values) == values
        assert {key: mapping[key] for key in values} == values
        assert mapping.cbytes == alone.cbytes
        if dictionary is None:  # coders with one are the mapping's own, and so are their figures
            assert engine.statistics.compress.divided > 5
            assert engine.statistics.compress.pages == 2 * len(values)
        mapping.check_invariants()


@pytest.mark.slow
def test_lanes_help_where_that_pays() -> None:
    values = {number: noise(number, 2000).hex().encode() for number in range(2000)}
    with (
        Engine("zstd", level=3, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        assert engine.wait_ready()
        for _ in range(5):
            mapping.set_many(values)
            mapping.get_many(values)
        assert engine.statistics.compress.divided > 5
        assert engine.statistics.decompress.divided > 5
        few = engine.statistics.compress.batches
        for number in range(100):
            mapping.set_many({number: values[number]})
            mapping.get_many([number])
        assert engine.statistics.compress.batches == few


@pytest.mark.slow
def test_batches_in_lanes_meet_whole_values() -> None:
    wrong: list[object] = []
    made = {number: text(number, 300 + number % 700) for number in range(500)}

    def work(seed: int) -> None:
        try:
            for turn in range(8):
                keys = [(turn * 31 + seed * 7 + number) % 500 for number in range(300)]
                mapping.set_many((key, made[key]) for key in keys)
                found = mapping.get_many(keys)
                wrong.extend(key for key, value in found.items() if value != made[key])
                mapping.delete_many(keys[:50])
        except BaseException as error:  # noqa: BLE001 - told by the test
            wrong.append(error)

    with (
        Engine("zstd", level=1, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, max_bytes=60_000, on_full="evict") as mapping,
    ):
        assert engine.wait_ready()
        mapping._records.divider.generous = True
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert engine.statistics.compress.divided > 0
        mapping.check_invariants()
        store.check_invariants()


@pytest.mark.slow
def test_interrupted_batches_leave_values_whole() -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def shoot() -> None:
        for _ in range(40):
            ready.wait()
            ready.clear()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    made = {number: text(number, 300 + number % 700) for number in range(1000)}
    ready = threading.Event()
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with (
            Engine("zstd", level=1, backend="threads", workers=2) as engine,
            SwapStore(engine) as store,
            CompressedMapping(store) as mapping,
            ThreadPoolExecutor(1) as pool,
        ):
            assert engine.wait_ready()
            mapping._records.divider.generous = True
            shooting = pool.submit(shoot)
            for _ in range(40):
                with contextlib.suppress(Stop):
                    ready.set()
                    while True:
                        mapping.set_many(made)
                        assert mapping.get_many(made) == made
            shooting.result()
            mapping.check_invariants()
            mapping.set_many(made)
            assert dict(mapping) == made
            assert all(ring.is_unused for ring in engine.backend.rings)
            store.check_invariants()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_batch_goes_on_where_its_engine_or_mapping_is_closed() -> None:
    made = {number: text(number, 1500) for number in range(3000)}
    with (
        Engine("zstd", level=1, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
        ThreadPoolExecutor(1) as pool,
    ):
        assert engine.wait_ready()
        mapping._records.divider.generous = True

        def items() -> Iterator[tuple[int, bytes]]:
            for key, value in made.items():
                if key == 1500:
                    engine.close()
                yield key, value

        mapping.set_many(items())
        assert mapping.get_many(made) == made
        closing = pool.submit(mapping.close)
        with contextlib.suppress(ClosedError):
            while True:
                mapping.set_many(made)
        closing.result()
        store.check_invariants()


def test_threads_that_put_get_and_forget_meet_whole_values(zstd: SwapStore) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for turn in range(300):
                key = (turn * 7 + seed) % 97
                mapping[key] = text(key, 300 + key)
                found = mapping.get_many([key, (key + 1) % 97, (key + 2) % 97])
                wrong.extend(
                    each for each, value in found.items() if value != text(each, 300 + each)
                )
                mapping.pop((key + 3) % 97, None)
        except BaseException as error:  # noqa: BLE001 - told by the test
            wrong.append(error)

    with CompressedMapping(zstd, max_bytes=8000, on_full="evict") as mapping:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        mapping.check_invariants()
