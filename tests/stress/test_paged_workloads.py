"""Programs compute the same on arrays of three times their budget as in ordinary memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.paged_region import Region, needs_paging, opened

from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    Make = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

pytestmark = [needs_paging, pytest.mark.slow]

MIB = 1 << 20
BUDGET = 2 * MIB
"""Bytes that are in memory; the arrays of a workload have three times as many, or more."""


@pytest.fixture(params=[4096, 65536], ids=lambda size: f"{size >> 10} KiB")
def region(request: pytest.FixtureRequest) -> Iterator[Region]:
    size = request.param
    with opened(page_size=size, pages=24 * MIB // size, budget=BUDGET // size) as region:
        yield region
        figures = region.figures
        assert figures["restored_pages"] > BUDGET // size or not figures["zeroed_pages"]
        assert figures["over_budget"] == figures["lost_pages"] == 0


@pytest.fixture
def paged(region: Region) -> Make:
    """Copy an array into paged memory."""

    def make(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        copy = region.array(array.size, array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    return make


@pytest.mark.parametrize("dtype", ["i8", "f4"])
@pytest.mark.parametrize("kind", ["quicksort", "stable"])
def test_an_array_sorted_in_place_is_sorted(paged: Make, kind: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    plain = rng.integers(0, 1 << 20, 3 * BUDGET // np.dtype(dtype).itemsize).astype(dtype)
    array = paged(plain)
    array.sort(kind=kind)
    plain.sort(kind=kind)
    np.testing.assert_array_equal(array, plain)


def test_partition_and_unique_and_cumulated(paged: Make) -> None:
    plain = np.random.default_rng(2).integers(0, 50_000, 3 * BUDGET // 8)
    array = paged(plain)
    np.testing.assert_array_equal(np.unique(array), np.unique(plain))
    np.testing.assert_array_equal(np.cumsum(array, out=array), np.cumsum(plain))
    array.partition(len(array) // 2)
    assert array[len(array) // 2] == np.cumsum(plain)[len(array) // 2]


def test_clustering_by_k_means(paged: Make) -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(-1000, 1000, (3 * BUDGET // 32, 4)).astype("f8")
    points += (np.arange(len(points)) % 5 * 4000)[:, None]

    def cluster(points: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        centres = points[:5].copy()
        for _ in range(3):
            for start in range(0, len(points), 8192):
                block = points[start : start + 8192]
                distances = ((block[:, None] - centres) ** 2).sum(axis=2)
                labels[start : start + 8192] = distances.argmin(axis=1)
            for label in range(5):
                centres[label] = np.round(points[labels == label].mean(axis=0), 3)
        return centres

    plain_labels = np.zeros(len(points), "i8")
    labels = paged(plain_labels)
    centres = cluster(paged(points), labels)
    np.testing.assert_allclose(centres, cluster(points, plain_labels))
    np.testing.assert_array_equal(labels, plain_labels)


def test_a_hash_join_gives_the_same_as_in_ordinary_memory(paged: Make) -> None:
    rng = np.random.default_rng(4)
    size = BUDGET // 8
    left = rng.permutation(size)
    right = rng.integers(0, 2 * size, 2 * size)

    def join(
        keys: npt.NDArray[Any], others: npt.NDArray[Any], table: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        table[:] = -1
        table[keys] = np.arange(len(keys))
        found = np.where(others < len(table), table[others % len(table)], -1)
        return found[found >= 0]

    joined = join(paged(left), paged(right), paged(np.zeros(size, "i8")))
    np.testing.assert_array_equal(joined, join(left, right, np.zeros(size, "i8")))


def test_a_group_by_in_pandas(paged: Make) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(5)
    size = 3 * BUDGET // 16
    columns = {
        "key": rng.integers(0, 1000, size),
        "value": rng.integers(0, 1 << 30, size),
        "weight": rng.integers(0, 100, size).astype("f8"),
    }
    frames = [
        pandas.DataFrame({name: make(column) for name, column in columns.items()}, copy=False)
        for make in (lambda array: array, paged)
    ]
    for work in (
        lambda frame: frame.groupby("key").sum(),
        lambda frame: frame.groupby("key")["value"].agg(["min", "max", "count"]),
        lambda frame: frame[frame["weight"] > 97].describe(),
    ):
        plain, found = map(work, frames)
        pandas.testing.assert_frame_equal(found, plain)


def test_a_blocked_product_of_matrices(paged: Make) -> None:
    side, step = 512, 128
    rng = np.random.default_rng(6)
    a, b = (rng.integers(-9, 9, (side, side)).astype("f8") for _ in range(2))
    product = a @ b
    a, b, c = paged(a), paged(b), paged(np.zeros((side, side)))
    for i in range(0, side, step):
        for j in range(0, side, step):
            for k in range(0, side, step):
                c[i : i + step, j : j + step] += (
                    a[i : i + step, k : k + step] @ b[k : k + step, j : j + step]
                )
    np.testing.assert_array_equal(c, product)
    np.testing.assert_array_equal(np.matmul(a, b, out=c), product)


def test_linear_algebra_gives_the_same_as_in_ordinary_memory(paged: Make) -> None:
    rng = np.random.default_rng(7)
    plain = [rng.normal(size=(100, 100)) for _ in range(80)]
    stacked = paged(np.stack(plain))
    right = rng.normal(size=100)
    for matrix, expected in zip(stacked, plain, strict=True):
        np.testing.assert_allclose(np.linalg.solve(matrix, right), np.linalg.solve(expected, right))
    for matrix, expected in zip(stacked[:3], plain, strict=False):
        np.testing.assert_allclose(
            np.linalg.svd(matrix, compute_uv=False), np.linalg.svd(expected, compute_uv=False)
        )
        np.testing.assert_allclose(
            np.linalg.eigvalsh(matrix @ matrix.T), np.linalg.eigvalsh(expected @ expected.T)
        )
    np.testing.assert_allclose(np.linalg.det(stacked), np.linalg.det(np.stack(plain)))


def test_columns_of_a_matrix(paged: Make) -> None:
    """Strides that readahead has to guess."""
    plain = np.random.default_rng(8).integers(0, 1 << 40, (1500, 512))
    array = paged(plain)
    for column in range(0, 512, 100):
        np.testing.assert_array_equal(array[:, column], plain[:, column])
        array[:, column] += 1
        plain[:, column] += 1
    np.testing.assert_array_equal(array.sum(axis=0), plain.sum(axis=0))
    for block in range(0, 512, 128):
        part = slice(block, block + 128)
        np.testing.assert_array_equal(array[:, part].T.copy("K"), plain[:, part].T)


def test_fourier_transforms_are_the_same_as_in_ordinary_memory(paged: Make) -> None:
    plain = np.random.default_rng(9).normal(size=(12, 1 << 16))
    array = paged(plain)
    for row, expected in zip(array, plain, strict=True):
        np.testing.assert_allclose(np.fft.rfft(row), np.fft.rfft(expected))


def test_a_tensor_of_torch_that_shares_the_memory(paged: Make) -> None:
    torch = pytest.importorskip("torch")
    plain = np.random.default_rng(10).integers(-9, 9, (3 * BUDGET // 4096, 1024)).astype("f4")
    array = paged(plain)
    tensor = torch.from_numpy(array)
    tensor += 1
    plain += 1
    assert torch.equal(tensor.sum(dim=1), torch.from_numpy(plain).sum(dim=1))
    tensor.sort(dim=1)
    np.testing.assert_array_equal(array, plain)


def test_a_saved_array_is_loaded_unchanged(region: Region, paged: Make, tmp_path: Path) -> None:
    if region.pager.way == "user mode":
        pytest.skip("here the kernel may not fault")
    plain = np.random.default_rng(11).integers(0, 1000, 3 * BUDGET // 8)
    array = paged(plain)
    np.save(tmp_path / "array.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "array.npy"), plain)
    array.tofile(tmp_path / "raw")
    array[:] = 0
    with (tmp_path / "raw").open("rb") as file:
        assert file.readinto(array.data.cast("B")) == array.nbytes
    np.testing.assert_array_equal(array, plain)


def test_several_programs_at_once(paged: Make) -> None:
    """Threads that sort, multiply and search, each in arrays of its own."""
    rng = np.random.default_rng(12)
    plain = [rng.integers(0, 1 << 40, BUDGET // 8) for _ in range(4)]
    arrays = [paged(each) for each in plain]
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait(60)
        arrays[number].sort()
        plain[number].sort()
        np.testing.assert_array_equal(arrays[number], plain[number])
        chosen = np.random.default_rng(number).choice(plain[number], 2000)
        found = np.searchsorted(arrays[number], chosen)
        np.testing.assert_array_equal(arrays[number][found], chosen)

    in_threads(4, work)
