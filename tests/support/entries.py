"""What a store keeps of an index: its entry, and the bytes that the entry refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from support.pool_memory import object_of, own_mapping

from batchzip.core.gather import gather
from batchzip.core.records import Records
from batchzip.store.backing.positions import LENGTH_BITS

if TYPE_CHECKING:
    from batchzip import SwapStore
    from batchzip.store.group import Group

DIRECTORY = 4096
"""Where the blocks of the rows of a shared table begin (core/table.pyx)."""

ENTRIES = DIRECTORY + (8 << 20)
"""Where its entries begin, of two words each."""


def kind(group: Group, index: int) -> int:
    """Return the kind of an index."""
    return group._entries.kind(index)


def codec(group: Group, index: int) -> int:
    """Return the number of the codec that made what is stored."""
    return gather(group._entries, index).codec(0)


def length(group: Group, index: int) -> int:
    """Return the bytes of what is stored, if it is in the pool."""
    return gather(group._entries, index).length(0)


def in_pool(group: Group, index: int) -> memoryview:
    """View what the pool holds for an index, writable: the shared memory itself."""
    return object_of(group._resources.pool, gather(group._entries, index).value(0))


def in_file(group: Group, index: int) -> range:
    """Return the offsets of what the backing file holds for an index."""
    position = gather(group._entries, index).value(0)
    start = position >> LENGTH_BITS
    return range(start, start + (position & (1 << LENGTH_BITS) - 1) + 1)


def flip(group: Group, index: int) -> None:
    """Damage what the pool holds for an index; the second time it is whole again."""
    stored = in_pool(group, index)
    stored[len(stored) // 2] ^= 4


def shared(group: Group) -> npt.NDArray[np.uint64]:
    """View the entries of a table that others read, as rows of two words, writable."""
    memory = own_mapping(group._entries.share())
    return np.frombuffer(memory, np.uint64, offset=ENTRIES).reshape(-1, 2)


def records_in(store: SwapStore, name: str = "values") -> Records:
    """Make the records of a group of a store, with its engine's codec."""
    made = Records(store.group(name)._entries, "CompressedMapping")
    writer = store._resources.writer
    made.use_codec(writer.number, writer.engine.backend.coders)
    return made
