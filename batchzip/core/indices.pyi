"""IndexSpace: which indices of a group are taken, for one that gives them out itself."""

from typing import Self, final

from batchzip.core.entries import Entries

@final
class IndexReservation:
    """A range of indices, `first` and `count`, for as long as this object is held."""

    @property
    def first(self) -> int: ...
    @property
    def count(self) -> int: ...

@final
class IndexSpace:
    """Gives out ranges of a group's indices from 0 on, and takes them back when nobody holds them.

    Thread-safe; may be used in signal handlers and finalizers. When a range comes back, its pages are erased.
    """

    def __new__(cls, entries: Entries) -> Self: ...
    @property
    def end(self) -> int:
        """The indices given out so far lie below this one."""

    @property
    def taken(self) -> int:
        """How many indices are taken."""

    def reserve(self, count: int) -> IndexReservation:
        """Give out `count` consecutive indices, at least 1."""

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; nobody may be changing anything."""
