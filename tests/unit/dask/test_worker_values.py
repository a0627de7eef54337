"""How WorkerData keeps values that are not live: what shrinks, what does not, and what was not changed."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Worker
from hypothesis import given, settings
from hypothesis import strategies as st

from batchzip import ClosedError, CorruptValue, StoreRejected
from batchzip.dask import WorkerData
from batchzip.dask.compressed_values import CompressedValues, NoRoom, _digest
from batchzip.dask.raw_files import RawFiles, _move
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.dask.raw_files import FileRange

MIB = 1 << 20


@pytest.fixture
def data(tmp_path: Path) -> Iterator[WorkerData]:
    """Room for 8 MiB of compressed values; they are live until they are evicted."""
    with WorkerData(str(tmp_path), memory_limit=16 * MIB, live=1.0, compressed=0.5) as data:
        yield data


class _Pickled:
    """A value that does some work as it is pickled."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def __reduce__(self) -> tuple[type, tuple[int]]:
        self.work()
        return int, (7,)


def noise(seed: int, size: int = MIB) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def counts(seed: int, size: int = MIB) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, size // 8)


def text(seed: int, size: int = MIB) -> np.ndarray:
    words = np.array([b"order   ", b"customer", b"invoice ", b"paid    "])
    return np.random.default_rng(seed).choice(words, size // 8).view(np.uint8)


def written(data: WorkerData) -> float:
    return data.cumulative_metrics["disk-write", "count"]


def kept(data: WorkerData) -> int:
    """Return the bytes of what was compressed, in memory and on disk."""
    store = data._values.store
    return data.spilled_total.disk + (store.status()["compressed_bytes"] if store else 0)


def files_of(folder: Path) -> list[int]:
    """Return the descriptors of files without names in a folder."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if target.startswith(f"{folder}/") and target.endswith("(deleted)"):
            found.append(int(fd.name))
    return found


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
def test_what_was_kept_of_a_value_goes_with_it(data: WorkerData, make: object) -> None:
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


def test_what_was_kept_makes_room_before_anything_goes_to_disk(data: WorkerData) -> None:
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
        np.array(["ab", "c"]).view(np.char.chararray),
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


@settings(deadline=None, max_examples=60)
@given(_STEPS)
def test_values_are_what_was_put_in_or_made_of_them_since(
    steps: list[tuple[str, int, Callable[[int, int], np.ndarray], int]],
) -> None:
    """Whatever is live, compressed, on disk, or kept of an older state; and nothing is left of it."""
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
                    value[0] += 1
                    model[key][0] += 1
                del value
        assert len(data) == len(model)
        for key, expected in model.items():
            np.testing.assert_array_equal(data[key], expected)
            del data[key]
        assert kept(data) == 0
