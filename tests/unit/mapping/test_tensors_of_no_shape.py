"""Bytes whose shape no tensor can have are refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from support.round_trip import PAGE, restored

from batchzip import UnreadableValue

torch: Any = pytest.importorskip("torch", reason="torch is in no extra of the tests")

from batchzip.mapping.serializers.tensors import TensorPacker  # noqa: E402


@pytest.mark.parametrize("shape", [(2**64 - 1, 0), (2**63, 0), (2**40, 2**40, 0)], ids=str)
def test_shapes_that_no_tensor_has_are_refused(shape: tuple[int, ...]) -> None:
    kind = b"float64"
    head = struct.pack(f"<BBI{len(shape)}Q", 0, len(shape), len(kind), *shape) + kind
    with pytest.raises(UnreadableValue, match="the bytes are not a tensor"):
        restored(TensorPacker(PAGE), [head])
