"""Allocator: what gives NumPy memory for large arrays from elsewhere (NEP 49)."""

from collections.abc import Callable
from typing import Any, final

@final
class Handler:
    """Takes the memory of large arrays from `take(nbytes)`: a block of zeros, with `address` and `nbytes`.

    The block is dropped when the array goes. All of them lie from `low` to `high`. Requests of less than `threshold`
    bytes, and those for which `take` returns None, go to the handler that NumPy had when this was made. What `take`
    raises is MemoryError to who makes the array.
    """

    def __init__(
        self, take: Callable[[int], Any], *, threshold: int, low: int, high: int
    ) -> None: ...
    def install(self) -> object:
        """Have NumPy use it in this context. Return what it used before, for `restore`."""

def restore(handler: object) -> None:
    """Have NumPy use a handler, in this context, that `install` returned."""
