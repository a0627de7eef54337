"""Torch's tensors come back from serializer="torch" as they were, and large ones are not copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.round_trip import PAGE, back, packed, read_damaged, restored

from batchzip import CompressedMapping, NotStorable, SwapStore, UnreadableValue

torch: Any = pytest.importorskip("torch", reason="torch is in no extra of the tests")

from batchzip.mapping.serializers.tensors import TensorPacker  # noqa: E402

PACKER = TensorPacker(PAGE)

DTYPES = sorted(
    name
    for name, kind in vars(torch).items()
    if isinstance(kind, torch.dtype) and str(kind) == f"torch.{name}"
)
DTYPES = [name for name in DTYPES if not name.startswith(("qint", "quint", "complex32"))]


def bytes_of(tensor: Any) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if tensor.numel() else b""


def assert_same(found: Any, value: Any) -> None:
    assert type(found) is torch.Tensor
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert bytes_of(found) == bytes_of(value)


@pytest.mark.filterwarnings("ignore:.*support is experimental")  # of some dtypes, torch says so
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (60, 100)], ids=str)
def test_tensors_of_every_dtype_come_back(name: str, shape: tuple[int, ...]) -> None:
    dtype = getattr(torch, name)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.arange(count) % (2 if name == "bool" else 256)
    value = (
        raw.to(torch.uint8).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    )
    assert_same(back(PACKER, value), value)


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(200, 30).T,
        torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last),
        torch.randn(4, 10, 6, 8).transpose(1, 2),
        torch.randn(3, 4, 5).permute(2, 0, 1),
        torch.randn(100, 100)[::2, ::3],
        torch.ones(3).expand(50, 3),
        torch.randn(60, 50, dtype=torch.complex64).conj(),
        torch.randn(60, 50, dtype=torch.complex64).conj().imag,
        torch.zeros(3, 0, 5),
        torch.tensor(5, dtype=torch.bfloat16),
    ],
    ids=["T", "channels last", "heads", "small", "gaps", "expanded", "conj", "neg", "empty", "0-d"],
)
def test_tensors_of_every_layout_come_back(store: SwapStore, value: Any) -> None:
    with CompressedMapping(store, serializer="torch") as mapping:
        mapping["key"] = value
        found = mapping["key"]
        assert_same(found, value.resolve_conj().resolve_neg())
        dense = value.numel() * value.element_size() == value.untyped_storage().nbytes()
        assert found.stride() == value.stride() if dense else found.is_contiguous()
        found.zero_()
        assert_same(mapping["key"], value.resolve_conj().resolve_neg())


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(100, 100, dtype=torch.bfloat16),
        torch.zeros(2, 8, 16, 16).to(memory_format=torch.channels_last),
        torch.zeros(100, 100)[10:],
        torch.zeros(4, 100, 6, 8, dtype=torch.float16).transpose(1, 2),
    ],
    ids=["bfloat16", "channels last", "slice", "heads"],
)
def test_large_data_is_not_copied_on_its_way_in(value: Any) -> None:
    head, data = PACKER.pack(value)
    assert np.frombuffer(data, np.uint8).ctypes.data == value.data_ptr()
    assert len(data) == value.numel() * value.element_size()
    assert len(head) < 100


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.zeros(3), "not ndarray of float64"),
        ([1.0], "not list"),
        (torch.nn.Parameter(torch.ones(2)), r"not Parameter.*: pass value\.detach\(\)"),
        (torch.ones(2, requires_grad=True), r"requires no gradient: pass value\.detach\(\)"),
        (torch.ones(2, requires_grad=True) * 2, r"requires no gradient: pass value\.detach\(\)"),
        (torch.ones(2, 2).to_sparse(), r"not one of torch\.sparse_coo"),
        (torch.zeros(8, dtype=torch.uint8).view(torch.quint8), r"pass value\.dequantize\(\)"),
        (torch.zeros((1,) * 65), "of up to 64 dimensions"),
        (torch.ones(2, device="meta"), r"not on meta: pass value\.cpu\(\)"),
    ],
    ids=["array", "list", "parameter", "gradient", "result", "sparse", "quantized", "65-d", "meta"],
)
def test_objects_other_than_dense_cpu_tensors_are_refused(
    store: SwapStore, value: Any, why: str
) -> None:
    with CompressedMapping(store, serializer="torch") as mapping:
        mapping["key"] = torch.ones(3)
        with pytest.raises(
            NotStorable, match=f"serializer='torch' takes dense torch.Tensor on the CPU.*{why}"
        ):
            mapping["key"] = value
        assert mapping["key"].sum() == 3


@pytest.mark.parametrize("shape", [(3, 4), (60, 50)], ids=["small", "large"])
def test_damaged_bytes_are_refused_or_another_tensor(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, dtype=torch.float64).T
    assert read_damaged(PACKER, packed(PACKER, value), bytes_of) > 100


@pytest.mark.parametrize("kind", [b"nn", b"Tensor", b"", b"\xff", b"quint8"])
def test_dtypes_that_no_tensor_has_are_refused(kind: bytes) -> None:
    start = packed(PACKER, torch.zeros(8, dtype=torch.uint8))[0][:14]
    data = start[:2] + len(kind).to_bytes(4, "little") + start[6:] + kind + bytes(8)
    with pytest.raises(UnreadableValue):
        restored(PACKER, [data])
