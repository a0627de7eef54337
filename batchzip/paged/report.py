"""What a check of a paged memory found: damaged pages, by the arrays that they are in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PagedDamage:
    """A page that cannot be restored: touching it ends in SIGBUS.

    Examples:
        >>> import batchzip
        >>> damage = batchzip.paged.PagedDamage(page=3, address=None, offset=12288)
        >>> damage.page, damage.offset
        (3, 12288)
    """

    page: int
    """Its number in the region, and its index in the group of the store."""
    address: int | None
    """Where the array that it is in begins, as `array.ctypes.data`; None if the array is gone."""
    offset: int
    """Bytes from there to the page."""

    def __str__(self) -> str:
        if self.address is None:
            return f"page {self.page}, of an array that is gone"
        return f"page {self.page}: byte {self.offset:,} of the array at {self.address:#x}"


@dataclass(frozen=True, slots=True)
class PagedReport:
    """What `PagedMemory.check` found.

    Examples:
        >>> import batchzip
        >>> with batchzip.PagedMemory(size=4 << 20, budget=1 << 20) as memory:
        ...     a = memory.array(1 << 20, "u1")
        ...     a[:] = 1
        ...     evicted = memory.evict(a)
        ...     report = memory.check()
        >>> report.ok, report.damaged
        (True, ())
    """

    pages: int
    """Compressed pages that were looked at."""
    bytes: int
    """Bytes whose checksums were verified."""
    damaged: tuple[PagedDamage, ...]
    """Pages whose compressed bytes are damaged."""
    unreadable: tuple[PagedDamage, ...]
    """Pages that the backing file did not give."""

    @property
    def ok(self) -> bool:
        """Whether every page is as it was when it was compressed."""
        return not self.damaged and not self.unreadable
