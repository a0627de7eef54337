"""How WorkerData keeps values that are not live: what shrinks, and what has not changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.worker_values import MIB, counts, files_of, kept, noise, text

from batchzip import CorruptValue
from batchzip.dask import WorkerData
from batchzip.dask.compressed_values import _digest
from batchzip.dask.raw_files import _move

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from batchzip.arguments.buffers import Flat


def written(data: WorkerData) -> float:
    return data.cumulative_metrics["disk-write", "count"]


def test_each_buffer_is_compressed_as_what_makes_it_smallest(data: WorkerData) -> None:
    value = {
        "counts": counts(1),
        "floats": np.cumsum(np.random.default_rng(2).normal(size=MIB // 4)).astype("f4"),
        "text": text(3),
        "noise": noise(4),
        "few": np.arange(10),
    }
    data["a"] = value
    assert data.evict() > 4 * MIB
    assert data.counters.pool_total_size < 1.5 * MIB, "0.11, 0.66 and 0.25 of a MiB, and some pages"
    whole, disk = data.spilled_total
    assert MIB <= disk < 1.01 * MIB, "noise gains nothing in memory"
    assert whole > 4 * MIB
    restored = data["a"]
    assert isinstance(restored, dict)
    for name, array in value.items():
        np.testing.assert_array_equal(restored[name], array)
        assert restored[name].dtype == array.dtype
        assert restored[name].flags.writeable
    data.evict()
    del data["a"]
    assert data.spilled_total == (0, 0)


@pytest.mark.parametrize("make", [counts, noise])
def test_a_value_that_was_not_changed_is_compressed_once(data: WorkerData, make: object) -> None:
    assert callable(make)
    data["a"] = make(1)
    for _ in range(3):
        assert data.evict() > 0
        assert not data.fast
        np.testing.assert_array_equal(data["a"], make(1))
        assert list(data.fast) == ["a"]
        assert data.spilled_total.memory == 0
        assert len(data) == 1
    assert written(data) == 1
    assert data["a"] is data.fast["a"]
    value = data.fast["a"]
    assert isinstance(value, np.ndarray)
    value[1000] ^= 1
    changed = value.copy()
    del value
    data.evict()
    assert written(data) == 2
    np.testing.assert_array_equal(data["a"], changed)


@pytest.mark.parametrize("make", [counts, noise])
def test_a_value_that_changes_while_it_is_stored_is_not_taken_for_unchanged(
    data: WorkerData,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[int], np.ndarray],
) -> None:
    value: Any = make(1)
    data["a"] = value
    changes, changing = iter([7]), [value]

    def digest(head: bytes, buffers: Sequence[Flat]) -> bytes:
        found = _digest(head, buffers)
        for one in changing:
            one[5] += next(changes, 0)
        return found

    monkeypatch.setattr("batchzip.dask.compressed_values._digest", digest)
    data.fast.evict("a")
    assert data["a"] is changing[0]
    value[5] -= 7  # what it was as its eviction began
    data.fast.evict("a")
    changing.clear()
    del value
    np.testing.assert_array_equal(data["a"], make(1))


def test_a_value_that_changes_while_it_is_written_is_no_damage(
    data: WorkerData, monkeypatch: pytest.MonkeyPatch
) -> None:
    value: Any = noise(1)
    data["a"] = value
    changes, changing = iter([7]), [value]

    def move(*rest: Any) -> None:
        for one in changing:
            one[5] += next(changes, 0)
        _move(*rest)

    monkeypatch.setattr("batchzip.dask.raw_files._move", move)
    data.fast.evict("a")
    changed = value.copy()
    changing.clear()
    del value
    monkeypatch.undo()
    np.testing.assert_array_equal(data["a"], changed)


@pytest.mark.parametrize("make", [counts, noise])
def test_kept_copies_go_with_their_value(data: WorkerData, make: object) -> None:
    assert callable(make)
    data["a"] = make(1)
    data.evict()
    np.testing.assert_array_equal(data["a"], make(1))
    assert kept(data) > 0
    data["a"] = 1
    assert kept(data) == 0
    data["b"] = make(2)
    data.evict()
    data.evict()
    assert len(data["b"])  # type: ignore[arg-type]
    del data["a"], data["b"]
    assert kept(data) == 0


@pytest.mark.slow
def test_kept_copies_make_room_before_anything_goes_to_disk(data: WorkerData) -> None:
    size = 3 * MIB
    for number in range(4):
        data[number] = text(number, size)
    while data.evict() > 0:
        pass
    for number in range(4):
        np.testing.assert_array_equal(data[number], text(number, size))
    assert list(data.fast) == [0, 1, 2, 3]
    had = kept(data)
    assert had > 3 * MIB, "of values that are all live"
    for number in range(4, 10):
        data[number] = text(number, size)
        data.fast.evict(number)
    assert data.spilled_total.disk == 0
    assert kept(data) < 10 * had / 4
    for number in range(10):
        np.testing.assert_array_equal(data[number], text(number, size))


def test_a_value_that_is_larger_than_its_room_leaves_nothing(tmp_path: Path) -> None:
    with WorkerData(tmp_path, memory_limit=MIB, live=1.0, max_disk_bytes=2 * MIB) as data:
        data["a"] = [counts(1), text(2), noise(3, 3 * MIB)]
        assert data.evict() == -1
        assert kept(data) == 0
        assert list(data.fast) == ["a"]


def test_a_damaged_file_is_noticed(data: WorkerData, tmp_path: Path) -> None:
    data["a"], data["b"] = noise(1), noise(2)
    data.evict()
    data.evict()
    for fd in files_of(tmp_path):
        if os.fstat(fd).st_size:
            os.pwrite(fd, bytes([os.pread(fd, 1, 500)[0] ^ 1]), 500)
    damaged, other = ("a", 2) if "a" in str(_error(data, "a")) else ("b", 1)
    assert isinstance(_error(data, damaged), CorruptValue)
    np.testing.assert_array_equal(data["b" if damaged == "a" else "a"], noise(other))


def _error(data: WorkerData, key: str) -> Exception | None:
    try:
        data[key]
    except CorruptValue as error:
        return error
    return None


def test_small_values_are_kept_where_there_is_no_pool(tmp_path: Path) -> None:
    with WorkerData(tmp_path, memory_limit=MIB, compressed=0.0) as data:
        data["a"] = b"small" * 100
        assert data.evict() > 0
        assert data.counters.pool_total_size == 0
        assert data["a"] == b"small" * 100


def test_values_that_are_in_use_are_not_the_first_to_go(data: WorkerData) -> None:
    used = data["used"] = counts(1)
    data["other"] = counts(2)
    data.evict()
    assert list(data.fast) == ["used"]
    data.evict()
    assert not data.fast
    assert data["used"] is used


class _Array(np.ndarray):
    """An array with an attribute."""

    name = ""

    def __reduce__(self) -> Any:
        return _named, (np.asarray(self), self.name)


def _named(values: np.ndarray, name: str) -> _Array:
    array = values.view(_Array)
    array.name = name
    return array


class _Bytes(bytes):
    """Bytes of a kind of their own."""


class _Bytearray(bytearray):
    """The same, writable."""


@pytest.mark.parametrize(
    "value",
    [
        _named(np.arange(1000.0), "x"),
        np.zeros(3, "i4,f8").view(np.recarray),
        np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
        np.ma.masked_array([1, 2, 3], mask=[False, True, False], hard_mask=True),
        np.ma.masked_array([1, 2, 3], mask=[False, True, False]),
        _Bytes(b"some"),
        _Bytearray(b"some"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a list"])
def test_values_come_back_as_what_they_were(data: WorkerData, value: Any, inside: bool) -> None:
    data["a"] = [value, np.zeros(3)] if inside else value
    data.evict()
    data._values.forget("a")
    slow: Any = data.slow
    slow.cache.clear()  # of values that are still in use
    found: Any = data["a"]
    found = found[0] if inside else found
    assert found is not value
    assert type(found) is type(value)
    assert np.all(found == value)
    for name in ("name", "hardmask", "mask"):
        assert str(getattr(found, name, None)) == str(getattr(value, name, None))
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        assert found.dtype.metadata == value.dtype.metadata
