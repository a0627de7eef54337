"""Arrow's tables come back equal; large buffers, of pandas' frames too, are not copied."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.round_trip import PAGE, back, packed, read_damaged

from batchzip import CompressedMapping, NotStorable, SwapStore, UnreadableValue
from batchzip.mapping.serializers.pickles import PicklePacker
from batchzip.mapping.serializers.tables import TablePacker

PACKER = TablePacker(PAGE)


def table(rows: int) -> Any:
    """Return a table with columns of many types."""
    numbers = range(rows)
    return pa.table(
        {
            "int": pa.array(numbers, pa.int64()),
            "float": pa.array([each / 7 if each % 3 else None for each in numbers]),
            "text": pa.array([f"row {each}" for each in numbers]),
            "view": pa.array(["x" * (each % 30) for each in numbers], pa.string_view()),
            "binary": pa.array([bytes([each % 256]) for each in numbers], pa.large_binary()),
            "bool": pa.array([each % 2 == 0 for each in numbers]),
            "none": pa.nulls(rows),
            "time": pa.array(
                [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)] * rows, pa.timestamp("us", "UTC")
            ),
            "decimal": pa.array([decimal.Decimal(each) for each in numbers], pa.decimal128(20, 2)),
            "list": pa.array([list(range(each % 5)) for each in numbers], pa.list_(pa.int32())),
            "struct": pa.array([{"a": each, "b": str(each)} for each in numbers]),
            "map": pa.array([[("k", each)] for each in numbers], pa.map_(pa.string(), pa.int8()))
            if rows < 128
            else pa.nulls(rows, pa.int8()),
            "dictionary": pa.array([f"kind {each % 4}" for each in numbers]).dictionary_encode(),
            "runs": pa.RunEndEncodedArray.from_arrays([rows], ["same"])
            if rows
            else pa.array([], pa.int8()),
            "fixed": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2)),
        }
    ).replace_schema_metadata({b"key": b"value \xff"})


def assert_same(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    assert found.equals(value)
    assert found.schema.equals(value.schema, check_metadata=True)
    found.validate(full=True)


@pytest.mark.parametrize("rows", [0, 1, 100, 10_000])
def test_tables_and_batches_come_back(store: SwapStore, rows: int) -> None:
    value = table(rows)
    with CompressedMapping(store, serializer="arrow") as mapping:
        mapping["table"] = value
        assert_same(mapping["table"], value)
        for batch in value.to_batches():
            mapping["batch"] = batch
            assert_same(mapping["batch"], batch)
        mapping.check_invariants()


CELLS = st.none() | st.integers(-(2**63), 2**63 - 1)


@given(chunks=st.lists(st.lists(CELLS, max_size=9), max_size=4), data=st.data())
@settings(max_examples=50)
def test_chunks_and_slices_come_back(chunks: list[list[int | None]], data: st.DataObject) -> None:
    value = pa.table(
        {"a": pa.chunked_array([pa.array(each, pa.int64()) for each in chunks], pa.int64())}
    )
    value = value.slice(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)))
    assert_same(back(PACKER, value), value)


@pytest.mark.parametrize(
    "value",
    [
        pa.table({}),
        pa.RecordBatch.from_arrays([], names=[]),
        pa.schema([("a", pa.int8())]).empty_table(),
        pa.table({"same": [1], "other": [2]}).rename_columns(["same", "same"]),
        pa.concat_tables(
            pa.table({"a": pa.array(each).dictionary_encode()})
            for each in (["x"], ["y", "z"], ["x"])
        ),
    ],
    ids=["table", "batch", "rows", "names", "dictionaries"],
)
def test_odd_tables_come_back(value: Any) -> None:
    assert_same(back(PACKER, value), value)


def addresses(parts: list[Any]) -> dict[int, int]:
    """Return where parts lie, and how long they are."""
    return {
        np.frombuffer(part, np.uint8).ctypes.data: len(part) for part in parts if len(part) >= PAGE
    }


@pytest.mark.parametrize("kind", ["table", "batch"])
def test_large_buffers_are_not_copied_on_their_way_in(kind: str) -> None:
    value = pa.table({"int": np.arange(10_000), "text": [f"row {each}" for each in range(10_000)]})
    if kind == "batch":
        (value,) = value.to_batches()
    parts = PACKER.pack(value)
    places = addresses(parts)
    buffers = [
        buffer
        for name in ("int", "text")
        for chunk in getattr(value[name], "chunks", [value[name]])
        for buffer in chunk.buffers()
        if buffer is not None
    ]
    assert len(buffers) == len(places) == 3
    assert {buffer.address for buffer in buffers} == set(places)
    assert sum(len(part) for part in parts) - sum(places.values()) < 1000


def test_a_slice_takes_only_its_rows() -> None:
    value = pa.table({"int": np.arange(100_000)}).slice(50_000, 600)
    assert sum(map(len, PACKER.pack(value))) < 6000
    assert_same(back(PACKER, value), value)


@pytest.mark.parametrize(
    "value",
    [[1], {"a": [1]}, pa.array([1]), pa.chunked_array([[1]]), pd.DataFrame({"a": [1]})],
    ids=lambda value: type(value).__name__,
)
def test_objects_other_than_arrow_tables_are_refused(store: SwapStore, value: Any) -> None:
    with CompressedMapping(store, serializer="arrow") as mapping:
        mapping["key"] = pa.table({"a": [1]})
        why = f"takes pyarrow's Table and RecordBatch, not {type(value).__name__}"
        with pytest.raises(NotStorable, match=why):
            mapping["key"] = value
        assert mapping["key"].num_rows == 1


def test_damaged_bytes_are_refused_or_another_table() -> None:
    value = pa.table({"a": [1, 2, None], "b": ["x", "yy", "zzz"], "c": [[1], [], [2, 3]]})

    def use(found: Any) -> None:
        found.validate(full=True)
        assert found.slice(0, 5).num_rows <= 5

    assert read_damaged(PACKER, packed(PACKER, value), use) > 1000


def test_texts_that_reach_beyond_their_buffer_are_refused() -> None:
    (data,) = packed(PACKER, pa.table({"text": ["abc", "defg"]}))
    at = data.index(np.array([0, 3, 7], np.int32).tobytes())
    wild = data[: at + 8] + (1 << 30).to_bytes(4, "little") + data[at + 12 :]
    with pytest.raises(UnreadableValue, match="not an Arrow stream"):
        PACKER.unpack_one(wild)


def frames() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    numbers = pd.DataFrame(rng.normal(size=(5000, 4)), columns=list("abcd"))
    numbers["int"] = np.arange(5000)
    dates = pd.DataFrame(
        {"x": np.arange(5000.0)}, index=pd.date_range("2026", periods=5000, freq="h")
    )
    arrow = pd.DataFrame({"x": pd.array(np.arange(5000), dtype="int64[pyarrow]")})
    masked = pd.DataFrame({"x": pd.array(np.arange(5000), dtype="Int64")})
    return {"numbers": numbers, "dates": dates, "arrow": arrow, "masked": masked}


@pytest.mark.parametrize("name", frames())
def test_the_buffers_of_pandas_frames_are_not_copied_on_their_way_in(
    store: SwapStore, name: str
) -> None:
    value = frames()[name]
    places = addresses(PicklePacker(PAGE).pack(value)[1:-1])
    if (
        name == "arrow"
    ):  # pandas itself joins their chunks, and so copies them, before it hands them over
        assert sum(places.values()) == 8 * len(value)
    else:
        for column in value:
            data = value[column].array._data if name == "masked" else value[column]
            at = np.asarray(data).ctypes.data
            assert any(start <= at < start + length for start, length in places.items())
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["frame"] = value
        found = mapping["frame"]
        pd.testing.assert_frame_equal(found, value, check_freq=True)
        found.iloc[0] = 0
        pd.testing.assert_frame_equal(mapping["frame"], value)


def test_frames_of_text_come_back(store: SwapStore) -> None:
    value = pd.DataFrame(
        {
            "text": [f"row {each}" for each in range(3000)],
            "kind": pd.Categorical(["a", "b", "c"] * 1000),
        }
    )
    with CompressedMapping(store, serializer="pickle") as mapping:
        mapping["frame"] = value
        pd.testing.assert_frame_equal(mapping["frame"], value)
