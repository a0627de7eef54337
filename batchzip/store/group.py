"""Group: pages by index, with their own limit, LRU and counters.

Kernel counterpart: a memory cgroup in zswap.

    store(index, pages) ─▶ Storer ─▶ Writer ─▶ Folio ─▶ published in the Entries, whole
    load(index)         ─▶ Loader ─▶ entry ─▶ copy of its bytes ─▶ checksum ─▶ decompress
    writeback, shrink   ─▶ the coldest entries to the file      recompress ─▶ Recompressor

This module has the public methods and checks their arguments. The classes named above do the work.
Rejected: handing out views of the pool. They would change under the caller when the page is stored
again.

The kind and the codec in an entry decide how it is read, never a current setting.

Invariants: those of the entries (core/entries.pyx). Each change of them is one call of the core. So
this module holds no lock, and has nothing to repair after an interrupt.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from batchzip.arguments.checks import as_index, as_integer, as_limit, as_seconds
from batchzip.codecs.dictionary import DEFAULT_SIZE, MIN_SIZE, SAMPLE_TIMES, train_dictionary
from batchzip.codecs.zstd import DEFAULT_LEVEL, MAX_DICTIONARY
from batchzip.core.entries import EVENTS, Entries
from batchzip.core.gather import Gathered, gather, load
from batchzip.core.latency import LOAD, OPERATIONS, STORE
from batchzip.core.table import Kind
from batchzip.errors import BadArgument, PageError
from batchzip.store.arguments import (
    MAX_INDEX,
    as_indices,
    as_out,
    as_pages,
    as_range,
    as_room,
    count_pages,
)
from batchzip.store.counters import Counters
from batchzip.store.latency import Latency
from batchzip.store.loader import Loader, read
from batchzip.store.reclaim.recompress import Recompression, Recompressor
from batchzip.store.reclaim.writeback import write_back
from batchzip.store.sample import sample
from batchzip.store.storer import Storer
from batchzip.system.descriptors import open_to_read
from batchzip.system.lifetime import Owned

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from batchzip.arguments import buffers
    from batchzip.arguments.buffers import Buffer
    from batchzip.engine import Engine
    from batchzip.store.resources import Resources


_QUICK_BYTES = 16 << 10
"""Largest page that is restored in the event loop, in bytes: that takes no longer than to wake a
thread (10 to 50 µs)."""


class Group(Owned):
    """Pages of one kind in a store: `store.group(name, max_bytes=…)` makes it.

    Each group has its own indices: index 7 of one group is not index 7 of another. All groups share
    the store's pool, engine and backing file. A group is thread-safe and bound to its process, as
    its store is. Closing the store closes its groups.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     tiles = store.group("tiles", max_bytes=16 << 20)
        ...     tiles.store(0, [b"a" * 4096, b"b" * 4096])
        ...     page = tiles.load(1, exclusive=True)  # it is out of the store now
        ...     page[:3], len(tiles), 0 in store
        (b'bbb', 1, False)
    """

    _instead = ": what the store's share() gives can"

    def __init__(self, name: str, resources: Resources, max_bytes: int | None = None) -> None:
        self.name = name
        self.page_size = resources.page_size
        self._resources = resources
        self._entries = Entries(resources.objects, type(self).__name__)
        self._storer = Storer(resources, self._entries, name)
        self._loader = Loader(resources, self._entries)
        self.max_bytes = max_bytes
        self._user: weakref.ref[Any] | None = None
        """The mapping that keeps its values in this group."""
        super().__init__()
        resources.all_entries[id(self._entries)] = self._entries

    def __repr__(self) -> str:
        name = f"{type(self).__name__} {self.name!r}" if self.name else type(self).__name__
        if self.closed:
            return f"<{name}, closed>"
        algorithm = self._resources.writer.engine.codec.algorithm
        return f"<{name} of {len(self._entries)} pages, {algorithm}>"

    @property
    def max_bytes(self) -> int | None:
        """Limit of compressed bytes in the pool. None: only the store's limit applies."""
        return self._storer.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self._storer.max_bytes = as_limit(value, "max_bytes")

    def store(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio at `index`, `index` + 1, …: all of its pages, or none.

        `pages` is one page, or any form of pages that CompressBatch takes. It is read only during
        the call. If the pool rejects the folio and there is a backing file, the whole folio is
        written there. Raise StoreRejected if the folio cannot be kept; the indices hold nothing
        then.
        """
        started = self._entries.start(STORE)
        self._enter_to_change()
        size = self._resources.page_size
        try:
            matrix = as_pages(pages, size)
        except MemoryError as error:  # what is stored there is stale, as after any failed store
            first, count = as_range(index, count_pages(pages, size))
            raise self._storer.drop_for_memory(first, count) from error
        first, _ = as_range(index, len(matrix))
        self._storer.store(first, matrix)
        if started:
            self._entries.end(STORE, started)

    def _enter(self) -> None:
        """Raise if the group cannot be used."""
        if self._unusable:
            self._refuse()

    def _enter_to_change(self) -> None:
        """Raise if the group cannot be used, or if the caller may not change its pages."""
        if self._unusable:
            self._refuse()

    def _region_status(self) -> dict[str, Any] | None:
        """Return the status of the paged memory whose pages are in this group.

        None: this is an ordinary group.
        """
        return None

    @overload
    def load(self, index: SupportsIndex, out: None = None, *, exclusive: bool = False) -> bytes: ...

    @overload
    def load(self, index: SupportsIndex, out: Buffer, *, exclusive: bool = False) -> Buffer: ...

    def load(
        self, index: SupportsIndex, out: Buffer | None = None, *, exclusive: bool = False
    ) -> Buffer:
        """Return the bytes of one page. With `out`, a writable buffer, fill it and return it.

        With `exclusive`, the page is removed from the store once it is restored. If several calls
        load it exclusively at the same time, only one of them gets it. Raise PageNotStored if the
        index holds no page, CorruptPage if the stored bytes are damaged, and PageError if the
        backing file cannot be read. A page that cannot be restored stays stored.
        """
        if exclusive:
            self._enter_to_change()
        view = None if out is None else as_out(out, self.page_size)
        page = load(self._entries, index, view, exclusive)
        if type(page) is Gathered:
            started = page.started
            page = self._loader.finish_one(page, view, exclusive=exclusive)
            if started:
                self._entries.end(LOAD, started)
        return page if out is None else out

    def load_many(
        self,
        indices: Iterable[int] | npt.NDArray[np.int64],
        out: Buffer | None = None,
        *,
        exclusive: bool = False,
    ) -> buffers.Bytes:
        """Return pages, in the order of `indices`, as an (n, page_size) uint8 array.

        The pages are a snapshot of one moment, and are decompressed as a batch. `out` is an array,
        or a flat buffer, to fill. With `exclusive`, the pages are removed from the store, all or
        none. Raise the same errors as `load`, for the first index that fails; the content of `out`
        is undefined then.
        """
        if exclusive:
            self._enter_to_change()
        self._enter()
        size = self._resources.page_size
        where = as_indices(indices)
        if not len(where):
            return np.empty((0, size), np.uint8)
        pages = as_room(out, len(where), size)
        self._loader.load_many(where, pages, exclusive=exclusive)
        return pages

    async def astore(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio as `store` does, without blocking the event loop.

        If the call is cancelled, the folio is stored whole or not at all, and `pages` are no longer
        read.
        """
        await self._resources.threads.call(partial(self.store, index, pages))

    async def aload(self, index: SupportsIndex) -> bytes:
        """Return the bytes of one page as `load` does, without blocking the event loop.

        The loop itself restores a page of up to 16 KiB that is in memory. That takes microseconds,
        less than a hand-over to a thread. A thread restores all others.
        """
        if self._resources.page_size <= _QUICK_BYTES:
            await asyncio.sleep(0)  # a task that only loads pages must let other tasks run
            where = as_index(index)
            if not 0 <= where <= MAX_INDEX or self._entries.kind(where) != Kind.BACKED:
                return self.load(where)
        return await self._resources.threads.call(partial(self.load, index))

    async def aload_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> buffers.Bytes:
        """Return pages as `load_many` does, without blocking the event loop.

        Once this call ends, even by an error or cancellation, nothing more is written to `out`.
        """
        return await self._resources.threads.call(partial(self.load_many, as_indices(indices), out))

    def invalidate(self, index: SupportsIndex, count: SupportsIndex = 1) -> int:
        """Remove `count` pages from `index` on, stored or not. Return how many were stored."""
        self._enter_to_change()
        first, number = as_range(index, count)
        gone = self._entries.erase(first, number)
        self._settle()
        return gone

    def _settle(self) -> None:
        """Return unused space in the file to the system, after pages were removed."""
        if self._resources.backing is not None:
            self._resources.backing.settle()

    def writeback(self, pages: int | Iterable[int] | npt.NDArray[np.int64]) -> int:
        """Move pages from the pool to the backing file. Return the number of pages moved.

        `pages` is a number, for that many of the coldest pages, or indices, for those of them that
        are in the pool. Raise BadArgument if there is no backing file, and OSError if it fails.
        Pages that were not moved stay where they are, and readable.
        """
        self._enter()
        if self._resources.backing is None:
            raise BadArgument("this store has no backing file: give it one with backing=")
        if isinstance(pages, (int, np.integer)):
            return self._write_back_coldest(as_integer(pages, "the number of pages", 0))
        # Not np.unique: it imports numpy.ma, perhaps within a signal handler.
        given = np.sort(as_indices(pages))
        given = given[np.diff(given, prepend=-1) > 0]
        step = self._resources.max_batch
        return sum(
            write_back(self._resources, self._entries, given[at : at + step])
            for at in range(0, len(given), step)
        )

    def _write_back_coldest(self, wanted: int) -> int:
        done = tries = 0
        while done < wanted and tries <= len(self._entries):
            coldest = self._coldest(min(wanted - done, self._resources.max_batch))
            if not len(coldest):
                break
            tries += len(coldest)  # pages that cannot be moved stay the coldest: end at some point
            done += write_back(self._resources, self._entries, coldest)
        return done

    def _pool_bytes(self) -> int:
        return self._entries.pool_bytes

    def _shrink_to(self, target: int) -> int:
        """Write back the coldest pages until `target` bytes are left in the pool.

        Return the number of pages written back.
        """
        done = 0
        tries = len(self._entries)
        while tries > 0:
            figures = self._entries.figures()
            over = figures["pool_bytes"] - target
            if over <= 0:
                break
            # Enough pages by their mean length, and one more.
            kinds = ("compressed", "raw", "records", "slices")
            pooled = sum(figures[kind] for kind in kinds)
            share = min(self._resources.max_batch, 1 + over * pooled // figures["pool_bytes"])
            coldest = self._coldest(share)
            if not len(coldest):
                break
            tries -= len(coldest)
            done += write_back(self._resources, self._entries, coldest)
        return done

    def _coldest(self, count: int) -> npt.NDArray[np.int64]:
        return np.frombuffer(self._entries.coldest(count), np.int64)

    def recompress(
        self,
        algorithm: str | Engine = "zstd",
        *,
        idle_for_s: float = 0.0,
        min_length: int = 1,
        **parameters: object,
    ) -> Recompression:
        """Recompress pages in the pool with a stronger algorithm, where that saves memory.

        Only pages that were unused for `idle_for_s` seconds, and have `min_length` compressed bytes
        or more, are tried. `algorithm` and the other parameters are those of Engine, `shuffle` and
        `verify` included. Or `algorithm` is an engine, which stays the caller's. The new output
        replaces the old one only if it fits a smaller size class of the pool.
        """
        self._enter_to_change()
        idle_for_s = as_seconds(idle_for_s, "idle_for_s")
        min_length = min(as_integer(min_length, "min_length", 0), self.page_size + 1)
        writer = self._resources.second_writer(algorithm, parameters)
        recompressor = Recompressor(self._resources, self._entries, writer)
        return recompressor.run(recompressor.choose(idle_for_s, min_length))

    def _share_table(self) -> int:
        """Move the table to shared memory.

        Return a read-only descriptor of it, which the caller owns.
        """
        return open_to_read(self._entries.share())

    def _stored(self, index: int) -> bytes | None:
        """Return the stored bytes of a page in the backing file, or None if there is none.

        Raise PageError if the file cannot be read. The share server's thread calls this, so any
        BaseException of a file object, such as SystemExit, becomes a PageError and does not end the
        thread.
        """
        gathered = gather(self._entries, np.array([index], np.int64))
        if gathered.kind(0) != Kind.BACKED:
            return None
        try:
            causes = read(self._resources, gathered)
        except Exception:
            raise
        except BaseException as error:
            raise PageError(index, -errno.EIO) from error
        for cause in causes.values():
            raise PageError(index, -(cause.errno or errno.EIO)) from cause
        return gathered.stored(0)

    def train_dictionary(
        self,
        *,
        size: int = DEFAULT_SIZE,
        level: int = DEFAULT_LEVEL,
        shuffle: int | str | None = None,
    ) -> bytes:
        """Train a dictionary of at most `size` bytes from the pages stored here.

        Give it to a new engine. Pages that are already stored do not change, unless `recompress` is
        called.

            store.engine = Engine("zstd", level=1, dictionary=store.train_dictionary(level=1))

        The training set is a sample of up to 100 × `size` bytes, evenly spread over the pages.
        `level` and `shuffle` are those of the new engine. Raise BadArgument if there are too few
        pages, or if they have too little in common.
        """
        size = as_integer(size, "size", MIN_SIZE, MAX_DICTIONARY)
        most = -(-SAMPLE_TIMES * size // self._resources.page_size)
        pages = sample(self._resources, self._entries, most)
        if not len(pages):
            raise BadArgument("no compressed pages are stored to train with: store some first")
        return train_dictionary(list(pages), size=size, level=level, shuffle=shuffle)

    def __contains__(self, index: SupportsIndex) -> bool:
        self._enter()
        where = as_index(index)
        return 0 <= where <= MAX_INDEX and self._entries.kind(where) != Kind.ABSENT

    def __len__(self) -> int:
        self._enter()
        return len(self._entries)

    def __bool__(self) -> bool:
        """Return True: an empty store is not false, though its length is 0."""
        return True

    @property
    def counters(self) -> Counters:
        """The counters, as they are now."""
        self._enter()
        return Counters(
            **self._figures(), pool_total_size=self._entries.pool_bytes, backing_file_size=0
        )

    @property
    def latencies(self) -> dict[str, Latency]:
        """How long calls took, by operation: "load" and "store", and "get" and "put" of a mapping.

        Only a sample of the calls is timed: see Latency.
        """
        self._enter()
        return self._latencies()

    def _latencies(self) -> dict[str, Latency]:
        return {
            operation: Latency.of(counted)
            for operation, counted in zip(OPERATIONS, self._entries.latencies(), strict=True)
        }

    def _figures(self) -> dict[str, int]:
        """Return the counters of this group that add up over groups."""
        figures = self._entries.figures()
        return {
            **{name: figures[name] for name in EVENTS},
            "stored_pages": figures["compressed"] + figures["raw"] + figures["same_filled"],
            "stored_incompressible_pages": figures["raw"],
            "same_filled_pages": figures["same_filled"],
            "backed_pages": figures["backed"],
            "stored_values": figures["records"] + figures["slices"],
            "backed_values": figures["backed_records"] + figures["backed_slices"],
        }

    @property
    def stored_bytes(self) -> int:
        """Compressed bytes of all pages, in the pool and in the backing file.

        The pool counts its bytes; those in the file are added up by each call.
        """
        self._enter()
        return self._entries.pool_bytes + self._entries.backed_bytes()

    @property
    def table_bytes(self) -> int:
        """Bytes of this group's tables."""
        return self._own_table_bytes()

    def _own_table_bytes(self) -> int:
        return self._entries.figures()["table_bytes"]

    def _close(self) -> None:
        self._entries.close()
        self._resources.all_entries.pop(id(self._entries), None)
        self._resources.forget(self)
