"""SwapStore: pages by index, compressed in RAM. zswap in user space.

    store(index, pages)                                    load(index)
      limit check                                            under the lock: entry, copy of its bytes
      same-filled pages: their word                          checksum, decompress, outside the lock
      the others, in batches: engine ─▶ pool
      under the lock: entries in, old ones out ◀── the folio becomes visible here, whole

Rejected: compressing under the lock (a folio takes milliseconds, a publication microseconds);
handing out views of the pool (they would change under the caller when the page is stored again).

A folio is all or nothing. Until it is published nobody sees any of it; if any page of it cannot be
kept, what the pool already took is freed and whatever the indices held before is dropped, because it
is stale: the caller has newer data than the store.

How an entry is read is decided from the entry (its kind), never from a current setting.

Invariants: those of the ledger, which keeps the entries whole even when a call is cut short anywhere.

Lock order: the store's lock, then the pool's. One hold of each a batch, none of either a page.
Neither is held while the engine works.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, overload

import numpy as np

from batchzip import buffers
from batchzip.errors import (
    BadArgument,
    BadBatch,
    CorruptPage,
    PageError,
    PageNotStored,
    StoreRejected,
)
from batchzip.lifetime import Owned
from batchzip.pool import Pool
from batchzip.store.counters import Counters
from batchzip.store.folio import FolioWriter
from batchzip.store.ledger import Ledger
from batchzip.store.page_table import (
    ABSENT,
    COMPRESSED,
    MAX_INDEX,
    RAW,
    SAME_FILLED,
    as_integer,
    as_range,
)
from batchzip.store.restore import Restorer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from batchzip.buffers import Buffer
    from batchzip.engine import Engine
    from batchzip.pool.audit import ClassUse


class _LimitError(StoreRejected):
    """Refused by the limit check, which also did the counting."""

    def __init__(self, message: str) -> None:
        super().__init__("pool_limit_hit", message)


class SwapStore(Owned):
    """Keeps pages compressed in a pool, and gives any of them back by its index.

    `engine`                    does the work; stays the caller's, and may serve others too.
    `max_pool_bytes`            bytes of memory the pool may hold; None for no limit.
    `accept_threshold_percent`  once the pool was full, it accepts again at this share of the limit.
    `max_batch`                 most pages handed to the engine in one go; a larger folio takes several.
    `keep_incompressible`       keep pages that do not shrink raw; False rejects their folio, as zswap
                                does where nothing can be written back.

    Thread-safe: a folio becomes visible at once, and a load gives a version that was current during
    the call. Bound to the process that made it; contents do not survive it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_pool_bytes: int | None = None,
        accept_threshold_percent: int = 90,
        max_batch: int = 256,
        keep_incompressible: bool = True,
    ) -> None:
        if not isinstance(max_batch, int) or max_batch < 1:
            raise BadArgument(f"max_batch must be at least 1 page, not {max_batch!r}")
        self.engine = engine
        self.page_size = engine.page_size
        self.accept_threshold_percent = accept_threshold_percent
        self._pool = Pool(max_pool_bytes, page_size=engine.page_size)
        self._writer = FolioWriter(
            engine, self._pool, max_batch=max_batch, keep_incompressible=keep_incompressible
        )
        self._restorer = Restorer(engine)
        self._ledger = Ledger(self._pool)
        self._lock = threading.Lock()
        self._full = False
        self._events = {
            "pool_limit_hit": 0,
            "reject_alloc_fail": 0,
            "reject_compress_poor": 0,
            "reject_compress_fail": 0,
            "reject_reclaim_fail": 0,
            "decompress_fail": 0,
            "written_back_pages": 0,
        }
        super().__init__()

    def store(self, index: int, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio at `index`, `index` + 1, …: all of its pages, or none.

        `pages` is one page, or any form of pages that CompressBatch takes; it is read during the
        call only. Raises StoreRejected, after which the indices hold nothing.
        """
        self._enter()
        matrix = self._as_pages(pages)
        first, count = as_range(index, len(matrix))
        outer = self._ledger.begin(first, count)
        try:
            self._check_limit()
            entries = self._writer.write(matrix)
            with self._lock:
                self._ledger.publish(first, entries)
        except StoreRejected as rejection:
            with self._lock:
                self._count_rejection(rejection)
                self._ledger.erase(first, count)
            self._ledger.end(outer)
            raise
        except BaseException as error:
            with self._lock:
                self._ledger.recover(first, count)
                self._events["reject_alloc_fail"] += isinstance(error, MemoryError)
            self._ledger.end(outer)
            if isinstance(error, MemoryError):
                raise StoreRejected("reject_alloc_fail", "there is no memory for it") from error
            raise
        self._ledger.end(outer)

    def _enter(self) -> None:
        """Refuse a store that cannot be used; put right what was cut short in this thread."""
        if self._unusable:
            self._refuse()
        if self._ledger.under_way:
            with self._lock:
                self._ledger.settle()

    def _as_pages(self, pages: Buffer | Sequence[Buffer]) -> buffers.Bytes:
        if not buffers.is_sequence(pages):
            return buffers.as_matrix(pages, "pages", rows=None, width=self.page_size)
        inputs = buffers.as_inputs(pages, "pages")
        for number, page in enumerate(inputs):
            if len(page) != self.page_size:
                raise BadBatch(f"pages[{number}] has {len(page)} bytes, not {self.page_size}")
        return np.frombuffer(b"".join(inputs), np.uint8).reshape(-1, self.page_size)

    def _check_limit(self) -> None:
        """Refuse a store while the pool counts as full: zswap_check_limits with its hysteresis."""
        limit = self._pool.max_bytes
        if limit is None:
            return
        held = self._pool.held_bytes
        with self._lock:
            if held >= limit:
                self._full = True
                self._events["pool_limit_hit"] += 1
            elif self._full and held * 100 <= limit * self._accept_threshold_percent:
                self._full = False
            if not self._full:
                return
        raise _LimitError(f"the pool holds {held} bytes and its limit is {limit}")

    def _count_rejection(self, rejection: StoreRejected) -> None:
        """Count a rejection by its cause, compression per failing page; called under the lock."""
        if isinstance(rejection, _LimitError):
            return  # counted where the maximum was seen
        if rejection.errors is None:
            self._events[rejection.reason] += 1
            self._full |= rejection.reason == "pool_limit_hit"
            return
        errors = np.asarray(rejection.errors)
        poor = int(np.count_nonzero(errors == -errno.ENOSPC))
        self._events["reject_compress_poor"] += poor
        self._events["reject_compress_fail"] += int(np.count_nonzero(errors)) - poor

    @overload
    def load(self, index: int, out: None = None) -> bytes: ...

    @overload
    def load(self, index: int, out: Buffer) -> Buffer: ...

    def load(self, index: int, out: Buffer | None = None) -> Buffer:
        """Give the bytes of one page; with `out`, a writable buffer, fill it and return it.

        Raises PageNotStored, or CorruptPage where the stored bytes are damaged; the entry stays.
        """
        if self._unusable or self._ledger.under_way:
            self._enter()
        where = index if type(index) is int else as_integer(index, "an index")
        with self._lock:
            value, check, kind = self._ledger.table.get(where)
            # Copied under the lock: nobody can free it meanwhile.
            stored = self._pool.copy(value) if kind in (COMPRESSED, RAW) else b""
        if kind == ABSENT:
            raise PageNotStored(where)
        try:
            page = self._restorer.page(kind, value, check, stored)
        except PageError as error:
            raise self._failed(where, error) from None
        if out is None:
            return page
        view = buffers.as_view(out, "out", writable=True)
        if len(view) != self.page_size:
            raise BadBatch(f"out has {len(view)} bytes, not {self.page_size}")
        view[:] = page
        return out

    def _failed(self, index: int, error: PageError) -> CorruptPage | PageError:
        """Count a page that could not be restored; what to raise for it."""
        with self._lock:
            self._events["decompress_fail"] += 1
        return (
            CorruptPage(index) if error.errno == -errno.EBADMSG else PageError(index, error.errno)
        )

    def load_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> buffers.Bytes:
        """Give pages, in the order of `indices`, as an (n, page_size) uint8 array.

        They are decompressed as one batch. `out` is an array, or a flat buffer, to fill. All of them
        are of one moment. Raises as `load`, for the first index concerned; `out` is undefined then.
        """
        self._enter()
        where = _as_indices(indices)
        if not len(where):
            return np.empty((0, self.page_size), np.uint8)
        pages = (
            np.empty((len(where), self.page_size), np.uint8)
            if out is None
            else buffers.as_matrix(out, "out", rows=len(where), width=self.page_size, writable=True)
        )
        with self._lock:
            entries = self._ledger.table.get_many(where)
            kinds = entries["kind"]
            if not kinds.all():
                raise PageNotStored(int(where[np.flatnonzero(kinds == ABSENT)[0]]))
            held = entries["value"][kinds != SAME_FILLED]
            stored = self._pool.copy_many(held)
        try:
            self._restorer.pages(entries, stored, pages)
        except PageError as error:
            raise self._failed(int(where[error.index]), error) from None
        return pages

    def invalidate(self, index: int, count: int = 1) -> int:
        """Forget `count` pages from `index` on, stored or not; how many there were."""
        self._enter()
        first, number = as_range(index, count)
        outer = self._ledger.begin(first, number)
        try:
            with self._lock:
                pages = self._ledger.erase(first, number)
        except BaseException:
            with self._lock:
                self._ledger.recover(first, number)
            self._ledger.end(outer)
            raise
        self._ledger.end(outer)
        return pages

    def __contains__(self, index: int) -> bool:
        self._enter()
        with self._lock:
            return self._ledger.table.get(as_integer(index, "an index"))[2] != ABSENT

    def __len__(self) -> int:
        self._enter()
        with self._lock:
            return self._ledger.pages

    def __bool__(self) -> bool:
        """Say yes: an empty store is a store."""
        return True

    @property
    def counters(self) -> Counters:
        """The counters, as they are now."""
        self._enter()
        with self._lock:
            return Counters(
                **self._events,
                pool_total_size=self._pool.held_bytes,
                stored_pages=self._ledger.pages,
                stored_incompressible_pages=int(self._ledger.gauges[RAW]),
                same_filled_pages=int(self._ledger.gauges[SAME_FILLED]),
            )

    @property
    def max_pool_bytes(self) -> int | None:
        """Bytes of memory the pool may hold, or None. Lowered below what it holds, it only refuses."""
        return self._pool.max_bytes

    @max_pool_bytes.setter
    def max_pool_bytes(self, value: int | None) -> None:
        self._pool.max_bytes = value

    @property
    def accept_threshold_percent(self) -> int:
        """Share of the limit, in percent, below which a pool that was full accepts again."""
        return self._accept_threshold_percent

    @accept_threshold_percent.setter
    def accept_threshold_percent(self, value: int) -> None:
        if type(value) is not int or not 0 <= value <= 100:
            raise BadArgument(f"accept_threshold_percent is an integer in 0…100, not {value!r}")
        self._accept_threshold_percent = value

    @property
    def compressed_bytes(self) -> int:
        """Sum of the lengths of everything in the pool, raw pages included."""
        return self._pool.stored_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the store's own tables."""
        return self._ledger.table.nbytes

    def classes(self) -> list[ClassUse]:
        """List the pool's size classes and what they hold."""
        return self._pool.classes()

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; no store may be under way."""
        self._enter()
        with self._lock:
            self._ledger.sweep()
            self._ledger.check_invariants()

    def _close(self) -> None:
        with self._lock:
            self._pool.close()


def _as_indices(indices: Iterable[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Make an int64 array of indices; none of them changes its value on the way."""
    given = indices if hasattr(indices, "__array__") else list(indices)
    where = np.asarray(given)
    if where.ndim != 1 or (where.dtype.kind not in "iu" and len(where)):
        raise BadArgument("indices must be integers from 0 to 2⁶³−1, in one dimension")
    if where.dtype == np.uint64 and len(where) and where.max() > MAX_INDEX:
        raise PageNotStored(int(where[where > MAX_INDEX][0]))
    return where.astype(np.int64, copy=False)
