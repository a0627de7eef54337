"""Serialisation that returns each value as exactly what it was.

    serialize(value, serializers=SERIALIZERS) ─▶ header, frames ─▶ deserialize

Dask's own serialisation turns unknown subclasses of numpy.ndarray into plain arrays, and subclasses
of bytes into bytes. It also drops a dtype's metadata and the hardness of a mask. Here such values
are pickled or marked, so that nothing is lost.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
from distributed.protocol.serialize import (
    dask_dumps,
    dask_loads,
    register_serialization_family,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SERIALIZERS = ("batchzip-whole", "pickle")
"""Arguments for `serialize`. The first one also applies to elements of lists and dictionaries."""

_BASES = (np.ndarray, bytes, bytearray, array)
"""Dask turns subclasses of these types into the types themselves."""

_KNOWN = {*_BASES, np.matrix, np.ma.MaskedArray, type(np.ma.masked)}
"""Types that Dask restores faithfully."""


def _dumps(value: Any, context: object = None) -> tuple[dict[str, Any], Sequence[Any]]:
    """Serialize a value as Dask does. Raise NotImplementedError if Dask would change it."""
    kind = type(value)
    if issubclass(kind, _BASES) and kind not in _KNOWN:
        raise NotImplementedError
    if issubclass(kind, np.ndarray) and value.dtype.metadata:
        raise NotImplementedError
    header, frames = dask_dumps(value, context)
    if kind is np.ma.MaskedArray and value.hardmask:
        header["hard-mask"] = True  # which pickle would lose, too
    return header, frames


def _loads(header: dict[str, Any], frames: Sequence[Any]) -> object:
    value = dask_loads(header, frames)
    if header.get("hard-mask"):
        value.harden_mask()
    return value


register_serialization_family(SERIALIZERS[0], _dumps, _loads)
