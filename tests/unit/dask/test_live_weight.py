"""WorkerData counts each live value once, however often it is set, read, deleted or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip.dask import WorkerData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
KIB = 1 << 10


@pytest.fixture
def data(tmp_path: Path) -> Iterator[WorkerData]:
    data = WorkerData(str(tmp_path), memory_limit=4 * MIB, live=0.25, compressed=0.25)
    yield data
    data.close()


def zeros(length: int) -> np.ndarray:
    return np.zeros(length, np.uint8)


def test_a_value_that_is_set_again_takes_the_place_of_the_former(data: WorkerData) -> None:
    weights = []
    for length in (64 * KIB, 128 * KIB, 128 * KIB, 32 * KIB):
        data["key"] = zeros(length)
        weights.append(data.fast.total_weight)
        assert data.fast.total_weight == data.fast.weights["key"]
    assert weights[1] == weights[2]
    assert [round(weight / (32 * KIB)) for weight in weights] == [2, 4, 4, 1]
    assert list(data.fast) == ["key"]


def test_a_value_that_was_set_often_pushes_no_other_out(data: WorkerData) -> None:
    data["other"] = zeros(256 * KIB)
    for _ in range(20):
        data["key"] = zeros(256 * KIB)
    assert set(data.fast) == {"other", "key"}
    assert data.fast.total_weight < MIB


def test_deleted_values_weigh_nothing(data: WorkerData) -> None:
    for number in range(3):
        data[number] = zeros(100 * KIB)
    weight = data.fast.total_weight
    del data[1]
    assert data.fast.total_weight == pytest.approx(weight * 2 / 3, rel=0.01)
    del data[0], data[2]
    assert data.fast.total_weight == len(data.fast) == 0


def test_a_value_that_left_weighs_nothing_until_it_is_read(data: WorkerData) -> None:
    data["key"] = zeros(512 * KIB)
    weight = data.fast.total_weight
    assert data.evict() > 0
    assert data.fast.total_weight == 0
    restored = data["key"]
    assert isinstance(restored, np.ndarray)
    assert restored.nbytes == 512 * KIB
    assert data.fast.total_weight == weight
