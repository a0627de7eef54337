"""Pages of a kind, each told by a number; and a store's counters, compared with what they were."""

import dataclasses
import random

from batchzip import Counters, SwapStore

SIZE = 4096
ZEROS = bytes(SIZE)

GAUGES = {
    "pool_total_size",
    "stored_pages",
    "stored_incompressible_pages",
    "same_filled_pages",
    "backed_pages",
    "backing_file_size",
}


def text(seed: int, size: int = SIZE) -> bytes:
    return (b"%d: a line that is there many times. " % seed * size)[:size]


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def word(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(8) * (size // 8)


def grown(store: SwapStore, before: Counters) -> dict[str, int]:
    """Tell which counters of events differ from `before`, and by how much."""
    now = dataclasses.asdict(store.counters)
    return {
        name: now[name] - value
        for name, value in dataclasses.asdict(before).items()
        if name not in GAUGES and now[name] != value
    }
