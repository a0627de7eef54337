"""Samples: stored pages, chosen evenly, to train a dictionary with.

Sampling a page neither refreshes it in the LRU nor updates counters. Pages that cannot be restored
are skipped.
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
    """Return up to `most` of the compressed pages, decompressed, as an (n, page_size) array."""
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
