"""NumPy's arrays and scalars come back as they were, and large ones are not copied."""

from __future__ import annotations

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.round_trip import PAGE, back, packed, read_damaged, restored

from batchzip import CompressedMapping, NotStorable, SwapStore, UnreadableValue
from batchzip.mapping.serializers.arrays import ArrayPacker

PACKER = ArrayPacker(PAGE)


def assert_same(found: Any, value: Any) -> None:
    """Assert that two arrays or scalars are of one type, and byte for byte the same."""
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert found.dtype.type is value.dtype.type
    assert found.dtype.isalignedstruct == value.dtype.isalignedstruct
    assert found.shape == value.shape
    if isinstance(value, np.longdouble):  # it does not use all of its bytes
        assert found == value
        return
    assert found.tobytes() == value.tobytes()
    if isinstance(value, np.ndarray):
        assert found.flags.writeable == value.flags.writeable
        assert found.flags.aligned
        if value.flags.forc:
            assert (found.flags.c_contiguous, found.flags.f_contiguous) == (
                value.flags.c_contiguous,
                value.flags.f_contiguous,
            )


ANY_DTYPE = hnp.scalar_dtypes() | hnp.array_dtypes(
    hnp.scalar_dtypes() | hnp.array_dtypes(allow_subarrays=True), allow_subarrays=True
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=100)
def test_arrays_of_every_kind_come_back(data: st.DataObject) -> None:
    value = data.draw(hnp.arrays(data.draw(ANY_DTYPE), data.draw(SHAPES)))
    value = value.transpose(data.draw(st.permutations(range(value.ndim))))
    value.flags.writeable = data.draw(st.booleans())
    found = back(PACKER, value)
    assert_same(found, value)
    if value.size:
        assert found.strides == value.strides or 1 in value.shape


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60)
def test_parts_of_arrays_come_back(data: st.DataObject) -> None:
    whole = np.arange(5 * 6 * 7).astype(data.draw(st.sampled_from(["<i2", ">f8", "S3"])))
    value = whole.reshape(5, 6, 7)[data.draw(hnp.basic_indices((5, 6, 7), allow_ellipsis=True))]
    assert_same(back(PACKER, value), value)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60)
def test_numpy_scalars_come_back(data: st.DataObject) -> None:
    kinds = hnp.scalar_dtypes().filter(lambda dtype: dtype.isnative)
    value = data.draw(hnp.arrays(data.draw(kinds), ()))[()]
    assert_same(back(PACKER, value), value)


PAIR = [("d", "M8[ms]"), ("é\ud800", "S3")]
RECORD = np.dtype([("a", "<i4"), ("b", ">f8", (2, 3)), ("c", PAIR)])


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, RECORD),
        np.ones(3, np.dtype([("a", "i1"), ("b", "i8")], align=True)),
        np.ones(2, {"names": ["b", "a"], "formats": ["<i4", "<i2"], "offsets": [1, 3]}),
        np.ones(2, {"names": ["a"], "formats": ["i4"], "titles": ["A title"], "itemsize": 40}),
        np.ones(2, np.dtype((np.record, [("a", "i4")]))),
        np.ones(2, np.dtype((np.record, [("a", "i4")])))[0],
        np.zeros(2, np.dtype([])),
        np.zeros(2, RECORD)[1],
        np.ndarray(3, "<U0"),
        np.ndarray((2, 0), "V7"),
        np.array(["2026-01-01", "NaT"], "M8[25us]"),
        np.array([7], "<m8[7s]"),
        np.arange(3, dtype=np.longdouble),
        np.array([1, 2], ">c8"),
        np.str_("a\0"),
        np.str_("\ud800"),
        np.str_(""),
        np.bytes_(b"\0\0"),
        np.void(b"abc\0"),
        np.void(b""),
        np.datetime64("NaT", "s"),
        np.timedelta64(5, "D"),
        np.longdouble(1) / 3,
        np.True_,
        np.arange(5, dtype=ml_dtypes.bfloat16),
        np.arange(5000, dtype=ml_dtypes.float8_e4m3fn),
        np.array([1, -2], dtype=ml_dtypes.int4),
        np.zeros(2, [("a", ml_dtypes.bfloat16), ("b", "i1")]),
        ml_dtypes.bfloat16(1.5),
        np.broadcast_to(np.arange(3), (2000, 3)),
        np.arange(10_000)[::-1],
        np.zeros((1,) * 32),
        np.array(7),
        np.zeros((3, 0, 2), order="F"),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype}"[:40],
)
def test_odd_arrays_and_scalars_come_back(store: SwapStore, value: Any) -> None:
    with CompressedMapping(store, serializer="numpy") as mapping:
        mapping["key"] = value
        for found in (mapping["key"], mapping.get_many(["key"])["key"], mapping.pop("key")):
            assert_same(found, value)


@pytest.mark.parametrize("length", [0, 1, 500, 511, 512, 513, 1024, 100_003])
@pytest.mark.parametrize("order", ["C", "F", "KV"])
def test_returned_arrays_belong_to_the_caller(store: SwapStore, length: int, order: str) -> None:
    value = np.arange(length * 6.0).reshape(length, 2, 3)
    value = {"C": value, "F": np.asfortranarray(value), "KV": value.transpose(1, 0, 2)}[order]
    with CompressedMapping(store, serializer="numpy") as mapping:
        mapping["key"] = value
        found = mapping["key"]
        assert_same(found, value)
        found[...] = -1
        assert_same(mapping["key"], value)
        mapping.check_invariants()


@pytest.mark.parametrize(
    "value",
    [
        np.arange(100_000),
        np.asfortranarray(np.arange(12_000.0).reshape(300, 40)),
        np.arange(24_000).reshape(20, 30, 40).transpose(1, 2, 0),
        np.arange(100_000)[5:90_000],
        np.zeros(10_000, "M8[s]"),
        np.zeros(10_000, RECORD),
        np.zeros(10_000, ml_dtypes.bfloat16),
        np.array("x" * 5000),
    ],
    ids=["c", "fortran", "axes", "slice", "dates", "records", "bfloat16", "0-d"],
)
def test_large_data_is_not_copied_on_its_way_in(value: np.ndarray) -> None:
    head, data = PACKER.pack(value)
    assert np.shares_memory(np.frombuffer(data, np.uint8), value)
    assert len(data) == value.nbytes
    assert len(head) < 600


def test_an_array_with_gaps_is_copied_once_and_in_c_order() -> None:
    value = np.arange(100_000).reshape(100, 1000)[:, ::2]
    _, data = PACKER.pack(value)
    assert not np.shares_memory(np.frombuffer(data, np.uint8), value)
    assert back(PACKER, value).flags.c_contiguous


def test_an_array_that_fits_a_page_is_one_part() -> None:
    head = len(PACKER.pack(np.zeros(0, np.uint8))[0])
    for size, parts in ((PAGE - head, 1), (PAGE - head + 1, 2)):
        assert len(PACKER.pack(np.zeros(size, np.uint8))) == parts


class Subclass(np.float64):
    pass


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([1, 2], "not list: use serializer='pickle'"),
        (1.5, "not float: use serializer='pickle'"),
        (b"bytes", "not bytes"),
        (np.array([None]), "without Python objects, not of dtype object"),
        (np.array([(1, None)], [("a", int), ("b", object)]), "without Python objects"),
        (np.array(["a"], np.dtypes.StringDType()), "without Python objects"),
        (
            np.ma.masked_array([1], [True]),
            r"not MaskedArray of int64, which is a subclass: pass np\.",
        ),
        (np.ones(2, [("a", "i4")]).view(np.recarray), "not recarray of .*, which is a subclass"),
        (Subclass(1), "not Subclass, which is a subclass"),
        (np.ones(1, {"names": ["a"], "formats": ["i4"], "titles": [(1, 2)]}), "NumPy's own dtypes"),
        (np.ones(1, np.dtype(ml_dtypes.bfloat16).newbyteorder()), "NumPy's own dtypes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_arrays_and_other_objects_are_refused(
    store: SwapStore, value: Any, why: str
) -> None:
    with CompressedMapping(store, serializer="numpy") as mapping:
        mapping["key"] = np.arange(3)
        with pytest.raises(NotStorable, match=f"serializer='numpy' takes NumPy's .*{why}"):
            mapping["key"] = value
        assert mapping["key"].sum() == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=">i2").reshape(3, 4).T,
        np.zeros(2, RECORD),
        np.zeros(2, ml_dtypes.bfloat16),
        np.zeros(1000),
        np.str_("text"),
    ],
    ids=["axes", "records", "bfloat16", "large", "text"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, of dtypes that a flip makes
def test_damaged_bytes_are_refused_or_another_array(value: Any) -> None:
    assert read_damaged(PACKER, packed(PACKER, value), lambda found: (found.tobytes(), repr(found)))


def head(kind: bytes, shape: tuple[int, ...] = (1,)) -> bytes:
    return struct.pack(f"<BBI{len(shape)}Q", 0, len(shape), len(kind), *shape) + kind


DEEP = '{"shape": [1], "base": ' * 2000 + '"<f8"' + "}" * 2000

WRONG: list[dict[str, Any]] = [
    {"offsets": [-8]},
    {"offsets": [4]},
    {"offsets": [0.5]},
    {"offsets": [2**70]},
    {"itemsize": 7},
    {"itemsize": -1},
    {"formats": ["|O8"]},
    {"formats": []},
    {"names": [1]},
    {"titles": [{}]},
]


@pytest.mark.parametrize(
    "kind",
    [
        b"|O",
        b"|O8",
        b"|T16",
        b"<f8,|O8",
        b"(2,)<f8",
        b"object",
        b"<V99999999999",
        b"<M8[(1/3)s]",
        b"<f3",
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"{}",
        b'{"ml_dtypes": "finfo"}',
        b'{"ml_dtypes": "os"}',
        b'{"ml_dtypes": 5}',
        b'{"base": "<f8", "shape": [-1]}',
        b'{"base": "<f8", "shape": 1e999}',
        b'{"base": "|O8", "shape": [1]}',
        DEEP.encode(),
        *(
            json.dumps(
                {"names": ["a"], "formats": ["<f8"], "offsets": [0], "titles": [None]}
                | {"itemsize": 8, "aligned": False, "record": False}
                | wrong
            ).encode()
            for wrong in WRONG
        ),
    ],
    ids=lambda kind: kind[:60].decode("ascii", "replace") or "empty",
)
def test_dtypes_that_no_array_has_are_refused(kind: bytes) -> None:
    with pytest.raises(UnreadableValue):
        restored(PACKER, [head(kind) + bytes(8)])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [head(b"<f8") + bytes(7)],
        [head(b"<f8", (2**63, 2**63)) + bytes(8)],
        [head(b"<f8", (2**40, 0, 2**40))],
        [head(b"<f8", (1,) * 65) + bytes(8)],
        [head(b"<f8") + b"more", bytes(5000)],
        [head(b"<f8", (625,)), bytes(5000), b""],
        [head(b"<f8", (626,)), bytes(5000)],
        [b"\x80\x02" + head(b"<f8", (1, 1))[2:22] + b"\x01\x01<f8" + bytes(8)],
    ],
    ids=range(10),
)
def test_heads_that_do_not_fit_their_data_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(UnreadableValue):
        restored(PACKER, parts)
