"""Arrays in a store: their memory as pages, their shape and type in a ticket.

    stored = store_array(store, index, array)     its pages at index, index + 1, …
    array = load_array(store, stored)             in any process that can read the store

Any array on the CPU: NumPy's, or what has `__array_interface__`, the buffer protocol or DLPack. Whole
pages are compressed from where they are. The ticket can be pickled.
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
"""kDLCPU, the device type of memory that a CPU reads."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """Where an array lies in a store, and what it is; made by `store_array`.

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
    """The first of its pages."""
    shape: tuple[int, ...]
    """Its lengths, as NumPy's."""
    dtype: np.dtype[Any]
    """Its type, byte order included."""
    order: Literal["C", "F"]
    """Which index changes slowest in memory: the first, or the last."""
    page_size: int
    """Bytes of a page of the store it was put in."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def pages(self) -> int:
        """How many pages it takes, from `index` on: what the next array's index comes after."""
        return -(-self.nbytes // self.page_size)


def store_array(store: Group, index: int, array: object) -> StoredArray:
    """Store an array from `index` on, all or nothing; what `load_array` wants to know of it.

    `store` is a store or a group. `array` is read during the call only, and copied only if it is not
    contiguous. As with `store.store`, the indices hold nothing after StoreRejected. A reader with a
    ticket of what they held before finds the old array, none (PageNotStored), or the new one's bytes.

    Raises NotStorable, a TypeError, for what is no array, has Python objects in it, or lies in another device.

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
        # The tail first: what is cut short between lacks pages, and is never old and new in one.
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
    """Give the array, of its shape and type, in memory of its own; or in `out`, which is returned.

    `store` is the store or group it was put in, or a view of it in another process. `out` has the same shape,
    type and order. Raises as `store.load_many`: PageNotStored, CorruptPage, PageError; `out` is
    undefined then.

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
            f"the array was stored in pages of {stored.page_size} bytes, this store has {size}"
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
    # Whatever has a store's methods will do.
    if not all(hasattr(store, name) for name in ("page_size", "load_many")):
        raise BadArgument(
            f"store is a SwapStore, a group of one or a view, not {type(store).__name__}"
        )
    return store.page_size


def as_numpy(array: object) -> Array:
    """View an array of any kind as NumPy's; only its own memory is looked at."""
    if is_masked(array):
        raise NotStorable(
            "a masked array has a mask beside its memory: store .data and .mask, .filled(), or put it in a "
            "CompressedMapping with serializer='pickle'"
        )
    try:
        if isinstance(array, np.ndarray):
            found: Array = np.asarray(array)
        elif hasattr(array, "__array_interface__"):
            found = np.asarray(array)
        elif hasattr(array, "__dlpack__"):
            found = _from_dlpack(array)
        else:
            found = np.asarray(memoryview(array))  # type: ignore[arg-type] # refuses what is none
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise NotStorable(
            f"{type(array).__name__} is no array that NumPy can view on the CPU: {error}"
        ) from error
    if found.dtype.hasobject:
        raise NotStorable(
            f"an array of {found.dtype} refers to Python objects: put it in a CompressedMapping with serializer='pickle'"
        )
    return found


def _from_dlpack(array: Any) -> Array:
    device, _ = array.__dlpack_device__()
    if device != _DLPACK_CPU:
        raise BufferError(f"it lies in device type {int(device)} of DLPack; copy it to the CPU")
    return np.from_dlpack(array)


def _check_out(out: Array, stored: StoredArray) -> None:
    if not isinstance(out, np.ndarray) or is_masked(out):
        raise BadArgument(f"out must be an array, not {type(out).__name__}")
    contiguous = out.flags.f_contiguous if stored.order == "F" else out.flags.c_contiguous
    if (out.shape, out.dtype) != (stored.shape, stored.dtype) or not contiguous:
        raise BadArgument(
            f"out must be a contiguous array of {stored.dtype}, shape {stored.shape}, order {stored.order!r}; not {out.dtype}, {out.shape}"
        )
    if not out.flags.writeable:
        raise BadArgument("out is read-only, and would be written to")
