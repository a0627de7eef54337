"""Group: pages by index, with a limit, an order of use and counters of their own. zswap's memory cgroup.

    store(index, pages) ─▶ Storer ─▶ Writer ─▶ Folio ─▶ published in the Entries, whole
    load(index)         ─▶ Loader ─▶ entry ─▶ copy of its bytes ─▶ checksum ─▶ decompress
    writeback, shrink   ─▶ the coldest entries to the file      recompress ─▶ Recompressor

What callers use, and what of their arguments is wrong; the work is done by those named above.
Rejected: handing out views of the pool (they would change under the caller when the page is stored again).

How an entry is read is decided from the entry (its kind, its codec), never from a current setting.

Invariants: those of the entries (core/entries.pyx), which has the entries. Every change of it is one call of the
core, so no lock is held here and nothing has to be put right after an interrupt.
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
from batchzip.store.arguments import MAX_INDEX, as_indices, as_out, as_pages, as_range, as_room
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
"""Bytes of a page that takes no longer to restore than a thread to wake, 10 to 50 µs."""


class Group(Owned):
    """Pages of one kind in a store: `store.group(name, max_bytes=…)` makes it.

    Its indices are its own: index 7 of one group is not index 7 of another. Pool, engine and backing
    file are the store's. Thread-safe, and bound to its process, as the store is, with which it is
    closed.

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
        """The mapping whose values it has."""
        super().__init__()
        resources.all_entries[id(self._entries)] = self._entries

    def __repr__(self) -> str:
        name = f"{type(self).__name__} {self.name!r}" if self.name else type(self).__name__
        if self.closed:
            return f"<{name}, closed>"
        return f"<{name} of {len(self._entries)} pages, {self._resources.writer.engine.codec.algorithm}>"

    @property
    def max_bytes(self) -> int | None:
        """Bytes of compressed pages it may have in the pool, or None for the store's limit alone."""
        return self._storer.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self._storer.max_bytes = as_limit(value, "max_bytes")

    def store(self, index: SupportsIndex, pages: Buffer | Sequence[Buffer]) -> None:
        """Store a folio at `index`, `index` + 1, …: all of its pages, or none.

        `pages` is one page, or any form of pages that CompressBatch takes; it is read during the
        call only. Where the pool does not take it, it goes to the backing file, whole, if there is
        one. Raises StoreRejected, after which the indices hold nothing.
        """
        started = self._entries.start(STORE)
        self._enter_to_change()
        matrix = as_pages(pages, self._resources.page_size)
        first, _ = as_range(index, len(matrix))
        self._storer.store(first, matrix)
        if started:
            self._entries.end(STORE, started)

    def _enter(self) -> None:
        """Refuse a group that cannot be used."""
        if self._unusable:
            self._refuse()

    def _enter_to_change(self) -> None:
        """Refuse a group that cannot be used, or whose pages are not its caller's to change."""
        if self._unusable:
            self._refuse()

    def _region_status(self) -> dict[str, Any] | None:
        """Say how a paged memory stands whose pages it has; None: it is an ordinary group."""
        return None

    @overload
    def load(self, index: SupportsIndex, out: None = None, *, exclusive: bool = False) -> bytes: ...

    @overload
    def load(self, index: SupportsIndex, out: Buffer, *, exclusive: bool = False) -> Buffer: ...

    def load(
        self, index: SupportsIndex, out: Buffer | None = None, *, exclusive: bool = False
    ) -> Buffer:
        """Give the bytes of one page; with `out`, a writable buffer, fill it and return it.

        With `exclusive` the page is taken out of the store, once it was restored; of several that
        take it at once one gets it. Raises PageNotStored; CorruptPage where the stored bytes are
        damaged, or PageError where the backing file cannot be read: the entry stays then.
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
        """Give pages, in the order of `indices`, as an (n, page_size) uint8 array.

        They are of one moment, and decompressed as a batch. `out` is an array, or a flat buffer, to
        fill. With `exclusive` they are taken out of the store, all or none. Raises as `load`, for the
        first index concerned; `out` is undefined then.
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
        """Store a folio as `store`, without blocking the event loop.

        Cancelled, the folio is stored whole or not at all, and `pages` are not read any more.
        """
        self._enter()
        await self._resources.threads.call(partial(self.store, index, pages))

    async def aload(self, index: SupportsIndex) -> bytes:
        """Give the bytes of one page as `load`, without blocking the event loop.

        A page in memory is restored by the loop itself if it has 16 KiB or less: that takes
        microseconds, fewer than to have a thread do it. Others are left to a thread.
        """
        self._enter()
        if self._resources.page_size <= _QUICK_BYTES:
            await asyncio.sleep(0)  # so that a task that does nothing else lets others work
            where = as_index(index)
            if not 0 <= where <= MAX_INDEX or self._entries.kind(where) != Kind.BACKED:
                return self.load(where)
        return await self._resources.threads.call(partial(self.load, index))

    async def aload_many(
        self, indices: Iterable[int] | npt.NDArray[np.int64], out: Buffer | None = None
    ) -> buffers.Bytes:
        """Give pages as `load_many`, without blocking the event loop.

        When this ends, in whatever way, nothing is written to `out` any more.
        """
        self._enter()
        return await self._resources.threads.call(partial(self.load_many, as_indices(indices), out))

    def invalidate(self, index: SupportsIndex, count: SupportsIndex = 1) -> int:
        """Forget `count` pages from `index` on, stored or not; how many there were."""
        self._enter_to_change()
        first, number = as_range(index, count)
        gone = self._entries.erase(first, number)
        self._settle()
        return gone

    def _settle(self) -> None:
        """Give room in the file back to the system, after pages went."""
        if self._resources.backing is not None:
            self._resources.backing.settle()

    def writeback(self, pages: int | Iterable[int] | npt.NDArray[np.int64]) -> int:
        """Move pages from the pool to the backing file; how many were.

        `pages` is how many, and those unused for longest go; or which indices: those of them that
        lie in the pool go. Raises BadArgument where there is no backing file, and OSError where it
        fails: what was not moved is where it was, and readable.
        """
        self._enter()
        if self._resources.backing is None:
            raise BadArgument("this store has no backing file: give it one with backing=")
        if isinstance(pages, (int, np.integer)):
            return self._write_back_coldest(as_integer(pages, "the number of pages", 0))
        given = np.sort(
            as_indices(pages)
        )  # np.unique would import numpy.ma, within a signal handler
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
            tries += len(coldest)  # pages that cannot be moved would come again and again
            done += write_back(self._resources, self._entries, coldest)
        return done

    def _pool_bytes(self) -> int:
        return self._entries.pool_bytes

    def _shrink_to(self, target: int) -> int:
        """Write back the coldest pages until so many bytes are left in the pool; how many were."""
        done = 0
        tries = len(self._entries)
        while tries > 0:
            figures = self._entries.figures()
            over = figures["pool_bytes"] - target
            if over <= 0:
                break
            # As many as should do by the mean length, and one more.
            kinds = ("compressed", "raw", "records", "slices")
            pooled = sum(figures[kind] for kind in kinds)
            share = min(self._resources.max_batch, 1 + over * pooled // max(1, over + target))
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
        """Compress pages in the pool again, with a stronger algorithm, where that saves memory.

        Only pages that were not used for `idle_for_s` seconds, and take `min_length` bytes or more
        now. `algorithm`, its parameters, `shuffle` and `verify` are those of Engine; or it is an
        engine, which is only used. A page changes its form only where it then takes a smaller size
        class of the pool.
        """
        self._enter_to_change()
        idle_for_s = as_seconds(idle_for_s, "idle_for_s")
        min_length = min(as_integer(min_length, "min_length", 0), self.page_size + 1)
        writer = self._resources.second_writer(algorithm, parameters)
        recompressor = Recompressor(self._resources, self._entries, writer)
        return recompressor.run(recompressor.choose(idle_for_s, min_length))

    def _share_table(self) -> int:
        """Move the table to shared memory. Return a descriptor of it, to read only, which is the caller's."""
        return open_to_read(self._entries.share())

    def _stored(self, index: int) -> bytes | None:
        """Read the stored bytes of a page in the backing file; None if there is none. Raise PageError.

        A thread that answers others asks for it. A file object's SystemExit does not end it.
        """
        gathered = gather(self._entries, np.array([index], np.int64))
        if gathered.kind(0) != Kind.BACKED:
            return None
        try:
            causes = read(self._resources, gathered)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
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
        """Make a dictionary of at most `size` bytes from the pages stored here.

        For an engine that takes over: what is stored stays as it is, unless `recompress` is called.

            store.engine = Engine("zstd", level=1, dictionary=store.train_dictionary(level=1))

        Up to 100 × `size` bytes of pages are looked at, evenly chosen. `level` and `shuffle` are those
        of the engine it is for. Raises BadArgument where the pages are too few, or teach nothing.
        """
        self._enter()
        size = as_integer(size, "size", MIN_SIZE, MAX_DICTIONARY)
        most = -(-SAMPLE_TIMES * size // self._resources.page_size)
        pages = sample(self._resources, self._entries, most)
        if not len(pages):
            raise BadArgument("no pages are stored that a codec made smaller: store some first")
        return train_dictionary(list(pages), size=size, level=level, shuffle=shuffle)

    def __contains__(self, index: SupportsIndex) -> bool:
        self._enter()
        where = as_index(index)
        return 0 <= where <= MAX_INDEX and self._entries.kind(where) != Kind.ABSENT

    def __len__(self) -> int:
        self._enter()
        return len(self._entries)

    def __bool__(self) -> bool:
        """Say yes: an empty store is a store."""
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
        """How long calls took: "load", "store", and "get" and "put" of a mapping. Of a few calls: see Latency."""
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
        """Bytes that the pages take, compressed: in the pool, counted, and in the backing file, added up."""
        self._enter()
        return self._entries.pool_bytes + self._entries.backed_bytes()

    @property
    def table_bytes(self) -> int:
        """Bytes of this group's own tables."""
        return self._own_table_bytes()

    def _own_table_bytes(self) -> int:
        return self._entries.figures()["table_bytes"]

    def _close(self) -> None:
        self._entries.close()
        self._resources.all_entries.pop(id(self._entries), None)
        self._resources.forget(self)
