"""Memory and descriptors: what the core gets from the system. Tests can make a request fail."""

from typing import Self

def allocations() -> int:
    """Return the number of requests for memory so far."""

def fail_allocation(number: int, count: int = 1) -> None:
    """Make the `number`-th request from now fail, and the `count` − 1 requests after it.

    With 0, no request fails any more.
    """

class Descriptor:
    """A descriptor of this process that is closed exactly once.

    It is closed at deallocation at the latest, and only if the number still belongs to the same
    file. Each method is one step: neither a signal handler nor another thread runs in between.
    """

    def __new__(cls, fd: int) -> Self:
        """Take over a descriptor. Raise OSError if `fd` is not open."""

    def fileno(self) -> int:
        """Return its number. Raise ValueError once it is closed."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    def ring(self) -> None:
        """Add one to this eventfd. Do nothing if it is closed."""

    def close(self) -> None:
        """Close the descriptor, unless it is closed already, by this object or by other code."""
