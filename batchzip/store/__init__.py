"""The swap store: zswap in user space.

swap_store.py   SwapStore: what a store has once: limits, engine, groups, shrinking, checking
group.py        Group: what is called: store, load, invalidate, writeback, recompress
home.py         what the groups of a store share
storer.py       a folio, all or nothing: limits, what is refused, what goes to the file
folio.py        pages ─▶ engine ─▶ pool or file ─▶ entries
loader.py, restore.py       entries ─▶ stored bytes ─▶ pages
ledger.py       which entries are published, and whose each object is
page_table.py   what the store knows of each index, in arrays
lru.py          which pages were used longest ago
writeback.py, shrinker.py   from the pool to the backing file
cleaning.py     the backing file's sparse zones
backing_file.py             where in the file, and what of it can be used again
sample.py       pages to learn a dictionary from
recompress.py   what lies for long, with a stronger algorithm
codec_table.py  the codecs that entries were made with
same_filled.py  pages of one repeated word need no compression
share.py, answers.py        the owner's half of readers in other processes
shared_table.py, view.py    theirs
inspect.py      every checksum verified
counters.py     zswap's counters, under zswap's names
"""

from __future__ import annotations

from batchzip.store.counters import Counters
from batchzip.store.group import Group
from batchzip.store.inspect import StoreReport
from batchzip.store.recompress import Recompression
from batchzip.store.share import Share
from batchzip.store.swap_store import SwapStore
from batchzip.store.view import GroupView, StoreView, attach

__all__ = [
    "Counters",
    "Group",
    "GroupView",
    "Recompression",
    "Share",
    "StoreReport",
    "StoreView",
    "SwapStore",
    "attach",
]
