"""Arguments of a store's calls, made what the code behind them takes, or refused by what is wrong."""

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
"""Largest index: indices travel in int64 arrays."""


def as_range(index: SupportsIndex, count: SupportsIndex) -> tuple[int, int]:
    """Make ints of an index and a count; BadArgument unless all of those indices are valid."""
    first, number = as_index(index), as_integer(count, "count", 1)
    if first < 0 or first + number - 1 > MAX_INDEX:
        raise BadArgument(
            f"indices lie in 0…2⁶³−1, and {shown(first)} to {shown(first + number - 1)} do not"
        )
    return first, number


def as_pages(pages: Buffer | Sequence[Buffer], size: int) -> buffers.Bytes | list[buffers.Flat]:
    """Make an (n, size) array, or a list of n buffers of `size` bytes, of any form of pages."""
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
            raise BadBatch(f"pages[{number}] has {len(page)} bytes, not {size}")
    return inputs


def as_out(out: Buffer, size: int) -> memoryview:
    """Make a view of a writable buffer of one page."""
    view = buffers.as_view(out, "out", writable=True)
    if len(view) != size:
        raise BadBatch(f"out has {len(view)} bytes, not {size}")
    return view


def as_room(out: Buffer | None, count: int, size: int) -> buffers.Bytes:
    """Make a (count, size) array of a writable buffer, or a new one."""
    if out is None:
        return np.empty((count, size), np.uint8)
    return buffers.as_matrix(out, "out", rows=count, width=size, writable=True)


def as_indices(indices: Iterable[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Make an int64 array of indices; none of them changes its value on the way."""
    given = indices if hasattr(indices, "__array__") else list(indices)
    where = np.asarray(given)
    if isinstance(given, list) and where.ndim == 1 and where.dtype.kind in "fO":
        # NumPy makes floats of uint64 and other integers, and objects of large ones.
        where = np.array([_as_stored_index(index) for index in given], np.int64)
    if where.ndim != 1 or (where.dtype.kind not in "iu" and len(where)) or is_masked(given):
        masked = "a masked array" if is_masked(given) else "an array"
        kind = f"{masked} of {where.dtype}, shape {where.shape}"
        raise BadArgument(f"indices must be integers from 0 to 2⁶³−1, in one dimension, not {kind}")
    if where.dtype == np.uint64 and len(where) and where.max() > MAX_INDEX:
        raise PageNotStored(int(where[where > MAX_INDEX][0]))
    return where.astype(np.int64, copy=False)


def _as_stored_index(value: object) -> int:
    index = as_index(value)
    if not 0 <= index <= MAX_INDEX:
        raise PageNotStored(index)
    return index
