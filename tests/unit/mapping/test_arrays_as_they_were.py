"""Arrays, scalars and their flags come back as they were; bytes of another length are refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from support.round_trip import PAGE, back, restored

from batchzip import UnreadableValue
from batchzip.mapping.serializers import packer_of

PACKER = packer_of("numpy", PAGE)


@pytest.mark.parametrize(
    "value",
    [
        np.array(7),
        np.array("text"),
        np.array(["a", "b\0"]),
        np.array([b"a", b""]),
        np.array(b"x" * 5000),
        np.arange(6).reshape(2, 3).T,
        np.zeros((1,) * 64),
    ],
    ids=["0-d", "0-d text", "text", "bytes", "large", "axes", "64-d"],
)
@pytest.mark.parametrize("writable", [False, True])
def test_an_array_stays_an_array_and_as_writable_as_it_was(
    value: np.ndarray, writable: bool
) -> None:
    value.flags.writeable = writable
    found: Any = back(PACKER, value)
    assert type(found) is np.ndarray
    assert found.flags.writeable == writable
    assert (found.dtype, found.shape, found.strides) == (value.dtype, value.shape, value.strides)
    assert found.tobytes() == value.tobytes()


def test_a_scalar_stays_a_scalar_and_a_record_can_be_changed() -> None:
    for value in (np.int16(-7), np.str_("a\0"), np.bytes_(b"\0"), np.datetime64("2026-01-01")):
        found: Any = back(PACKER, value)
        assert type(found) is type(value)
        assert found == value
    record: Any = back(PACKER, np.zeros(2, [("a", "i4"), ("b", "S3")])[1])
    assert type(record) is np.void
    record["a"] = 5
    assert record.item() == (5, b"")


def head(kind: bytes, shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<BBI{len(shape)}Q", 0, len(shape), len(kind), *shape) + kind


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([head(b"<f8", (2,)) + bytes(15)], r"shape \(2,\) has 15 bytes instead of 16"),
        ([head(b"<f8", (2,)) + bytes(17)], r"shape \(2,\) has 17 bytes instead of 16"),
        ([head(b"<f8", (625,)), bytes(4999)], "4999 bytes instead of 5000"),
        ([head(b"<f8", (625,)) + b"more", bytes(5000)], "does not have its stated length"),
        ([head(b"<f8", (1,))[:-1]], "does not have its stated length"),
        ([head(b"<f8", (1,))[:10]], "truncated or invalid"),
        ([b"\x00\x41" + bytes(600)], "truncated or invalid"),
        ([], "one or two parts, not 0"),
        ([head(b"<f8", (625,)), bytes(5000), b""], "one or two parts, not 3"),
    ],
)
def test_bytes_of_another_length_are_refused_and_told(parts: list[bytes], why: str) -> None:
    with pytest.raises(UnreadableValue, match=why):
        restored(PACKER, parts)
