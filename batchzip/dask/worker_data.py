"""WorkerData: a Dask worker's data, whose cold values are compressed in RAM before any goes to disk.

    Worker(data=WorkerData)   or   Worker(data=(WorkerData, {"compressed": 0.4, …}))

    data[key] = value ─▶ live values, the most recently used ones
                            │ too many, or the process too large: the coldest
                            ▼
                         CompressedValues: pages in the pool of a SwapStore ── of what does not shrink: ─┐
                            │ the pool is at its limit: the coldest pages, as they are compressed        │
                            ▼                                                                            ▼
                         unnamed files in the worker's local directory

A value that is used is live again. What it was compressed to is kept as long as there is room, so if it goes again
unchanged, it costs next to nothing. What cannot be pickled, or finds no room anywhere, stays live, and the log
says so; others make room instead of what cannot be pickled.

Live values and compressed pages share what Dask's `target` leaves to values: the pool grows at their cost, up to
its limit. Both are memory of the process. When Dask finds that too large, the pool's limit is lowered to its part
of what the process leaves it, and what is beyond goes to disk.

It has all that Dask asks of its own buffer: to take part in memory management (`fast`, `evict`), and what
heartbeats, Prometheus and the dashboard show (`spilled_total`, `cumulative_metrics`, `memory`, `disk`).

Dask's workers do not close their data; this one is closed all the same, as worker_end.py says.

Dask uses it in the worker's event loop; it is thread-safe all the same, which zict's own buffer is not quite: a
value that was set while the old one was being evicted could get lost. Locks: the buffer's, then that of the
live values. None is held while a value's own code runs.
"""

from __future__ import annotations

import logging
import sys
import traceback
import weakref
from collections import defaultdict
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zict
import zict.common
from distributed.metrics import context_meter
from distributed.spill import SpilledSize
from distributed.system import MEMORY_LIMIT
from distributed.utils import RateLimiterFilter
from distributed.worker import Worker

from batchzip.arguments.checks import check_kind
from batchzip.backend import Backend
from batchzip.dask.compressed_values import CompressedValues, NoRoom, NotPicklable, size_of
from batchzip.dask.memory_limits import MemoryLimits, ValueRoom
from batchzip.dask.worker_end import end_with
from batchzip.engine import Engine
from batchzip.errors import BadArgument, ClosedError
from batchzip.store import Counters
from batchzip.system.lifetime import Closing
from batchzip.wording import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from batchzip.dask.compressed_values import Key
    from batchzip.dask.memory_limits import MemoryLimit

_LOG = logging.getLogger("batchzip.dask")
_LOG.addFilter(RateLimiterFilter("There is no room to compress"))

_PAGE_SIZE = 64 << 10
"""Bytes of a page: values have megabytes, and a page of 64 KiB compresses better than 16 of 4."""

_LOOKED_AT = 32
"""Values that are looked at for one that nobody uses; small ones are often shared by many keys."""

_UNUSED = 2
"""References to a value that only the dictionary has: its own, and the argument of the call that counts."""


class WorkerData(zict.Buffer[Any, Any], Closing):
    """The mapping for `distributed.Worker(data=…)`, `Nanny(data=…)` or `LocalCluster(data=…)`.

    `worker_local_directory`  given by Dask: where the file lies that has neither name nor traces.
    `memory_limit`            "auto": the worker's own; or as Dask takes it: bytes, a text as "4 GiB", a
                              fraction of the machine's memory; None or 0 for no limit.
    `live`                    fraction of it that live values may have, by `dask.sizeof`; by default what
                              Dask's setting `distributed.worker.memory.target` says, less what compressed pages
                              have, but at least half of it.
    `compressed`              fraction of it that compressed pages may have; then they go to disk. By default
                              half of `target`, or half of `spill` where that is off.
    `engine`                  keyword arguments of the Engine: algorithm, level, shuffle, …; lz4 in the
                              worker's own process, without others. Without `shuffle`, each large buffer of a
                              value is compressed as whatever makes it smallest: bytes, or numbers of 2, 4 or 8.
    `max_disk_bytes`          bytes the files may have; by default what the setting `max-spill` says.

    Live values are handed out as they are, others as equal copies. Raises BadArgument for what
    cannot be right. It is closed with its worker, and then empty.

    Examples:
        >>> import batchzip.dask
        >>> from distributed import Client, LocalCluster
        >>> here = {"processes": False, "dashboard_address": ":0", "memory_limit": "1 GiB"}
        >>> data = batchzip.dask.WorkerData
        >>> with LocalCluster(n_workers=1, data=data, **here) as cluster, Client(cluster) as client:
        ...     future = client.submit(bytes, 1000)
        ...     len(future.result())
        1000
    """

    def __init__(
        self,
        worker_local_directory: str | os.PathLike[str],
        *,
        memory_limit: MemoryLimit = "auto",
        live: float | None = None,
        compressed: float | None = None,
        engine: Mapping[str, Any] | None = None,
        max_disk_bytes: int | None = None,
    ) -> None:
        self._limits = MemoryLimits.make(memory_limit, live, compressed, max_disk_bytes)
        options: dict[str, Any] = {"algorithm": "lz4", "backend": "sequential"}
        if engine is not None:
            check_kind(engine, "engine", Mapping)
            options.update(engine)
        options.setdefault("page_size", _PAGE_SIZE)
        if not isinstance(options["backend"], Backend):  # which would be closed
            Engine(**options).close()  # says what is wrong with them
        try:
            folder = Path(worker_local_directory)
        except TypeError:
            folder = None
        if folder is None or not folder.is_dir():
            raise BadArgument(
                f"worker_local_directory is a directory, not {shown(worker_local_directory)}"
            )
        self._values = CompressedValues(str(folder), options, self._limits.disk)
        # A value that is still in use somewhere is not made a second time.
        slow = zict.Cache(self._values, zict.WeakValueMapping())
        super().__init__(fast={}, slow=slow, n=sys.maxsize, weight=_weight)
        self.fast: _Live = _Live(self)
        self._room: ValueRoom | None = None
        self.cumulative_metrics: defaultdict[tuple[str, str], float] = defaultdict(float)
        """By activity and unit, as Dask's own buffer counts: "disk-read" and "disk-write" are of values that
        are not live, wherever they lie, and of their bytes before compression."""
        self._restoring: dict[Key, object] = {}
        """What is being restored, as long as nothing else becomes of it."""

    def __setitem__(self, key: Key, value: object) -> None:
        """Take a value; colder ones are compressed to make room. It never raises for want of room."""
        self._enter()
        size = size_of(value)
        with self._counting():
            with self.lock, self.fast.lock:
                old = self.fast.d.get(key)
                self._restoring.pop(key, None)
                zict.common.discard(self.slow, key)
                self._values.forget(key)
                self.fast.put(key, value, size)
            del old  # not before: it may have a finalizer
            self.fast.evict_until_below_target()

    def __delitem__(self, key: Key) -> None:
        with self.lock:
            old = self.fast.d.get(key)
            self._restoring.pop(key, None)
            super().__delitem__(key)
            zict.common.discard(self.slow, key)  # it may be there, too, as its eviction ends
            self._values.forget(key)
        del old

    def __getitem__(self, key: Key) -> object:
        """Give a value, which is live then; colder ones are compressed to make room."""
        self._enter()
        with self._counting():
            size = self.fast.weights.get(key)
            if size is not None:
                context_meter.digest_metric("memory-read", 1, "count")
                context_meter.digest_metric("memory-read", size, "bytes")
            return super().__getitem__(key)

    def __len__(self) -> int:
        with self.lock, self.fast.lock:
            leaving = list(self.fast.leaving.items())
            not_there = sum(
                key in self.slow and (changed or key in self.fast) for key, changed in leaving
            )
            return len(self.fast) + len(self.slow) - not_there

    def __contains__(self, key: object) -> bool:
        if key in self.fast:
            return True
        gone = self._is_gone(key)  # before: as an eviction ends, this does, too
        return key in self.slow and not gone

    def __iter__(self) -> Iterator[Key]:
        return (key for key in super().__iter__() if key in self)

    def _is_gone(self, key: object) -> bool:
        """Say whether a value was deleted while it was compressed: that it is in `slow` means nothing."""
        return self.fast.leaving.get(key, False) and key not in self.fast

    def slow_to_fast(self, key: Key) -> object:
        """Restore a value, and make it live unless it is larger than all live ones may be."""
        if self._is_gone(key):
            raise KeyError(key)
        mark = self._restoring.setdefault(key, object())
        try:
            with self.unlock():
                value = self.slow[key]
                size = size_of(value)
        except BaseException as error:
            if self._restoring.get(key) is mark:
                del self._restoring[key]
            elif isinstance(error, KeyError) and key in self:  # another thread was faster
                try:
                    return self.fast[key]
                except KeyError:
                    return self.slow_to_fast(key)
            raise
        if self._restoring.get(key) is mark:
            del self._restoring[key]
            if size <= self.n:
                with self.fast.lock:
                    self.fast.put(key, value, size)
                    del self.slow[key]
        with self.unlock():
            self.fast.evict_until_below_target()
        return value

    def evict(self) -> int:
        """Compress the coldest live value that can be; its bytes, or -1 if none can. It never raises."""
        if self._values.closed:
            return -1
        with self._counting():
            freed = self._divide(pressed=True)
            return max(self.fast.evict_coldest(), freed or -1)

    def _divide(self, *, pressed: bool = False) -> int:
        """Divide what there is between live values and compressed pages; bytes that the pool gave back.

        `pressed`: the process has become too large, as Dask says, and the pool makes room, too.
        """
        values, room = self._values, self._room
        if room is None:
            return 0
        held = values.pool_bytes
        room.look(held, self.fast.total_weight, now=pressed)
        values.max_pool_bytes = room.compressed(held, pressed=pressed)
        left = values.pool_bytes if pressed else held
        self.n = room.live(left)
        return max(0, held - left)

    def _pool_is_too_large(self) -> bool:
        """Say whether compressed pages have more than the process leaves to them."""
        if self._room is None or not (held := self._values.pool_bytes):
            return False
        self._room.look(held, self.fast.total_weight, now=True)
        limit = self._room.compressed(held, pressed=True)
        return limit is not None and held > limit

    def pop(self, key: Key, default: object = None) -> object:
        """Refused, as by Dask's own buffer: it would restore what is to be thrown away."""
        raise NotImplementedError(f"use `del` to discard {key!r}")

    @property
    def memory(self) -> Mapping[Key, object]:
        """The live values, to look at only; Dask's buffer calls them so, too."""
        return self.fast

    @property
    def disk(self) -> Mapping[Key, object]:
        """The others, compressed in RAM or on disk, to look at only; Dask's buffer calls its own so, too."""
        return self.slow

    @property
    def spilled_total(self) -> SpilledSize:
        """Bytes that values which are not live would have in memory, and bytes on disk."""
        return SpilledSize(self._values.whole_bytes, self._values.disk_bytes)

    @property
    def counters(self) -> Counters:
        """The store's counters: what compressed values take in memory, and, if they shrink, on disk."""
        store = self._values.store
        if store is None:
            return Counters(**{field.name: 0 for field in fields(Counters)})
        return store.counters

    @contextmanager
    def _counting(self) -> Iterator[None]:
        def count(activity: Any, value: float, unit: str) -> None:
            self.cumulative_metrics[activity, unit] += value

        with context_meter.add_callback(count):
            yield

    def _enter(self) -> None:
        if self._room is None:
            self._join()
        if self._values.closed:
            raise ClosedError("this worker's data is closed, as its worker is")

    def _join(self) -> None:
        """Find the worker, whose limit counts and whose end is the end of this.

        It is there when it has something to keep, and not yet when it makes its data.
        """
        workers = [one for one in _all_workers() if one.data is self]
        limit: int | None = MEMORY_LIMIT
        process: Callable[[], int] | None = None
        for worker in workers:
            limit = worker.memory_manager.memory_limit
            process = worker.monitor.get_process_memory
            if not end_with(worker, self):
                self.close()
        self._room = ValueRoom(self._limits, limit, process)
        self._divide()

    def close(self) -> None:
        """Release everything, values included; further calls do nothing."""
        self._values.close()
        self.fast.close()
        self.fast.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} values, {len(self.fast)} of them live>"

    __str__ = __repr__

    def __del__(self) -> None:
        """Leave it to the parts: the collector may have ended some of them already."""


class _Live(zict.LRU[Any, Any]):
    """The live values. What cannot be compressed keeps its place, and the next coldest makes room.

    zict's own ends at the first one that cannot: from then on nothing would be compressed any more.
    """

    def __init__(self, data: WorkerData) -> None:
        super().__init__(sys.maxsize, {}, weight=_weight)
        self._slow = data.slow
        self._data = weakref.proxy(data)
        self._stuck: set[Key] = set()
        """Keys whose values cannot be pickled."""
        self.leaving: dict[object, bool] = {}
        """Keys whose values are being compressed; whether they were set or deleted meanwhile."""
        self._told: set[tuple[str, str]] = set()

    def __bool__(self) -> bool:
        """Say whether there is anything to make room with, live or in the pool: Dask asks so."""
        return len(self) > 0 or self._data._pool_is_too_large()  # noqa: SLF001 - they are one

    def set_noevict(self, key: Key, value: object) -> None:
        """Take a value, and compress none for it."""
        self.put(key, value, size_of(value))

    def put(self, key: Key, value: object, size: int) -> None:
        """Take a value of a size that is known, as `set_noevict`."""
        with self.lock:
            self.discard(key)
            self._stuck.discard(key)
            self.d[key] = value
            self.order.add(key)
            if size > self.n:
                self.heavy.add(key)
            self.weights[key] = size
            self.total_weight += size

    def __delitem__(self, key: Key) -> None:
        with self.lock:
            super().__delitem__(key)
            if key in self.leaving:
                self.leaving[key] = True

    def evict_until_below_target(self, n: float | None = None) -> None:
        """Compress the coldest values until the others have no more than `n` bytes, or none can be."""
        for _ in range(len(self)):  # values may come meanwhile, from their own code, too
            self._data._divide()  # noqa: SLF001
            most = self.n if n is None else n
            if self.closed or self.total_weight + self.offset <= most or self.evict_coldest() < 0:
                return

    def evict_coldest(self) -> int:
        """Compress the coldest value that can be; its bytes, or -1 if none can."""
        for _ in range(len(self)):
            with self.lock:
                key = self._coldest()
                is_heavy = key in self.heavy
            if key is None:
                return -1
            try:
                return int(self.evict(key)[2])
            except KeyError:  # another thread was faster
                continue
            except NoRoom as refused:
                if not self.closed:
                    _LOG.warning("There is no room to compress %s: %s", shown(key), _said(refused))
                if not is_heavy:  # others find none, either; beside a very large one they may
                    return -1
            except NotPicklable as refused:
                self._tell(key, refused)
        return -1

    def _coldest(self) -> Key | None:
        """Return the key of the coldest value that can be compressed: one that nobody uses, if there is."""
        keys = chain(self.heavy, self.order)
        able = (key for key in keys if not (key in self._stuck or key in self.leaving))
        some = list(islice(able, _LOOKED_AT))
        # Of one that a task has, too, the memory would stay.
        unused = (key for key in some if sys.getrefcount(self.d[key]) <= _UNUSED)
        return next(unused, some[0] if some else None)

    def evict(self, key: Any = None) -> tuple[Any, Any, float]:
        """Compress a value, the coldest if none is named; what it was, or (None, None, 0).

        That is given where it was set or deleted meanwhile. Raises KeyError, NoRoom or NotPicklable.
        """
        with self.lock:
            key = self._coldest() if key is None else key
            if key in self.leaving:
                return None, None, 0
            value = self.d[key]
            self.heavy.discard(key)
            self.leaving[key] = False
        undo = False
        try:
            self._slow[key] = value
            undo = True
            with self.lock:
                if self.leaving[key]:
                    return None, None, 0
                undo = False
                size = self.weights[key]
                super().__delitem__(key)
                return key, value, size
        except NotPicklable:
            with self.lock:
                if not self.leaving[key]:
                    self._stuck.add(key)
            raise
        finally:
            if undo:
                zict.common.discard(self._slow, key)
                self._data._values.forget(key)  # noqa: SLF001
            with self.lock:
                del self.leaving[key]

    def _tell(self, key: Key, refused: NotPicklable) -> None:
        """Log what cannot be pickled, once for each kind: there may be thousands of them."""
        kind = type(self.d.get(key)).__qualname__
        said = kind, type(refused.__cause__).__qualname__
        if said not in self._told:
            self._told.add(said)
            _LOG.warning(
                "Failed to pickle %s, of %s, which is kept in memory as it is, as others like it are: %s",
                shown(key),
                kind,
                _said(refused),
            )


def _all_workers() -> list[Worker]:
    """Return this process's workers; other threads may make some meanwhile."""
    while True:
        with suppress(RuntimeError):
            return list(Worker._instances)  # noqa: SLF001


def _said(refused: NoRoom | NotPicklable) -> str:
    """Return what was raised, as a traceback ends; whatever its own `str` does."""
    return "".join(traceback.format_exception_only(refused.__cause__)).strip()


def _weight(key: Key, value: object) -> int:
    del key
    return size_of(value)
