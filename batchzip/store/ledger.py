"""Ledger: which entries are published, and that every pool object belongs to exactly one of them.

    publish(index, entries) ─▶ table: new in, old out ─▶ gauges ─▶ old objects freed
    erase(index, count)     ─▶ table: out             ─▶ gauges ─▶ objects freed

Either may be cut short between any two steps, by KeyboardInterrupt above all. Rejected: making the steps
undo themselves, which can be cut short as well. The entries are the truth instead: `recover` drops the
indices concerned and makes everything else anew from what the table holds, so that the call that was
cut short has stored nothing. An object that was allocated, but not yet entered, belongs to nobody;
such are found by comparing the pool with the table, when no other folio is under way.

A call that changes something says so first (`begin`) and last (`end`). One that was cut short where even
its own handler did not run is thus found by the thread's next call: it began, it has not ended, and
its frame is not on the stack any more. (If it is, this is a call from within it, a finaliser say.)

Invariants
* gauges[kind] is the number of entries of that kind.
* Every live handle of the pool stands in one entry, or belongs to a folio under way.

Locks: the store's is held around every call but `begin` and `end`; the pool's is taken within.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batchzip.store.page_table import ABSENT, COMPRESSED, RAW, PageTable

if TYPE_CHECKING:
    from types import FrameType

    import numpy.typing as npt

    from batchzip.pool import Pool


class Change(NamedTuple):
    """A change of `pages` indices from `first` on, and the call that makes it."""

    first: int
    pages: int
    frame: FrameType


class Ledger:
    """A store's table, its gauges, and the ownership of the pool's objects."""

    def __init__(self, pool: Pool) -> None:
        self.table = PageTable()
        self.gauges: npt.NDArray[np.int64] = np.zeros(4, np.int64)
        """Entries by kind; that of ABSENT stays 0."""
        self._pool = pool
        self.under_way: dict[int, Change] = {}
        """Changes that have begun and not ended, by thread."""
        self._orphans = False

    @property
    def pages(self) -> int:
        """Pages published."""
        return int(self.gauges.sum())

    def begin(self, index: int, count: int) -> Change | None:
        """Say that the caller is about to change these indices; what `end` is to be given."""
        thread = threading.get_ident()
        outer = self.under_way.get(thread)
        self.under_way[thread] = Change(index, count, sys._getframe(1))  # noqa: SLF001 - see header
        return outer

    def end(self, outer: Change | None) -> None:
        """Say that it has, or has put things right."""
        if outer is None:
            del self.under_way[threading.get_ident()]
        else:
            self.under_way[threading.get_ident()] = outer

    def settle(self) -> None:
        """Put right what an earlier call of this thread began and neither ended nor put right."""
        change = self.under_way.get(threading.get_ident())
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
        while change is not None and frame is not change.frame:
            if frame is None:
                self.recover(change.first, change.pages)
                self.end(None)
                return
            frame = frame.f_back

    def publish(self, index: int, entries: np.ndarray) -> None:
        """Enter a folio, whole; what its indices held is freed.

        Raises MemoryError where the table cannot grow: nothing was entered then.
        """
        self.sweep()
        old = self.table.replace(index, entries)
        self.gauges += np.bincount(entries["kind"], minlength=4)
        if old["kind"].any():
            self._free(old)

    def erase(self, index: int, count: int) -> int:
        """Take out whatever these indices hold and free it; how many pages that were."""
        entries = self.table.clear(index, count)
        if len(entries):
            self._free(entries)
        return len(entries)

    def _free(self, entries: np.ndarray) -> None:
        kinds = entries["kind"]
        counts = np.bincount(kinds, minlength=4)
        counts[ABSENT] = 0
        self.gauges -= counts
        self._pool.free_many(_handles(entries))

    def recover(self, index: int, count: int) -> None:
        """After a call was cut short: the indices hold nothing, and all is whole again."""
        self.table.rebuild(index, count)
        self.gauges = self.table.count_kinds()
        self._orphans = True
        self.sweep()

    def sweep(self) -> None:
        """Free objects that belong to nobody, if there may be any and no other folio is under way."""
        others = self.under_way.keys() - {threading.get_ident()}
        if not self._orphans or others & sys._current_frames().keys():  # noqa: SLF001 - as above
            return
        owned = {one for _, entries in self.table.blocks() for one in _handles(entries).tolist()}
        self._pool.free_many([one for one in self._pool.handles().tolist() if one not in owned])
        self._orphans = False

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; no folio may be under way."""
        self.table.check_invariants()
        self._pool.check_invariants()
        if self.table.count_kinds().tolist() != self.gauges.tolist():
            raise AssertionError(f"gauges {self.gauges} differ from {self.table.count_kinds()}")
        owned = [one for _, entries in self.table.blocks() for one in _handles(entries).tolist()]
        if sorted(owned) != sorted(self._pool.handles().tolist()):
            raise AssertionError("the pool's objects and the entries do not pair up")


def _handles(entries: np.ndarray) -> npt.NDArray[np.uint64]:
    """Pool handles of those entries that have one."""
    kinds = entries["kind"]
    handles: npt.NDArray[np.uint64] = entries["value"][(kinds == COMPRESSED) | (kinds == RAW)]
    return handles
