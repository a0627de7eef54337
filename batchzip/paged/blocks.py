"""Blocks: what the arrays of a paged memory stand on.

array, its views ─▶ Block ─▶ Extent   pages of the region: free again when the block goes
                         └─▶ PagedMemory, which lives as long as any array of it

Any view that NumPy, pandas or torch makes of an array keeps the block, through the array it is a view of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.core.pager import Extent
    from batchzip.system.lifetime import Owned


class Block:
    """The pages of one array, which keeps it as its base."""

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
        """Make the array that stands on it."""
        return np.ndarray(shape, dtype, buffer=np.asarray(self))


def block_of(array: object) -> Block | None:
    """Return the block that an array, or a view of one, stands on; None: it is no paged memory's."""
    base = array
    while base is not None and not isinstance(base, Block):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
