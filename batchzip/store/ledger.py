"""Ledger: which entries are published, and that every object belongs to exactly one of them.

An object is what an entry refers to: in the pool, or in the backing file.

    publish(index, entries)      ─▶ table: new in, old out      ─▶ gauges ─▶ old objects freed
    erase(index, count)          ─▶ table: out                  ─▶ gauges ─▶ objects freed
    exchange(indices, old, new)  ─▶ table: new where old still is ─▶ gauges ─▶ old objects freed,
                                                                         new ones of the others too

exchange is how entries move while others use the store: writeback and recompression work on
copies without the lock, and what was stored anew meanwhile stays (CVE-2023-53178 was a writeback
that did not look again).

Either may be cut short between any two steps, by KeyboardInterrupt above all. Rejected: making the steps
undo themselves, which can be cut short as well. The entries are the truth instead: `recover` drops the
indices concerned and makes everything else anew from what the table holds, so that the call that was
cut short has stored nothing. An object that was allocated, but not yet entered, belongs to nobody;
such are found by comparing pool and file with the tables, when no other change is under way.

A store has a ledger for each of its groups; they share pool, file, and who is changing what.

A call that changes something says so first (`begin`) and last (`end`). One that was cut short where even
its own handler did not run is thus found by the thread's next call: it began, it has not ended, and
its frame is not on the stack any more. (If it is, this is a call from within it, a finaliser say.)

Invariants
* gauges[kind] is the number of entries of that kind, pool_bytes the sum of their lengths in the pool.
* Every live object stands in one entry, or belongs to a change under way.

Locks: the store's is held around every call but `begin` and `end`; the pool's is taken within.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batchzip.store.lru import Lru
from batchzip.store.page_table import (
    ABSENT,
    BACKED,
    COMPRESSED,
    KINDS,
    RAW,
    SAME_FILLED,
    PageTable,
)

if TYPE_CHECKING:
    from types import FrameType

    import numpy.typing as npt

    from batchzip.pool import Pool
    from batchzip.store.backing_file import BackingFile


class Change(NamedTuple):
    """A change of `pages` indices from `first` on in a ledger, and the call that makes it."""

    ledger: Ledger
    first: int
    pages: int
    frame: FrameType


class Objects:
    """Where the objects of all ledgers are, and which changes are under way."""

    def __init__(self, pool: Pool, backing: BackingFile | None) -> None:
        self.pool = pool
        self.backing = backing
        self.ledgers: list[Ledger] = []
        self.under_way: dict[int, Change] = {}
        """Changes that have begun and not ended, by thread."""
        self.orphans = False
        """Whether there may be objects that belong to nobody."""

    def free(self, entries: np.ndarray) -> int:
        """Free what these entries refer to; how many bytes of the pool that were."""
        if self.backing is not None:
            self.backing.zones.free(positions(entries))
            self.backing.settle()
        return self.pool.free_many(handles(entries))

    def settle(self) -> None:
        """Put right what an earlier call of this thread began and neither ended nor put right."""
        change = self.under_way.get(threading.get_ident())
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - see header
        while change is not None and frame is not change.frame:
            if frame is None:
                change.ledger.recover(change.first, change.pages)
                change.ledger.end(None)
                return
            frame = frame.f_back

    def sweep(self) -> None:
        """Free objects that belong to nobody, if there may be any and no other change is under way."""
        others = self.under_way.keys() - {threading.get_ident()}
        if not self.orphans or others & sys._current_frames().keys():  # noqa: SLF001 - as above
            return
        owned = np.concatenate([handles(part) for part in self._parts()])
        self.pool.free_many(np.setdiff1d(self.pool.handles(), owned))
        self.orphans = False

    def _parts(self) -> list[np.ndarray]:
        return [ledger.table.entries for ledger in self.ledgers]

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; no change may be under way."""
        self.pool.check_invariants()
        for ledger in self.ledgers:
            ledger.check_invariants()
        owned = np.concatenate([handles(part) for part in self._parts()])
        if not np.array_equal(np.sort(owned), np.sort(self.pool.handles())):
            raise AssertionError("the pool's objects and the entries do not pair up")
        if self.backing is not None:
            self.backing.check_invariants(
                np.concatenate([positions(part) for part in self._parts()])
            )


class Ledger:
    """A group's table and gauges, and its part in the ownership of objects."""

    def __init__(self, objects: Objects) -> None:
        self.table = PageTable()
        self.lru = Lru(self.table)
        self.gauges: npt.NDArray[np.int64] = np.zeros(len(KINDS), np.int64)
        """Entries by kind; that of ABSENT stays 0."""
        self.pool_bytes = 0
        """Sum of the lengths of this group's objects in the pool."""
        self._objects = objects
        objects.ledgers.append(self)

    @property
    def pages(self) -> int:
        """Pages published."""
        return sum(self.gauges.tolist())  # a tenth of what NumPy takes for five numbers

    def begin(self, index: int, count: int) -> Change | None:
        """Say that the caller is about to change these indices; what `end` is to be given.

        With a count of 0, objects only: none of the indices is dropped if it is cut short.
        """
        thread = threading.get_ident()
        under_way = self._objects.under_way
        outer = under_way.get(thread)
        under_way[thread] = Change(self, index, count, sys._getframe(1))  # noqa: SLF001 - see header
        return outer

    def end(self, outer: Change | None) -> None:
        """Say that it has, or has put things right."""
        if outer is None:
            del self._objects.under_way[threading.get_ident()]
        else:
            self._objects.under_way[threading.get_ident()] = outer

    def publish(self, index: int, entries: np.ndarray, pool_bytes: int) -> None:
        """Enter a folio, whole; what its indices held is freed. It has so many bytes in the pool.

        Raises MemoryError where the table cannot grow: nothing was entered then.
        """
        self._objects.sweep()
        self.lru.tick(len(entries), self.pages)
        entries["epoch"] = self.lru.stamp
        if len(entries) == 1:
            entry = self.table.replace_one(index, entries)
            self.gauges[entries["kind"][0]] += 1
            self.pool_bytes += pool_bytes
            self._free_one(*entry)
            return
        old = self.table.replace(index, entries)
        self.gauges += np.bincount(entries["kind"], minlength=len(KINDS))
        self.pool_bytes += pool_bytes
        if old["kind"].any():
            self._free(old)

    def erase(self, index: int, count: int) -> int:
        """Take out whatever these indices hold and free it; how many pages that were."""
        if count == 1:
            entry = self.table.clear_one(index)
            self._free_one(*entry)
            return int(entry[2] != ABSENT)
        entries = self.table.clear(index, count)
        if len(entries):
            self._free(entries)
        return len(entries)

    def exchange(
        self, indices: npt.NDArray[np.int64], old: np.ndarray, new: np.ndarray, pool_bytes: int
    ) -> npt.NDArray[np.bool_]:
        """Put `new` entries where the `old` ones still are; which those were.

        The objects of the others are freed. `pool_bytes` is what the new ones have in the pool.
        """
        same = self.table.exchange(indices, old, new)
        gone = np.concatenate([old[same], new[~same]])
        self.gauges += np.bincount(new["kind"], minlength=len(KINDS))
        self.pool_bytes += pool_bytes
        self._free(gone)
        return same

    def take(self, indices: npt.NDArray[np.int64], old: np.ndarray) -> bool:
        """Take these indices, none twice, out if each still has its old entry; whether they had."""
        now = self.table.get_many(indices)
        if any((now[field] != old[field]).any() for field in ("value", "kind", "checksum")):
            return False
        self._free(self.table.remove(indices))
        return True

    def _free(self, entries: np.ndarray) -> None:
        counts = np.bincount(entries["kind"], minlength=len(KINDS))
        counts[ABSENT] = 0
        self.gauges -= counts
        self.pool_bytes -= self._objects.free(entries)

    def _free_one(self, value: int, _check: int, kind: int, _codec: int, _epoch: int) -> None:
        """Free as `_free`, by plain steps."""
        if kind == ABSENT:
            return
        self.gauges[kind] -= 1
        if kind == BACKED:
            assert self._objects.backing is not None  # noqa: S101 - there are such entries
            self._objects.backing.zones.free(np.array([value], np.uint64))
            self._objects.backing.settle()
        elif kind != SAME_FILLED:
            self.pool_bytes -= self._objects.pool.free(value)

    def recover(self, index: int, count: int) -> None:
        """After a call was cut short: the indices hold nothing, and all is whole again."""
        self.table.rebuild(index, count)
        self.gauges = self.table.count_kinds()
        self.pool_bytes = int(self._objects.pool.lengths(handles(self.table.entries)).sum())
        self._objects.orphans = True
        self._objects.sweep()

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self.table.check_invariants()
        if self.table.count_kinds().tolist() != self.gauges.tolist():
            raise AssertionError(f"gauges {self.gauges} differ from {self.table.count_kinds()}")
        counted = int(self._objects.pool.lengths(handles(self.table.entries)).sum())
        if counted != self.pool_bytes:
            raise AssertionError(f"{counted} bytes in the pool, counted are {self.pool_bytes}")


def handles(entries: np.ndarray) -> npt.NDArray[np.uint64]:
    """Pool handles of those entries that have one."""
    kinds = entries["kind"]
    found: npt.NDArray[np.uint64] = entries["value"][(kinds == COMPRESSED) | (kinds == RAW)]
    return found


def positions(entries: np.ndarray) -> npt.NDArray[np.uint64]:
    """Positions in the backing file of those entries that have one."""
    found: npt.NDArray[np.uint64] = entries["value"][entries["kind"] == BACKED]
    return found
