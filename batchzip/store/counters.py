"""Counters: zswap's, under zswap's names (/sys/kernel/debug/zswap), and those of the backing file.

A rejection is counted by its cause, once a store call or, for compression, once a failing page. Where
the folio went to the backing file instead, it is counted all the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot of a store's counters; consistent, as each group's are taken in one step.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [bytes(4096), bytes(range(256)) * 16])
        ...     counters = store.counters
        >>> counters.stored_pages, counters.same_filled_pages, counters.reject_compress_fail
        (2, 1, 0)
    """

    pool_limit_hit: int
    """Stores whose limit check found the pool, or their group, at its maximum."""
    reject_alloc_fail: int
    """Stores the pool had no memory for, other than for its limit."""
    reject_compress_poor: int
    """Pages rejected because their output did not fit."""
    reject_compress_fail: int
    """Pages rejected because of any other compression error."""
    reject_reclaim_fail: int
    """Writebacks that failed: the backing file, or the bytes of a page that were damaged."""
    decompress_fail: int
    """Loads and writebacks that met damaged bytes, an error, or a wrong length."""
    written_back_pages: int
    """Pages that writeback moved from the pool to the backing file."""

    pool_total_size: int
    """Bytes of memory the pool holds now; of a group, bytes of its compressed pages in the pool."""
    stored_pages: int
    """Pages in memory now, of every kind."""
    stored_incompressible_pages: int
    """Pages kept raw in memory now."""
    same_filled_pages: int
    """Pages kept as one word now."""
    backed_pages: int
    """Pages in the backing file now: written back, or put there as the pool had no room."""
    stored_values: int
    """Objects that values of mappings have in memory now: one, or several of a page of what was compressed.

    Values of more than 64 KiB lie on pages, and count as those.
    """
    backed_values: int
    """Objects that values of mappings have in the backing file now."""
    backing_file_size: int
    """Bytes the backing file holds now; of a group, 0."""
