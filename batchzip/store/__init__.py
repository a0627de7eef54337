"""The swap store: zswap in user space.

swap_store.py   SwapStore: what exists once per store: limits, engine, groups, shrinker, checks
group.py        Group: the calls: store, load, invalidate, writeback, recompress
resources.py    what the groups of a store share
storer.py       stores a folio, all or nothing: checks limits, rejects, or uses the backing file
writer.py       compresses a folio, in the calling thread or with an engine's lanes
loader.py       restores pages from entries: reads the backing file, decompresses
arrays.py       arrays as pages: store_array, load_array
backing/        the file that cold pages are written to
reclaim/        frees memory: shrinker, writeback, recompression, cleaning of the file
remote/         pages for other processes: share, attach
sample.py       pages to train a dictionary with
inspect.py      verifies every checksum
counters.py     zswap's counters, under zswap's names
latency.py      how long calls took

The work per page is done in batchzip/core: folio.pyx (pages to be stored), entries.pyx (entries and
the objects they refer to), table.pyx, lru.pyx, gather.pyx (copies of entries, and the pages
restored from them), pool.pyx, zones.pyx, view.pyx.
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
