"""IndexSpace: the allocator of a group's indices, for groups whose users do not choose them."""

from typing import Self, final

from batchzip.core.entries import Entries

@final
class IndexReservation:
    """A reserved range of indices, `first` and `count`, until the last reference is dropped."""

    @property
    def first(self) -> int: ...
    @property
    def count(self) -> int: ...

@final
class IndexSpace:
    """An allocator of ranges of a group's indices, from 0 on.

    A range becomes free when the last reference to its IndexReservation is dropped. Its pages are
    erased then. Thread-safe; may be used in signal handlers and finalizers.
    """

    def __new__(cls, entries: Entries) -> Self: ...
    @property
    def end(self) -> int:
        """The upper bound of the indices: all reserved ones lie below it."""

    @property
    def taken(self) -> int:
        """The number of reserved indices."""

    def reserve(self, count: int) -> IndexReservation:
        """Reserve `count` consecutive indices, at least 1."""

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant is violated. The caller stops all other use."""
