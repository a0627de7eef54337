"""WorkerData: a Dask worker's data, live, compressed or on disk, and always what was put in."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Client, LocalCluster, wait
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cluster.fixtures import offloading  # noqa: F401 - used by every test
from support.worker_values import MIB, an_array, some_noise

from batchzip.dask import WorkerData

if TYPE_CHECKING:
    from pathlib import Path


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


def test_values_beyond_the_pool_go_to_disk_and_come_back(data: WorkerData) -> None:
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


def test_values_that_only_cloudpickle_pickles_are_taken_too(data: WorkerData) -> None:
    data["f"] = lambda number: number + 1
    assert data.evict() >= 0
    restored: Any = data["f"]
    assert restored(1) == 2


def test_a_value_that_is_in_use_is_not_made_a_second_time(data: WorkerData) -> None:
    used = data["a"] = an_array(1)
    data.evict()
    assert data["a"] is used


def test_an_unpicklable_value_stays_live_and_is_logged_once(
    data: WorkerData, caplog: pytest.LogCaptureFixture
) -> None:
    value = data["lock"] = threading.Lock()
    with caplog.at_level(logging.WARNING, "batchzip.dask"):
        assert data.evict() == -1
        assert data.evict() == -1
    assert data["lock"] is value
    (record,) = [record for record in caplog.records if record.name == "batchzip.dask"]
    assert record.getMessage() == (
        "Failed to pickle 'lock', of type lock. It and others like it stay in memory: "
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


_KEYS = st.sampled_from(["a", "b", ("c", 1), ("c", 2), 5])

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _KEYS, st.integers(0, 300_000)),
        st.tuples(st.sampled_from(["get", "delete"]), _KEYS, st.just(0)),
        st.tuples(st.just("evict"), st.just("a"), st.just(0)),
    ),
    max_size=30,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(_STEPS)
def test_worker_data_acts_as_a_dict_wherever_its_values_are(
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
