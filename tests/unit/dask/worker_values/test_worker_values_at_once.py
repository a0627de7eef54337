"""Threads spill, restore, change and delete values of WorkerData at once, and get right values."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from distributed import Worker
from hypothesis import given, settings
from hypothesis import strategies as st
from support.worker_values import counts, kept, noise, text

from batchzip.dask import WorkerData
from batchzip.dask.compressed_values import CompressedValues, NoRoom
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Pickled:
    """A value that does some work as it is pickled."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def __reduce__(self) -> tuple[type, tuple[int]]:
        self.work()
        return int, (7,)


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("again", [True, False], ids=["set again", "deleted"])
def test_a_value_that_is_deleted_while_it_is_compressed_stays_so(
    data: WorkerData, monkeypatch: pytest.MonkeyPatch, early: bool, again: bool
) -> None:
    store = CompressedValues.__setitem__

    def delete() -> None:
        if again:
            data["a"] = 2
        del data["a"]

    def store_and_delete(values: CompressedValues, key: str, value: object) -> None:
        if early:
            delete()
        store(values, key, value)
        if not early:
            delete()
        assert "a" not in data
        assert list(data) == ["b"]
        assert len(data) == 1
        with pytest.raises(KeyError):
            data["a"]

    data["a"], data["b"] = 1, 2
    monkeypatch.setattr(CompressedValues, "__setitem__", store_and_delete)
    data.fast.evict("a")
    assert "a" not in data
    assert dict(data) == {"b": 2}
    assert data.spilled_total == (0, 0)


@pytest.mark.slow
def test_values_are_counted_while_an_eviction_ends(data: WorkerData) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        may_end.wait(60)
        raise MemoryError

    def evict() -> None:
        with pytest.raises(NoRoom):
            data.fast.evict(key)

    class Part:
        """A part of a key; as the values are counted, the eviction ends, unless it has to wait."""

        def __hash__(self) -> int:
            if threading.current_thread() is threading.main_thread() and begun.is_set():
                may_end.set()
                evicting.join(0.1)
            return 1

    key = "a", Part()
    data[key] = _Pickled(fail)
    evicting = threading.Thread(target=evict)
    evicting.start()
    begun.wait(60)
    assert len(data) == 1
    evicting.join()
    assert not data.fast.leaving


def test_workers_may_be_made_while_one_finds_its_own(
    data: WorkerData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changing(list[object]):
        """Workers, of which another thread makes one."""

        changes = iter([True, True, False])

        def __iter__(self) -> Iterator[object]:
            if next(self.changes):
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    monkeypatch.setattr(Worker, "_instances", Changing())
    data["a"] = 1
    assert data["a"] == 1


def test_threads_may_spill_and_restore_noise_at_the_same_time(data: WorkerData) -> None:
    def work(number: int) -> None:
        for seed in range(20):
            key = number, seed % 3
            data[key] = noise(seed, 200_000)
            data.evict()
            np.testing.assert_array_equal(data[key], noise(seed, 200_000))
            if seed % 4 == 0:
                del data[key]

    in_threads(3, work)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "delete", "evict", "change", "pool"]),
        st.integers(0, 4),
        st.sampled_from([noise, counts, text]),
        st.sampled_from([100, 70_000, 300_000]),
    ),
    max_size=40,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(_STEPS)
def test_values_are_what_was_put_in_or_made_of_them_since(
    steps: list[tuple[str, int, Callable[[int, int], np.ndarray], int]],
) -> None:
    """Nothing is left, whether a value is live, compressed, on disk or kept in an older state."""
    model: dict[int, np.ndarray] = {}
    with WorkerData("/tmp", memory_limit=1_000_000) as data:
        for number, (what, key, make, size) in enumerate(steps):
            if what == "put":
                data[key] = make(number, size)
                model[key] = make(number, size)
            elif what == "evict":
                data.evict()
            elif what == "pool":
                data._values.max_pool_bytes = size
            elif key in model:
                if what == "delete":
                    del data[key], model[key]
                    continue
                value = data[key]
                assert isinstance(value, np.ndarray)
                np.testing.assert_array_equal(value, model[key])
                if what == "change" and key in data.fast:
                    value[:1] += 1  # a slice wraps around without a warning, a scalar warns
                    model[key][:1] += 1
                del value
        assert len(data) == len(model)
        for key, expected in model.items():
            np.testing.assert_array_equal(data[key], expected)
            del data[key]
        assert kept(data) == 0
