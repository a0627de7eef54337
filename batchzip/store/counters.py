"""Counters: zswap's, under zswap's names (/sys/kernel/debug/zswap), and those of the backing file.

A rejection is counted by its cause, once a store call or, for compression, once a failing page. Where
the folio went to the backing file instead, it is counted all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

EVENTS = (
    "pool_limit_hit",
    "reject_alloc_fail",
    "reject_compress_poor",
    "reject_compress_fail",
    "reject_reclaim_fail",
    "decompress_fail",
    "written_back_pages",
)
"""Names of the counters that only grow."""


@dataclass(slots=True)
class Traffic:
    """Pages that went in and out of a group since it was made; written under the store's lock.

    Kernel counterpart: zswpout and zswpin in /proc/vmstat. Apart from the counters, which say what is
    held and what went wrong.
    """

    page_stores: int = 0
    """Pages stored, in memory or in the backing file."""
    page_loads: int = 0
    """Pages that loads found an entry of; readers in other processes are not seen."""


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot of a store's counters; consistent, as it is taken under the store's lock."""

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
    backing_file_size: int
    """Bytes the backing file holds now; of a group, 0."""
