"""Pages of a kind, each told by a number; and a store's counters, compared with what they were."""

import dataclasses
import random

import numpy as np

from batchzip import Counters, SwapStore

SIZE = 4096
ZEROS = bytes(SIZE)

GAUGES = {
    "pool_total_size",
    "stored_pages",
    "stored_incompressible_pages",
    "same_filled_pages",
    "backed_pages",
    "stored_values",
    "backed_values",
    "backing_file_size",
}


def text(seed: int, size: int = SIZE) -> bytes:
    return (b"%d: a line that is there many times. " % seed * size)[:size]


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def word(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(8) * (size // 8)


PAGES = [text(0), noise(1), word(2), text(3), ZEROS, noise(5), text(6), text(7)]
"""Pages of every kind that a store tells apart."""


def grown(store: SwapStore, before: Counters) -> dict[str, int]:
    """Tell which counters of events differ from `before`, and by how much."""
    now = dataclasses.asdict(store.counters)
    return {
        name: now[name] - value
        for name, value in dataclasses.asdict(before).items()
        if name not in GAUGES and now[name] != value
    }


def assert_nothing_is_stored(store: SwapStore) -> None:
    """See that neither store nor pool has anything."""
    store.check_invariants()
    counters = store.counters
    assert len(store) == counters.stored_pages == 0
    assert counters.stored_incompressible_pages == counters.same_filled_pages == 0
    assert store.compressed_bytes == store._resources.pool.objects == 0


def strided() -> np.ndarray:
    """Make two pages whose bytes are not next to each other."""
    return np.empty((2, SIZE, 2), np.uint8)[:, :, 0]
