"""Pager: a region whose cold pages are entries of a group.

Threads of the core serve its faults through userfaultfd. Pages are numbered from the start of the
region; their size is the group's. Calls raise ClosedError once the pager is closed, ForkedProcess
in a forked child, and BadArgument for pages outside the region.
"""

import sys
from typing import Self

from batchzip.core.entries import Entries
from batchzip.core.userfaultfd import CLEAN_PAGES as CLEAN_PAGES
from batchzip.core.userfaultfd import NEEDED as NEEDED
from batchzip.core.userfaultfd import WAYS as WAYS

FIGURES: tuple[str, ...]
"""The names of the counters in `figures`, which never decrease."""

class Pager:
    """A region of `pages` pages, at most `budget` of them in memory and the others in `entries`.

    `number`         number of the codec, which must run without the interpreter.
    `fault_threads`  number of threads that serve faults.
    `backing_fd`     descriptor of the store's backing file, or −1.

    Raises LimitReached if the system grants too little memory or address space. Raises
    PermissionError or OSError if no userfaultfd is available; userfaultfd.probe() says why.
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
        """The entries of the cold pages, by page number."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    @property
    def page_size(self) -> int:
        """Size of a page in bytes."""

    @property
    def pages(self) -> int:
        """Number of pages in the region."""

    @property
    def way(self) -> str:
        """How the userfaultfd was opened: one of userfaultfd.WAYS."""

    @property
    def tracks_writes(self) -> bool:
        """Whether a page that was only read is evicted without being compressed again."""

    @property
    def can_poison(self) -> bool:
        """Whether touching a lost page raises SIGBUS; it raises SIGSEGV otherwise."""

    @property
    def budget(self) -> int:
        """Maximum number of pages in memory. Lowering it evicts pages at once."""

    @budget.setter
    def budget(self, pages: int) -> None: ...
    def allocate(self, nbytes: int) -> Extent:
        """Return an Extent of `nbytes` zeros.

        Raise MemoryError if no run of unused pages is long enough.
        """

    def find(self, address: int, nbytes: int) -> tuple[int, int]:
        """Return the pages that contain a range of bytes, as (first, count).

        Raise BadArgument unless arrays of this memory contain the whole range.
        """

    @property
    def address(self) -> int:
        """Address of the region's first byte."""

    def evict(self, first: int, count: int) -> int:
        """Evict pages, except those that are pinned or touched meanwhile.

        Return the number of pages evicted.
        """

    def prefetch(self, first: int, count: int) -> None:
        """Request that pages be restored soon.

        Request fewer pages than the budget; otherwise the first ones are evicted again.
        """

    def pin(self, first: int, count: int) -> None:
        """Restore pages, and keep them in memory and mapped until `unpin`.

        Raise BadArgument if the budget has no space for these pinned pages. Raise CorruptPage or
        PageError if a page cannot be restored. Nothing is pinned on failure.
        """

    def unpin(self, first: int, count: int) -> None:
        """Undo one `pin`. Do nothing if the pager is closed."""

    def advise(self, first: int, count: int, advice: int) -> None:
        """Set the expected access pattern of pages, a region.AccessAdvice."""

    def await_event(self, timeout_s: float) -> int:
        """Wait for a region.Event, without the GIL.

        Return the bits of the events that occurred, or 0 after `timeout_s` seconds.
        """

    def room_was_made(self) -> None:
        """Tell the pager that the pool may accept objects again."""

    def figures(self) -> dict[str, int]:
        """Return the counters in FIGURES and the current number of pages of each kind."""

    def latencies(self) -> tuple[list[int], int]:
        """Return a histogram of fault latencies, and the sum of the latencies in nanoseconds.

        A latency is the time from reading a fault to having served it.
        """

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant does not hold.

        No thread may touch the region during the call.
        """

    def close(self) -> int:
        """End the threads and release the memory. Return the number of arrays that still exist.

        A thread that touches such an array, now or later, gets SIGBUS. The call waits until calls
        in other threads have ended. In a forked child, do nothing.
        """

class Worker:
    """The buffers and coder of one thread of a pager."""

    def __new__(cls, pager: Pager) -> Self: ...

class Extent:
    """The pages of one array. It supports the buffer protocol.

    The pages are free again when the last reference is dropped.
    """

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def nbytes(self) -> int:
        """Size in bytes, as requested."""

    @property
    def first(self) -> int:
        """Number of the first page."""

    @property
    def count(self) -> int:
        """Number of pages."""
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
