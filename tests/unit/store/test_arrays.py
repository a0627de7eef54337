"""Arrays of any kind come back from a store with their shape, type and every byte."""

from __future__ import annotations

import array
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.store_pages import SIZE, text

from batchzip import (
    BadArgument,
    CompressedMapping,
    Engine,
    NotStorable,
    PageNotStored,
    StoredArray,
    StoreRejected,
    SwapStore,
    load_array,
    store_array,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PAGE = 4096


@pytest.fixture(scope="module")  # Hypothesis wants one for all its examples
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential") as engine:
        yield engine


ARRAYS: dict[str, Any] = {
    "float64": np.linspace(0, 1, 5000).reshape(50, 100),
    "float16": np.arange(2048, dtype=np.float16),
    "bfloat16": np.arange(10_000).astype(ml_dtypes.bfloat16).reshape(10, 10, 100),
    "float8": np.arange(5000).astype(ml_dtypes.float8_e4m3fn),
    "big endian": np.arange(3000, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6000).reshape(60, 100)),
    "strided": np.arange(9000)[::3],
    "transposed": np.arange(24_000).reshape(20, 30, 40).transpose(1, 2, 0),
    "dates": np.arange("2020", "2030", dtype="M8[D]"),
    "records": np.zeros(700, [("a", "u1"), ("b", "f8")]),
    "text": np.array(["one", "twelve"] * 900),
    "scalar": np.array(5.5),
    "empty": np.empty((3, 0, 2), np.int16),
    "one page": np.arange(1024, dtype=np.int32),
    "read-only": np.broadcast_to(np.arange(2000), (3, 2000)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_shape_type_and_bytes_are_kept(store: SwapStore, name: str) -> None:
    original = ARRAYS[name]
    stored = store_array(store, 100, original)
    assert stored.pages == len(store) == -(-original.nbytes // PAGE)
    for back in (
        load_array(store, stored),
        load_array(store, pickle.loads(pickle.dumps(stored))),
        load_array(store, stored, np.empty(stored.shape, stored.dtype, stored.order)),
    ):
        assert (back.shape, back.dtype) == (original.shape, original.dtype)
        assert back.tobytes() == original.tobytes()
        back[...] = np.zeros((), back.dtype)  # it is the caller's own


@pytest.mark.slow
@given(
    original=npst.arrays(
        npst.scalar_dtypes(), npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40)
    ),
    index=st.integers(0, 1 << 40),
)
def test_any_array_comes_back(engine: Engine, original: Any, index: int) -> None:
    with SwapStore(engine) as store:
        back = load_array(store, store_array(store, index, original))
        assert (back.shape, back.dtype) == (original.shape, original.dtype)
        assert back.tobytes() == original.tobytes()


class WithInterface:
    def __init__(self, inside: Any) -> None:
        self.inside = inside
        self.__array_interface__ = inside.__array_interface__


class WithDlpack:
    def __init__(self, inside: Any, device: int = 1) -> None:
        self.inside = inside
        self.device = device

    def __dlpack__(self, **options: Any) -> object:
        return self.inside.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


@pytest.mark.parametrize("make", [WithInterface, WithDlpack, memoryview, lambda a: a])
def test_arrays_of_other_libraries_are_stored(store: SwapStore, make: Any) -> None:
    original = np.arange(3000, dtype=np.float32).reshape(30, 100)
    back = load_array(store, store_array(store, 0, make(original)))
    assert back.dtype == np.float32
    assert np.array_equal(back, original)


def test_buffers_of_the_standard_library_are_stored(store: SwapStore) -> None:
    back = load_array(store, store_array(store, 0, array.array("d", range(1000))))
    assert back.dtype == np.float64
    assert back.tolist() == [*range(1000)]
    assert load_array(store, store_array(store, 0, b"bytes")).tobytes() == b"bytes"


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ([1, 2, 3], "cannot view list as an array"),
        (5, "cannot view int as an array"),
        ("text", "cannot view str as an array"),
        (np.array([object()]), "Python objects"),
        (WithDlpack(np.arange(5), device=2), "device type 2"),
    ],
    ids=["list", "int", "str", "objects", "device"],
)
def test_an_object_that_is_refused_says_why_and_drops_nothing(
    store: SwapStore, given_: object, said: str
) -> None:
    stored = store_array(store, 0, np.arange(2000))
    with pytest.raises(NotStorable, match=said):
        store_array(store, 0, given_)
    assert load_array(store, stored).tolist() == [*range(2000)]


def test_a_rejected_array_leaves_nothing_at_its_indices(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=1 << 20) as store:
        old = store_array(store, 0, np.arange(2000))
        with pytest.raises(StoreRejected):
            store_array(store, 0, np.random.default_rng(1).random(1_000_001))
        assert len(store) == 0
        with pytest.raises(PageNotStored):
            load_array(store, old)


def test_an_out_that_does_not_fit_is_refused(store: SwapStore) -> None:
    stored = store_array(store, 0, np.arange(1000))
    frozen = np.arange(1000)
    frozen.flags.writeable = False
    for out in (np.empty(999, int), np.empty(1000, float), np.empty(2000, int)[::2], frozen):
        with pytest.raises(BadArgument, match="out"):
            load_array(store, stored, out)


def test_a_store_of_other_pages_is_refused(store: SwapStore) -> None:
    stored = StoredArray(0, (5,), np.dtype(int), "C", 8192)
    with pytest.raises(BadArgument, match="pages of 8192 bytes, but this store has pages of 4096"):
        load_array(store, stored)


def test_pages_of_an_array_are_not_copied_on_the_way(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = np.arange(10_240)
    seen: list[Any] = []
    write = store.store

    def watched(index: int, pages: Any) -> None:
        seen.append(pages)
        write(index, pages)

    monkeypatch.setattr(store, "store", watched)
    store_array(store, 0, original)
    assert len(seen) == 1
    assert np.shares_memory(seen[0], original)


READ = """
import pickle, sys, batchzip
address, stored = pickle.load(sys.stdin.buffer)
with batchzip.attach(address) as view:
    print(batchzip.load_array(view, stored).sum())
"""


@pytest.mark.slow
def test_a_reader_in_another_process_has_it_by_its_ticket(store: SwapStore) -> None:
    stored = store_array(store, 5, np.arange(12_345))
    ticket = pickle.dumps((store.share().address, stored))
    out = subprocess.run(
        [sys.executable, "-c", READ], input=ticket, capture_output=True, check=True
    )
    assert int(out.stdout) == np.arange(12_345).sum()


UNION = np.dtype({"names": ["x", "y", "xy"], "formats": ["f4", "f4", "2f4"], "offsets": [0, 4, 0]})


def test_arrays_of_dtypes_whose_fields_overlap_come_back(store: SwapStore) -> None:
    """numpy 9184: a dtype whose fields lie over one another has no format as a buffer."""
    array = np.arange(4000, dtype="f4").view(UNION)
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["array"] = array
        for found in (load_array(store, store_array(store, 0, array)), mapping["array"]):
            assert found.dtype == UNION
            assert found["xy"].tolist() == array["xy"].tolist()


@pytest.mark.parametrize("offset", [0, SIZE, 2 * SIZE])
def test_empty_parts_of_a_file_are_arrays_as_others(
    store: SwapStore, tmp_path: Path, offset: int
) -> None:
    """numpy 27722: an empty array at some places of a file could not be mapped."""
    path = tmp_path / "file"
    path.write_bytes(text(1) * 3)
    mapped = np.memmap(path, np.uint8, "r")
    with CompressedMapping(store, serializer="pickle") as mapping:
        for array in (mapped[offset:], mapped[offset:offset]):
            mapping["array"] = array
            for found in (load_array(store, store_array(store, 0, array)), mapping["array"]):
                assert found.tobytes() == array.tobytes()
