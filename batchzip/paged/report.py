"""The result of a check of a paged memory: damaged pages, with the arrays that contain them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PagedDamage:
    """A page that cannot be restored. Touching it ends in SIGBUS.

    Examples:
        >>> import batchzip
        >>> damage = batchzip.paged.PagedDamage(page=3, address=None, offset=12288)
        >>> damage.page, damage.offset
        (3, 12288)
    """

    page: int
    """The number of the page in the region, which is its index in the group of the store."""
    address: int | None
    """The address of the array, as in `array.ctypes.data`. None if the array was freed."""
    offset: int
    """Bytes from the start of the array to the page."""

    def __str__(self) -> str:
        if self.address is None:
            return f"page {self.page}, of an array that was freed"
        return f"page {self.page}: byte {self.offset:,} of the array at {self.address:#x}"


@dataclass(frozen=True, slots=True)
class PagedReport:
    """The result of `PagedMemory.check`.

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
    """Number of compressed pages that were checked."""
    bytes: int
    """Bytes whose checksums were verified."""
    damaged: tuple[PagedDamage, ...]
    """Pages whose compressed bytes are damaged."""
    unreadable: tuple[PagedDamage, ...]
    """Pages that could not be read from the backing file."""

    @property
    def ok(self) -> bool:
        """Whether every page is as it was when it was compressed."""
        return not self.damaged and not self.unreadable
