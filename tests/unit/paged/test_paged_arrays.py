"""PagedMemory's arrays are NumPy's; with numpy_allocations, NumPy makes large ones there."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import pytest
from support.paged_memory import BUDGET, PAGE, SIZE, needs_faults

from batchzip import (
    BadArgument,
    NotStorable,
    PagedMemory,
    RegionFull,
)

# Arrays.


@needs_faults
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (1000, "f8"),
        ((30, 40, 50), "f4"),
        ([100, 100], np.int16),
        (np.int8(7), "c16"),
        ((), "i8"),
        (5000, bool),
        ((100,), [("id", "i4"), ("name", "U7"), ("at", "M8[ns]")]),
        (10, "(2,3)f4"),
        (9, "S"),
        ((4, 0, 9), "f8"),
        (0, "i1"),
    ],
)
def test_an_array_is_as_numpys_zeros(memory: PagedMemory, shape: Any, dtype: Any) -> None:
    array, expected = memory.array(shape, dtype), np.zeros(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.strides) == (
        expected.shape,
        expected.dtype,
        expected.strides,
    )
    assert array.flags.writeable
    assert array.flags.aligned
    assert array.tobytes() == expected.tobytes()


@needs_faults
def test_written_data_survives_eviction(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8)
    expected = np.random.default_rng(3).integers(0, 99, len(array)).astype("f8")
    array[:] = expected
    assert np.array_equal(array, expected)
    assert memory.evict(array) > 0
    assert np.array_equal(array, expected)
    array.sort()
    assert np.array_equal(array, np.sort(expected))
    assert array @ array == pytest.approx(expected @ expected)


@needs_faults
def test_the_pages_of_an_array_are_free_once_it_and_its_views_are_gone(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8)
    array[:] = 7
    view = array[10:20].reshape(2, 5).T
    del array
    assert memory.free_bytes == 0
    assert view.sum() == 70
    del view
    assert memory.free_bytes == SIZE
    assert not memory.array(SIZE // 8).any()  # zeros again


@needs_faults
def test_an_array_that_does_not_fit_says_how_much_is_free(memory: PagedMemory) -> None:
    first, second, third = (memory.array(60 * PAGE, "i1") for _ in range(3))
    with pytest.raises(
        RegionFull, match="takes 409,600 bytes does not fit: 311,296 bytes are free"
    ) as error:
        memory.array(100 * PAGE, "i1")
    assert isinstance(error.value, MemoryError)
    del second
    with pytest.raises(RegionFull, match="557,056 bytes are free, 311,296 in one piece") as error:
        memory.array(100 * PAGE, "i1")
    assert (error.value.wanted_bytes, error.value.free_bytes) == (100 * PAGE, 136 * PAGE)
    for huge in (1 << 40, 1 << 62, (1 << 40, 1 << 40)):
        with pytest.raises(RegionFull):
            memory.array(huge, "f8")
    assert memory.array(76 * PAGE, "i1").nbytes == 76 * PAGE
    del first, third


@needs_faults
@pytest.mark.parametrize("dtype", ["O", [("a", "i4"), ("b", "O")]])
def test_arrays_of_objects_are_refused(memory: PagedMemory, dtype: Any) -> None:
    with pytest.raises(NotStorable, match="Python objects") as error:
        memory.array(10, dtype)
    assert isinstance(error.value, TypeError)


@needs_faults
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(-1, "f8"), ((3, -2), "f8"), (2.5, "f8"), ("ab", "f8"), (None, "f8"), (3, "nope"), (3, 7)],
)
def test_an_invalid_shape_or_type_is_refused(memory: PagedMemory, shape: Any, dtype: Any) -> None:
    with pytest.raises(BadArgument):
        memory.array(shape, dtype)


@needs_faults
def test_pandas_linalg_and_torch_take_its_arrays(memory: PagedMemory) -> None:
    pandas = pytest.importorskip("pandas")
    keys = memory.array(20_000, "i4")
    keys[:] = np.arange(20_000) % 7
    frame = pandas.DataFrame({"key": keys, "value": np.arange(20_000)}, copy=False)
    expected = [sum(range(key, 20_000, 7)) for key in range(7)]
    assert list(frame.groupby("key").value.sum()) == expected
    square = memory.array((100, 100))
    square[:] = np.eye(100) * 3
    assert np.linalg.det(square) == pytest.approx(3.0**100)


@needs_faults
def test_torch_takes_its_arrays(memory: PagedMemory) -> None:
    torch = pytest.importorskip("torch")
    array = memory.array(10_000, "f4")
    tensor = torch.from_numpy(array)
    tensor += 2
    memory.evict(tensor)
    assert array.sum() == 20_000


# New arrays of NumPy's.


@needs_faults
def test_numpy_makes_large_arrays_in_it(memory: PagedMemory) -> None:
    with memory.allocator(threshold=8 * PAGE):
        array, zeros, small = np.empty(16 * PAGE, "i1"), np.zeros(16 * PAGE, "i1"), np.ones(10)
        both = array + zeros
        with pytest.raises(MemoryError):
            np.empty(2 * SIZE, "i1")
        elsewhere: list[Any] = []
        thread = threading.Thread(target=lambda: elsewhere.append(np.empty(16 * PAGE, "i1")))
        thread.start()
        thread.join()
    outside = np.empty(16 * PAGE, "i1")
    assert memory.free_bytes == SIZE - 48 * PAGE
    assert memory.evict(both) >= 0
    for foreign in (small, outside, elsewhere[0]):
        with pytest.raises(BadArgument):
            memory.evict(foreign)
    zeros.resize(32 * PAGE, refcheck=False)
    assert not zeros.any()
    assert memory.free_bytes == SIZE - 64 * PAGE
    array[:] = 3
    array.resize(10, refcheck=False)
    assert array.tolist() == [3] * 10
    del zeros, both
    assert memory.free_bytes == SIZE
    with pytest.raises(BadArgument, match="threshold"), memory.allocator(threshold=1):
        raise AssertionError


@needs_faults
def test_numpys_arrays_outlive_statement_and_memory() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    with memory.allocator(threshold=PAGE):
        array, small = np.arange(SIZE // 16), np.ones(3)
    gone = weakref.ref(memory)
    del memory
    assert array.sum() == sum(range(SIZE // 16))
    del array
    assert gone() is None  # a small one keeps nothing
    assert small.sum() == 3
    memory = PagedMemory(SIZE, BUDGET)
    with memory.allocator(threshold=PAGE):
        array = np.arange(SIZE // 16)
        memory.close()
        assert np.ones(SIZE).sum() == SIZE  # as without it
    del array
