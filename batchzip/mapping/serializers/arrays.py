"""NumPy's arrays and scalars, without pickle: loading never runs code from the bytes.

A dtype is described by NumPy's own string ("<f8", "<M8[us]", "|S5") if that is complete. Otherwise
it is described by JSON: records with their offsets, subarrays, and the types of ml_dtypes
(bfloat16, float8 …) by name. The metadata of a dtype is not kept.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.errors import NotStorable, UnreadableValue
from batchzip.mapping.serializers import dense
from batchzip.mapping.serializers.dense import READ_ONLY, SCALAR, Dense
from batchzip.wording import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat

_SIMPLE = re.compile(r"[<>|][biufcSUVMm]\d+(\[\d*[a-zA-Z]+\])?", re.ASCII)
"""Strings of dtypes without fields. NumPy's own parser accepts many others, too."""

_TAKES = "serializer='numpy' takes NumPy's arrays and scalars"


class ArrayPacker:
    """Packs NumPy's arrays and scalars. Contiguous data of 64 KiB or more is not copied.

    Arrays keep their dtype, shape and order of axes, and are writable if they were. An array with
    gaps (`a[::2]`) is returned in C order.
    """

    def __init__(self, least: int) -> None:
        self._least = least

    def pack(self, value: object) -> list[Flat]:
        """Describe and view a value. Raise NotStorable for Python objects and for subclasses."""
        flags = 0
        if isinstance(value, np.generic):
            if type(value) is not value.dtype.type:
                raise NotStorable(
                    f"{_TAKES}, not {type(value).__name__}, which is a subclass of one"
                )
            flags = SCALAR
        elif type(value) is not np.ndarray:
            raise NotStorable(_refusal(value))
        kind = _text_of(value.dtype)
        if isinstance(value, (np.str_, np.bytes_)):  # an array would lose trailing zeros
            text = bytes(value) if isinstance(value, bytes) else _utf32(value)
            return dense.pack(Dense(kind, flags, (), None, text), self._least)
        if not value.flags.writeable:
            flags |= READ_ONLY
        array = np.asarray(value)
        axes = None
        if not array.flags.c_contiguous:
            axes = dense.axes_by_stride(array.strides)
            array = array.transpose(axes)
            if not array.flags.c_contiguous:
                axes, array = None, np.ascontiguousarray(value)
        data: Any = (
            array.tobytes() if array.nbytes < self._least else array.reshape(-1).view(np.uint8).data
        )
        return dense.pack(Dense(kind, flags, array.shape, axes, data), self._least)

    def unpack(self, parts: Sequence[memoryview | bytes]) -> object:
        """Return an array that views its data. Raise UnreadableValue."""
        found = dense.unpack(parts)
        try:
            dtype = _dtype_of(found.kind)
            if found.flags & SCALAR and dtype.kind in "SU":
                return _string(dtype, bytes(found.data))
            dense.check_length(found, dtype.itemsize)
            array: np.ndarray[Any, Any] = np.ndarray(found.shape, dtype, buffer=found.data)
        except (ValueError, TypeError, MemoryError) as error:
            raise UnreadableValue(f"the bytes are not a NumPy array: {error}") from None
        if found.axes is not None:
            array = array.transpose(dense.inverse(found.axes))
        if found.flags & READ_ONLY:
            array.flags.writeable = False
        return array[()] if found.flags & SCALAR else array

    def unpack_one(self, data: bytes) -> object:
        """Return an array with a copy of its data. Raise UnreadableValue."""
        return self.unpack([data])


def _refusal(value: object) -> str:
    if isinstance(value, np.ndarray):
        return (
            f"{_TAKES}, not {kind_of(value)}, which is a subclass: pass np.asarray(value), or use "
            "serializer='pickle'"
        )
    return f"{_TAKES}, not {kind_of(value)}: use serializer='pickle' for other values"


def _utf32(text: str) -> bytes:
    return text.encode("utf-32-le", "surrogatepass")


def _string(dtype: np.dtype[Any], data: bytes) -> np.str_ | np.bytes_:
    """Return a scalar of str or bytes. Raise UnicodeDecodeError, a ValueError."""
    return (
        np.bytes_(data) if dtype.kind == "S" else np.str_(data.decode("utf-32-le", "surrogatepass"))
    )


def _text_of(dtype: np.dtype[Any]) -> bytes:
    """Return the description of a dtype. Raise NotStorable."""
    if dtype.hasobject:
        raise NotStorable(
            f"{_TAKES} without Python objects, not of dtype {dtype}: use serializer='pickle'"
        )
    if dtype.names is None and dtype.subdtype is None and dtype.type.__module__ == "numpy":
        return dtype.str.encode()
    return json.dumps(_tree_of(dtype)).encode()


def _tree_of(dtype: np.dtype[Any]) -> object:
    kind = dtype.type
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _tree_of(base), "shape": shape}
    if dtype.names is not None and kind in (np.void, np.record):
        known: Any = dtype.fields
        fields = [known[name] for name in dtype.names]
        titles = [field[2] if len(field) > 2 else None for field in fields]
        if all(title is None or isinstance(title, str) for title in titles):
            return {
                "names": dtype.names,
                "formats": [_tree_of(field[0]) for field in fields],
                "offsets": [field[1] for field in fields],
                "titles": titles,
                "itemsize": dtype.itemsize,
                "aligned": dtype.isalignedstruct,
                "record": kind is np.record,
            }
    elif kind.__module__ == "ml_dtypes" and np.dtype(kind) == dtype:
        return {"ml_dtypes": kind.__name__}
    elif kind.__module__ == "numpy" and np.dtype(dtype.str) == dtype:
        return dtype.str
    raise NotStorable(f"{_TAKES} of NumPy's own dtypes, not {dtype}: use serializer='pickle'")


@lru_cache(maxsize=256)
def _dtype_of(text: bytes) -> np.dtype[Any]:
    """Return the dtype of a description. Raise ValueError or TypeError if it describes none."""
    try:
        tree = json.loads(text) if text.startswith(b"{") else text.decode("ascii")
        dtype = _dtype_of_tree(tree)
    except (
        KeyError,
        IndexError,
        AttributeError,
        SyntaxError,
        ImportError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"{error!r} in its dtype") from None
    if dtype.hasobject:  # its bytes would be used as addresses
        raise ValueError("its dtype has Python objects")
    return dtype


def _dtype_of_tree(tree: Any) -> np.dtype[Any]:
    if isinstance(tree, str):
        if not _SIMPLE.fullmatch(tree):
            raise ValueError(f"{tree!r} is not a dtype")
        dtype: np.dtype[Any] = np.dtype(tree)
        return dtype
    if "ml_dtypes" in tree:
        kind = getattr(import_module("ml_dtypes"), tree["ml_dtypes"])
        if not (isinstance(kind, type) and issubclass(kind, np.generic)):
            raise ValueError(f"{tree} is not a dtype")
        return np.dtype(kind)
    if "base" in tree:
        return np.dtype((_dtype_of_tree(tree["base"]), tuple(tree["shape"])))
    names, titles = tree["names"], tree["titles"]
    if not all(title is None or isinstance(title, str) for title in titles):
        raise ValueError(f"{tree} is not a dtype")
    dtype = np.dtype(
        {
            "names": names,
            "formats": [_dtype_of_tree(each) for each in tree["formats"]],
            "offsets": tree["offsets"],
            "titles": titles,
            "itemsize": tree["itemsize"],
        },
        align=tree["aligned"] is True,
    )
    return np.dtype((np.record, dtype)) if tree["record"] else dtype
