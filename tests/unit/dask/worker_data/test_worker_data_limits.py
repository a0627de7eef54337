"""Limits, settings and figures of WorkerData are those that Dask has."""

from __future__ import annotations

import gc
import pickle
import sys
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest
from distributed.spill import SpilledSize
from distributed.system import MEMORY_LIMIT
from support.cluster.fixtures import offloading  # noqa: F401 - used by every test
from support.worker_values import MIB, some_noise

from batchzip import BadArgument, ClosedError
from batchzip.dask import WorkerData
from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from pathlib import Path


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
    with pytest.raises(TypeError, match="this WorkerData is bound to its process"):
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
        ("target", 10**400, "memory.target must be a fraction of memory, or False, not 1000"),
        ("spill", float("inf"), "memory.spill must be a fraction of memory, or False, not inf"),
        ("max-spill", "much", "memory.max-spill must be False, .* such as '4 GiB', not 'much'"),
        ("max-spill", -1, "memory.max-spill must be False, .* such as '4 GiB', not -1"),
        ("max-spill", float("inf"), "memory.max-spill must be False, bytes"),
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
            ({"memory_limit": limit}, "memory_limit must be 'auto', None, bytes")
            for limit in ("many", "-1 GiB", -1, 10**400, float("nan"), float("inf"), True, np.True_)
        ),
        ({"memory_limit": MIB, "live": float("nan")}, "live must be a number from 0 to 1"),
        ({"memory_limit": MIB, "max_disk_bytes": -1}, "max_disk_bytes must be a number of bytes"),
        ({"worker_local_directory": "/nonexistent"}, "worker_local_directory must be a directory"),
        ({"worker_local_directory": None}, "worker_local_directory must be a directory"),
        ({"memory_limit": MIB, "live": 1.5}, "live must be a number from 0 to 1"),
        ({"memory_limit": MIB, "compressed": -1}, "compressed must be a number from 0 to 1"),
        ({"memory_limit": MIB, "engine": {"level": 99, "algorithm": "zstd"}}, "zstd level"),
        ({"memory_limit": MIB, "engine": 5}, "engine must be a Mapping, not int"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(BadArgument, match=what):
        WorkerData(**{"worker_local_directory": str(tmp_path), **options})
