"""SwapStore: pages by index, compressed in RAM, with cold pages in a file. zswap in user space.

    SwapStore ── is itself the group without a name, and has:
      ├─ Group …      own tables, limits and counters; store, load, invalidate, writeback
      ├─ Resources    pool, backing file, codecs, current engine: shared by all groups
      └─ Shrinker     writes pages back when a limit was reached

Locks: no Python lock guards data. Each change is one call of the core (core/entries.pyx).
"""

from __future__ import annotations

import itertools
import os
import weakref
from typing import TYPE_CHECKING, Any

from batchzip.arguments.checks import as_integer, as_limit, check_kind
from batchzip.core.entries import EVENTS
from batchzip.engine import Engine
from batchzip.errors import BadArgument
from batchzip.pool import Pool
from batchzip.store.backing.backing_file import BackingFile
from batchzip.store.counters import Counters
from batchzip.store.group import Group
from batchzip.store.inspect import StoreReport, inspect
from batchzip.store.reclaim.cleaning import clean
from batchzip.store.reclaim.shrinker import Shrinker
from batchzip.store.remote.share_server import ShareServer
from batchzip.store.resources import Resources, unless_dropped
from batchzip.wording import shown

if TYPE_CHECKING:
    from batchzip.pool.class_use import ClassUse
    from batchzip.store.latency import Latency
    from batchzip.store.remote.share import Share
    from batchzip.system.lifetime import Owned

_MOST_BATCH = 1 << 20
"""Upper limit of max_batch, in pages: 4 GiB of 4 KiB pages."""


class SwapStore(Group):
    """Keeps pages compressed in a pool and returns any of them by its index.

    `engine`                    compresses and decompresses. The caller owns it, and may use it for
                                other things.
    `max_pool_bytes`            bytes of memory that the pool may hold; None for no limit.
    `accept_threshold_percent`  share of the limit at which a pool that was full accepts pages
    again. `backing`                   where pages go that do not fit the pool; None for nowhere.
                                A directory, or a path with no file: the store creates a file
                                without a name there. It disappears however this process ends. The
                                path of an empty file: the store uses that file. It keeps its name,
                                and is empty again after `close`. A descriptor or a file object,
                                open to read and write: the store overwrites its file. The caller
                                owns it, and may close it. An object with pread and pwrite. Only one
                                store at a time, of all processes, can use a file or object.
    `max_backing_bytes`         bytes that the backing file may hold; None for no limit. Up to an
                                eighth of them is reserved for moving pages when the file is full.
                                The limit may be changed.
    `shrinker_enabled`          whether a thread writes cold pages back when a limit is reached.
    `max_batch`                 largest number of pages per batch; a larger folio takes several.
    `keep_incompressible`       True keeps pages that do not shrink as raw pages. False rejects
    their
                                folio, as zswap does when it cannot write back.

    Raises LimitReached, which names the limit, if the system has no memory, addresses or
    descriptors left, and OSError if the backing file cannot be opened. The store leaves nothing
    behind then.

    Thread-safe. All pages of a folio become visible at the same moment, and a load returns a
    version that was current during the call. A store is bound to its process; contents do not
    survive it.

    Examples:
        >>> import batchzip
        >>> pages = [f"row {n:3}, ".encode().ljust(16) * 256 for n in range(1000)]
        >>> with batchzip.Engine("zstd", level=1) as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, pages)  # a folio at 0 … 999: all of it, or nothing
        ...     store.load(42) == pages[42], store.load_many([7, 3, 998]).shape
        ...     store.invalidate(0, 10), len(store), 3 in store
        ...     store.counters.stored_pages, store.check().ok
        (True, (3, 4096))
        (10, 990, False)
        (990, True)
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_pool_bytes: int | None = None,
        accept_threshold_percent: int = 90,
        backing: str | os.PathLike[str] | object | None = None,
        max_backing_bytes: int | None = None,
        shrinker_enabled: bool = True,
        max_batch: int = 256,
        keep_incompressible: bool = True,
    ) -> None:
        max_batch = as_integer(max_batch, "max_batch", 1, _MOST_BATCH)
        percent = _as_percent(accept_threshold_percent)
        check_kind(engine, "engine", Engine)
        max_pool_bytes = as_limit(max_pool_bytes, "max_pool_bytes")
        if as_limit(max_backing_bytes, "max_backing_bytes") is not None and backing is None:
            raise BadArgument("max_backing_bytes limits a backing file: give one with backing=")
        pool = Pool(max_pool_bytes, page_size=engine.page_size)
        file = None
        try:
            if backing is not None:
                file = BackingFile(backing, page_size=engine.page_size, max_bytes=max_backing_bytes)
            resources = Resources(
                engine,
                pool,
                file,
                max_batch=max_batch,
                keep_incompressible=keep_incompressible,
                accept_threshold_percent=percent,
            )
        except BaseException:
            pool.close()
            if file is not None:
                file.close()
            raise
        self._shrinker = Shrinker(self)
        if file is not None and shrinker_enabled:
            resources.wake = self._shrinker.wake
        self._groups: dict[str, Group] = {}
        this = weakref.ref(self)  # groups refer to `resources`, which must not keep the store alive

        def forget(group: Owned) -> None:
            store = this()
            if store is not None and isinstance(group, Group):
                store._forget(group)  # noqa: SLF001

        resources.forget = forget
        self._numbers = itertools.count()
        """Numbers for the names of unnamed groups."""
        self._servers: dict[int, ShareServer] = {}
        """Servers by number. The last one answers, unless a system error ended it."""
        super().__init__("", resources)

    def _forget(self, group: Group) -> None:
        if self._groups.get(group.name) is group:
            self._groups.pop(group.name, None)

    @property
    def engine(self) -> Engine:
        """The engine that compresses new pages.

        It can be replaced at any time, by an engine with the same page size. Stored pages stay
        readable, because each entry knows its codec. The old engine may be closed.
        """
        return self._resources.writer.engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._enter()
        check_kind(engine, "engine", Engine)
        self._resources.writer = self._resources.writer_of(engine, current=True)

    def group(self, name: str, *, max_bytes: int | None = None) -> Group:
        """Return the group of that name; create it if there is none.

        A group has its own indices, its own limit of compressed bytes in the pool, its own LRU and
        its own counters. `max_bytes`, if given, sets the limit.
        """
        self._enter()
        _check_name(name)
        group = self._groups.get(name)
        while group is None or group.closed:  # another thread may create it, or drop it again
            if group is not None:
                group.close()  # an interrupt may have cut the drop short
            group = self._new_group(name, max_bytes) or self._groups.get(name)
        if max_bytes is not None:
            group.max_bytes = max_bytes
        return group

    def _new_group(
        self, name: str, max_bytes: int | None, kind: type[Group] = Group
    ) -> Group | None:
        """Create a group. Return None if there is already one of that name."""
        self._enter()
        _check_name(name)
        if name in self._groups:
            return None
        made = kind(name, self._resources, max_bytes)
        if self._groups.setdefault(name, made) is not made:
            made.close()
            return None
        if self._unusable:  # the store was closed, perhaps before the group was in `_groups`
            made.close()
            self._refuse()
        return made

    def drop_group(self, name: str) -> int:
        """Close a group and free its pages. Return the number of pages that it had.

        Raise BadArgument if there is no group of that name. References and views to the dropped
        group raise ClosedError from then on; `group` creates a new one.
        """
        self._enter()
        group = self._groups.get(name)
        if group is None:
            raise BadArgument(f"this store has no group {shown(name)}")
        if group._region_status() is not None:  # noqa: SLF001 - a store is made of groups
            raise BadArgument(f"group {shown(name)} holds pages of a PagedMemory: close that one")
        pages = len(group)
        group.close()
        return pages

    @property
    def groups(self) -> dict[str, Group]:
        """The groups by name, without the store itself."""
        self._enter()
        return dict(self._groups)

    def _all_groups(self) -> list[Group]:
        return [self, *self.groups.values()]

    def shrink(self) -> int:
        """Write back cold pages until usage is below each threshold. Return the number of pages.

        A limit that was not reached stays as it is. The shrinker does this whenever a limit is
        reached; call it if the shrinker is not enabled. Raise BadArgument if there is no backing
        file, and OSError if it fails.
        """
        self._enter()
        if self._resources.backing is None:
            raise BadArgument("this store has no backing file: give it one with backing=")
        percent = self._resources.accept_threshold_percent
        done = 0
        for group in self._all_groups():
            limit = group.max_bytes
            if limit is not None and group._storer.is_full():  # noqa: SLF001 - its groups
                with unless_dropped(group._entries):  # noqa: SLF001
                    done += group._shrink_to(limit * percent // 100)  # noqa: SLF001
        done += self._shrink_pool(percent)
        clean(self._resources)
        return done

    def _shrink_pool(self, percent: int) -> int:
        pool = self._resources.pool
        done = 0
        while (limit := pool.max_bytes) is not None:
            self._resources.compact()
            if not self._resources.full.check(pool.held_bytes, limit, percent)[1]:
                break
            over = pool.held_bytes - limit * percent // 100
            if over <= 0:
                break
            largest = max(self._all_groups(), key=Group._pool_bytes)  # noqa: SLF001
            moved = 0
            with unless_dropped(largest._entries):  # noqa: SLF001
                moved = largest._shrink_to(max(0, largest._pool_bytes() - over))  # noqa: SLF001
            done += moved
            if not moved and not largest.closed:
                break
            # Writeback frees scattered objects. Compaction turns the holes into whole free spans.
            while pool.held_bytes > limit * percent // 100 and pool.compact():
                pass
        return done

    def _shrink_quietly(self) -> None:
        """Shrink in the shrinker's thread. Failures are counted; the next wake-up tries again."""
        try:
            self.shrink()
        except (OSError, MemoryError):
            return
        except Exception:
            if self.closed:
                return
            raise

    def compact(self) -> int:
        """Compact the pool and clean the backing file. Return the bytes given back to the system.

        Compaction moves objects together. Cleaning rewrites the live bytes of zones that are less
        than half live. The store does both by itself: it compacts when its limit is reached and
        more than an eighth of the pool is holes, and it cleans in the shrinker and when the file is
        full. Other threads load and store meanwhile. Raise OSError if the file fails; no page is
        lost then.
        """
        self._enter()
        pool = self._resources.pool
        total = 0
        while freed := pool.compact():
            total += freed
        return total + clean(self._resources)

    def share(self) -> Share:
        """Let other processes of the same user read this store. Return its address, a Share.

        A Share can be pickled, or sent as text.

            address = str(store.share())            # in the owner
            view = batchzip.attach(address)         # in the reader: load, load_many, counters

        The first call starts a thread that serves readers and moves the tables to shared memory.
        Loads by readers cost the owner nothing. Readers cannot change anything.

        Raise LimitReached if no thread can be started or descriptors are exhausted, and OSError if
        there is no temporary folder. The store stays usable then, and can be shared later.
        """
        self._enter()
        last = len(self._servers) - 1
        server = self._servers.get(last)
        if server is None or server.ended:
            # No lock: a signal handler may call this, too. The first of two servers stays.
            made = ShareServer(self)
            server = self._servers.setdefault(last + 1, made)
            if server is not made:
                made.close()
        server.start()
        if self._unusable:
            server.close()
            self._refuse()
        return server.share

    def status(self) -> dict[str, Any]:
        """Return the current status of the store in plain values: the data of `batchzip top`.

        The keys are:

        * pid, algorithm, backend, page_size (bytes).
        * max_pool_bytes, accept_threshold_percent, pool_full.
        * pool_total_size, compressed_bytes, table_bytes, pages.
        * backing: the path by which the backing file can be opened (/proc/PID/fd/N; it may have no
          name), a description of the file object, or None.
        * groups: by name, pages, pool_bytes, max_bytes, page_stores and page_loads (since the group
          was created) and latencies. For a mapping also values, and value_bytes: the bytes of
          values that are not on pages.
        * regions: by name, the figures of paged memories, with the number of faults per log2 of
          their nanoseconds.
        * statistics: the engine's.
        """
        self._enter()
        engine, pool, file = self.engine, self._resources.pool, self._resources.backing
        groups = {}
        for group in self._all_groups():
            figures = group._entries.figures()  # noqa: SLF001 - its groups
            shown = ("pages", "pool_bytes", "page_stores", "page_loads")
            kinds = ("records", "backed_records", "sliced", "large")
            values = sum(figures[kind] for kind in kinds)
            slices = figures["slices"] + figures["backed_slices"]
            groups[group.name] = {
                **{name: figures[name] for name in shown},
                "pages": figures["pages"] - values - slices,
                "values": values,
                "value_bytes": figures["record_bytes"],
                "max_bytes": group.max_bytes,
                "latencies": group._latencies(),  # noqa: SLF001
            }
        return {
            "pid": os.getpid(),
            "algorithm": repr(engine.codec),
            "backend": engine.backend.name,
            "page_size": self.page_size,
            "max_pool_bytes": pool.max_bytes,
            "accept_threshold_percent": self._resources.accept_threshold_percent,
            "pool_full": self._resources.full.full,
            "pool_total_size": pool.held_bytes,
            "compressed_bytes": pool.stored_bytes,
            "table_bytes": self.table_bytes,
            "pages": sum(group["pages"] or 0 for group in groups.values()),
            "backing": None if file is None else file.name,
            "groups": groups,
            "regions": {
                group.name: region
                for group in self._all_groups()
                if (region := group._region_status()) is not None  # noqa: SLF001
            },
            "statistics": engine.statistics,
        }

    def check(self) -> StoreReport:
        """Read all stored bytes and verify every checksum. Return which pages are damaged.

        Other threads may use the store meanwhile. Pages are not decompressed: bytes with the right
        checksum are what the codec returned.
        """
        self._enter()
        return inspect(
            self._resources,
            {group.name: group._entries for group in self._all_groups()},  # noqa: SLF001
        )

    @property
    def counters(self) -> Counters:
        """The current counters, summed over all groups.

        Events in groups that have been closed still count.
        """
        self._enter()
        backing = self._resources.backing
        figures = self._resources.objects.counted()
        for group in self._all_groups():
            for name, value in group._figures().items():  # noqa: SLF001
                if name not in EVENTS:
                    figures[name] = figures.get(name, 0) + value
        return Counters(
            **figures,
            pool_total_size=self._resources.pool.held_bytes,
            backing_file_size=0 if backing is None else backing.held_bytes,
        )

    @property
    def latencies(self) -> dict[str, Latency]:
        """How long calls took, summed over all open groups: see Group.latencies."""
        self._enter()
        first, *others = [group._latencies() for group in self._all_groups()]  # noqa: SLF001
        return {
            operation: sum((each[operation] for each in others), latency)
            for operation, latency in first.items()
        }

    def counters_by_group(self) -> dict[str, Counters]:
        """Return the counters of each group by name. The store's own pages are in group ""."""
        self._enter()
        return {
            group.name: Counters(
                **group._figures(),  # noqa: SLF001 - its groups
                pool_total_size=group._pool_bytes(),  # noqa: SLF001
                backing_file_size=0,
            )
            for group in self._all_groups()
        }

    @property
    def max_pool_bytes(self) -> int | None:
        """Bytes of memory the pool may hold, or None for no limit.

        A limit below what the pool holds frees nothing; the pool rejects pages until it has shrunk.
        """
        return self._resources.pool.max_bytes

    @max_pool_bytes.setter
    def max_pool_bytes(self, value: int | None) -> None:
        self._enter()
        self._resources.pool.max_bytes = as_limit(value, "max_pool_bytes")

    @property
    def max_backing_bytes(self) -> int | None:
        """Bytes the backing file may hold, or None for no limit.

        A limit below what the file holds frees nothing; the file rejects pages until it has shrunk.
        Setting it raises BadArgument if there is no backing file.
        """
        backing = self._resources.backing
        return None if backing is None else backing.max_bytes

    @max_backing_bytes.setter
    def max_backing_bytes(self, value: int | None) -> None:
        self._enter()
        limit = as_limit(value, "max_backing_bytes")
        if self._resources.backing is None:
            raise BadArgument("max_backing_bytes limits a backing file: give one with backing=")
        self._resources.backing.max_bytes = limit

    @property
    def accept_threshold_percent(self) -> int:
        """Share of the limit, in percent, at which a pool that was full accepts pages again."""
        return self._resources.accept_threshold_percent

    @accept_threshold_percent.setter
    def accept_threshold_percent(self, value: int) -> None:
        self._resources.accept_threshold_percent = _as_percent(value)

    @property
    def compressed_bytes(self) -> int:
        """Sum of the lengths of all objects in the pool, raw pages included."""
        return self._resources.pool.stored_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of all groups, and of the pool."""
        own = sum(group._own_table_bytes() for group in self._all_groups())  # noqa: SLF001
        return own + self._resources.pool.table_bytes

    def classes(self) -> list[ClassUse]:
        """Return the pool's size classes and what they hold."""
        return self._resources.pool.classes()

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant does not hold.

        No other thread may change the store meanwhile. The call waits for the shrinker.
        """
        self._enter()
        with self._shrinker.pause:
            self._resources.check_invariants()

    def _close(self) -> None:
        for server in list(self._servers.values()):
            server.close()
        wait = not self._resources.in_a_call_of_the_file()
        self._resources.threads.close(wait=wait)
        self._shrinker.close(wait=wait)
        for group in list(self._groups.values()):
            group.close()
        self._resources.close()


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name:
        raise BadArgument(f"the name of a group must be a non-empty string, not {shown(name)}")


def _as_percent(value: object) -> int:
    return as_integer(value, "accept_threshold_percent", 0, 100)
