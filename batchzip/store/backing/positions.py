"""Positions of objects in the backing file, as arrays: offset << 21 | length-1 (core/zones.pyx)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions: TypeAlias = npt.NDArray[np.uint64]
    Numbers: TypeAlias = npt.NDArray[np.int64]

LENGTH_BITS = 21
"""Bits of a position that hold length - 1: the largest page is 2 MiB."""


def offsets_of(positions: Positions) -> Numbers:
    """Return the offset of each object's first byte."""
    return (positions >> np.uint64(LENGTH_BITS)).astype(np.int64)


def lengths_of(positions: Positions) -> Numbers:
    """Return the length of each object in bytes."""
    return (positions & np.uint64((1 << LENGTH_BITS) - 1)).astype(np.int64) + 1
