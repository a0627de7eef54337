"""Dense arrays as parts: a head that describes the array, and its data.

    flags, dimensions, length of the kind │ shape │ order of axes, if not C's │ kind │ data

`kind` is the array's dtype, as its packer writes it. The data is contiguous, in the given order of
axes, and the shape is that of the data. Short data follows the head in the same part. Long data is
a part of its own and is not copied.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, NamedTuple

from batchzip.errors import UnreadableValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat

READ_ONLY = 1
SCALAR = 2
_HAS_AXES = 128

MAX_DIMENSIONS = 64
"""NumPy's limit. A tensor may have more dimensions."""

_HEADS = [struct.Struct(f"<BBI{dimensions}Q") for dimensions in range(MAX_DIMENSIONS + 1)]
"""Flags, dimensions, length of the kind and shape, for each number of dimensions."""


class Dense(NamedTuple):
    """A contiguous array, in C order of `shape`.

    `axes` maps each axis of the data to an axis of the array. None means that they are the same.
    """

    kind: bytes
    flags: int
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    data: Flat | bytearray


def pack(dense: Dense, least: int) -> list[Flat]:
    """Return one part of up to `least` bytes, or the head and a view of the data."""
    kind, flags, shape, axes, data = dense
    dimensions = len(shape)
    if axes is None:
        head = _HEADS[dimensions].pack(flags, dimensions, len(kind), *shape) + kind
    else:
        start = _HEADS[dimensions].pack(flags | _HAS_AXES, dimensions, len(kind), *shape)
        head = start + bytes(axes) + kind
    if len(head) + len(data) <= least or not len(data):
        return [head + data]
    return [head, memoryview(data)]


def unpack(parts: Sequence[memoryview | bytes]) -> Dense:
    """Return the array of some parts, with writable data. Raise UnreadableValue."""
    if not 0 < len(parts) <= 2:
        raise UnreadableValue(f"an array has one or two parts, not {len(parts)}")
    head = parts[0]
    try:
        form = _HEADS[head[1]]
        flags, dimensions, length, *shape = form.unpack_from(head)
    except (IndexError, struct.error):
        raise UnreadableValue("the head of an array is truncated or invalid") from None
    at = form.size
    axes = None
    if flags & _HAS_AXES:
        axes = tuple(head[at : at + dimensions])
        at += dimensions
        if sorted(axes) != list(range(dimensions)):
            raise UnreadableValue("the head of an array does not name each of its axes once")
    kind = bytes(head[at : at + length])
    at += length
    if len(kind) != length or (len(parts) == 2 and at != len(head)):
        raise UnreadableValue("the head of an array does not have its stated length")
    data = bytearray(head[at:]) if len(parts) == 1 else memoryview(parts[1])
    return Dense(kind, flags & ~_HAS_AXES, tuple(shape), axes, data)


def check_length(dense: Dense, itemsize: int) -> None:
    """Raise UnreadableValue if the data's length does not match the shape."""
    wanted = math.prod(dense.shape) * itemsize
    if len(dense.data) != wanted:
        raise UnreadableValue(
            f"an array of shape {dense.shape} has {len(dense.data)} bytes instead of {wanted}"
        )


def axes_by_stride(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the axes sorted by stride, the largest first."""
    return tuple(sorted(range(len(strides)), key=lambda axis: -strides[axis]))


def inverse(axes: Sequence[int]) -> list[int]:
    """Return the order of axes that undoes `axes`."""
    return sorted(range(len(axes)), key=axes.__getitem__)
