"""Inspection: every stored byte read and its checksum verified, while the store goes on.

A batch of entries is copied under the lock, with its bytes in the pool; bytes in the file are read
outside. What is damaged is looked at again under the lock, as it may have been stored anew meanwhile.

Locks: the store's, twice a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchzip.store.page_table import ABSENT, COMPRESSED, RAW, SAME_FILLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What `SwapStore.check` found."""

    pages: int
    """Pages that were looked at."""
    bytes: int
    """Bytes whose checksums were verified."""
    damaged: tuple[tuple[str, int], ...]
    """Group and index of each page whose stored bytes are damaged."""
    unreadable: tuple[tuple[str, int], ...]
    """Those the backing file did not give."""

    @property
    def ok(self) -> bool:
        """Whether every page is as it was stored."""
        return not self.damaged and not self.unreadable


class _Inspection:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.pages = 0
        self.bytes = 0
        self.damaged: list[tuple[str, int]] = []
        self.unreadable: list[tuple[str, int]] = []

    def look(self, name: str, ledger: Ledger, indices: npt.NDArray[np.int64]) -> None:
        """Verify the pages of a group that are stored at these indices."""
        home = self.home
        with home.lock:
            entries = ledger.table.get_many(indices)
            present = entries["kind"] != ABSENT
            indices, entries = indices[present], entries[present]
            kinds = entries["kind"]
            pooled = home.pooled(entries[(kinds == COMPRESSED) | (kinds == RAW)])
        self.pages += len(entries)
        held = kinds != SAME_FILLED
        indices, entries = indices[held], entries[held]
        if not len(entries):
            return
        try:
            stored = home.fetch(entries, pooled)
        except OSError:
            if len(entries) > 1:
                # One that cannot be read must not hide the others.
                for index in indices:
                    self.look(name, ledger, np.array([index]))
                self.pages -= len(entries)
                return
            self.unreadable.append((name, int(indices[0])))
            return
        self.bytes += sum(map(len, stored))
        bad = ~home.intact(entries, stored)
        if bad.any():
            with home.lock:
                now = ledger.table.get_many(indices[bad])
            same = now["value"] == entries["value"][bad]
            self.damaged += [(name, index) for index in indices[bad][same].tolist()]


def inspect(home: Home, ledgers: Mapping[str, Ledger]) -> StoreReport:
    """Verify the pages of these groups, by name."""
    inspection = _Inspection(home)
    for name, ledger in ledgers.items():
        with home.lock:
            blocks = [first for first, _ in ledger.table.blocks()]
        for first in blocks:
            inspection.look(name, ledger, np.arange(first, first + 512))
    return StoreReport(
        inspection.pages,
        inspection.bytes,
        tuple(inspection.damaged),
        tuple(inspection.unreadable),
    )
