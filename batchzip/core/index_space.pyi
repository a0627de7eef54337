"""Which indices of a group are taken, for one that gives them out itself; the source says how."""

from typing import final

@final
class Reservation:
    """A range of indices, for as long as this object is held."""

    @property
    def first(self) -> int: ...
    @property
    def count(self) -> int: ...
    def free(self) -> None:
        """Say that these indices have no pages: they can be reserved again once this is dropped."""

@final
class IndexSpace:
    """Gives out ranges of indices from 0 on, and takes them back when nobody holds them. Thread-safe."""

    def reserve(self, count: int) -> Reservation:
        """Give out `count` consecutive indices, at least 1. Raise MemoryError."""

    def gone(self) -> Reservation | None:
        """Give a range that nobody holds any more, whose pages are to be forgotten; None if there is none."""

    @property
    def end(self) -> int:
        """The indices given out so far lie below this one."""

    def taken(self) -> int:
        """Count the indices that are taken."""
