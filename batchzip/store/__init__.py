"""The swap store: zswap in user space.

same_filled.py  pages of one repeated word need no compression
page_table.py   what the store knows of each index, in arrays
counters.py     zswap's counters, under zswap's names
swap_store.py   store, load, invalidate
"""

from __future__ import annotations

from batchzip.store.counters import Counters
from batchzip.store.swap_store import SwapStore

__all__ = ["Counters", "SwapStore"]
