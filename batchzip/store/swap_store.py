"""SwapStore: pages by index, compressed in RAM, the cold ones in a file. zswap in user space.

    SwapStore ── is the group without a name, and has:
      ├─ Group …      tables, limits and counters of their own; store, load, invalidate, writeback
      ├─ Resources         lock, pool, backing file, codecs, the engine: shared by all groups
      └─ Shrinker     writes back when a limit was met

Locks: none of Python's around data: every change is one call of the core (core/entries.pyx).
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
"""Pages of one batch: more than memory has room for."""


class SwapStore(Group):
    """Keeps pages compressed in a pool, and gives any of them back by its index.

    `engine`                    does the work; stays the caller's, and may serve others too.
    `max_pool_bytes`            bytes of memory the pool may hold; None for no limit.
    `accept_threshold_percent`  once the pool was full, it accepts again at this share of the limit.
    `backing`                   where pages go that the pool has no room for; None for nowhere. A directory,
                                or a path where there is no file: a file without a name is made there. It is
                                gone however this process ends. A path of an empty file: that file is used,
                                keeps its name, and is empty again after `close`. A descriptor, or a file
                                object, open to read and to write: its file is overwritten; it stays the
                                caller's, who may close it. Or an object with pread and pwrite. No file and no
                                object is under two stores at a time, of this process or of another one.
    `max_backing_bytes`         bytes the backing file may hold, an eighth of them at most for
                                moving pages when it is full; None for no limit. May be changed.
    `shrinker_enabled`          write cold pages back in a thread when a limit is met.
    `max_batch`                 most pages handed to the engine in one go; a larger folio takes several.
    `keep_incompressible`       keep pages that do not shrink raw; False rejects their folio, as zswap
                                does where nothing can be written back.

    Raises LimitReached, which names the limit, where the system has no memory, addresses or descriptors for it,
    and OSError where the backing file cannot be had; nothing is left then.

    Thread-safe: a folio becomes visible at once, and a load gives a version that was current during
    the call. Bound to the process that made it; contents do not survive it.

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
        this = weakref.ref(self)  # the groups keep what keeps this

        def forget(group: Owned) -> None:
            store = this()
            if store is not None and isinstance(group, Group):
                store._forget(group)  # noqa: SLF001

        resources.forget = forget
        self._numbers = itertools.count()
        """For names of groups that nobody named."""
        self._servers: dict[int, ShareServer] = {}
        """By number; the last one answers, unless an error of the system ended it."""
        super().__init__("", resources)

    def _forget(self, group: Group) -> None:
        if self._groups.get(group.name) is group:
            self._groups.pop(group.name, None)

    @property
    def engine(self) -> Engine:
        """The engine that new pages are compressed with.

        Another can be set at any time: what is stored stays readable, as each entry knows its codec;
        the old engine may be closed. Its pages must have the same size.
        """
        return self._resources.writer.engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._enter()
        check_kind(engine, "engine", Engine)
        self._resources.writer = self._resources.writer_of(engine, current=True)

    def group(self, name: str, *, max_bytes: int | None = None) -> Group:
        """Give the group of that name; it is made the first time.

        A group has indices of its own, a limit of its own in bytes of compressed pages in the pool,
        its own order of use and its own counters. `max_bytes` sets the limit, if it is given.
        """
        self._enter()
        _check_name(name)
        group = self._groups.get(name)
        while group is None or group.closed:  # another thread may be faster, or drop it again
            if group is not None:
                group.close()  # what dropped it may have been cut short
            group = self._new_group(name, max_bytes) or self._groups.get(name)
        if max_bytes is not None:
            group.max_bytes = max_bytes
        return group

    def _new_group(
        self, name: str, max_bytes: int | None, kind: type[Group] = Group
    ) -> Group | None:
        """Make a group; None if there is one of that name."""
        self._enter()
        _check_name(name)
        if name in self._groups:
            return None
        made = kind(name, self._resources, max_bytes)
        if self._groups.setdefault(name, made) is not made:
            made.close()
            return None
        if self._unusable:  # closed meanwhile, perhaps before the group was among its groups
            made.close()
            self._refuse()
        return made

    def drop_group(self, name: str) -> int:
        """Close a group: its pages and their memory go. Return the number of pages that it had.

        Raise BadArgument if there is no group of that name. Views of it that others hold raise
        ClosedError from then on; `group` makes a new one.
        """
        self._enter()
        group = self._groups.get(name)
        if group is None:
            raise BadArgument(f"this store has no group {shown(name)}")
        if group._region_status() is not None:  # noqa: SLF001 - a store is made of groups
            raise BadArgument(f"group {shown(name)} has the pages of a PagedMemory: close that")
        pages = len(group)
        group.close()
        return pages

    @property
    def groups(self) -> dict[str, Group]:
        """The groups that were made, by name."""
        self._enter()
        return dict(self._groups)

    def _all_groups(self) -> list[Group]:
        return [self, *self.groups.values()]

    def shrink(self) -> int:
        """Write back cold pages until every limit is kept down to its threshold; how many were.

        The shrinker does this when a limit is met; by hand it serves where that is not enabled.
        Raises BadArgument without a backing file, OSError where it fails.
        """
        self._enter()
        if self._resources.backing is None:
            raise BadArgument("this store has no backing file: give it one with backing=")
        percent = self._resources.accept_threshold_percent
        done = 0
        for group in self._all_groups():
            limit = group.max_bytes
            if limit is not None and group._storer.is_full():  # noqa: SLF001 - a store is made of groups
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
            # What is freed are objects here and there: only together do their holes make memory to give back.
            while pool.held_bytes > limit * percent // 100 and pool.compact():
                pass
        return done

    def _shrink_quietly(self) -> None:
        """Shrink in the shrinker's thread: what fails is counted, and tried again when it is woken."""
        try:
            self.shrink()
        except (OSError, MemoryError):
            return
        except Exception:
            if self.closed:
                return
            raise

    def compact(self) -> int:
        """Move objects together and give what is free back to the system; how many bytes that were.

        Of memory, and of the backing file, where zones of which less than half lives are written anew. The
        store does so by itself: when its limit is met and an eighth of the pool is holes; in the
        shrinker, and when the file has no room. Loads and stores of other threads go on meanwhile.
        Raises OSError where the file fails: nothing is lost then.
        """
        self._enter()
        pool = self._resources.pool
        total = 0
        while freed := pool.compact():
            total += freed
        return total + clean(self._resources)

    def share(self) -> Share:
        """Let other processes of the same user read this store; what they need to, which is picklable.

            address = str(store.share())            # here
            view = batchzip.attach(address)         # there: load, load_many, counters

        From the first call on a thread waits for readers, and tables lie in shared memory. Readers
        cost the owner nothing while they load, and can change nothing.

        Raises LimitReached where no thread can be started or descriptors are out, OSError where there is no
        temporary folder; the store goes on then, and can be shared later.
        """
        self._enter()
        last = len(self._servers) - 1
        server = self._servers.get(last)
        if server is None or server.ended:
            # No lock: a signal handler may share, too. The first server stays.
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
        """Say how the store stands now, in plain values: what `batchzip top` shows.

        pid, algorithm, backend, page_size (bytes); max_pool_bytes, accept_threshold_percent, pool_full;
        pool_total_size, compressed_bytes, table_bytes, pages; backing: where the backing file, which may have
        no name, can be looked at (/proc/PID/fd/N), what object it is, or None; groups: by name, pages, pool_bytes,
        max_bytes, page_stores and page_loads (since it was made) of each, and the values of a mapping, with the
        bytes of those that lie on no pages, and its latencies; regions: by name, the figures of paged memories, and
        their faults by log2 of the nanoseconds that they took; statistics: the engine's.
        """
        self._enter()
        engine, pool, file = self.engine, self._resources.pool, self._resources.backing
        groups = {}
        for group in self._all_groups():
            figures = group._entries.figures()  # noqa: SLF001 - a store is made of groups
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
        """Read everything that is stored, verify every checksum, and say what is damaged.

        Other threads may go on. Pages are not decompressed: what has its checksum was made by the codec.
        """
        self._enter()
        return inspect(
            self._resources,
            {group.name: group._entries for group in self._all_groups()},  # noqa: SLF001
        )

    @property
    def counters(self) -> Counters:
        """The counters of all groups together, as they are now.

        What happened in groups that were closed since still counts.
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
        """How long calls took, of all groups that there are: see Group.latencies."""
        self._enter()
        first, *others = [group._latencies() for group in self._all_groups()]  # noqa: SLF001
        return {
            operation: sum((each[operation] for each in others), latency)
            for operation, latency in first.items()
        }

    def counters_by_group(self) -> dict[str, Counters]:
        """Return the counters of each group; pages of the store itself are group ""."""
        self._enter()
        return {
            group.name: Counters(
                **group._figures(),  # noqa: SLF001 - a store is made of groups
                pool_total_size=group._pool_bytes(),  # noqa: SLF001
                backing_file_size=0,
            )
            for group in self._all_groups()
        }

    @property
    def max_pool_bytes(self) -> int | None:
        """Bytes of memory the pool may hold, or None. Lowered below what it holds, it only refuses."""
        return self._resources.pool.max_bytes

    @max_pool_bytes.setter
    def max_pool_bytes(self, value: int | None) -> None:
        self._enter()
        self._resources.pool.max_bytes = as_limit(value, "max_pool_bytes")

    @property
    def max_backing_bytes(self) -> int | None:
        """Bytes the backing file may hold, or None. Lowered below what it holds, it only refuses.

        Setting it raises BadArgument where there is no backing file.
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
        """Share of the limit, in percent, below which a pool that was full accepts again."""
        return self._resources.accept_threshold_percent

    @accept_threshold_percent.setter
    def accept_threshold_percent(self, value: int) -> None:
        self._resources.accept_threshold_percent = _as_percent(value)

    @property
    def compressed_bytes(self) -> int:
        """Sum of the lengths of everything in the pool, raw pages included."""
        return self._resources.pool.stored_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of all groups, and of the pool."""
        own = sum(group._own_table_bytes() for group in self._all_groups())  # noqa: SLF001
        return own + self._resources.pool.table_bytes

    def classes(self) -> list[ClassUse]:
        """List the pool's size classes and what they hold."""
        return self._resources.pool.classes()

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold.

        No other thread may be changing anything; the shrinker is waited for.
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
        raise BadArgument(
            f"the name of a group is a text of at least one character, not {shown(name)}"
        )


def _as_percent(value: object) -> int:
    return as_integer(value, "accept_threshold_percent", 0, 100)
