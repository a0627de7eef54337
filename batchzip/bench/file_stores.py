"""Peer stores in files: SQLite, LMDB and diskcache, which keep compressed bytes by page number.

Each compresses with the bare codec call, as the dict does. None of them waits for the disk, so that
the files are in the page cache. What they hold is the size of their files.
"""

from __future__ import annotations

import sqlite3
import tempfile
from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.bench.compressors import bare_calls
from batchzip.bench.stores import Store
from batchzip.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages


class FileStore(Store):
    """A store in a new folder for each round, which keeps compressed bytes by number."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._compress, self._decompress = bare_calls(algorithm)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @abstractmethod
    def _begin(self, folder: str) -> None:
        """Make an empty store in a folder."""

    @abstractmethod
    def _end(self) -> None:
        """Close the store."""

    @abstractmethod
    def _put(self, items: Iterable[tuple[int, bytes]]) -> None:
        """Store compressed bytes by number, in one transaction."""

    @abstractmethod
    def _get(self, index: int) -> bytes:
        """Return the compressed bytes of a number."""

    def open(self) -> None:
        """Start with an empty store in a new folder."""
        self.close()
        self._folder = tempfile.TemporaryDirectory()
        self._begin(self._folder.name)

    def store(self, index: int, pages: Pages) -> None:
        """Compress the pages and store them in one transaction."""
        self._put((at, self._compress(page.data)) for at, page in enumerate(pages, start=index))

    def load(self, index: int) -> bytes:
        """Read and decompress a page."""
        return self._decompress(self._get(index))

    def load_many(self, indices: NDArray[np.int64], out: Pages) -> None:
        """Load the pages one by one."""
        for row, index in zip(out, indices.tolist(), strict=True):
            row[:] = np.frombuffer(self.load(index), np.uint8)

    @property
    def held_bytes(self) -> int:
        """The blocks that the files have."""
        if self._folder is None:
            return 0
        return sum(path.stat().st_blocks * 512 for path in Path(self._folder.name).rglob("*"))

    def close(self) -> None:
        """Close the store and remove its folder."""
        folder, self._folder = self._folder, None
        if folder is not None:
            self._end()
            folder.cleanup()


class Sqlite(FileStore):
    """A table of SQLite with the page number as its key."""

    name = "SQLite"

    def _begin(self, folder: str) -> None:
        self._base = sqlite3.connect(f"{folder}/pages", isolation_level=None)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=OFF")
        self._base.execute("CREATE TABLE page (number INTEGER PRIMARY KEY, data BLOB)")

    def _put(self, items: Iterable[tuple[int, bytes]]) -> None:
        self._base.execute("BEGIN")
        self._base.executemany("INSERT OR REPLACE INTO page VALUES (?, ?)", items)
        self._base.execute("COMMIT")

    def _get(self, index: int) -> bytes:
        found = self._base.execute("SELECT data FROM page WHERE number = ?", (index,)).fetchone()
        data: bytes = found[0]
        return data

    def _end(self) -> None:
        self._base.close()


class Lmdb(FileStore):
    """An LMDB environment without syncing. A load reads in a transaction of its own."""

    name = "LMDB"

    def __init__(self, algorithm: Algorithm) -> None:
        self._lmdb = _module("lmdb")
        super().__init__(algorithm)

    def _begin(self, folder: str) -> None:
        options = {"sync": False, "metasync": False, "writemap": True}
        self._base = self._lmdb.open(folder, map_size=1 << 36, **options)

    def _put(self, items: Iterable[tuple[int, bytes]]) -> None:
        with self._base.begin(write=True) as transaction:
            for index, data in items:
                transaction.put(index.to_bytes(8, "big"), data)

    def _get(self, index: int) -> bytes:
        with self._base.begin() as transaction:
            data: bytes = transaction.get(index.to_bytes(8, "big"))
            return data

    def _end(self) -> None:
        self._base.close()


class Diskcache(FileStore):
    """A diskcache.Cache, which keeps values below 32 KiB in SQLite."""

    name = "diskcache"

    def __init__(self, algorithm: Algorithm) -> None:
        self._diskcache = _module("diskcache")
        super().__init__(algorithm)

    def _begin(self, folder: str) -> None:
        self._base = self._diskcache.Cache(folder, size_limit=1 << 40)

    def _put(self, items: Iterable[tuple[int, bytes]]) -> None:
        with self._base.transact():
            for index, data in items:
                self._base[index] = data

    def _get(self, index: int) -> bytes:
        data: bytes = self._base[index]
        return data

    def _end(self) -> None:
        self._base.close()


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise BackendUnavailable(f"{name} is not installed: pip install {name}") from None
