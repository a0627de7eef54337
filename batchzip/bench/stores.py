"""Stores: contenders that keep a working set compressed and load single pages of it.

A contender opens a new, empty store for each round, so that all rounds do the same work.
"""

from __future__ import annotations

import sys
import tempfile
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

import batchzip
from batchzip.bench.compressors import bare_calls
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages

FOLIO_PAGES = 16
"""Pages per call of `store`: 64 KiB, a common size of mTHP folios."""

_READY_TIMEOUT_S = 60.0


class Store(Closing):
    """A contender. Each round begins with `open`, which drops all stored pages."""

    name: str
    folio_pages = FOLIO_PAGES
    """Pages per call of `store`."""

    @abstractmethod
    def open(self) -> None:
        """Start with an empty store."""

    @abstractmethod
    def store(self, index: int, pages: Pages) -> None:
        """Store pages at consecutive indices, in ascending order."""

    def flush(self) -> None:
        """Finish storing. No more pages will be stored in this round."""

    @abstractmethod
    def load(self, index: int) -> object:
        """Return one page, in whatever form this contender returns it."""

    @abstractmethod
    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Load several pages into `out`."""

    def put_back(self, indices: NDArray[np.int64]) -> None:
        """Store loaded pages again, if loading takes them out of the store. It is not timed."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Bytes of memory that the store holds, by its own account."""

    def close(self) -> None:
        """Release all resources."""


class OfBatchzip(Store):
    """A SwapStore. If its pool reaches `limit_bytes`, the rest goes to a backing file."""

    def __init__(
        self,
        name: str,
        algorithm: Algorithm,
        backend: str,
        *,
        folio_pages: int = FOLIO_PAGES,
        limit_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.folio_pages = folio_pages
        self._limit = limit_bytes
        self._engine = batchzip.Engine(algorithm.name, backend=backend, **algorithm.parameters)
        self._engine.wait_ready(_READY_TIMEOUT_S)
        self._store: batchzip.SwapStore | None = None

    def open(self) -> None:
        """Start with an empty store."""
        if self._store is not None:
            self._store.close()
        backing = None if self._limit is None else tempfile.gettempdir()
        self._store = batchzip.SwapStore(self._engine, max_pool_bytes=self._limit, backing=backing)
        # Bound methods, so that no wrapper's call is timed.
        self.store = self._store.store  # type: ignore[method-assign] # see above
        self.load = self._store.load  # type: ignore[method-assign] # see above

    def store(self, index: int, pages: Pages) -> None:
        """Store a folio."""
        raise NotImplementedError  # set by `open`

    def load(self, index: int) -> object:
        """Load a page."""
        raise NotImplementedError  # set by `open`

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Load a batch."""
        assert self._store is not None  # noqa: S101 - narrows a type
        self._store.load_many(indices, out=out)

    @property
    def held_bytes(self) -> int:
        """The pool and the tables of the store."""
        assert self._store is not None  # noqa: S101 - narrows a type
        return self._store.counters.pool_total_size + self._store.table_bytes

    def close(self) -> None:
        """Close the store and the engine."""
        if self._store is not None:
            self._store.close()
        self._engine.close()


class Dict(Store):
    """A dict of compressed bytes, without checksum, limit or lock: the simplest alternative."""

    name = "dict"

    def __init__(self, algorithm: Algorithm) -> None:
        self._compress, self._decompress = bare_calls(algorithm)
        self._pages: dict[int, bytes] = {}

    def open(self) -> None:
        """Start with an empty dict."""
        self._pages = {}

    def store(self, index: int, pages: Pages) -> None:
        """Compress each page."""
        for at, page in enumerate(pages, start=index):
            self._pages[at] = self._compress(page.data)

    def load(self, index: int) -> bytes:
        """Decompress a page."""
        return self._decompress(self._pages[index])

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Decompress the pages one by one."""
        for row, index in zip(out, indices.tolist(), strict=True):
            row[:] = np.frombuffer(self._decompress(self._pages[index]), np.uint8)

    @property
    def held_bytes(self) -> int:
        """The dict, its keys and its values, without the allocator's rounding."""
        held = sys.getsizeof(self._pages)
        return held + sum(sys.getsizeof(k) + sys.getsizeof(v) for k, v in self._pages.items())
