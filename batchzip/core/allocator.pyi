"""Allocator: a NumPy data allocator that takes the memory of large arrays elsewhere (NEP 49)."""

from collections.abc import Callable
from typing import Any, final

@final
class Handler:
    """A handler that takes the memory of large arrays from `take(nbytes)`.

    `take` returns a block of zeros, with its `address` and `nbytes`. All blocks lie between the
    addresses `low` and `high`. The handler drops the block when NumPy frees the array's memory.
    Requests below `threshold` bytes, and those for which `take` returns None, go to the handler
    that was in use when this one was made. If `take` raises an exception, NumPy raises MemoryError.
    """

    def __init__(
        self, take: Callable[[int], Any], *, threshold: int, low: int, high: int
    ) -> None: ...
    def install(self) -> object:
        """Make NumPy use this handler in this context. Return the previous one, for `restore`."""

def restore(handler: object) -> None:
    """Make NumPy use a handler that `install` returned, in this context."""
