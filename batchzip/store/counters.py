"""Counters: zswap's, under zswap's names (/sys/kernel/debug/zswap).

A rejection is counted by its cause, once a store call or, for compression, once a failing page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot of a store's counters; consistent, as it is taken under the store's lock."""

    pool_limit_hit: int
    """Stores whose limit check found the pool at its maximum."""
    reject_alloc_fail: int
    """Stores the pool had no memory for, other than for its limit."""
    reject_compress_poor: int
    """Pages rejected because their output did not fit."""
    reject_compress_fail: int
    """Pages rejected because of any other compression error."""
    reject_reclaim_fail: int
    """Writebacks that failed."""
    decompress_fail: int
    """Loads and writebacks that met damaged bytes, an error, or a wrong length."""
    written_back_pages: int
    """Writebacks that succeeded."""

    pool_total_size: int
    """Bytes of memory the pool holds now."""
    stored_pages: int
    """Pages stored now, of every kind."""
    stored_incompressible_pages: int
    """Pages kept raw now."""
    same_filled_pages: int
    """Pages kept as one word now."""
