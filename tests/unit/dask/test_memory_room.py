"""What live values and compressed pages may have, by the figures of limits and of the process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest

from batchzip.codecs import make_codec
from batchzip.dask.memory_limits import MemoryLimits, ValueRoom
from batchzip.dask.sampling import Sampler
from batchzip.dask.shard_limits import store_options

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
MIB = 1 << 20
SETTINGS = "distributed.worker.memory."


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    wanted = {"target": 0.6, "spill": 0.7, "pause": 0.8, "terminate": 0.95, "max-spill": False}
    with dask.config.set({SETTINGS + name: value for name, value in wanted.items()}):
        yield


def limits(memory: Any = "auto", **given: Any) -> MemoryLimits:
    options = {"live": None, "compressed": None, "disk": None, **given}
    return MemoryLimits.make(memory, **options)


def test_limits_that_are_not_given_are_dask_s() -> None:
    assert limits() == ("auto", None, 0.3, 0.6, 0.6, 0.7, None)
    assert limits(1000, live=0.25, compressed=0.5, disk=7) == (1000, 0.25, 0.5, 0.6, 0.6, 0.7, 7)
    with dask.config.set({SETTINGS + "target": False}):
        assert limits() == ("auto", None, 0.35, None, 0.7, 0.7, None)
        with dask.config.set({SETTINGS + "spill": False}):
            assert limits() == ("auto", None, None, None, None, None, None)
    with dask.config.set({SETTINGS + "max-spill": "2 KiB"}):
        assert limits().disk == 2048


def test_fractions_are_of_the_limit_that_was_given_or_else_of_the_worker_s() -> None:
    assert limits().bytes_of(0.5, 1000) == 500
    assert limits(100).bytes_of(0.5, 1000) == 50
    assert limits().bytes_of(None, 1000) is None
    assert limits().bytes_of(0.5, None) is None


def test_live_values_have_what_the_pool_leaves_and_half_at_least() -> None:
    room = ValueRoom(limits(1000), None, None)  # 600 for both
    assert [room.live(pool) for pool in (0, 100, 300, 400, 900)] == [600, 500, 300, 300, 300]
    assert ValueRoom(limits(1000, live=0.25), None, None).live(900) == 250


def test_others_in_the_process_take_of_the_room_down_to_a_quarter() -> None:
    process = {"bytes": 0}
    room = ValueRoom(limits(), 1000, lambda: process["bytes"])
    for used, live in ((0, 600), (100, 600), (200, 500), (500, 200), (600, 150), (5000, 150)):
        process["bytes"] = used
        room.look(0, 0, now=True)
        assert room.live(0) == live, used
    process["bytes"] = 400
    room.look(100, 50, now=True)  # 250 of others'
    assert room.live(100) == 700 - 250 - 100


def test_compressed_pages_give_way_only_where_the_process_is_too_large() -> None:
    process = {"bytes": 200}
    room = ValueRoom(limits(), 1000, lambda: process["bytes"])
    assert room.compressed(0, pressed=False) == 300
    room.look(0, 0, now=True)
    assert room.compressed(0, pressed=False) == 200  # half of what 200 leave of 600
    assert room.compressed(250, pressed=False) == 250
    assert room.compressed(250, pressed=True) == 200
    process["bytes"] = 5000
    room.look(0, 0, now=True)
    assert room.compressed(100, pressed=True) == 0
    assert room.compressed(100, pressed=False) == 100
    assert ValueRoom(limits(1000, compressed=0.2), None, None).compressed(0, pressed=True) == 200


def test_process_memory_is_read_now_and_then_and_on_demand() -> None:
    asked = []

    def process() -> int:
        asked.append(True)
        return 0

    room = ValueRoom(limits(), 1000, process)
    room.look(0, 0, now=False)
    for _ in range(3):
        room.look(0, 0, now=False)
    assert len(asked) == 1
    room.look(0, 0, now=True)
    assert len(asked) == 2
    given = ValueRoom(limits(1000), 1000, process)
    given.look(0, 0, now=True)
    assert len(asked) == 2, "a limit that was given is not the process's"


def worker(limit: int | None, process: int, data: int = 0, live: int | None = None) -> Any:
    held = (
        SimpleNamespace()
        if live is None
        else SimpleNamespace(fast=SimpleNamespace(total_weight=live))
    )
    return SimpleNamespace(
        memory_manager=SimpleNamespace(memory_limit=limit),
        monitor=SimpleNamespace(get_process_memory=lambda: process),
        state=SimpleNamespace(nbytes=data, nthreads=1),
        data=held,
        local_directory="/nowhere",
    )


def pool(of: Any, fraction: float = 0.5, *others: Any) -> int:
    options = store_options(of, fraction, spill=False, others=others)
    assert set(options) == {"max_pool_bytes"}
    most = options["max_pool_bytes"]
    assert isinstance(most, int)
    return most


def test_a_shard_s_pool_stays_below_dask_s_first_threshold() -> None:
    assert pool(worker(1000, 0)) == 500
    assert pool(worker(1000, 150)) == 450  # 0.7 - 0.1 of 1000, less the process
    assert pool(worker(1000, 150, data=50)) == 500
    assert pool(worker(1000, 250, data=500, live=50)) == 400
    assert pool(worker(1000, 5000)) == 20
    with dask.config.set({SETTINGS + "spill": False}):
        assert pool(worker(1000, 150), 0.6) == 550
        with dask.config.set({SETTINGS + "pause": False, SETTINGS + "terminate": False}):
            assert pool(worker(1000, 900), 0.6) == 600


def test_a_pool_leaves_the_room_that_other_shards_may_still_take() -> None:
    def store(most: int | None, held: int) -> Any:
        return SimpleNamespace(max_pool_bytes=most, counters=SimpleNamespace(pool_total_size=held))

    full, growing, free = store(100, 120), store(300, 100), store(None, 100)
    assert pool(worker(1000, 150), 0.5, full, free) == 450
    assert pool(worker(1000, 150), 0.5, full, growing, free) == 250


def test_a_shard_spills_to_its_worker_s_directory() -> None:
    options = store_options(worker(1000, 0), 0.5, spill=True)
    assert options == {"max_pool_bytes": 500, "backing": "/nowhere"}


def test_the_codec_that_makes_a_buffer_smallest_is_found_by_samples() -> None:
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 1000, 1 << 18).astype("<i8")
    with Sampler({1: make_codec("lz4"), 8: make_codec("zstd", level=1)}) as sampler:
        assert sampler.best(numbers.tobytes()) == 8
        assert sampler.best(rng.bytes(MIB)) is None
        assert sampler.best(bytes(100)) == 1, "too short to look at: the first"
        half = bytes(MIB // 2)
        assert sampler.best(half + rng.bytes(MIB // 2)) is not None
        zeros = bytes(MIB // 16)
        assert sampler.best(zeros + rng.bytes(MIB - 2 * len(zeros)) + zeros) is None, "ends differ"
