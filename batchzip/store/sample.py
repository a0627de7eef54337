"""Samples: pages of a store as they are, chosen evenly, for what wants to learn from them.

Looking is no use of a page: ages and counters stay as they are. A page that cannot be restored teaches
nothing, and is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.gather import gather
from batchzip.core.table import Kind
from batchzip.store.loader import restore

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Bytes
    from batchzip.core.entries import Entries
    from batchzip.store.resources import Resources


def sample(resources: Resources, entries: Entries, most: int) -> Bytes:
    """Return up to `most` pages that a codec made smaller, as an (n, page_size) array."""
    indices = np.frombuffer(entries.choose((Kind.COMPRESSED, Kind.BACKED)), np.int64)
    indices = indices[:: max(1, -(-len(indices) // most))]
    found = [np.empty((0, resources.page_size), np.uint8)]
    for start in range(0, len(indices), resources.max_batch):
        gathered = gather(
            entries, np.ascontiguousarray(indices[start : start + resources.max_batch])
        )
        pages = np.empty((len(gathered), resources.page_size), np.uint8)
        restore(resources, gathered, pages)
        if gathered.is_current:
            held = gathered.rows_of(Kind.COMPRESSED, Kind.RAW, Kind.BACKED)
            found.append(pages[[row for row in held if not gathered.outcome(row)]])
    return np.concatenate(found)
