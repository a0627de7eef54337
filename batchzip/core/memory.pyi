"""What the core asks the system for: memory, which tests may have fail, and descriptors."""

from typing import Self

def allocations() -> int:
    """Return how many requests for memory there have been."""

def fail_allocation(number: int, count: int = 1) -> None:
    """Have the `number`-th request from now fail, and the `count` − 1 after it. 0: no more."""

class Descriptor:
    """A descriptor of this process, closed once, when it goes at the latest, and only while it is still ours.

    Each method is one step: no interrupt comes into it, and no other thread.
    """

    def __new__(cls, fd: int) -> Self:
        """Take over a descriptor. Raise OSError where there is none of that number."""

    def fileno(self) -> int:
        """Return its number. Raise ValueError once it is closed."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    def ring(self) -> None:
        """Add one to the eventfd that it is; do nothing once it is closed."""

    def close(self) -> None:
        """Close it, unless that is done, or somebody else has closed it."""
