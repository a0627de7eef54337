"""Values of WorkerData that are compressed badly go to raw files, which stay within their limit."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.worker_values import MIB, files_of, noise

from batchzip import ClosedError, StoreRejected
from batchzip.dask import WorkerData
from batchzip.dask.raw_files import RawFiles
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from pathlib import Path

    from batchzip.dask.raw_files import FileRange


def test_raw_files_end_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchzip.dask.raw_files._SEGMENT", 3 * MIB)
    with RawFiles(str(tmp_path)) as files:
        places = [files.write([noise(seed).data, b"", b"tail"]) for seed in range(9)]
        assert files.held_bytes == 9 * (MIB + 4096)
        assert len(files_of(tmp_path)) == 3
        for seed, place in enumerate(places[:3]):
            found = files.read(place)
            assert found is not None
            assert [bytes(one) for one in found] == [noise(seed).tobytes(), b"", b"tail"]
            files.free(place)
            files.free(place)
        assert len(files_of(tmp_path)) == 2
        used = sum(os.fstat(fd).st_blocks * 512 for fd in files_of(tmp_path))
        assert used == files.held_bytes == 6 * (MIB + 4096)
        files.free(places[4])
        used = sum(os.fstat(fd).st_blocks * 512 for fd in files_of(tmp_path))
        assert used == files.held_bytes == 5 * (MIB + 4096), "a hole"
    assert not files_of(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ClosedError):
        files.write([b"late"])


def test_values_without_bytes_take_no_other_values_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchzip.dask.raw_files._SEGMENT", 2 * MIB)
    with WorkerData(tmp_path, memory_limit=16 * MIB, live=1.0, compressed=0.0) as data:
        data["none"] = np.empty(0)
        data.evict()
        for number in range(3):  # the last one begins a second segment
            data[number] = noise(number)
            data.evict()
        assert not data.fast
        del data["none"], data[1]
        np.testing.assert_array_equal(data[0], noise(0))
        for number in (0, 2):
            del data[number]
        assert data.spilled_total == (0, 0)


def test_files_have_no_more_than_their_limit(tmp_path: Path) -> None:
    size, blocks = 70_000, 18 * 4096
    with WorkerData(
        tmp_path, memory_limit=16 * MIB, live=1.0, compressed=0.0, max_disk_bytes=9 * blocks + size
    ) as data:
        for number in range(12):
            data[number] = noise(number, size)
        while data.evict() > 0:
            pass
        assert data.spilled_total.disk == 9 * blocks
        for number in range(12):
            np.testing.assert_array_equal(data[number], noise(number, size))


def test_threads_take_no_more_than_the_limit_at_the_same_time(tmp_path: Path) -> None:
    with RawFiles(str(tmp_path)) as files:
        places: list[FileRange] = []

        def work(number: int) -> None:
            for _ in range(50):
                with suppress(StoreRejected):
                    places.append(files.write([bytes([number]) * 5000], 20 * 8192 + 100))

        in_threads(3, work)
        assert len(places) == 20
        assert files.held_bytes == 20 * 8192


def test_raw_files_take_as_many_buffers_as_there_are(tmp_path: Path) -> None:
    buffers = [bytes([number % 256]) * (number % 7) for number in range(3000)]
    with RawFiles(str(tmp_path)) as files:
        place = files.write(buffers)
        found = files.read(place)
        assert found is not None
        assert [bytes(one) for one in found] == buffers
        assert files.read(files.write([])) == []
