"""Checks of the buffers that callers pass as pages, sources and destinations.

All deeper code relies on these checks: buffers are contiguous bytes, destinations are writable, and
destinations overlap nothing. Errors name the wrong item and what would be right.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from batchzip.arguments.checks import as_integer, is_masked
from batchzip.errors import BadArgument, BadBatch
from batchzip.wording import kind_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import SupportsIndex

    from typing_extensions import Buffer as BufferProtocol

    Buffer: TypeAlias = BufferProtocol | npt.NDArray[np.uint8]
    """Anything with the buffer protocol. Before Python 3.12, type checkers do not know that NumPy's
    arrays have it."""

Flat: TypeAlias = bytes | memoryview
"""Contiguous bytes in one dimension: a Buffer after its check."""

Bytes: TypeAlias = npt.NDArray[np.uint8]

MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 2 << 20


def check_page_size(page_size: SupportsIndex) -> int:
    """Return `page_size`. Raise BadArgument unless it is a power of two in 512 B … 2 MiB."""
    with contextlib.suppress(BadArgument):
        size = as_integer(page_size, "page_size", MIN_PAGE_SIZE, MAX_PAGE_SIZE)
        if not size & (size - 1):
            return size
    raise BadArgument(
        f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE} bytes, "
        f"not {shown(page_size)}"
    )


def is_sequence(buffers: object) -> TypeGuard[Sequence[Buffer]]:
    """Return whether this is a list or tuple of buffers rather than one buffer."""
    return isinstance(buffers, (list, tuple))


def as_view(buffer: Buffer, what: str, *, writable: bool = False) -> memoryview:
    """Return a view of `buffer` as flat bytes.

    Raise BadBatch unless it is contiguous, and writable if `writable` is set.
    """
    try:
        view = memoryview(buffer)  # type: ignore[arg-type] # see Buffer
    except (TypeError, ValueError, BufferError):
        # ValueError: NumPy's arrays of dates, for example, have no buffer.
        raise BadBatch(
            f"{what} must be a buffer of bytes (bytes, memoryview, uint8 array, …), "
            f"not {kind_of(buffer)}"
        ) from None
    if "O" in view.format and refers_to_objects(view.format):
        raise BadBatch(f"{what} must have bytes, not references to Python objects")
    if is_masked(buffer):
        raise BadBatch(
            f"{what} is a masked array, whose mask would be lost: pass its .data, or .filled()"
        )
    if not view.c_contiguous:
        raise BadBatch(f"{what} is not contiguous: pass a contiguous copy of it")
    if writable and view.readonly:
        raise BadBatch(f"{what} must be writable, but it is read-only")
    return view.cast("B") if view.nbytes else memoryview(b"")


def refers_to_objects(element: str) -> bool:
    """Return whether a buffer's format has references to Python objects at any level."""
    return "O" in re.sub(":[^:]*:", "", element)  # ignore the names of fields


def as_matrix(
    buffer: Buffer | Sequence[Buffer],
    what: str,
    *,
    rows: int | None,
    width: int | None,
    writable: bool = False,
) -> Bytes:
    """Return a view of `buffer` as (rows, width) bytes, without a copy. Raise BadBatch.

    A 2-D buffer must be uint8 of that shape (None: any). A flat one is divided into rows of
    `width`.
    """
    if _is_matrix(buffer, rows, width, writable=writable):
        return buffer
    view = as_view(buffer, what, writable=writable)  # type: ignore[arg-type] # refuses sequences
    given = memoryview(buffer)  # type: ignore[arg-type] # see Buffer
    shape = given.shape or ()
    if len(shape) == 2:
        if given.itemsize != 1:
            raise BadBatch(
                f"{what} must be uint8, not {_dtype_of(given)}: view it with .view(np.uint8)"
            )
        if rows not in (None, shape[0]) or width not in (None, shape[1]):
            raise BadBatch(
                f"{what} must have shape ({rows or 'n'}, {width or 'bytes'}), not {shape}"
            )
        if 0 in shape:
            raise BadBatch(f"{what} of shape {shape} is empty: at least one page is needed")
    elif len(shape) == 1:
        if width is None:
            wanted = "capacity=" if what == "dsts" else "page_size="
            raise BadBatch(f"{what} is one flat buffer: give {wanted} to divide it into rows")
        if view.nbytes % width or not view.nbytes:
            raise BadBatch(
                f"{what} has {view.nbytes} bytes, which is not a positive multiple of {width}"
            )
        if rows is not None and view.nbytes != rows * width:
            raise BadBatch(f"{what} must have {rows} × {width} bytes, not {view.nbytes}")
        shape = (view.nbytes // width, width)
    else:
        raise BadBatch(f"{what} must have one or two dimensions, not {len(shape)}")
    return np.frombuffer(view, np.uint8).reshape(shape)


def _dtype_of(view: memoryview) -> object:
    return getattr(view.obj, "dtype", view.format)


def _is_matrix(
    buffer: object, rows: int | None, width: int | None, *, writable: bool
) -> TypeGuard[Bytes]:
    """Return whether this is an array that can be used directly: the usual case, in 0.5 µs."""
    return (
        type(buffer) is np.ndarray
        and buffer.dtype == np.uint8
        and len(buffer.shape) == 2
        and width in (None, buffer.shape[1])
        and rows in (None, buffer.shape[0])
        and buffer.size > 0
        and buffer.flags.c_contiguous
        and (buffer.flags.writeable or not writable)
    )


def flat(array: npt.NDArray[np.uint8]) -> memoryview:
    """Return a view of a contiguous array as flat bytes."""
    return memoryview(array).cast("B")  # type: ignore[arg-type] # see Buffer


def as_inputs(buffers: Sequence[Buffer], what: str) -> list[Flat]:
    """Return a list of flat, contiguous, readable buffers from a sequence. Raise BadBatch."""
    if not buffers:
        raise BadBatch(f"{what} is empty: at least one page is needed")
    # bytes need no view, which would cost as much as a short codec call.
    return [
        buffer if isinstance(buffer, bytes) else as_view(buffer, f"{what}[{index}]")
        for index, buffer in enumerate(buffers)
    ]


def extent(buffer: Flat) -> tuple[int, int]:
    """Return the first address of a contiguous buffer, and the address after its last byte."""
    try:
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):  # read-only, or empty
        start = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return start, start + len(buffer)


def refuse_overlap(
    destinations: Iterable[Flat], sources: Iterable[Flat], what: str, with_what: str
) -> None:
    """Raise BadBatch if two destinations, or a destination and a source, share a byte."""
    destinations, sources = list(destinations), list(sources)
    if len(destinations) == len(sources) == 1:  # two arrays: the usual case, without NumPy
        if not isinstance(sources[0], bytes):
            start, end = extent(destinations[0])
            source_start, source_end = extent(sources[0])
            if source_start < end and start < source_end:
                raise BadBatch(f"{what} overlaps {with_what}, which it would overwrite")
        return
    spans = sorted((*extent(buffer), index) for index, buffer in enumerate(destinations))
    for (_, end, index), (start, _, other) in pairwise(spans):
        if start < end:
            raise BadBatch(f"{what}[{other}] overlaps {what}[{index}]: each needs its own memory")
    starts = np.array([start for start, _, _ in spans], np.uint64)
    ends = np.array([end for _, end, _ in spans], np.uint64)
    for index, source in enumerate(sources):
        if isinstance(source, bytes) or not source.nbytes:
            continue  # immutable memory cannot be a destination
        start, end = extent(source)
        if np.searchsorted(ends, start, "right") < np.searchsorted(starts, end, "left"):
            raise BadBatch(f"{what} overlaps {with_what}[{index}], which it would overwrite")
