"""WorkerData: a Dask worker's data, live, compressed or on disk, and always what was put in."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, wait
from distributed.spill import SpilledSize
from distributed.system import MEMORY_LIMIT
from distributed.utils import RateLimiterFilter
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cluster.process import offload_thread

from batchzip import BadArgument, ClosedError
from batchzip.dask import WorkerData
from batchzip.testing import LeakCheck
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def offloading() -> Iterator[None]:
    with offload_thread():
        yield


@pytest.fixture(autouse=True)
def everything_is_logged() -> None:
    RateLimiterFilter.reset_timer("batchzip.dask")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[WorkerData]:
    """Room for 1 MiB of live values, and for 1 MiB of compressed ones."""
    data = WorkerData(str(tmp_path), memory_limit=4 * MIB, live=0.25, compressed=0.25)
    yield data
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    data.close()
    data.close()


def an_array(seed: int, size: int = 256 << 10) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, size // 8)


def some_noise(seed: int, size: int = 256 << 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def test_the_coldest_values_are_compressed_and_come_back_equal(data: WorkerData) -> None:
    for number in range(12):
        data["chunk", number] = an_array(number)
    assert list(data.fast) == [("chunk", number) for number in (8, 9, 10, 11)]
    assert len(data) == 12
    assert data.counters.backing_file_size == 0
    assert 0 < data.counters.pool_total_size <= MIB
    whole, disk = data.spilled_total
    assert disk == 0
    assert whole >= 8 * (256 << 10)
    for number in range(12):
        np.testing.assert_array_equal(data["chunk", number], an_array(number))
    assert set(data) == {("chunk", number) for number in range(12)}
    for number in range(12):
        del data["chunk", number]
    assert len(data) == 0
    assert data.spilled_total == (0, 0)
    assert ("chunk", 1) not in data
    with pytest.raises(KeyError):
        data["chunk", 1]


def test_a_value_that_replaces_a_compressed_one_counts_alone(data: WorkerData) -> None:
    for size in (300_000, 200_000):
        data["key"] = np.zeros(size, np.uint8)
        assert data.evict() >= size
        assert 0 <= data.spilled_total.memory - size < 1000, "the array with its head"
    del data["key"]
    assert data.spilled_total.memory == 0


def test_what_does_not_fit_compressed_goes_to_disk_and_comes_back(data: WorkerData) -> None:
    for number in range(20):
        data[str(number)] = some_noise(number)
    assert data.counters.pool_total_size <= MIB
    assert data.spilled_total.disk > 2 * MIB
    for number in reversed(range(20)):
        np.testing.assert_array_equal(data[str(number)], some_noise(number))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        "text",
        [1, {"a": np.arange(3), "b": (b"x" * 100_000, 2.5)}],
        np.asfortranarray(an_array(1).reshape(-1, 8)),
        an_array(2)[::3],
        np.zeros((0, 4)),
        np.array(["x", None], object),
        np.float32(2.5),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("key", ["key", ("key", 1, ("x", 2)), 7, 2.5], ids=repr)
def test_any_value_of_any_key_that_dask_has_comes_back(
    data: WorkerData, key: Any, value: object
) -> None:
    data[key] = value
    assert data.evict() >= 0
    assert not data.fast
    restored = data[key]
    assert type(restored) is type(value)
    np.testing.assert_equal(restored, value)
    if isinstance(value, np.ndarray) and isinstance(restored, np.ndarray):
        assert restored.dtype == value.dtype
        assert restored.flags.writeable


def test_what_only_cloudpickle_pickles_is_taken_too(data: WorkerData) -> None:
    data["f"] = lambda number: number + 1
    assert data.evict() >= 0
    restored: Any = data["f"]
    assert restored(1) == 2


def test_a_value_that_is_in_use_is_not_made_a_second_time(data: WorkerData) -> None:
    used = data["a"] = an_array(1)
    data.evict()
    assert data["a"] is used


def test_what_cannot_be_serialised_stays_live_and_is_said_once(
    data: WorkerData, caplog: pytest.LogCaptureFixture
) -> None:
    value = data["lock"] = threading.Lock()
    with caplog.at_level(logging.WARNING, "batchzip.dask"):
        assert data.evict() == -1
        assert data.evict() == -1
    assert data["lock"] is value
    (record,) = [record for record in caplog.records if record.name == "batchzip.dask"]
    assert record.getMessage() == (
        "Failed to pickle 'lock', of lock, which is kept in memory as it is, as others like it are: "
        "TypeError: cannot pickle '_thread.lock' object"
    )
    del data["lock"]
    assert data.evict() == -1  # there is nothing


def test_a_value_larger_than_what_may_be_live_is_compressed_at_once(data: WorkerData) -> None:
    large = data["large"] = an_array(0, 3 * MIB)
    assert not data.fast
    np.testing.assert_array_equal(data["large"], large)


def test_where_there_is_no_room_anywhere_values_stay_live(tmp_path: Path) -> None:
    data = WorkerData(
        str(tmp_path), memory_limit=MIB, live=0.25, compressed=0.25, max_disk_bytes=MIB
    )
    values = {str(number): some_noise(number) for number in range(20)}
    for key, value in values.items():
        data[key] = value
    assert sum(value.nbytes for value in data.fast.values()) > MIB
    assert len(data) == 20
    for key, value in values.items():
        np.testing.assert_array_equal(data[key], value)
    assert data.evict() == -1
    data.close()


def test_a_value_that_finds_no_room_leaves_it_to_smaller_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = WorkerData(tmp_path, memory_limit=MIB, live=0.25, compressed=0.0, max_disk_bytes=MIB)
    data["small"] = some_noise(0, 200_000)
    with caplog.at_level(logging.WARNING, "batchzip.dask"):
        large = data["large"] = some_noise(1, 2 * MIB)
    assert list(data.memory) == ["large"]
    assert list(data.disk) == ["small"]
    np.testing.assert_array_equal(data["large"], large)
    np.testing.assert_array_equal(data["small"], some_noise(0, 200_000))
    (line,) = caplog.messages
    assert line.startswith(
        "There is no room to compress 'large': batchzip.errors.StoreRejected: the "
    )
    data.close()


def test_a_large_value_is_given_where_others_find_no_room(tmp_path: Path) -> None:
    data = WorkerData(
        tmp_path, memory_limit=4 * MIB, live=0.25, compressed=0.0, max_disk_bytes=2 * MIB
    )
    data["large"] = some_noise(0, 3 * MIB // 2)
    for number in range(8):
        data[str(number)] = some_noise(number)
    assert next(iter(data.disk)) == "large"
    assert data.fast.total_weight > data.n
    np.testing.assert_array_equal(data["large"], some_noise(0, 3 * MIB // 2))
    data.close()


def test_where_the_directory_is_gone_values_stay_live(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "worker"
    folder.mkdir()
    data = WorkerData(folder, memory_limit=MIB)
    folder.rmdir()
    value = data["a"] = some_noise(0, MIB)
    assert data["a"] is value
    assert not list(tmp_path.iterdir()), "no file in its place"
    assert "'a': NotADirectoryError" in caplog.text
    folder.mkdir()
    assert data.evict() >= MIB, "it is tried again"
    np.testing.assert_array_equal(data["a"], some_noise(0, MIB))
    data.close()


class OwnError(Exception):
    """What a value's own code raises."""


class Unspeakable(Exception):
    """An error that raises again when it is shown."""

    def __str__(self) -> str:
        raise OwnError


class Unshowable:
    """What raises where it is shown."""

    def __repr__(self) -> str:
        raise OwnError


def _caused(error: BaseException) -> BaseException:
    error.__cause__ = OwnError("first")
    return error


class Unpicklable:
    """A value whose pickling raises, as long as there is an error for it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        if self.error is not None:
            raise self.error
        return int, (7,)

    def __sizeof__(self) -> int:
        return 100_000


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OwnError("on purpose"), "test_worker_data.OwnError: on purpose"),
        (KeyError("a"), "KeyError: 'a'"),
        (TypeError("Could not"), "TypeError: Could not"),
        (NotImplementedError("so"), "Could not serialize object of type Unpicklable"),
        (Unspeakable(), "test_worker_data.Unspeakable: <exception str() failed>"),
        (_caused(TypeError(Unshowable())), "TypeError: <exception str() failed>"),
        (SystemExit(1), "SystemExit: 1"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_pickled_keeps_no_other_value_live(
    data: WorkerData, caplog: pytest.LogCaptureFixture, error: BaseException, said: str
) -> None:
    bad = {f"bad {number}": Unpicklable(error) for number in range(3)}
    data.update(bad)
    with caplog.at_level(logging.WARNING, "batchzip.dask"):
        for number in range(12):
            data["chunk", number] = an_array(number)
        assert data.fast.total_weight <= data.n, "others make room"
        while data.evict() > 0:
            pass
    assert dict(data.fast) == bad, "and all of them can"
    for number in range(12):
        np.testing.assert_array_equal(data["chunk", number], an_array(number))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "batchzip.dask"]
    assert line.startswith("Failed to pickle 'bad 0', of Unpicklable, which is kept in memory")
    assert said in line
    assert "batchzip" not in line
    assert all(data[key] is value for key, value in bad.items())
    data["bad 0"] = 1
    assert data.evict() > 0, "a new value of that key can be"
    del data["bad 1"], data["bad 2"]


def test_a_value_that_finds_no_memory_is_tried_again(data: WorkerData) -> None:
    value = data["a"] = Unpicklable(MemoryError())
    assert data.evict() == -1
    value.error = None
    assert data.evict() > 0
    assert list(data.disk) == ["a"]


class SaysNoSize:
    """A value whose size cannot be told."""

    def __sizeof__(self) -> int:
        raise OwnError


class SaysToEnd:
    """A value that ends its thread where it is asked for its size."""

    def __sizeof__(self) -> int:
        raise SystemExit


class SaysOdd:
    """A value whose size, as its library says, is `size`."""

    def __init__(self, size: object) -> None:
        self.size = size


sizeof.register(SaysOdd, lambda value: value.size)


@pytest.mark.parametrize(
    "value",
    [
        SaysNoSize(),
        SaysToEnd(),
        *map(SaysOdd, (float("nan"), float("inf"), -5, None, "many", np.int8(100), 1.5)),
    ],
    ids=lambda value: repr(getattr(value, "size", "none")),
)
def test_a_value_of_an_odd_size_harms_no_other(data: WorkerData, value: object) -> None:
    data["odd"] = value
    assert data["odd"] is value
    for number in range(12):
        data["chunk", number] = an_array(number)
    assert 0 < data.fast.total_weight <= data.n
    while data.evict() >= 0 and data.fast:
        pass
    assert data.spilled_total.memory >= 12 * (256 << 10)
    assert type(data["odd"]) is type(value)
    for number in range(12):
        np.testing.assert_array_equal(data["chunk", number], an_array(number))
        del data["chunk", number]
    del data["odd"]
    assert data.spilled_total.memory == data.fast.total_weight == len(data) == 0


class Unrestorable:
    """A value that pickles, and raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise OwnError("not again")


def test_a_value_that_cannot_be_restored_harms_no_other(data: WorkerData) -> None:
    data["bad"] = Unrestorable()
    data["good"] = an_array(1)
    while data.evict() > 0:
        pass
    for _ in range(2):
        with pytest.raises(OwnError, match="not again") as raised:
            data["bad"]
        assert raised.value.__notes__ == ["it was raised as the value of key 'bad' was restored"]
    np.testing.assert_array_equal(data["good"], an_array(1))
    assert list(data) == ["good", "bad"]
    del data["bad"]
    assert "bad" not in data
    assert data.spilled_total.memory == 0


class Busy:
    """A value that does something with the data while it is pickled."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def __reduce__(self) -> Any:
        self.work()
        return int, (7,)

    def __sizeof__(self) -> int:
        return 600_000


@pytest.mark.parametrize(
    ("work", "left"),
    [
        (lambda data: data.__setitem__("new", some_noise(1, MIB // 2)), {"busy", "new", "other"}),
        (lambda data: data.__setitem__("busy", some_noise(1, MIB // 2)), {"busy", "other"}),
        (lambda data: data.__setitem__("busy", Busy(lambda: None)), {"busy", "other"}),
        (lambda data: data.__delitem__("busy"), {"other"}),
        (lambda data: data.evict(), {"busy", "other"}),
        (lambda data: data["busy"], {"busy", "other"}),
        (lambda data: data.close(), set()),
    ],
    ids=["new", "itself", "alike", "deletes", "evicts", "reads", "closes"],
)
def test_a_value_may_use_the_data_while_it_is_pickled(
    data: WorkerData, work: Callable[[WorkerData], object], left: set[str]
) -> None:
    data["busy"] = Busy(lambda: work(data))
    try:
        data["other"] = some_noise(2, MIB // 2)
    except ClosedError:
        assert not left
    data.evict()
    assert set(data) == left
    assert len(data) == len(left)


class Met:
    """A value that two threads restore at the same time."""

    meeting: threading.Barrier | None = None

    def __reduce__(self) -> Any:
        return _meet, ()


def _meet() -> list[int]:
    if Met.meeting is not None:
        Met.meeting.wait(60)
    return [1, 2, 3]


@pytest.mark.parametrize("live", [0.0, 0.25], ids=["stays compressed", "becomes live"])
def test_threads_may_restore_the_same_value_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: float
) -> None:
    with WorkerData(tmp_path, memory_limit=MIB, live=live) as data:
        data["met"] = Met()
        data.evict()
        monkeypatch.setattr(Met, "meeting", threading.Barrier(2))
        found: list[object] = []
        in_threads(2, lambda _: found.append(data["met"]))
        assert found == [[1, 2, 3]] * 2
        monkeypatch.setattr(Met, "meeting", None)
        assert list(data) == ["met"]
        assert len(data) == 1
        assert data["met"] == [1, 2, 3]
        del data["met"]
        assert len(data) == data.fast.total_weight == 0


def test_it_counts_what_dask_counts(data: WorkerData) -> None:
    data["a"] = b"a" * 200_000
    data["b"] = b"b" * 300_000
    assert data.cumulative_metrics == {}
    assert data["a"]
    data.evict()
    data.evict()
    assert data["b"]
    counted = {at: value for at, value in data.cumulative_metrics.items() if at[1] != "seconds"}
    assert counted == {
        ("memory-read", "count"): 1,
        ("memory-read", "bytes"): 200_000,
        ("disk-write", "count"): 2,
        ("disk-write", "bytes"): 500_000,
        ("disk-read", "count"): 1,
        ("disk-read", "bytes"): 300_000,
    }
    seconds = {at for at in data.cumulative_metrics if at[1] == "seconds"}
    assert {activity for activity, _ in seconds} == {
        "serialize",
        "compress",
        "decompress",
        "deserialize",
    }
    assert all(data.cumulative_metrics[at] > 0 for at in seconds)
    assert repr(data) == "<WorkerData of 2 values, 1 of them live>"
    with pytest.raises(TypeError, match="this WorkerData holds what only its process has"):
        pickle.dumps(data)
    assert data.memory is data.fast
    assert data.disk is data.slow
    assert list(data.disk) == ["a"]
    assert type(data.spilled_total) is SpilledSize


def test_nothing_is_held_before_a_value_is_compressed_nor_after_the_end(tmp_path: Path) -> None:
    check = LeakCheck(grace_s=0.0)
    with check:
        data = WorkerData(tmp_path, memory_limit=MIB)
        data["a"] = some_noise(1, 1000)
        assert data.counters.stored_values == 0
        assert check.leftovers() == []
        data.evict()
        assert data.counters.stored_values > 0
        assert check.leftovers() != []
        data["b"] = 1
        data.close()
        data.close()
    assert len(data) == len(data.disk) == len(data.memory) == 0
    assert "a" not in data
    assert data.evict() == -1
    assert data.spilled_total == (0, 0)
    with pytest.raises(ClosedError, match="this worker's data is closed"):
        data["a"]
    with pytest.raises(ClosedError, match="this worker's data is closed"):
        data["a"] = 1


def test_one_that_is_dropped_without_a_close_leaves_nothing(tmp_path: Path) -> None:
    data = WorkerData(str(tmp_path), memory_limit=MIB)
    for number in range(20):
        data[str(number)] = some_noise(number)
    del data
    gc.collect()  # and LeakCheck finds no thread, descriptor or segment


GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "memory"),
    [
        ("auto", MEMORY_LIMIT),
        (GIB, GIB),
        ("1GiB", GIB),
        ("1e9", 10**9),
        (np.int32(GIB), GIB),
        (np.uint8(200), 200),
        (1e9, 10**9),
        (0.5, MEMORY_LIMIT // 2),
        ("0.5", MEMORY_LIMIT // 2),
        (10**30, MEMORY_LIMIT),
        (None, None),
        (0, None),
    ],
    ids=str,
)
def test_a_limit_is_taken_as_dask_takes_it(tmp_path: Path, limit: Any, memory: int | None) -> None:
    with WorkerData(tmp_path, memory_limit=limit, live=0.5) as data:
        data["a"] = 1
        assert data.n == (sys.maxsize if memory is None else memory // 2)


@pytest.mark.parametrize(
    ("settings", "options", "live", "pool", "disk"),
    [
        ({}, {}, 600_000, 300_000, None),
        ({"target": 0.5}, {}, 500_000, 250_000, None),
        ({"target": 0.5}, {"live": 0.4}, 400_000, 250_000, None),
        ({"target": 0.5}, {"compressed": 0.0}, 500_000, 0, None),
        ({"target": 1e308}, {"compressed": 0.5}, sys.maxsize, 500_000, None),
        ({"target": False}, {}, sys.maxsize, 350_000, None),
        ({"target": False, "spill": 0.9}, {}, sys.maxsize, 450_000, None),
        ({"target": False, "spill": False}, {}, sys.maxsize, None, None),
        ({"target": 0, "spill": 0}, {"live": 0.1}, 100_000, None, None),
        ({"max-spill": 5_000_000}, {}, 600_000, 300_000, 5_000_000),
        ({"max-spill": "5 MB"}, {}, 600_000, 300_000, 5_000_000),
        ({"max-spill": "5 MB"}, {"max_disk_bytes": 7}, 600_000, 300_000, 7),
        ({"max-spill": False}, {"max_disk_bytes": 7}, 600_000, 300_000, 7),
    ],
    ids=str,
)
def test_dasks_own_settings_count(
    tmp_path: Path,
    settings: dict[str, object],
    options: dict[str, Any],
    live: int,
    pool: int | None,
    disk: int | None,
) -> None:
    set_here = {f"distributed.worker.memory.{name}": value for name, value in settings.items()}
    with dask.config.set(set_here):
        data = WorkerData(tmp_path, memory_limit=10**6, **options)
    with data:
        data["a"] = 1
        data.evict()
        assert data.n == live
        store = data._values.store
        assert store is not None
        assert store.max_pool_bytes == pool
        assert store._resources.backing is not None
        assert store._resources.backing.max_bytes == disk


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("target", "much", "memory.target must be a number above 0, not 'much'"),
        ("spill", True, "memory.spill must be a number above 0, not True"),
        ("spill", float("nan"), "memory.spill must be a number above 0, not nan"),
        ("target", -0.5, "memory.target must be a number above 0, not -0.5"),
        ("target", 10**400, "memory.target is a fraction of memory, or False, not 1000"),
        ("spill", float("inf"), "memory.spill is a fraction of memory, or False, not inf"),
        ("max-spill", "much", "memory.max-spill is False, bytes or a text as '4 GiB', not 'much'"),
        ("max-spill", -1, "memory.max-spill is False, bytes or a text as .4 GiB., not -1"),
        ("max-spill", float("inf"), "memory.max-spill is False, bytes"),
    ],
    ids=str,
)
def test_a_setting_of_dasks_that_cannot_be_right_is_named(
    tmp_path: Path, name: str, value: object, what: str
) -> None:
    with (
        dask.config.set({f"distributed.worker.memory.{name}": value}),
        pytest.raises(BadArgument, match=f"Dask's setting distributed.worker.{what}"),
    ):
        WorkerData(tmp_path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        *(
            ({"memory_limit": limit}, "memory_limit is 'auto', None, bytes")
            for limit in ("many", "-1 GiB", -1, 10**400, float("nan"), float("inf"), True, np.True_)
        ),
        ({"memory_limit": MIB, "live": float("nan")}, "live must be a fraction"),
        ({"memory_limit": MIB, "max_disk_bytes": -1}, "max_disk_bytes is a number of bytes"),
        ({"worker_local_directory": "/nonexistent"}, "worker_local_directory is a directory"),
        ({"worker_local_directory": None}, "worker_local_directory is a directory"),
        ({"memory_limit": MIB, "live": 1.5}, "live must be a fraction"),
        ({"memory_limit": MIB, "compressed": -1}, "compressed must be a fraction"),
        ({"memory_limit": MIB, "engine": {"level": 99, "algorithm": "zstd"}}, "zstd level"),
        ({"memory_limit": MIB, "engine": 5}, "engine is a Mapping, not int"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(BadArgument, match=what):
        WorkerData(**{"worker_local_directory": str(tmp_path), **options})


_KEYS = st.sampled_from(["a", "b", ("c", 1), ("c", 2), 5])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _KEYS, st.integers(0, 300_000)),
        st.tuples(st.sampled_from(["get", "delete"]), _KEYS, st.just(0)),
        st.tuples(st.just("evict"), st.just("a"), st.just(0)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(_STEPS)
def test_it_is_a_dictionary_whatever_is_live_compressed_or_on_disk(
    steps: list[tuple[str, Any, int]],
) -> None:
    data = WorkerData("/tmp", memory_limit=600_000)
    model: dict[Any, bytes] = {}
    for number, (what, key, size) in enumerate(steps):
        if what == "put":
            model[key] = np.random.default_rng(number).bytes(size)
            data[key] = model[key]
        elif what == "evict":
            data.evict()
        elif key not in model:
            with pytest.raises(KeyError):
                data.__getitem__(key) if what == "get" else data.__delitem__(key)
        elif what == "get":
            assert data[key] == model[key]
        else:
            del data[key], model[key]
        assert len(data) == len(model)
        assert set(data) == set(model)
    assert dict(data.items()) == model
    data.close()


@pytest.mark.slow
def test_a_worker_has_its_data_there_and_another_one_after_its_death() -> None:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # None would be a port of everybody's
            protocol="tcp",
            host="127.0.0.1",
            data=(WorkerData, {"memory_limit": 8 * MIB}),
        ) as cluster,
        Client(cluster) as client,
    ):
        chunks = client.map(some_noise, range(40))
        wait(chunks)
        (live,) = client.run(lambda dask_worker: len(dask_worker.data.fast)).values()
        (disk,) = client.run(lambda dask_worker: dask_worker.data.spilled_total.disk).values()
        assert 0 < live < 20
        assert disk > MIB
        sums = client.gather(client.map(np.sum, chunks))
        assert sums == [some_noise(number).sum() for number in range(40)]
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        assert client.gather(client.map(np.sum, chunks, pure=False)) == sums, "made anew"
        assert list(client.run(os.getpid).values()) != [pid]
