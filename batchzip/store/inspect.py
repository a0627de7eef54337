"""Inspection: read every stored byte and verify its checksum, while the store stays in use.

Entries are gathered one batch at a time, together with their bytes in the pool. Bytes in the file
are read without a lock. A page that looks damaged is reported only if its entry has not changed
since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.gather import gather
from batchzip.core.table import IN_FILE, IN_POOL, Kind
from batchzip.store.loader import read
from batchzip.store.resources import unless_dropped

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from batchzip.core.entries import Entries
    from batchzip.store.resources import Resources

_BATCH = 512
"""Pages inspected at a time."""

_KINDS = (*IN_POOL, *IN_FILE, Kind.SAME_FILLED)


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The result of `SwapStore.check`.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [bytes([n]) * 2048 + bytes(2048) for n in range(10)])
        ...     report = store.check()
        >>> report.ok, report.pages, report.damaged
        (True, 10, ())
    """

    pages: int
    """Number of pages inspected."""
    bytes: int
    """Number of bytes whose checksums were verified."""
    damaged: tuple[tuple[str, int], ...]
    """Group and index of each page whose stored bytes are damaged."""
    unreadable: tuple[tuple[str, int], ...]
    """Group and index of each page that could not be read from the backing file."""

    @property
    def ok(self) -> bool:
        """Whether no page is damaged or unreadable."""
        return not self.damaged and not self.unreadable


class _Inspection:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.pages = 0
        self.bytes = 0
        self.damaged: list[tuple[str, int]] = []
        self.unreadable: list[tuple[str, int]] = []

    def look(self, name: str, entries: Entries, indices: npt.NDArray[np.int64]) -> None:
        """Verify the pages of a group that are stored at these indices."""
        gathered = gather(entries, indices)
        read(self.resources, gathered)
        bad = set(gathered.damaged())
        for row in gathered.rows_of(*_KINDS):
            self.pages += 1
            self.bytes += gathered.length(row)
            if row in bad and not gathered.has_changed(row):
                in_file = gathered.kind(row) in IN_FILE
                unreadable = in_file and not gathered.length(row)
                found = self.unreadable if unreadable else self.damaged
                found.append((name, gathered.index(row)))


def inspect(resources: Resources, all_entries: Mapping[str, Entries]) -> StoreReport:
    """Verify the pages of these groups, by name."""
    inspection = _Inspection(resources)
    for name, entries in all_entries.items():
        with unless_dropped(entries):
            found = entries.choose(_KINDS)
            indices = np.frombuffer(found, np.int64)
            for start in range(0, len(indices), _BATCH):
                inspection.look(name, entries, indices[start : start + _BATCH])
    return StoreReport(
        inspection.pages,
        inspection.bytes,
        tuple(inspection.damaged),
        tuple(inspection.unreadable),
    )
