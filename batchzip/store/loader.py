"""Loader: from an index to its page, and out of the store with it where that is asked for.

    under the lock   entry, its age made young, a copy of its bytes in the pool
    outside          bytes in the file ─▶ checksum ─▶ decompress

Nobody waits for a codec or a file. What was copied under the lock is a version of the page that was current
then. What is read from the file need not be: between the look at the entry and the read the page may be
stored anew, and its place given to another. The checksum tells, and then the entry is
looked at again: only one that is still the same is damaged.

Few pages are loaded one by one, more as one batch of the engine.

An exclusive load takes the page out afterwards, if its entry is still the one that was restored; else it
begins again. So a page that cannot be restored stays (25cd241408a2 lost it), and of several that take
one at once one has it.

Locks: the store's, as above.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest

from batchzip.buffers import flat
from batchzip.errors import CorruptPage, PageError, PageNotStored
from batchzip.store.folio import CHECKSUM_MASK
from batchzip.store.page_table import ABSENT, BACKED, COMPRESSED, RAW, SAME_FILLED
from batchzip.store.same_filled import fill

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.buffers import Bytes
    from batchzip.store.counters import Traffic
    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger


_FEW_BYTES = 64 << 10
"""Up to so much is restored page by page: a batch takes 50 µs of array operations before its first page,
and workers are worth their while from 64 pages of 4 KiB on."""


class Loader:
    """Loads the pages of one group. Thread-safe."""

    def __init__(
        self, home: Home, ledger: Ledger, events: dict[str, int], traffic: Traffic
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._events = events
        self._traffic = traffic
        self._lock = home.lock
        self._table = ledger.table
        self._lru = ledger.lru
        self.few_bytes = _FEW_BYTES

    def load(self, where: int, *, exclusive: bool) -> bytes:  # noqa: C901 - a call costs 0.05 µs
        """Restore one page. Raises as `Group.load`."""
        lru, home, traffic = self._lru, self._home, self._traffic
        while True:
            lru.used += 1
            with self._lock:
                if lru.used > lru.quota or time.monotonic() >= lru.until:
                    lru.advance(self._ledger.pages)
                entry = self._table.use(where, lru.stamp)
                value, check, kind, number, _ = entry
                reused = home.codecs.reused
                # Copied under the lock: nobody can free it meanwhile.
                if kind == COMPRESSED or kind == RAW:  # noqa: PLR1714, SIM109 - half the time of `in`
                    stored = home.objects.pool.copy(value)
                traffic.page_loads += kind != ABSENT
            try:
                if kind == ABSENT:
                    raise PageNotStored(where)
                if kind == SAME_FILLED:
                    page = fill(value, home.page_size)
                else:
                    if kind == BACKED:
                        stored = self._fetch(value)
                    if (xxh3_64_intdigest(stored) ^ number) & CHECKSUM_MASK != check:
                        raise PageError(where, -errno.EBADMSG)  # noqa: TRY301 - as above
                    page = home.codecs.decompress(number, stored) if number else stored
            except PageError as error:
                if reused != home.codecs.reused or (kind == BACKED and self._changed(where, entry)):
                    continue  # read as another codec's, or what was another's place in the file by then
                raise self._failed(where, error) from None
            if reused != home.codecs.reused:
                continue  # the number may have been another codec's by then
            if not exclusive or self._take(where, entry):
                return page

    def _fetch(self, position: int) -> bytes:
        backing = self._home.objects.backing
        assert backing is not None  # noqa: S101 - there are such entries
        try:
            return backing.read(np.array([position], np.uint64))[0]
        except OSError as error:
            raise PageError(0, -(error.errno or errno.EIO)) from None

    def _changed(self, index: int, entry: tuple[int, int, int, int, int]) -> bool:
        with self._lock:
            return self._table.get(index)[:4] != entry[:4]

    def _take(self, index: int, entry: tuple[int, int, int, int, int]) -> bool:
        """Take a page out if its entry is still this one."""

        def take() -> bool:
            with self._lock:
                same = self._table.get(index)[:4] == entry[:4]
                if same:
                    self._ledger.erase(index, 1)
                return same

        return self._home.change(self._ledger, index, 1, take)

    def _failed(self, index: int, error: PageError) -> CorruptPage | PageError:
        """Count a page that could not be restored; what to raise for it."""
        with self._lock:
            self._events["decompress_fail"] += 1
        return (
            CorruptPage(index) if error.errno == -errno.EBADMSG else PageError(index, error.errno)
        )

    def load_many(self, where: npt.NDArray[np.int64], pages: Bytes, *, exclusive: bool) -> None:
        """Restore the pages of these indices to the rows of `pages`. Raises as `Group.load_many`."""
        if (
            pages.nbytes <= self.few_bytes
            and not exclusive
            and self._load_few(where.tolist(), pages)
        ):
            return
        while not self._load_once(where, pages, exclusive=exclusive):
            pass

    def _load_few(self, where: list[int], pages: Bytes) -> bool:
        """Load pages one by one, of one moment; whether that could be done.

        Not where one lies in the file, as several are read at once, nor where it has to be looked again.
        """
        home, table, stamp = self._home, self._table, self._lru.stamp
        copy = home.objects.pool.copy
        with self._lock:
            entries = [table.use(index, stamp) for index in where]
            kinds = [entry[2] for entry in entries]
            if ABSENT in kinds:
                raise PageNotStored(where[kinds.index(ABSENT)])
            if BACKED in kinds:
                return False
            self._lru.tick(len(where), self._ledger.pages)
            self._traffic.page_loads += len(where)
            reused = home.codecs.reused
            stored = [b"" if e[2] == SAME_FILLED else copy(e[0]) for e in entries]
        room, size = flat(pages), home.page_size
        start = 0
        for index, entry, data in zip(where, entries, stored, strict=True):
            value, check, kind, number, _ = entry
            try:
                if kind == SAME_FILLED:
                    page = fill(value, size)
                else:
                    page = home.restorer.one(index, data, check, number)
            except PageError as error:
                if reused != home.codecs.reused:
                    return False
                raise self._failed(index, error) from None
            room[start : start + size] = page
            start += size
        return reused == home.codecs.reused

    def _load_once(self, where: npt.NDArray[np.int64], pages: Bytes, *, exclusive: bool) -> bool:
        """Load once; whether nothing came between that has to be looked at again."""
        home, lru, ledger = self._home, self._lru, self._ledger
        with self._lock:
            lru.tick(len(where), ledger.pages)
            entries = self._table.use_many(where, lru.stamp)
            kinds = entries["kind"]
            if not kinds.all():
                raise PageNotStored(int(where[np.flatnonzero(kinds == ABSENT)[0]]))
            self._traffic.page_loads += len(where)
            pooled = home.pooled(entries[(kinds == COMPRESSED) | (kinds == RAW)])
            reused = home.codecs.reused
        try:
            try:
                stored = home.fetch(entries, pooled)
            except OSError as error:
                row = int(np.flatnonzero(kinds == BACKED)[0])
                raise PageError(row, -(error.errno or errno.EIO)) from None
            home.restorer.pages(entries, stored, pages, home.writer)
        except PageError as error:
            if reused != home.codecs.reused:
                return False
            index = int(where[error.index])
            if kinds[error.index] == BACKED and self._changed(index, entries[error.index].item()):
                return False
            raise self._failed(index, error) from None
        if reused != home.codecs.reused:
            return False
        return not exclusive or self._take_many(where, entries)

    def _take_many(self, where: npt.NDArray[np.int64], entries: np.ndarray) -> bool:
        distinct, first = np.unique(where, return_index=True)

        def take() -> bool:
            with self._lock:
                return self._ledger.take(distinct, entries[first])

        return self._home.change(self._ledger, 0, 0, take)
