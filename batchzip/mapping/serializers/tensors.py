"""Torch's tensors on the CPU, by the buffer protocol: loading never runs code from the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.errors import NotStorable, UnreadableValue
from batchzip.extras import load_extra
from batchzip.mapping.serializers import dense
from batchzip.mapping.serializers.dense import Dense
from batchzip.wording import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat

_TAKES = "serializer='torch' takes dense torch.Tensor on the CPU"


class TensorPacker:
    """Packs dense, unquantized tensors on the CPU. Contiguous data of 64 KiB or more is not copied.

    Tensors keep their dtype, shape and order of axes (such as channels last). A tensor with gaps
    (`t[::2]`, or expanded) is restored contiguous. A conjugated view is restored as its values. A
    tensor that requires a gradient is refused, because its graph would be lost.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._torch = load_extra("torch", extra="torch", needed_by="serializer='torch'")

    def pack(self, value: Any) -> list[Flat]:
        """Describe and view a tensor. Raise NotStorable."""
        torch = self._torch
        if type(value) is not torch.Tensor:
            hint = ": pass value.detach()" if isinstance(value, torch.nn.Parameter) else ""
            raise NotStorable(f"{_TAKES}, not {kind_of(value)}{hint}")
        if value.requires_grad:
            raise NotStorable(f"{_TAKES} that requires no gradient: pass value.detach()")
        if value.device.type != "cpu":
            raise NotStorable(f"{_TAKES}, not on {value.device}: pass value.cpu()")
        if value.layout is not torch.strided:
            raise NotStorable(f"{_TAKES}, not one of {value.layout}")
        if value.dim() > dense.MAX_DIMENSIONS:
            raise NotStorable(f"{_TAKES} of up to {dense.MAX_DIMENSIONS} dimensions")
        if _is_quantized(value.dtype):
            raise NotStorable(f"{_TAKES}, not one of {value.dtype}: pass value.dequantize()")
        tensor = value.resolve_conj().resolve_neg()
        axes = None
        if not tensor.is_contiguous():
            axes = dense.axes_by_stride(tensor.stride())
            permuted = tensor.permute(axes)
            if permuted.is_contiguous():
                tensor = permuted
            else:
                axes, tensor = None, tensor.contiguous()
        data: Any = b""
        if tensor.numel():  # viewed as bytes, because NumPy has no bfloat16
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
        kind = str(tensor.dtype).removeprefix("torch.").encode()
        return dense.pack(Dense(kind, 0, tuple(tensor.shape), axes, data), self._least)

    def unpack(self, parts: Sequence[memoryview | bytes]) -> object:
        """Return a tensor that views its data. Raise UnreadableValue."""
        torch = self._torch
        found = dense.unpack(parts)
        dtype = getattr(torch, found.kind.decode("ascii", "replace"), None)
        if not isinstance(dtype, torch.dtype) or _is_quantized(dtype):
            raise UnreadableValue(f"torch has no dtype {found.kind!r}")
        dense.check_length(found, dtype.itemsize)
        try:
            if len(found.data):
                flat = torch.frombuffer(found.data, dtype=torch.uint8)
                tensor = flat.view(dtype).reshape(found.shape)
            else:
                tensor = torch.empty(found.shape, dtype=dtype)
        except Exception as error:  # noqa: BLE001 - torch raises several kinds for a wrong shape
            raise UnreadableValue(f"the bytes are not a tensor: {error}") from None
        return tensor if found.axes is None else tensor.permute(dense.inverse(found.axes))

    def unpack_one(self, data: bytes) -> object:
        """Return a tensor with a copy of its data. Raise UnreadableValue."""
        return self.unpack([data])


def _is_quantized(dtype: object) -> bool:
    """Return whether tensors of a dtype need a scale, without which using them would crash."""
    return str(dtype).startswith(("torch.qint", "torch.quint"))
