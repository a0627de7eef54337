"""The statistics of a paged memory: the core's figures, and figures derived from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PagedStatistics:
    """Counters of a paged memory since it was made, and its current state.

    The figures are not one snapshot: they are read one after the other. A fault is a touch of a
    page that is not mapped. Its latency is the time that a thread of the core needs for it. The
    kernel's time to deliver the fault, and to wake the waiting thread, is not included.

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
    """Bytes of pages that may be in memory uncompressed."""
    resident_bytes: int
    """Bytes of pages that are in memory uncompressed."""
    pinned_bytes: int
    """Bytes of pages that `resident` pins in memory."""
    compressed_bytes: int
    """Bytes that compressed pages take in the pool."""
    file_bytes: int
    """Bytes that compressed pages take in the backing file."""
    saved_bytes: int
    """Uncompressed bytes of cold pages minus the bytes that they take in the pool."""

    resident_pages: int
    """Pages that are in memory uncompressed."""
    candidate_pages: int
    """Resident pages that are not mapped. They are compressed unless they are touched soon."""
    stored_pages: int
    """Pages that are in the store only."""
    empty_pages: int
    """Pages of arrays that are all zeros and take no memory."""
    pinned_pages: int

    faults_missing: int
    """Touches of pages that were not in memory."""
    faults_minor: int
    """Touches of pages that were in memory but not mapped."""
    restored_pages: int
    """Pages that were decompressed because they were touched."""
    zeroed_pages: int
    """Pages that were filled with zeros on their first touch."""
    file_reads: int
    """Pages that were read from the backing file."""
    readahead_pages: int
    """Pages that were restored ahead, because pages before them were touched."""
    readahead_hits: int
    """Pages restored ahead that were touched later. They did not fault."""
    prefetched_pages: int
    """Pages that `prefetch` restored."""
    evicted_pages: int
    """Pages that were compressed."""
    dropped_clean_pages: int
    """Pages that were evicted without compression, because the store had an up-to-date copy."""
    dropped_empty_pages: int
    """Pages that were evicted without compression, because they were all zeros."""
    second_chances: int
    """Candidate pages that were touched in time and stayed in memory."""
    direct_reclaims: int
    """Faults that had to evict a page themselves to make room."""
    over_budget: int
    """Times that the budget was exceeded because the store had no room."""
    lost_pages: int
    """Pages that could not be restored."""

    latency_p50_s: float
    """Seconds within which half of all faults were served. 0.0 if there were no faults."""
    latency_p90_s: float
    latency_p99_s: float

    @property
    def hit_ratio(self) -> float:
        """The fraction of touches of unmapped pages that found them in memory. 0.0 without any."""
        return hit_ratio(self.faults_missing, self.faults_minor, self.readahead_hits)


def hit_ratio(missing: int, minor: int, ahead: int) -> float:
    """Return the fraction of touches that found their page in memory or restored ahead."""
    every = missing + minor + ahead
    return (minor + ahead) / every if every else 0.0
