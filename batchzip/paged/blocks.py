"""Blocks: the memory behind the arrays of a paged memory.

array, its views ─▶ Block ─▶ Extent       pages of the region, freed when the block is collected
                         └─▶ PagedMemory  stays open as long as any of its arrays exists

A view that NumPy, pandas or torch makes of an array refers to that array, and so keeps the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.core.pager import Extent
    from batchzip.system.lifetime import Owned


class Block:
    """The pages of one array. The array refers to it as its base."""

    __slots__ = ("__weakref__", "address", "count", "extent", "first", "memory", "nbytes")

    def __init__(self, extent: Extent, memory: Owned) -> None:
        self.extent = extent
        self.address = extent.address
        self.first = extent.first
        self.count = extent.count
        self.memory = memory
        self.nbytes = extent.nbytes

    @property
    def __array_interface__(self) -> dict[str, object]:
        return {
            "version": 3,
            "data": (self.address, False),
            "shape": (self.nbytes,),
            "typestr": "|u1",
        }

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array over this memory."""
        return np.ndarray(shape, dtype, buffer=np.asarray(self))


def block_of(array: object) -> Block | None:
    """Return the block of an array or view. Return None if it is not in a paged memory."""
    base = array
    while base is not None and not isinstance(base, Block):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
