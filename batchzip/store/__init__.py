"""The swap store: zswap in user space.

swap_store.py   SwapStore: what a store has once: limits, engine, groups, shrinking, checking
group.py        Group: what is called: store, load, invalidate, writeback, recompress
home.py         what the groups of a store share
storer.py       a folio, all or nothing: limits, what is refused, what goes to the file
writer.py       a folio made ready, in the calling thread or by an engine's lanes
loader.py       entries back to pages: by codec, from the file, by lanes
writeback.py, shrinker.py   from the pool to the backing file
cleaning.py     the backing file's sparse zones
backing_file.py, file_io.py, positions.py   where in the file, and how it is read and written
sample.py       pages to learn a dictionary from
recompress.py   what lies for long, with a stronger algorithm
share.py, share_server.py, answers.py   the owner's half of readers in other processes
view.py         theirs
inspect.py      every checksum verified
counters.py     zswap's counters, under zswap's names
latency.py      how long calls took

What is done per page is in batchzip/core: folio.pyx (pages on their way in), ledger.pyx (entries and what they
refer to), table.pyx, lru.pyx, gather.pyx (copies of entries, and pages restored from them), pool.pyx,
zones.pyx, view.pyx.
"""

from __future__ import annotations

from batchzip.store.counters import Counters
from batchzip.store.group import Group
from batchzip.store.inspect import StoreReport
from batchzip.store.latency import Latency
from batchzip.store.recompress import Recompression
from batchzip.store.share import Share
from batchzip.store.swap_store import SwapStore
from batchzip.store.view import GroupView, StoreView, attach

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
