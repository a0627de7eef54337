"""Storer: from a folio to its entries, published whole or not at all.

    limit check ─▶ FolioWriter: engine ─▶ pool ─▶ entries ─▶ under the lock: in, old ones out
                       └─ refused ─▶ the backing file, whole ─▶ ┘

A folio is all or nothing. Until it is published nobody sees any of it; if any page of it cannot be
kept, what was already kept is freed and whatever the indices held before is dropped, because it
is stale: the caller has newer data than the store.

Rejected: compressing under the lock (a folio takes milliseconds, a publication microseconds).

Locks: the store's, to look at the limits, to count and to publish.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import StoreRejected
from batchzip.store.cleaning import clean
from batchzip.store.hysteresis import Hysteresis

if TYPE_CHECKING:
    from batchzip.buffers import Bytes
    from batchzip.store.counters import Traffic
    from batchzip.store.home import Home
    from batchzip.store.ledger import Ledger


class _LimitError(StoreRejected):
    """Refused by the limit check, which also did the counting."""

    def __init__(self, message: str) -> None:
        super().__init__("pool_limit_hit", message)


class Storer:
    """Stores the folios of one group. Thread-safe."""

    def __init__(
        self, home: Home, ledger: Ledger, events: dict[str, int], traffic: Traffic, name: str
    ) -> None:
        self.max_bytes: int | None = None
        """Bytes of compressed pages that the group may have in the pool, None for the store's limit alone."""
        self._home = home
        self._ledger = ledger
        self._events = events
        self._traffic = traffic
        self._lock = home.lock
        self._name = name
        self._full = Hysteresis()

    def store(self, first: int, pages: Bytes) -> None:
        """Store pages (n, page_size) at `first` and on. Raises as `Group.store`."""
        count = len(pages)
        ledger = self._ledger
        outer = ledger.begin(first, count)
        try:
            entries, kept = self._keep(pages)
            with self._lock:
                ledger.publish(first, entries, kept)
                self._traffic.page_stores += count
        except StoreRejected:
            with self._lock:
                ledger.erase(first, count)
            ledger.end(outer)
            raise
        except BaseException as error:
            with self._lock:
                ledger.recover(first, count)
                self._events["reject_alloc_fail"] += isinstance(error, MemoryError)
            ledger.end(outer)
            if isinstance(error, MemoryError):
                raise StoreRejected("reject_alloc_fail", "there is no memory for it") from error
            raise
        ledger.end(outer)

    def _keep(self, pages: Bytes) -> tuple[np.ndarray, int]:
        """Put pages in the pool, or else in the file. Raises StoreRejected, which is counted."""
        writer = self._home.writer
        try:
            self._check_limits()
            return writer.write(pages)
        except StoreRejected as rejection:
            self._count(rejection)
            if rejection.reason == "pool_limit_hit":
                self._home.wake()
            if self._home.objects.backing is None:
                raise
            # Called from here, so that neither frame keeps an exception, which would keep the frame and
            # with it the store.
            return self._keep_in_file(pages)

    def _keep_in_file(self, pages: Bytes) -> tuple[np.ndarray, int]:
        home = self._home
        try:
            try:
                return home.writer.write(pages, to_file=True)
            except StoreRejected:
                held = _held_in_file(home)
                with contextlib.suppress(OSError):
                    clean(home, wait=True)
                if _held_in_file(home) >= held:
                    raise
                return home.writer.write(pages, to_file=True)
        except StoreRejected as failure:
            self._count(failure)
            raise

    def _check_limits(self) -> None:
        """Refuse a store while the pool, or this group, counts as full."""
        home = self._home
        pool, percent = home.objects.pool, home.accept_threshold_percent
        limit = pool.max_bytes
        if limit is not None and pool.held_bytes >= limit:
            home.compact()
        with self._lock:
            held, own = pool.held_bytes, self._ledger.pool_bytes
            at_limit, pool_is_full = home.full.check(held, limit, percent)
            over, is_full = self._full.check(own, self.max_bytes, percent)
            self._events["pool_limit_hit"] += at_limit or over
            if pool_is_full:
                raise _LimitError(f"the pool holds {held} bytes and its limit is {limit}")
            if is_full:
                raise _LimitError(
                    f"group {self._name!r} has {own} bytes and its limit is {self.max_bytes}"
                )

    def _count(self, rejection: StoreRejected) -> None:
        """Count a rejection by its cause, compression per failing page."""
        if isinstance(rejection, _LimitError):
            return  # counted where the maximum was seen
        with self._lock:
            if rejection.errors is None:
                self._events[rejection.reason] += 1
                self._home.full.full |= rejection.reason == "pool_limit_hit"
                return
            errors = np.asarray(rejection.errors)
            poor = int(np.count_nonzero(errors == -errno.ENOSPC))
            self._events["reject_compress_poor"] += poor
            self._events["reject_compress_fail"] += int(np.count_nonzero(errors)) - poor

    def is_full(self) -> bool:
        """Whether the group counts as full."""
        percent = self._home.accept_threshold_percent
        with self._lock:
            return self._full.check(self._ledger.pool_bytes, self.max_bytes, percent)[1]


def _held_in_file(home: Home) -> int:
    backing = home.objects.backing
    return 0 if backing is None else backing.held_bytes
