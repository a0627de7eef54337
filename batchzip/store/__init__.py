"""The swap store: zswap in user space.

swap_store.py   SwapStore: what a store has once: limits, engine, groups, shrinking, checking
group.py        Group: what is called: store, load, invalidate, writeback, recompress
resources.py         what the groups of a store share
storer.py       a folio, all or nothing: limits, what is refused, what goes to the file
writer.py       a folio made ready, in the calling thread or by an engine's lanes
loader.py       entries back to pages: by codec, from the file, by lanes
arrays.py       arrays as pages: store_array, load_array
backing/        the file that cold pages are written to
reclaim/        how room is made: shrinker, writeback, recompression, cleaning of the file
remote/         pages for other processes: share, attach
sample.py       pages to learn a dictionary from
inspect.py      every checksum verified
counters.py     zswap's counters, under zswap's names
latency.py      how long calls took

What is done per page is in batchzip/core: folio.pyx (pages on their way in), entries.pyx (entries and what they
refer to), table.pyx, lru.pyx, gather.pyx (copies of entries, and pages restored from them), pool.pyx,
zones.pyx, view.pyx.
"""

from __future__ import annotations

from batchzip.store.counters import Counters
from batchzip.store.group import Group
from batchzip.store.inspect import StoreReport
from batchzip.store.latency import Latency
from batchzip.store.reclaim.recompress import Recompression
from batchzip.store.remote.share import Share, attach
from batchzip.store.remote.view import GroupView, StoreView
from batchzip.store.swap_store import SwapStore

__all__ = [
    "Counters",
    "Group",
    "GroupView",
    "Latency",
    "Recompression",
    "Share",
    "StoreReport",
    "StoreView",
    "SwapStore",
    "attach",
]
