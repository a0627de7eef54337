"""What a caller may hand over as pages, sources and destinations, checked at the edge.

Everything deeper down relies on what is established here: contiguous bytes, writable where they
are written, destinations that overlap nothing. Errors name the offending item and what would do.
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
    """Anything with the buffer protocol; before Python 3.12 type checkers are not told that
    NumPy's arrays have it."""

Flat: TypeAlias = bytes | memoryview
"""Contiguous bytes in one dimension: what a Buffer becomes once it is checked."""

Bytes: TypeAlias = npt.NDArray[np.uint8]

MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 2 << 20


def check_page_size(page_size: SupportsIndex) -> int:
    """Return `page_size` if it is a power of two in 512 B … 2 MiB, else raise BadArgument."""
    with contextlib.suppress(BadArgument):
        size = as_integer(page_size, "page_size", MIN_PAGE_SIZE, MAX_PAGE_SIZE)
        if not size & (size - 1):
            return size
    raise BadArgument(
        f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE} bytes, not {shown(page_size)}"
    )


def is_sequence(buffers: object) -> TypeGuard[Sequence[Buffer]]:
    """Whether this is a list or tuple of buffers rather than one buffer."""
    return isinstance(buffers, (list, tuple))


def as_view(buffer: Buffer, what: str, *, writable: bool = False) -> memoryview:
    """View `buffer` as flat bytes; it must be contiguous, and writable where that is asked."""
    try:
        view = memoryview(buffer)  # type: ignore[arg-type] # see Buffer
    except (TypeError, ValueError, BufferError):
        # ValueError: NumPy's arrays of dates and the like have no buffer either.
        raise BadBatch(
            f"{what} must be a buffer of bytes (bytes, memoryview, uint8 array, …), not {kind_of(buffer)}"
        ) from None
    if "O" in view.format and refers_to_objects(view.format):
        raise BadBatch(f"{what} has references to Python objects in it, not bytes")
    if is_masked(buffer):
        raise BadBatch(
            f"{what} is a masked array, whose mask would be lost: pass its .data, or .filled()"
        )
    if not view.c_contiguous:
        raise BadBatch(f"{what} is not contiguous: pass a contiguous copy of it")
    if writable and view.readonly:
        raise BadBatch(f"{what} is read-only, and would be written to")
    return view.cast("B") if view.nbytes else memoryview(b"")


def refers_to_objects(element: str) -> bool:
    """Return whether a buffer's format has references to Python objects in it, outermost or not."""
    return "O" in re.sub(":[^:]*:", "", element)  # without the names of fields


def as_matrix(
    buffer: Buffer | Sequence[Buffer],
    what: str,
    *,
    rows: int | None,
    width: int | None,
    writable: bool = False,
) -> Bytes:
    """View `buffer` as (rows, width) bytes without a copy.

    A 2-D buffer must be uint8 of that shape (None: any); a flat one is cut into rows of `width`.
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
            raise BadBatch(f"{what} of shape {shape} holds nothing: at least one page is needed")
    elif len(shape) == 1:
        if width is None:
            wanted = "capacity=" if what == "dsts" else "page_size="
            raise BadBatch(f"{what} is one flat buffer: say {wanted} to cut it into rows")
        if view.nbytes % width or not view.nbytes:
            raise BadBatch(
                f"{what} has {view.nbytes} bytes, which is not a positive multiple of {width}"
            )
        if rows is not None and view.nbytes != rows * width:
            raise BadBatch(f"{what} has {view.nbytes} bytes; {rows} × {width} are needed")
        shape = (view.nbytes // width, width)
    else:
        raise BadBatch(f"{what} must have one or two dimensions, not {len(shape)}")
    return np.frombuffer(view, np.uint8).reshape(shape)


def _dtype_of(view: memoryview) -> object:
    return getattr(view.obj, "dtype", view.format)


def _is_matrix(
    buffer: object, rows: int | None, width: int | None, *, writable: bool
) -> TypeGuard[Bytes]:
    """Whether this is an array that needs nothing done to it: the usual case, in half a µs."""
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
    """View a contiguous array as flat bytes."""
    return memoryview(array).cast("B")  # type: ignore[arg-type] # see Buffer


def as_inputs(buffers: Sequence[Buffer], what: str) -> list[Flat]:
    """Make a list of flat, contiguous, readable buffers out of a sequence of n of them."""
    if not buffers:
        raise BadBatch(f"{what} holds nothing: at least one page is needed")
    # bytes are what is wanted already, and a view of them costs as much as a short codec call.
    return [
        buffer if isinstance(buffer, bytes) else as_view(buffer, f"{what}[{index}]")
        for index, buffer in enumerate(buffers)
    ]


def extent(buffer: Flat) -> tuple[int, int]:
    """First address of a contiguous buffer, and the address behind its last byte."""
    try:
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):  # read-only, or empty
        start = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return start, start + len(buffer)


def refuse_overlap(
    destinations: Iterable[Flat], sources: Iterable[Flat], what: str, with_what: str
) -> None:
    """Raise BadBatch when two destinations, or a destination and a source, share a byte."""
    destinations, sources = list(destinations), list(sources)
    if len(destinations) == len(sources) == 1:  # arrays both: the usual case, without NumPy
        if not isinstance(sources[0], bytes):
            start, end = extent(destinations[0])
            source_start, source_end = extent(sources[0])
            if source_start < end and start < source_end:
                raise BadBatch(f"{what} overlaps {with_what}, which it would overwrite")
        return
    spans = sorted((*extent(buffer), index) for index, buffer in enumerate(destinations))
    for (_, end, index), (start, _, other) in pairwise(spans):
        if start < end:
            raise BadBatch(
                f"{what}[{other}] overlaps {what}[{index}]: each needs memory of its own"
            )
    starts = np.array([start for start, _, _ in spans], np.uint64)
    ends = np.array([end for _, end, _ in spans], np.uint64)
    for index, source in enumerate(sources):
        if isinstance(source, bytes) or not source.nbytes:
            continue  # immutable memory cannot be a destination
        start, end = extent(source)
        if np.searchsorted(ends, start, "right") < np.searchsorted(starts, end, "left"):
            raise BadBatch(f"{what} overlaps {with_what}[{index}], which it would overwrite")
