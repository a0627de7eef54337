"""Arrays in a store: their memory as pages, their shape and type in a StoredArray.

    stored = store_array(store, index, array)     its pages at index, index + 1, …
    array = load_array(store, stored)             in any process that can read the store

An array is a NumPy array, or any object in the CPU's memory with `__array_interface__`, the buffer
protocol or DLPack. Whole pages are compressed without a copy. A StoredArray can be pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from batchzip.arguments.checks import as_index, check_kind, is_masked
from batchzip.errors import BadArgument, NotStorable

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.store.group import Group
    from batchzip.store.remote.view import GroupView

Array: TypeAlias = "npt.NDArray[Any]"

_DLPACK_CPU = 1
"""kDLCPU, the DLPack device type of CPU memory."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """The place of an array in a store, with its shape and type; `store_array` returns it.

    Examples:
        >>> import pickle
        >>> import numpy as np
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     stored = batchzip.store_array(store, 100, np.zeros((3, 1000), "f4"))
        >>> stored.shape, stored.nbytes, stored.pages
        ((3, 1000), 12000, 3)
        >>> pickle.loads(pickle.dumps(stored)) == stored
        True
    """

    index: int
    """Index of its first page."""
    shape: tuple[int, ...]
    """Its shape, as in NumPy."""
    dtype: np.dtype[Any]
    """Its type, byte order included."""
    order: Literal["C", "F"]
    """Memory layout: "C" is row-major, "F" is column-major."""
    page_size: int
    """Bytes per page of its store."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def pages(self) -> int:
        """Number of pages it takes, from `index` on. The next array may start after them."""
        return -(-self.nbytes // self.page_size)


def store_array(store: Group, index: int, array: object) -> StoredArray:
    """Store an array from `index` on, all or nothing. Return what `load_array` needs to load it.

    `store` is a store or a group. `array` is read only during the call, and copied only if it is
    not contiguous. After StoreRejected the indices hold nothing, as with `store.store`. A reader
    that still has the StoredArray of an earlier array at these indices gets that array,
    PageNotStored, or bytes of the new array.

    Raise NotStorable, a TypeError, if `array` is not an array, holds Python objects, or is in the
    memory of another device.

    Examples:
        >>> import numpy as np
        >>> import batchzip
        >>> with batchzip.Engine("lz4", shuffle=4) as engine, batchzip.SwapStore(engine) as store:
        ...     first = batchzip.store_array(store, 0, np.arange(5000, dtype="i4"))
        ...     second = batchzip.store_array(store, first.index + first.pages, np.eye(50))
        ...     batchzip.load_array(store, second).sum()
        np.float64(50.0)
    """
    size = _page_size(store)
    index = as_index(index)
    given = as_numpy(array)
    order: Literal["C", "F"] = (
        "F" if given.flags.f_contiguous and not given.flags.c_contiguous else "C"
    )
    if order == "C":
        given = np.ascontiguousarray(given).reshape(given.shape)
    stored = StoredArray(index, given.shape, given.dtype, order, size)
    if not stored.pages:
        return stored
    flat = given.reshape(-1, order=order).view(np.uint8)
    whole = len(flat) // size
    store.invalidate(index, stored.pages)
    try:
        # The tail first: if the call ends halfway, pages are missing, and old and new never mix.
        if whole < stored.pages:
            tail = np.zeros(size, np.uint8)
            tail[: len(flat) - whole * size] = flat[whole * size :]
            store.store(index + whole, tail)
        if whole:
            store.store(index, flat[: whole * size].reshape(whole, size))
    except BaseException:
        store.invalidate(index, stored.pages)
        raise
    return stored


def load_array(store: Group | GroupView, stored: StoredArray, out: Array | None = None) -> Array:
    """Return the array with its shape and type, in new memory, or fill `out` and return it.

    `store` is the store or group that holds the array, or a view of it in another process. `out`
    has the same shape, type and order. Raise the same errors as `store.load_many`: PageNotStored,
    CorruptPage, PageError; the content of `out` is undefined then.

    Examples:
        >>> import numpy as np
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     stored = batchzip.store_array(store, 0, np.arange(12).reshape(3, 4))
        ...     batchzip.load_array(store, stored, out=np.empty((3, 4), np.int64))
        array([[ 0,  1,  2,  3],
               [ 4,  5,  6,  7],
               [ 8,  9, 10, 11]])
    """
    check_kind(stored, "stored", StoredArray)
    if stored.page_size != (size := _page_size(store)):
        raise BadArgument(
            f"the array was stored in pages of {stored.page_size} bytes, "
            f"but this store has pages of {size}"
        )
    if out is not None:
        _check_out(out, stored)
    if not stored.nbytes:
        return np.empty(stored.shape, stored.dtype, stored.order) if out is None else out
    where = range(stored.index, stored.index + stored.pages)
    if out is not None and stored.nbytes % stored.page_size == 0:
        store.load_many(where, out.reshape(-1, order=stored.order).view(np.uint8))
        return out
    flat = store.load_many(where).reshape(-1)[: stored.nbytes].view(stored.dtype)
    array = flat.reshape(stored.shape, order=stored.order)
    if out is None:
        return array
    out[...] = array
    return out


def _page_size(store: Group | GroupView) -> int:
    # Any object with a store's methods is accepted.
    if not all(hasattr(store, name) for name in ("page_size", "load_many")):
        raise BadArgument(
            f"store must be a SwapStore, one of its groups or a view, not {type(store).__name__}"
        )
    return store.page_size


def as_numpy(array: object) -> Array:
    """Return a NumPy array that shares the memory of `array`. Raise NotStorable."""
    if is_masked(array):
        raise NotStorable(
            "a masked array keeps its mask in a second array: store .data and .mask, or .filled(), "
            "or put it in a CompressedMapping with serializer='pickle'"
        )
    try:
        if isinstance(array, np.ndarray):
            found: Array = np.asarray(array)
        elif hasattr(array, "__array_interface__"):
            found = np.asarray(array)
        elif hasattr(array, "__dlpack__"):
            found = _from_dlpack(array)
        else:
            found = np.asarray(memoryview(array))  # type: ignore[arg-type] # raises if it has none
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise NotStorable(
            f"NumPy cannot view {type(array).__name__} as an array on the CPU: {error}"
        ) from error
    if found.dtype.hasobject:
        raise NotStorable(
            f"an array of {found.dtype} refers to Python objects: "
            "put it in a CompressedMapping with serializer='pickle'"
        )
    return found


def _from_dlpack(array: Any) -> Array:
    device, _ = array.__dlpack_device__()
    if device != _DLPACK_CPU:
        raise BufferError(f"it is on DLPack device type {int(device)}; copy it to the CPU")
    return np.from_dlpack(array)


def _check_out(out: Array, stored: StoredArray) -> None:
    if not isinstance(out, np.ndarray) or is_masked(out):
        raise BadArgument(f"out must be an array, not {type(out).__name__}")
    contiguous = out.flags.f_contiguous if stored.order == "F" else out.flags.c_contiguous
    if (out.shape, out.dtype) != (stored.shape, stored.dtype) or not contiguous:
        raise BadArgument(
            f"out must be a contiguous array of {stored.dtype}, shape {stored.shape}, "
            f"order {stored.order!r}; not {out.dtype}, {out.shape}"
        )
    if not out.flags.writeable:
        raise BadArgument("out must be writable, but it is read-only")
