"""Checks and conversions of the arguments of a store's methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.arguments import buffers
from batchzip.arguments.checks import as_index, as_integer, is_masked
from batchzip.errors import BadArgument, BadBatch, PageNotStored
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import SupportsIndex

    import numpy.typing as npt

    from batchzip.arguments.buffers import Buffer

MAX_INDEX = (1 << 63) - 1
"""Largest index: indices are passed in int64 arrays."""


def as_range(index: SupportsIndex, count: SupportsIndex) -> tuple[int, int]:
    """Return an index and a count as ints. Raise BadArgument unless all those indices are valid."""
    first, number = as_index(index), as_integer(count, "count", 1)
    if first < 0 or first + number - 1 > MAX_INDEX:
        raise BadArgument(
            f"indices must be from 0 to 2⁶³−1, not {shown(first)} to {shown(first + number - 1)}"
        )
    return first, number


def as_pages(pages: Buffer | Sequence[Buffer], size: int) -> buffers.Bytes | list[buffers.Flat]:
    """Return pages of any form as an (n, size) array, or as a list of n buffers of `size` bytes."""
    if type(pages) is bytes and len(pages) == size:
        return [pages]
    if (
        type(pages) is np.ndarray
        and pages.dtype.char == "B"
        and pages.shape in ((size,), (1, size))
        and pages.flags.c_contiguous
    ):
        return [pages.data.cast("B")]
    if not buffers.is_sequence(pages):
        return buffers.as_matrix(pages, "pages", rows=None, width=size)
    inputs = buffers.as_inputs(pages, "pages")
    for number, page in enumerate(inputs):
        if len(page) != size:
            raise BadBatch(f"pages[{number}] must have {size} bytes, not {len(page)}")
    return inputs


def count_pages(pages: Buffer | Sequence[Buffer], size: int) -> int:
    """Return the number of pages that `as_pages` would return, without memory for them."""
    if buffers.is_sequence(pages):
        return len(pages)
    with memoryview(pages) as view:  # type: ignore[arg-type] # it is no sequence
        return view.nbytes // size


def as_out(out: Buffer, size: int) -> memoryview:
    """Return a view of a writable buffer of one page. Raise BadBatch if it has another size."""
    view = buffers.as_view(out, "out", writable=True)
    if len(view) != size:
        raise BadBatch(f"out must have {size} bytes, not {len(view)}")
    return view


def as_room(out: Buffer | None, count: int, size: int) -> buffers.Bytes:
    """Return a writable buffer as a (count, size) array, or a new array for None."""
    if out is None:
        return np.empty((count, size), np.uint8)
    return buffers.as_matrix(out, "out", rows=count, width=size, writable=True)


def as_indices(indices: Iterable[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return indices as an int64 array, without changing the value of any.

    Raise BadArgument unless they are integers in one dimension, and PageNotStored if one of them is
    outside 0…2⁶³−1.
    """
    given = indices if hasattr(indices, "__array__") else list(indices)
    where = np.asarray(given)
    if isinstance(given, list) and where.ndim == 1 and where.dtype.kind in "fO":
        # NumPy turns a mix of uint64 and other integers into floats, and large ones into objects.
        where = np.array([_as_stored_index(index) for index in given], np.int64)
    if where.ndim != 1 or (where.dtype.kind not in "iu" and len(where)) or is_masked(given):
        masked = "a masked array" if is_masked(given) else "an array"
        kind = f"{masked} of {where.dtype}, shape {where.shape}"
        raise BadArgument(f"indices must be integers from 0 to 2⁶³−1 in one dimension, not {kind}")
    if where.dtype == np.uint64 and len(where) and where.max() > MAX_INDEX:
        raise PageNotStored(int(where[where > MAX_INDEX][0]))
    return where.astype(np.int64, copy=False)


def _as_stored_index(value: object) -> int:
    index = as_index(value)
    if not 0 <= index <= MAX_INDEX:
        raise PageNotStored(index)
    return index
