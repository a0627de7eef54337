"""Pager: a region whose cold pages are entries of a group, served through userfaultfd by threads of the core.

Pages are counted from the start of the region; their size is the group's. Calls raise ClosedError once it is closed,
ForkedProcess in a forked child, and BadArgument for pages that there are not.
"""

import sys
from typing import Self

from batchzip.core.entries import Entries
from batchzip.core.userfaultfd import CLEAN_PAGES as CLEAN_PAGES
from batchzip.core.userfaultfd import NEEDED as NEEDED
from batchzip.core.userfaultfd import WAYS as WAYS

FIGURES: tuple[str, ...]
"""Names of the counters that only grow, among `figures`."""

class Pager:
    """A region of `pages` pages, of which `budget` are in memory at most; the others are in `entries`.

    `number`         of the codec, which runs without the interpreter.
    `fault_threads`  that serve faults.
    `backing_fd`     descriptor of the store's backing file, or −1.

    Raise LimitReached; PermissionError or OSError if no userfaultfd can be had: userfaultfd.probe() tells why.
    """

    def __new__(
        cls,
        entries: Entries,
        number: int,
        *,
        pages: int,
        budget: int,
        fault_threads: int = 2,
        backing_fd: int = -1,
    ) -> Self: ...
    @property
    def entries(self) -> Entries:
        """Where cold pages are, by their numbers."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    @property
    def pages(self) -> int:
        """Pages of the region."""

    @property
    def way(self) -> str:
        """How the userfaultfd was had: one of userfaultfd.WAYS."""

    @property
    def tracks_writes(self) -> bool:
        """Whether pages that were not written to leave without being compressed again."""

    @property
    def can_poison(self) -> bool:
        """Whether a page that is lost raises SIGBUS; it raises SIGSEGV otherwise."""

    @property
    def budget(self) -> int:
        """Pages that are in memory at most. If it is lowered, pages are evicted at once."""

    @budget.setter
    def budget(self, pages: int) -> None: ...
    def allocate(self, nbytes: int) -> Extent:
        """Return an Extent of `nbytes` zeros. Raise MemoryError if no run of pages is unused."""

    def find(self, address: int, nbytes: int) -> tuple[int, int]:
        """Return the pages (first, count) that a range of bytes lies on.

        Raise BadArgument unless it lies in arrays of this memory.
        """

    @property
    def address(self) -> int:
        """Address of the region's first byte."""

    def evict(self, first: int, count: int) -> int:
        """Move pages out of memory, but for those that are pinned or touched. Return how many left."""

    def prefetch(self, first: int, count: int) -> None:
        """Have pages restored soon. Ask for less than the budget: what is restored first leaves again otherwise."""

    def pin(self, first: int, count: int) -> None:
        """Restore pages, and keep them in memory and mapped until `unpin`.

        Raise BadArgument if more pages than the budget were pinned, CorruptPage or PageError for a page that
        cannot be restored; nothing is pinned then.
        """

    def unpin(self, first: int, count: int) -> None:
        """Undo one `pin`. Do nothing once it is closed."""

    def advise(self, first: int, count: int, advice: int) -> None:
        """Say how pages are going to be touched: a region.AccessAdvice."""

    def await_event(self, timeout_s: float) -> int:
        """Wait for a region.Event, without the GIL. Return the bits of those that there were; 0 after `timeout_s`."""

    def room_was_made(self) -> None:
        """Say that the pool may take more now."""

    def figures(self) -> dict[str, int]:
        """Return FIGURES, and how many pages there are of each kind, as they are now."""

    def latencies(self) -> tuple[list[int], int]:
        """Return faults by how long they took from being read to being served, by bucket, and their nanoseconds."""

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold. Nobody may touch the region meanwhile."""

    def close(self) -> int:
        """End the threads and let go of the memory. Return how many arrays there still were.

        Whoever touches one of these from now on, or does so meanwhile, gets SIGBUS. Calls in other threads end
        first. In a forked child, do nothing.
        """

class Worker:
    """What one thread of a pager works with."""

    def __new__(cls, pager: Pager) -> Self: ...

class Extent:
    """Pages of a region that one array lies on; free again when nobody has a reference. Has the buffer protocol."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def nbytes(self) -> int:
        """Bytes that were asked for."""

    @property
    def first(self) -> int:
        """Number of the first page."""

    @property
    def count(self) -> int:
        """How many pages they are."""
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
