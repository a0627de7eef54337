"""Dask's serialisation, of which each value comes back as what it was.

    serialize(value, serializers=SERIALIZERS) ─▶ header, frames ─▶ deserialize

Dask's own makes a NumPy array of each subclass of it that it does not know, and bytes of a subclass of bytes;
it drops metadata of a dtype, and that a mask is hard. Of these, what is pickled here stays whole.
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
"""For `serialize`; the first one is used for parts of lists and dictionaries, too."""

_BASES = (np.ndarray, bytes, bytearray, array)
"""What Dask makes of their subclasses is one of these."""

_KNOWN = {*_BASES, np.matrix, np.ma.MaskedArray, type(np.ma.masked)}
"""What comes back from Dask as what it was."""


def _dumps(value: Any, context: object = None) -> tuple[dict[str, Any], Sequence[Any]]:
    """Serialize a value as Dask does. Raise NotImplementedError if it would come back as another."""
    kind = type(value)
    if issubclass(kind, _BASES) and kind not in _KNOWN:
        raise NotImplementedError
    if issubclass(kind, np.ndarray) and value.dtype.metadata:
        raise NotImplementedError
    header, frames = dask_dumps(value, context)
    if kind is np.ma.MaskedArray and value.hardmask:
        header["hard-mask"] = True  # which is not pickled, either
    return header, frames


def _loads(header: dict[str, Any], frames: Sequence[Any]) -> object:
    value = dask_loads(header, frames)
    if header.get("hard-mask"):
        value.harden_mask()
    return value


register_serialization_family(SERIALIZERS[0], _dumps, _loads)
