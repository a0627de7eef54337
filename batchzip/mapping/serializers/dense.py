"""Dense arrays as parts: a head that says what the array is, and its data.

    flags, dimensions, length of the kind │ shape │ order of axes, if not C's │ kind │ data

`kind` is the array's dtype, as its packer writes it. Data is in the order of the axes, without
gaps; it stays where it is if it is long, else it follows the head. The shape is that of the data.
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
"""As NumPy's; a tensor may have more."""

_HEADS = [struct.Struct(f"<BBI{dimensions}Q") for dimensions in range(MAX_DIMENSIONS + 1)]
"""Flags, dimensions, length of the kind and shape, for each number of dimensions."""


class Dense(NamedTuple):
    """An array without gaps, in C's order of `shape`.

    `axes` has the axis of the array that each axis of the data is, or is None if they are the same.
    """

    kind: bytes
    flags: int
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    data: Flat | bytearray


def pack(dense: Dense, least: int) -> list[Flat]:
    """Give the parts: one of up to `least` bytes, or the head and the data where it lies."""
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
    """Give the array of its parts, whose data may be written to. Raises UnreadableValue."""
    if not 0 < len(parts) <= 2:
        raise UnreadableValue(f"{len(parts)} parts are no array, which has one or two")
    head = parts[0]
    try:
        form = _HEADS[head[1]]
        flags, dimensions, length, *shape = form.unpack_from(head)
    except (IndexError, struct.error):
        raise UnreadableValue("the head of an array is cut short, or none") from None
    at = form.size
    axes = None
    if flags & _HAS_AXES:
        axes = tuple(head[at : at + dimensions])
        at += dimensions
        if sorted(axes) != list(range(dimensions)):
            raise UnreadableValue("the head of an array has each of its axes in no order")
    kind = bytes(head[at : at + length])
    at += length
    if len(kind) != length or (len(parts) == 2 and at != len(head)):
        raise UnreadableValue("the head of an array does not have the length that it says")
    data = bytearray(head[at:]) if len(parts) == 1 else memoryview(parts[1])
    return Dense(kind, flags & ~_HAS_AXES, tuple(shape), axes, data)


def check_length(dense: Dense, itemsize: int) -> None:
    """Raise UnreadableValue where an array has not as many bytes as its shape says."""
    wanted = math.prod(dense.shape) * itemsize
    if len(dense.data) != wanted:
        raise UnreadableValue(
            f"an array has {len(dense.data)} bytes, and {wanted} by its shape {dense.shape}"
        )


def axes_by_stride(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the axes from the one whose items lie farthest apart to the one of neighbours."""
    return tuple(sorted(range(len(strides)), key=lambda axis: -strides[axis]))


def inverse(axes: Sequence[int]) -> list[int]:
    """Return the order of axes that undoes `axes`."""
    return sorted(range(len(axes)), key=axes.__getitem__)
