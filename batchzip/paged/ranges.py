"""The address range of an array, from its lowest byte to its highest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.store.arrays import as_numpy

if TYPE_CHECKING:
    import numpy.typing as npt


def range_of(array: object) -> tuple[int, int]:
    """Return the address and the number of bytes that an array covers, gaps included.

    The array must be on the CPU. It is NumPy's, or has `__array_interface__`, the buffer protocol
    or DLPack. Raise NotStorable, a TypeError, if it is not such an array.
    """
    given: npt.NDArray[Any] = as_numpy(array)
    address = given.__array_interface__["data"][0]
    if not given.size or not given.itemsize:
        return address, 0
    low = high = 0
    for length, stride in zip(given.shape, given.strides, strict=True):
        reach = (length - 1) * stride
        low, high = (low + reach, high) if stride < 0 else (low, high + reach)
    return address + low, high - low + given.itemsize
