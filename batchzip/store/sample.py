"""Samples: pages of a store as they are, chosen evenly, for what wants to learn from them.

Looking is no use of a page: ages and counters stay as they are. A page that cannot be restored teaches
nothing, and is passed over.

Locks: the store's, to choose, and to copy each batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import PageError
from batchzip.store.page_table import BACKED, COMPRESSED, RAW

if TYPE_CHECKING:
    from batchzip.buffers import Bytes
    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger


def sample(home: Home, ledger: Ledger, most: int) -> Bytes:
    """Up to `most` pages that a codec made smaller, as an (n, page_size) array."""
    with home.lock:
        kinds = ledger.table.entries["kind"]
        rows = np.flatnonzero((kinds == COMPRESSED) | (kinds == BACKED))
        rows = rows[:: max(1, -(-len(rows) // most))]
        indices = ledger.table.indices(rows)
    pages = np.empty((len(indices), home.page_size), np.uint8)
    count = 0
    for start in range(0, len(indices), home.max_batch):
        count += _copy(home, ledger, indices[start : start + home.max_batch], pages[count:])
    return pages[:count]


def _copy(home: Home, ledger: Ledger, indices: np.ndarray, pages: Bytes) -> int:
    with home.lock:
        entries = ledger.table.get_many(indices)
        kinds = entries["kind"]
        entries = entries[(kinds == COMPRESSED) | (kinds == RAW) | (kinds == BACKED)]
        pooled = home.pooled(entries[entries["kind"] != BACKED])
    try:
        stored = home.fetch(entries, pooled)
    except OSError:
        return 0
    count = 0
    for row in range(len(entries)):
        one = slice(row, row + 1)
        try:
            home.restorer.pages(entries[one], stored[one], pages[count : count + 1], home.writer)
        except PageError:
            continue
        count += 1
    return count
