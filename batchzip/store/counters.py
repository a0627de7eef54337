"""Counters: zswap's, under zswap's names (/sys/kernel/debug/zswap), and those of the backing file.

A rejection is counted under its cause: once per call of `store`, or once per failed page if
compression failed. It is counted even if the folio is then written to the backing file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot of a store's counters. Those of each group are taken at one moment.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [bytes(4096), bytes(range(256)) * 16])
        ...     counters = store.counters
        >>> counters.stored_pages, counters.same_filled_pages, counters.reject_compress_fail
        (2, 1, 0)
    """

    pool_limit_hit: int
    """Calls of `store` that found the pool or their group at its limit."""
    reject_alloc_fail: int
    """Calls of `store` for which the system had no memory. The pool's limit does not count here."""
    reject_compress_poor: int
    """Pages rejected because they did not shrink."""
    reject_compress_fail: int
    """Pages rejected because of any other compression error."""
    reject_reclaim_fail: int
    """Failed writebacks: the backing file failed, or the bytes of a page were damaged."""
    decompress_fail: int
    """Loads and writebacks that failed on damaged bytes, an error, or a wrong length."""
    written_back_pages: int
    """Pages that writeback moved from the pool to the backing file."""

    pool_total_size: int
    """Bytes of memory the pool holds now. For a group: its compressed bytes in the pool."""
    stored_pages: int
    """Pages in memory now, of every kind."""
    stored_incompressible_pages: int
    """Pages kept raw in memory now."""
    same_filled_pages: int
    """Pages kept as one word now."""
    backed_pages: int
    """Pages in the backing file now: written back, or stored there because the pool was full."""
    stored_values: int
    """Objects in memory now that hold values of mappings: one per value, or several if it is long.

    A value takes one object per page of compressed bytes. Values of more than 64 KiB are kept on
    pages, and counted there, if the codec is in Python or runs in other processes.
    """
    backed_values: int
    """Objects in the backing file now that hold values of mappings."""
    backing_file_size: int
    """Bytes the backing file holds now. For a group: 0."""
