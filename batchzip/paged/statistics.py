"""What a paged memory did and has: the core's figures, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PagedStatistics:
    """What a paged memory did since it was made, and what it has now. Figures are a moment apart.

    A fault is a touch of a page that is not mapped. Its latency is the time that a thread of the core took for it:
    what the kernel takes to hand it over, and to wake who waits, comes on top.

    Examples:
        >>> import batchzip
        >>> with batchzip.PagedMemory(size=4 << 20, budget=1 << 20) as memory:
        ...     a = memory.array(1 << 20, "u1")
        ...     a[:] = 1
        ...     _ = memory.evict(a)
        ...     _ = a.sum()
        ...     statistics = memory.statistics
        >>> statistics.size_bytes, statistics.budget_bytes
        (4194304, 1048576)
        >>> statistics.restored_pages > 0, statistics.lost_pages
        (True, 0)
    """

    size_bytes: int
    """Bytes of the region."""
    budget_bytes: int
    """Bytes of its pages that may be in memory uncompressed."""
    resident_bytes: int
    """Bytes of its pages that are."""
    pinned_bytes: int
    """Bytes of those that `resident` keeps there."""
    compressed_bytes: int
    """Bytes that compressed pages take in the pool."""
    file_bytes: int
    """Bytes that compressed pages take in the backing file."""
    saved_bytes: int
    """Bytes of cold pages, as they would lie in plain memory, above those that they take in the pool."""

    resident_pages: int
    """Pages that are in memory as they are."""
    candidate_pages: int
    """Those of them that are not mapped: they are compressed unless they are touched soon."""
    stored_pages: int
    """Pages that lie in the store alone."""
    empty_pages: int
    """Pages of arrays that are zeros, and take no memory."""
    pinned_pages: int

    faults_missing: int
    """Touches of pages that were not in memory."""
    faults_minor: int
    """Touches of pages that were there but not mapped."""
    restored_pages: int
    """Pages that were decompressed because they were touched."""
    zeroed_pages: int
    """Pages of zeros that were given out."""
    file_reads: int
    """Pages that were read from the backing file."""
    readahead_pages: int
    """Pages that were restored because those before them were touched."""
    readahead_hits: int
    """Those of them that were touched, and so never faulted."""
    prefetched_pages: int
    """Pages that `prefetch` restored."""
    evicted_pages: int
    """Pages that were compressed."""
    dropped_clean_pages: int
    """Pages that went without being compressed, as the store had what is in them."""
    dropped_empty_pages: int
    """Pages that went as they were all zeros."""
    second_chances: int
    """Pages that stayed as they were touched in time."""
    direct_reclaims: int
    """Faults that had to make room for their page themselves."""
    over_budget: int
    """Times that the budget was exceeded, as the store had no room."""
    lost_pages: int
    """Pages that could not be restored."""

    latency_p50_s: float
    """Seconds below which half of all faults were served; 0.0 where there was none."""
    latency_p90_s: float
    latency_p99_s: float

    @property
    def hit_ratio(self) -> float:
        """The share of touches of pages not mapped at first that found them in memory; 0.0 without any."""
        return hit_ratio(self.faults_missing, self.faults_minor, self.readahead_hits)


def hit_ratio(missing: int, minor: int, ahead: int) -> float:
    """Return the share of touches that found their page in memory, or already restored."""
    every = missing + minor + ahead
    return (minor + ahead) / every if every else 0.0
